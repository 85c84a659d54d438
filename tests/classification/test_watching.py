"""Tests trackers: what TensorBoard and trackio log, without a network."""

import json
import sys
from pathlib import Path

import pytest
from audio_files import run_program, write_class_folders
from tiny_runs import TINY, train, write_recipe

from training.base import arguments as training_arguments
from training.base.arguments import TrainingArguments
from training.errors import InputError


@pytest.fixture
def recipe(tmp_path):
    clips = write_class_folders(tmp_path / "clips", 10)
    return write_recipe(tmp_path, TINY | {"dataset_name": clips}, "my_run")[0]


def logged(output: Path, key: str) -> list[float]:
    """The values of a run's log, two epochs of it."""
    log = json.loads((output / "results.json").read_text())["log"]
    values = [entry[key] for entry in log if key in entry]
    assert len(values) == 2
    return values


def test_tensorboard_shows_the_curves(recipe, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(recipe, "--report_to", "tensorboard")
    (folder,) = (tmp_path / "my_run" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    for tag, key in (("train/loss", "loss"), ("eval/accuracy", "eval_accuracy")):
        scalars = events.Scalars(tag)
        assert [event.step for event in scalars] == [3, 6]
        assert [event.value for event in scalars] == pytest.approx(logged(tmp_path / "my_run", key), rel=1e-6)


@pytest.mark.slow
def test_trackio_shows_training_and_test_as_one_run(recipe, tmp_path, monkeypatch):
    """In processes of their own: trackio asks for TRACKIO_DIR when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"):
        monkeypatch.delenv(name, raising=False)
    process = run_program("train_hf.py", recipe, "--report_to", "trackio", "--project", "tones")
    assert process.returncode == 0, process.stderr[-3000:]
    query = ["query", "project", "--project", "tones", "--sql", "SELECT run_name, metrics FROM metrics", "--json"]
    answer = run_program(Path(sys.executable).with_name("trackio"), *query)
    assert answer.returncode == 0, answer.stderr[-2000:]
    rows = json.loads(answer.stdout)["rows"]
    assert {row["run_name"] for row in rows} == {"my_run"}
    entries = [json.loads(row["metrics"]) for row in rows]
    for name, key in (("train/loss", "loss"), ("eval/accuracy", "eval_accuracy")):
        assert [entry[name] for entry in entries if name in entry] == logged(tmp_path / "my_run", key)
    assert any("test/accuracy" in entry for entry in entries)


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_what_is_not_installed_is_told(name, tmp_path, monkeypatch):
    monkeypatch.setattr(training_arguments, "get_available_reporting_integrations", list)
    with pytest.raises(InputError, match=f"report_to: {name} is unknown or not installed; install its package"):
        TrainingArguments(output_dir=str(tmp_path), report_to=name)


def test_runs_are_called_as_their_folders(tmp_path):
    assert TrainingArguments(output_dir=str(tmp_path / "mine")).run_name == "mine"
    assert TrainingArguments(output_dir=str(tmp_path / "mine"), run_name="other").run_name == "other"
