"""Reads label files: one label per line, or a CSV like AudioSet's."""

import csv
from pathlib import Path

from .checkpoint import ConversionError

AUDIOSET_LABELS = 527
COLUMNS = ("index", "mid", "display_name")


def read_labels(path: Path) -> list[str]:
    """
    Reads the labels in the order of the classifier's outputs: one per line, or the display names of a CSV by its
    indices. The rules are those of the recipes' `label_file`.

    Raises:
        ConversionError: the file is missing, empty, not UTF-8, repeats a label, or is a CSV with wrong columns or gaps.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} cannot be read as a label file: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = [name.lower() for name in next(csv.reader(lines[:1], skipinitialspace=True), [])]
    is_table = path.suffix.lower() == ".csv" or set(COLUMNS) <= set(header)
    labels = _read_table(path, header, lines[1:]) if is_table else lines
    if not labels:
        raise ConversionError(f"{path} holds no labels: write one per line")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConversionError(f"{path} names a label twice: {', '.join(twice)}")
    return labels


def _read_table(path: Path, header: list[str], lines: list[str]) -> list[str]:
    if not set(COLUMNS) <= set(header):
        raise ConversionError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(header)}")
    rows = list(csv.DictReader(lines, header, skipinitialspace=True))
    try:
        by_index = {int(row["index"]): row["display_name"] for row in rows}
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{path}: every row needs {','.join(COLUMNS)}, with a whole number as index") from error
    if None in by_index.values():
        raise ConversionError(f"{path}: every row needs {','.join(COLUMNS)}")
    if sorted(by_index) != list(range(len(rows))):
        raise ConversionError(f"{path}: the indices must be 0 to {len(rows) - 1}, each once")
    return [by_index[index] for index in range(len(rows))]


def label_settings(path: Path, num_labels: int, labels_path: Path | None) -> dict:
    """
    Returns the configuration's settings for a classifier of `num_labels` outputs, named by a label file if given.

    Raises:
        ConversionError: the file names another number of labels.
    """
    settings = {"num_labels": num_labels}
    if labels_path is not None:
        labels = read_labels(labels_path)
        if len(labels) != num_labels:
            raise ConversionError(
                f"{labels_path} names {len(labels)} labels, but the classifier of {path} has {num_labels} outputs"
            )
        settings = name_settings(labels)
    if num_labels == AUDIOSET_LABELS:
        settings["problem_type"] = "multi_label_classification"
    return settings


def name_settings(labels: list[str]) -> dict:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def label_notes(num_labels: int, are_named: bool) -> list[str]:
    notes = []
    if not are_named:
        notes.append(f"labels are called LABEL_0 to LABEL_{num_labels - 1}: --labels names them")
    if num_labels == AUDIOSET_LABELS:
        notes.append(f"{num_labels} labels are AudioSet's: problem_type is multi_label_classification (sigmoid)")
    return notes
