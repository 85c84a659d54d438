"""What a recipe may say: the fields of each part, and how YAML or JSON and the command line become values."""

import dataclasses
import difflib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.trainer_utils import get_last_checkpoint

from .augmentation import AugmentationArguments
from .errors import InputError

TASKS = ("classification",)


def described(default, help_text: str):
    """A field with a default and the help that `train_hf.py --help` shows."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


@dataclass
class TaskArguments:
    """Which module of training/ runs the recipe."""

    task: str = described("classification", f"One of {', '.join(TASKS)}.")

    def __post_init__(self):
        if self.task not in TASKS:
            raise InputError(f"task: {self.task!r} is unknown; known are {', '.join(TASKS)}")


@dataclass
class ModelArguments:
    """The checkpoint, and what to change in its configuration. Unset fields keep the checkpoint's value."""

    model_name_or_path: str | None = described(None, "Folder or Hub name of a checkpoint; none: random weights.")
    config_overrides: dict | str | None = described(None, "Any fields of DualSSASTConfig, such as hidden_size.")
    fusion_layers: list[int] | None = described(None, "States to fuse: 0 the embedding, -1 the last block.")
    fusion_norm: str | None = described(None, "shared, separate or none.")
    readout: str | None = described(None, "patches, prefix or frames.")
    pooling: list[str] | None = described(None, "Some of mean, max, min; or one list per layer, as JSON.")
    pooling_combination: str | None = described(None, "sum, mean or concat.")
    fusion: str | None = described(None, "concat, sum or weighted.")
    classifier_hidden_sizes: list[int] | None = described(None, "Hidden layers of the classifier.")
    classifier_dropout: float | None = described(None, "Dropout in the classifier.")
    label_smoothing: float | None = described(None, "Label smoothing of the cross-entropy.")
    max_length: int | None = described(None, "Most frames (10 ms) per clip; positions are resized by SSAST's rule.")
    frequency_stride: int | None = described(None, "Step of the patches in mel bins; positions are resized.")
    time_stride: int | None = described(None, "Step of the patches in frames; positions are resized.")
    attn_implementation: str | None = described(None, "sdpa, eager, flash_attention_2, flex_attention.")

    def __post_init__(self):
        self.config_overrides = _as_dict("config_overrides", self.config_overrides)
        if self.pooling and self.pooling[0].startswith("["):
            self.pooling = [json.loads(entry) for entry in self.pooling]

    def overrides(self) -> dict:
        """The configuration fields that the recipe sets."""
        fields = (f.name for f in dataclasses.fields(self) if f.name not in ("model_name_or_path", "config_overrides"))
        return {
            **self.config_overrides,
            **{name: value for name in fields if (value := getattr(self, name)) is not None},
        }


@dataclass
class DataArguments:
    """Where the clips come from and how they are read."""

    dataset_name: str | None = described(None, "A data set on the Hub, or a local folder (class folders or metadata).")
    dataset_config_name: str | None = described(None, "Configuration of the Hub data set.")
    dataset_revision: str | None = described(None, "Branch, tag or commit of the Hub data set.")
    train_split: str = described("train", "Name of the training split.")
    validation_split: str = described("validation", "Name of the validation split.")
    test_split: str = described("test", "Name of the test split.")
    train_file: str | None = described(None, "Manifest of the training clips: CSV, TSV, JSON, JSONL or Parquet.")
    validation_file: str | None = described(None, "Manifest of the validation clips.")
    test_file: str | None = described(None, "Manifest of the test clips.")
    audio_column: str | None = described(None, "Column of the audio; guessed when unset.")
    label_column: str | None = described(None, "Column of the labels; guessed when unset.")
    label_separator: str | None = described(None, "What separates several labels in one text, such as a comma.")
    label_file: str | None = described(
        None, "Labels in order, one per line, or SSAST's CSV (index, mid, display_name)."
    )
    problem_type: str | None = described(None, "single_label_classification, multi_label_classification or regression.")
    validation_fraction: float = described(0.1, "Share of the training clips for validation where no split is given.")
    test_fraction: float = described(0.1, "Share of the training clips for the test where no split is given.")
    check_files: bool = described(True, "Read the header of every file before training.")
    check_samples: bool = described(False, "Decode every file before training: finds NaN samples too.")
    sampling_rate: int = described(16000, "Hz, of the features of a model with random weights.")
    mean: float | None = described(None, "Mean of the log-mels, for normalisation.")
    std: float | None = described(None, "Standard deviation of the log-mels, for normalisation.")
    compute_statistics: bool = described(False, "Compute mean and std on the training clips.")

    def __post_init__(self):
        if bool(self.dataset_name) == bool(self.train_file):
            raise InputError("data: set either dataset_name or train_file")
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 0.5:
                raise InputError(f"{name}: must be from 0 to below 0.5, got {getattr(self, name)}")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Transformers' TrainingArguments with this project's defaults, and what it adds to them."""

    report_to: None | str | list[str] = described(  # noqa: RUF036  HfArgumentParser needs this order
        "none", "none, tensorboard, trackio, wandb, ..."
    )
    eval_strategy: str = described("epoch", "no, steps or epoch.")
    save_strategy: str = described("epoch", "no, steps or epoch.")
    logging_strategy: str = described("epoch", "no, steps or epoch.")
    save_total_limit: int | None = described(2, "Checkpoints to keep.")
    load_best_model_at_end: bool = described(True, "Use the weights of the best evaluation.")
    # The collator turns the examples into tensors itself; a column filter would look for them in forward.
    remove_unused_columns: bool = described(False, "Leave this off.")
    head_learning_rate: float | None = described(None, "Learning rate of the classifier; as the encoder's when unset.")
    early_stopping_patience: int | None = described(None, "Stop after so many evaluations without improvement.")
    overwrite: bool = described(False, "Begin anew in an output folder that holds a run.")

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it two CPU processes train independently into one folder
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False
        if self.label_smoothing_factor:
            raise InputError("label_smoothing_factor: set label_smoothing instead, which takes mixed labels too")
        if self.push_to_hub:
            raise InputError("push_to_hub: upload the finished folder instead, with hf upload (see the README)")
        # Transformers fills these in; what the recipe said decides.
        self.chosen_metric, self.chosen_direction = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()


ARGUMENT_CLASSES = (TaskArguments, ModelArguments, DataArguments, AugmentationArguments, TrainingArguments)


def parse(argv: list[str]) -> tuple:
    """
    `RECIPE.yaml [--key value ...]` -> one object per class of `ARGUMENT_CLASSES`.

    Raises:
        InputError: no recipe, an unknown key (with the nearest known one), or a value of the wrong kind.
    """
    parser = HfArgumentParser(
        ARGUMENT_CLASSES, allow_abbrev=False, prog="train_hf.py", usage="%(prog)s RECIPE [--key value ...]"
    )
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        sys.exit(0)
    if not argv or argv[0].startswith("-"):
        raise InputError("usage: train_hf.py RECIPE.yaml [--key value ...]")
    parser.error = _raise_input_error
    known = {f.name for cls in ARGUMENT_CLASSES for f in dataclasses.fields(cls) if f.init}
    command_line = argv[1:]
    for flag in (word[2:].split("=")[0].replace("-", "_") for word in command_line if word.startswith("--")):
        _check_known(flag.removeprefix("no_") if flag not in known else flag, known, "command line")
    words = [*_recipe_words(Path(argv[0]), known), *command_line]
    try:
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{argv[0]}: {' '.join(str(error).split())}") from error


def check_output_folder(arguments: TrainingArguments) -> str | None:
    """
    The checkpoint to resume from, or `None` for a new run.

    Raises:
        InputError: the folder holds a run, and neither resume_from_checkpoint nor overwrite is set.
    """
    if not arguments.output_dir:
        raise InputError("output_dir: is not set; name the folder that the run writes to")
    folder = Path(arguments.output_dir)
    resume = arguments.resume_from_checkpoint
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    if resume and str(resume).lower() not in ("true", "false"):
        if not Path(resume).is_dir():
            raise InputError(f"resume_from_checkpoint: {resume} is no folder; name a checkpoint-N folder, or true")
        return str(resume)
    if resume and str(resume).lower() == "true":
        if last is None and (folder / "results.json").exists():
            raise InputError(f"{folder}: holds a finished run without checkpoints; set overwrite to begin anew")
        return last  # a run that was stopped before its first checkpoint begins anew
    if not arguments.overwrite and (last or (folder / "results.json").exists()):
        raise InputError(
            f"{folder}: holds a run already; add --resume_from_checkpoint true to go on with it, --overwrite true to "
            "begin anew, or choose another output_dir"
        )
    return None


def _recipe_words(path: Path, known: set[str]) -> list[str]:
    """A recipe as command-line words: `1e-4` is a text to YAML, and argparse knows the type of every field."""
    if not path.is_file():
        raise InputError(f"{path}: no such recipe; recipes/ holds examples")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML or JSON ({' '.join(str(error).split())})") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected key: value lines, got {type(recipe).__name__}")
    words = []
    for key, value in recipe.items():
        _check_known(str(key), known, str(path))
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return words


def _check_known(key: str, known: set[str], where: str):
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; train_hf.py --help lists all keys"
        raise InputError(f"{where}: unknown key {key}{hint}")


def _raise_input_error(message: str):
    raise InputError(message)


def _as_dict(name: str, value) -> dict:
    try:
        value = json.loads(value) if isinstance(value, str) else value or {}
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a mapping, got {value!r}")
    return value
