"""
Times models, features and trainings on an NVIDIA GPU: `make bench-gpu`.

Tables, each of which `--only` can choose:

- models: forward pass and pretraining step of tiny, small and base, of patches and frames, in float32, bfloat16, and
  compiled
- batches: base in batches that double until the memory is full, and the goals of utilisation
- attention: implementations and kernels, and what a mask costs
- padding: the same clips padded and packed, 45 % of the padded frames without audio
- features: log-mels on the GPU, by the number of frames that are transformed at a time
- programs: the tests that need a GPU, and a short training by each file of recipes/accelerate that fits one GPU

Weights and clips are random; inference has bfloat16 weights, training bfloat16 autocast, and float32 is without TF32.
What cannot run is a row with its reason. `--device cpu --quick` tries the program on a machine without a GPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_sides import FIGURES, FORMATS, FORWARD, STEP, Bench, Request, Side
from pretraining_step import Form
from report import print_table, versions
from torch.nn.attention import SDPBackend, sdpa_kernel

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    feature_extraction_dual_ssast,
    packing_dual_ssast,
)

ROOT = Path(__file__).parent.parent
SHAPES = {"patch": {}, "frame": {"patch_size": [128, 2], "frequency_stride": 128, "time_stride": 2}}
GOALS = {FORWARD: 0.5, STEP: 0.4}  # utilisation of base
FEATURE_GOAL = 10_000  # times real time
LARGEST_BATCH = 8192  # clips; ends the search on a device whose memory does not
SAMPLING_RATE = 16000
# Files of recipes/accelerate that do not fit one GPU.
SEVERAL = {"several_gpus": "is for several GPUs", "several_machines": "is for several machines"}
TRAINING = [
    "train_hf.py", "recipes/quickstart.yaml", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no",
    "--load_best_model_at_end", "false", "--overwrite", "true", "--output_dir",
]  # fmt: skip
MOST_SECONDS = 900  # of a program


def models(bench: Bench):
    """Times every size, shape and format; the formats of a model alternate."""
    requests = {(work, name): Request(work, form) for work in GOALS for name, form in bench.formats.items()}
    for size, sizes in bench.sizes.items():
        for shape, patches in SHAPES.items():
            outcomes = bench.compare(requests, {**sizes, **patches}, bench.clips)
            print(f"\n{bench.clips} clips of {bench.frames} frames\n")
            rows = [[*names, *outcome.cells] for names, outcome in outcomes.items()]
            print_table([f"{size}, {shape}", "numbers", *FIGURES], rows)


def batches(bench: Bench):
    """Doubles the batch of the largest model until the memory is full; compares the best utilisation with its goal."""
    size, sizes, _ = bench.largest()
    name, form = list(bench.formats.items())[-1]
    most = 2 * bench.clips if bench.args.quick else LARGEST_BATCH
    for work, goal in GOALS.items():
        rows, best, num_clips = [], 0.0, max(bench.clips // 2, 1)
        while num_clips <= most:
            outcome = bench.compare({work: Request(work, form)}, sizes, num_clips)[work]
            rows.append([str(num_clips), *outcome.cells])
            if outcome.median is None:
                break
            best = max(best, num_clips * bench.flops(work, sizes) / outcome.median / bench.peak(form))
            num_clips *= 2
        print(f"\n{size}, patch, {name}: clips of {bench.frames} frames\n")
        print_table([f"{work}: clips", *FIGURES], rows)
        if best and outcome.median is not None:
            print(f"\nthe search ended at {rows[-1][0]} clips, with memory left")
        print(f"\nbest utilisation {best:.0%}, goal {goal:.0%} for base: {bench.verdict(best, goal)}")


def attention(bench: Bench):
    """Times implementations and kernels on batches without padding, and with one padded clip."""
    size, sizes, form = bench.largest()
    ones = torch.ones(bench.clips, bench.frames, dtype=torch.long, device=bench.device)
    padded = ones.clone()
    padded[-1, bench.frames // 2 :] = 0
    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "unfused": SDPBackend.MATH,
    }
    choices = {
        "sdpa, no mask": ("sdpa", None, nullcontext),
        "sdpa, a mask of ones": ("sdpa", ones, nullcontext),
        "sdpa, a padded clip": ("sdpa", padded, nullcontext),
    }
    # The model drops a mask of ones; if it did not, CUDA's flash kernel would refuse it.
    choices |= {
        f"sdpa, only the {name} kernel, a mask of ones": ("sdpa", ones, lambda backend=backend: sdpa_kernel(backend))
        for name, backend in kernels.items()
    }
    choices |= {f"{name}, no mask": (name, None, nullcontext) for name in ("flash_attention_2", "eager")}
    rows = []
    for work in GOALS:
        requests = {
            name: Request(work, Form({"pack_tokens": False}, implementation, autocast=form.autocast), mask, context)
            for name, (implementation, mask, context) in choices.items()
        }
        outcomes = bench.compare(requests, sizes, bench.clips)
        rows += [[name, work, *outcome.cells] for name, outcome in outcomes.items()]
    print(f"\n{size}, patch, bfloat16: {bench.clips} clips of {bench.frames} frames\n")
    print_table(["attention", "work", *FIGURES], rows)


def padding(bench: Bench):
    """Times clips of 10 to 100 % of the longest, in random order: padded and packed."""
    size, sizes, _ = bench.largest()
    num_clips = max(bench.clips, 4)
    lengths = torch.linspace(0.1, 1.0, num_clips)[torch.randperm(num_clips)] * bench.frames
    lengths = lengths.round().long().to(bench.device)
    mask = (torch.arange(bench.frames, device=bench.device) < lengths.unsqueeze(1)).long()  # (clips, frames)
    config = DualSSASTConfig(**sizes)

    def count_tokens(frames: torch.Tensor) -> int:
        return int((config.num_prefix_tokens + config.grid_shape[0] * config.num_columns(frames)).sum())

    tokens = {"padded": count_tokens(torch.full_like(lengths, bench.frames)), "packed": count_tokens(lengths)}
    rows = []
    for work in GOALS:
        requests = {
            (implementation, number, way): Request(
                work, Form({"pack_tokens": way == "packed"}, implementation, autocast=number == "bfloat16"), mask
            )
            for implementation, number in (("sdpa", "bfloat16"), ("flash_attention_2", "bfloat16"), ("sdpa", "float32"))
            for way in tokens
        }
        outcomes = bench.compare(requests, sizes, num_clips)
        for (*names, way), (cells, median) in outcomes.items():
            padded = outcomes[(*names, "padded")].median
            ratio = f"{padded / median:.2f}" if padded and median else ""
            rows.append([", ".join([*names, way]), work, f"{tokens[way]:,}", *cells[:3], ratio])
    share = 1 - float(lengths.float().mean()) / bench.frames
    query = torch.zeros(1, 1, 1, config.hidden_size // config.num_attention_heads, dtype=torch.bfloat16)
    kernel = "varlen_attn" if packing_dual_ssast.has_kernel(query.to(bench.device), 0.0) else "clip by clip"
    print(f"\n{size}, patch: {num_clips} clips of up to {bench.frames} frames, {share:.0%} padding")
    print(f"attention of packed clips: sdpa in bfloat16 {kernel}, in float32 clip by clip\n")
    print_table(["clips of different lengths", "work", "tokens", *FIGURES[:3], "padded / this"], rows)


def features(bench: Bench):
    """Times log-mels of clips that lie on the device, and compares them with those of a CPU."""
    num_clips, seconds_each = (4, 1.0) if bench.args.quick else (256, 10.0)
    clips = 0.1 * torch.randn(num_clips, round(seconds_each * SAMPLING_RATE), device=bench.device)
    extract = DualSSASTFeatureExtractor()
    module = feature_extraction_dual_ssast
    own = {name: getattr(module, name) for name in ("CHUNK_FRAMES", "DEVICE_CHUNK_FRAMES")}

    def with_chunks(size: int) -> Callable:
        def call():
            module.CHUNK_FRAMES = module.DEVICE_CHUNK_FRAMES = size
            module.kaldi_log_mel(list(clips), SAMPLING_RATE)

        return call

    def whole():
        for name, size in own.items():
            setattr(module, name, size)
        extract(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt")

    calls = {f"log-mels, {size} frames at a time": with_chunks(size) for size in (512, 4096, 32768, 131072)}
    sides = {name: Side(lambda call=call: call, bench.device) for name, call in calls.items()}
    sides["the extractor with its checks, as released"] = Side(lambda: whole, bench.device)
    seconds = bench.time(sides)
    for name, size in own.items():
        setattr(module, name, size)
    rows, speed = [], 0.0
    for name, side in sides.items():
        (time_cell, _, memory, _), median = side.outcome(seconds[name], num_clips)
        speed = num_clips * seconds_each / median if median else 0.0
        rows.append([name, time_cell, f"{speed:,.0f}" if median else "", memory])
    print(f"\n{num_clips} clips of {seconds_each:g} s on the device\n")
    print_table(["features", "ms: median (range)", "times real time", "GiB at most"], rows)
    ours, expected = (module.kaldi_log_mel([clip], SAMPLING_RATE)[0].cpu() for clip in (clips[0], clips[0].cpu()))
    print(f"\nlargest difference from the CPU, in natural logarithms: {(ours - expected).abs().max():.1e}")
    verdict = bench.verdict(speed, FEATURE_GOAL)  # of the last row, the extractor
    print(f"the extractor: {speed:,.0f} times real time, goal {FEATURE_GOAL:,}: {verdict}")


def obstacle(recipe: Path, is_gpu: bool) -> str | None:
    """Returns why a file of recipes/accelerate cannot train on one device; `None` if it can."""
    if recipe.stem in SEVERAL:
        return SEVERAL[recipe.stem]
    if not is_gpu:
        return None if recipe.stem == "one_gpu" else "needs a GPU"
    if recipe.stem == "deepspeed" and find_spec("deepspeed") is None:
        return "needs pip install deepspeed"
    return None


def programs(bench: Bench) -> list[str]:
    """Runs the tests that need a GPU and a training by each file of recipes/accelerate; returns what failed."""
    is_gpu = bench.device.type == "cuda"
    environment = {"CUDA_VISIBLE_DEVICES": visible(bench.device)} if is_gpu else {}
    bench.free()
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cuda"]
    outcomes = [["tests that need a GPU", *(run(tests, **environment) if is_gpu else ["not run", "", "needs a GPU"])]]
    print("\na training of 2 steps on data/voice_prompts by each file of recipes/accelerate\n")
    with tempfile.TemporaryDirectory() as folder:
        for recipe in sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")):
            if reason := obstacle(recipe, is_gpu):
                outcomes.append([recipe.name, "not run", "", reason])
                continue
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(recipe)]
            command += ["--num_processes", "1", *([] if is_gpu else ["--cpu"]), *TRAINING]
            output = Path(folder) / recipe.stem
            verdict, seconds, line = run([*command, str(output)], **environment)
            if verdict == "pass" and not (output / "model.safetensors").is_file():
                verdict, line = "FAIL", "left no model.safetensors"
            outcomes.append([recipe.name, verdict, seconds, line.replace(str(output), "the output folder")])
    print_table(["program", "outcome", "seconds", "last line"], outcomes)
    return [f"{name} ({line})" for name, outcome, _, line in outcomes if outcome == "FAIL"]


def visible(device: torch.device) -> str:
    """Returns what a program's CUDA_VISIBLE_DEVICES has to be to see this GPU alone."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES")  # this program's; torch counts in it
    return own.split(",")[device.index] if own else str(device.index)


def run(command: list[str], **environment: str) -> list[str]:
    """Runs a program in the repository's root; returns its outcome, seconds and last line."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return ["FAIL", str(MOST_SECONDS), "did not end"]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # Accelerate's launcher starts processes of its own
    lines = output.strip().splitlines() or ["no output"]
    verdict = "FAIL" if process.returncode else "pass"
    return [verdict, f"{time.perf_counter() - started:.0f}", f"{lines[-1].strip():.120}"]


TABLES = {
    "models": models,
    "batches": batches,
    "attention": attention,
    "padding": padding,
    "features": features,
    "programs": programs,
}


def describe(device: torch.device) -> str:
    """Returns the first line of the page."""
    if device.type == "cpu":
        return "NO GPU: these are figures of a CPU, only to try the program"
    card = torch.cuda.get_device_properties(device)
    return (
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}, "
        f"CUDA {torch.version.cuda or torch.version.hip}, cuDNN {torch.backends.cudnn.version()}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the program (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="a model of two narrow layers and small batches")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=[*TABLES], help="some of the tables")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=[*FORMATS], help="of the models' table")
    parser.add_argument("--clips", type=int, help="clips per call (default: 64, with --quick 2)")
    parser.add_argument("--repeats", type=int, default=5, help="alternating blocks per side (default: 5)")
    parser.add_argument("--calls", type=int, default=4, help="timed calls per block (default: 4)")
    args = parser.parse_args()
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no NVIDIA GPU here; --device cpu --quick tries the program without one")
    torch.manual_seed(0)
    bench = Bench(args)
    print(describe(bench.device))
    print(versions())
    print(f"{args.repeats} alternating blocks of {args.calls} calls, after three that warm up")
    failed = []
    for name in args.only:
        failed += TABLES[name](bench) or []
        print(flush=True)
    for dtype, peak in bench.peaks.items():
        print(f"utilisation in {str(dtype).removeprefix('torch.')}: of {peak / 1e12:.3g} TFLOP/s, a matrix product's")
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
