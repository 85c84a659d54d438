"""Measures how fast a pretraining runs: clips and hours of audio per second, and the utilisation of the hardware."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# Sides of the square matrices whose products are measured: which one is the fastest depends on the device.
CPU_SIZES, GPU_SIZES = (512, 1024, 1536), (2048, 4096, 8192)
REPEATS = 6  # products per size, after one that warms up
MOST_SECONDS = 0.5  # per size
MOST_MEASUREMENTS = 5  # of the peak; a run that is still faster has no utilisation
FAILED = (
    "not known: the run did {rate:.3g} operations per second and process, more than the {peak:.3g} of the fastest "
    "matrix product that was measured; measure on a machine without other programs"
)


def encoder_flops(config, num_tokens: int, num_layers: int) -> float:
    """Returns the floating-point operations of the blocks' matrix products in the forward pass of one clip."""
    size = config.hidden_size
    linear = 2 * num_tokens * (4 * size**2 + 2 * size * config.intermediate_size)
    return num_layers * (linear + 4 * num_tokens**2 * size)


def num_patches(config, num_frames: int) -> int:
    """Returns the number of patches of a clip of `num_frames` spectrogram frames."""
    return config.grid_shape[0] * config.num_columns(num_frames)


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """
    Measures the operations per second of matrix products on this device: 100 % utilisation. The fastest of several
    sizes and repeats counts, because other programs on the machine only ever make a product slower.

    Args:
        dtype: number format of the products, see `product_dtype`
    """
    return max(_fastest(size, device, dtype) for size in (CPU_SIZES if device.type == "cpu" else GPU_SIZES))


def _fastest(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations per second of the fastest of some products of (size, size) matrices."""
    factors = torch.randn(2, size, size, device=device).to(dtype)
    best = spent = 0.0
    for repeat in range(1 + REPEATS):  # the first one warms up
        _wait_for(device)
        started = time.perf_counter()
        factors[0] @ factors[1]
        _wait_for(device)
        seconds = max(time.perf_counter() - started, 1e-9)
        spent += seconds
        if repeat > 0:
            best = max(best, 2 * size**3 / seconds)
            if spent > MOST_SECONDS:
                break
    return best


def product_dtype(autocast, device: torch.device) -> torch.dtype:
    """Returns the number format of the matrix products of float32 weights in the context `autocast()`."""
    factor = torch.zeros(8, 8, device=device)
    with autocast():
        return (factor @ factor).dtype


def _wait_for(device: torch.device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Meter:
    """
    Sums the model's outputs, clips, audio and operations of this process since the last log line.

    Args:
        names: the model's outputs to average
        flops_per_clip: number of frames -> operations of a training step per clip
        measure_peak: () -> operations per second of one process's device; called at the start, at the end, and when the
            run is faster: the largest result counts
        frame_s: seconds from frame to frame
        crops: crops of each clip that go through the model
    """

    def __init__(
        self,
        names,
        flops_per_clip,
        measure_peak: Callable[[], float],
        frame_s: float,
        crops: int,
        num_processes: int,
    ):
        self.names = names
        self.flops_per_clip = flops_per_clip
        self.measure_peak = measure_peak
        self.peak_flops, self.measurements = 0.0, 0
        self.frame_s = frame_s
        self.crops = crops
        self.num_processes = num_processes
        self.begin(0, 0.0)
        self.history = []  # per log line: seconds; clips, seconds of audio and operations of all processes
        self.measure_again()

    def measure_again(self):
        """Measures the peak once more and keeps the larger one: another program may have slowed the first down."""
        self.peak_flops = max(self.peak_flops, self.measure_peak())
        self.measurements += 1

    def begin(self, clips: int, audio_hours: float):
        """Sets the totals of all processes at the first step, or at the step of the resumption."""
        self.total_clips, self.audio_hours = clips, audio_hours
        self.restart()

    def restart(self):
        """Begins a new log line."""
        self.sums, self.steps = {}, 0
        self.clips = self.frames = self.flops = 0
        self.paused_s = 0.0
        self.started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block out of the rates."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.paused_s += time.perf_counter() - started

    def add(self, outputs, input_values: torch.Tensor, attention_mask: torch.Tensor | None):
        """
        Adds a training step.

        Args:
            input_values: (clips, ..., frames, mel)
            attention_mask: (clips, frames); `None` if nothing is padded
        """
        for name in self.names:
            value = getattr(outputs, name, None)
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + value.detach().float().mean()
        clips, num_frames = input_values.shape[0], input_values.shape[-2]
        self.steps += 1
        self.clips += clips
        frames = clips * num_frames if attention_mask is None else attention_mask.sum()
        self.frames = self.frames + self.crops * frames
        self.flops += clips * self.flops_per_clip(num_frames)

    def read(self, average) -> dict[str, float]:
        """Returns the figures of the log line and begins a new one. `average` averages a vector over the processes."""
        seconds = max(time.perf_counter() - self.started - self.paused_s, 1e-9)
        names = list(self.sums)
        vector = [*self.sums.values(), torch.as_tensor(self.frames).float()]
        device = vector[0].device
        *sums, frames = average(torch.stack([value.to(device) for value in vector])).tolist()
        figures = {name: value / self.steps for name, value in zip(names, sums)}
        audio_s = frames * self.frame_s * self.num_processes
        self.audio_hours += audio_s / 3600
        self.history.append((seconds, self.clips * self.num_processes, audio_s, self.flops * self.num_processes))
        self.total_clips += self.clips * self.num_processes
        if self._rate(self.history[-1]) > self.peak_flops and self.measurements < MOST_MEASUREMENTS:
            self.measure_again()
        figures |= self._rates([self.history[-1]]) | {"audio_hours": self.audio_hours, "clips": self.total_clips}
        self.restart()
        return figures

    def totals(self) -> dict[str, float | str]:
        """
        Returns the hours of audio of the whole run, and the rates since its start or resumption; without utilisation
        `mfu_note`, the reason.
        """
        totals = {"audio_hours": self.audio_hours, "peak_flops": self.peak_flops} | self._rates(self.history)
        if "model_flops_utilisation" not in totals:
            totals["mfu_note"] = FAILED.format(rate=max(map(self._rate, self.history)), peak=self.peak_flops)
        return totals

    def _rate(self, line: tuple) -> float:
        """Returns the operations per second of one process in a log line."""
        return line[3] / line[0] / self.num_processes

    def _rates(self, lines: list[tuple]) -> dict[str, float]:
        """Returns the rates over log lines; no utilisation if one of them was faster than the measured peak."""
        seconds, clips, audio_s, flops = [sum(column) for column in zip(*lines)] or [1.0, 0, 0, 0]
        rates = {"clips_per_second": clips / seconds, "audio_hours_per_second": audio_s / 3600 / seconds}
        if all(self._rate(line) <= self.peak_flops for line in lines):
            rates["model_flops_utilisation"] = flops / seconds / (self.peak_flops * self.num_processes)
        return rates
