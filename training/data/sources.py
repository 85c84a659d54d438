"""
Loads labelled clips from folders, tables, SSAST's JSON manifests and the Hub.

Each split is a `datasets.Dataset` with the columns `audio` (a path, or {"path", "bytes"}) and `label` (a text, or a
list of texts; numbers stay texts until `LabelSet.encode` reads them) and, if the source has them, `fold` and `group`
(texts), and `start` and `end` (seconds) of segments of recordings.
"""

import json
import os
from pathlib import Path

import datasets
import pandas

from ..errors import InputError
from .audio import AUDIO_EXTENSIONS, datasets_without_torchcodec, find_audio_files
from .columns import (
    AUDIO_COLUMNS,
    LABEL_COLUMNS,
    OTHER_COLUMNS,
    Columns,
    _alike,
    _as_label,
    _choose_column,
    _is_missing,
    _other_columns,
    _split,
    choose_audio_column,
    choose_label_column,
    clip_names,
    label_reader,
)

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
TABLE_READERS = {
    # Read as text: pandas would turn the class 01 into 1 and the class None into a missing value.
    ".csv": lambda path: pandas.read_csv(path, dtype=str, keep_default_na=False),
    ".tsv": lambda path: pandas.read_csv(path, dtype=str, keep_default_na=False, sep="\t"),
    ".json": lambda path: pandas.DataFrame(_read_json_rows(path)),
    ".jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
    ".parquet": lambda path: pandas.read_parquet(path),
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


def load_table(path: Path, columns: Columns) -> datasets.Dataset:
    """
    Loads a CSV, TSV, JSON, JSONL or Parquet table with one row per clip; its paths are relative to the table.

    Raises:
        InputError: an unknown extension, an unreadable or empty table, missing columns, or rows without audio or label.
    """
    table = _read_table(path)
    audio_column = _choose_column(path, table, "audio", columns.audio, AUDIO_COLUMNS)
    label_column = _choose_column(path, table, "label", columns.label, LABEL_COLUMNS)
    needed = [audio_column] if columns.separator else [audio_column, label_column]  # an empty cell: no labels
    missing = table.index[table[needed].map(_is_missing).any(axis=1)]
    if len(missing):
        raise InputError(
            f"{path}: row {missing[0] + 1} has no {audio_column} or no {label_column}; fill it in or remove it"
        )
    audio = [_resolve(value, path.parent) for value in table[audio_column]]
    labels = _alike([_as_label(value, columns.separator, path) for value in table[label_column]])
    return datasets.Dataset.from_dict({"audio": audio, "label": labels} | _other_columns(path, table, columns))


def load_unlabelled_table(path: Path, audio_column: str | None = None) -> datasets.Dataset:
    """
    Loads the column `audio` of a CSV, TSV, JSON, JSONL or Parquet table; its paths are relative to the table.

    Raises:
        InputError: an unknown extension, an unreadable or empty table, no audio column, or rows without audio.
    """
    table = _read_table(path)
    audio_column = _choose_column(path, table, "audio", audio_column, AUDIO_COLUMNS)
    missing = table.index[table[audio_column].map(_is_missing)]
    if len(missing):
        raise InputError(f"{path}: row {missing[0] + 1} has no {audio_column}; fill it in or remove it")
    return datasets.Dataset.from_dict({"audio": [_resolve(value, path.parent) for value in table[audio_column]]})


def _read_table(path: Path) -> pandas.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path of the manifest")
    reader = TABLE_READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of table; known are {', '.join(TABLE_READERS)}")
    try:
        table = reader(path)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not readable as a table ({str(error).splitlines()[0]}); check its format") from None
    if table.empty:
        raise InputError(f"{path}: the table has no rows; add clips or leave it out")
    return table


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
    data = _expand_json(data)
    audio_column = choose_audio_column(source, data.features, columns.audio)
    label_column = choose_label_column(source, data.features, columns.label)
    if isinstance(data.features[audio_column], datasets.Audio):
        data = data.cast_column(audio_column, datasets.Audio(decode=False))
    read_label = label_reader(source, data.features[label_column], columns.separator)
    labels = [read_label(value) for value in data[label_column]]
    unlabelled = [index for index, label in enumerate(labels) if label is None]
    if unlabelled:
        raise InputError(
            f"{source}: {len(unlabelled)} of {len(labels)} clips have no label, first row {unlabelled[0] + 1}; name "
            "another split"
        )
    others = _other_columns(source, data, columns)
    data = data.select_columns([audio_column])
    if audio_column != "audio":
        data = data.rename_column(audio_column, "audio")
    for name, values in ({"label": labels} | others).items():
        data = data.add_column(name, values)
    return data


def _expand_json(data: datasets.Dataset) -> datasets.Dataset:
    """Turns the entries of a WebDataset's .json members into columns."""
    if not {"json", "__key__"} <= set(data.features):
        return data
    rows = data["json"][:]
    for key in dict.fromkeys(key for row in rows for key in row):
        if key not in data.features:
            data = data.add_column(key, [row.get(key) for row in rows])
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
    labels = [path.relative_to(folder).parts[0] for path in files]
    return datasets.Dataset.from_dict({"audio": [str(path) for path in files], "label": labels})


def _refuse_columns(folder: Path, columns: Columns):
    for name in ("audio", "label", *OTHER_COLUMNS):
        if getattr(columns, name) is not None:
            raise InputError(
                f"{name}_column: {folder} has class folders and no columns; use a table, or a metadata.csv in it"
            )


def _read_json_rows(path: Path) -> list:
    """Reads a list of rows, or SSAST's `{"data": [{"wav": ..., "labels": "/m/09x0r,/m/05zppz"}]}`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        return [{**row, "labels": _split(row["labels"])} if "labels" in row else row for row in rows["data"]]
    return rows


def _resolve(value, folder: Path):
    """Returns the path of a cell relative to its table, or the {"path", "bytes"} of a Parquet file of `datasets`."""
    return dict(value) if isinstance(value, dict) else str(folder / str(value))
