"""Measures how the features of clips spread over their directions, without labels."""

import numpy as np
from scipy import stats


def effective_rank(features: np.ndarray) -> float:
    """
    Returns the exponential of the entropy of the singular values, whose sum is set to 1 (Roy and Vetterli, EUSIPCO
    2007): from 1 to the smaller side of (clips, size). Not centred, as in RankMe (Garrido et al., ICML 2023).
    """
    values = np.sqrt(np.clip(np.linalg.eigvalsh(_gram(features)), 0, None))  # faster than a decomposition of features
    return float(np.exp(stats.entropy(values))) if values.any() else np.nan


def iso_score(features: np.ndarray) -> float:
    """
    Returns IsoScore (Rudman et al., Findings of ACL 2022): 1 where the variance is the same in all directions, 0 where
    it lies in a single one; about clips / size where there are fewer clips than numbers in a vector. Cosines and
    partition functions, which others take for isotropy, depend on the mean of the features.

    It is (r - 1) / (size - 1), where r is the squared sum of the variances, divided by the sum of their squares.
    """
    gram, size = _gram(features - features.mean(axis=0)), features.shape[1]
    squares = (gram**2).sum()
    return float((np.trace(gram) ** 2 / squares - 1) / (size - 1)) if squares > 0 and size > 1 else np.nan


def _gram(features: np.ndarray) -> np.ndarray:
    """Returns the products of all pairs of rows, or of columns where these are fewer; scaled: none overflows."""
    scaled = features / (np.abs(features).max() or 1)
    return scaled @ scaled.T if len(scaled) < scaled.shape[1] else scaled.T @ scaled
