"""Tests the task probe: linear layers, neighbours and few labels on frozen embeddings."""

import json
import os
import shutil
from unittest.mock import Mock

import numpy as np
import pandas
import pytest
import torch
from audio_files import write_class_folders
from tiny_models import TINY, save_tiny_classifier
from tiny_runs import write_recipe

from modeling_dual_ssast import DualSSASTConfig
from training import tasks
from training.data.labels import find_labels
from training.embeddings import head_training, probe, representations
from training.embeddings.arguments import ProbeArguments
from training.embeddings.head_training import head_rows
from training.embeddings.heads import EMBEDDING, METHODS, Head, config_of
from training.embeddings.stored_features import Stored
from training.errors import InputError

PROBE = {
    "num_epochs": 30,
    "learning_rates": [0.01, 0.1],
    "few_shot": [1, 2, 100],
    "neighbours": [1, 3, 1000],
    "num_seeds": 2,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), initializer_range=0.2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 20)


@pytest.fixture
def recipe(tmp_path, encoder, clips):
    settings = {"task": "probe", "validation_fraction": 0.2, "test_fraction": 0.2, **PROBE}
    settings |= {"model_name_or_path": encoder, "dataset_name": clips}
    return lambda **values: write_recipe(tmp_path, settings | values, "probe")


def run(path: str, *words: str):
    _, *parts = tasks.parse([path, *words])
    probe.run(*parts)


def test_a_probe_leaves_its_table(recipe, capsys):
    path, output = recipe(fusion_layers=[1, 2], pooling=["mean", "max"])
    run(path)
    table = pandas.read_csv(output / "probe.csv")
    assert table.groupby("method")["test"].count().to_dict() == {"few_shot": 4, "linear": 2, "neighbours": 1}
    results = json.loads((output / "results.json").read_text())
    assert results["metric"] == "accuracy" and results["embedding_size"] == 32
    assert results["clips"] == {"train": 25, "validation": 7, "test": 8}
    means = {row["method"]: row["test"] for row in results["summary"]}
    assert means["linear"] == pytest.approx(table[table["method"] == "linear"]["test"].mean()) and means["linear"] > 0.6
    assert set(means) == {"linear", "neighbours", "few_shot, 1 per class", "few_shot, 2 per class"}
    assert "accuracy on 8 test clips, embeddings of 32 numbers" in capsys.readouterr().out
    predictions = pandas.read_csv(output / "predictions.csv")
    right = (predictions["label"] == predictions["prediction"]).groupby(predictions["method"]).mean()
    assert right.to_dict() == pytest.approx(means) and len(predictions) == 7 * 8
    with pytest.raises(InputError, match="holds a probe already"):
        run(path)
    run(path, "--overwrite", "true")
    pandas.testing.assert_frame_equal(table, pandas.read_csv(output / "probe.csv"))


def blobs(kind: str):
    """Two well separated classes in three splits; the labels of the kind of problem."""
    rng = np.random.default_rng(0)
    features, labels = {}, {}
    for split, count in (("train", 40), ("validation", 20), ("test", 20)):
        classes = np.arange(count) % 2
        features[split] = (rng.normal(size=(count, 5)) + 4 * classes[:, None]).astype(np.float32)
        labels[split] = {
            "single": classes,
            "multi": np.stack((classes, 1 - classes, np.ones(count)), axis=1).astype(np.float32),
            "regression": features[split].sum(axis=1, keepdims=True),
        }[kind]
    texts = {"single": ["a", "b"], "multi": [["a", "c"], ["b", "c"]], "regression": ["0.5", "1.5"]}[kind]
    return features, labels, find_labels(texts, "regression" if kind == "regression" else None)


def linear(features, label_set):
    """A linear head on vectors of five numbers, and the clips of all splits."""
    method, encoder = METHODS["linear"], DualSSASTConfig(**TINY, readout="prefix", fusion_layers=[2])
    encoder.hidden_size, encoder.num_attention_heads = 5, 1
    head = Head(method, config_of(method, encoder, label_set))
    return head, {split: Stored.of_clips(EMBEDDING, values) for split, values in features.items()}


@pytest.mark.parametrize("kind", ["single", "multi", pytest.param("regression", marks=pytest.mark.slow)])
def test_a_linear_layer_learns_what_is_linear(kind):
    features, labels, label_set = blobs(kind)
    settings = ProbeArguments(output_dir="x", learning_rates=[1e-6, 0.1], num_epochs=100, num_seeds=2, batch_size=16)
    head, data = linear(features, label_set)
    rows = head_rows(head, data, labels, label_set, settings)
    assert [row["seed"] for row in rows] == [0, 1]
    if kind != "multi":  # a random direction can rank two far classes right
        assert [row["setting"] for row in rows] == ["learning rate 0.1"] * 2
    assert min(row["test"] for row in rows) > 0.95
    for row, again in zip(rows, head_rows(head, data, labels, label_set, settings)):
        np.testing.assert_array_equal(row.pop("scores"), again.pop("scores"))
        torch.testing.assert_close(row.pop("weights"), again.pop("weights"), rtol=0, atol=0)
        assert row == again


def test_the_best_epoch_counts_and_patience_ends_the_training(monkeypatch):
    features, labels, label_set = blobs("single")
    scores = iter([0.5, 0.1, 0.9, 0.2, 0.3, 0.3, 0.3])  # validation, with a test score after each better one
    monkeypatch.setattr(head_training, "score_function", lambda label_set: lambda outputs, labels: next(scores))
    settings = ProbeArguments(output_dir="x", patience=2, num_epochs=50)
    head, data = linear(features, label_set)
    row = head_training.fit(head, data, labels, label_set, (0.1, 0.0), 0, settings)
    assert (row["validation"], row["test"], row["epoch"]) == (0.9, 0.2, 2) and list(scores) == [0.3]


def test_few_labels_are_drawn_anew_per_seed_and_only_from_the_training_clips():
    features, labels, _ = blobs("single")
    settings = ProbeArguments(output_dir="x", few_shot=[1, 3, 21], num_seeds=2)
    rows = probe.few_shot_rows(features, labels, 2, settings)
    assert [(row["setting"], row["seed"]) for row in rows] == [
        ("1 per class", 0), ("1 per class", 1), ("3 per class", 0), ("3 per class", 1)
    ]  # fmt: skip
    assert all(row["test"] > 0.9 for row in rows)


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"model_name_or_path": None}, "model_name_or_path: is not set"),
        ({"methods": ["guess"]}, "methods: must be linear, mlp, attentive, .* or few_shot, got 'guess'"),
        ({"learning_rates": [-1.0]}, "learning_rates: must be above 0, got -1.0"),
        ({"patience": 0}, "patience: must be 1 or more, got 0"),
        ({"test_fraction": 0.0}, "test_split: a probe needs one"),
        ({"fusion_layers": [9]}, "fusion_layers must be integers from -3 to 2, got 9"),
        ({"fold_column": "fold"}, "fold_column: has an effect with protocol evar alone; name splits, or set"),
        ({"methods": ["few_shot"], "few_shot": [100]}, "few_shot: a class has 1. training clips; give at most as many"),
        ({"neighbours": [500]}, r"neighbours: \[500\] are more than the 25 clips"),
    ],
)
def test_bad_recipes_stop_with_one_line(recipe, values, pattern):
    path, output = recipe(**values)
    with pytest.raises(InputError, match=pattern):
        run(path)
    assert not (output / "results.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": ["0.5", "1.5", "2"], "validation": ["1"], "test": ["1", "2"]},
            "validation_split: holds one clip, which has no r2; name another",
        ),
        (
            {"train": ["0.5", "1.5", "2"], "validation": ["1", "2"], "test": ["1"]},
            "test_split: holds one clip, which has no r2",
        ),
        (
            {"train": ["a;b", "a", ""], "validation": ["", ""], "test": ["a"], "label_separator": ";"},
            "validation_split: holds clips without any label; name another",
        ),
        (
            {"train": ["a", "b", "b"], "validation": ["a"], "test": ["a"]},
            r"neighbours: \[4\] are more than the 3 clips",
        ),
    ],
)
def test_splits_without_a_score_are_refused_before_the_encoding(tmp_path, clips, encoder, monkeypatch, values, message):
    paths = iter(sorted(clips.rglob("*.wav")))
    recipe = {
        "task": "probe",
        "neighbours": [4],
        "model_name_or_path": str(encoder),
        "output_dir": str(tmp_path / "out"),
    }
    recipe |= {"label_separator": values.pop("label_separator")} if "label_separator" in values else {}
    recipe |= {"problem_type": "regression"} if values["train"][0] == "0.5" else {}
    for split, own in values.items():
        recipe[f"{split}_file"] = str(tmp_path / f"{split}.csv")
        rows = [(str(next(paths)), label) for label in own]
        pandas.DataFrame(rows, columns=["file_name", "label"]).to_csv(recipe[f"{split}_file"], index=False)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    monkeypatch.setattr(probe, "encode_clips", None)
    with pytest.raises(InputError, match=message):
        run(str(tmp_path / "recipe.json"))


def test_a_score_that_is_no_number_is_an_error():
    features, labels, label_set = blobs("regression")
    features["validation"], labels["validation"] = features["validation"][:1], labels["validation"][:1]
    head, data = linear(features, label_set)
    with pytest.raises(InputError, match="validation_split: the r2 of its clips is nan; name other clips"):
        head_training.fit(head, data, labels, label_set, (0.1, 0.0), 0, ProbeArguments(output_dir="x", num_epochs=2))


def test_what_is_named_twice_is_one_run():
    settings = ProbeArguments(
        output_dir="x", methods=["few_shot", "linear", "few_shot"], few_shot=[5, 1, 5], neighbours=[3, 3],
        learning_rates=[0.1, 0.1], weight_decays=[0.0, 0.0], protocol="tuned",
    )  # fmt: skip
    assert settings.methods == ["few_shot", "linear"] and settings.few_shot == [5, 1] and settings.neighbours == [3]
    assert settings.learning_rates == [0.1] and settings.weight_decays == [0.0]


def test_a_stopped_probe_goes_on(recipe, monkeypatch):
    path, _ = recipe(methods=["neighbours"])
    original = representations.fill_shards

    def fill_shards(network, dataset, *rest):
        if len(dataset) == 8:  # the test clips
            raise KeyboardInterrupt
        original(network, dataset, *rest)

    monkeypatch.setattr(representations, "fill_shards", fill_shards)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(torch.nn.Module, "__call__", _counted(torch.nn.Module.__call__, calls))
    run(path)
    assert sum(name == "DualSSASTModel" for name in calls) == 1


def test_a_stopped_probe_refuses_other_recordings_of_the_same_names(recipe, clips, monkeypatch):
    path, _ = recipe(methods=["neighbours"])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(representations, "fill_shards", Mock(side_effect=KeyboardInterrupt))
        run(path)
    for clip in clips.rglob("*.wav"):
        os.utime(clip, (0, 0))
    with pytest.raises(InputError, match="was made with clips .*; use another folder, or set overwrite"):
        run(path)


def test_an_overwritten_probe_that_is_stopped_goes_on(recipe, monkeypatch):
    path, output = recipe(methods=["linear"], num_seeds=1, num_epochs=2)
    run(path)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "head_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        run(path, "--overwrite", "true")
    monkeypatch.undo()
    assert not (output / "results.json").exists()
    calls = []
    monkeypatch.setattr(torch.nn.Module, "__call__", _counted(torch.nn.Module.__call__, calls))
    run(path)
    assert "DualSSASTModel" not in calls
    assert {path.name for path in output.iterdir()} == {
        "embeddings", "model", "predictions.csv", "probe.csv", "results.json"
    }  # fmt: skip
    with pytest.raises(InputError, match="neighbours"):  # what is refused costs no results
        run(path, "--overwrite", "true", "--methods", "neighbours", "--neighbours", "500")
    assert (output / "results.json").exists()


def test_a_probe_keeps_what_it_reads_and_what_no_probe_wrote(recipe, encoder, tmp_path):
    path, output = recipe(methods=["neighbours"])
    words = ("--model_name_or_path", str(output / "model"))
    shutil.copytree(encoder, output / "model")
    for more in ((), ("--overwrite", "true"), ("--methods", "linear", "--overwrite", "true")):
        task, *parts = tasks.parse([path, *words, *more])
        with pytest.raises(InputError, match="model_name_or_path: the run would replace .*model, which it reads"):
            tasks.TASKS[task].run(*parts)
        with pytest.raises(InputError, match="model: no probe wrote it, and this one would replace it; name another"):
            run(path, *more)
    for folder, task in (("embeddings", "probe"), ("representations", "sweep")):
        table = output / folder / "mine" / "clips.csv"
        table.parent.mkdir(parents=True)
        table.write_text("file_name,label\n")
        data = {"train_file": str(table), "model_name_or_path": str(encoder), "output_dir": str(output)}
        (tmp_path / "other.json").write_text(json.dumps({"task": task, **data}))
        _, *parts = tasks.parse([str(tmp_path / "other.json")])
        with pytest.raises(InputError, match=f"train_file: the run would replace .*{folder}, which it reads"):
            tasks.TASKS[task].run(*parts)
    assert sorted(path.name for path in (output / "model").iterdir()) == sorted(p.name for p in encoder.iterdir())


def _counted(original, calls: list):
    def call(self, *args, **kwargs):
        calls.append(type(self).__name__)
        return original(self, *args, **kwargs)

    return call
