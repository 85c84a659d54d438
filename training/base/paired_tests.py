"""
Tests whether two models differ: by permutations of what both did on the same clips, or over the folds of a
cross-validation. `holm` corrects for the number of comparisons.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

ALPHA = 0.05  # a corrected p-value from here on: not told apart
NUM_PERMUTATIONS = 9999
NOT_TOLD_APART = "not told apart"


def permutation_p(
    difference: Callable[[np.ndarray], np.ndarray],
    num_units: int,
    num_permutations: int = NUM_PERMUTATIONS,
    batch: int = 1000,
    seed: int = 0,
) -> float:
    """
    Returns the two-sided p-value of a paired permutation test: in each permutation the two models exchange what they
    did on half of the clips, drawn at random. All permutations are taken where there are no more than
    `num_permutations`. Otherwise p is at least 2 / (`num_permutations` + 1).

    Args:
        difference: exchanged (units, permutations), boolean -> difference of the metric (permutations,)
        num_units: clips, or groups of clips, on which the models differ
        batch: permutations at once
    """
    if num_units < 2:  # one exchange gives the opposite difference, which is as large
        return 1.0
    own = np.arange(num_units)

    def statistic(first, second, axis):
        exchanged = first >= num_units  # (..., units): the last axis, whatever `axis` is asked for
        return difference(exchanged.reshape(-1, num_units).T).reshape(first.shape[:-1])

    found = stats.permutation_test(
        (own, own + num_units),  # whose prediction of which unit
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_permutations,
        batch=batch,
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def corrected_error(values: np.ndarray, test_share: float) -> np.ndarray:
    """
    Returns the standard error of a mean over folds: (..., folds of all repeats) -> (...). The folds share training
    clips, so that the error of independent values is too small (Nadeau and Bengio, Machine Learning 52, 2003).

    Args:
        test_share: held-out clips of a fold for each training clip
    """
    return np.sqrt((1 / values.shape[-1] + test_share) * values.var(axis=-1, ddof=1))


def corrected_t_p(differences: np.ndarray, test_share: float) -> np.ndarray:
    """
    Returns the two-sided p-values of the corrected resampled t-test (Nadeau and Bengio): (..., folds) -> (...)

    Args:
        differences: of the scores of two models on each fold; NaN gives NaN
        test_share: as for `corrected_error`
    """
    mean, error = differences.mean(axis=-1), corrected_error(differences, test_share)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = 2 * stats.t.sf(np.abs(mean) / error, differences.shape[-1] - 1)
    return np.where(mean == 0, 1.0, p_values)  # 0 / 0 where both are the same


def holm(p_values: np.ndarray) -> np.ndarray:
    """Returns p-values corrected for their number (Holm, 1979): (comparisons,)"""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)
    return corrected
