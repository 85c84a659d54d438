"""
Computes confidence intervals of the metrics: the percentile bootstrap (Efron, 1979) over the clips of a split, or over
whole groups of clips (speakers, recordings). How often a clip is drawn is its weight, and weighted metrics are computed
for many resamples at once.
"""

from collections.abc import Iterator

import numpy as np

from .metrics import d_prime, weighted_metrics

LEVEL = 0.95
NUM_RESAMPLES = 1000
# Limits clips x labels x resamples, and with it the time of a multi-label problem.
MAX_SORTED = 500_000_000
MIN_RESAMPLES = 200
BLOCK_SIZE = 2_000_000  # weights in memory at a time


def confidence_intervals(
    predictions: np.ndarray,
    targets: np.ndarray,
    problem_type: str,
    thresholds: list[float] | None = None,
    groups: list[str] | None = None,
    seed: int = 0,
) -> dict | None:
    """
    Returns the confidence interval of every metric.

    Args:
        predictions: class indices (clips,), scores (clips, labels), or numbers (clips,)
        targets: class indices, 0 or 1 per class, or numbers
        thresholds: (labels,), the score above which a label is predicted; `None`: 0.5
        groups: (clips,), the group of each clip; `None`: each clip is its own group

    Returns:
        `intervals`: metric -> [lower, upper] end; `level`, the number of `resamples`, and what was `resampled`. `None`
        where fewer than two clips or groups can be drawn.
    """
    units = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if len(np.unique(units)) < 2:
        return None
    num_resamples = NUM_RESAMPLES
    if problem_type == "multi_label_classification":
        num_resamples = int(np.clip(MAX_SORTED // predictions.size, MIN_RESAMPLES, NUM_RESAMPLES))
    parts = [
        weighted_metrics(weights, predictions, targets, problem_type, thresholds)
        for weights in draw_weights(units, num_resamples, seed)
    ]
    intervals = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]  # such as the AUC of a resample without positive clips
        if len(values):
            intervals[name] = interval_of(values)
    if "mean_auc" in intervals:
        intervals["d_prime"] = d_prime(np.array(intervals["mean_auc"])).tolist()
    unit = "clips" if groups is None else "groups"
    return {"level": LEVEL, "resamples": num_resamples, "resampled": unit, "intervals": intervals}


def interval_of(values: np.ndarray) -> list[float]:
    """Returns the ends of the interval of `LEVEL`: percentiles of the values of all resamples, (resamples,)."""
    tail = 100 * (1 - LEVEL) / 2
    return np.percentile(values, [tail, 100 - tail]).tolist()


def draw_weights(units: np.ndarray, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """
    Yields how often each clip is in each resample, as blocks (clips, resamples of the block), float32.

    units: (clips,), from 0: clips with the same number are drawn together
    """
    rng = np.random.default_rng(seed)
    num_units = int(units.max()) + 1
    block = max(1, BLOCK_SIZE // len(units))
    for first in range(0, num_resamples, block):
        counts = [
            np.bincount(rng.integers(num_units, size=num_units), minlength=num_units)
            for _ in range(min(block, num_resamples - first))
        ]
        yield np.stack(counts, axis=1)[units].astype(np.float32)  # whole numbers, exact up to 16 million
