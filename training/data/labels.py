"""Finds the label set of a data set, and encodes the labels of a table for the loss."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_dual_ssast.configuration_dual_ssast import PROBLEM_TYPES

from ..errors import InputError, nearest


@dataclass(frozen=True)
class LabelSet:
    """Holds the classes in the order of the model's outputs, and the problem type; encodes labels."""

    names: tuple[str, ...]
    problem_type: str

    @property
    def is_single(self) -> bool:
        """Returns whether each clip has exactly one of the classes."""
        return self.problem_type == "single_label_classification"

    @property
    def is_multi(self) -> bool:
        """Returns whether a clip may have several of the classes, or none."""
        return self.problem_type == "multi_label_classification"

    @property
    def is_regression(self) -> bool:
        """Returns whether the label is a number."""
        return self.problem_type == "regression"

    @functools.cached_property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @functools.cached_property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def encode(self, label, source: str):
        """
        Encodes the label of a clip: a class index, a multi-hot float32 vector (labels,), or a float32 number.

        Raises:
            InputError: a label that is not in the set; names `source`, the label and the nearest known one.
        """
        if self.is_regression:
            return _as_number(label, source)
        indices = [self._index(name, source) for name in _as_names(label)]
        if self.is_multi:
            vector = np.zeros(len(self.names), dtype=np.float32)
            vector[indices] = 1.0
            return vector
        if len(indices) != 1:
            raise InputError(
                f"{source}: has {len(indices)} labels, {label!r}; set problem_type: multi_label_classification"
            )
        return indices[0]

    def _index(self, name: str, source: str) -> int:
        index = self.label2id.get(name)
        if index is None:
            hint = nearest(name, self.names, f"known are {', '.join(self.names[:20])}")
            raise InputError(f"{source}: label {name!r} is not in the label set of the training data; {hint}")
        return index


def find_labels(labels: list, problem_type: str | None, known_names: tuple[str, ...] | None = None) -> LabelSet:
    """
    Returns the label set of the training data.

    Args:
        problem_type: `None`: multi-label if a clip has several labels or none, else single-label
        known_names: classes in a given order, from a label file or a fine-tuned model

    Raises:
        InputError: fewer than two classes.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"problem_type: {problem_type!r} is unknown; known are {', '.join(PROBLEM_TYPES)}")
    if problem_type == "regression":
        return LabelSet(("value",), "regression")
    sets = [_as_names(label) for label in labels]
    if problem_type is None:
        is_multi = any(len(names) != 1 for names in sets)
        problem_type = "multi_label_classification" if is_multi else "single_label_classification"
    names = known_names or tuple(sorted({name for names in sets for name in names}, key=sort_key))
    if len(names) < 2:
        raise InputError(
            f"all {len(labels)} training clips have the label {names[0]!r}; a classifier needs at least two classes"
            if names
            else "the training clips have no labels; fill in the label column"
        )
    return LabelSet(names, problem_type)


def read_label_file(path: Path) -> dict[str, str]:
    """
    Reads label keys and display names in order: one label per line, or SSAST's and AudioSet's CSV (index, mid,
    display_name).

    Raises:
        InputError: the file is missing or empty, holds a label twice, or its indices have gaps.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct label_file")
    if path.suffix.lower() == ".csv":
        import pandas  # here: predict_hf.py starts without it

        table = pandas.read_csv(path, dtype={"mid": str, "display_name": str}, keep_default_na=False)
        if not {"index", "mid", "display_name"} <= set(table):
            raise InputError(f"{path}: expected the columns index, mid, display_name, got {', '.join(map(str, table))}")
        table = table.sort_values("index")
        if list(table["index"]) != list(range(len(table))):
            raise InputError(f"{path}: the indices must be 0 to {len(table) - 1}, each once")
        for column in ("mid", "display_name"):
            _check_unique(path, list(table[column]))
        return dict(zip(table["mid"], table["display_name"]))
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names or path.suffix.lower() in (".json", ".jsonl"):
        raise InputError(f"{path}: holds no labels; write one per line, or a CSV with index, mid, display_name")
    _check_unique(path, names)
    return {name: name for name in names}


def _check_unique(path: Path, names: list[str]):
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: names the label {twice!r} twice; remove one")


def rename_labels(label, names: dict[str, str]):
    """Replaces keys (such as AudioSet's /m/09x0r) by display names; keeps other labels as they are."""
    if isinstance(label, list):
        return [names.get(part, part) for part in label]
    return names.get(str(label), label)


def _as_names(label) -> list[str]:
    return list(label) if isinstance(label, (list, tuple)) else [str(label)]


def _as_number(label, source: str) -> np.float32:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{source}: label {label!r} is no finite number, but problem_type is regression")
    return np.float32(number)


def sort_key(name: str):
    """Returns a key that sorts whole numbers by value, before all other names in alphabetical order."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)
