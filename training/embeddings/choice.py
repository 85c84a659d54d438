"""
Chooses among the candidates of a sweep, and says what the choice is worth.

The score of the best of many candidates flatters: it is the best by chance too. Nested cross-validation (Stone, 1974;
Cawley and Talbot, JMLR 11, 2010) repeats the whole choice without the clips of a fold, and then scores what was chosen
on them. The rule of one standard error (Breiman et al., 1984) takes the simplest candidate that is about as good as the
best.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from ..base.bootstrap import LEVEL
from ..base.paired_tests import ALPHA, NOT_TOLD_APART, corrected_error, corrected_t_p, holm
from ..base.ridge import FoldScores, best_of, mean_of
from .arguments import CHOICES

BEST, SIMPLEST = CHOICES
WORSE = "worse"


def choose(rule: str, scores: np.ndarray, order: Sequence[int], test_share: float) -> tuple[int, int]:
    """
    Returns the indices of a candidate and a penalty.

    Args:
        rule: `best` takes the highest mean over the folds, the first of equal ones. `one_standard_error` takes the
            first in `order` whose mean difference from the best is at most one standard error of that difference
        scores: (candidates, penalties, folds)
        order: the candidates, the simplest first
        test_share: held-out clips of a fold for each training clip
    """
    means = mean_of(scores)
    penalties, rows = best_of(means), np.arange(len(scores))
    best = int(best_of(means[rows, penalties]))
    if rule == SIMPLEST:
        differences = scores[best, penalties[best]] - scores[rows, penalties]
        is_near = differences.mean(axis=1) <= corrected_error(differences, test_share)
        best = next((index for index in order if is_near[index]), best)
    return best, int(penalties[best])


def nested_scores(rule: str, found: FoldScores, order: Sequence[int]) -> np.ndarray:
    """Returns per fold the score of what is chosen without its held-out clips, as `choose` chooses: (folds,)"""
    chosen = [choose(rule, inner, order, share) for inner, share in zip(found.inner, found.inner_shares)]
    return np.array([found.scores[candidate, penalty, fold] for fold, (candidate, penalty) in enumerate(chosen)])


def share_of_tests(folds: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the number of held-out clips for each training clip, the mean over the folds."""
    return float(np.mean([len(test) / len(training) for training, test in folds]))


def half_interval(scores: np.ndarray, test_share: float) -> np.ndarray:
    """
    Returns half the width of the interval of a mean score: (..., folds) -> (...). The folds share training clips, for
    which Nadeau and Bengio correct the standard error. NaN where all folds have the same score.
    """
    quantile = stats.t.ppf((1 + LEVEL) / 2, scores.shape[-1] - 1)
    return np.where(_is_same_in_all(scores), np.nan, quantile * corrected_error(scores, test_share))


def _is_same_in_all(values: np.ndarray) -> np.ndarray:
    """
    Returns whether all folds have the same value: (..., folds) -> (...). A few folds of few clips can have it by
    chance. An error of 0 estimated from them would make every difference certain.
    """
    return np.ptp(values.round(12), axis=-1) == 0


def compare_with(reference: np.ndarray, folds: np.ndarray, test_share: float) -> dict[str, np.ndarray]:
    """
    Compares candidates with another one, over the folds.

    Args:
        reference: (folds,) or (candidates, folds)
        folds: (candidates, folds)

    Returns:
        columns of a table, (candidates,) each: `difference` of the mean scores, `p` of the corrected resampled t-test
        (1 where all folds have the same difference, which leaves nothing to test with), and `p_holm`, corrected for the
        number of candidates; NaN where a score is NaN
    """
    differences = folds - reference
    p_values = np.where(_is_same_in_all(differences), 1.0, corrected_t_p(differences, test_share))
    corrected, known = np.full(len(folds), np.nan), ~np.isnan(p_values)
    corrected[known] = holm(p_values[known])
    return {"difference": differences.mean(axis=1), "p": p_values, "p_holm": corrected}


def verdicts(p_holm: np.ndarray, if_apart: Sequence[str]) -> list[str]:
    """Returns `NOT_TOLD_APART`, or what a difference means: (candidates,); empty where p is NaN."""
    return [
        "" if np.isnan(value) else text if value < ALPHA else NOT_TOLD_APART for value, text in zip(p_holm, if_apart)
    ]
