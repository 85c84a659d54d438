"""How fast a pretraining runs: clips and hours of audio per second, and how much of the hardware it uses."""

import math
import time

import torch


def encoder_flops(config, num_tokens: int, num_layers: int) -> float:
    """Floating-point operations of the blocks' matrix products for one clip, forward."""
    size = config.hidden_size
    linear = 2 * num_tokens * (4 * size**2 + 2 * size * config.intermediate_size)
    return num_layers * (linear + 4 * num_tokens**2 * size)


def mspm_flops(config, num_frames: int) -> float:
    """
    Of one training step of `DualSSASTForPreTraining` per clip. The backward pass of a product counts twice its forward
    pass, or once where one factor, the input, needs no gradient.
    """
    num_patches, values = _patches(config, num_frames), math.prod(config.patch_shape)
    num_tokens, size = config.num_prefix_tokens + num_patches, config.hidden_size
    embedding = 2 * num_patches * values * size
    if config.num_decoder_layers:
        visible = num_tokens - round(num_patches * config.mask_ratio)
        blocks = encoder_flops(config, visible, config.num_hidden_layers)
        blocks += encoder_flops(config, num_tokens, config.num_decoder_layers)
    else:
        blocks = encoder_flops(config, num_tokens, config.num_hidden_layers)
    heads = 2 if config.pretraining_objective == "joint" else 1
    passes = 1 if config.shared_mask else heads
    total = passes * (2 * embedding + 3 * blocks) + heads * 3 * 2 * num_patches * (size**2 + size * values)
    if config.pretraining_objective != "generative":
        total += 2 * 2 * num_patches**2 * values  # every patch against every other
    return total


def asit_flops(config, num_frames: int) -> float:
    """Of one training step of `ASiTForPreTraining` per clip: two crops, the teacher forward only."""
    num_patches, size = _patches(config, num_frames), config.hidden_size
    num_tokens, values = config.num_prefix_tokens + num_patches, math.prod(config.patch_shape)
    hidden, bottleneck = config.head_hidden_size, config.head_bottleneck_size
    embedding = 2 * num_patches * values * size
    network = encoder_flops(config, num_tokens, config.num_hidden_layers)
    network += 2 * num_tokens * (size * hidden + hidden**2 + hidden * bottleneck)
    network += 2 * bottleneck * (config.class_dim + num_patches * config.data_dim)
    hidden, bottleneck = config.reconstruction_hidden_size, config.reconstruction_bottleneck_size
    painting = 2 * num_patches * (size * hidden + hidden**2 + hidden * bottleneck + bottleneck * values)
    return 2 * (3 * embedding + 4 * network + 3 * painting)


def _patches(config, num_frames: int) -> int:
    return config.grid_shape[0] * config.num_columns(num_frames)


def measure_peak_flops(device: torch.device, dtype: torch.dtype, repeats: int = 8) -> float:
    """Operations per second of a large matrix product on this device: what utilisation is measured against."""
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
    What happened since the last log line, on this process: sums of the outputs, clips, audio and operations.

    Args:
        names: of the model's outputs to average
        flops_per_clip: number of frames -> operations
        peak_flops: of one process's device, per second
        frame_s: seconds from frame to frame
        crops: per clip
    """

    def __init__(self, names, flops_per_clip, peak_flops: float, frame_s: float, crops: int, num_processes: int):
        self.names = names
        self.flops_per_clip = flops_per_clip
        self.peak_flops = peak_flops
        self.frame_s = frame_s
        self.crops = crops
        self.num_processes = num_processes
        self.begin(0, 0.0)
        self.history = []  # seconds, clips, seconds of audio and operations, of all processes, per log line

    def begin(self, clips: int, audio_hours: float):
        """What all processes have heard since the beginning of the run, before it was resumed."""
        self.total_clips, self.audio_hours = clips, audio_hours
        self.restart()

    def restart(self):
        self.sums, self.steps = {}, 0
        self.clips = self.frames = self.flops = 0
        self.paused_s = 0.0
        self.started = time.perf_counter()

    def add(self, outputs, input_values: torch.Tensor, attention_mask: torch.Tensor | None):
        """input_values: (clips, ..., frames, mel); attention_mask: (clips, frames), or none where all is audio"""
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
        """The figures, and a new beginning. `average` averages a vector over the processes."""
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
        """Hours of audio of the whole run, and the rates since it began or was resumed."""
        sums = [sum(column) for column in zip(*self.history)] or [1.0, 0, 0, 0]
        return {"audio_hours": self.audio_hours} | self._rates(*sums)

    def _rates(self, seconds: float, clips: int, audio_s: float, flops: float) -> dict[str, float]:
        return {
            "clips_per_second": clips / seconds,
            "audio_hours_per_second": audio_s / 3600 / seconds,
            "model_flops_utilisation": flops / seconds / (self.peak_flops * self.num_processes),
        }
