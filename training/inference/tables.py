"""Writes tables of any length piece by piece: CSV, Parquet or JSON lines, by the ending of their names."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import (
    ABOUT,
    about_path,
    append_csv,
    arrow_array,
    check_writable,
    complete_file,
    csv_header,
    storable,
    write_json,
)

Columns = list[tuple[str, object]]  # names may repeat; see `files.arrow_array` for the values


class _Csv:
    def __init__(self, path: Path, about: dict):
        self.file = open(path, "wb")  # noqa: SIM115
        self.has_header = False

    def write(self, columns: Columns):
        if not self.has_header:
            self.file.write(csv_header(name for name, _ in columns))
            self.has_header = True
        append_csv(self.file, [_as_text(values) for _, values in columns])

    def close(self):
        self.file.close()


def _as_text(values):
    """Returns a manifest's column of lists as texts, which a cell of CSV can hold."""
    if not str(getattr(values, "type", "")).startswith(("list", "large_list", "fixed_size_list", "struct")):
        return values
    return [None if cell is None else json.dumps(cell, ensure_ascii=False, default=str) for cell in values.to_pylist()]


class _JsonLines:
    def __init__(self, path: Path, about: dict):
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def write(self, columns: Columns):
        names = [storable(name) for name, _ in columns]
        for row in zip(*(_for_json(values) for _, values in columns)):
            self.file.write(json.dumps(dict(zip(names, row)), ensure_ascii=False, default=str) + "\n")

    def close(self):
        self.file.close()


def _for_json(values) -> list:
    if isinstance(values, np.ndarray) and values.dtype == np.float32:  # 0.1, not 0.10000000149011612
        return list(map(float, values.astype(str)))
    return arrow_array(values).to_pylist()


class _Parquet:
    """Each piece becomes a row group."""

    def __init__(self, path: Path, about: dict):
        self.path, self.about, self.writer = path, about, None

    def write(self, columns: Columns):
        import pyarrow
        import pyarrow.parquet

        names = [storable(name) for name, _ in columns]
        table = pyarrow.Table.from_arrays([arrow_array(values) for _, values in columns], names=names)
        if self.writer is None:
            schema = table.schema.with_metadata({ABOUT: json.dumps(self.about)})
            self.writer = pyarrow.parquet.ParquetWriter(self.path, schema)
        self.writer.write_table(table)

    def close(self):
        if self.writer is not None:
            self.writer.close()


WRITERS = {".csv": _Csv, ".parquet": _Parquet, ".jsonl": _JsonLines}


def check_table(path: Path):
    """Raises `InputError` for a table whose ending is unknown, or that cannot be written; before hours of work."""
    check_writable(path)
    if path.suffix not in WRITERS:
        raise InputError(f"{path}: unknown kind of table; name a file that ends in .csv, .parquet or .jsonl")


@contextlib.contextmanager
def open_table(path: Path, about: dict) -> Iterator[Callable[[Columns], None]]:
    """
    Opens a table to write to: yields a function that appends rows, given as columns. The table takes its place when it
    is complete.

    Args:
        about: what made the table: metadata of a Parquet file, else a file NAME.about.json beside it
    """
    with complete_file(path) as unfinished:
        writer = WRITERS[path.suffix](unfinished, about)
        try:
            yield writer.write
        finally:
            writer.close()
    if path.suffix != ".parquet":
        write_json(about_path(path), about)


def with_own_columns(name: str, files: list[str], numbers: list[int], own, results: Columns) -> Columns:
    """
    Puts the files and the columns of their manifests before the columns of the results.

    Args:
        name: of the column of files. The manifest's own of that name, if it was read, stands there as it is, so that
            tables join
        files: of each row
        numbers: clip of each row
        own: the manifests' columns, a row per clip; or `None`. A name that a result has becomes given_NAME,
            or given_given_NAME where the manifests have that
    """
    columns, taken = [(name, files)], {other for other, _ in results}
    names = own.schema.names if own is not None else []
    for field in names:
        values = own[field].take(np.asarray(numbers, dtype=np.int64))
        if field != name:
            free = field
            while free in taken or (free != field and free in names):  # an output that is classified again has some
                free = f"given_{free}"
            taken.add(free)
            columns.append((free, values))
        elif str(values.type) == "string":
            columns[0] = (name, [file if cell is None else cell for file, cell in zip(files, values.to_pylist())])
    return columns + results


def write_unreadable(output: Path, errors: list[tuple[str, str]]):
    """Lists clips that gave nothing, with the reasons, in OUTPUT.unreadable.csv; removes an earlier list."""
    path = unreadable_path(output)
    path.unlink(missing_ok=True)
    if not errors:
        return
    with complete_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([storable(name), reason] for name, reason in [("file_name", "reason"), *errors])


def written_beside(place: Path | None, tables: Iterable[Path | None]) -> dict[str, Path]:
    """
    Returns what else a run may write, for `check_apart`: a name for messages -> path.

    Args:
        place: the output beside which the list of unreadable clips is; `None`: there is no such list
        tables: those of `open_table`
    """
    found = {} if place is None else {"the list of unreadable clips": unreadable_path(place)}
    described = (table for table in tables if table is not None and table.suffix != ".parquet")
    return found | {f"what says what made {table}": about_path(table) for table in described}


def unreadable_path(output: Path) -> Path:
    """Returns the path of the list of unreadable clips."""
    return output.with_name(f"{output.name}.unreadable.csv")
