"""training/recipe.py and tasks.py: recipes, overrides, and one line for what is wrong in them."""

import json

import pytest
import yaml
from audio_files import ROOT

from training.base.arguments import TrainingArguments
from training.base.outputs import check_output_folder
from training.errors import InputError
from training.tasks import TASKS, parse

MINIMAL = {"dataset_name": "clips", "output_dir": "runs/x"}


@pytest.fixture
def recipe(tmp_path):
    def write(text="", **values):
        path = tmp_path / "recipe.yaml"
        path.write_text(text or json.dumps(MINIMAL | values))
        return str(path)

    return write


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_parses(path):
    recipe = yaml.safe_load(path.read_text())
    words = []
    if recipe["task"] in ("mspm", "asit"):
        words = [] if "train_sources" in recipe else ["--train_sources", "x"]
    elif "train_file" not in recipe and "dataset_name" not in recipe:
        words = ["--dataset_name", "x"]
    task, *parts = parse([str(path), *words])
    assert task == recipe["task"] and len(parts) == len(TASKS[task].arguments)


def test_the_command_line_wins_and_numbers_are_numbers(recipe):
    path = recipe(learning_rate="1e-4", seed=3, weight_decay=1e-6)
    *_, arguments = parse([path, "--seed", "5", "--noise"])
    assert (arguments.learning_rate, arguments.seed, arguments.weight_decay) == (1e-4, 5, 1e-6)


def test_model_overrides_keep_their_kinds(recipe):
    path = recipe(fusion_layers=[1, -1], pooling=["mean", "max"], config_overrides={"hidden_size": 32})
    _, model, *_ = parse([path, "--readout", "frames"])
    assert model.overrides() == {
        "fusion_layers": [1, -1],
        "pooling": ["mean", "max"],
        "hidden_size": 32,
        "readout": "frames",
    }
    _, model, *_ = parse([recipe(pooling=[["mean"], ["max", "min"]])])
    assert model.overrides() == {"pooling": [["mean"], ["max", "min"]]}


@pytest.mark.parametrize(
    ("words", "values", "pattern"),
    [
        (["--lerning_rate", "1"], {}, "command line: unknown key lerning_rate; did you mean learning_rate\\?"),
        ([], {"nois": True}, "recipe.yaml: unknown key nois; did you mean noise\\?"),
        (["--learning", "1"], {}, "unknown key learning; did you mean learning_rate\\?"),
        (["--learning_rate", "fast"], {}, "learning_rate.*invalid float value: 'fast'"),
        (["--task", "dance"], {}, "task: 'dance' is unknown; known are classification"),
        (["--train_file", "x.csv"], {}, "set either dataset_name or train_file"),
        (["--test_fraction", "0.7"], {}, "test_fraction: must be from 0 to below 0.5, got 0.7"),
        (["--config_overrides", "{"], {}, "config_overrides: not readable as JSON"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_one_line(recipe, words, values, pattern):
    with pytest.raises(InputError, match=pattern):
        parse([recipe(**values), *words])


@pytest.mark.parametrize(("text", "pattern"), [("a: [", "not readable as YAML"), ("- a", "expected key: value lines")])
def test_what_is_no_recipe_is_told(recipe, text, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        parse([recipe(text)])
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_told():
    with pytest.raises(InputError, match="nowhere.yaml: no such recipe"):
        parse(["nowhere.yaml"])
    with pytest.raises(InputError, match="usage"):
        parse([])


def test_an_output_folder_with_a_run_needs_a_word(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"))
    assert check_output_folder(arguments) is None
    (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "run" / "unfinished-checkpoint" / "checkpoint-9").mkdir(parents=True)
    with pytest.raises(InputError, match="holds a run already; add --resume_from_checkpoint true"):
        check_output_folder(arguments)
    arguments.resume_from_checkpoint = "true"
    assert check_output_folder(arguments) == str(tmp_path / "run" / "checkpoint-7")
    arguments.resume_from_checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere is no folder"):
        check_output_folder(arguments)
    arguments.resume_from_checkpoint, arguments.overwrite = None, True
    assert check_output_folder(arguments) is None
