"""
Augments training clips: the steps of SSAST's published data loader, mixup, gain, backgrounds, random resized crops.

Every random choice comes from a generator of one clip in one epoch (keyed by seed, epoch and index), so that a run is
the same with any number of workers and after a resumption.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..recipe import Arguments, described

RRC_CANVAS = 1.5  # BYOL-A: crops may reach beyond the clip, into padding of half its length


@dataclass
class AugmentationArguments(Arguments):
    """Holds the options of augmentation. All are off by default; random crops of long clips need no option."""

    group: ClassVar[str] = "augmentation"

    frequency_mask_bins: int = described(0, "Widest band of mel bins that SpecAugment masks.", at_least=0)
    time_mask_frames: int = described(0, "Widest band of frames (10 ms) that SpecAugment masks.", at_least=0)
    mixup_rate: float = described(
        0.0, "Share of the clips that are mixed with another one, as are their labels.", at_least=0, at_most=1
    )
    mixup_alpha: float = described(
        10.0, "Parameter of Beta(alpha, alpha), the mixtures' weights; SSAST's is 10.", above=0
    )
    mixup_domain: str = described(
        "waveform",
        "Domain of the mixtures: waveform as in SSAST and AST, or log-mels.",
        choices=("waveform", "spectrogram"),
    )
    noise: bool = described(False, "Uniform noise on the features, of a random strength up to 0.1.")
    time_shift_frames: int = described(0, "Most frames by which a clip is rolled, to either side.", at_least=0)
    gain_db: float = described(0.0, "Largest random gain in dB, up or down.", at_least=0, at_most=200)
    background_folder: str | None = described(None, "Folder of recordings that are mixed into the clips as background.")
    background_snr_db: list[float] = described(
        [0.0, 20.0], "Lowest and highest signal-to-noise ratio in dB.", at_least=-200, at_most=200
    )
    background_rate: float = described(
        0.5, "Share of the clips with a background, where there is a folder.", at_least=0, at_most=1
    )
    random_resized_crop: bool = described(False, "A part of the spectrogram, resized to all of it (BYOL-A).")
    crop_frequency_scale: list[float] = described(
        [0.6, 1.5], "Smallest and largest height of the part; 1: unchanged.", above=0
    )
    crop_time_scale: list[float] = described(
        [0.6, 1.5], "Smallest and largest length of the part; 1: unchanged.", above=0
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("background_snr_db", "crop_frequency_scale", "crop_time_scale"):
            values = getattr(self, name)
            if len(values) != 2 or not -math.inf < values[0] <= values[1] < math.inf:
                raise InputError(f"{name}: must be two numbers, the lower one first, got {values}")


def clip_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Returns the random generator of one clip in one epoch."""
    return np.random.default_rng((seed, epoch, index))


def random_crop(waveform: np.ndarray, num_samples: int | None, rng: np.random.Generator) -> np.ndarray:
    """Crops at a random place to at most `num_samples` (`None`: all): (samples,) -> (min(samples, num_samples),)"""
    if num_samples is None:
        return waveform
    spare = len(waveform) - num_samples
    start = rng.integers(spare + 1) if spare > 0 else 0
    return waveform[start : start + num_samples]


def mix_waveforms(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """Mixes two waveforms (samples,) at the first's length, without means: weight * first + (1 - weight) * second"""
    first, second = first - first.mean(), second - second.mean()
    second = np.pad(second[: len(first)], (0, max(len(first) - len(second), 0)))
    return weight * first + (1 - weight) * second


def random_gain(waveform: np.ndarray, gain_db: float, rng: np.random.Generator) -> np.ndarray:
    """Applies a random gain, uniform in dB from -gain_db to gain_db: (samples,) -> (samples,)"""
    return waveform * np.float32(10 ** (rng.uniform(-gain_db, gain_db) / 20))


def add_background(waveform: np.ndarray, background: np.ndarray, snr_db: float) -> np.ndarray:
    """
    Adds a background of any length, repeated if it is shorter: (samples,) -> (samples,). The signal-to-noise ratio, in
    dB, compares powers without means. A silent clip or background leaves the clip unchanged.
    """
    background = np.resize(background - background.mean(), len(waveform))  # repeats it where it is shorter
    signal, noise = np.var(waveform), np.var(background)
    if not (signal and noise):
        return waveform
    return waveform + background * np.float32(np.sqrt(signal / noise) * 10 ** (-snr_db / 20))


def mix_features(first: torch.Tensor, second: torch.Tensor, weight: float, padding_value: float) -> torch.Tensor:
    """Mixes two spectrograms (frames, mel) at the first's length: weight * first + (1 - weight) * second"""
    missing = max(len(first) - len(second), 0)
    second = torch.nn.functional.pad(second[: len(first)], (0, 0, 0, missing), value=padding_value)
    return weight * first + (1 - weight) * second


class TimeChanges(NamedTuple):
    """
    Says what an augmentation has done to the time of a spectrogram, in this order.

    Args:
        part: first frame and number of frames that are resized to all; the first may be negative; `None`: all
        masked: first frame and number of frames that hold nothing
        shift: frames by which all is rolled
    """

    part: tuple[int, int] | None = None
    masked: tuple[int, int] = (0, 0)
    shift: int = 0

    def move(self, intervals: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Moves intervals along, and cuts them at the edges of the spectrogram.

        Args:
            intervals: (intervals, 2), beginnings and ends in frames

        Returns:
            the intervals that are left, (pieces, 2), and the index of each one's origin: what is rolled over the end
            goes on at the beginning
        """
        intervals = np.reshape(np.asarray(intervals, dtype=np.float64), (-1, 2))
        indices = np.arange(len(intervals))
        if self.part is None and not self.shift:
            return intervals, indices
        if self.part is not None:
            first, length = self.part
            intervals = (intervals - first) * (num_frames / length)
        begins, ends = intervals.T
        is_left = (begins < num_frames) & ((ends > 0) | (begins >= 0))
        pieces, origins = self.roll(np.clip(intervals[is_left], 0, num_frames), num_frames)
        return pieces, indices[is_left][origins]

    def roll(self, intervals: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Rolls intervals (intervals, 2) within the spectrogram; returns as `move`."""
        intervals = intervals + self.shift % num_frames
        starts_in, ends_beyond = intervals[:, 0] < num_frames, intervals[:, 1] > num_frames
        kept, rolled = np.flatnonzero(starts_in), np.flatnonzero(ends_beyond | ~starts_in)
        pieces = [np.minimum(intervals[kept], num_frames), np.maximum(intervals[rolled] - num_frames, 0)]
        return np.concatenate(pieces), np.concatenate([kept, rolled])


def random_resized_crop(
    features: torch.Tensor, settings: AugmentationArguments, padding_value: float, rng: np.random.Generator
) -> tuple[torch.Tensor, tuple[int, int]]:
    """
    Resizes a random part of the spectrogram to its whole shape (BYOL-A; Niizumi et al., IJCNN 2021): (frames, mel) ->
    (frames, mel), and `TimeChanges.part`. The part may reach into padding on either side in time, but not in frequency.
    """
    frames, bins = features.shape
    margin = int(frames * (RRC_CANVAS - 1)) // 2
    canvas = torch.nn.functional.pad(features, (0, 0, margin, margin), value=padding_value)
    length, height = (
        int(np.clip(size * rng.uniform(*scale), 1, limit))
        for size, scale, limit in (
            (frames, settings.crop_time_scale, len(canvas)),
            (bins, settings.crop_frequency_scale, bins),
        )
    )
    start, lowest = rng.integers(len(canvas) - length + 1), rng.integers(bins - height + 1)
    part = canvas[start : start + length, lowest : lowest + height]
    resized = torch.nn.functional.interpolate(part[None, None], (frames, bins), mode="bicubic", align_corners=True)
    return resized[0, 0], (int(start) - margin, length)


def augment_features(
    features: torch.Tensor, settings: AugmentationArguments, masked_value: float, rng: np.random.Generator
) -> torch.Tensor:
    """Returns the first result of `augment_in_time`."""
    return augment_in_time(features, settings, masked_value, rng)[0]


def augment_in_time(
    features: torch.Tensor, settings: AugmentationArguments, masked_value: float, rng: np.random.Generator
) -> tuple[torch.Tensor, TimeChanges]:
    """
    Applies a random resized crop, SpecAugment, noise, then a time shift: (frames, mel) -> (frames, mel), normalised;
    and says what has happened to the time.

    Args:
        masked_value: value of masked bands; in SSAST zero before normalisation, which is the padding value after it
    """
    frames, bins = features.shape
    features, changes = features.clone(), TimeChanges()
    if settings.random_resized_crop:
        features, part = random_resized_crop(features, settings, masked_value, rng)
        changes = changes._replace(part=part)
    if settings.frequency_mask_bins:
        start, width = _mask(bins, settings.frequency_mask_bins, rng)
        features[:, start : start + width] = masked_value
    if settings.time_mask_frames:
        start, width = _mask(frames, settings.time_mask_frames, rng)
        features[start : start + width] = masked_value
        changes = changes._replace(masked=(start, width))
    if settings.noise:  # uniform noise, up to a tenth of the normalised unit, of a random strength
        noise = rng.random((frames, bins), dtype=np.float32) * np.float32(rng.random() / 10)
        features += torch.from_numpy(noise)
    if settings.time_shift_frames:
        shift = rng.integers(-settings.time_shift_frames, settings.time_shift_frames + 1)
        features = torch.roll(features, int(shift), dims=0)
        changes = changes._replace(shift=int(shift))
    return features, changes


def _mask(size: int, widest: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draws start and width of a mask: width uniform below `widest` and `size`, at a uniform place."""
    width = rng.random() * min(widest, size)
    return int(rng.random() * (size - width)), int(width)
