"""Tests schedules of the learning rate that watch the evaluations: they fall when the metric gets worse."""

import json

import pytest
from audio_files import write_class_folders
from tiny_runs import TINY, train

from training.classification import train as classification
from training.errors import InputError

RATE = TINY["learning_rate"]
SCHEDULE = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "threshold": 0.0},
    "num_train_epochs": 4,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains with given values of the metric; returns the learning rates of its log, and its recipe."""

    def train_with(scores: list[float], **values):
        left = iter(scores)
        monkeypatch.setattr(
            classification, "metric_function", lambda *_: lambda _: {"accuracy": next(left, 0.0), "macro_f1": 0.0}
        )
        clips = tmp_path / "clips"
        if not clips.exists():
            write_class_folders(clips, 8)
        recipe = TINY | SCHEDULE | {"dataset_name": str(clips), "output_dir": str(tmp_path / "run"), "overwrite": True}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"calibrate": False} | values))
        train(str(tmp_path / "recipe.json"))
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        rates = [entry["learning_rate"] for entry in results["log"] if "learning_rate" in entry]
        return rates, results["recipe"]["TrainingArguments"]

    return train_with


def test_a_rising_accuracy_keeps_the_rate_and_a_falling_one_lowers_it(run):
    rising, recipe = run([0.1, 0.2, 0.3, 0.4])
    assert rising == pytest.approx([RATE] * 4)
    assert recipe["lr_scheduler_kwargs"] == SCHEDULE["lr_scheduler_kwargs"]  # what was given
    falling, _ = run([0.4, 0.3, 0.2, 0.1])
    assert falling == pytest.approx([RATE, RATE, RATE / 2, RATE / 4])


def test_the_warm_up_comes_before(run):
    rates, _ = run([0.1, 0.2, 0.3, 0.4], warmup_steps=4, logging_strategy="steps", logging_steps=1)
    assert rates[:6] == pytest.approx([RATE / 4, RATE / 2, RATE * 3 / 4, RATE, RATE, RATE])


def test_without_evaluations_there_is_nothing_to_watch(run):
    with pytest.raises(InputError, match="lr_scheduler_type: reduce_lr_on_plateau watches the evaluations, and there"):
        run([], validation_fraction=0.0)
