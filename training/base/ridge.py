"""
Evaluates many combinations of features at once, by ridge regression on standardised features.

The features of a configuration are a concatenation of blocks, and the kernel of a concatenation is the sum of the
kernels. Each block is standardised and multiplied once per fold, and a configuration costs one small linear system. The
results are those of scikit-learn's StandardScaler and RidgeClassifier (or Ridge), without building the features.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import average_precision_score, r2_score
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from ..data.labels import LabelSet

BATCH = 32  # linear systems solved at once


@dataclass
class Score:
    """
    Holds the score of a configuration.

    folds: the metric on each held-out fold; NaN where predictions are not finite
    ridge: penalty per feature with the best mean over the folds
    alpha: the same penalty for the whole vector, as in scikit-learn
    """

    folds: np.ndarray
    ridge: float
    alpha: float


@dataclass
class FoldScores:
    """
    Holds the scores of a cross-validation, NaN where predictions are not finite.

    scores: (configurations, penalties, folds)
    inner: per fold the scores on the other folds of its repeat, by fits without both: (configurations, penalties, other
        folds); empty if they were not asked for
    inner_shares: per fold the held-out clips for each training clip in these fits, the mean over the other folds
    ridge: (penalties,)
    sizes: (configurations,), sizes of the vectors
    """

    scores: np.ndarray
    inner: list[np.ndarray]
    inner_shares: list[float]
    ridge: Sequence[float]
    sizes: list[int]

    def with_best_penalty(self) -> list[Score]:
        """Returns the scores of each configuration with the penalty that has the best mean."""
        rows = enumerate(best_of(mean_of(self.scores)))
        return [
            Score(self.scores[row, choice], float(self.ridge[choice]), float(self.ridge[choice]) * self.sizes[row])
            for row, choice in rows
        ]


def make_targets(labels: list, label_set: LabelSet) -> np.ndarray:
    """Returns the targets of the regression, +1 and -1 per class, or numbers: (clips, outputs)"""
    encoded = [label_set.encode(label, "a clip") for label in labels]
    if label_set.is_single:
        return np.where(np.eye(len(label_set.names))[encoded] > 0, 1.0, -1.0)
    encoded = np.asarray(encoded, dtype=np.float64)
    if label_set.is_multi:
        return np.where(encoded > 0.5, 1.0, -1.0)
    return encoded.reshape(len(labels), -1)


def metric_of(problem_type: str) -> tuple[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Returns a metric's name and function: targets, predictions, both (clips, outputs) -> number, higher is better."""

    def accuracy(targets, predictions):
        return float((targets.argmax(axis=1) == predictions.argmax(axis=1)).mean())

    def mean_average_precision(targets, predictions):
        present = (targets > 0).any(axis=0)
        if not present.any():
            return np.nan
        return float(average_precision_score(targets[:, present] > 0, predictions[:, present], average="macro"))

    return {
        "single_label_classification": ("accuracy", accuracy),
        "multi_label_classification": ("mean_average_precision", mean_average_precision),
        "regression": ("r2", r2_score),
    }[problem_type]


def why_undefined(targets: np.ndarray, problem_type: str) -> str:
    """Returns what held-out clips are, targets (clips, outputs), on which the metric is NaN; empty if it is defined."""
    if problem_type == "regression" and len(targets) < 2:
        return "one clip, which has no r2"
    if problem_type == "multi_label_classification" and not (targets > 0).any():
        return "clips without any label"
    return ""


def held_out_predictions(
    features: Callable[[tuple], np.ndarray],
    configurations: Sequence[list[tuple]],
    targets: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    ridge: Sequence[float],
    device: torch.device | str = "cpu",
    inner: Sequence[np.ndarray] = (),
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """
    Yields the indices of configuration and penalty, and the predictions (held-out clips, outputs); arguments as for
    `score_folds`. With `inner`, which divides the training clips (places among them), also the predictions (training
    clips, outputs) of fits without the part in which a clip is.

    The parts need no fits of their own: of the inverse C of the whole system with its intercept, the residuals of a
    part are the solution of its own rows and columns of C (An, Liu and Venkatesh, Pattern Recognition 40, 2007). The
    features of all training clips standardise them; those of the held-out clips and their targets take no part.
    """
    training, test = fold
    kernels, sizes = {}, {}
    for name in dict.fromkeys(block for blocks in configurations for block in blocks):
        block = features(name)
        sizes[name] = block.shape[1]
        if not np.isfinite(block).all():  # such as a sum that overflowed in float16
            kernels[name] = torch.full((len(block), len(training)), torch.nan, dtype=torch.float64, device=device)
            continue
        scaled = torch.from_numpy(StandardScaler().fit(block[training]).transform(block)).to(device)
        kernels[name] = scaled @ scaled[training].T  # (clips, training clips)
    mean = targets[training].mean(axis=0)
    centred = torch.from_numpy(targets[training] - mean).to(device)
    for start in range(0, len(configurations), BATCH):
        group = configurations[start : start + BATCH]
        kernel = torch.stack([sum(kernels[name] for name in blocks) for blocks in group])
        size = torch.tensor([[float(sum(sizes[name] for name in blocks))] for blocks in group]).to(kernel)
        for index, penalty in enumerate(ridge):
            system = kernel[:, training].clone()  # (configurations, training clips, training clips)
            system.diagonal(dim1=1, dim2=2).add_(penalty * size)
            factors, failed = torch.linalg.cholesky_ex(system)  # fails where features or penalty are not finite
            weights = torch.cholesky_solve(centred.expand(len(group), -1, -1), factors)
            weights[failed != 0] = torch.nan
            predictions = (kernel[:, test] @ weights).cpu().numpy() + mean
            parts = np.tile(targets[training], (len(group), 1, 1)) if inner else np.empty((len(group), 0))
            inverse = torch.cholesky_inverse(factors) if inner else None
            for part in inner:
                # The features are centred: the intercept adds this constant to the inverse.
                own = inverse[:, part][:, :, part] - 1 / (penalty * size[:, :, None] * len(training))
                residuals = torch.cholesky_solve(weights[:, part], torch.linalg.cholesky_ex(own)[0])
                parts[:, part] -= residuals.cpu().numpy()
            for offset, pair in enumerate(zip(predictions, parts)):
                yield start + offset, index, *pair


def score_fits(
    features: Callable[[tuple], np.ndarray],
    configurations: Sequence[list[tuple]],
    targets: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    ridge: Sequence[float],
    metric: Callable[[np.ndarray, np.ndarray], float],
    device: torch.device | str = "cpu",
    inner: Sequence[np.ndarray] = (),
) -> Iterator[tuple[int, int, float, list[float]]]:
    """
    Yields the indices of configuration and penalty, the score on the held-out clips of a fold, and the score on each
    part of the training clips by fits without it; NaN where predictions are not finite. Arguments as for `score_folds`
    and `held_out_predictions`.
    """

    def measure(truth, prediction) -> float:
        # The metrics would take NaN for class 0, or raise.
        return metric(truth, prediction) if np.isfinite(prediction).all() else np.nan

    own, truth = targets[fold[0]], targets[fold[1]]
    found = held_out_predictions(features, configurations, targets, fold, ridge, device, inner)
    for index, penalty, prediction, held in found:
        yield index, penalty, measure(truth, prediction), [measure(own[part], held[part]) for part in inner]


def mean_of(scores: np.ndarray) -> np.ndarray:
    """Returns the mean over the folds, the last axis; rounded, so that the order of the folds makes no difference."""
    return scores.mean(axis=-1).round(12)


def best_of(scores: np.ndarray) -> np.ndarray:
    """Returns the index of the highest score of the last axis, the first one of equal scores; NaN is lowest."""
    return np.where(np.isnan(scores), -np.inf, scores).argmax(axis=-1)


def other_folds(folds: list[tuple[np.ndarray, np.ndarray]], number: int) -> list[np.ndarray]:
    """Returns the held-out clips of the other folds of the same repeat."""
    num_clips = sum(map(len, folds[number]))
    num_repeats = sum(len(test) for _, test in folds) // num_clips
    size = len(folds) // num_repeats
    first = number // size * size
    return [folds[other][1] for other in range(first, first + size) if other != number]


def score_folds(
    features: Callable[[tuple], np.ndarray],
    configurations: Sequence[list[tuple]],
    targets: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    ridge: Sequence[float],
    metric: Callable[[np.ndarray, np.ndarray], float],
    device: torch.device | str = "cpu",
    nested: bool = True,
) -> FoldScores:
    """
    Scores every configuration with every penalty by cross-validation.

    Args:
        features: block -> (clips, size), float64
        configurations: lists of blocks
        targets: (clips, outputs)
        folds: (training clips, held-out clips)
        ridge: penalties per feature
        metric: (targets, predictions) -> number, higher is better
        nested: also score within the training clips of each fold, whose parts are the other folds; 3 folds at least
    """
    scores = np.zeros((len(configurations), len(ridge), len(folds)))
    progress = tqdm(total=len(configurations) * len(folds) * len(ridge), desc="scoring", unit="fit", leave=False)
    inner, shares = [], []
    for number, fold in enumerate(folds):
        others = other_folds(folds, number) if nested else []
        parts = [np.flatnonzero(np.isin(fold[0], other)) for other in others]
        inner.append(np.zeros((len(configurations), len(ridge), len(parts))))
        shares.append(float(np.mean([len(part) / (len(fold[0]) - len(part)) for part in parts] or [np.nan])))
        fits = score_fits(features, configurations, targets, fold, ridge, metric, device, parts)
        for index, penalty, score, by_part in fits:
            scores[index, penalty, number], inner[-1][index, penalty] = score, by_part
            progress.update()
    progress.close()
    sizes = [sum(features(name).shape[1] for name in blocks) for blocks in configurations]
    return FoldScores(scores, inner, shares, ridge, sizes)
