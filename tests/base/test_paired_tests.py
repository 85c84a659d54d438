"""Tests the paired tests against SciPy, against permutations by hand, and by how often they err."""

import itertools

import numpy as np
import pytest
from scipy import stats

from training.base.paired_tests import corrected_t_p, holm, permutation_p


def mean_difference(first: np.ndarray, second: np.ndarray):
    """The function that `permutation_p` takes, for the mean of values per unit."""

    def difference(exchanged):
        return np.where(exchanged, (second - first)[:, None], (first - second)[:, None]).mean(axis=0)

    return difference


@pytest.mark.parametrize("num_units", [1, 3, 7])
def test_few_units_are_permuted_by_hand(num_units):
    first, second = np.random.default_rng(num_units).normal([[0.5], [0.0]], 1, (2, num_units))
    own, found = (first - second).mean(), []
    for signs in itertools.product((1, -1), repeat=num_units):
        found.append((np.array(signs) * (first - second)).mean())
    share = (np.abs(found) >= abs(own) - 1e-12).mean()
    assert permutation_p(mean_difference(first, second), num_units) == pytest.approx(share)
    assert permutation_p(mean_difference(second, first), num_units) == pytest.approx(share)


def test_many_units_are_those_of_scipy():
    first, second = np.random.default_rng(0).normal([[0.2], [0.0]], 1, (2, 60))
    expected = stats.permutation_test(
        (first, second), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=9999
    ).pvalue
    found = [
        permutation_p(mean_difference(first, second), 60, batch=batch, seed=seed) for seed, batch in ((0, 7), (1, 9999))
    ]
    assert found == pytest.approx([expected] * 2, abs=4 * 0.5 / 9999**0.5)


def test_models_that_do_the_same_have_a_p_value_of_one():
    assert permutation_p(lambda exchanged: pytest.fail("was asked"), 0) == 1.0
    assert corrected_t_p(np.zeros((2, 5)), 0.25).tolist() == [1.0, 1.0]


def test_holm_by_hand():
    """Of 0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which must not fall below 0.06."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.2])) == pytest.approx([0.2])


def test_the_corrected_t_test_is_the_usual_one_without_overlap():
    differences = np.random.default_rng(0).normal(0.3, 1, (6, 10))
    assert corrected_t_p(differences, 0) == pytest.approx(stats.ttest_1samp(differences, 0, axis=1).pvalue)
    t = differences[0].mean() / np.sqrt((1 / 10 + 1 / 4) * differences[0].var(ddof=1))
    assert corrected_t_p(differences, 0.25)[0] == pytest.approx(2 * stats.t.sf(abs(t), 9))
    always = np.full((1, 5), 0.1)  # the same difference in every fold
    assert corrected_t_p(always, 0.25) == pytest.approx([0], abs=1e-9)
    assert np.isnan(corrected_t_p(np.array([[0.1, np.nan, 0.2]]), 0.25)).all()
