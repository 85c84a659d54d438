"""Finds the label set of a data set, and encodes the labels of a table for the loss."""

import functools
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_dual_ssast.configuration_dual_ssast import PROBLEM_TYPES

from ..errors import InputError, nearest
from .text_tables import read_rows, read_text

LABEL_FILE_COLUMNS = ("index", "mid", "display_name")  # AudioSet's


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

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        """Maps `class_name` of each class to its index: an older model may store a name in another form."""
        return {class_name(name): index for name, index in self.label2id.items()}

    def encode(self, label, source: str):
        """
        Encodes the label of a clip: a class index, a multi-hot float32 vector (labels,), or a float32 number.

        Raises:
            InputError: a label that is not in the set; names `source`, the label and the nearest known one.
        """
        if self.is_regression:
            return _as_number(label, source)
        indices = [self._index(name, source) for name in label_names(label)]
        if self.is_multi:
            vector = np.zeros(len(self.names), dtype=np.float32)
            vector[indices] = 1.0
            return vector
        if len(indices) != 1:
            raise InputError(
                f"{source}: has {len(indices)} labels, {label!r}, instead of one; leave it out, or train a model with "
                "problem_type: multi_label_classification"
            )
        return indices[0]

    def _index(self, name: str, source: str) -> int:
        index = self._indices.get(name)
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
    found = labels_so_far(labels, problem_type, known_names)
    if len(found.names) < 2 and not found.is_regression:
        raise InputError(
            f"all {len(labels)} training clips have the label {found.names[0]!r}; a classifier needs at least two "
            "classes"
            if found.names
            else "the training clips have no labels; fill in the label column"
        )
    return found


def labels_so_far(labels: list, problem_type: str | None, known_names: tuple[str, ...] | None = None) -> LabelSet:
    """Returns the label set as `find_labels` does, also with one class or none."""
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"problem_type: {problem_type!r} is unknown; known are {', '.join(PROBLEM_TYPES)}")
    if problem_type == "regression":
        return LabelSet(("value",), "regression")
    sets = [label_names(label) for label in labels]
    if problem_type is None:
        is_multi = any(len(names) != 1 for names in sets)
        problem_type = "multi_label_classification" if is_multi else "single_label_classification"
    names = known_names or tuple(sorted({name for names in sets for name in names}, key=sort_key))
    return LabelSet(names, problem_type)


def read_label_file(path: Path) -> dict[str, str]:
    """
    Reads label keys and display names in order: one label per line, or SSAST's and AudioSet's CSV (index, mid,
    display_name).

    Raises:
        InputError: the file is missing or empty, holds a label twice, or its indices have gaps.
    """
    lines = [class_name(line) for line in read_text(path).split("\n") if line.strip()]
    if path.suffix.lower() in (".json", ".jsonl") or not lines:
        raise InputError(f"{path}: holds no labels; write one per line, or a CSV with index, mid, display_name")
    is_table = path.suffix.lower() in (".csv", ".tsv") or all(name in lines[0].lower() for name in LABEL_FILE_COLUMNS)
    return _read_label_table(path) if is_table else {name: name for name in _unique(path, lines)}


def _read_label_table(path: Path) -> dict[str, str]:
    names, rows, lines = read_rows(path, "\t" if path.suffix.lower() == ".tsv" else ",", LABEL_FILE_COLUMNS)
    places = {name.casefold(): place for place, name in enumerate(names)}
    if not places.keys() >= set(LABEL_FILE_COLUMNS):
        raise InputError(f"{path}: expected the columns {', '.join(LABEL_FILE_COLUMNS)}, got {', '.join(names)}")
    by_index = []
    for row, line in zip(rows, lines):
        index, mid, name = (class_name(row[places[column]]) for column in LABEL_FILE_COLUMNS)
        if not (index.isdecimal() and len(index) < 10 and mid and name):
            raise InputError(f"{path}: line {line} needs index,mid,display_name, with a whole number as index")
        by_index.append((int(index), mid, name))
    by_index.sort()
    if [index for index, *_ in by_index] != list(range(len(by_index))):
        raise InputError(f"{path}: the indices must be 0 to {len(by_index) - 1}, each once")
    keys, shown = ([entry[place] for entry in by_index] for place in (1, 2))
    return dict(zip(_unique(path, keys), _unique(path, shown)))


def _unique(path: Path, names: list[str]) -> list[str]:
    """Returns the names; raises `InputError` if one is there twice."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: names the label {twice!r} twice; remove one")
    return names


def rename_labels(label, names: dict[str, str]):
    """Replaces keys (such as AudioSet's /m/09x0r) by display names; keeps other labels as they are."""
    if isinstance(label, list):
        return [names.get(part, part) for part in label]
    return names.get(str(label), label)


def without_label(label, none: str) -> list[str]:
    """Returns a clip's labels without the one that stands for none of the classes."""
    return [name for name in label_names(label) if name != class_name(none)]


def class_name(text: str) -> str:
    """
    Returns the name of a class as it is compared: without white space around it, accents in the composed form (NFC).
    Case is kept: training.check lists classes that differ in nothing else.
    """
    return unicodedata.normalize("NFC", text).strip()


def label_names(label) -> list[str]:
    """Returns the names of a clip's labels, as they are compared."""
    return [class_name(str(name)) for name in (label if isinstance(label, (list, tuple)) else [label])]


def _as_number(label, source: str) -> np.float32:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{source}: label {label!r} is no finite number, but problem_type is regression")
    return np.float32(number)


def sort_key(name: str) -> tuple[int, int, str, str]:
    """
    Returns a key that sorts whole numbers by value, before all other names in alphabetical order. No two names have the
    same key (7, 07 and 007 neither): the order of a set depends on the process.
    """
    if not name.isdecimal():  # "²" is a digit without a value
        return (1, 0, "", name)
    digits = "".join(str(unicodedata.decimal(character)) for character in name).lstrip("0")
    return (0, len(digits), digits, name)  # no int: Python limits its digits
