# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
The corruption of ASiT's pretraining (Atito et al., IEEE/ACM TASLP 2024, "group masked model learning"): random
rectangles of a spectrogram are blanked or overwritten until a share of its area is. Knows only numpy and torch.

Spectrograms are arrays or tensors (frames, mel); they stay as they are, results are copies of the same kind. Every draw
comes from an explicit `numpy.random.RandomState`, whose stream numpy guarantees never to change. The draws, their order
and their rounding are those of the published code (github.com/Sara-Ahmed/ASiT), which draws from numpy's global stream;
what differs on purpose is said at `_stamp`.
"""

from collections.abc import Callable
from typing import Optional, Union

import numpy as np
import torch

Spectrogram = Union[np.ndarray, torch.Tensor]

# Zeros, normal noise, whole frames or whole mel bins at zero, and blocks copied from elsewhere in the same spectrogram.
KINDS = ("zeros", "noise", "time", "freq", "copy")
LARGEST_SIDE = 0.3  # of a block, as a share of the spectrogram's
REPLACED_SHARE = 0.5  # of the items that `replace_from_batch` gives blocks of another one
# Beyond this many random blocks the rest of the area is taken cell by cell: 90 % of it take about 150.
MAX_BLOCKS = 1000


def corruption_rng(*key: int) -> np.random.RandomState:
    """The random numbers that belong to a key, for example (seed, epoch, index of the clip)."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


def corrupt(
    spectrogram: Spectrogram,
    fraction: float,
    kind: str,
    align: int,
    rng: np.random.RandomState,
    num_valid_frames: Optional[int] = None,
) -> tuple[Spectrogram, Spectrogram]:
    """
    Corrupts at least a share of a spectrogram that is drawn from [min(0.5, fraction), fraction].

    Args:
        spectrogram: (frames, mel), normalised
        fraction: largest share of the area to aim at, above 0 and at most 1; the last block may go beyond it
        kind: one of `KINDS`. Noise has mean 0 and standard deviation 1.
        align: blocks begin and end at multiples of it, in frames and mel bins; 1 leaves them free
        rng: where all draws come from
        num_valid_frames: frames that hold audio; what comes after them is neither corrupted nor counted. Where they are
            too few for blocks of `align`, single cells of that size are corrupted.

    Returns:
        the corrupted spectrogram (frames, mel) and a boolean mask of the same shape, true where it was corrupted

    Raises:
        ValueError: an unknown kind, a fraction outside (0, 1], or blocks of `align` that exceed the largest side.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return _stamp(spectrogram, fraction, kind, align, rng, num_valid_frames)


def replace(
    spectrogram: Spectrogram,
    donor: Spectrogram,
    fraction: float,
    align: int,
    rng: np.random.RandomState,
    num_valid_frames: Optional[int] = None,
) -> tuple[Spectrogram, Spectrogram]:
    """
    As [`corrupt`], with blocks copied from the same places of another spectrogram.

    Args:
        donor: (frames, mel), of the same shape; a donor's padding is copied like its audio

    Raises:
        ValueError: as `corrupt`, or shapes that differ.
    """
    if donor.shape != spectrogram.shape:
        raise ValueError(f"donor has shape {tuple(donor.shape)}, but the spectrogram has {tuple(spectrogram.shape)}")
    return _stamp(spectrogram, fraction, "replace", align, rng, num_valid_frames, donor)


def replace_from_batch(
    clean: Spectrogram,
    corrupted: Spectrogram,
    masks: Spectrogram,
    fraction: float,
    align: int,
    rng: np.random.RandomState,
    coin: Optional[Callable[[], float]] = None,
    num_valid_frames=None,
) -> tuple[Spectrogram, Spectrogram]:
    """
    Gives about half of a batch blocks of another item. These items begin again from their clean spectrogram: a
    corruption that they had is lost. The others keep theirs. The donor may be the item itself, as in the original.

    Args:
        clean: (batch, frames, mel)
        corrupted, masks: (batch, frames, mel), of [`corrupt`]
        fraction, align: as for `corrupt`
        coin: gives numbers from [0, 1) that decide per item; `rng` by default. (The original asks Python's `random`.)
        num_valid_frames: per item, (batch,)

    Returns:
        corrupted spectrograms and masks, (batch, frames, mel) each

    Raises:
        ValueError: as `corrupt`, or shapes that differ.
    """
    _check_rng(rng)
    if not clean.shape == corrupted.shape == masks.shape:
        shapes = ", ".join(str(tuple(array.shape)) for array in (clean, corrupted, masks))
        raise ValueError(f"clean, corrupted and masks must have one shape (batch, frames, mel), got {shapes}")
    coin = coin or rng.random_sample
    corrupted, masks = _copy(corrupted), _copy(masks)
    for index in range(len(clean)):
        donor = clean[rng.randint(0, len(clean))]
        if coin() < REPLACED_SHARE:
            valid = None if num_valid_frames is None else int(num_valid_frames[index])
            corrupted[index], masks[index] = replace(clean[index], donor, fraction, align, rng, valid)
    return corrupted, masks


def _stamp(
    spectrogram: Spectrogram,
    fraction: float,
    kind: str,
    align: int,
    rng: np.random.RandomState,
    num_valid_frames: Optional[int],
    donor: Optional[Spectrogram] = None,
) -> tuple[Spectrogram, Spectrogram]:
    """
    Stamps blocks until the mask's area reaches the target.

    Differs from the published code in three cases only. Noise is as wide as a normalised spectrogram, where the
    original's training draws it as wide as the log-mels before that. A block that alignment has rounded beyond the edge
    is cut there, where the original stops with an error. And where random blocks do not reach the target (the last
    aligned row and column begin none, so that large blocks never cover them) single cells do, where the original goes
    on for ever.
    """
    _check_rng(rng)
    shape = _valid_shape(spectrogram, num_valid_frames)
    _check(fraction, align, spectrogram.shape)
    max_blocks = MAX_BLOCKS if int(shape[0] * LARGEST_SIDE) > align else 0
    # The original compares in single precision.
    target = np.float32(rng.uniform(min(0.5, fraction), fraction) * shape[0] * shape[1])
    corrupted = _copy(spectrogram)
    mask = np.zeros(tuple(spectrogram.shape), dtype=bool)
    covered = num_blocks = 0
    while covered < target:
        is_random = num_blocks < max_blocks
        start, sides = _random_block(shape, align, rng) if is_random else _open_cell(mask[: shape[0]], align, rng)
        source = _random_source(shape, sides, align, rng) if kind == "copy" else start
        block = _extent(kind, start, sides, shape)
        covered += np.count_nonzero(~mask[block])
        mask[block] = True
        corrupted[block] = _content(corrupted, kind, source, mask[block].shape, donor, rng)
        num_blocks += 1
    return corrupted, torch.from_numpy(mask).to(corrupted.device) if isinstance(corrupted, torch.Tensor) else mask


def _random_block(shape: tuple[int, int], align: int, rng: np.random.RandomState):
    """(first row and column), (height, width) of the next block; rounding up can take it beyond the edge."""
    row, column = (rng.randint(0, size - align) // align * align for size in shape)
    # In the original's order: both places, then both sides. `round` is Python's, half to even.
    sides = [
        min(rng.randint(align, int(size * LARGEST_SIDE)), size - first) for size, first in zip(shape, (row, column))
    ]
    return (row, column), tuple(round(side / align) * align for side in sides)


def _random_source(shape: tuple[int, int], sides: tuple[int, int], align: int, rng: np.random.RandomState):
    """First row and column of the place that a block of `sides` is copied from."""
    # A cell can be as long as all of a very short clip.
    return tuple(rng.randint(0, max(size - side, 1)) // align * align for size, side in zip(shape, sides))


def _open_cell(mask: np.ndarray, align: int, rng: np.random.RandomState):
    """The cell of the aligned grid around a point that is not yet covered, in the form of `_random_block`."""
    places = np.flatnonzero(~mask)
    row, column = divmod(int(places[rng.randint(0, len(places))]), mask.shape[1])
    return (row // align * align, column // align * align), (align, align)


def _extent(kind: str, start: tuple[int, int], sides: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns that a block covers: cut at the edge, and all columns or rows of `time` or `freq`."""
    rows, columns = (slice(first, min(first + side, size)) for first, side, size in zip(start, sides, shape))
    if kind == "time":
        columns = slice(0, shape[1])
    elif kind == "freq":
        rows = slice(0, shape[0])
    return rows, columns


def _content(
    corrupted: Spectrogram,
    kind: str,
    source: tuple[int, int],
    shape: tuple[int, int],
    donor: Optional[Spectrogram],
    rng: np.random.RandomState,
):
    """What a block of `shape` is filled with; `source` is where a copy begins."""
    if kind == "noise":
        noise = rng.standard_normal(shape)
        return torch.from_numpy(noise).to(corrupted) if isinstance(corrupted, torch.Tensor) else noise
    if kind in ("copy", "replace"):
        origin = corrupted if donor is None else donor
        place = tuple(slice(first, first + size) for first, size in zip(source, shape))
        return _copy(origin[place])  # may overlap the block itself
    return 0.0


def _copy(array: Spectrogram) -> Spectrogram:
    return array.detach().clone() if isinstance(array, torch.Tensor) else np.array(array)


def _valid_shape(spectrogram: Spectrogram, num_valid_frames: Optional[int]) -> tuple[int, int]:
    if spectrogram.ndim != 2:
        raise ValueError(f"expected one spectrogram (frames, mel), got shape {tuple(spectrogram.shape)}")
    frames, mels = spectrogram.shape
    if num_valid_frames is None:
        return frames, mels
    if not 0 < num_valid_frames <= frames:
        raise ValueError(f"num_valid_frames must lie between 1 and the spectrogram's {frames}, got {num_valid_frames}")
    return int(num_valid_frames), mels


def _check(fraction: float, align: int, shape: tuple[int, int]):
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction!r}")
    if align < 1:
        raise ValueError(f"align must be at least 1, got {align!r}")
    for size, name in zip(shape, ("frames", "mel bins")):
        if int(size * LARGEST_SIDE) <= align:
            raise ValueError(
                f"align={align} is too large for {size} {name}: blocks are below {LARGEST_SIDE:.0%} of them, "
                f"{int(size * LARGEST_SIDE)}; use a smaller align or longer clips"
            )


def _check_rng(rng):
    if not isinstance(rng, np.random.RandomState):
        raise ValueError(f"rng must be a numpy.random.RandomState, as corruption_rng makes, got a {type(rng).__name__}")
