"""Lists the tasks of train_hf.py with their functions and argument classes, and parses recipes."""

import dataclasses
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .base import reproduction
from .base.arguments import EncoderArguments, ModelArguments, TrainingArguments
from .classification.arguments import (
    ClassificationTrainingArguments,
    CrossValidationArguments,
    EvaluationArguments,
    FoldDataArguments,
    FoldTrainingArguments,
    TuningArguments,
)
from .data.arguments import DataArguments, EvaluationDataArguments, FrozenDataArguments, UnlabelledDataArguments
from .data.augmentation import AugmentationArguments
from .detection.arguments import DetectionDataArguments, DetectionTrainingArguments, DetectionTuningArguments
from .detection.evaluation_arguments import EventEvaluationArguments
from .embeddings.arguments import ProbeArguments, SweepArguments
from .errors import InputError, short
from .pretraining.arguments import AsitTrainingArguments, MspmTrainingArguments
from .recipe import Arguments, default_of, described, options, parse_words, read_recipe, show_help


@dataclass(frozen=True)
class Task:
    """Describes a task of train_hf.py. `run` imports its module: `--help` and the other tasks start faster."""

    module: str  # below training; its function `run` takes one object per class of `arguments`
    arguments: tuple[type, ...]
    divides: bool = True  # whether several processes share the work

    def run(self, *parts):
        """
        Runs the task with one object per class of `arguments`.

        Raises:
            InputError: bad input, also what the run would replace; another task writes to its output folder; or
                several processes would each do the whole task and replace the outputs of the others.
        """
        count = os.environ.get("WORLD_SIZE", "1")
        if not self.divides and count != "1":
            name = next(name for name, task in TASKS.items() if task is self)
            raise InputError(
                f"task: {name} runs in one process, and this launch has {count}; run it by python train_hf.py, without "
                "accelerate launch"
            )
        outputs = importlib.import_module(f"{__package__}.base.outputs")
        outputs.check_inputs(parts)
        with outputs.written_alone(parts):
            importlib.import_module(f"{__package__}.{self.module}").run(*parts)


TUNED = (AugmentationArguments, TuningArguments)
TASKS = {
    "classification": Task(
        "classification.train", (ModelArguments, DataArguments, *TUNED, ClassificationTrainingArguments)
    ),
    "cross_validation": Task(
        "classification.cross_validation",
        (ModelArguments, FoldDataArguments, *TUNED, FoldTrainingArguments, CrossValidationArguments),
    ),
    "evaluation": Task("classification.evaluation", (EvaluationDataArguments, EvaluationArguments)),
    "detection": Task(
        "detection.train",
        (
            ModelArguments,
            DetectionDataArguments,
            AugmentationArguments,
            DetectionTuningArguments,
            DetectionTrainingArguments,
        ),
    ),
    "event_evaluation": Task("detection.evaluation", (EventEvaluationArguments,), divides=False),
    "mspm": Task("pretraining.mspm", (EncoderArguments, UnlabelledDataArguments, MspmTrainingArguments)),
    "asit": Task("pretraining.asit", (EncoderArguments, UnlabelledDataArguments, AsitTrainingArguments)),
    "sweep": Task("embeddings.sweep", (EncoderArguments, FrozenDataArguments, SweepArguments), divides=False),
    "probe": Task("embeddings.probe", (ModelArguments, FrozenDataArguments, ProbeArguments), divides=False),
}


@dataclass
class TaskArguments(Arguments):
    """Names the task of the recipe."""

    group: ClassVar[str] = "task"

    task: str = described(
        "classification", "Task of the recipe, which decides which other keys there are.", choices=tuple(TASKS)
    )

    def __post_init__(self):
        if self.task not in TASKS:
            raise InputError(f"task: {short(repr(self.task))} is unknown; known are {', '.join(TASKS)}")


def parse(argv: list[str]) -> tuple:
    """
    Parses `RECIPE.yaml [--key value ...]`; returns the task's name and one object per class of its `Task.arguments`.
    The recipe may be the `results.json` of a run.

    Raises:
        InputError: no recipe, an unknown key (with the nearest known one), or a value of the wrong type.
    """
    asks_for_help = bool({"-h", "--help"} & set(argv))
    if not asks_for_help and (not argv or argv[0].startswith("-")):
        raise InputError("usage: train_hf.py RECIPE.yaml [--key value ...]")
    recipe = read_recipe(Path(argv[0])) if argv and not argv[0].startswith("-") else {}
    results = recipe if reproduction.is_results(recipe) else None
    task = _find_task(recipe if results is None else results["recipe"], argv[1:] if recipe else argv)
    classes = (TaskArguments, *TASKS[task].arguments)
    usage = "train_hf.py RECIPE [--key value ...]"
    if asks_for_help:
        show_help(
            classes, usage, f"These are the keys of task {task}; --task NAME --help lists those of {', '.join(TASKS)}."
        )
    refused = dict.fromkeys(_known_keys(), f"is no option of task {task}; leave it out")
    if results is None:
        _, *parts = parse_words(classes, argv[1:], usage, argv[0], recipe, refused=refused, no_effect=_known_keys())
        return task, *parts
    stored = _stored_recipe(argv[0], results, classes)
    if any(word.partition("=")[0].replace("-", "_") == "__metric_for_best_model" for word in argv[1:]):
        stored.pop("greater_is_better", None)  # it is that of the run's metric
    _, *parts = parse_words(classes, argv[1:], usage, argv[0], defaults=stored, refused=refused)
    reproduction.warn_of_differences(argv[0], results, {"versions": reproduction.versions()})
    for part in parts:
        if isinstance(part, TrainingArguments):
            part.reproduces = (argv[0], results)
    return task, *parts


def _known_keys() -> dict[str, object]:
    """Returns the names of all fields of all tasks, with their defaults."""
    return {
        key.name: default_of(key)
        for task in TASKS.values()
        for cls in task.arguments
        for key in dataclasses.fields(cls)
    }


def _stored_recipe(path: str, results: dict, classes: tuple[type, ...]) -> dict:
    """Returns the recipe of a `results.json`, without keys of other tasks, which older versions stored too."""
    known = {option.name for cls in classes for option in options(cls)}
    foreign = set(_known_keys()) - known
    training = next((cls for cls in classes if issubclass(cls, TrainingArguments)), None)
    recipe = {
        name: {key: value for key, value in part.items() if key not in foreign} if isinstance(part, dict) else part
        for name, part in results["recipe"].items()
    }
    defaults = {} if training is None else training().to_dict()
    return reproduction.recipe_of({"recipe": recipe}, path, known, defaults)


def _find_task(recipe: dict, command_line: list[str]) -> str:
    """
    Returns the task of the command line, else of the recipe; the other keys depend on it. An evaluation of `events`
    needs no model, and is a task of its own.
    """
    task = recipe.get("task") or TaskArguments().task
    for word, following in zip(command_line, [*command_line[1:], ""]):
        if word == "--task" or word.startswith("--task="):
            task = following if word == "--task" else word.split("=", 1)[1]
    task = TaskArguments(str(task)).task
    has_events = recipe.get("events") or any(word.split("=", 1)[0] == "--events" for word in command_line)
    return "event_evaluation" if task == "evaluation" and has_events else task
