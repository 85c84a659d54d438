"""
Calibrates classifiers: temperature scaling (Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017) and a
decision threshold per label, both chosen on the validation split.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from transformers import PretrainedConfig
from transformers.utils import logging

from modeling_dual_ssast.classifier_dual_ssast import probabilities_of_logits

from ..base.finite import check_scores
from ..data.labels import LabelSet

logger = logging.get_logger(__name__)

MIN_CLIPS = 30  # with fewer, the choice of clips affects the temperature more than the model does
NUM_BINS = 15  # of equal width, as in Guo et al.
TEMPERATURES = (0.05, 20.0)  # an optimum at a bound is rejected: the split is perfectly classified, or at chance
THRESHOLDS = (np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).eps)


def probabilities(logits: np.ndarray, problem_type: str, temperature: float = 1.0) -> np.ndarray:
    """
    Returns softmax or sigmoid of logits / temperature, or the numbers of a regression: (clips, labels) for both.

    Raises:
        InputError: a logit is not finite.
    """
    check_scores(logits)
    tensor = torch.from_numpy(np.asarray(logits, dtype=np.float32))
    return probabilities_of_logits(tensor, problem_type, temperature).numpy()


def calibrate(config: PretrainedConfig, outcomes: dict, labels: LabelSet) -> dict | None:
    """
    Sets `calibration_temperature` and `decision_thresholds` of the configuration, chosen on the validation split.

    Args:
        outcomes: split -> Trainer's PredictionOutput, whose predictions are logits (clips, labels)

    Returns:
        the entry `calibration` of `results.json`; `None` for a regression, or without enough validation clips
    """
    if labels.is_regression or "validation" not in outcomes:
        return None
    logits, targets = outcomes["validation"].predictions, outcomes["validation"].label_ids
    if len(targets) < MIN_CLIPS:
        logger.warning(f"{len(targets)} validation clips are too few to calibrate by; {MIN_CLIPS} are needed")
        return None
    config.calibration_temperature = fit_temperature(logits, targets, labels.problem_type)
    if labels.is_multi:
        scores = probabilities(logits, labels.problem_type, config.calibration_temperature)
        config.decision_thresholds = choose_thresholds(scores, targets > 0.5)
    return describe_calibration(config, outcomes, labels)


def describe_calibration(config: PretrainedConfig, outcomes: dict, labels: LabelSet) -> dict:
    """Returns temperature, thresholds, and per split the scores before and after; arguments as for `calibrate`."""
    report = {"temperature": config.calibration_temperature, "decision_thresholds": config.decision_thresholds}
    for split, outcome in outcomes.items():
        report[split] = {
            name: calibration_scores(outcome.predictions, outcome.label_ids, labels.problem_type, temperature)
            for name, temperature in (("before", 1.0), ("after", config.calibration_temperature))
        }
    return report


def fit_temperature(logits: np.ndarray, targets: np.ndarray, problem_type: str) -> float:
    """
    Returns the temperature with the lowest negative log-likelihood; 1.0 if it is no better than 1.0 or lies at a bound.

    logits: (clips, labels); targets: (clips,) indices, or (clips, labels) of 0 and 1
    """

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits, targets, problem_type, float(np.exp(log_temperature)))

    # Convex in the inverse of the temperature: there is one minimum.
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    if found.x - low < 1e-3 or high - found.x < 1e-3:
        logger.warning(
            "No temperature suits the validation split: all clips are right or the model is no better than chance; "
            "it stays 1"
        )
        return 1.0
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def choose_thresholds(scores: np.ndarray, targets: np.ndarray) -> list[float]:
    """
    Returns per label the threshold with the highest F1; of equal ones, the nearest to 0.5. It is 0.5 where a single
    clip makes the difference, and for a label without positive clips.

    scores: (clips, labels), float; targets: (clips, labels), bool
    """
    check_scores(scores)
    return [
        _best_threshold(scores[:, index].astype(np.float64), targets[:, index]) if targets[:, index].any() else 0.5
        for index in range(scores.shape[1])
    ]


def _best_threshold(scores: np.ndarray, targets: np.ndarray) -> float:
    """Returns the threshold of one label. scores: (clips,), float64; targets: (clips,), bool"""
    edges = np.concatenate([[0.0], np.unique(scores)])  # all thresholds between two edges give the same decisions
    below, above = edges[:-1], edges[1:]
    candidates = np.where((below <= 0.5) & (above > 0.5), 0.5, (below + above) / 2).clip(*THRESHOLDS)

    def count_above(values: np.ndarray) -> np.ndarray:
        return len(values) - np.searchsorted(np.sort(values), candidates, side="right")

    wanted = targets.sum()
    f1 = 2 * count_above(scores[targets]) / (count_above(scores) + wanted)
    # One faint clip would lower the threshold to 0.05, say, and hours without the class are full of such scores.
    hits, found = (scores[targets] > 0.5).sum(), (scores > 0.5).sum()
    one_better = 2 * (hits + 1) / (found + 1 + wanted) if hits < wanted else 2 * hits / (found - 1 + wanted)
    if one_better >= f1.max():
        return 0.5
    best = candidates[f1 == f1.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def calibration_scores(logits: np.ndarray, targets: np.ndarray, problem_type: str, temperature: float) -> dict:
    """
    Returns expected calibration error, negative log-likelihood and Brier score at a temperature, and the bins of the
    reliability diagram. With several labels per clip, each label of each clip is one decision.

    logits: (clips, labels); targets: (clips,) class indices, or (clips, labels) of 0 and 1
    """
    scores = probabilities(logits, problem_type, temperature)
    if problem_type == "single_label_classification":
        confidences, hits = scores.max(axis=1), scores.argmax(axis=1) == targets
        brier = np.square(scores - np.eye(scores.shape[1])[targets]).sum(axis=1).mean()
    else:
        confidences, hits = scores.ravel(), targets.ravel() > 0.5
        brier = np.square(confidences - hits).mean()
    bins = reliability_bins(confidences, hits)
    return {
        "expected_calibration_error": expected_calibration_error(bins),
        "negative_log_likelihood": negative_log_likelihood(logits, targets, problem_type, temperature),
        "brier_score": float(brier),
        "bins": bins,
    }


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray, problem_type: str, temperature: float) -> float:
    """
    Returns the mean negative log-likelihood over clips; for multi-label problems also over labels.

    logits: (clips, labels); targets: (clips,) class indices, or (clips, labels) of 0 and 1
    """
    check_scores(logits)
    logits = torch.from_numpy(np.asarray(logits, dtype=np.float64)) / temperature
    if problem_type == "single_label_classification":
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.asarray(targets, dtype=np.int64))))
    targets = torch.from_numpy(np.asarray(targets, dtype=np.float64))
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, targets))


def reliability_bins(confidences: np.ndarray, hits: np.ndarray) -> dict[str, list]:
    """
    Returns per bin of confidence the number of decisions, their mean confidence, and the share of correct ones.

    confidences: (decisions,), from 0 to 1; hits: (decisions,), bool
    """
    index = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(index, minlength=NUM_BINS)
    sums = (np.bincount(index, weights=values, minlength=NUM_BINS) for values in (confidences, hits))
    confidence, accuracy = (total / np.maximum(counts, 1) for total in sums)
    return {"count": counts.tolist(), "confidence": confidence.tolist(), "accuracy": accuracy.tolist()}


def expected_calibration_error(bins: dict[str, list]) -> float:
    """Returns the mean of |confidence - accuracy| over bins, weighted by the decisions per bin."""
    distances = np.abs(np.subtract(bins["confidence"], bins["accuracy"]))
    return float(np.average(distances, weights=bins["count"]))
