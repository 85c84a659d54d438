"""The tasks of train_hf.py: which function runs each, and which arguments it takes."""

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path

from .base import reproduction
from .base.arguments import EncoderArguments, ModelArguments, TrainingArguments
from .classification.arguments import CrossValidationArguments, EvaluationArguments, TuningArguments
from .data.arguments import DataArguments, EvaluationDataArguments, UnlabelledDataArguments
from .data.augmentation import AugmentationArguments
from .embeddings.arguments import ProbeArguments, SweepArguments
from .errors import InputError
from .pretraining.arguments import AsitTrainingArguments, MspmTrainingArguments
from .recipe import described, parse_words, read_recipe, show_help


@dataclass(frozen=True)
class Task:
    """A task of train_hf.py. Its module is imported when the task runs: `--help` and the other tasks start faster."""

    module: str  # below training; its function `run` takes one object per class of `arguments`
    arguments: tuple[type, ...]

    def run(self, *parts):
        importlib.import_module(f"{__package__}.{self.module}").run(*parts)


CLASSIFICATION = (ModelArguments, DataArguments, AugmentationArguments, TuningArguments, TrainingArguments)
TASKS = {
    "classification": Task("classification.train", CLASSIFICATION),
    "cross_validation": Task("classification.cross_validation", (*CLASSIFICATION, CrossValidationArguments)),
    "evaluation": Task("classification.evaluation", (EvaluationDataArguments, EvaluationArguments)),
    "mspm": Task("pretraining.mspm", (EncoderArguments, UnlabelledDataArguments, MspmTrainingArguments)),
    "asit": Task("pretraining.asit", (EncoderArguments, UnlabelledDataArguments, AsitTrainingArguments)),
    "sweep": Task("embeddings.sweep", (EncoderArguments, DataArguments, SweepArguments)),
    "probe": Task("embeddings.probe", (ModelArguments, DataArguments, ProbeArguments)),
}


@dataclass
class TaskArguments:
    """Which module of training/ runs the recipe."""

    task: str = described("classification", f"One of {', '.join(TASKS)}.")

    def __post_init__(self):
        if self.task not in TASKS:
            raise InputError(f"task: {self.task!r} is unknown; known are {', '.join(TASKS)}")


def parse(argv: list[str]) -> tuple:
    """
    `RECIPE.yaml [--key value ...]` -> the task's name and one object per class of its `Task.arguments`. The recipe
    may be the `results.json` of a run.

    Raises:
        InputError: no recipe, an unknown key (with the nearest known one), or a value of the wrong kind.
    """
    asks_for_help = bool({"-h", "--help"} & set(argv))
    if not asks_for_help and (not argv or argv[0].startswith("-")):
        raise InputError("usage: train_hf.py RECIPE.yaml [--key value ...]")
    recipe = read_recipe(Path(argv[0])) if argv and not argv[0].startswith("-") else {}
    results = recipe if reproduction.is_results(recipe) else None
    task = _find_task(recipe if results is None else results["recipe"], argv[1:])
    classes = (TaskArguments, *TASKS[task].arguments)
    usage = "train_hf.py RECIPE [--key value ...]"
    if asks_for_help:
        show_help(
            classes, usage, f"These are the keys of task {task}; --task NAME --help lists those of {', '.join(TASKS)}."
        )
    if results is None:
        arguments, *parts = parse_words(classes, argv[1:], usage, argv[0], recipe)
        return arguments.task, *parts
    stored = _stored_recipe(argv[0], results, classes)
    _, *parts = parse_words(classes, argv[1:], usage, argv[0], defaults=stored)
    reproduction.warn_of_differences(argv[0], results, {"versions": reproduction.versions()})
    for part in parts:
        if isinstance(part, TrainingArguments):
            part.reproduces = (argv[0], results)
    return task, *parts


def _stored_recipe(path: str, results: dict, classes: tuple[type, ...]) -> dict:
    """What the recipe of a `results.json` sets."""
    known = {f.name for cls in classes for f in dataclasses.fields(cls) if f.init}
    training = next((cls for cls in classes if issubclass(cls, TrainingArguments)), None)
    return reproduction.recipe_of(results, path, known, {} if training is None else training().to_dict())


def _find_task(recipe: dict, command_line: list[str]) -> str:
    """The task decides which keys there are: the command line's, else the recipe's."""
    task = recipe.get("task") or TaskArguments().task
    for word, following in zip(command_line, [*command_line[1:], ""]):
        if word == "--task" or word.startswith("--task="):
            task = following if word == "--task" else word.split("=", 1)[1]
    return TaskArguments(str(task)).task
