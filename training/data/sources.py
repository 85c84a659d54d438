"""
Loads labelled clips from folders, tables, SSAST's JSON manifests and the Hub.

Each split is a `datasets.Dataset` with the columns `audio` (a path, or {"path", "bytes"}) and `label` (a text, or a
list of texts; numbers stay texts until `LabelSet.encode` reads them) and, if the source has them, `fold` and `group`
(texts), and `start` and `end` (seconds) of segments of recordings.
"""

import os
from pathlib import Path

import datasets
import pyarrow

from ..errors import InputError
from .audio import datasets_without_torchcodec
from .columns import (
    OTHER_COLUMNS,
    Columns,
    _other_columns,
    as_text,
    choose_audio_column,
    choose_label_column,
    clip_names,
    read_labels,
    row_of,
    stored_audio,
)
from .labels import class_name
from .listing import AUDIO_EXTENSIONS, find_audio_files
from .tables import load_table
from .text_tables import is_empty

# Usual names of splits -> this project's names.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}


def is_audio_folder(folder: Path) -> bool:
    """Returns whether a local folder holds audio files or metadata; else it may hold Parquet files as on the Hub."""
    return folder.is_dir() and (any(folder.glob("metadata.*")) or bool(find_audio_files(folder)))


def find_split_tables(folder: Path) -> dict[str, Path]:
    """Finds train.csv, validation.csv and test.csv in a local folder; empty without a train.csv."""
    paths = {split: folder / f"{split}.csv" for split in ("train", "validation", "test")}
    return {split: path for split, path in paths.items() if path.is_file()} if paths["train"].is_file() else {}


def load_folder(folder: Path, columns: Columns) -> dict[str, datasets.Dataset]:
    """
    Loads a local folder by the conventions of `audiofolder`: one folder per class, or a metadata.csv, .jsonl or
    .parquet with a `file_name` column; either directly, or in sub-folders named like splits (train, dev, test, ...).

    Returns:
        split -> examples, under the names of the sub-folders, or `train` without such sub-folders

    Raises:
        InputError: no audio, no labels, or metadata without a label column.
    """
    metadata = _find_metadata(folder)
    if metadata is not None:
        return _divide(load_table(metadata, columns), folder)
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and find_audio_files(path)]
    # A class may be called "train": sub-folders are splits only if all of them have names of splits.
    if subfolders and all(path.name.lower() in SPLIT_NAMES for path in subfolders):
        return {path.name: _load_split_folder(path, columns) for path in subfolders}
    return {"train": _load_split_folder(folder, columns)}


def load_hub(name: str, config: str | None, revision: str | None = None) -> dict[str, datasets.Dataset]:
    """
    Loads all splits of a data set of the Hub, or of a folder that `datasets` loads, under their own names.

    Raises:
        InputError: the data set cannot be loaded.
    """
    return dict(load_stored(name, config, revision))


def load_stored(name: str, config: str | None, revision: str | None, **options):
    """
    Calls `datasets.load_dataset` with its `options` (`split`, `streaming`); audio stays undecoded.

    Raises:
        InputError: the data set cannot be loaded.
    """
    try:
        with datasets_without_torchcodec():
            return datasets.load_dataset(name, config, revision=revision, **options)
    except Exception as error:  # `datasets` raises a dozen kinds, from the network to the builder
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}: neither a local folder nor a data set that can be loaded ({reason}); check the name, the "
            "configuration and the network"
        ) from error


def choose_split(source: str, available: dict, kind: str, wanted: str) -> str | None:
    """
    Returns the name among `available` of the split for `kind` (train, validation, test): `wanted`, or, if that is the
    default name, one with another usual name (such as dev); `None` if there is none.

    Raises:
        InputError: the recipe names a missing split, or several splits have usual names.
    """
    if wanted in available:
        return wanted
    if wanted != kind:
        raise InputError(f"{source}: no split {wanted!r}; set {kind}_split to one of {', '.join(available)}")
    others = [name for name in available if SPLIT_NAMES.get(name.lower()) == kind]
    if len(others) > 1:
        raise InputError(f"{source}: which is the {kind} split? Set {kind}_split to one of {', '.join(others)}")
    return others[0] if others else None


def standardise(source: str, data: datasets.Dataset, columns: Columns) -> datasets.Dataset:
    """
    Returns a stored data set with the columns `audio` and `label` and, if `columns` names them, `fold`, `group`,
    `start` and `end`.

    Raises:
        InputError: missing columns, or clips without label.
    """
    clips, data = data, _expand_json(data)
    audio_column = choose_audio_column(source, data.features, columns.audio)
    label_column = choose_label_column(source, data.features, columns.label)
    labels = read_labels(source, data[label_column], data.features[label_column], columns.separator, row_of)
    unlabelled = [index for index, label in enumerate(labels) if label is None]
    if unlabelled:
        raise InputError(
            f"{source}: {len(unlabelled)} of {len(labels)} clips have no label, first {row_of(unlabelled[0])}; name "
            "another split"
        )
    others = _other_columns(source, data, columns)
    # `datasets` cannot add columns to a selection of columns that were added themselves.
    if audio_column not in clips.features:
        clips = datasets.Dataset.from_dict({audio_column: data[audio_column][:]})
    data = stored_audio(source, clips, audio_column)
    for name, values in ({"label": labels} | others).items():
        data = data.add_column(name, values)
    return data


def _expand_json(data: datasets.Dataset) -> datasets.Dataset:
    """Turns the entries of a WebDataset's .json members into columns."""
    if not {"json", "__key__"} <= set(data.features):
        return data
    rows = [row if isinstance(row, dict) else {} for row in data["json"]]
    for key in dict.fromkeys(key for row in rows for key in row):
        if key in data.features:
            continue
        values = [row.get(key) for row in rows]
        try:
            data = data.add_column(key, values)
        except (TypeError, ValueError, pyarrow.ArrowException):  # numbers here, texts there
            data = data.add_column(key, [None if is_empty(value) else as_text(value) for value in values])
    return data.remove_columns("json")


def _find_metadata(folder: Path) -> Path | None:
    paths = (folder / f"metadata{extension}" for extension in (".csv", ".jsonl", ".parquet"))
    return next((path for path in paths if path.exists()), None)


def _divide(data: datasets.Dataset, folder: Path) -> dict[str, datasets.Dataset]:
    """Divides the data by the first folder of its paths if all those are names of splits; else all is `train`."""
    first = [os.path.relpath(name, folder).split(os.sep)[0] for name in clip_names(data)]
    if not all(name.lower() in SPLIT_NAMES for name in first):
        return {"train": data}
    return {
        name: data.select([index for index, value in enumerate(first) if value == name])
        for name in dict.fromkeys(first)
    }


def _load_split_folder(folder: Path, columns: Columns) -> datasets.Dataset:
    metadata = _find_metadata(folder)
    if metadata is not None:
        return load_table(metadata, columns)
    _refuse_columns(folder, columns)
    files = find_audio_files(folder)
    if not files:
        raise InputError(f"{folder}: no audio files ({', '.join(sorted(AUDIO_EXTENSIONS))}); name another folder")
    unlabelled = [path for path in files if path.parent == folder]
    if unlabelled:
        raise InputError(
            f"{unlabelled[0]}: lies in no class folder; use one folder per class, or metadata.csv (file_name, label)"
        )
    labels = [class_name(path.relative_to(folder).parts[0]) for path in files]
    return datasets.Dataset.from_dict({"audio": [str(path) for path in files], "label": labels})


def _refuse_columns(folder: Path, columns: Columns):
    for name in ("audio", "label", *OTHER_COLUMNS):
        if getattr(columns, name) is not None:
            raise InputError(
                f"{name}_column: {folder} has class folders and no columns; use a table, or a metadata.csv in it"
            )
