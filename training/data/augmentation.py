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


class ResizedPart(NamedTuple):
    """
    Says which part of a spectrogram is resized to all of it (BYOL-A; Niizumi et al., IJCNN 2021). It may reach into
    padding on either side in time, but not in frequency.

    Args:
        start: first frame; may be negative
        frames: number of frames
        lowest: first mel bin
        bins: number of mel bins
    """

    start: int
    frames: int
    lowest: int
    bins: int

    @classmethod
    def draw(cls, frames: int, bins: int, settings: AugmentationArguments, rng: np.random.Generator) -> "ResizedPart":
        """Draws a part of a spectrogram (frames, bins)."""
        margin = _margin(frames)
        length, height = (
            int(np.clip(size * rng.uniform(*scale), 1, limit))
            for size, scale, limit in (
                (frames, settings.crop_time_scale, frames + 2 * margin),
                (bins, settings.crop_frequency_scale, bins),
            )
        )
        start, lowest = rng.integers(frames + 2 * margin - length + 1), rng.integers(bins - height + 1)
        return cls(int(start) - margin, length, int(lowest), height)

    def resized(self, features: torch.Tensor, padding_value: float) -> torch.Tensor:
        """Returns the part, resized: (frames, mel) -> (frames, mel)"""
        margin = _margin(len(features))
        canvas = torch.nn.functional.pad(features, (0, 0, margin, margin), value=padding_value)
        start = self.start + margin
        part = canvas[start : start + self.frames, self.lowest : self.lowest + self.bins]
        size = tuple(features.shape)
        return torch.nn.functional.interpolate(part[None, None], size, mode="bicubic", align_corners=True)[0, 0]


def _margin(frames: int) -> int:
    """Returns the frames of padding on either side into which a part may reach."""
    return int(frames * (RRC_CANVAS - 1)) // 2


class FeatureChanges(NamedTuple):
    """
    Holds the random choices of the augmentation of a spectrogram. They need its shape alone, so that they can be drawn
    before it is computed, on another device.

    Args:
        part: random resized crop; `None`: none
        frequency_mask: first mel bin and number of bins that are masked
        time_mask: first frame and number of frames that are masked
        noise: what is added, (frames, mel); `None`: nothing
        shift: frames by which all is rolled
    """

    part: ResizedPart | None = None
    frequency_mask: tuple[int, int] = (0, 0)
    time_mask: tuple[int, int] = (0, 0)
    noise: torch.Tensor | None = None
    shift: int = 0

    @classmethod
    def draw(
        cls, frames: int, bins: int, settings: AugmentationArguments, rng: np.random.Generator
    ) -> "FeatureChanges":
        """Draws the changes of a spectrogram (frames, bins)."""
        found = cls()
        if settings.random_resized_crop:
            found = found._replace(part=ResizedPart.draw(frames, bins, settings, rng))
        if settings.frequency_mask_bins:
            found = found._replace(frequency_mask=_mask(bins, settings.frequency_mask_bins, rng))
        if settings.time_mask_frames:
            found = found._replace(time_mask=_mask(frames, settings.time_mask_frames, rng))
        if settings.noise:  # uniform noise, up to a tenth of the normalised unit, of a random strength
            noise = rng.random((frames, bins), dtype=np.float32) * np.float32(rng.random() / 10)
            found = found._replace(noise=torch.from_numpy(noise))
        if settings.time_shift_frames:
            shift = rng.integers(-settings.time_shift_frames, settings.time_shift_frames + 1)
            found = found._replace(shift=int(shift))
        return found

    def apply(self, features: torch.Tensor, masked_value: float) -> torch.Tensor:
        """
        Applies a random resized crop, SpecAugment, noise, then a time shift, on any device: normalised (frames, mel) ->
        (frames, mel)

        Args:
            masked_value: value of masked bands; in SSAST zero before normalisation, which is the padding value after it
        """
        features = features.clone() if self.part is None else self.part.resized(features, masked_value)
        for axis, (start, width) in enumerate((self.time_mask, self.frequency_mask)):
            features.narrow(axis, start, width).fill_(masked_value)
        if self.noise is not None:
            features += self.noise
        return torch.roll(features, self.shift, dims=0) if self.shift else features

    @property
    def in_time(self) -> TimeChanges:
        """Returns what happens to the time."""
        part = None if self.part is None else (self.part.start, self.part.frames)
        return TimeChanges(part, self.time_mask, self.shift)


def _mask(size: int, widest: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draws start and width of a mask: width uniform below `widest` and `size`, at a uniform place."""
    width = rng.random() * min(widest, size)
    return int(rng.random() * (size - width)), int(width)
