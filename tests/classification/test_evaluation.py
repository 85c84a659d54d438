"""Tests classification/evaluation.py: the figures of a training's test, other data, and refused input."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from audio_files import launch, run_program, write_class_folders, write_tone
from huggingface_hub import HfApi
from stopped_shards import stop_after
from tiny_models import save_tiny_classifier, save_tiny_cnn

import predict_hf
import train_hf
from training.classification import evaluation
from training.inference.scores import Classifier
from training.inference.shards import Shards

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SAME = ("metrics", "clips", "confidence_intervals", "per_class")


def program(path, **values) -> int:
    path.write_text(json.dumps(values))
    return train_hf.main([str(path)])


def results_of(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def table(folder, label):
    """Twenty clips of which the last eight are a test, as two manifests; some are longer than the model's input."""
    rows = []
    for index in range(20):
        seconds = 0.4 + 0.4 * (index % 3 == 0)
        path = write_tone(folder / f"{index}.wav", seconds=seconds, hz=300 + 900 * (index % 2), seed=index)
        rows.append({"audio": str(path), "label": label(index)})
    for name, part in (("train", rows[:12]), ("test", rows[12:])):
        pandas.DataFrame(part).to_csv(folder / f"{name}.csv", index=False)
    return {"train_file": str(folder / "train.csv"), "test_file": str(folder / "test.csv")}


def assert_close(found, expected):
    """Compares nested numbers: features, windows and clips meet others in their batches, so float32 sums differ."""
    if isinstance(expected, (dict, list)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_close(found[key], expected[key])
    else:
        assert found == (pytest.approx(expected, rel=1e-5, abs=1e-6) if type(expected) is float else expected)


@pytest.mark.parametrize(
    "kind, label",
    [
        ("single", lambda index: "ab"[index % 2]),
        ("several", lambda index: ["a", "b", "a,b"][index % 3]),
        ("regression", lambda index: round(0.1 * index, 1)),
    ],
)
def test_the_test_of_a_training_is_repeated(tmp_path, kind, label):
    """Metrics, intervals, table of classes and predictions, but for the order of sums; and a page of its own."""
    files = table(tmp_path, label)
    separator = {"label_separator": ","} if kind == "several" else {}
    problem = {"problem_type": "regression"} if kind == "regression" else {}
    trained, evaluated = tmp_path / "run", tmp_path / "evaluation"
    assert not program(
        tmp_path / "recipe.json", **files, **separator, **problem, validation_fraction=0.2, config_overrides=TINY,
        max_length=50,
        mean=-6, std=4, output_dir=str(trained), num_train_epochs=1, disable_tqdm=True, html_report=False,
    )  # fmt: skip
    assert not program(
        tmp_path / "evaluation.json", task="evaluation", test_file=files["test_file"], **separator,
        model_name_or_path=str(trained), output_dir=str(evaluated), per_device_eval_batch_size=8,
    )  # fmt: skip
    before, after = map(results_of, (trained, evaluated))
    for key in SAME:
        if key in before:
            expected = before[key]["test"] if key in ("metrics", "clips") else before[key]
            found = after[key]["test"] if key in ("metrics", "clips") else after[key]
            assert_close(found, expected)
    first, second = (pandas.read_csv(folder / "predictions.csv") for folder in (trained, evaluated))
    pandas.testing.assert_frame_equal(first, second)
    page = (evaluated / "report.html").read_text()
    assert "tested on" in page and page.count("<audio") == 8 and str(tmp_path) not in page
    written = {path.name for path in evaluated.iterdir()}
    pictures = {
        "single": {"confusion_matrix.png", "calibration.png"},
        "several": {"calibration.png"},
        "regression": {"predicted_numbers.png"},
    }
    assert written == {"results.json", "predictions.csv", "report.html"} | pictures[kind]


def test_what_was_calibrated_is_applied(tmp_path):
    folder = save_tiny_classifier(tmp_path / "model", labels=("a", "b"), calibration_temperature=3.0)
    files = table(tmp_path, lambda index: "ab"[index % 2])
    assert not program(
        tmp_path / "evaluation.json", task="evaluation", test_file=files["test_file"], html_report=False,
        model_name_or_path=str(folder), output_dir=str(tmp_path / "evaluation"),
    )  # fmt: skip
    results = results_of(tmp_path / "evaluation")
    assert results["calibration"]["temperature"] == 3.0
    assert results["calibration"]["test"]["before"] != results["calibration"]["test"]["after"]
    scores = pandas.read_csv(tmp_path / "evaluation" / "predictions.csv")[["probability_a", "probability_b"]].to_numpy()
    assert np.abs(scores.sum(axis=1) - 1).max() < 1e-5
    log_odds = np.log(scores[:, 0] / scores[:, 1])
    folder = save_tiny_classifier(tmp_path / "plain", labels=("a", "b"))
    (tmp_path / "plain" / "model.safetensors").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    assert not program(
        tmp_path / "evaluation.json", task="evaluation", test_file=files["test_file"], html_report=False,
        model_name_or_path=str(folder), output_dir=str(tmp_path / "evaluation"), overwrite=True,
    )  # fmt: skip
    scores = pandas.read_csv(tmp_path / "evaluation" / "predictions.csv")[["probability_a", "probability_b"]].to_numpy()
    np.testing.assert_allclose(np.log(scores[:, 0] / scores[:, 1]), 3 * log_odds, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["dual_ssast", "panns_cnn14"])
def test_folders_with_and_without_splits(tmp_path, family):
    """All clips of plain class folders; the test split where there is one."""
    names = {"id2label": {0: "high", 1: "low"}, "label2id": {"high": 0, "low": 1}}
    save = {"dual_ssast": lambda path: save_tiny_classifier(path, ("high", "low"))}
    model = save.get(family, lambda path: save_tiny_cnn(path, family, **names))(tmp_path / "model")
    plain = write_class_folders(tmp_path / "plain", 4)
    for split, count in (("train", 3), ("test", 2)):
        write_class_folders(tmp_path / "splits" / split, count)
    for folder, clips in ((plain, 8), (tmp_path / "splits", 4)):
        output = tmp_path / f"{folder.name}_evaluation"
        assert not program(
            tmp_path / "evaluation.json", task="evaluation", model_name_or_path=str(model), html_report=False,
            dataset_name=str(folder), output_dir=str(output),
        )  # fmt: skip
        results = results_of(output)
        assert results["clips"] == {"test": clips} and results["labels"] == ["high", "low"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return {
        "task": "evaluation",
        "model_name_or_path": str(save_tiny_classifier(folder / "model", ("high", "low"))),
        "dataset_name": str(write_class_folders(folder / "clips", 2)),
        "output_dir": str(folder / "output"),
        "html_report": False,
    }


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model_name_or_path": None}, "model_name_or_path: is not set; name the classifier"),
        ({"dataset_name": None}, "data: set either dataset_name or test_file"),
        ({"test_file": "x.csv"}, "data: set either dataset_name or test_file"),
        ({"mean": -4.0}, "mean: is no option of task evaluation; leave it out"),
        ({"compute_statistics": True}, "compute_statistics: is no option of task evaluation; leave it out"),
        ({"learning_rate": 1e-3}, "learning_rate: is no option of task evaluation; leave it out"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size: must be 1 or more, got 0"),
        ({"report_clips": -1}, "report_clips: must be 0 or more, got -1"),
        ({"device": "nowhere"}, "device nowhere: cannot be used here"),
        ({"dtype": "int8"}, "dtype: must be auto, float32, bfloat16 or float16, got 'int8'"),
        ({"threads": 0}, "threads: must be 1 or more, got 0"),
        ({"window_s": 100}, "window_s"),
    ],
)
def test_what_is_refused(settings, tmp_path, capsys, changes, told):
    assert program(tmp_path / "recipe.json", **{**settings, **changes}) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("task", ["evaluation", "sweep", "probe"])
def test_the_folder_of_the_model_is_not_written_to(settings, tmp_path, capsys, task):
    """The results and figures of its training would be lost, also where the folder has another name."""
    (tmp_path / "link").symlink_to(settings["model_name_or_path"])
    kept = {name: settings[name] for name in ("dataset_name", "model_name_or_path")}
    changed = {"task": task, "output_dir": str(tmp_path / "link"), "overwrite": True}
    assert program(tmp_path / "recipe.json", **kept, **changed) == 1
    assert "model_name_or_path: is output_dir too, whose files the run replaces; choose" in capsys.readouterr().err


def test_a_model_of_one_label_per_clip_needs_such_clips(settings, tmp_path, capsys):
    changed = settings | {"output_dir": str(tmp_path / "output")}
    assert program(tmp_path / "recipe.json", **changed, none_label="high") == 1
    error = capsys.readouterr().err
    assert f"none_label: {settings['model_name_or_path']} gives each clip one of its classes" in error
    path = Path(table(tmp_path, lambda index: "high,low")["test_file"])
    changed |= {"dataset_name": None, "test_file": str(path), "label_separator": ","}
    assert program(tmp_path / "recipe.json", **changed) == 1
    error = capsys.readouterr().err
    assert "has 2 labels, ['high', 'low'], instead of one; leave it out, or train a model with problem_type" in error


def test_classes_that_the_model_does_not_know(settings, tmp_path, capsys):
    other = write_class_folders(tmp_path / "clips", 2, classes=("high", "hum"))
    assert program(tmp_path / "recipe.json", **settings | {"dataset_name": str(other)}) == 1
    assert "label 'hum' is not in the label set" in capsys.readouterr().err


def test_a_finished_evaluation_is_kept_and_can_be_repeated(settings, tmp_path, capsys):
    """Its `results.json` is a recipe like any other."""
    recipe, output = tmp_path / "recipe.json", tmp_path / "output"
    assert program(recipe, **settings | {"output_dir": str(output)}) == 0
    assert program(recipe, **settings | {"output_dir": str(output)}) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert train_hf.main([str(output / "results.json"), "--output_dir", str(tmp_path / "again")]) == 0
    first, second = map(results_of, (output, tmp_path / "again"))
    assert first["metrics"] == second["metrics"]


@pytest.fixture(scope="module")
def plain(settings):
    """An evaluation with the defaults: its folder."""
    folder = Path(settings["output_dir"]).with_name("plain")
    assert not program(folder.with_suffix(".json"), **settings | {"output_dir": str(folder)})
    return folder


@pytest.mark.parametrize("num_stored", [0, 1, 3])
def test_a_killed_evaluation_goes_on_and_nothing_else_changes(
    settings, plain, tmp_path, capsys, monkeypatch, num_stored
):
    """Four clips in four shards; the process ends after some of them are stored."""
    monkeypatch.setattr(evaluation, "SHARD_CLIPS", 1)
    output, save = tmp_path / "output", Shards.save
    changed = settings | {"output_dir": str(output)}
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        saved = stop_after(patch, num_stored, SystemExit)  # nothing catches it
        program(tmp_path / "recipe.json", **changed)
    assert not (output / "results.json").exists()
    monkeypatch.setattr(Shards, "save", lambda *words: saved.append(words[1]) or save(*words))
    capsys.readouterr()
    if num_stored:
        assert program(tmp_path / "recipe.json", **changed, dtype="bfloat16") == 1
        assert "was made with settings.dtype 'float32', now 'bfloat16'" in capsys.readouterr().err
    assert not program(tmp_path / "recipe.json", **changed)
    assert saved == [0, 1, 2, 3]
    assert (f"goes on: {num_stored} of 4 shards" in capsys.readouterr().err) == bool(num_stored)
    assert {path.name for path in output.iterdir()} == {path.name for path in plain.iterdir()}
    assert_close(results_of(output)["metrics"], results_of(plain)["metrics"])
    one, two = (pandas.read_csv(folder / "predictions.csv") for folder in (output, plain))
    pandas.testing.assert_frame_equal(one, two)


def test_numbers_that_overflow_are_named_and_computed_again(settings, tmp_path, capsys, monkeypatch):
    run, output = Classifier.run, tmp_path / "output"

    def overflow(network, features):
        found, counts = run(network, features)
        found["logits"][0] = torch.inf
        return found, counts

    changed = settings | {"output_dir": str(output)}
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "run", overflow)
        assert program(tmp_path / "recipe.json", **changed) == 1
    message = capsys.readouterr().err
    assert "scores of 1 of 4 clips are not finite, the first one" in message and "set dtype to float32" in message
    assert not program(tmp_path / "recipe.json", **changed)


def test_the_number_format_is_float32_unless_another_is_asked_for(settings, plain, tmp_path, monkeypatch):
    """Where predict_hf.py would take bfloat16 by itself, whose numbers differ a little."""
    monkeypatch.setattr("training.inference.precision.has_bfloat16", lambda: True)
    scores = {}
    for name, changes in {"unset": {}, "auto": {"dtype": "auto"}, "half": {"dtype": "float16", "threads": 1}}.items():
        output = tmp_path / name
        changed = settings | {"output_dir": str(output), "device": "cpu"}
        assert not program(tmp_path / "recipe.json", **changed, **changes)
        scores[name] = pandas.read_csv(output / "predictions.csv").iloc[:, 3:].to_numpy()
    machines = {name: results_of(tmp_path / name)["machine"] for name in scores}
    formats = {"unset": "float32", "auto": "bfloat16", "half": "float16"}
    assert {name: machine["dtype"] for name, machine in machines.items()} == formats
    assert machines["half"]["threads"] == torch.get_num_threads() == 1
    np.testing.assert_array_equal(scores["unset"], pandas.read_csv(plain / "predictions.csv").iloc[:, 3:])
    for name in ("auto", "half"):
        np.testing.assert_allclose(scores[name], scores["unset"], atol=0.05)
        assert not np.array_equal(scores[name], scores["unset"])


def test_scores_are_those_of_predict_hf(settings, plain, tmp_path):
    """Files in another order."""
    words = [settings["model_name_or_path"], settings["dataset_name"], "--dtype", "float32"]
    assert not predict_hf.main([*words, "--output", str(tmp_path / "scores.csv")])
    one, two = pandas.read_csv(plain / "predictions.csv"), pandas.read_csv(tmp_path / "scores.csv")
    one, two = (table.set_index(table["file"].map(lambda name: Path(name).name)).sort_index() for table in (one, two))
    pandas.testing.assert_frame_equal(one[list(two)[1:]], two[list(two)[1:]])


def test_results_of_earlier_versions_are_repeated(plain, tmp_path):
    """They name neither format nor device, and workers were processes."""
    results = results_of(plain)
    stored = results["recipe"]["EvaluationArguments"]
    for name in ("dtype", "device", "compile", "threads"):
        del stored[name]
    (tmp_path / "old.json").write_text(json.dumps(results))
    assert not train_hf.main([str(tmp_path / "old.json"), "--output_dir", str(tmp_path / "again")])
    again = results_of(tmp_path / "again")
    assert again["metrics"] == results["metrics"] and again["data"] == results["data"]


KILLED = """
import os, signal, sys
import train_hf
from training.classification import evaluation
evaluation.SHARD_CLIPS = 1
save, saved = evaluation.Shards.save, []
def save_and_die(*words):
    save(*words)
    saved.append(words)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
evaluation.Shards.save = save_and_die
train_hf.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_what_sigkill_leaves_is_used(settings, plain, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "SHARD_CLIPS", 1)
    (tmp_path / "recipe.json").write_text(json.dumps(settings | {"output_dir": str(tmp_path / "output")}))
    assert run_program("-c", KILLED, tmp_path / "recipe.json").returncode == -9
    assert not train_hf.main([str(tmp_path / "recipe.json")])
    assert "goes on: 2 of 4 shards" in capsys.readouterr().err
    assert_close(results_of(tmp_path / "output")["metrics"], results_of(plain)["metrics"])


def test_damaged_clips_are_told_or_left_out(settings, tmp_path, capsys):
    clips = write_class_folders(tmp_path / "clips", 3)
    (clips / "high" / "high_1.wav").write_bytes(b"RIFF no audio")
    changed = settings | {"dataset_name": str(clips), "output_dir": str(tmp_path / "output")}
    assert program(tmp_path / "recipe.json", **changed) == 1
    assert "high_1.wav" in capsys.readouterr().err
    assert program(tmp_path / "recipe.json", **changed, on_bad_audio="skip", max_unreadable_share=0.5) == 0
    assert results_of(tmp_path / "output")["clips"] == {"test": 5}


@pytest.mark.slow
def test_two_processes_are_one(settings, tmp_path):
    words = ["train_hf.py", tmp_path / "recipe.json", "--output_dir"]
    clips = write_class_folders(tmp_path / "clips", evaluation.SHARD_CLIPS // 2 + 1)  # two shards
    (tmp_path / "recipe.json").write_text(json.dumps(settings | {"dataset_name": str(clips)}))
    for name, start in (("one", run_program), ("two", partial(launch, 2))):
        process = start(*words, tmp_path / name)
        assert process.returncode == 0, process.stderr[-2000:]
    one, two = (results_of(tmp_path / name) for name in ("one", "two"))
    assert one["metrics"] == two["metrics"] and two["machine"]["processes"] == 2
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]


def test_a_revision_of_the_hub_is_what_it_was(hub, settings, tmp_path):
    """The first commit's classifier, and not the one that has taken its place."""
    api, model = HfApi(), settings["model_name_or_path"]
    api.create_repo("user/model")
    first = api.upload_folder(repo_id="user/model", folder_path=model).oid
    other = save_tiny_classifier(tmp_path / "other", ("high", "low"), calibration_temperature=5.0)
    api.upload_folder(repo_id="user/model", folder_path=other)
    for revision, temperature in (("main", 5.0), (first, 1.0)):
        changed = {"model_name_or_path": "user/model", "model_revision": revision}
        output = tmp_path / revision
        assert not program(tmp_path / "recipe.json", **settings | changed | {"output_dir": str(output)})
        results = results_of(output)
        assert results["calibration"]["temperature"] == temperature
    train = {"task": "classification", "model_name_or_path": "user/model", "model_revision": first}
    train |= {"num_train_epochs": 0.1, "disable_tqdm": True, "output_dir": str(tmp_path / "run"), "save_strategy": "no"}
    kept = {name: settings[name] for name in ("dataset_name", "html_report")}
    assert not program(tmp_path / "recipe.json", **kept, **train, validation_fraction=0, test_fraction=0)
    changed = settings | {
        "model_name_or_path": "user/model",
        "model_revision": "v9",
        "output_dir": str(tmp_path / "no"),
    }
    assert program(tmp_path / "recipe.json", **changed) == 1
