"""Tests that a calibration stays with the classifier it was chosen for, and that a new classifier has none."""

import pytest
import torch
from tiny_models import make_three_blocks, save_tiny_classifier, save_tiny_cnn
from transformers import AutoModelForAudioClassification

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTForAudioClassification,
    DualSSASTForAudioFrameClassification,
    PannsCnn14ForAudioClassification,
)

STORED = {
    "problem_type": "multi_label_classification",
    "calibration_temperature": 5.0,
    "decision_thresholds": [0.01, 0.99],
    "event_detection": {"high": 0.7},
}
LABELS = ("dog", "cat")
loaders = pytest.mark.parametrize("loader", [DualSSASTForAudioClassification, AutoModelForAudioClassification])


def calibration(config):
    return config.calibration_temperature, config.decision_thresholds, config.event_detection


KEPT, NONE = (5.0, [0.01, 0.99], {"high": 0.7}), (1.0, None, None)


@pytest.mark.parametrize(
    "id2label, expected",
    [
        ({1: "dog", 0: "cat"}, NONE),
        ({1: "cat", 0: "dog"}, KEPT),
        ({"1": "cat", "0": "dog"}, KEPT),
        ({0: "dog", 1: "owl"}, NONE),
    ],
)
def test_labels_are_compared_by_their_index(id2label, expected):
    stored = DualSSASTConfig(**STORED, id2label=dict(enumerate(LABELS))).to_dict()
    assert calibration(DualSSASTConfig.from_dict(stored, id2label=id2label)) == expected


@loaders
@pytest.mark.parametrize(
    "settings, overrides",
    [
        ({"readout": "frames"}, {"frequency_stride": 8}),
        ({}, {"fusion": "sum", "ignore_mismatched_sizes": True}),
        ({}, {"classifier": "prototypes"}),
        ({}, {"classifier_hidden_sizes": [4], "ignore_mismatched_sizes": True}),
    ],
)
def test_a_new_classifier_is_not_calibrated(tmp_path, loader, settings, overrides):
    save_tiny_classifier(tmp_path, LABELS, **STORED, **settings)
    assert calibration(loader.from_pretrained(tmp_path).config) == KEPT
    assert calibration(loader.from_pretrained(tmp_path, max_length=32).config) == KEPT  # a classifier of the same size
    assert calibration(loader.from_pretrained(tmp_path, **overrides).config) == NONE


@loaders
def test_what_is_given_for_a_new_classifier_stays(tmp_path, loader):
    save_tiny_classifier(tmp_path, LABELS, **STORED)
    new = {"classifier": "prototypes", "decision_thresholds": [0.2, 0.3]}
    assert calibration(loader.from_pretrained(tmp_path, **new).config) == (1.0, [0.2, 0.3], None)


@pytest.mark.parametrize("family", ["panns_cnn14", "vggish"])
def test_a_new_classifier_of_a_convolutional_network_is_not_calibrated(tmp_path, family):
    save_tiny_cnn(tmp_path, family, **STORED, **({"readout": "panns"} if family == "panns_cnn14" else {}))
    change = {"readout": "composed"} if family == "panns_cnn14" else {"classifier": "prototypes"}
    assert calibration(AutoModelForAudioClassification.from_pretrained(tmp_path).config) == KEPT
    assert calibration(AutoModelForAudioClassification.from_pretrained(tmp_path, **change).config) == NONE
    if family == "panns_cnn14":
        assert calibration(PannsCnn14ForAudioClassification.from_pretrained(tmp_path, **change).config) == NONE


def test_a_given_configuration_with_other_labels_is_not_calibrated(tmp_path):
    save_tiny_classifier(tmp_path, LABELS, **STORED)
    config = DualSSASTConfig.from_pretrained(tmp_path)
    load = DualSSASTForAudioClassification.from_pretrained
    assert calibration(load(tmp_path, config=config).config) == KEPT
    config.id2label = {0: "owl", 1: "cat"}
    assert calibration(load(tmp_path, config=config).config) == NONE and calibration(config) == KEPT
    config.calibration_temperature = 2.0  # another value than the folder's is the caller's own
    assert calibration(load(tmp_path, config=config).config) == (2.0, None, None)


@pytest.mark.parametrize("model_class", [DualSSASTForAudioClassification, DualSSASTForAudioFrameClassification])
def test_resetting_the_classifier_resets_its_calibration(model_class):
    model = make_three_blocks(model_class, **{**STORED, "num_labels": 2})
    old = model.classifier.dense.weight.clone()
    model.reset_classifier()
    assert calibration(model.config) == NONE and not torch.equal(old, model.classifier.dense.weight)
