"""
Augmentation as SSAST's published data loader has it, keyed by seed, epoch and index.

Every random choice comes from a generator made for one clip in one epoch, so that a run is the same with any number of
workers and after a resumption.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .errors import InputError

MIXUP_ALPHA = 10.0  # SSAST mixes with a weight from Beta(10, 10): about half and half


@dataclass
class AugmentationArguments:
    """Augmentation of the training clips. All off by default except random crops of long clips."""

    frequency_mask_bins: int = 0
    time_mask_frames: int = 0
    mixup_rate: float = 0.0
    noise: bool = False
    time_shift_frames: int = 0

    def __post_init__(self):
        for name in ("frequency_mask_bins", "time_mask_frames", "time_shift_frames"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.mixup_rate <= 1:
            raise InputError(f"mixup_rate: must be from 0 to 1, got {self.mixup_rate}")


def clip_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one clip in one epoch."""
    return np.random.default_rng((seed, epoch, index))


def random_crop(waveform: np.ndarray, num_samples: int | None, rng: np.random.Generator) -> np.ndarray:
    """At most `num_samples` (`None`: all) from a random place: (samples,) -> (min(samples, num_samples),)."""
    if num_samples is None:
        return waveform
    spare = len(waveform) - num_samples
    start = rng.integers(spare + 1) if spare > 0 else 0
    return waveform[start : start + num_samples]


def mix_waveforms(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """`weight` of the first, the rest of the second, both without their means and of the first's length."""
    first, second = first - first.mean(), second - second.mean()
    second = np.pad(second[: len(first)], (0, max(len(first) - len(second), 0)))
    return weight * first + (1 - weight) * second


def augment_features(
    features: torch.Tensor, settings: AugmentationArguments, masked_value: float, rng: np.random.Generator
) -> torch.Tensor:
    """
    SpecAugment, then noise, then a shift in time.

    Args:
        features: (frames, mel), normalised
        masked_value: what a masked band holds. SSAST masks with zeros before it normalises, which makes it the padding
            value afterwards
    """
    frames, bins = features.shape
    features = features.clone()
    if settings.frequency_mask_bins:
        start, width = _mask(bins, settings.frequency_mask_bins, rng)
        features[:, start : start + width] = masked_value
    if settings.time_mask_frames:
        start, width = _mask(frames, settings.time_mask_frames, rng)
        features[start : start + width] = masked_value
    if settings.noise:  # uniform noise, up to a tenth of the normalised unit, of a random strength
        noise = rng.random((frames, bins), dtype=np.float32) * np.float32(rng.random() / 10)
        features += torch.from_numpy(noise)
    if settings.time_shift_frames:
        shift = rng.integers(-settings.time_shift_frames, settings.time_shift_frames + 1)
        features = torch.roll(features, int(shift), dims=0)
    return features


def _mask(size: int, widest: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start and width of a mask: a width uniform below `widest` (and at most `size`), at a uniform place."""
    width = rng.random() * min(widest, size)
    return int(rng.random() * (size - width)), int(width)
