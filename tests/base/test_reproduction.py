"""Tests that a run repeated from its results.json has the same weights to the bit, or names each difference."""

import json
import logging
import shutil

import pandas
import pytest
from audio_files import run_program, write_class_folders, write_tone
from tiny_runs import TINY, train

from training import tasks
from training.base import reproduction
from training.base.arguments import TrainingArguments
from training.classification import cross_validation
from training.data.columns import Columns
from training.data.sources import load_folder
from training.data.tables import load_table
from training.errors import InputError
from training.pretraining.arguments import MspmTrainingArguments

# Settings that depend on the seed (dropout, augmentation, mixup, the order of the clips), and values that YAML lacks.
SETTINGS = {
    "config_overrides": {**TINY["config_overrides"], "hidden_dropout_prob": 0.1},
    "mixup_rate": 0.3,
    "time_shift_frames": 3,
    "frequency_mask_bins": 16,
    "pooling": [["mean"], ["mean", "max"]],
    "lr_scheduler_kwargs": {},
    "lr_scheduler_type": "cosine",
    "head_learning_rate": 1e-2,
    "warmup_steps": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A data set, and a run on it."""
    folder = tmp_path_factory.mktemp("finished")
    write_class_folders(folder / "clips", 10)
    recipe = {**TINY, **SETTINGS, "dataset_name": str(folder / "clips"), "output_dir": str(folder / "run")}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    train(str(folder / "recipe.json"))
    return folder


@pytest.fixture
def warnings_of(caplog):
    """The warnings of this project's reproduction while a function runs."""
    logger = logging.getLogger("training.base.reproduction")
    logger.addHandler(caplog.handler)

    def collect(function, *values):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            function(*values)
        return list(dict.fromkeys(record.getMessage() for record in caplog.records if record.name == logger.name))

    yield collect
    logger.removeHandler(caplog.handler)


def test_what_a_run_derives_is_derived_anew_from_what_is_given(finished):
    """Else another metric would keep the direction of the first: the highest loss would be the best."""
    results = str(finished / "run" / "results.json")
    training = tasks.parse([results, "--metric_for_best_model", "loss"])[-1]
    assert (training.chosen_metric, training.chosen_direction) == ("loss", None)
    training = tasks.parse([results, "--metric-for-best-model=loss", "--greater_is_better", "true"])[-1]
    assert (training.chosen_metric, training.chosen_direction) == ("loss", True)
    assert tasks.parse([results])[-1].chosen_direction is True
    mspm = MspmTrainingArguments(output_dir="x", epoch_steps=7)
    mspm.max_steps = mspm.eval_steps = 70  # as a run sets them
    given = mspm.as_given()
    assert (given["max_steps"], given["eval_steps"], given["epoch_steps"]) == (-1, None, 7)


def test_what_a_run_derives_is_derived_again(finished, tmp_path):
    """Without validation clips there are no evaluations, and without a GPU there is the CPU: of this run alone."""
    words = ["--output_dir", str(tmp_path / "run"), "--validation_fraction", "0", "--max_steps", "1"]
    train(str(finished / "recipe.json"), *words, "--save_strategy", "no")
    path = tmp_path / "run" / "results.json"
    stored = json.loads(path.read_text())["recipe"]["TrainingArguments"]
    assert (stored["eval_strategy"], stored["save_strategy"], stored["use_cpu"]) == ("epoch", "no", False)
    repeated = tasks.parse([str(path), "--validation_fraction", "0.4", "--save_strategy", "epoch"])[-1]
    assert repeated.eval_strategy == repeated.save_strategy == "epoch" and repeated.load_best_model_at_end
    arguments = TrainingArguments(output_dir="x")
    arguments.epoch_steps = arguments.eval_steps = 6  # as a stream sets them
    assert (arguments.as_given()["epoch_steps"], arguments.as_given()["eval_steps"]) == (None, None)


def assert_same_outputs(first, second):
    for name in ("model.safetensors", "predictions.csv", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_weights_are_the_same_to_the_bit(finished, tmp_path, warnings_of):
    results = finished / "run" / "results.json"
    assert warnings_of(train, str(results), "--output_dir", str(tmp_path / "again")) == []
    assert_same_outputs(finished / "run", tmp_path / "again")
    first, second = (json.loads(path.read_text()) for path in (results, tmp_path / "again" / "results.json"))
    assert first["metrics"] == second["metrics"] and first["data"] == second["data"]
    own = {"output_dir", "run_name"}
    for part, values in first["recipe"].items():
        if isinstance(values, dict):
            assert {key for key in values if values[key] != second["recipe"][part][key]} <= own
    train(str(results), "--output_dir", str(tmp_path / "other"), "--seed", "2")
    weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert weights != (finished / "run" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_fresh_processes_repeat_each_other(finished, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for source, output in ((finished / "recipe.json", first), (first / "results.json", second)):
        process = run_program("train_hf.py", source, "--output_dir", output)
        assert process.returncode == 0 and "differ" not in process.stderr, process.stderr[-2000:]
    assert_same_outputs(first, second)


def test_differences_are_told_in_a_line_each(finished, tmp_path, warnings_of):
    shutil.copytree(finished / "clips", tmp_path / "clips")
    write_tone(tmp_path / "clips" / "low" / "low_3.wav", seconds=0.2, hz=300, seed=99)  # another recording
    results = json.loads((finished / "run" / "results.json").read_text())
    results["versions"]["transformers"] = "4.99.0"
    results["machine"]["threads"] = 64
    results["recipe"]["DataArguments"] |= {"dataset_name": str(tmp_path / "clips"), "a_later_key": 7}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    lines = warnings_of(train, str(path), "--output_dir", str(tmp_path / "again"))
    assert lines[0] == f"{path}: a_later_key is unknown to this version, where it was 7"
    assert lines[1].startswith(f"{path}: transformers was 4.99.0, here it is ")
    assert lines[2].startswith(f"{path}: threads was 64, here it is ")
    changed = [
        split for split in ("train", "validation", "test") if any(f"the {split} split" in line for line in lines)
    ]
    assert len(changed) == 1 and len(lines) == 4, lines
    assert lines[3].endswith(f"the {changed[0]} split was of other clips; the weights will differ")


def test_a_run_is_not_repeated_into_its_own_folder_unasked(finished):
    with pytest.raises(InputError, match="holds a run already"):
        train(str(finished / "run" / "results.json"))


def test_the_recipe_is_the_one_of_the_run(finished):
    wanted = tasks.parse([str(finished / "recipe.json")])
    found = tasks.parse([str(finished / "run" / "results.json"), "--learning_rate", "0.5"])
    assert found[0] == wanted[0] == "classification"
    assert found[1] == wanted[1] and found[1].pooling == [["mean"], ["mean", "max"]]
    assert found[2] == wanted[2] and found[3] == wanted[3]
    training = found[-1]
    assert training.learning_rate == 0.5 and training.head_learning_rate == 1e-2
    assert training.lr_scheduler_type == "cosine" and training.num_train_epochs == 2 and training.warmup_steps == 2
    assert training.reproduces[0] == str(finished / "run" / "results.json") and wanted[-1].reproduces is None


def test_a_value_that_was_none_stays_none(finished, tmp_path):
    results = json.loads((finished / "run" / "results.json").read_text())
    assert results["recipe"]["TrainingArguments"]["save_total_limit"] == 2
    results["recipe"]["TrainingArguments"]["save_total_limit"] = None
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert tasks.parse([str(tmp_path / "results.json")])[-1].save_total_limit is None


@pytest.mark.parametrize(("metric", "chosen"), [("loss", "loss"), (None, "accuracy")])
def test_the_metric_that_chose_the_checkpoint_chooses_again(finished, tmp_path, metric, chosen):
    """Transformers fills in `loss` where a recipe is silent; it is no sign that a recipe was."""
    recipe = json.loads((finished / "recipe.json").read_text())
    recipe |= {"output_dir": str(tmp_path / "run"), "max_steps": 1} | (
        {"metric_for_best_model": metric} if metric else {}
    )
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    train(str(tmp_path / "recipe.json"))
    _, *parts = tasks.parse([str(tmp_path / "run" / "results.json"), "--output_dir", str(tmp_path / "again")])
    repeated = next(part for part in parts if isinstance(part, TrainingArguments))
    assert repeated.chosen_metric == chosen and repeated.chosen_direction == (chosen == "accuracy")
    # A cross-validation leaves the choice to each of its runs.
    _, *parts = tasks.parse([str(tmp_path / "recipe.json")])
    described = cross_validation.Recipe(*parts).describe()["TrainingArguments"]
    assert described["metric_for_best_model"] == metric


def test_what_a_sweep_had_found_is_in_the_recipe(finished, tmp_path):
    """The sweep's folder need not be there any more."""
    results = json.loads((finished / "run" / "results.json").read_text())
    results["recipe"]["ModelArguments"] |= {"from_sweep": str(tmp_path / "gone"), "fusion_layers": [1]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    model = tasks.parse([str(tmp_path / "results.json")])[1]
    assert model.from_sweep is None and model.fusion_layers == [1]


def test_unknown_keys_of_the_command_line_are_refused(finished):
    with pytest.raises(InputError, match="unknown key learning_rat; did you mean learning_rate"):
        tasks.parse([str(finished / "run" / "results.json"), "--learning_rat", "1"])


def fingerprint(folder):
    return reproduction.describe_data(load_folder(folder, Columns()))["train"]["sha256"]


def test_the_fingerprint_is_of_clips_and_labels_but_not_of_their_place(tmp_path):
    write_class_folders(tmp_path / "a", 3, seconds=5.0)  # files of 160 kB, of which the middle is not read
    before = fingerprint(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint(tmp_path / "b") == before
    changes = {
        "another label": lambda: (tmp_path / "b" / "low").rename(tmp_path / "b" / "lower"),
        "another name": lambda: (tmp_path / "b" / "low" / "low_0.wav").rename(tmp_path / "b" / "low" / "low_00.wav"),
        "another length": lambda: write_tone(tmp_path / "b" / "low" / "low_0.wav", seconds=5.001, hz=900),
        "another recording": lambda: write_tone(tmp_path / "b" / "low" / "low_0.wav", seconds=5.0, hz=901),
        "a clip more": lambda: write_tone(tmp_path / "b" / "low" / "low_9.wav"),
        "a clip less": lambda: (tmp_path / "b" / "low" / "low_0.wav").unlink(),
        "a clip of which nothing can be read": lambda: (tmp_path / "b" / "low" / "low_0.wav").write_bytes(b""),
    }
    for name, change in changes.items():
        shutil.rmtree(tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        change()
        assert fingerprint(tmp_path / "b") != before, name


def test_parts_and_bytes_have_fingerprints(tmp_path):
    path = write_tone(tmp_path / "long.wav", seconds=2.0)
    table = pandas.DataFrame({"file": ["long.wav"] * 2, "label": ["a", "b"], "start": [0.0, 1.0], "end": [1.0, 2.0]})
    table.to_csv(tmp_path / "a.csv", index=False)
    columns = Columns(start="start", end="end")
    first = reproduction.describe_data({"train": load_table(tmp_path / "a.csv", columns)})
    table.assign(end=[1.0, 1.5]).to_csv(tmp_path / "a.csv", index=False)
    second = reproduction.describe_data({"train": load_table(tmp_path / "a.csv", columns)})
    assert first["train"]["clips"] == 2 and first != second
    table = pandas.DataFrame({"audio": [{"path": "long.wav", "bytes": path.read_bytes()}], "label": ["a"]})
    table.to_parquet(tmp_path / "stored.parquet")
    pandas.DataFrame({"audio": [str(path)], "label": ["a"]}).to_csv(tmp_path / "path.csv", index=False)
    stored, in_file = (
        reproduction.describe_data({"train": load_table(tmp_path / name, Columns())})
        for name in ("stored.parquet", "path.csv")
    )
    assert stored == in_file
