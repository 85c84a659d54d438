"""
Times a step of masked spectrogram patch modelling, both objectives: the published two passes, and a shared mask in one.

Takes forward, backward and optimiser on 8 clips of 1024 x 128, 400 of 512 patches masked, float32; also other ways to
save time, and the memory that the autograd graph keeps for the backward pass. Then a step of recipes/small_encoder.yaml
with padding and packed: half of its clips are shorter than a crop, as in the corpus of pretraining_corpus.py. Weights
and clips are random. GPUs: gpu.py.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from model_sizes import TINY
from report import can_measure_bfloat16, print_table, spread, time_in_blocks, versions
from torch.utils.flop_counter import FlopCounterMode

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForPreTraining

NUM_MELS, NUM_PATCHES = 128, 512  # of 1024 frames
SMALL_ENCODER = Path(__file__).parents[1] / "recipes" / "small_encoder.yaml"
SHORTEST_FRAMES = 50  # of its shorter clips
PEAK = "matrix products"
GOAL = 1.8  # time of the published form / time with one pass


@dataclass(frozen=True)
class Form:
    """Describes a way to take a step."""

    config: dict = field(default_factory=dict)
    attention: str = "sdpa"
    fused_adam: bool = True
    autocast: bool = False
    compiled: bool = False


PUBLISHED, ONE_PASS = "two passes, a mask each (published)", "one pass, shared mask"
FORMS = {
    PUBLISHED: Form({"shared_mask": False}, fused_adam=False),
    ONE_PASS: Form(fused_adam=False),
    "+ fused Adam": Form(),
    "+ fused Adam, attention written out": Form(attention="eager"),
    "+ fused Adam, bfloat16 autocast": Form(autocast=True),
    "+ fused Adam, torch.compile": Form(compiled=True),
    "+ fused Adam, decoder of 2 blocks": Form({"num_decoder_layers": 2}),
}


def make_model(form: Form, sizes: dict, num_masked: int, device: str = "cpu") -> DualSSASTForPreTraining:
    config = DualSSASTConfig(**sizes, **form.config, mask_ratio=num_masked / NUM_PATCHES)
    model = DualSSASTForPreTraining(config)
    model.set_attn_implementation(form.attention)
    return model.to(device).train()


def make_step(
    form: Form, model: DualSSASTForPreTraining, shape: tuple[int, ...], attention_mask: torch.Tensor | None = None
) -> Callable:
    """
    Returns a function that takes a whole step; clips and masks are drawn beforehand, as by a data loader.

    Args:
        shape: (clips, frames), or (clips, 2 crops, frames)
        attention_mask: (clips, frames)
    """
    device = model.device
    clips = torch.randn(*shape, NUM_MELS, device=device)
    masks = model.sample_mask(clips, attention_mask)
    # SSAST's hyper-parameters.
    optimiser = torch.optim.Adam(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=5e-7, fused=form.fused_adam
    )
    # Fixed shapes: dynamic ones would be a slower program.
    forward = torch.compile(model, dynamic=False) if form.compiled else model

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=form.autocast):
            loss = forward(clips, attention_mask, bool_masked_pos=masks).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def count_flops(form: Form, sizes: dict, num_masked: int, num_frames: int) -> float:
    """Counts a step's operations in matrix products, per clip. Attention is eager: fused kernels are not counted."""
    model = make_model(Form(form.config, attention="eager"), sizes, num_masked)
    clips = torch.randn(1, num_frames, NUM_MELS)
    with FlopCounterMode(display=False) as counter:
        model(clips, bool_masked_pos=model.sample_mask(clips)).loss.backward()
    return float(counter.get_total_flops())


def saved_bytes_per_clip(form: Form, sizes: dict, num_masked: int, num_clips: int, num_frames: int) -> float:
    """Counts the bytes that the graph keeps for the backward pass: each storage once, without the parameters."""
    model = make_model(form, sizes, num_masked)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()  # kept storages stay alive: their addresses differ
        return tensor

    clips = torch.randn(num_clips, num_frames, NUM_MELS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(clips, bool_masked_pos=model.sample_mask(clips)).loss
    del loss  # keeps the graph alive until here
    return sum(kept.values()) / num_clips


def compare_forms(args: argparse.Namespace, can_autocast: bool):
    steps = {}
    for name, form in FORMS.items():
        if form.autocast and not can_autocast:
            continue
        step = make_step(form, make_model(form, TINY, args.masked), (args.clips, args.frames))
        if form.compiled:
            try:
                step()
            except Exception as error:  # any obstacle: no compiler, no headers
                print(f"left out: {name} ({type(error).__name__}: {str(error).splitlines()[0]})\n")
                continue
        steps[name] = step
    factors = torch.randn(2, 1024, 1024)
    # Alternates with the steps: if it were measured in a busier minute, they could exceed the peak.
    steps[PEAK] = lambda: [factors[0] @ factors[1] for _ in range(50)]
    seconds = time_in_blocks(steps, args.repeats, args.calls)
    peak = 50 * 2 * 1024**3 / statistics.median(seconds.pop(PEAK))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, median in medians.items():
        flops = args.clips * count_flops(FORMS[name], TINY, args.masked, args.frames)
        rows.append(
            [
                name,
                spread(seconds[name]),
                f"{medians[PUBLISHED] / median:.2f}",
                f"{args.clips / median:.2f}",
                f"{flops / 1e9:.0f}",
                f"{flops / median / peak:.0%}",
            ]
        )
    header = ["step", "ms: median (range)", "ratio", "clips per s", "GFLOP", "utilisation"]
    print_table(header, rows)
    print(f"\nutilisation: of {peak / 1e9:.0f} GFLOP/s, measured on a float32 matrix product of 1024 x 1024 x 1024")
    ratio = medians[PUBLISHED] / medians[ONE_PASS]
    print(f"two passes over one: {ratio:.2f}, goal {GOAL}: {'PASS' if ratio >= GOAL else 'FAIL'}\n")


def compare_memory(args: argparse.Namespace):
    batches = {"10 s, 400 masked": (1024, 400), "10 s, 100 masked": (1024, 100), "2 s, 81 of 104 masked": (200, 400)}
    names = [PUBLISHED, ONE_PASS, "+ fused Adam, attention written out", "+ fused Adam, decoder of 2 blocks"]
    rows = []
    for name in names:
        megabytes = [
            saved_bytes_per_clip(FORMS[name], TINY, masked, 2, frames) / 2**20 for frames, masked in batches.values()
        ]
        rows.append([name.removeprefix("+ fused Adam, "), *(f"{value:.1f}" for value in megabytes)])
    print_table(["MiB kept for the backward pass, per clip", *batches], rows)


def compare_packing(args: argparse.Namespace, can_autocast: bool):
    recipe = yaml.safe_load(SMALL_ENCODER.read_text(encoding="utf-8"))
    num_clips, num_frames = recipe["per_device_train_batch_size"], recipe["max_length"]
    lengths = torch.randint(SHORTEST_FRAMES, num_frames, (num_clips, 1))
    lengths[::2] = num_frames
    attention_mask = (torch.arange(num_frames) < lengths).long()
    sides = {}
    for number_format in ("float32", "bfloat16") if can_autocast else ("float32",):
        for name, packs in {"with padding": False, "packed": True}.items():
            config = DualSSASTConfig(**recipe["config_overrides"], max_length=num_frames, pack_tokens=packs)
            model = DualSSASTForPreTraining(config).train()
            sides[number_format, name] = make_step(
                Form(autocast=number_format == "bfloat16"), model, (num_clips, 2, num_frames), attention_mask
            )
    seconds = time_in_blocks(sides, args.repeats, args.calls)
    rows = []
    for (number_format, name), values in seconds.items():
        padded = seconds[number_format, "with padding"]
        ratio = statistics.median(padded) / statistics.median(values)
        rows.append([f"{number_format}, {name}", spread(values), f"{ratio:.2f}"])
    print()
    print_table([f"small encoder, {num_clips} clips", "ms: median (range)", "ratio"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="clips per step")
    parser.add_argument("--frames", type=int, default=1024, help="of 10 ms per clip")
    parser.add_argument("--masked", type=int, default=400, help=f"patches of {NUM_PATCHES}")
    parser.add_argument("--repeats", type=int, default=4, help="blocks per side")
    parser.add_argument("--calls", type=int, default=2, help="timed steps per block")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    print(versions())
    print(
        f"{TINY['hidden_size']} wide, {TINY['num_hidden_layers']} layers; {args.clips} clips of {args.frames} frames, "
        f"{args.masked} of {NUM_PATCHES} patches masked; {args.repeats} alternating blocks of {args.calls} steps\n"
    )
    can_autocast = can_measure_bfloat16()
    compare_forms(args, can_autocast)
    compare_memory(args)
    compare_packing(args, can_autocast)


if __name__ == "__main__":
    main()
