# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Corruption of ASiT's pretraining, "group masked model learning" (Atito et al., IEEE/ACM TASLP 2024): random rectangles
of a spectrogram are blanked or overwritten until they cover a share of its area. Needs only numpy and torch.

Spectrograms are arrays or tensors (frames, mel). They do not change; results are copies of the same kind. Every draw
comes from an explicit `numpy.random.RandomState`, whose stream numpy guarantees never to change. The draws, their order
and their rounding are those of the published code (github.com/Sara-Ahmed/ASiT), which draws from numpy's global stream.
The docstring of `_stamp` lists the intended differences.
"""

from collections.abc import Callable
from typing import Optional, Union

import numpy as np
import torch

Spectrogram = Union[np.ndarray, torch.Tensor]

# Zeros, normal noise, whole frames or whole mel bins of zeros, and blocks copied from elsewhere in the spectrogram.
KINDS = ("zeros", "noise", "time", "freq", "copy")
LARGEST_SIDE = 0.3  # longest side of a block, as a share of the spectrogram's side
REPLACED_SHARE = 0.5  # share of the items in which `replace_from_batch` replaces blocks
# After this many random blocks single cells cover the rest of the area: 90 % of it need about 150 blocks.
MAX_BLOCKS = 1000


def corruption_rng(*key: int) -> np.random.RandomState:
    """Makes the generator of a key, for example (seed, epoch, index of the clip)."""
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
    Corrupts at least a fraction of a spectrogram's area, drawn uniformly from [min(0.5, fraction), fraction].

    Args:
        spectrogram: (frames, mel), normalised.
        fraction: Upper bound of the drawn fraction, above 0 and at most 1. The last block may exceed it.
        kind: One of `KINDS`. Noise has mean 0 and standard deviation 1.
        align: Grid that blocks snap to, in frames and mel bins; 1 for none.
        rng: Generator of all draws.
        num_valid_frames: Frames that hold audio. Later frames are neither corrupted nor counted. If they are too few
            for blocks of `align`, single cells of that size are corrupted.

    Returns:
        The corrupted spectrogram (frames, mel) and a boolean mask of the same shape, true where it was corrupted.

    Raises:
        ValueError: An unknown kind, a fraction outside (0, 1], or blocks of `align` that exceed the longest side.
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
    Corrupts a spectrogram like `corrupt`, with blocks from the same places of another spectrogram.

    Args:
        spectrogram: (frames, mel), normalised.
        donor: (frames, mel), of the same shape. Its padding is copied like its audio.
        fraction: Upper bound of the drawn fraction, above 0 and at most 1.
        align: Grid that blocks snap to, in frames and mel bins; 1 for none.
        rng: Generator of all draws.
        num_valid_frames: Frames that hold audio.

    Returns:
        The corrupted spectrogram (frames, mel) and a boolean mask of the same shape, true where it was replaced.

    Raises:
        ValueError: A fraction outside (0, 1], blocks of `align` that exceed the longest side, or different shapes.
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
    Replaces blocks of about half of a batch's items by blocks of another item.

    The replaced items restart from their clean spectrogram and lose their corruption; the others keep it. The donor may
    be the item itself, like in the original.

    Args:
        clean: (batch, frames, mel).
        corrupted: (batch, frames, mel), results of `corrupt`.
        masks: Boolean (batch, frames, mel), results of `corrupt`.
        fraction: Upper bound of the drawn fraction, above 0 and at most 1.
        align: Grid that blocks snap to, in frames and mel bins; 1 for none.
        rng: Generator of all draws.
        coin: Returns the numbers from [0, 1) that decide per item; `rng` by default, Python's `random` in the original.
        num_valid_frames: (batch,), frames that hold audio.

    Returns:
        The corrupted spectrograms and the boolean masks, (batch, frames, mel) each.

    Raises:
        ValueError: A fraction outside (0, 1], blocks of `align` that exceed the longest side, or different shapes.
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

    Three cases differ from the published code. Noise has the deviation of a normalised spectrogram (original: that of
    the log-mels before normalisation). A block that alignment has rounded beyond the edge is cut there (original: an
    error). Single cells cover what random blocks cannot reach, because none begins in the last aligned row and column
    (original: an endless loop).
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
    """Draws the next block: (first row, first column), (height, width). Rounding can move its end beyond the edge."""
    row, column = (rng.randint(0, size - align) // align * align for size in shape)
    # In the original's order: both places, then both sides. `round` is Python's, half to even.
    sides = [
        min(rng.randint(align, int(size * LARGEST_SIDE)), size - first) for size, first in zip(shape, (row, column))
    ]
    return (row, column), tuple(round(side / align) * align for side in sides)


def _random_source(shape: tuple[int, int], sides: tuple[int, int], align: int, rng: np.random.RandomState):
    """Draws the first row and column of the area that a block of `sides` is copied from."""
    # A cell can be as long as a very short clip.
    return tuple(rng.randint(0, max(size - side, 1)) // align * align for size, side in zip(shape, sides))


def _open_cell(mask: np.ndarray, align: int, rng: np.random.RandomState):
    """Draws a cell of the aligned grid that is not yet fully covered, in the form of `_random_block`."""
    places = np.flatnonzero(~mask)
    row, column = divmod(int(places[rng.randint(0, len(places))]), mask.shape[1])
    return (row // align * align, column // align * align), (align, align)


def _extent(kind: str, start: tuple[int, int], sides: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the rows and columns of a block, cut at the edge; `time` covers whole rows, `freq` whole columns."""
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
    """Returns the content of a block of `shape`; `source` is the first row and column of a copy."""
    if kind == "noise":
        noise = rng.standard_normal(shape)
        return torch.from_numpy(noise).to(corrupted) if isinstance(corrupted, torch.Tensor) else noise
    if kind in ("copy", "replace"):
        origin = corrupted if donor is None else donor
        place = tuple(slice(first, first + size) for first, size in zip(source, shape))
        return _copy(origin[place])  # a copy, because it may overlap the block
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
        raise ValueError(f"num_valid_frames must be between 1 and the spectrogram's {frames}, got {num_valid_frames}")
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
        raise ValueError(f"rng must be a numpy.random.RandomState, see corruption_rng, got a {type(rng).__name__}")
