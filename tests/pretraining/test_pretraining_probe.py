"""Tests the frozen probe of a pretraining and its baselines."""

import csv
import json

import numpy as np
import pytest
import torch
from audio_files import launch, write_class_folders, write_tone
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from tiny_pretrainings import OWN, SIZES, train

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForPreTraining
from training.errors import InputError
from training.pretraining import probe
from training.pretraining.probe import LOG_MEL, RANDOM, RIDGE, Probe

CONFIG = DualSSASTConfig(**SIZES, max_length=48)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two classes of 15 tones each, without splits."""
    return write_class_folders(tmp_path_factory.mktemp("labelled") / "tones", 15)


def make_probe(num_clips: int = 60, seed: int = 0) -> tuple[Probe, np.ndarray]:
    """A probe of three classes with folds of 40 and 20 clips, and features that hold little about the classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(3, size=num_clips)
    targets = np.where(np.eye(3)[classes] > 0, 1.0, -1.0)
    features = rng.normal(size=(num_clips, 30)) + 0.5 * np.eye(3)[classes] @ rng.normal(size=(3, 30))
    folds = [(np.arange(40), np.arange(40, 60)), (np.arange(20, 60), np.arange(20))]
    inner = [[np.arange(start, 40, 4) for start in range(4)] for _ in folds]
    return Probe([[]] * num_clips, None, targets, folds, inner, "single_label_classification", 8), features


def test_the_penalty_is_chosen_among_the_training_clips_alone():
    """The score and the penalty are those of scikit-learn's fits, made one by one."""
    labelled, features = make_probe()
    scores, penalties = [], []
    for (training, test), parts in zip(labelled.folds, labelled.inner):
        scaler = StandardScaler().fit(features[training])
        own, held = scaler.transform(features[training]), scaler.transform(features[test])
        targets, right = labelled.targets[training], []
        for penalty in RIDGE:
            found = []
            for part in parts:
                rest = np.setdiff1d(np.arange(40), part)
                model = Ridge(alpha=penalty * 30).fit(own[rest], targets[rest])
                found.append((model.predict(own[part]).argmax(1) == targets[part].argmax(1)).mean())
            right.append(round(np.mean(found), 12))
        penalties.append(RIDGE[int(np.argmax(right))])
        model = Ridge(alpha=penalties[-1] * 30).fit(own, targets)
        scores.append((model.predict(held).argmax(1) == labelled.targets[test].argmax(1)).mean())
    value, ridge = labelled.score(features)
    assert len(set(right)) > 2  # the penalty makes a difference
    assert value == pytest.approx(np.mean(scores)) and ridge == pytest.approx(np.exp(np.log(penalties).mean()))


def test_test_labels_change_the_score_and_not_the_penalty():
    labelled, features = make_probe()
    labelled.folds, labelled.inner = labelled.folds[:1], labelled.inner[:1]
    value, ridge = labelled.score(features)
    labelled.targets = np.concatenate([labelled.targets[:40], np.roll(labelled.targets[40:], 1, axis=1)])
    other, same = labelled.score(features)
    assert same == ridge and other != value


def test_an_encoder_is_scored_by_the_mean_over_the_windows_of_a_clip(monkeypatch):
    extractor, generator = DualSSASTFeatureExtractor(max_length=48), torch.Generator().manual_seed(0)
    windows = [[torch.randn(48, 128, generator=generator) for _ in range(1 + index % 2)] for index in range(7)]
    labelled = Probe(windows, extractor, np.zeros((7, 2)), [], [], "single_label_classification", 3)
    seen = []
    monkeypatch.setattr(labelled, "score", lambda features: seen.append(features) or (0.5, 1.0))
    encoder = DualSSASTForPreTraining(CONFIG).eval().dual_ssast
    assert labelled.score_encoder(encoder, lambda: torch.autocast("cpu", enabled=False)) == (0.5, 1.0)
    assert labelled.score_log_mel() == (0.5, 1.0)
    fusing = probe.with_fusion(encoder)
    with torch.no_grad():
        expected = [fusing(torch.stack(clip)).pooler_output.mean(dim=0) for clip in windows]
    assert np.abs(seen[0] - torch.stack(expected).numpy()).max() < 1e-4  # float32, another batch
    log_mel = windows[1][0].double(), windows[1][1].double()
    means = torch.stack([window.mean(dim=0) for window in log_mel]).mean(dim=0)
    stds = torch.stack([window.std(dim=0, correction=0) for window in log_mel]).mean(dim=0)
    assert np.abs(seen[1][1] - torch.cat((means, stds)).numpy()).max() < 1e-5


def test_a_run_scores_its_encoder_beside_two_baselines(clips, labelled, recipe, capsys):
    values = {"probe_dataset": str(labelled), "probe_steps": 2, "save_steps": 2, "health_clips": 0, "max_steps": 4}
    path, whole = recipe("asit", "whole", train_sources=[str(clips)], learning_rate=1.0, **values)
    train(path)
    printed = capsys.readouterr().out
    assert "step 0: probe accuracy" in printed and "log-mel statistics 1.000" in printed  # tones are easy to tell apart
    results = json.loads((whole / "results.json").read_text())
    with open(whole / "probe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["features"], int(row["step"])) for row in rows] == [
        (RANDOM, 0), (LOG_MEL, 0), ("encoder", 0), ("encoder", 2), ("encoder", 4),
    ]  # fmt: skip
    assert rows[0]["value"] == rows[2]["value"] and float(rows[1]["value"]) == 1.0
    assert results["probe"] == {
        "metric": "accuracy", "step": 4, RANDOM: float(rows[0]["value"]), LOG_MEL: 1.0,
        "encoder": float(rows[4]["value"]),
    }  # fmt: skip
    assert (
        "Frozen probe" in (whole / "report.html").read_text()
        and "ridge regression" in (whole / "README.md").read_text()
    )
    # A run that is interrupted after step 2 and resumed has the same table, baselines included.
    path, resumed = recipe("asit", "resumed", train_sources=[str(clips)], learning_rate=1.0, **values)
    train(path)
    for name in ("checkpoint-4", "results.json", "probe.csv"):
        (resumed / name).rename(resumed / f"gone-{name}")
    train(path, "--resume_from_checkpoint", "true")
    assert (resumed / "probe.csv").read_text() == (whole / "probe.csv").read_text()


@pytest.mark.slow
def test_a_probe_that_is_added_later_gets_random_weights_of_its_own(clips, labelled, recipe):
    path, output = recipe("mspm", train_sources=[str(clips)], health_clips=0, max_steps=4)
    train(path, "--max_steps", "3")
    train(path, "--resume_from_checkpoint", "true", "--probe_dataset", str(labelled))
    with open(output / "probe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["features"], int(row["step"])) for row in rows] == [(RANDOM, 3), (LOG_MEL, 3), ("encoder", 4)]


def test_a_run_goes_on_with_its_own_clips_probe_and_features(clips, labelled, recipe, tmp_path):
    """Also from a checkpoint of another folder: the clips stand in the checkpoint."""
    values = {"probe_dataset": str(labelled), "validation_sources": [str(clips)], "max_steps": 3, "picture_clips": 0}
    path, output = recipe("mspm", train_sources=[str(clips)], **values)
    train(path)
    other = write_class_folders(tmp_path / "other", 15, classes=("cat", "dog"))
    moved = ["--output_dir", str(tmp_path / "other_run"), "--resume_from_checkpoint", str(output / "checkpoint-3")]
    for words, message in (
        (["--seed", "7"], "seed 1, now 7"),
        (["--validation_clips", "3"], "validation clips '.*', now '.*'"),
        (["--health_clips", "2"], "health_clips.clips 4, now 2"),
        (["--probe_dataset", str(other)], "probe_dataset.train.sha256 '.*', now '.*'"),
        (["--probe_clips", "20"], "probe_dataset.train.clips 30, now 20"),
    ):
        with pytest.raises(
            InputError, match=f"checkpoint-3/training_data.json: was made with {message}; resume with the same clips"
        ):
            train(path, *moved, *words)
    with pytest.raises(InputError, match="checkpoint-3: was made with sampling_rate 16000, now 8000; resume with the"):
        train(path, *moved, "--sampling_rate", "8000")
    (output / "checkpoint-3" / "training_data.json").unlink()  # earlier versions stored it in the output folder alone
    with pytest.raises(InputError, match="run/training_data.json: was made with seed 1, now 7; resume with the same"):
        train(path, *moved, "--seed", "7")
    # What is not measured for a while is the same afterwards.
    train(path, *moved, "--max_steps", "4", "--probe_dataset", "null", "--health_clips", "0", "--save_steps", "1")
    facts = [json.loads((folder / "training_data.json").read_text()) for folder in (output, tmp_path / "other_run")]
    assert facts[0] == facts[1] == json.loads((tmp_path / "other_run/checkpoint-4/training_data.json").read_text())


@pytest.mark.slow
def test_the_data_sets_own_splits_are_used(clips, recipe, tmp_path, caplog):
    for split, count in (("train", 12), ("test", 6)):
        lines = ["file_name,kind"]
        for index in range(count):
            write_tone(tmp_path / f"{split}{index}.wav", seconds=0.3, hz=300 + 500 * (index % 2), seed=index)
            lines.append(f"{split}{index}.wav,{['low', 'high'][index % 2]}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    values = {"probe_dataset": str(tmp_path), "probe_label_column": "kind", "health_clips": 0, "max_steps": 1}
    path, output = recipe("mspm", train_sources=[str(clips)], eval_steps=1, **values)
    train(path)
    assert json.loads((output / "results.json").read_text())["probe"][LOG_MEL] == 1.0
    assert "take part" not in caplog.text


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"probe_dataset": "nowhere"}, "^probe_dataset: nowhere: "),
        ({"probe_dataset": "LABELLED", "probe_label_column": "mood"}, "^probe_dataset: .*probe_label_column"),
        ({"probe_dataset": "FEW"}, "^probe_dataset: 6 training clips are too few for 5 folds"),
        ({"probe_dataset": "LABELLED", "probe_clips": 3}, "probe_clips: must be 20 or more, got 3"),
        ({"probe_steps": 2}, "probe_steps: has no effect without probe_dataset; name one"),
    ],
)
def test_a_probe_that_cannot_be_stops_with_one_line(clips, labelled, recipe, tmp_path, values, pattern):
    if values.get("probe_dataset") == "FEW":
        values["probe_dataset"] = str(write_class_folders(tmp_path / "few", 3))
    values = {name: str(labelled) if value == "LABELLED" else value for name, value in values.items()}
    path, output = recipe("mspm", train_sources=[str(clips)], **values)
    with pytest.raises(InputError, match=pattern):
        train(path)
    assert not (output / "checkpoint-3").exists()


@pytest.mark.slow
def test_a_large_data_set_is_sampled_with_a_warning(labelled, clips, recipe, caplog):
    values = {"probe_dataset": str(labelled), "probe_clips": 20, "health_clips": 0, "max_steps": 1, "eval_steps": 1}
    path, _ = recipe("mspm", train_sources=[str(clips)], **values)
    train(path)
    assert "probe_dataset: 20 of 30 clips take part, drawn at random (probe_clips)" in caplog.text


@pytest.mark.slow
def test_the_main_process_measures_for_all(clips, labelled, recipe, tmp_path):
    """Two processes with half the batch log the numbers of one."""
    overrides = {**OWN["mspm"]["config_overrides"]}
    values = {"probe_dataset": str(labelled), "save_strategy": "no", "config_overrides": overrides, "max_steps": 6}
    path, _ = recipe("mspm", train_sources=[str(clips)], stop_on_collapse=True, **values)
    one, two = tmp_path / "one", tmp_path / "two"
    first = launch(1, "train_hf.py", path, "--output_dir", one)
    words = ["train_hf.py", path, "--output_dir", two, "--use_cpu", "true", "--per_device_train_batch_size", "2"]
    second = launch(2, *words)
    assert first.returncode == second.returncode == 0, second.stderr[-3000:]
    for name in ("probe.csv", "health.csv"):
        tables = [np.genfromtxt(folder / name, delimiter=",", skip_header=1)[:, 4:] for folder in (one, two)]
        assert tables[0].shape == tables[1].shape
        np.testing.assert_allclose(*tables, rtol=1e-2)  # the gradients are summed in another order, over six steps
