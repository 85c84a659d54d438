"""
Compares a classifier with its exports: size, time per clip and accuracy of torch, ONNX, int8 and float16 weights.

The trained classifier is that of recipes/quickstart.yaml, on the test clips of the embedded voice prompts. The one of
SSAST's base size has random weights, on clips of 2, 5 and 10 s. Time is from waveform to logits, one clip at a time;
the sides alternate clip by clip. Finished exports and runs are not repeated: to begin anew, remove the output folder.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from clips import read_at
from report import print_table, versions
from training_runs import ROOT, train
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

PROMPTS = ROOT / "data" / "voice_prompts"
LENGTHS_S = (2, 5, 10)


def test_clips(rate: int) -> list[tuple[np.ndarray, str]]:
    """Reads the test clips, ((samples,), language) each."""
    with open(PROMPTS / "test.csv", encoding="utf-8", newline="") as file:
        return [(read_at(PROMPTS / row["file_name"], rate), row["language"]) for row in csv.DictReader(file)]


def export(model: Path, output: Path, kind: str, threads: int):
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "training.export", model, output, "--format", kind, "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    code = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    if code.returncode:
        raise SystemExit(f"training.export stopped with {code.returncode}")


def torch_side(folder: Path):
    """Returns a function of waveforms that computes in float32 with weights of any precision."""
    model = AutoModelForAudioClassification.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    rate = extractor.sampling_rate

    def run(clip: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(**extractor(clip, sampling_rate=rate, return_tensors="pt")).logits[0].numpy()

    return run


def onnx_side(file: Path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda clip: session.run(None, {"waveform": clip[None], "lengths": np.array([len(clip)])})[0][0]


def measure(model: Path, folder: Path, clips: list[np.ndarray], repeats: int, threads: int) -> dict[str, dict]:
    """Measures each side: logits (clips, labels), seconds per pass over the clips, and megabytes."""
    for kind in ("onnx", "int8", "safetensors-fp16"):
        export(model, folder / kind, kind, threads)
    files = {
        "torch float32": model / "model.safetensors",
        "ONNX float32": folder / "onnx" / "model.onnx",
        "ONNX int8": folder / "int8" / "model_int8.onnx",
        "torch, weights in float16": folder / "safetensors-fp16" / "model.safetensors",
    }
    runs = {
        name: (onnx_side(file) if file.suffix == ".onnx" else torch_side(file.parent)) for name, file in files.items()
    }
    logits = {name: np.stack([run(clip) for clip in clips]) for name, run in runs.items()}  # warms up too
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        passes = dict.fromkeys(runs, 0.0)
        for clip in clips:
            for name, run in runs.items():
                start = time.perf_counter()
                run(clip)
                passes[name] += time.perf_counter() - start
        for name, total in passes.items():
            seconds[name].append(total)
    return {
        name: {"logits": logits[name], "seconds": seconds[name], "megabytes": file.stat().st_size / 1e6}
        for name, file in files.items()
    }


def tell(title: str, sides: dict[str, dict], truth: np.ndarray | None) -> dict[str, dict]:
    """Prints a table and returns its figures; ratios are medians over the passes."""
    first = next(iter(sides.values()))
    figures, rows = {}, []
    for name, side in sides.items():
        ratios = [mine / exact for mine, exact in zip(side["seconds"], first["seconds"])]
        found = {
            "megabytes": round(side["megabytes"], 1),
            "time": round(statistics.median(ratios), 2),
            "time_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "largest_difference": float(np.abs(side["logits"] - first["logits"]).max()),
            "same_class": float((side["logits"].argmax(1) == first["logits"].argmax(1)).mean()),
        }
        row = [name, f"{found['megabytes']:.1f}", "{:.2f} ({:.2f}-{:.2f})".format(found["time"], *found["time_range"])]
        row += [f"{found['largest_difference']:.1e}"]
        if truth is not None:
            found["accuracy"] = float((side["logits"].argmax(1) == truth).mean())
            row += [f"{found['same_class']:.3f}", f"{found['accuracy']:.3f}"]
        figures[name] = found
        rows.append(row)
    print(f"\n{title}\n")
    header = ["side", "MB", "time / torch", "largest difference"]
    print_table(header + (["same class", "accuracy"] if truth is not None else []), rows)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "export")
    parser.add_argument("--model", type=Path, help="a finished run of recipes/quickstart.yaml; trained if not given")
    parser.add_argument("--repeats", type=int, default=5, help="passes over the clips per side")
    parser.add_argument(
        "--stride", type=int, default=16, help="of the patches of the base size, 10 in SSAST's fine-tuning"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU cores to use")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    output = args.output.resolve()

    trained = args.model.resolve() if args.model else output / "quickstart"
    if not args.model:
        train(trained, args.threads, ROOT / "recipes" / "quickstart.yaml")
    labels = AutoModelForAudioClassification.from_pretrained(trained).config.label2id
    clips = test_clips(16000)
    truth = np.array([labels[language] for _, language in clips])
    longest = AutoFeatureExtractor.from_pretrained(trained).max_samples
    waveforms = [clip[:longest] for clip, _ in clips]

    base = output / f"base-{args.stride}"
    if not (base / "model.safetensors").exists():
        torch.manual_seed(0)
        strides = {"frequency_stride": args.stride, "time_stride": args.stride}
        DualSSASTForAudioClassification(DualSSASTConfig(num_labels=10, **strides)).save_pretrained(base)
        DualSSASTFeatureExtractor().save_pretrained(base)
    joined = np.concatenate([clip for clip, _ in clips])
    pieces = [joined[: seconds * 16000] for seconds in LENGTHS_S]

    print(f"{versions()}, onnxruntime {onnxruntime.__version__}")
    figures = {"versions": versions()}
    sides = measure(trained, output / "quickstart-exports", waveforms, args.repeats, args.threads)
    title = (
        f"quickstart, trained: {len(clips)} test clips of the voice prompts, median of {args.repeats} passes (range)"
    )
    figures["quickstart"] = tell(title, sides, truth)
    sides = measure(base, output / f"base-{args.stride}-exports", pieces, args.repeats, args.threads)
    title = f"base size, stride {args.stride}, random weights: clips of {', '.join(map(str, LENGTHS_S))} s"
    figures["base"] = tell(title, sides, None)
    (output / "export.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
