"""Calls of models on a GPU for gpu.py: how they are made, timed in turn, and measured."""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import NamedTuple

import torch
from model_sizes import BASE, SMALL, TINY
from pretraining_step import NUM_MELS, Form, count_flops, make_model, make_step
from report import spread, time_in_blocks
from torch.utils.flop_counter import FlopCounterMode

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification

MASKED = 400  # of 512 patches
MINIATURE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FORMATS = {
    "float32": Form(),
    "bfloat16": Form(autocast=True),
    "compiled": Form(autocast=True, compiled=True),  # in bfloat16
}
FORWARD, STEP = "forward", "pretraining step"
FIGURES = ["ms: median (range)", "clips per s", "GiB at most", "utilisation"]


class Outcome(NamedTuple):
    """Holds the cells of `FIGURES`, and the median in seconds or `None`."""

    cells: list[str]
    median: float | None


class Request(NamedTuple):
    """Describes a side: `FORWARD` or `STEP` in a form, with a mask, inside a context."""

    work: str
    form: Form
    attention_mask: torch.Tensor | None = None
    context: Callable = nullcontext


class Side:
    """
    Makes a call and warms it up; later calls wait for the device. What fails is recorded, and not called again.

    Attributes:
        gigabytes: Memory of the model, its batch and the call, at most; without a GPU 0.
        reason: Why it failed, or `None`.
    """

    def __init__(self, make: Callable[[], Callable], device: torch.device, context: Callable = nullcontext):
        self.device, self.context = device, context
        self.call = self.reason = None
        self.gigabytes = 0.0
        before = self.allocated()
        if self.attempt(lambda: self.warm_up(make)):
            own = self.allocated() - before
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            others = self.allocated() - own
            self()
            if device.type == "cuda":
                self.gigabytes = (torch.cuda.max_memory_allocated(device) - others) / 2**30

    def warm_up(self, make: Callable[[], Callable]):
        """Calls three times: for the compiler, the optimiser's states and the allocator."""
        self.call = make()
        for _ in range(3):
            self.run()

    def run(self):
        with self.context():
            self.call()
        wait_for(self.device)

    def __call__(self):
        if self.reason is None:
            self.attempt(self.run)

    def attempt(self, function: Callable) -> bool:
        try:
            function()
        except torch.OutOfMemoryError:
            self.reason = "out of memory"
        except Exception as error:  # any obstacle: a kernel, a compiler or a package that is missing
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.reason = f"{lines[0].split('. ')[0]:.80}"
        if self.reason is not None:
            self.call = None  # frees the model
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return self.reason is None

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def outcome(self, seconds: list[float], num_clips: int, flops: float = 0.0, peak: float = 1.0) -> Outcome:
        """Makes the outcome of `num_clips` clips and `flops` operations a call, at a peak of `peak` per second."""
        if self.reason is not None:
            return Outcome([self.reason, "", "", ""], None)
        median = statistics.median(seconds)
        memory = f"{self.gigabytes:.2f}" if self.device.type == "cuda" else "not measured"
        utilisation = f"{flops / median / peak:.0%}" if flops else ""
        return Outcome([spread(seconds), f"{num_clips / median:.1f}", memory, utilisation], median)


class Bench:
    """Holds the options and the peaks of the device, and makes the sides."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.has_bfloat16 = self.device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
        self.sizes = {"miniature": MINIATURE} if args.quick else {"tiny": TINY, "small": SMALL, "base": BASE}
        self.frames = 256 if args.quick else 1024
        self.clips = args.clips or (2 if args.quick else 64)
        self.formats = {name: FORMATS[name] for name in args.formats}
        self.peaks, self.counts = {}, {}
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # compiled kernels run on the current one
        # Products of float32 are in float32 by default, but convolutions are not.
        torch.backends.cudnn.allow_tf32 = False

    def peak(self, form: Form) -> float:
        """Returns the operations per second of a large matrix product in the format of `form`: the fastest of ten."""
        dtype = torch.bfloat16 if form.autocast else torch.float32
        if dtype not in self.peaks:
            size = 8192 if self.device.type == "cuda" else 512
            factors = torch.randn(2, size, size, device=self.device).to(dtype)
            times = []
            for _ in range(11):  # the first one warms up
                wait_for(self.device)
                started = time.perf_counter()
                factors[0] @ factors[1]
                wait_for(self.device)
                times.append(time.perf_counter() - started)
            self.peaks[dtype] = 2 * size**3 / min(times[1:])
        return self.peaks[dtype]

    def make(self, request: Request, sizes: dict, num_clips: int) -> Callable:
        """Makes the call of a request with a batch of `num_clips` clips."""
        form, shape = request.form, (num_clips, self.frames)
        if form.autocast and not self.has_bfloat16:
            raise RuntimeError("this GPU has no bfloat16")
        if form.attention == "flash_attention_2" and find_spec("flash_attn") is None:
            raise RuntimeError("needs pip install flash-attn")
        if request.work == FORWARD:
            return make_forward(form, sizes, *shape, self.device, request.attention_mask)
        return make_step(form, make_model(form, sizes, MASKED, self.device), shape, request.attention_mask)

    def compare(self, requests: dict, sizes: dict, num_clips: int) -> dict:
        """Times a model's requests alternating; returns their outcomes. No model stays on the device."""
        self.free()
        flops = {work: num_clips * self.flops(work, sizes) for work in {request.work for request in requests.values()}}
        peaks = {name: self.peak(request.form) for name, request in requests.items()}
        sides = {
            name: Side(lambda request=request: self.make(request, sizes, num_clips), self.device, request.context)
            for name, request in requests.items()
        }
        seconds = self.time(sides)
        return {
            name: side.outcome(seconds[name], num_clips, flops[requests[name].work], peaks[name])
            for name, side in sides.items()
        }

    def free(self):
        """Frees what earlier tables left: models, and compiled programs, whose number is limited."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def flops(self, work: str, sizes: dict) -> float:
        """Counts the operations in matrix products per clip of `self.frames` frames."""
        key = work, str(sizes)
        if key not in self.counts:
            self.counts[key] = (
                count_flops(Form(), sizes, MASKED, self.frames)
                if work == STEP
                else count_forward_flops(sizes, self.frames)
            )
        return self.counts[key]

    def verdict(self, figure: float, goal: float) -> str:
        """Compares a figure with its goal; without a GPU none is judged, nor one of a small model and small batches."""
        if self.device.type != "cuda":
            return "not judged without a GPU"
        if self.args.quick:
            return "not judged with --quick"
        return "PASS" if figure >= goal else "FAIL"

    def time(self, sides: dict[str, Side]) -> dict[str, list[float]]:
        return time_in_blocks(sides, self.args.repeats, self.args.calls)

    def largest(self) -> tuple[str, dict, Form]:
        """Returns the name and sizes of the largest model, and the form in bfloat16 that is not compiled."""
        name = list(self.sizes)[-1]
        return name, self.sizes[name], FORMATS["bfloat16"]


def wait_for(device: torch.device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def make_forward(
    form: Form,
    sizes: dict,
    num_clips: int,
    num_frames: int,
    device: torch.device,
    attention_mask: torch.Tensor | None = None,
) -> Callable:
    """Returns a function that classifies random clips (num_clips, num_frames, mel)."""
    model = DualSSASTForAudioClassification(DualSSASTConfig(**sizes, **form.config, num_labels=50))
    model.set_attn_implementation(form.attention)
    model = model.to(device, torch.bfloat16 if form.autocast else torch.float32).eval()
    clips = torch.randn(num_clips, num_frames, NUM_MELS, device=device, dtype=model.dtype)
    forward = torch.compile(model, dynamic=False) if form.compiled else model

    @torch.inference_mode()
    def classify():
        forward(clips, attention_mask)

    return classify


def count_forward_flops(sizes: dict, num_frames: int) -> float:
    """Counts the operations in matrix products of a clip's classification, like `count_flops` of a step."""
    # Eager: fused kernels are not counted.
    classify = make_forward(Form(attention="eager"), sizes, 1, num_frames, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        classify()
    return float(counter.get_total_flops())
