"""Scales embeddings, and fits logistic regressions that give the probabilities of labels from few labelled clips."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

MEAN_SQUARE = 100.0  # of the norms: with it, one penalty suits embeddings of every size
PENALTY = 10.0  # the inverse of scikit-learn's C
MOST_STEPS = 500


def scaled(vectors: np.ndarray) -> np.ndarray:
    """
    Returns standardised embeddings whose squared norms are 100 on average: (clips, at most as many numbers as clips).

    Vectors of more numbers than there are clips are turned onto their principal axes, which changes no distance.
    """
    features = StandardScaler().fit_transform(np.asarray(vectors, dtype=np.float64))
    if features.shape[1] > len(features):
        left, sizes, _ = np.linalg.svd(features, full_matrices=False)
        features = left * sizes
    mean_square = (features**2).sum(axis=1).mean()
    return (features * np.sqrt(MEAN_SQUARE / mean_square) if mean_square > 0 else features).astype(np.float32)


def probabilities(features: np.ndarray, targets: np.ndarray, wanted: np.ndarray, num_classes: int) -> np.ndarray:
    """
    Fits a logistic regression, and returns the probabilities of classes for other clips: (wanted clips, classes), 0 for
    a class without a clip.

    Args:
        features: (clips, size), of `scaled`
        targets: (clips,) class numbers
        wanted: (wanted clips, size)
    """
    found = np.zeros((len(wanted), num_classes))
    present = np.unique(targets)
    if len(present) < 2:
        found[:, present] = 1.0
        return found
    model = LogisticRegression(C=1 / PENALTY, max_iter=MOST_STEPS).fit(features, targets)
    found[:, model.classes_] = model.predict_proba(wanted)
    return found
