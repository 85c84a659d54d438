"""Tests what loads checkpoints: it checks a name before it asks the Hub, and takes folders in float16 as float32."""

import json

import pytest
import torch
from tiny_models import TINY, save_tiny_classifier

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
)
from training.base import inference, loading
from training.base.arguments import EncoderArguments, ModelArguments
from training.data.labels import LabelSet
from training.errors import InputError
from training.pretraining.mspm import MspmTrainer
from training.pretraining.train import load_model as load_pretraining_model


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("model.pth", "model.pth is an original checkpoint; convert it with python -m conversion FAMILY model.pth OUT"),
        ("./runs/mien", r"./runs/mien does not exist; did you mean runs/mine\?"),
        ("runs/mien", r"runs/mien does not exist; did you mean runs/mine\?"),
        ("run", r"run does not exist; did you mean runs\?"),
        ("/nowhere/at/all", "does not exist; python -m conversion turns published checkpoints into folders"),
    ],
)
def test_a_mistyped_checkpoint_is_answered_at_once(name, pattern, tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=pattern):
        loading.check_checkpoint(name)
    for name in ("runs/mine", "user/model"):  # a folder; and what only the Hub can answer
        loading.check_checkpoint(name)
    with pytest.raises(InputError, match="runs/mine is a local folder and has no revision v2; leave it out"):
        loading.check_checkpoint("runs/mine", revision="v2")


def test_a_folder_of_clips_is_no_model(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: has no config.json, so it is no model; python -m conversion"):
        inference.check_folder(str(tmp_path))


def test_random_weights_are_counted(monkeypatch):
    messages = []
    monkeypatch.setattr(loading.logger, "warning", messages.append)
    loading.warn_of_random_weights(torch.nn.Linear(1000, 1000))
    assert len(messages) == 1 and messages[0].startswith("Training 1,001,000 random weights: model_name_or_path can")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A classifier in a folder in float16, as `python -m training.export --format safetensors-fp16` writes it."""
    folder = save_tiny_classifier(tmp_path_factory.mktemp("half") / "model")
    DualSSASTForAudioClassification.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    return folder


def are_float32(model) -> bool:
    return {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_folder_in_float16_is_fine_tuned_in_float32(half):
    """A step of a rate of 1e-4 would be lost in float16, which has eleven bits, and autocast refuses such weights."""
    arguments = ModelArguments(model_name_or_path=str(half))
    config = loading.load_config(arguments)
    labels = LabelSet(("high", "low", "mid"), "single_label_classification")
    model = loading.load_model(arguments, config, labels)
    assert are_float32(model) and model.config.dtype == torch.float32


def test_a_folder_in_float16_is_pretrained_in_float32(tmp_path):
    config = DualSSASTConfig(**TINY)
    DualSSASTForPreTraining(config).half().save_pretrained(tmp_path)
    extractor = DualSSASTFeatureExtractor(max_length=config.max_length)
    arguments = EncoderArguments(model_name_or_path=str(tmp_path))
    stored = DualSSASTConfig.from_pretrained(tmp_path)
    assert are_float32(load_pretraining_model(MspmTrainer, arguments, stored, extractor))


def test_a_folder_in_float16_is_read_in_float32(half):
    """A program then chooses the number format of its computation."""
    assert are_float32(inference.load_classifier(str(half))[0]) and are_float32(inference.load_encoder(str(half)))
