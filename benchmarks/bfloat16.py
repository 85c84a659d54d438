"""
Compares bfloat16 with float32 on a CPU: classification and a step of fine-tuning, beside the machine's limit by a large
matrix product; attention alone, torch's kernel and the model's own; and, with --profile, where the time goes.

Takes clips of 5 s, random weights, AdamW. Every row alternates with its anchors. The machine's limit is the speed of a
matrix product of 1024 x 1024 x 1024 in the same number format. Training losses: bfloat16_losses.py. GPUs: gpu.py.
"""

import argparse
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from model_sizes import BASE, TINY
from report import can_measure_bfloat16, print_table, spread, time_in_blocks, versions
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification, attention_dual_ssast
from modeling_dual_ssast.attention_dual_ssast import block_attention, cpu_has

NUM_MELS, NUM_LABELS = 128, 35
SIZES = {"tiny": TINY, "base": BASE}
MINIATURE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TOKENS = (130, 258, 514, 1214)  # of 2.5, 5 and 10 s, and of 10 s in overlapping patches
FORWARD_GOAL = 0.6  # of bfloat16's limit
STEP_GOALS = {"tiny": 2.5, "base": 4.0}  # time in float32 / time under autocast
LIMITS = ("float32", "bfloat16")
LIMIT_PRODUCTS = 5  # of matrices of 1024 x 1024, in a timed call
FLOAT32, AUTOCAST, WEIGHTS = "float32", "bfloat16 autocast", "bfloat16 weights"
KERNEL, COMPILED = ", torch's attention kernel", ", compiled"
# Kinds of operations by parts of their names, or of their callers' names; the first that fits counts.
KINDS = {
    "attention, torch's kernel": ("scaled_dot_product",),
    "optimizer": ("Optimizer.", "_fused_adam"),
    "products of the Linears": ("addmm", "aten::mm", "aten::bmm", "aten::linear"),
    "projection to patches": ("convolution",),
    "layer norm": ("layer_norm",),
    "GELU": ("gelu",),
    "softmax of the loss": ("softmax",),
    "casts and copies": ("aten::copy_", "aten::cat", "aten::clone"),
    "sums of gradients, residuals": ("aten::add", "aten::sum", "aten::mul"),
}
OWN_KINDS = {"attention, products": ("bmm", "aten::mm"), "attention, weights and sums": ("",)}


# ---- models ----


def make_model(sizes: dict, number_format: str, attention: str = "sdpa") -> DualSSASTForAudioClassification:
    torch.manual_seed(0)
    model = DualSSASTForAudioClassification(DualSSASTConfig(**sizes, num_labels=NUM_LABELS))
    model.set_attn_implementation(attention)
    return model.to(torch.bfloat16 if number_format.startswith(WEIGHTS) else torch.float32)


@contextmanager
def number_format_of(name: str) -> Iterator[None]:
    """Runs under autocast, and with torch's attention kernel, where the name of the row says so."""
    with torch.autocast("cpu", torch.bfloat16, enabled=name.startswith(AUTOCAST)):
        if not name.endswith(KERNEL):
            yield
            return
        with mock.patch.object(attention_dual_ssast, "has_blocks", lambda query, dropout: False):
            yield


def make_forward(sizes: dict, name: str, clips: torch.Tensor) -> Callable:
    """Returns a function that classifies the clips (batch, frames, mel)."""
    model = make_model(sizes, name).eval()
    forward = torch.compile(model, dynamic=False) if name.endswith(COMPILED) else model
    clips = clips.to(next(model.parameters()).dtype)

    def call():
        with torch.inference_mode(), number_format_of(name):
            forward(clips)

    return call


def make_step(sizes: dict, name: str, clips: torch.Tensor) -> Callable:
    """Returns a function that takes a step of fine-tuning; the weights are float32 in every number format."""
    model = make_model(sizes, name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = torch.arange(len(clips)) % NUM_LABELS

    def step():
        with number_format_of(name):
            loss = model(clips, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def count_flops(sizes: dict, clips: torch.Tensor) -> tuple[float, float]:
    """Counts the operations in matrix products of a forward pass and of a step. Attention is eager: all are counted."""
    model = make_model(sizes, FLOAT32, attention="eager")
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            loss = model(clips[:1], labels=torch.tensor([0])).loss
            if backward:
                loss.backward()
        counts.append(float(counter.get_total_flops()) * len(clips))
    return counts[0], counts[1]


def warm_up(sides: dict[str, Callable]) -> dict[str, Callable]:
    """Calls every side once; names those that fail, and leaves them out."""
    working = {}
    for name, call in sides.items():
        try:
            call()
            working[name] = call
        except Exception as error:  # any obstacle: no compiler, no headers
            print(f"left out: {name} ({type(error).__name__}: {str(error).splitlines()[0]})\n")
    return working


# ---- what is measured ----


def limit_calls() -> dict[str, Callable]:
    """Returns the products that give the machine's limits; each is of `LIMIT_PRODUCTS` * 2 * 1024^3 operations."""
    factors = torch.randn(2, 1024, 1024)
    pairs = zip(LIMITS, (factors, factors.bfloat16()))
    return {name: functools.partial(lambda a, b: [a @ b for _ in range(LIMIT_PRODUCTS)], *p) for name, p in pairs}


def limits_of(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Returns operations per second of each number format from the seconds of `limit_calls`."""
    return {name: LIMIT_PRODUCTS * 2 * 1024**3 / statistics.median(values) for name, values in seconds.items()}


def print_limits(limits: dict[str, float]):
    one, other = (limits[name] for name in LIMITS)
    print(f"limits: {one / 1e9:.3g} GFLOP/s in float32, {other / 1e9:.3g} in bfloat16 ({other / one:.2g} times)")


def clock_of(args: argparse.Namespace) -> Callable:
    """Returns the clock: with one thread the processor's time, to which other programs add little."""
    return time.process_time if args.threads == 1 else time.perf_counter


def compare_models(size: str, sizes: dict, args: argparse.Namespace):
    """Prints the table of a size: per row the ratio to float32, and the share of the limit of its number format."""
    clips = torch.randn(args.clips, args.frames, NUM_MELS)
    flops = dict(zip(("forward", "step"), count_flops(sizes, clips)))
    names = [FLOAT32, AUTOCAST + KERNEL, AUTOCAST, WEIGHTS + KERNEL, WEIGHTS, WEIGHTS + COMPILED]
    sides = {f"forward, {name}": make_forward(sizes, name, clips) for name in names if args.compile or name != names[5]}
    sides |= {f"step, {name}": make_step(sizes, name, clips) for name in names[:3]}
    sides = warm_up(sides)
    seconds = time_in_blocks(limit_calls() | sides, args.repeats, args.calls, clock_of(args))
    limits = limits_of({name: seconds.pop(name) for name in LIMITS})
    rows, shares, ratios = [], {}, {}
    for name, values in seconds.items():
        work, _, number_format = name.partition(", ")
        # Both times are from the same minute, because the minutes of a busy machine differ.
        ratio = statistics.median(a / b for a, b in zip(seconds[f"{work}, {FLOAT32}"], values))
        limit = limits[FLOAT32 if number_format == FLOAT32 else "bfloat16"]
        shares[name] = flops[work] / statistics.median(values) / limit
        ratios[name] = ratio
        rows.append([name, spread(values), f"{ratio:.2f}", f"{flops[work] / 1e9:.0f}", f"{shares[name]:.0%}"])
    print_table([size, "ms: median (range)", "ratio", "GFLOP", "of the limit"], rows)
    print()
    print_limits(limits)
    best = max(share for name, share in shares.items() if name.startswith("forward, bfloat16"))
    print(f"best forward in bfloat16: {best:.0%} of the limit, goal {FORWARD_GOAL:.0%}: {judged(best, FORWARD_GOAL)}")
    if size in STEP_GOALS:
        found, goal = ratios[f"step, {AUTOCAST}"], STEP_GOALS[size]
        print(f"step under autocast: {found:.2f} times the speed of float32, goal {goal}: {judged(found, goal)}")
    print()


def judged(found: float, goal: float) -> str:
    return "PASS" if found >= goal else "FAIL"


def attention_calls(heads: int, tokens: int, clips: int, head_size: int) -> dict[str, Callable]:
    """Returns attention in three ways, forward and forward with backward, of states as the model makes them."""
    draws = torch.randn(3, clips, tokens, heads, head_size).transpose(2, 3)  # (3, batch, heads, tokens, head size)
    calls = {}
    for name, dtype in (("float32", torch.float32), ("kernel", torch.bfloat16), ("blocks", torch.bfloat16)):
        states = [draw.to(dtype).requires_grad_() for draw in draws]
        attend = _blocks if name == "blocks" else _kernel
        gradient = torch.randn(clips, tokens, heads, head_size, dtype=dtype)
        calls[f"forward, {name}"] = torch.no_grad()(functools.partial(attend, *states))
        calls[f"both, {name}"] = functools.partial(_with_gradients, attend, states, gradient)
    return calls


def _kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return block_attention(torch.nn.Identity(), query, key, value, None, scaling=query.shape[-1] ** -0.5)[0]


def _with_gradients(attend: Callable, states: list[torch.Tensor], gradient: torch.Tensor):
    torch.autograd.grad(attend(*states), states, gradient)


def compare_attention(size: str, sizes: dict, args: argparse.Namespace):
    """Prints a table of attention alone: torch's kernel in both number formats, and the blocks, for several lengths."""
    heads = sizes["num_attention_heads"]
    rows = []
    for tokens in args.tokens:
        clips = max(args.clips * 258 // tokens, 1)
        calls = attention_calls(heads, tokens, clips, sizes["hidden_size"] // heads)
        seconds = time_in_blocks(calls, args.attention_repeats, 1, clock_of(args))
        for work in ("forward", "both"):
            kernel, blocks = seconds[f"{work}, kernel"], seconds[f"{work}, blocks"]
            ratios = sorted(a / b for a, b in zip(kernel, blocks))
            rows.append([
                f"{clips} clips of {tokens} tokens, {'forward' if work == 'forward' else 'forward and backward'}",
                *(spread(seconds[f"{work}, {name}"]) for name in ("float32", "kernel", "blocks")),
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
            ])  # fmt: skip
    header = [f"attention, {size}: {heads} heads", "float32, ms", "bfloat16, kernel", "bfloat16, blocks"]
    print_table([*header, "kernel / blocks (range)"], rows)
    print()


# ---- profile ----


def kind_of(name: str, callers: list[str]) -> str:
    """Returns the kind of an operation, by its name and the names of the operations that called it."""
    if any("BlockAttention" in caller for caller in callers):
        return next(kind for kind, parts in OWN_KINDS.items() if any(part in name for part in parts))
    for kind, parts in KINDS.items():
        if any(part in text for part in parts for text in (name, *callers)):
            return kind
    return "other"


def profiled(call: Callable, repeats: int) -> dict[str, float]:
    """Returns the median milliseconds of each kind of operation in a call."""
    call()
    calls = [defaultdict(float) for _ in range(repeats)]
    for milliseconds in calls:
        with profile(activities=[ProfilerActivity.CPU]) as record:
            call()
        for event in record.events():
            callers, parent = [], event.cpu_parent
            while parent is not None:
                callers.append(parent.name)
                parent = parent.cpu_parent
            milliseconds[kind_of(event.name, callers)] += event.self_cpu_time_total / 1000
    kinds = {kind for milliseconds in calls for kind in milliseconds}
    return {kind: statistics.median(milliseconds[kind] for milliseconds in calls) for kind in kinds}


def print_profile(size: str, sizes: dict, args: argparse.Namespace):
    """Prints a table for the forward pass and one for the step: where the time goes in each number format."""
    clips = torch.randn(args.clips, args.frames, NUM_MELS)
    for work, make, name in (("forward", make_forward, WEIGHTS), ("step", make_step, AUTOCAST)):
        names = (FLOAT32, name + KERNEL, name)
        columns = [profiled(make(sizes, number_format, clips), args.repeats) for number_format in names]
        rows = []
        for kind in (*OWN_KINDS, *KINDS, "other"):
            if any(kind in column for column in columns):
                times = [(column.get(kind, 0.0), sum(column.values())) for column in columns]
                rows.append([kind, *(f"{own:.1f} ({own / total:.0%})" for own, total in times)])
        rows.append(["all", *(f"{sum(column.values()):.0f}" for column in columns)])
        print_table([f"{size}, {work}: ms (share)", *names], rows)
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES, "miniature"], default=[*SIZES])
    parser.add_argument("--clips", type=int, default=8, help="clips per call")
    parser.add_argument("--frames", type=int, default=498, help="of 10 ms per clip")
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, help="lengths for attention alone")
    parser.add_argument("--repeats", type=int, default=3, help="blocks per side, and profiled calls")
    parser.add_argument("--calls", type=int, default=1, help="timed calls per block")
    parser.add_argument("--attention_repeats", type=int, default=9, help="blocks per side, for attention alone")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--only", nargs="+", choices=["models", "attention"], default=["models", "attention"])
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    features = {"AVX512-BF16": cpu_has("avx512_bf16"), "AMX": cpu_has("amx_tile")}
    print(versions())
    print(", ".join(f"{name}: {'yes' if found else 'no'}" for name, found in features.items()))
    print(
        f"{args.clips} clips of {args.frames} frames; {args.repeats} alternating blocks of {args.calls} calls; "
        f"{'processor time' if args.threads == 1 else 'time'}\n"
    )
    if args.sizes != ["miniature"] and not can_measure_bfloat16():  # the miniature takes seconds anywhere
        print_limits(limits_of(time_in_blocks(limit_calls(), 1, 1, clock_of(args))))
        return
    for size in args.sizes:
        sizes = (SIZES | {"miniature": MINIATURE})[size]
        if "models" in args.only:
            compare_models(size, sizes, args)
        if "attention" in args.only:
            compare_attention(size, sizes, args)
        if args.profile:
            print_profile(size, sizes, args)


if __name__ == "__main__":
    main()
