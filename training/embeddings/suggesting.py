"""
Chooses the clips to label next: where a classifier of the labels known so far is in doubt, and where no labelled clip
is near.
"""

from typing import NamedTuple

import numpy as np

from .known_labels import KnownLabels
from .linear import probabilities

STRATEGIES = ("margin", "herding", "coreset")  # the first is the default
COVERAGE, DOUBT, BOTH = "coverage", "doubt", "doubt and coverage"  # reasons
MOST_CLIPS = 4000  # unlabelled clips that are compared with each other: 64 MB of distances
WIDTH = 0.5  # of the first kernel, in median distances
SAME = 0.05  # distance up to which clips count as repetitions: norms are about 10, and float32 leaves errors of 0.005


class Suggestions(NamedTuple):
    """
    Holds the clips to label next, the best first.

    Args:
        clips: (suggestions,), their places among the embedded clips
        reason: why they were chosen
        doubt: (suggestions,), from 0 to 1; NaN without a classifier: fewer than two classes are known
        probabilities: (suggestions, labels)
        num_compared: clips that they were chosen from
    """

    clips: np.ndarray
    reason: str
    doubt: np.ndarray
    probabilities: np.ndarray
    num_compared: int


def suggest(
    features: np.ndarray, known: KnownLabels, count: int, strategy: str = STRATEGIES[0], seed: int = 0
) -> Suggestions:
    """
    Chooses clips without a label; all of them where fewer than `count` are left.

    `margin` takes the clips of the highest doubt. `coreset` takes the clip that is farthest from all labelled and
    chosen ones, again and again (k-center greedy, Sener and Savarese, ICLR 2018). `herding` takes the clip that most
    raises the sum over all clips of doubt times nearness to a labelled or chosen clip (uncertainty herding, Bae,
    Oliveira and Sutherland, ICLR 2025); the smaller the distances between labelled clips, the less counts coverage.
    With fewer than two known classes nothing is in doubt: `margin` and `herding` then choose by coverage alone.

    Args:
        features: (clips, size), of `linear.scaled`
        seed: draws the clips that take part where more than 4000 have no label
    """
    free = np.setdiff1d(np.arange(len(features)), known.clips)
    if len(free) > MOST_CLIPS:
        free = np.sort(np.random.default_rng(seed).choice(free, MOST_CLIPS, replace=False))
    own, labelled = features[free], features[known.clips]
    found, doubt = np.zeros((len(free), len(known.labels.names))), np.full(len(free), np.nan)
    if known.has_two:
        found = label_probabilities(labelled, known, own)
        doubt = doubt_of(found, known.labels.is_multi)
    count = min(count, len(free))
    if strategy == "margin" and known.has_two:
        chosen, reason = np.argsort(-doubt, kind="stable")[:count], DOUBT
        return Suggestions(free[chosen], reason, doubt[chosen], found[chosen], len(free))
    between, nearest = distances(own, own), distances(own, labelled).min(axis=1, initial=np.inf)
    if strategy == "coreset":
        chosen, reason = farthest(between, nearest, count), COVERAGE
    else:
        width = kernel_width(between, labelled if known.has_two else labelled[:0])
        weights = doubt if known.has_two else np.ones(len(free))
        chosen, reason = herd(between, nearest, weights, width, count), BOTH if known.has_two else COVERAGE
    return Suggestions(free[chosen], reason, doubt[chosen], found[chosen], len(free))


def label_probabilities(features: np.ndarray, known: KnownLabels, wanted: np.ndarray) -> np.ndarray:
    """Returns the probabilities (wanted clips, labels) by logistic regressions of the known labels."""
    if not known.labels.is_multi:
        return probabilities(features, known.targets, wanted, len(known.labels.names))
    return np.stack([probabilities(features, own, wanted, 2)[:, 1] for own in known.targets.T], axis=1)


def doubt_of(found: np.ndarray, is_multi: bool) -> np.ndarray:
    """
    Returns 1 minus the margin between the two most probable classes: (clips,). Where clips may have several labels, the
    mean over the labels, each of which is present or absent.
    """
    if is_multi:
        return 1 - np.abs(2 * found - 1).mean(axis=1)
    highest = np.sort(found, axis=1)[:, -2:]
    return 1 - (highest[:, 1] - highest[:, 0])


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns Euclidean distances (first, second) float32."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.sqrt(np.maximum(squares, 0))


def kernel_width(between: np.ndarray, labelled: np.ndarray) -> float:
    """
    Returns the smallest distance between labelled clips, repetitions aside; with fewer than two of them half of the
    median distance between all clips.
    """
    found = distances(labelled, labelled)[np.triu_indices(len(labelled), 1)]
    found = found[found > SAME]
    if len(found):
        return float(found.min())
    found = between[np.triu_indices(len(between), 1)]
    return float(WIDTH * np.median(found)) or 1.0 if len(found) else 1.0


def farthest(between: np.ndarray, nearest: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` clips, each the farthest from the labelled and chosen ones; the first of all is the innermost."""
    nearest, chosen = nearest.copy(), []
    while len(chosen) < count:
        place = int(nearest.argmax()) if np.isfinite(nearest).any() else int(between.sum(axis=1).argmin())
        chosen.append(place)
        nearest = np.minimum(nearest, between[place])
        nearest[chosen] = -1.0
    return np.array(chosen, dtype=np.int64)


def herd(between: np.ndarray, nearest: np.ndarray, weights: np.ndarray, width: float, count: int) -> np.ndarray:
    """
    Returns `count` clips, each with the largest gain of weighted coverage.

    Args:
        between: (clips, clips), distances
        nearest: (clips,), distance to the nearest labelled clip; infinite without one
        weights: (clips,)
        width: of the Gaussian kernel
    """
    kernel, covered, chosen = np.exp(-((between / width) ** 2)), np.exp(-((nearest / width) ** 2)), []
    while len(chosen) < count:
        gains = weights @ np.maximum(kernel - covered[:, None], 0)
        gains[chosen] = -1.0
        place = int(gains.argmax())
        chosen.append(place)
        covered = np.maximum(covered, kernel[place])
    return np.array(chosen, dtype=np.int64)
