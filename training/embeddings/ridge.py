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
        return float(average_precision_score(targets[:, present] > 0, predictions[:, present], average="macro"))

    return {
        "single_label_classification": ("accuracy", accuracy),
        "multi_label_classification": ("mean_average_precision", mean_average_precision),
        "regression": ("r2", r2_score),
    }[problem_type]


def held_out_predictions(
    features: Callable[[tuple], np.ndarray],
    configurations: Sequence[list[tuple]],
    targets: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    ridge: Sequence[float],
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, int, np.ndarray]]:
    """
    Yields the indices of configuration and penalty, and the predictions (held-out clips, outputs); arguments as for
    `score_all`.
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
            for offset, prediction in enumerate((kernel[:, test] @ weights).cpu().numpy() + mean):
                yield start + offset, index, prediction


def score_all(
    features: Callable[[tuple], np.ndarray],
    configurations: Sequence[list[tuple]],
    targets: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    ridge: Sequence[float],
    metric: Callable[[np.ndarray, np.ndarray], float],
    device: torch.device | str = "cpu",
) -> list[Score]:
    """
    Scores every configuration by cross-validation, with the best penalty of each.

    Args:
        features: block -> (clips, size), float64
        configurations: lists of blocks
        targets: (clips, outputs)
        folds: (training clips, held-out clips)
        ridge: penalties per feature; the one with the best mean over the folds is chosen
        metric: (targets, predictions) -> number, higher is better
    """
    scores = np.zeros((len(configurations), len(ridge), len(folds)))
    progress = tqdm(total=len(configurations) * len(folds) * len(ridge), desc="scoring", unit="fit", leave=False)
    for number, fold in enumerate(folds):
        truth = targets[fold[1]]
        for index, penalty, prediction in held_out_predictions(features, configurations, targets, fold, ridge, device):
            # The metrics would take NaN for class 0, or raise.
            scores[index, penalty, number] = metric(truth, prediction) if np.isfinite(prediction).all() else np.nan
            progress.update()
    progress.close()
    sizes = [sum(features(name).shape[1] for name in blocks) for blocks in configurations]
    means = scores.mean(axis=2)
    best = np.where(np.isnan(means), -np.inf, means).argmax(axis=1)
    return [
        Score(folds=scores[index, choice], ridge=float(ridge[choice]), alpha=float(ridge[choice]) * sizes[index])
        for index, choice in enumerate(best)
    ]
