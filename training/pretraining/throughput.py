"""Measures how fast a pretraining runs: clips and hours of audio per second, and the utilisation of the hardware."""

import time

import torch


def encoder_flops(config, num_tokens: int, num_layers: int) -> float:
    """Returns the floating-point operations of the blocks' matrix products in the forward pass of one clip."""
    size = config.hidden_size
    linear = 2 * num_tokens * (4 * size**2 + 2 * size * config.intermediate_size)
    return num_layers * (linear + 4 * num_tokens**2 * size)


def num_patches(config, num_frames: int) -> int:
    """Returns the number of patches of a clip of `num_frames` spectrogram frames."""
    return config.grid_shape[0] * config.num_columns(num_frames)


def measure_peak_flops(device: torch.device, dtype: torch.dtype, repeats: int = 8) -> float:
    """Measures the operations per second of a large matrix product on this device: 100 % utilisation."""
    size = 1024 if device.type == "cpu" else 8192
    factors = torch.randn(2, size, size, device=device).to(dtype)

    def seconds() -> float:
        _wait_for(device)
        started = time.perf_counter()
        factors[0] @ factors[1]
        _wait_for(device)
        return time.perf_counter() - started

    seconds()
    return 2 * size**3 / min(seconds() for _ in range(repeats))


def _wait_for(device: torch.device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Meter:
    """
    Sums the model's outputs, clips, audio and operations of this process since the last log line.

    Args:
        names: the model's outputs to average
        flops_per_clip: number of frames -> operations of a training step per clip
        peak_flops: operations per second of one process's device
        frame_s: seconds from frame to frame
        crops: crops of each clip that go through the model
    """

    def __init__(self, names, flops_per_clip, peak_flops: float, frame_s: float, crops: int, num_processes: int):
        self.names = names
        self.flops_per_clip = flops_per_clip
        self.peak_flops = peak_flops
        self.frame_s = frame_s
        self.crops = crops
        self.num_processes = num_processes
        self.begin(0, 0.0)
        self.history = []  # per log line: seconds; clips, seconds of audio and operations of all processes

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
        figures |= self._rates(*self.history[-1]) | {"audio_hours": self.audio_hours, "clips": self.total_clips}
        self.restart()
        return figures

    def totals(self) -> dict[str, float]:
        """Returns the hours of audio of the whole run, and the rates since its start or resumption."""
        sums = [sum(column) for column in zip(*self.history)] or [1.0, 0, 0, 0]
        return {"audio_hours": self.audio_hours} | self._rates(*sums)

    def _rates(self, seconds: float, clips: int, audio_s: float, flops: float) -> dict[str, float]:
        return {
            "clips_per_second": clips / seconds,
            "audio_hours_per_second": audio_s / 3600 / seconds,
            "model_flops_utilisation": flops / seconds / (self.peak_flops * self.num_processes),
        }
