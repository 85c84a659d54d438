"""Tests the metrics, through the library `evaluate`, against figures calculated by hand."""

import evaluate
import numpy as np
import pytest
from audio_files import ROOT

METRICS = str(ROOT / "training" / "classification" / "audio_classification.py")


def compute(configuration, predictions, references):
    return evaluate.load(METRICS, configuration).compute(predictions=predictions, references=references)


def test_one_label_per_clip():
    metrics = compute("single_label_classification", [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 1])
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["unweighted_average_recall"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 4 / 5) / 3)


def test_recall_is_averaged_over_the_classes_that_occur():
    metrics = compute("single_label_classification", [0, 5, 1, 1], [0, 0, 1, 1])
    assert metrics["unweighted_average_recall"] == pytest.approx((1 / 2 + 1) / 2)


def test_several_labels_per_clip():
    scores = [[0.9, 0.1, 0.5], [0.8, 0.7, 0.5], [0.3, 0.6, 0.5]]
    targets = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]  # the third class never occurs and does not count
    metrics = compute("multi_label_classification", scores, targets)
    assert metrics["mean_average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert metrics["mean_auc"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["d_prime"] == pytest.approx(np.sqrt(2) * 0.6744898, rel=1e-6)  # the upper quartile of a normal
    assert metrics["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))  # the third class is never given at exactly one half
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 1) / 2)
    assert np.isnan(compute("multi_label_classification", scores[:1], [[1, 0, 0]])["mean_auc"])


def test_thresholds_decide_on_labels_and_nothing_else():
    scores, targets = [[0.2, 0.9], [0.1, 0.7], [0.05, 0.8]], [[1, 0], [0, 0], [0, 1]]
    half = compute("multi_label_classification", scores, targets)
    metrics = evaluate.load(METRICS, "multi_label_classification").compute(
        predictions=scores, references=targets, thresholds=[0.15, 0.75]
    )
    assert (half["micro_f1"], half["macro_f1"]) == pytest.approx((2 / 5, (0 + 1 / 2) / 2))
    assert (metrics["micro_f1"], metrics["macro_f1"]) == pytest.approx((4 / 5, (1 + 2 / 3) / 2))
    for name in ("mean_average_precision", "mean_auc", "d_prime"):
        assert metrics[name] == half[name]


def test_perfect_ranking_is_infinitely_far():
    metrics = compute("multi_label_classification", [[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]])
    assert metrics["mean_auc"] == 1 and metrics["d_prime"] == np.inf


def test_numbers():
    metrics = compute("regression", [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert metrics["mean_squared_error"] == pytest.approx(5 / 3)
    assert metrics["mean_absolute_error"] == pytest.approx(1)
    assert metrics["r2"] == pytest.approx(1 - 5 / 2)


def test_an_unknown_configuration_is_told():
    with pytest.raises(ValueError, match="configuration must be one of single_label_classification"):
        evaluate.load(METRICS, "foo")
