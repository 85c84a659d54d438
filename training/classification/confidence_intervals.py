"""
Computes confidence intervals of the metrics, by resamples of the clips of a split, or of whole groups of clips
(speakers, recordings).
"""

import numpy as np

from ..base.bootstrap import LEVEL, NUM_RESAMPLES, draw_weights, interval_of, resamples_for, units_to_draw
from .metrics import d_prime, weighted_metrics


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
    units = units_to_draw(len(targets), groups)
    if units is None:
        return None
    num_resamples = NUM_RESAMPLES
    if problem_type == "multi_label_classification":
        num_resamples = resamples_for(predictions.size)
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
