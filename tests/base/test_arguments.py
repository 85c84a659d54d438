"""Tests training/recipe.py and tasks.py: recipes, overrides, help, and one line per error."""

import collections
import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from audio_files import ROOT

from training.base.arguments import ModelArguments, TrainingArguments
from training.base.outputs import check_output_folder
from training.data.annotations import read_label_map
from training.data.arguments import AnnotationArguments, UnlabelledDataArguments
from training.errors import InputError
from training.recipe import GROUPS, Arguments, described, name_positionals, parse_words, read_recipe
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
    elif recipe["task"] == "detection":
        words = ["--train_annotations", "x"]
    elif recipe["task"] == "event_evaluation":
        words = ["--events", "x", "--annotations", "x"]
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
        (["--epochs", "3"], {}, "unknown key epochs; did you mean num_train_epochs\\?"),
        (["--batch-size", "3"], {}, "unknown key batch_size; did you mean per_device_train_batch_size\\?"),
        (["--learning_rate", "fast"], {}, "learning_rate.*invalid float value: 'fast'"),
        (["--task", "dance"], {}, "task: 'dance' is unknown; known are classification"),
        (["--train_file", "x.csv"], {}, "set either dataset_name or train_file"),
        (["--test_fraction", "0.7"], {}, "test_fraction: must be from 0 to below 0.5, got 0.7"),
        (["--config_overrides", "{"], {}, "config_overrides: not readable as JSON"),
        (["--loss", "hinge"], {}, "loss: must be cross_entropy, binary_cross_entropy or focal, got 'hinge'"),
        (["--learning_rate", "-1"], {}, "learning_rate: must be 0 or more, got -1.0"),
        (["--per_device_eval_batch_size", "0"], {}, "per_device_eval_batch_size: must be 1 or more, got 0"),
        (["--num_folds", "3"], {}, "num_folds: is no option of task classification; leave it out"),
        (["--task", "mspm"], {}, "recipe.yaml: dataset_name: is no option of task mspm; leave it out"),
        (["--remove_unused_columns", "true"], {}, "remove_unused_columns: has no effect here"),
        (["--restore_callback_states_from_checkpoint", "true"], {}, "_checkpoint: is not needed: a resumption goes on"),
        (["--task", "cross_validation", "--streaming"], {}, "streaming: folds need all clips at once"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_one_line(recipe, words, values, pattern):
    with pytest.raises(InputError, match=pattern):
        parse([recipe(**values), *words])


def nested(levels: int) -> str:
    """A list of two, and of nine references to the level below at each level."""
    text = "&a0 [x, x]"
    for level in range(1, levels):
        text = f"&a{level} [{text}{f', *a{level - 1}' * 8}]"
    return text


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a: [", "not readable as YAML"),
        ("- a", "expected key: value lines"),
        ("a: " + "[" * 5000, "not readable as YAML or JSON"),
        ("a: 2020-13-40", "not readable as YAML or JSON"),
        (f"label_column: {nested(12)}", "holds more than 5,000,000 values"),
        ("label_column: &a [x, *a]", "holds more than 5,000,000 values"),
        ("config_overrides: &a {x: *a}", "holds more than 5,000,000 values"),
        ("seed: 1\nconfig_overrides: {x: 1, x: 2}", r"\(the key x is there 2 times; keep one\)"),
        ('{"seed": 1, "seed": 2}', r"\(the key seed is there 2 times; keep one\)"),
    ],
)
def test_what_is_no_recipe_is_told(recipe, text, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        parse([recipe(text)])
    assert "\n" not in str(caught.value)


WRITTEN = """
dataset_name: 2026-05-01
output_dir: --x
none_label: no
unknown_classes: [yes, no, 007, 1e-5, 2026-05-01]
mean: -4e0
seed: 010
report_to: none
eval_strategy: no
html_report: off
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1e-6}
config_overrides: {layer_norm_eps: 1E-6, hidden_size: 032, embed_dim: 0x10}
"""


def test_a_recipe_means_what_is_written(recipe):
    """YAML 1.1 has dates, octal numbers, yes and no, and takes 1e-6 for a text."""
    _, model, data, *_, training = parse([recipe(WRITTEN)])
    assert (data.dataset_name, data.none_label, training.output_dir) == ("2026-05-01", "no", "--x")
    assert data.unknown_classes == ["yes", "no", "007", "1e-5", "2026-05-01"]
    assert (data.mean, training.seed, training.report_to, training.html_report) == (-4.0, 10, [], False)
    assert (training.eval_strategy, training.lr_scheduler_kwargs) == ("no", {"min_lr": 1e-6})
    assert model.config_overrides == {"layer_norm_eps": 1e-6, "hidden_size": 32, "embed_dim": 16}


def test_a_mapping_for_a_text_has_the_texts_of_its_labels(recipe):
    path = recipe("label_map:\n  007: bird\n  no: 1.10\n  1e-3: off\n  wind:\n  ~x: 'null'\n")
    annotations = parse_words((AnnotationArguments,), [], "", "recipe", read_recipe(Path(path)))[0]
    labels = read_label_map(annotations.label_map)
    assert labels == {"007": "bird", "no": "1.10", "1e-3": "off", "wind": None, "~x": "null"}
    path = recipe("train_sources: {path: 007, weight: 2}")  # numbers of a list's mapping stay numbers
    sources = parse_words((UnlabelledDataArguments,), [], "", "recipe", read_recipe(Path(path)))[0].train_sources
    assert [json.loads(entry)["weight"] for entry in sources] == [2]


def test_json_is_read_as_json(recipe):
    """YAML would refuse the tabs, take 1e-06 for a text, and make two broken halves of a character."""
    values = {"config_overrides": {"layer_norm_eps": 1e-6}, "dataset_name": "\U0001f426", "output_dir": "x"}
    for text in (json.dumps(values, indent="\t"), json.dumps(values)):
        _, model, data, *_ = parse([recipe(text)])
        assert model.config_overrides == {"layer_norm_eps": 1e-6} and data.dataset_name == "\U0001f426"


def test_a_label_may_be_called_none(recipe):
    path = recipe(none_label="background", unknown_classes=["a"])
    data = parse([path, "--none_label", "none", "--unknown_classes", "null"])[2]
    assert (data.none_label, data.unknown_classes) == ("none", ["null"])
    data = parse([path, "--none_label", "", "--unknown_classes="])[2]
    assert (data.none_label, data.unknown_classes) == (None, None)


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


@pytest.mark.parametrize(
    ("word", "meant"), [("yes", "true"), ("On", "true"), ("no", "false"), ("off", "false"), ("checkpoint-7",) * 2]
)
def test_a_resumption_may_be_yes_or_no(recipe, word, meant):
    """YAML 1.1 takes them for truth."""
    *_, training = parse([recipe(f"dataset_name: clips\noutput_dir: runs/x\nresume_from_checkpoint: {word}\n")])
    assert training.resume_from_checkpoint == meant


@dataclasses.dataclass
class Limited(Arguments):
    share: float = described(0.5, "A share.", at_least=0, below=1)
    rate: float = described(0.5, "A rate.", above=0, at_most=1)
    sizes: list[int] = described([1], "Sizes.", at_least=1)
    kinds: list[str] | None = described(None, "Kinds.", choices=("a", "b"))


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"share": 1.0}, "share: must be from 0 to below 1, got 1.0"),
        ({"share": float("nan")}, "share: must be from 0 to below 1, got nan"),
        ({"rate": 0.0}, "rate: must be above 0 and at most 1, got 0.0"),
        ({"sizes": [3, 0]}, "sizes: must be 1 or more, got 0"),
        ({"sizes": []}, r"sizes: must be 1 or more, got \[\]"),
        ({"kinds": ["a", "c"]}, "kinds: must be a or b, got 'c'"),
    ],
)
def test_limits_and_choices_are_checked_wherever_arguments_are_made(values, pattern):
    with pytest.raises(InputError, match=f"^{pattern}$"):
        Limited(**values)
    assert Limited(share=0, rate=1, sizes=[1, 9], kinds=["b"]).kinds == ["b"]


def test_a_key_of_a_recipe_can_be_unset(recipe):
    path = recipe(
        validation_file="x.csv", model_name_or_path="x", pooling=["max"], fusion_norm="shared", save_total_limit=3
    )
    words = ["--validation_file", "null", "--model-name-or-path", "none", "--pooling", "", "--save_total_limit=none"]
    _, model, data, *_, training = parse([path, *words, "--report_to", "none", "--eval_strategy", "no"])
    assert (data.validation_file, model.model_name_or_path, model.pooling) == (None, None, None)
    assert training.save_total_limit is None
    assert training.report_to == [] and training.eval_strategy == "no" and model.fusion_norm == "shared"
    assert parse([path, "--fusion_norm", "none"])[1].fusion_norm == "none"  # a value of this key
    assert parse([path, "--fusion_norm", "null"])[1].fusion_norm is None
    with pytest.raises(InputError, match="invalid int value: 'none'"):
        parse([path, "--seed", "none"])
    unset = parse([recipe(validation_file=None, save_total_limit=None, pooling=None)])
    assert (unset[2].validation_file, unset[1].pooling, unset[-1].save_total_limit) == (None, None, None)
    assert parse([recipe(save_total_limit=None), "--save_total_limit", "4"])[-1].save_total_limit == 4
    assert parse([recipe(seed=None)])[-1].seed == parse([recipe()])[-1].seed  # may not be unset


@pytest.mark.parametrize("task", TASKS)
def test_the_help_of_a_task_lists_its_options_once_by_groups(task, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--task", task, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    ours = re.findall(r"^  --(\w+)", text, re.MULTILINE)
    assert not [name for name, count in collections.Counter(ours).items() if count > 1]
    headings = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert headings == [name for name in GROUPS if name in headings]
    assert {"task", "output_dir", "overwrite"} <= set(ours) and "report" in headings
    has_page = task in ("classification", "cross_validation", "evaluation", "detection", "event_evaluation")
    assert ("report_clips" in ours) == has_page  # the page of a pretraining has no clips
    assert ("html_report" in ours) == (has_page or task in ("mspm", "asit"))
    trains_all = task not in ("evaluation", "event_evaluation", "sweep", "probe")
    assert ("compute_statistics" in ours) == trains_all
    assert ("bf16 (false)" in " ".join(text.split())) == trains_all
    assert not re.search(r"remove_unused_columns|hub_token|Leave this off", text)


OLD_RESULTS = json.loads((ROOT / "tests" / "fixtures" / "old_results.json").read_text())


@pytest.mark.parametrize("task", OLD_RESULTS)
def test_results_of_older_versions_are_recipes(task, tmp_path, caplog):
    """Reads results of commit 06383e5: keys that the task no longer has are dropped silently."""
    (tmp_path / "results.json").write_text(json.dumps(OLD_RESULTS[task]))
    found, *parts = parse([str(tmp_path / "results.json"), "--output_dir", "other"])
    assert found == task and not caplog.records
    stored = {}
    for values in OLD_RESULTS[task]["recipe"].values():
        stored |= values if isinstance(values, dict) else {}
    not_repeated = {"output_dir", "run_name", "logging_dir", "use_cpu", "local_rank", "from_sweep"}
    for part in parts:
        values = part.to_dict() if isinstance(part, TrainingArguments) else dataclasses.asdict(part)
        for name in (values.keys() & stored.keys()) - not_repeated - part.refused.keys():
            assert values[name] == stored[name], name


@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("classification", {"remove_unused_columns": False, "label_smoothing_factor": 0, "hub_token": None}),
        ("mspm", {"html_report": True, "report_clips": 12, "head_learning_rate": None, "optim": "adamw_torch_fused"}),
        ("sweep", {"streaming": False, "shuffle_buffer": 1000, "compute_statistics": False}),
        ("evaluation", {"train_file": None, "mean": None, "sampling_rate": 16000, "train_split": "train"}),
    ],
)
def test_a_recipe_may_hold_what_another_task_ignores_by_default(recipe, task, values):
    data = {"mspm": {"train_sources": ["a"]}, "evaluation": {"test_file": "a.csv"}}.get(task, {"train_file": "a.csv"})
    path = recipe(text=json.dumps({"task": task, "output_dir": "x", **data, **values}))
    assert parse([path])[0] == task


def test_only_a_whole_value_of_the_command_line_unsets_a_key(recipe):
    path = recipe(label_column="none", pooling=["mean", "none"])
    _, model, data, *_ = parse([path])
    assert data.label_column == "none" and model.pooling == ["mean", "none"]
    assert parse([path, "--label_column", "none"])[2].label_column is None
    assert parse([path, "--label_column", "none", "--label_column", "x"])[2].label_column == "x"


def test_transformers_own_options_keep_their_choices_and_bare_switches(recipe):
    assert parse([recipe(), "--activation_checkpointing"])[-1].activation_checkpointing is True
    with pytest.raises(InputError, match="invalid choice: 'quiet'"):
        parse([recipe(), "--log_level", "quiet"])


@dataclass
class Program(Arguments):
    model: str | None = described(None, "Model.")
    inputs: list[str] | None = described(None, "Inputs.")
    top_k: int = described(1, "Classes.")
    layers: list[int] | None = described(None, "Layers.")
    overwrite: bool = described(False, "Switch.")


@pytest.mark.parametrize(
    "words",
    [
        "M a b --top_k 3 --overwrite", "--top_k 3 M a b --overwrite", "--overwrite M --top-k=3 a b",
        "M --overwrite true a --top_k 3 b", "--overwrite --top_k 3 -- M a b",
    ],
)  # fmt: skip
def test_positional_words_may_stand_anywhere(words):
    words = name_positionals(words.split(), Program, "model", "inputs")
    (found,) = parse_words((Program,), words, "", "command line")
    assert found == Program("M", ["a", "b"], 3, None, True)


def test_words_after_a_double_dash_are_never_options():
    words = name_positionals(["M", "--layers", "1", "2", "--", "--y.wav"], Program, "model", "inputs")
    (found,) = parse_words((Program,), words, "", "command line")
    assert found == Program("M", ["./--y.wav"], 1, [1, 2], False)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_one_process_trains_on_one_gpu(recipe, monkeypatch, caplog, count):
    """Trainer would take them all, by nn.DataParallel, and a batch of each."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    *_, arguments = parse([recipe(), "--per_device_train_batch_size", "4"])
    assert (arguments.n_gpu, arguments.train_batch_size) == (min(count, 1), 4)
    assert ("3 GPUs: this process trains on the first one; accelerate launch --multi_gpu" in caplog.text) == (count > 1)


@pytest.mark.parametrize(
    ("own", "revision", "warned"),
    [
        ({}, "v2", None),
        ({"model_name_or_path": "hub/model"}, "v2", None),
        ({"model_revision": "v3"}, "v3", 'model_revision "v3"; the sweep has chosen "v2"'),
        ({"model_name_or_path": "other"}, "main", 'model_name_or_path "other"; the sweep has chosen "hub/model"'),
    ],
    ids=str,
)
def test_the_revision_of_a_sweep_is_that_of_its_model(tmp_path, caplog, own, revision, warned):
    chosen = {"model_name_or_path": "hub/model", "model_revision": "v2", "pooling": ["max"]}
    (tmp_path / "best.json").write_text(json.dumps({"model": chosen}))
    arguments = ModelArguments(from_sweep=str(tmp_path), **own)
    assert arguments.model_revision == revision and arguments.pooling == ["max"]
    assert (warned in caplog.text) if warned else not caplog.text
