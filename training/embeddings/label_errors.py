"""
Finds labels that are probably wrong by confident learning (Northcutt, Jiang and Chuang, Journal of Artificial
Intelligence Research 70, 2021, arXiv 1911.00068), written from the paper.
"""

from typing import NamedTuple

import numpy as np

from .known_labels import KnownLabels
from .linear import probabilities, scaled

NUM_FOLDS, NUM_REPEATS = 10, 3


class Judged(NamedTuple):
    """
    Holds what the other clips say about labels; NaN, `False` and -1 where a label cannot be judged. Arrays of (clips,),
    or of (clips, labels) where clips may have several labels.

    Args:
        quality: the probability of the label, from classifiers that were fitted without the clip
        suspected: whether the label is probably wrong
        proposed: the class that the others propose, which may be the label
    """

    quality: np.ndarray
    suspected: np.ndarray
    proposed: np.ndarray


def draw_folds(classes: np.ndarray, num_folds: int, rng: np.random.Generator) -> np.ndarray:
    """
    Divides clips at random into folds that hold as many clips of each class as possible: (clips,), the fold of each.
    A class of two clips or more lies in two folds or more, so that none of its clips is alone with its class.
    """
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    folds = np.empty(len(classes), dtype=np.int64)
    folds[order] = np.arange(len(classes)) % num_folds
    return folds


def held_out_probabilities(
    features: np.ndarray, classes: np.ndarray, num_classes: int, num_folds: int, num_repeats: int, seed: int
) -> np.ndarray:
    """
    Returns the probabilities (clips, classes) that classifiers fitted without a clip's fold give to the clip, the mean
    over several divisions.
    """
    rng, found = np.random.default_rng(seed), np.zeros((len(classes), num_classes))
    for _ in range(num_repeats):
        folds = draw_folds(classes, num_folds, rng)
        for fold in np.unique(folds):
            held, kept = folds == fold, folds != fold
            found[held] += probabilities(features[kept], classes[kept], features[held], num_classes)
    return found / num_repeats


def confident_learning(held_out: np.ndarray, classes: np.ndarray) -> Judged:
    """
    Judges labels by held-out probabilities (clips, classes).

    The threshold of a class is the mean probability that it has among the clips labelled with it. A label is suspected
    if another class reaches its own threshold, and is the most probable one of those that do (off the diagonal of the
    paper's confident joint).
    """
    places = np.arange(len(classes))
    quality = held_out[places, classes]
    counts = np.bincount(classes, minlength=held_out.shape[1])
    thresholds = np.bincount(classes, quality, minlength=held_out.shape[1]) / np.maximum(counts, 1)
    is_above = (held_out >= thresholds) & (counts > 0)
    confident = np.where(is_above, held_out, -1.0).argmax(axis=1)
    suspected = is_above.any(axis=1) & (confident != classes)
    return Judged(quality, suspected, np.where(suspected, confident, held_out.argmax(axis=1)))


def judge(features: np.ndarray, classes: np.ndarray, num_folds: int, num_repeats: int, seed: int) -> Judged:
    """Judges the classes (clips,) of features (clips, size). A class with a single clip is not judged."""
    names, own, counts = np.unique(classes, return_inverse=True, return_counts=True)
    judged = Judged(np.full(len(own), np.nan), np.zeros(len(own), dtype=bool), np.full(len(own), -1))
    is_known = counts[own] > 1
    if (counts > 1).sum() < 2:
        return judged
    kept, renumbered = np.flatnonzero(counts > 1), np.cumsum(counts > 1) - 1
    inner = renumbered[own[is_known]]
    held_out = held_out_probabilities(features[is_known], inner, len(kept), num_folds, num_repeats, seed)
    found = confident_learning(held_out, inner)
    judged.quality[is_known], judged.suspected[is_known] = found.quality, found.suspected
    judged.proposed[is_known] = names[kept[found.proposed]]
    return judged


def find_label_errors(
    vectors: np.ndarray, known: KnownLabels, num_folds: int = NUM_FOLDS, num_repeats: int = NUM_REPEATS, seed: int = 0
) -> Judged:
    """
    Judges the labels of clips; of clips with several labels each label by itself, present (1) or absent (0).

    Args:
        vectors: (clips, size), the embeddings of the labelled clips
    """
    features = scaled(vectors)
    if not known.labels.is_multi:
        return judge(features, known.targets, num_folds, num_repeats, seed)
    columns = [judge(features, own, num_folds, num_repeats, seed) for own in known.targets.T]
    return Judged(*(np.stack(parts, axis=1) for parts in zip(*columns)))
