"""
Where examples come from: folders, tables, SSAST's JSON manifests and the Hub.

Every source gives, per split, a `datasets.Dataset` with the columns `audio` (a path, or {"path", "bytes"}) and `label`
(text, a list of texts, or a number).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas

from .audio import AUDIO_EXTENSIONS, datasets_without_torchcodec, find_audio_files
from .errors import InputError

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
AUDIO_COLUMNS = ("audio", "file_name", "file", "path", "filename", "filepath", "file_path", "wav")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")
TABLE_READERS = {
    ".csv": lambda path: pandas.read_csv(path),
    ".tsv": lambda path: pandas.read_csv(path, sep="\t"),
    ".json": lambda path: pandas.DataFrame(_read_json_rows(path)),
    ".jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
    ".parquet": lambda path: pandas.read_parquet(path),
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, `None` to guess; and what separates several labels in one text."""

    audio: str | None = None
    label: str | None = None
    separator: str | None = None


def is_audio_folder(folder: Path) -> bool:
    """Whether a local folder holds audio files or metadata; else it may hold Parquet files as on the Hub."""
    return folder.is_dir() and (any(folder.glob("metadata.*")) or bool(find_audio_files(folder)))


def load_folder(folder: Path, columns: Columns) -> dict[str, datasets.Dataset]:
    """
    A local folder by the conventions of `audiofolder`: sub-folders named train, validation and test (or none of
    them), each with one folder per class or with a metadata.csv, .jsonl or .parquet that has a `file_name` column.

    Raises:
        InputError: no audio, no labels, or metadata that names no label column.
    """
    split_folders = {path: SPLIT_NAMES[path.name.lower()] for path in sorted(folder.iterdir()) if _is_split(path)}
    splits = {}
    for split_folder, split in (split_folders or {folder: "train"}).items():
        if split in splits:
            raise InputError(f"{split_folder}: a second folder for the {split} split; merge them")
        splits[split] = _load_split_folder(split_folder, columns)
    return splits


def load_table(path: Path, columns: Columns) -> datasets.Dataset:
    """
    A CSV, TSV, JSON, JSONL or Parquet table with one row per clip; paths in it are relative to the table.

    Raises:
        InputError: an unknown extension, an unreadable or empty table, or columns that cannot be told.
    """
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
    audio_column = _choose_column(path, table, "audio", columns.audio, AUDIO_COLUMNS)
    label_column = _choose_column(path, table, "label", columns.label, LABEL_COLUMNS)
    missing = table.index[table[audio_column].isna() | _is_missing(table[label_column])]
    if len(missing):
        raise InputError(
            f"{path}: row {missing[0] + 1} has no {audio_column} or no {label_column}; fill it in or remove it"
        )
    audio = [_resolve(value, path.parent) for value in table[audio_column]]
    labels = [_split_labels(value, columns.separator) for value in table[label_column]]
    return datasets.Dataset.from_dict({"audio": audio, "label": labels})


def load_hub(
    name: str, config: str | None, columns: Columns, revision: str | None = None
) -> dict[str, datasets.Dataset]:
    """
    A data set of the Hub (or any folder or script that `datasets` loads), all its splits.

    Raises:
        InputError: it cannot be had, or its columns cannot be told.
    """
    try:
        with datasets_without_torchcodec():
            loaded = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # `datasets` raises a dozen kinds, from the network to the builder
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}: neither a local folder nor a data set that can be loaded ({reason}); check the name, the "
            "configuration and the network"
        ) from error
    return {
        SPLIT_NAMES.get(split, split): _standardise(f"{name}[{split}]", data, columns) for split, data in loaded.items()
    }


def _is_split(path: Path) -> bool:
    return path.is_dir() and path.name.lower() in SPLIT_NAMES


def _load_split_folder(folder: Path, columns: Columns) -> datasets.Dataset:
    for extension in (".csv", ".jsonl", ".parquet"):
        metadata = folder / f"metadata{extension}"
        if metadata.exists():
            return load_table(metadata, columns)
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


def _read_json_rows(path: Path) -> list:
    """A list of rows, or SSAST's `{"data": [{"wav": ..., "labels": "/m/09x0r,/m/05zppz"}]}`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        return [{**row, "labels": row["labels"].split(",")} for row in rows["data"]]
    return rows


def _choose_column(source, table, kind: str, wanted: str | None, candidates: tuple[str, ...]) -> str:
    names = list(table)
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{source}: no column {wanted!r}; it has {', '.join(map(str, names))}")
        return wanted
    for name in candidates:
        if name in names:
            return name
    raise InputError(f"{source}: which column is the {kind}? Set {kind}_column to one of {', '.join(map(str, names))}")


def _is_missing(column: pandas.Series) -> pandas.Series:
    return column.map(lambda value: value is None or (isinstance(value, float) and value != value) or value == "")


def _resolve(value, folder: Path):
    """A path relative to its table, or the {"path", "bytes"} of a Parquet file of `datasets`."""
    return str(folder / value) if isinstance(value, str) else dict(value)


def _split_labels(value, separator: str | None):
    """Text, a list of texts, or a number. Numbers stay numbers: they may be targets of a regression."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()] if separator else value
    return [str(part) for part in value] if hasattr(value, "__iter__") else value


def _standardise(source: str, data: datasets.Dataset, columns: Columns) -> datasets.Dataset:
    audio_features = [name for name, feature in data.features.items() if isinstance(feature, datasets.Audio)]
    audio_column = _choose_column(source, data.features, "audio", columns.audio, (*audio_features, *AUDIO_COLUMNS))
    label_column = _choose_column(source, data.features, "label", columns.label, LABEL_COLUMNS)
    if audio_column in audio_features:
        data = data.cast_column(audio_column, datasets.Audio(decode=False))
    feature = data.features[label_column]
    class_label = getattr(feature, "feature", feature)  # a list of classes holds its ClassLabel inside
    labels = data[label_column]
    if isinstance(class_label, datasets.ClassLabel):
        labels = [class_label.int2str(value) for value in labels]
    else:
        labels = [_split_labels(value, columns.separator) for value in labels]
    data = data.select_columns([audio_column])
    if audio_column != "audio":
        data = data.rename_column(audio_column, "audio")
    return data.add_column("label", labels)
