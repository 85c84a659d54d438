"""Reads tables of clips: CSV, TSV, JSON, JSONL, Parquet and SSAST's JSON manifests."""

import json
from pathlib import Path

import datasets
import pandas

from ..errors import InputError
from .columns import (
    AUDIO_COLUMNS,
    LABEL_COLUMNS,
    Columns,
    _alike,
    _as_label,
    _choose_column,
    _is_missing,
    _other_columns,
    _split,
)

TABLE_READERS = {
    # Read as text: pandas would turn the class 01 into 1 and the class None into a missing value.
    ".csv": lambda path: pandas.read_csv(path, dtype=str, keep_default_na=False),
    ".tsv": lambda path: pandas.read_csv(path, dtype=str, keep_default_na=False, sep="\t"),
    ".json": lambda path: pandas.DataFrame(_read_json_rows(path)),
    ".jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
    ".parquet": lambda path: pandas.read_parquet(path),
}


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


def _read_json_rows(path: Path) -> list:
    """Reads a list of rows, or SSAST's `{"data": [{"wav": ..., "labels": "/m/09x0r,/m/05zppz"}]}`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        return [{**row, "labels": _split(row["labels"])} if "labels" in row else row for row in rows["data"]]
    return rows


def _resolve(value, folder: Path):
    """Returns the path of a cell relative to its table, or the {"path", "bytes"} of a Parquet file of `datasets`."""
    return dict(value) if isinstance(value, dict) else str(folder / str(value))
