"""Tests what a training goes on from: checkpoints that are whole, damaged, in parts, or of an earlier version."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from annotated_tones import write_annotated_tones
from audio_files import write_class_folders
from safetensors.torch import load_file
from tiny_runs import TINY, TINY_DETECTION, train

from training import tasks
from training.base.averaging import TRAINED_WEIGHTS_NAME
from training.base.resumption import CLIPS_PER_STEP, DATA, check_same_clips
from training.base.trainer import AudioTrainer
from training.classification.train import choose_order
from training.detection import train as detection
from training.errors import InputError

SETTINGS = {"num_train_epochs": 1, "ema_decay": 0.5, "save_total_limit": 1, "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The output folder of a run of one epoch, and its recipe."""
    folder = tmp_path_factory.mktemp("finished")
    clips = write_class_folders(folder / "clips", 10)
    values = TINY | SETTINGS | {"dataset_name": str(clips), "output_dir": str(folder / "run")}
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(values))
    train(str(recipe))
    return folder / "run", str(recipe)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run's checkpoint, the only one of its output folder."""
    (checkpoint,) = finished[0].glob("checkpoint-*")
    return Path(shutil.copytree(checkpoint, tmp_path / "run" / checkpoint.name))


def resume(checkpoint: Path, recipe: str, *words: str):
    words = ["--output_dir", str(checkpoint.parent), "--resume_from_checkpoint", "true", *words]
    train(recipe, *words, "--num_train_epochs", "2")


def seconds_of(folder: Path) -> float:
    return json.loads((folder / "results.json").read_text())["training"]["seconds"]


def change_state(checkpoint: Path, change):
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    change(state["stateful_callbacks"])
    path.write_text(json.dumps(state))


def test_a_resumed_run_adds_to_the_seconds_of_its_checkpoint(finished, run):
    def change(states):
        own = states["Resumption"]["attributes"]
        assert 0 < own["earlier_s"] <= seconds_of(finished[0])
        own["earlier_s"] = 1e6

    change_state(run, change)
    resume(run, finished[1])
    assert 0 < seconds_of(run.parent) - 1e6 < 1e5


def test_a_checkpoint_without_states_of_callbacks_is_resumed(finished, run):
    """Those of earlier versions have no seconds, and a run may get early stopping when it is resumed."""
    change_state(run, lambda states: states.pop("Resumption"))
    words = ["--early_stopping_patience", "5", "--load_best_model_at_end", "true", "--save_total_limit", "2"]
    resume(run, finished[1], *words)
    assert 0 < seconds_of(run.parent) < 1e5
    state = run.with_name("checkpoint-6") / "trainer_state.json"
    kept = json.loads(state.read_text())["stateful_callbacks"]
    assert kept.keys() == {"EarlyStopping", "TrainerControl", "Resumption"}


PARTS = ["config.json", "trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("name", PARTS)
def test_a_checkpoint_without_a_part_is_named(finished, run, name):
    """Trainer would begin a missing optimizer, schedule or random state anew without a word."""
    (run / name).unlink()
    with pytest.raises(
        InputError, match=f"{run.name}: has no {name}, so the training cannot go on as it was"
    ) as caught:
        resume(run, finished[1])
    assert "\n" not in str(caught.value) and "--resume_from_checkpoint FOLDER" in str(caught.value)
    assert not (run.parent / "results.json").exists()


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize(
    "name", [*PARTS, "preprocessor_config.json", "tuning.json", "training_data.json", TRAINED_WEIGHTS_NAME]
)
def test_a_damaged_checkpoint_is_named(finished, run, name, share):
    """A full disk or a copy that was stopped leaves files that are empty or end early."""
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"{run.name}.*(cannot be used here|is damaged)") as caught:
        resume(run, finished[1])
    assert "\n" not in str(caught.value) and "--resume_from_checkpoint FOLDER" in str(caught.value)


def test_a_folder_that_is_no_checkpoint_is_named(finished, run):
    with pytest.raises(InputError, match="run: has no trainer_state.json"):
        resume(run, finished[1], "--resume_from_checkpoint", str(finished[0]))


def test_a_moved_run_keeps_its_best_checkpoint(finished, tmp_path):
    """The state of a checkpoint has the path of the folder that the run had."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    words = ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss", "--ema_decay", "null"]
    words += ["--save_total_limit", "2"]
    train(finished[1], "--output_dir", str(folder), *words)
    shutil.move(folder, moved)
    path = moved / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    assert state["best_model_checkpoint"] == str(folder / "checkpoint-3")
    path.write_text(json.dumps(state | {"best_metric": -1.0}))  # no later loss is below
    train(
        finished[1], "--output_dir", str(moved), *words, "--resume_from_checkpoint", "true", "--num_train_epochs", "2"
    )
    state = json.loads((moved / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(moved / "checkpoint-3")
    best, last, kept = (
        load_file(part / "model.safetensors") for part in (moved / "checkpoint-3", moved / "checkpoint-6", moved)
    )
    assert all(torch.equal(best[name], kept[name]) for name in best)
    assert not all(torch.equal(last[name], kept[name]) for name in last)


def test_a_checkpoint_of_another_folder_goes_on_with_its_own_best_one(finished, run, tmp_path):
    """The run that the output folder holds has a checkpoint of the same step, which became the model."""
    path = run / "trainer_state.json"
    state = json.loads(path.read_text()) | {"best_metric": -1.0, "best_global_step": 3}  # no later loss is below
    path.write_text(json.dumps(state | {"best_model_checkpoint": str(run)}))
    other = Path(shutil.copytree(run, tmp_path / "other" / run.name)).parent
    words = ["--output_dir", str(other), "--resume_from_checkpoint", str(run)]
    words += ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss", "--save_total_limit", "2"]
    with pytest.raises(InputError, match="other: holds a run already; add"):
        resume(run, finished[1], *words)
    assert (other / run.name).is_dir()
    resume(run, finished[1], *words, "--overwrite", "true")
    assert [path.name for path in other.glob("checkpoint-*")] == ["checkpoint-6"] and run.is_dir()
    state = json.loads((other / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(run)


def test_other_clips_are_refused(finished, run, tmp_path):
    """Divided anew, clips that were trained on would be tested."""
    clips = Path(shutil.copytree(finished[0].with_name("clips"), tmp_path / "clips"))
    resume(run, finished[1], "--dataset_name", str(clips))  # in another folder they are the same
    shutil.copy(min(clips.glob("*/*.wav")), clips / "low" / "another.wav")
    message = "was made with other train clips; resume with the same clips and seed, or begin anew with --overwrite"
    with pytest.raises(InputError, match=message):
        resume(run, finished[1], "--dataset_name", str(clips))
    with pytest.raises(InputError, match="was made with other train clips"):
        resume(run, finished[1], "--seed", "2")
    with pytest.raises(InputError, match="was made with 12 train clips, now there are 16; resume with"):
        resume(run, finished[1], "--validation_fraction", "0")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("learning_rate", "1e-4", "learning rate 0.001, now 0.0001"),
        ("weight_decay", "0.1", "weight decay 0.0, now 0.1"),
        ("adam_beta1", "0.5", r"betas of Adam \(0.9, 0.999\), now \(0.5, 0.999\)"),
    ],
)
def test_other_settings_of_the_optimizer_are_refused(finished, run, option, value, message):
    """Those of the checkpoint would replace them without a word."""
    with pytest.raises(InputError, match=f"checkpoint-3: was made with {message}; resume with the same"):
        resume(run, finished[1], f"--{option}", value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampling_rate", "8000"], "sampling_rate 16000, now 8000"),
        (["--sampling_rate", "8000", "--compute_statistics", "true"], "sampling_rate 16000, now 8000"),
        (["--mean", "-5"], "mean -6.0, now -5.0"),
    ],
)
def test_other_features_are_refused(finished, run, words, message):
    """The weights were trained with those of the checkpoint."""
    with pytest.raises(InputError, match=f"checkpoint-3: was made with {message}; resume with the same recipe"):
        resume(run, finished[1], *words)


def test_a_checkpoint_without_a_feature_extractor_is_resumed(finished, run):
    (run / "preprocessor_config.json").unlink()
    resume(run, finished[1])
    assert (run.parent / "results.json").exists()


def test_statistics_that_are_computed_again_are_the_same(finished, tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--mean", "null", "--std", "null", "--compute_statistics", "true"]
    train(finished[1], *words)
    train(finished[1], *words, "--resume_from_checkpoint", "true", "--num_train_epochs", "2")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["steps"] == 6


@pytest.mark.parametrize("weak", [{}, {"weak": {"clips": 4, "sha256": "b"}}, {"weak": {"clips": 3, "sha256": "c"}}])
def test_weak_clips_of_a_detector_must_be_the_same(tmp_path, weak):
    train = {"train": {"clips": 2, "sha256": "a"}}
    (tmp_path / DATA).write_text(json.dumps(train | {"weak": {"clips": 3, "sha256": "b"}}))
    check_same_clips(str(tmp_path), train | {"weak": {"clips": 3, "sha256": "b"}})
    check_same_clips(str(tmp_path), {})  # another process than the main one
    with pytest.raises(InputError, match="was made with (3 weak clips, now there are [04]|other weak clips); resume"):
        check_same_clips(str(tmp_path), train | weak)


def test_another_seed_is_refused_also_with_the_same_clips(finished, run, tmp_path):
    """Clips would come in another order, some of them twice in the epoch."""
    message = "was made with seed 1, now 2; resume with the same, or begin anew"
    with pytest.raises(InputError, match=message):
        resume(run, finished[1], "--split_seed", "1", "--seed", "2")
    with pytest.raises(InputError, match="was made with data_seed None, now 3; resume"):
        resume(run, finished[1], "--data_seed", "3")
    facts = json.loads((run / DATA).read_text())
    (run / DATA).write_text(json.dumps({name: facts[name] for name in facts if "seed" not in name}))
    check_same_clips(str(run), {}, {"seed": 2})  # an earlier version stored none


def test_another_number_of_clips_per_step_is_refused(finished, run, monkeypatch):
    """Trainer goes on from a number of steps: other ones would skip or repeat epochs."""
    for words in (["--per_device_train_batch_size", "8"], ["--gradient_accumulation_steps", "2"]):
        with pytest.raises(InputError, match=r"was made with clips per step \(.*\) 4, now 8; resume with the same"):
            resume(run, finished[1], *words)
    resume(run, finished[1], "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    _, data, _, _, arguments = tasks.parse([finished[1], "--output_dir", str(run.parent)])[1:]
    monkeypatch.setattr(type(arguments), "world_size", 2)
    assert choose_order(data, arguments)[CLIPS_PER_STEP] == 8
    arguments.train_sampling_strategy = "token_budget"
    assert CLIPS_PER_STEP not in choose_order(data, arguments) and 2 in choose_order(data, arguments).values()
    data.streaming = True
    assert choose_order(data, arguments) == {"seed": 1, "data_seed": None}


def test_a_detector_is_resumed_with_the_same_crops(tmp_path):
    words = []
    for seed, split in enumerate(("train", "validation", "test")):
        table = write_annotated_tones(tmp_path / split, num_recordings=2, seconds=2.0, seed=seed)
        words += [f"--{split}_annotations", str(table)]
    path = tmp_path / "recipe.json"
    values = TINY_DETECTION | {"crops_per_epoch": 8, "max_steps": 1, "save_steps": 1, "save_strategy": "steps"}
    values |= {"validation_fraction": 0, "test_fraction": 0, "load_best_model_at_end": False}
    path.write_text(json.dumps(values | {"output_dir": str(tmp_path / "run")}))

    def train(*changes):
        detection.run(*tasks.parse([str(path), *words, *changes])[1:])

    train()
    for option, value, message in (
        ("seed", "2", "seed 1, now 2"),
        ("per_device_train_batch_size", "4", "clips per step .* 8, now 4"),
        ("crop_s", "0.5", "crop_s None, now 0.5"),
        ("event_share", "0.9", "event_share 0.5, now 0.9"),
    ):
        with pytest.raises(InputError, match=f"checkpoint-1: was made with {message}; resume with the same"):
            train("--resume_from_checkpoint", "true", f"--{option}", value)
    facts = json.loads((tmp_path / "run" / "checkpoint-1" / DATA).read_text())
    assert facts["crops"]["of_recordings"] == 8 and facts["crops"]["of_weak_clips"] == 0
    seconds = str(facts["crops"]["samples"] / 16000)
    train("--resume_from_checkpoint", "true", "--weak_share", "0.3", "--crop_s", seconds)  # the same crops


def test_an_error_of_a_library_is_about_the_recipe_in_the_first_step_alone(monkeypatch):
    """A resumed training begins at another step than zero, and the trainer of Transformers 5.5 does not keep it."""

    def fail(self):
        raise ValueError("unknown")

    monkeypatch.setattr("transformers.Trainer.training_step", fail)
    trainer = object.__new__(AudioTrainer)
    trainer.state = SimpleNamespace(global_step=3)
    for _ in range(2):  # batches of the step
        with pytest.raises(InputError, match=r"^options or checkpoint of the training: .*\(unknown\)"):
            trainer.training_step()
    trainer.state.global_step = 4
    with pytest.raises(ValueError, match="^unknown$"):
        trainer.training_step()
