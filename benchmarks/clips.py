"""Reads clips for the benchmarks without this project's readers, and makes long ones of short recordings."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

STEREO_RATE = 44100  # Hz


def read_mono(path: str | Path, **stored) -> tuple[np.ndarray, int]:
    """
    Decodes a file and averages its channels: float32 (samples,), and its rate in Hz.

    Args:
        stored: what a file without a header does not say, as `soundfile.read` takes it
    """
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True, **stored)
    return samples.mean(axis=1), rate


def at_rate(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Resamples (samples,) from `rate` to `wanted` Hz where they differ."""
    return samples if rate == wanted else soxr.resample(samples, rate, wanted)


def read_at(path: str | Path, rate: int) -> np.ndarray:
    """Decodes a file, averages its channels and resamples it to `rate` Hz: float32 (samples,)"""
    return at_rate(*read_mono(path), rate)


def stereo_clips(files: Iterable[str | Path], num_clips: int, seconds: float) -> Iterator[np.ndarray]:
    """Yields clips of `STEREO_RATE` that repeat recordings, each from another second on: (samples, 2) each."""
    loop = np.concatenate([read_at(file, STEREO_RATE) for file in files])
    for index in range(num_clips):
        samples = np.resize(np.roll(loop, -index * STEREO_RATE), round(seconds * STEREO_RATE))
        yield np.stack([samples, samples], axis=1)
