"""Reads label files: one label per line, or a CSV like AudioSet's."""

from pathlib import Path

from training.data.labels import read_label_file
from training.errors import InputError

from .checkpoint import ConversionError

AUDIOSET_LABELS = 527


def read_labels(path: Path) -> list[str]:
    """
    Reads the labels in the order of the classifier's outputs, by the rules of the recipes' `label_file`.

    Raises:
        ConversionError: the file is missing, empty, repeats a label, or is a CSV with wrong columns or gaps.
    """
    try:
        return list(read_label_file(path).values())
    except InputError as error:
        raise ConversionError(str(error)) from None


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
