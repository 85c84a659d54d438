"""Tests classification/losses.py: against torch's losses and the paper's formula; evaluations keep the plain loss."""

import json

import numpy as np
import pandas
import pytest
import torch
from audio_files import write_tone
from torch import nn
from transformers import AutoModelForAudioClassification

from training import tasks
from training.classification import train as classification
from training.classification.arguments import TuningArguments
from training.classification.losses import TrainingLoss, training_loss
from training.data.labels import LabelSet
from training.errors import InputError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


@pytest.fixture
def logits():
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 3


CLASSES = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
SEVERAL = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]] * 2).float()
MIXED = 0.3 * nn.functional.one_hot(CLASSES, 3) + 0.7 * nn.functional.one_hot(CLASSES.flip(0), 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [CLASSES, MIXED], ids=["hard", "soft"])
def test_cross_entropy_is_torchs(logits, labels, smoothing):
    plain = TrainingLoss(SINGLE, smoothing, None, 0.0)(logits, labels)
    torch.testing.assert_close(plain, nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing))
    weighted = TrainingLoss(SINGLE, smoothing, WEIGHTS, 0.0)(logits, labels)
    expected = nn.functional.cross_entropy(logits, labels, WEIGHTS, label_smoothing=smoothing, reduction="none").mean()
    torch.testing.assert_close(weighted, expected)


def test_a_batch_is_the_mean_of_its_halves(logits):
    """Not so torch's own mean, which divides by the weights of the batch."""
    loss = TrainingLoss(SINGLE, 0.0, WEIGHTS, 2.0)
    halves = [loss(part, classes) for part, classes in zip(logits.chunk(2), CLASSES.chunk(2))]
    torch.testing.assert_close(loss(logits, CLASSES), torch.stack(halves).mean())


def test_several_labels_are_torchs(logits):
    expected = nn.functional.binary_cross_entropy_with_logits(logits, SEVERAL, pos_weight=WEIGHTS)
    torch.testing.assert_close(TrainingLoss(MULTI, 0.0, WEIGHTS, 0.0)(logits, SEVERAL), expected)


@pytest.mark.parametrize("labels", [CLASSES, MIXED], ids=["hard", "soft"])
def test_one_of_several_classes_as_binary_problems(logits, labels):
    targets = labels if labels.ndim == 2 else nn.functional.one_hot(labels, 3).float()
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(TrainingLoss(SINGLE, 0.0, None, 0.0, is_binary=True)(logits, labels), expected)
    weighted = TrainingLoss(SINGLE, 0.0, WEIGHTS, 0.0, is_binary=True)(logits, labels)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=WEIGHTS)
    torch.testing.assert_close(weighted, expected)
    names = LabelSet(("a", "b", "c"), SINGLE)
    assert training_loss(TuningArguments(loss="binary_cross_entropy"), names, None, 0.0).is_binary


def test_focal_loss_is_the_papers(logits):
    """FL(p) = -(1 - p) ** gamma log(p), p of the truth (Lin et al., equation 4); one binary problem per label."""
    p = logits.softmax(dim=1)[torch.arange(8), CLASSES]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(TrainingLoss(SINGLE, 0.0, None, 2.0)(logits, CLASSES), expected)
    p = torch.where(SEVERAL.bool(), logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-((1 - p) ** 0.5) * p.log()).mean()
    torch.testing.assert_close(TrainingLoss(MULTI, 0.0, None, 0.5)(logits, SEVERAL), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_soft_labels_are_mixtures_of_hard_ones(logits, gamma):
    loss = TrainingLoss(SINGLE, 0.0, WEIGHTS, gamma)
    expected = 0.3 * loss(logits, CLASSES) + 0.7 * loss(logits, CLASSES.flip(0))
    torch.testing.assert_close(loss(logits, MIXED), expected)
    loss = TrainingLoss(MULTI, 0.0, WEIGHTS, gamma)
    expected = 0.3 * loss(logits, SEVERAL) + 0.7 * loss(logits, SEVERAL.flip(0))
    torch.testing.assert_close(loss(logits, 0.3 * SEVERAL + 0.7 * SEVERAL.flip(0)), expected)


@pytest.mark.parametrize(("problem_type", "labels"), [(SINGLE, CLASSES), (MULTI, SEVERAL)])
def test_what_is_certain_has_a_gradient(problem_type, labels):
    for factor in (1.0, -1.0):
        sure = factor * 200 * (nn.functional.one_hot(CLASSES, 3).float() if labels.ndim == 1 else 2 * SEVERAL - 1)
        sure.requires_grad_()
        loss = TrainingLoss(problem_type, 0.0, None, 0.5)(sure, labels)
        loss.backward()
        assert loss.isfinite() and sure.grad.isfinite().all()


@pytest.mark.parametrize("settings", [{"loss": "focal"}, {"class_weights": "balanced"}])
def test_a_regression_has_no_classes(settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))}: .* needs classes"):
        training_loss(TuningArguments(**settings), LabelSet(("value",), "regression"), None, 0.0)
    assert training_loss(TuningArguments(), LabelSet(("value",), "regression"), None, 0.0) is None


@pytest.mark.parametrize(
    "settings", [{"class_weights": "some"}, {"loss": "hinge"}, {"sampler": "often"}, {"focal_gamma": -1.0}]
)
def test_impossible_settings_are_told(settings):
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: must be"):
        TuningArguments(**settings)


def train(folder, name: str, **values):
    """A tiny model on 20 low tones and 6 high ones; returns results.json and the output folder."""
    for index in range(26):
        path = folder / "clips" / ("low" if index < 20 else "high") / f"{index}.wav"
        if not path.exists():
            write_tone(path, seconds=0.2, hz=300 if index < 20 else 900, seed=index)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    recipe = {
        "dataset_name": str(folder / "clips"), "config_overrides": sizes, "max_length": 32, "mean": -6.0, "std": 4.0,
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "disable_tqdm": True,
        "validation_fraction": 0.2, "test_fraction": 0.2, "html_report": False, "output_dir": str(folder / name),
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(recipe | values))
    classification.run(*tasks.parse([str(folder / "recipe.json")])[1:])
    return json.loads((folder / name / "results.json").read_text()), folder / name


def test_the_loss_of_the_training_is_another_one_and_that_of_evaluations_is_not(tmp_path):
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "num_train_epochs": 1, "gradient_accumulation_steps": 2}
    logs = {}
    for name, values in {
        "plain": {},
        "focal": {"loss": "focal", "focal_gamma": 3.0},
        "balanced": {"class_weights": "balanced"},
    }.items():
        log = train(tmp_path, name, **still, **values)[0]["log"]
        losses = [[entry[key] for entry in log if key in entry] for key in ("loss", "eval_loss")]
        logs[name] = [values[-1] for values in losses]
    assert logs["plain"][1] == logs["focal"][1] == logs["balanced"][1]
    # A model of random weights gives each class one half: (1 - 1/2) ** 3 of the cross-entropy.
    assert logs["focal"][0] == pytest.approx(logs["plain"][0] / 8, rel=0.1)
    assert logs["plain"][0] == pytest.approx(np.log(2), rel=0.1)
    assert logs["balanced"][0] != logs["plain"][0]


@pytest.mark.parametrize("labels", ["label", "labels"])
def test_all_of_it_together_with_mixup_and_smoothing(tmp_path, labels):
    """Trains with one label and with several per clip; the test loss is the plain one of the predictions."""
    values = {"loss": "focal", "class_weights": "balanced", "sampler": "balanced", "mixup_rate": 0.5}
    values |= {"train_sampling_strategy": "group_by_length", "label_smoothing": 0.1}
    if labels == "labels":
        rows = [(f"{index}.wav", "low" if index % 3 else "low;high" if index % 2 else "high") for index in range(26)]
        for name, _ in rows:
            write_tone(tmp_path / name, seconds=0.2, seed=len(name))
        table = pandas.DataFrame(rows, columns=["file_name", "labels"])
        table.to_csv(tmp_path / "clips.csv", index=False)
        values |= {"dataset_name": None, "train_file": str(tmp_path / "clips.csv"), "label_separator": ";"}
    results, output = train(tmp_path, "run", **values)
    assert results["problem_type"] == (MULTI if labels == "labels" else SINGLE)
    assert results["recipe"]["TuningArguments"]["loss"] == "focal"
    assert all("padded_share" in entry for entry in results["log"] if "loss" in entry)
    if labels == "label":
        table = pandas.read_csv(output / "predictions.csv")
        model = AutoModelForAudioClassification.from_pretrained(output)
        names = [model.config.id2label[index] for index in range(2)]
        logits = torch.tensor(table[[f"probability_{name}" for name in names]].to_numpy()).log()
        targets = torch.tensor([names.index(label) for label in table["label"]])
        plain = nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
        assert results["metrics"]["test"]["loss"] == pytest.approx(float(plain), abs=1e-4)
