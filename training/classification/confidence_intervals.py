"""
Confidence intervals of the metrics: the percentile bootstrap (Efron, 1979) over the clips of a split, or over groups of
them, which are drawn whole (speakers, recordings). A clip that is drawn twice counts twice: the metrics are computed
with weights, for many resamples at once.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import norm

LEVEL = 0.95
NUM_RESAMPLES = 1000
# What keeps several labels at seconds: fewer resamples where clips x labels x resamples would be more than this.
MAX_SORTED = 500_000_000
MIN_RESAMPLES = 200
BLOCK_SIZE = 2_000_000  # weights at a time


def confidence_intervals(
    predictions: np.ndarray,
    targets: np.ndarray,
    problem_type: str,
    thresholds: list[float] | None = None,
    groups: list[str] | None = None,
    seed: int = 0,
) -> dict | None:
    """
    Args:
        predictions: what the metric takes: class indices (clips,), scores (clips, labels), or numbers (clips,)
        targets: class indices, 0 or 1 per class, or numbers
        thresholds: of the scores, one per label; one half if there are none
        groups: one per clip

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
    tail = 100 * (1 - LEVEL) / 2
    intervals = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]  # such as the AUC of a resample without positive clips
        if len(values):
            intervals[name] = np.percentile(values, [tail, 100 - tail]).tolist()
    if "mean_auc" in intervals:
        intervals["d_prime"] = d_prime(np.array(intervals["mean_auc"])).tolist()
    unit = "clips" if groups is None else "groups"
    return {"level": LEVEL, "resamples": num_resamples, "resampled": unit, "intervals": intervals}


def draw_weights(units: np.ndarray, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """
    How often each clip is in each resample, as blocks (clips, resamples of the block). units: (clips,) the number of
    what is drawn with the clip, from 0
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


def weighted_metrics(
    weights: np.ndarray,
    predictions: np.ndarray,
    targets: np.ndarray,
    problem_type: str,
    thresholds: list[float] | None = None,
) -> dict[str, np.ndarray]:
    """
    The metrics of `training/metrics`, except d', with clips that count as `weights` (clips, resamples) say: metric ->
    (resamples,), NaN where it is not defined.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if problem_type == "single_label_classification":
            return _single_label(weights, predictions, targets)
        if problem_type == "multi_label_classification":
            return _multi_label(weights, predictions, targets > 0.5, thresholds)
        return _regression(weights.astype(np.float64), predictions, targets)


def d_prime(auc):
    """Distance of two normal distributions whose area under the ROC curve is `auc`; infinite at 1."""
    return np.sqrt(2) * norm.ppf(auc)


def _single_label(weights, predictions, targets) -> dict[str, np.ndarray]:
    num_classes = int(max(predictions.max(), targets.max())) + 1
    correct = predictions == targets
    support, predicted = (_sum_per_class(weights, classes, num_classes) for classes in (targets, predictions))
    hits = _sum_per_class(weights[correct], targets[correct], num_classes)
    recall = np.where(support > 0, hits / support, np.nan)  # classes that a resample lacks do not count
    f1 = np.where(support > 0, 2 * hits / (support + predicted), np.nan)
    return {
        "accuracy": hits.sum(axis=0) / support.sum(axis=0),
        "unweighted_average_recall": np.nanmean(recall, axis=0),
        "macro_f1": np.nanmean(f1, axis=0),
    }


def _sum_per_class(weights, classes, num_classes: int) -> np.ndarray:
    """(clips, resamples), (clips,) -> (classes, resamples)"""
    ones = (np.ones(len(classes), dtype=np.float32), (classes, np.arange(len(classes))))
    return (csr_array(ones, shape=(num_classes, len(classes))) @ weights).astype(np.float64)


def _multi_label(weights, scores, targets, thresholds) -> dict[str, np.ndarray]:
    ranked = [_ranking_metrics(weights, scores[:, label], targets[:, label]) for label in range(scores.shape[1])]
    precision, auc = (np.stack(values) for values in zip(*ranked))  # (labels, resamples)
    predicted = (scores > (0.5 if thresholds is None else np.asarray(thresholds))).astype(np.float32)
    counted = (predicted * targets, predicted, targets.astype(np.float32))
    hits, given, support = ((part.T @ weights).astype(np.float64) for part in counted)
    f1 = np.where(support > 0, 2 * hits / (given + support), np.nan)
    micro_f1 = 2 * hits.sum(axis=0) / (given.sum(axis=0) + support.sum(axis=0))
    return {
        "mean_average_precision": _mean_of_known(precision),
        "mean_auc": _mean_of_known(auc),
        "micro_f1": micro_f1,
        "macro_f1": _mean_of_known(f1),
    }


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """(labels, resamples) -> (resamples,), over the labels that are not NaN"""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)


def _ranking_metrics(weights, scores, targets) -> tuple[np.ndarray, np.ndarray]:
    """
    Average precision and area under the ROC curve of one label, (resamples,) each. Clips of one score share a rank.
    """
    order = np.argsort(-scores, kind="stable")
    positives = np.flatnonzero(targets[order])  # ranks
    if not 0 < len(positives) < len(scores):
        return np.full(weights.shape[1], np.nan), np.full(weights.shape[1], np.nan)
    ranked = scores[order]
    before = np.searchsorted(-ranked, -ranked[positives], side="left")  # clips with a higher score
    until = np.searchsorted(-ranked, -ranked[positives], side="right")  # and those with the same one
    weight = weights[order[positives]]  # (positives, resamples)
    hits = np.concatenate([np.zeros_like(weight[:1]), np.cumsum(weight, axis=0)])
    hits_before, hits_until = (hits[np.searchsorted(positives, ranks)] for ranks in (before, until))
    ends = np.unique([*before, *until])  # where the weight of all clips above is needed
    segments = csr_array((np.ones(len(order), dtype=np.float32), order, [0, *ends, len(order)]))
    clips = np.cumsum(segments @ weights, axis=0)  # (ends + 1, resamples)
    clips_before, clips_until = (clips[np.searchsorted(ends, ranks)] for ranks in (before, until))
    precision = np.where(weight > 0, hits_until / clips_until, 0)
    negatives_above = (clips_before - hits_before + clips_until - hits_until) / 2  # of one score: half
    total, num_negatives = hits[-1], clips[-1] - hits[-1]
    average_precision = (weight * precision).sum(axis=0, dtype=np.float64) / total
    auc = 1 - (weight * negatives_above).sum(axis=0, dtype=np.float64) / (total.astype(np.float64) * num_negatives)
    undefined = (total == 0) | (num_negatives == 0)
    return np.where(undefined, np.nan, average_precision), np.where(undefined, np.nan, auc)


def _regression(weights, predictions, targets) -> dict[str, np.ndarray]:
    errors = (predictions - targets).astype(np.float64)
    centred = targets.astype(np.float64) - targets.mean(dtype=np.float64)
    num_clips = weights.sum(axis=0)
    variance = centred**2 @ weights - (centred @ weights) ** 2 / num_clips
    squares = errors**2 @ weights
    return {
        "mean_squared_error": squares / num_clips,
        "mean_absolute_error": np.abs(errors) @ weights / num_clips,
        "r2": np.where(variance > 1e-12 * (centred**2).sum(), 1 - squares / variance, np.nan),
    }
