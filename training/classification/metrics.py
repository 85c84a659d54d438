"""
Computes the metrics of classification and regression, for a whole split and for many resamples of it.

Every metric takes weights of the clips: (clips, resamples). One column of ones is the split itself. scikit-learn
computes one weighting at a time, which takes minutes for the 1000 resamples of a confidence interval; the tests compare
every metric with scikit-learn's.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import norm

from ..base.arguments import TrainingArguments
from ..base.bootstrap import mean_of_known
from ..base.finite import check_scores
from ..errors import InputError
from .calibration import probabilities

# The metrics of each kind of problem and whether higher is better; the first one chooses the best checkpoint.
DIRECTIONS = {
    "single_label_classification": {"accuracy": True, "unweighted_average_recall": True, "macro_f1": True},
    "multi_label_classification": {
        "mean_average_precision": True,
        "mean_auc": True,
        "d_prime": True,
        "micro_f1": True,
        "macro_f1": True,
    },
    "regression": {"mean_squared_error": False, "mean_absolute_error": False, "r2": True},
}


def choose_metric(arguments: TrainingArguments, problem_type: str):
    """
    Sets the metric that chooses the best checkpoint, and whether higher is better.

    Raises:
        InputError: this kind of problem does not have the metric of the recipe.
    """
    directions = DIRECTIONS[problem_type] | {"loss": False}
    name = (arguments.chosen_metric or next(iter(directions))).removeprefix("eval_")
    if name not in directions:
        raise InputError(f"metric_for_best_model: {name!r} is unknown; known are {', '.join(directions)}")
    direction = arguments.chosen_direction
    arguments.metric_for_best_model = name
    arguments.greater_is_better = directions[name] if direction is None else direction


def metric_function(problem_type: str, config):
    """
    Returns the `compute_metrics` of Trainer: (logits and labels of a split) -> metrics, with the configuration's
    temperature and decision thresholds.
    """

    def compute(prediction) -> dict[str, float]:
        predictions = predictions_from_logits(prediction.predictions, problem_type, config.calibration_temperature)
        return metrics_of_split(predictions, prediction.label_ids, problem_type, config.decision_thresholds)

    return compute


def predictions_from_logits(logits: np.ndarray, problem_type: str, temperature: float) -> np.ndarray:
    """
    Returns the predictions for `metrics_of_split`, from logits (clips, labels): class indices (clips,), probabilities
    (clips, labels), or numbers (clips,).

    Raises:
        InputError: a logit is not finite.
    """
    check_scores(logits)
    if problem_type == "single_label_classification":
        return logits.argmax(axis=-1)
    is_multi = problem_type == "multi_label_classification"
    return probabilities(logits, problem_type, temperature) if is_multi else logits[:, 0]


def metrics_of_split(
    predictions: np.ndarray, targets: np.ndarray, problem_type: str, thresholds: list[float] | None = None
) -> dict[str, float]:
    """Returns the metrics of `DIRECTIONS` by name; arguments as for `weighted_metrics`."""
    weights = np.ones((len(targets), 1))
    found = weighted_metrics(weights, predictions, targets, problem_type, thresholds)
    if "mean_auc" in found:
        found["d_prime"] = d_prime(found["mean_auc"])
    return {name: float(found[name][0]) for name in DIRECTIONS[problem_type]}


def weighted_metrics(
    weights: np.ndarray,
    predictions: np.ndarray,
    targets: np.ndarray,
    problem_type: str,
    thresholds: list[float] | None = None,
) -> dict[str, np.ndarray]:
    """
    Returns metric -> (resamples,), all but d'. A metric is NaN where a resample leaves it undefined.

    Args:
        weights: (clips, resamples), how often each clip counts
        predictions: class indices (clips,), scores (clips, labels), or numbers (clips,)
        targets: class indices (clips,), 0 or 1 (clips, labels), or numbers (clips,)
        thresholds: (labels,), the score above which a label is predicted; `None`: 0.5

    Raises:
        InputError: a prediction is not finite.
    """
    check_scores(predictions)
    with np.errstate(divide="ignore", invalid="ignore"):
        if problem_type == "single_label_classification":
            return _single_label(weights, predictions, targets)
        if problem_type == "multi_label_classification":
            return _multi_label(weights, predictions, targets > 0.5, thresholds)
        return _regression(weights.astype(np.float64), predictions, targets)


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float | None:
    """Returns the average precision of one label, `None` without positive clips. scores, targets: (clips,)"""
    targets = targets > 0.5
    if targets.all() or not targets.any():
        return 1.0 if targets.all() else None
    return float(_ranking_metrics(np.ones((len(scores), 1)), scores, targets)[0][0])


def d_prime(auc: np.ndarray) -> np.ndarray:
    """
    Returns d' = sqrt(2) times the normal quantile of an area under the ROC curve (Hershey et al., ICASSP 2017), of the
    same shape; infinite at 1.
    """
    return np.sqrt(2) * norm.ppf(auc)


def _single_label(weights: np.ndarray, predictions: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """
    Returns accuracy, mean recall and mean F1 over the classes that a resample's targets contain, each (resamples,).

    weights: (clips, resamples); predictions, targets: (clips,) class indices
    """
    num_classes = int(max(predictions.max(), targets.max())) + 1
    correct = predictions == targets
    support, predicted = (_sum_per_class(weights, classes, num_classes) for classes in (targets, predictions))
    hits = _sum_per_class(weights[correct], targets[correct], num_classes)  # (classes, resamples)
    return {
        "accuracy": hits.sum(axis=0) / support.sum(axis=0),
        "unweighted_average_recall": mean_of_known(np.where(support > 0, hits / support, np.nan)),
        "macro_f1": mean_of_known(np.where(support > 0, 2 * hits / (support + predicted), np.nan)),
    }


def _sum_per_class(weights: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the weight of every class: (clips, resamples), (clips,) -> float64 (classes, resamples)"""
    ones = (np.ones(len(classes), dtype=weights.dtype), (classes, np.arange(len(classes))))
    return (csr_array(ones, shape=(num_classes, len(classes))) @ weights).astype(np.float64)


def _multi_label(
    weights: np.ndarray, scores: np.ndarray, targets: np.ndarray, thresholds: list[float] | None
) -> dict[str, np.ndarray]:
    """
    Returns average precision and area under the ROC curve, means over the labels with positive and negative clips; F1
    over all decisions; and F1 as the mean over the labels with positive clips: each (resamples,).

    weights: (clips, resamples); scores, targets (bool): (clips, labels); thresholds: (labels,)
    """
    ranked = [_ranking_metrics(weights, scores[:, label], targets[:, label]) for label in range(scores.shape[1])]
    precision, auc = (np.stack(values) for values in zip(*ranked))  # (labels, resamples)
    predicted = scores > (0.5 if thresholds is None else np.asarray(thresholds))
    counted = (predicted & targets, predicted, targets)
    hits, given, support = ((part.T.astype(weights.dtype) @ weights).astype(np.float64) for part in counted)
    decisions = given.sum(axis=0) + support.sum(axis=0)
    return {
        "mean_average_precision": mean_of_known(precision),
        "mean_auc": mean_of_known(auc),
        "micro_f1": np.where(decisions > 0, 2 * hits.sum(axis=0) / decisions, 0.0),
        "macro_f1": mean_of_known(np.where(support > 0, 2 * hits / (given + support), np.nan)),
    }


def _ranking_metrics(weights: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns average precision and area under the ROC curve of one label, each (resamples,). Clips with the same score
    share a rank. Sorted once for all resamples: scikit-learn would sort for each one.

    weights: (clips, resamples); scores, targets (bool): (clips,)
    """
    order = np.argsort(-scores, kind="stable")
    positives = np.flatnonzero(targets[order])  # ranks
    if not 0 < len(positives) < len(scores):
        return np.full(weights.shape[1], np.nan), np.full(weights.shape[1], np.nan)
    ranked = scores[order]
    before = np.searchsorted(-ranked, -ranked[positives], side="left")  # number of clips with a higher score
    until = np.searchsorted(-ranked, -ranked[positives], side="right")  # the same with clips of equal score
    weight = weights[order[positives]]  # (positives, resamples)
    hits = np.concatenate([np.zeros_like(weight[:1]), np.cumsum(weight, axis=0)])
    hits_before, hits_until = (hits[np.searchsorted(positives, ranks)] for ranks in (before, until))
    ends = np.unique([*before, *until])  # where the weight of all clips above is needed
    segments = csr_array((np.ones(len(order), dtype=weights.dtype), order, [0, *ends, len(order)]))
    clips = np.cumsum(segments @ weights, axis=0)  # (ends + 1, resamples)
    clips_before, clips_until = (clips[np.searchsorted(ends, ranks)] for ranks in (before, until))
    precision = np.where(weight > 0, hits_until / clips_until, 0)
    negatives_above = (clips_before - hits_before + clips_until - hits_until) / 2  # clips of equal score count half
    total, num_negatives = hits[-1], clips[-1] - hits[-1]
    average_precision = (weight * precision).sum(axis=0, dtype=np.float64) / total
    auc = 1 - (weight * negatives_above).sum(axis=0, dtype=np.float64) / (total.astype(np.float64) * num_negatives)
    undefined = (total == 0) | (num_negatives == 0)
    return np.where(undefined, np.nan, average_precision), np.where(undefined, np.nan, auc)


def _regression(weights: np.ndarray, predictions: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """
    Returns squared error, absolute error and R2, each (resamples,); R2 is NaN where all targets are equal.

    weights: (clips, resamples); predictions, targets: (clips,)
    """
    errors = predictions.astype(np.float64) - targets
    centred = targets.astype(np.float64) - targets.mean(dtype=np.float64)
    num_clips = weights.sum(axis=0)
    variance = centred**2 @ weights - (centred @ weights) ** 2 / num_clips
    squares = errors**2 @ weights
    return {
        "mean_squared_error": squares / num_clips,
        "mean_absolute_error": np.abs(errors) @ weights / num_clips,
        "r2": np.where(variance > 1e-12 * (centred**2).sum(), 1 - squares / variance, np.nan),
    }
