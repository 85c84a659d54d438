"""Tests features_on_device in train_hf.py: the same run as with features of the workers."""

import json
import shutil

import numpy as np
import pytest
from audio_files import launch, write_class_folders
from tiny_runs import TINY, train, write_recipe

import train_hf
from modeling_dual_ssast import DualSSASTFeatureExtractor
from training.data.feature_plans import PlannedBatch

ON_DEVICE = ["--features_on_device", "true"]
AUGMENTED = {
    "mixup_rate": 0.5, "mixup_domain": "spectrogram", "gain_db": 6.0, "noise": True, "frequency_mask_bins": 16,
    "time_mask_frames": 8, "time_shift_frames": 4, "random_resized_crop": True, "compute_statistics": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 0.25 to 0.4 s: the tiny model takes 0.33 s, and longer ones are evaluated in windows."""
    return write_class_folders(tmp_path_factory.mktemp("clips"), 9, seconds=0.25)


@pytest.fixture
def recipe(tmp_path, clips):
    settings = TINY | {"dataset_name": clips, "html_report": False, "logging_strategy": "steps", "logging_steps": 1}
    return lambda **values: write_recipe(tmp_path, settings | values)[0]


@pytest.fixture
def made_on_device(monkeypatch):
    """
    Counts the batches whose features are made on the device. Log-mels are computed clip by clip there, too: matrix
    products of other sizes may be rounded otherwise, and all else is the same arithmetic.
    """
    batches, make, together = [], PlannedBatch.make, DualSSASTFeatureExtractor.normalized_log_mel

    def count(self, extractor):
        batches.append(len(self.plans))
        return make(self, extractor)

    monkeypatch.setattr(PlannedBatch, "make", count)
    monkeypatch.setattr(
        DualSSASTFeatureExtractor,
        "normalized_log_mel",
        lambda self, clips, most: [together(self, [clip], most)[0] for clip in clips],
    )
    return batches


def outputs(folder) -> tuple:
    """Returns the losses, the weights and the predictions of a run."""
    results = json.loads((folder / "results.json").read_text())
    losses = [
        [entry.get(name) for name in ("loss", "grad_norm", "eval_loss", "total_flos")] for entry in results["log"]
    ]
    return losses, (folder / "model.safetensors").read_bytes(), (folder / "predictions.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        AUGMENTED,
        {"train_sampling_strategy": "token_budget", "tokens_per_batch": 130, "dataloader_num_workers": 1},
        {"config_overrides": {**TINY["config_overrides"], "pack_tokens": True}, "gradient_accumulation_steps": 2},
    ],
    ids=["plain", "augmented", "tokens", "packed"],
)
def test_a_training_is_that_with_features_of_the_workers(recipe, tmp_path, made_on_device, settings):
    path = recipe(**settings)
    train(path, "--output_dir", str(tmp_path / "plain"))
    assert not made_on_device
    train(path, "--output_dir", str(tmp_path / "device"), *ON_DEVICE)
    assert sum(made_on_device) > 2 * 10 and max(made_on_device) > 4  # 4 clips make the windows of an evaluation
    expected, found = outputs(tmp_path / "plain"), outputs(tmp_path / "device")
    assert found == expected and any(entry[0] for entry in expected[0]) and any(entry[3] for entry in expected[0])
    results = json.loads((tmp_path / "device" / "results.json").read_text())
    assert results["recipe"]["TrainingArguments"]["features_on_device"] is True


@pytest.mark.slow
def test_a_resumed_training_is_the_whole_one(recipe, tmp_path, made_on_device):
    path = recipe(
        **AUGMENTED, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, save_total_limit=9
    )
    whole, stopped = str(tmp_path / "whole"), tmp_path / "stopped"
    train(path, "--output_dir", whole, *ON_DEVICE)
    train(path, "--output_dir", str(stopped), *ON_DEVICE)
    for step in range(3, 7):  # the run was stopped in its first epoch, of three steps
        shutil.rmtree(stopped / f"checkpoint-{step}")
    for name in ("results.json", "model.safetensors"):
        (stopped / name).unlink()
    del made_on_device[:]
    train(path, "--output_dir", str(stopped), *ON_DEVICE, "--resume_from_checkpoint", "true")
    assert made_on_device and outputs(stopped) == outputs(tmp_path / "whole")


@pytest.mark.parametrize("task", ["probe", "sweep", "mspm"])
def test_other_tasks_refuse_it_in_one_line(tmp_path, capsys, task, clips):
    data = {"train_sources": [str(clips)]} if task == "mspm" else {"dataset_name": str(clips)}
    path, _ = write_recipe(tmp_path, {"task": task, **data})
    assert train_hf.main([path, *ON_DEVICE]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "features_on_device: " in error and "leave it out" in error


@pytest.mark.slow
def test_several_processes_make_their_own_features(recipe, tmp_path):
    path = recipe(**{**AUGMENTED, "max_steps": 6, "save_strategy": "no", "eval_strategy": "no", "use_cpu": True})
    losses = []
    for name, words in (("plain", []), ("device", ON_DEVICE)):
        words = ["--output_dir", tmp_path / name, "--per_device_train_batch_size", "2", *words]
        run = launch(2, "train_hf.py", path, *words)
        assert run.returncode == 0, run.stderr[-3000:]
        losses.append([entry[0] for entry in outputs(tmp_path / name)[0] if entry[0] is not None])
    assert len(losses[0]) == 6
    # Log-mels of a batch differ in rounding alone; a loss is around 1.
    np.testing.assert_allclose(*losses, atol=1e-4)
