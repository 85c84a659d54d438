"""
Draws resamples for confidence intervals: the percentile bootstrap (Efron, 1979) over clips or recordings, or over whole
groups of them. How often one is drawn is its weight, and weighted metrics are computed for many resamples at once.
"""

from collections.abc import Iterator, Sequence

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 1000
# Limits scores x resamples, and with it the time of metrics that sort them.
MAX_SORTED = 500_000_000
MIN_RESAMPLES = 200
BLOCK_SIZE = 2_000_000  # weights in memory at a time


def resamples_for(num_scores: int) -> int:
    """Returns the number of resamples whose metrics, which sort the scores, take seconds."""
    return int(np.clip(MAX_SORTED // max(num_scores, 1), MIN_RESAMPLES, NUM_RESAMPLES))


def interval_of(values: np.ndarray) -> list[float]:
    """Returns the ends of the interval of `LEVEL`: percentiles of the values of all resamples, (resamples,)."""
    tail = 100 * (1 - LEVEL) / 2
    return np.percentile(values, [tail, 100 - tail]).tolist()


def units_to_draw(num_clips: int, groups: Sequence[str] | None) -> np.ndarray | None:
    """
    Returns what `draw_weights` draws: the clips themselves, or whole groups of them.

    Args:
        groups: (clips,), the group of each clip; `None`: each clip is its own group

    Returns:
        (clips,), the number of each clip's unit, from 0; `None` with fewer than two units
    """
    units = np.arange(num_clips) if groups is None else np.unique(groups, return_inverse=True)[1]
    return None if len(np.unique(units)) < 2 else units


def draw_weights(units: np.ndarray, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """
    Yields how often each clip is in each resample, as blocks (clips, resamples of the block), float32.

    units: (clips,), from 0: clips with the same number are drawn together
    """
    rng = np.random.default_rng(seed)
    num_units = int(units.max()) + 1
    block = max(1, BLOCK_SIZE // len(units))
    for first in range(0, num_resamples, block):
        size = min(block, num_resamples - first)
        # Each resample has bins of its own: one count for the whole block.
        drawn = rng.integers(num_units, size=(size, num_units)) + num_units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units)
        yield counts.T[units].astype(np.float32)  # whole numbers, exact up to 16 million


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the labels that are not NaN: (labels, resamples) -> (resamples,)"""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
