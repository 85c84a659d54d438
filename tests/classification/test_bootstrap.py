"""Tests confidence intervals: weighted metrics against scikit-learn, and the coverage of the intervals."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from training.base import bootstrap
from training.classification.confidence_intervals import confidence_intervals
from training.classification.metrics import metrics_of_split, weighted_metrics

SINGLE, MULTI, NUMBERS = "single_label_classification", "multi_label_classification", "regression"


def example(problem_type: str, num_clips: int = 60, seed: int = 0):
    """Predictions and targets with ties, and for several labels a class that never occurs."""
    rng = np.random.default_rng(seed)
    if problem_type == SINGLE:
        targets = rng.integers(5, size=num_clips)
        return np.where(rng.random(num_clips) < 0.6, targets, rng.integers(6, size=num_clips)), targets
    if problem_type == NUMBERS:
        targets = rng.normal(50, 2, num_clips).astype(np.float32)
        return targets + rng.normal(0, 1, num_clips).astype(np.float32), targets
    targets = (rng.random((num_clips, 4)) < [0.5, 0.2, 0.8, 0.0]).astype(np.float32)
    return np.round(rng.random((num_clips, 4)) * 0.6 + 0.4 * targets, 1).astype(np.float32), targets


def of_scikit_learn(problem_type: str, predictions, targets, weights, thresholds=None) -> dict[str, float]:
    """The metrics as scikit-learn computes them; of classes, those that have the clips which a mean needs."""
    used = weights > 0
    if problem_type == NUMBERS:
        predictions, targets = predictions.astype(np.float64), targets.astype(np.float64)
        functions = ("mean_squared_error", "mean_absolute_error", "r2_score")
        values = [getattr(sklearn_metrics, name)(targets, predictions, sample_weight=weights) for name in functions]
        return dict(zip(("mean_squared_error", "mean_absolute_error", "r2"), values))
    if problem_type == SINGLE:
        mean = {"labels": np.unique(targets[used]), "average": "macro", "sample_weight": weights, "zero_division": 0}
        return {
            "accuracy": sklearn_metrics.accuracy_score(targets, predictions, sample_weight=weights),
            "unweighted_average_recall": sklearn_metrics.recall_score(targets, predictions, **mean),
            "macro_f1": sklearn_metrics.f1_score(targets, predictions, **mean),
        }
    given, targets = predictions > (0.5 if thresholds is None else np.asarray(thresholds)), targets > 0.5
    positive = targets[used].any(axis=0)
    both = positive & ~targets[used].all(axis=0)
    rates = {"average": "macro", "sample_weight": weights}
    f1 = sklearn_metrics.f1_score(targets, given, average=None, sample_weight=weights, zero_division=0)
    return {
        "mean_average_precision": sklearn_metrics.average_precision_score(
            targets[:, both], predictions[:, both], **rates
        ),
        "mean_auc": sklearn_metrics.roc_auc_score(targets[:, both], predictions[:, both], **rates),
        "micro_f1": sklearn_metrics.f1_score(targets, given, average="micro", sample_weight=weights),
        "macro_f1": f1[positive].mean(),
    }


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, NUMBERS])
def test_weighted_metrics_are_those_of_scikit_learn(problem_type):
    predictions, targets = example(problem_type)
    thresholds = [0.35, 0.55, 0.75, 0.5] if problem_type == MULTI else None
    weights = np.random.default_rng(1).integers(4, size=(len(targets), 3))
    weights[:, 0] = 1
    for dtype, tolerance in ((np.float32, 2e-6), (np.float64, 1e-12)):
        found = weighted_metrics(weights.astype(dtype), predictions, targets, problem_type, thresholds)
        for column, counts in enumerate(weights.T):
            expected = of_scikit_learn(problem_type, predictions, targets, counts, thresholds)
            assert set(expected) == set(found)
            for name, values in found.items():
                assert values[column] == pytest.approx(expected[name], rel=tolerance), name


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, NUMBERS])
def test_a_clip_of_weight_three_is_three_clips(problem_type):
    predictions, targets = example(problem_type)
    thresholds = [0.35, 0.55, 0.75, 0.5] if problem_type == MULTI else None
    weights = np.random.default_rng(1).integers(4, size=(len(targets), 3))
    found = weighted_metrics(weights.astype(np.float32), predictions, targets, problem_type, thresholds)
    for column, counts in enumerate(weights.T):
        repeated = (np.repeat(values, counts, axis=0) for values in (predictions, targets))
        expected = metrics_of_split(*repeated, problem_type, thresholds)
        assert set(expected) - {"d_prime"} == set(found)
        for name, values in found.items():
            assert values[column] == pytest.approx(expected[name], rel=2e-6), name


def test_labels_that_nobody_has_and_nothing_predicts_have_no_f1():
    scores, targets = np.full((4, 2), 0.1), np.zeros((4, 2))
    found = metrics_of_split(scores, targets, MULTI)
    assert found["micro_f1"] == 0.0  # as scikit-learn with zero_division=0
    assert np.isnan([found[name] for name in ("macro_f1", "mean_average_precision", "mean_auc", "d_prime")]).all()


def test_a_resample_without_positive_clips_has_no_precision():
    scores, targets = np.array([[0.9], [0.2], [0.4]]), np.array([[1.0], [0.0], [0.0]])
    weights = np.array([[0, 1, 1], [2, 0, 1], [1, 2, 1]], dtype=np.float32)
    found = weighted_metrics(weights, scores, targets, MULTI)
    assert np.isnan(found["mean_average_precision"]).tolist() == [True, False, False]
    assert found["mean_auc"][1:].tolist() == [1, 1]


def test_draws_are_the_same_numbers_as_one_by_one(monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCK_SIZE", 24)
    units = np.array([0, 2, 1, 1, 0, 3])
    rng = np.random.default_rng(5)
    expected = np.stack([np.bincount(rng.integers(4, size=4), minlength=4)[units] for _ in range(10)], axis=1)
    blocks = list(bootstrap.draw_weights(units, 10, seed=5))
    assert [block.shape for block in blocks] == [(6, 4), (6, 4), (6, 2)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """200 simulated test splits of a classifier whose accuracy is known: 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        targets = rng.integers(3, size=150)
        predictions = np.where(rng.random(150) < 0.8, targets, (targets + 1) % 3)
        lower, upper = confidence_intervals(predictions, targets, SINGLE, seed=seed)["intervals"]["accuracy"]
        covered += lower <= 0.8 <= upper
    assert 180 <= covered <= 199  # a binomial of 0.95 is in there 99.9 times of 100


@pytest.mark.slow
def test_intervals_of_groups_cover_the_truth_where_those_of_clips_do_not():
    """Clips of a speaker fall alike: 30 speakers with 10 clips each, whose difficulties differ."""
    rng = np.random.default_rng(1)
    covered = {"clips": 0, "groups": 0}
    speakers = [f"speaker {index // 10}" for index in range(300)]
    for seed in range(100):
        right = rng.random(300) < np.repeat(rng.beta(1.0, 1.0, 30), 10)
        predictions, targets = right.astype(int), np.ones(300, dtype=int)
        for unit, groups in (("clips", None), ("groups", speakers)):
            found = confidence_intervals(predictions, targets, SINGLE, groups=groups, seed=seed)
            assert found["resampled"] == unit and found["level"] == 0.95
            lower, upper = found["intervals"]["accuracy"]
            covered[unit] += lower <= 0.5 <= upper
    assert covered["groups"] >= 87 and covered["clips"] <= 80, covered


def test_r2_does_not_depend_on_the_unit():
    rng = np.random.default_rng(0)
    targets = rng.standard_normal(50)
    predictions = targets + 0.1 * rng.standard_normal(50)
    intervals = [
        confidence_intervals(scale * predictions, scale * targets, "regression")["intervals"]["r2"]
        for scale in (1.0, 1e-7)
    ]
    np.testing.assert_allclose(*intervals, rtol=1e-9)


def test_intervals_are_repeatable_and_hold_the_figure():
    for problem_type in (SINGLE, MULTI, NUMBERS):
        predictions, targets = example(problem_type)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = confidence_intervals(predictions, targets, problem_type)
        assert found == confidence_intervals(predictions, targets, problem_type)
        assert found["resamples"] == 1000 and found["resampled"] == "clips"
        figures = metrics_of_split(predictions, targets, problem_type)
        assert set(found["intervals"]) == set(figures)
        for name, (lower, upper) in found["intervals"].items():
            assert lower < figures[name] < upper, name


def test_blocks_change_nothing(monkeypatch):
    predictions, targets = example(MULTI)
    whole = confidence_intervals(predictions, targets, MULTI)
    monkeypatch.setattr(bootstrap, "BLOCK_SIZE", 60 * 7)
    assert confidence_intervals(predictions, targets, MULTI) == whole


def test_many_labels_get_fewer_resamples(monkeypatch):
    predictions, targets = example(MULTI)
    for most, expected in ((240 * 500, 500), (1, 200), (10**9, 1000)):
        monkeypatch.setattr(bootstrap, "MAX_SORTED", most)
        assert confidence_intervals(predictions, targets, MULTI)["resamples"] == expected


def test_one_clip_or_group_has_no_interval():
    assert confidence_intervals(np.array([1]), np.array([1]), SINGLE) is None
    assert confidence_intervals(np.array([1, 0]), np.array([1, 1]), SINGLE, groups=["a", "a"]) is None
