"""Reads tables of clips: CSV, TSV, Excel, JSON, JSONL, Parquet, SSAST's JSON manifests and Raven's selection tables."""

import datetime
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow
import pyarrow.parquet
from transformers.utils import logging

from ..errors import InputError, one_line
from ..files import ABOUT, about_path, storable
from .audio import as_stored
from .columns import (
    AUDIO_COLUMNS,
    LABEL_COLUMNS,
    OTHER_COLUMNS,
    TIME_COLUMNS,
    Columns,
    choose_column,
    named_clip,
    other_columns,
    read_labels,
    row_of,
)
from .events import RAVEN_AUDIO, RAVEN_BEGIN, RAVEN_END, RAVEN_LABELS, main_view, times_in_files
from .text_tables import check_rows, find_separator, is_empty, read_json_lines, read_rows, read_text

logger = logging.get_logger(__name__)

READ = "read"  # key of the metadata of a table's own columns
FILE = "file"  # column in which this project's own tables name the recordings
START, END = "start of the selection", "end of the selection"
# Columns of tables whose rows are parts of recordings: those of this project's own tables, and the usual ones.
PAIRS_OF_TIMES = (TIME_COLUMNS, ("start_s", "end_s"), ("onset", "offset"), ("onset_s", "offset_s"))


@dataclass(frozen=True)
class Table:
    """
    Holds the rows of a table by column.

    Args:
        columns: values of each column; names may repeat
        lines: the line of the file (Excel: of the sheet) at which each row begins; `None` for JSON and Parquet
        features: types of the columns of a Parquet file that `datasets` wrote
        has_commas: whether 1,5 is a number: cells are not separated by commas, as programs write them in many countries
        says_origin: whether the file itself says which of this project's programs made it
    """

    path: Path
    names: list[str]
    columns: list
    lines: list[int] | None = None
    features: dict = field(default_factory=dict)
    has_commas: bool = False
    says_origin: bool = False

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> list:
        values = self.columns[self.names.index(name)]
        return values.to_pylist() if isinstance(values, pyarrow.ChunkedArray) else list(values)

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def row_of(self, index: int) -> str:
        """Returns the name of a row for messages: its number from 1 without the header, and its line in the file."""
        return row_of(index) if self.lines is None else f"{row_of(index)} (line {self.lines[index]})"


class NamedClip(NamedTuple):
    """
    Holds what a table calls a clip.

    Args:
        name: as it stands in the table
        path: of the recording, by the folder of the table; it may be missing
    """

    name: str
    path: str


def load_table(path: Path, columns: Columns) -> datasets.Dataset:
    """
    Loads a table with one row per clip; its paths are relative to the table.

    Raises:
        InputError: an unknown extension, an unreadable or empty table, missing columns, rows without audio or label, or
            parts of recordings whose times are not read.
    """
    table = _read_table(path, columns)
    is_raven = {RAVEN_BEGIN, RAVEN_END} <= set(table)
    table = _one_view(table) if is_raven else table
    audio_column = _choose_audio(table, columns.audio)
    label_column = choose_column(path, table, "label", columns.label, RAVEN_LABELS if is_raven else LABEL_COLUMNS)
    if is_raven:
        table, columns = _with_times(table, audio_column, columns)
    labels = read_labels(str(path), table[label_column], table.features.get(label_column), columns, table.row_of)
    audio = _read_audio(table, audio_column)
    for index, pair in enumerate(zip(audio, labels)):
        if None in pair:
            raise InputError(
                f"{path}: {table.row_of(index)} has no {audio_column} or no {label_column}; fill it in or remove it"
            )
    warn_of_parts(path, table, [_path_of_file(clip) for clip in audio], columns)
    return datasets.Dataset.from_dict({"audio": audio, "label": labels} | other_columns(path, table, columns))


def load_table_as_it_stands(
    path: Path, audio_column: str | None = None, reads_times: bool = False
) -> tuple[datasets.Dataset, pyarrow.Table]:
    """
    Loads the column `audio` of a table, whose paths are relative to the table, and the table's columns as they stand
    there, without stored audio. The metadata of the latter name the column that was read, as `READ`.

    Args:
        reads_times: whether the caller reads the times of parts from these columns, which are then not refused

    Raises:
        InputError: an unknown extension, an unreadable or empty table, no audio column, rows without audio, or parts of
            recordings.
    """
    table, audio_column = _read_table_of_clips(path, audio_column)
    audio = _read_audio(table, audio_column)
    if None in audio:
        raise InputError(f"{path}: {table.row_of(audio.index(None))} has no {audio_column}; fill it in or remove it")
    if not reads_times:
        refuse_parts(path, table, [_path_of_file(clip) is not None for clip in audio])
    own = _own_columns(table).replace_schema_metadata({READ: audio_column})
    return datasets.Dataset.from_dict({"audio": audio}), own


def load_named_rows(path: Path) -> tuple[list[NamedClip], pyarrow.Table]:
    """
    Loads what a table calls its clips, and its columns as they stand there, without stored audio.

    Raises:
        InputError: an unknown extension, an unreadable or empty table, no audio column, or rows without a name.
    """
    table, audio_column = _read_table_of_clips(path, None)
    return _named_clips(table, audio_column), _own_columns(table)


def load_known_labels(path: Path, columns: Columns) -> tuple[list[NamedClip], list]:
    """
    Loads what a table calls its clips, and their labels; `None` where a clip has no label yet.

    Raises:
        InputError: an unknown extension, an unreadable table, missing columns, or rows without a name.
    """
    table = _read_table(path, columns, may_be_empty=True)
    clips = _named_clips(table, _choose_audio(table, columns.audio))
    label_column = choose_column(path, table, "label", columns.label, LABEL_COLUMNS)
    labels = read_labels(str(path), table[label_column], table.features.get(label_column), columns, table.row_of)
    return clips, [label or None for label in labels]


def _read_table_of_clips(path: Path, audio_column: str | None) -> tuple[Table, str]:
    """Returns a table whose rows are whole recordings, and its audio column."""
    table = _read_table(path, Columns(audio_column))
    if {RAVEN_BEGIN, RAVEN_END} <= set(table):
        raise _lists_parts(path, (RAVEN_BEGIN, RAVEN_END))
    return table, _choose_audio(table, audio_column)


def refuse_parts(source: str | Path, table: Table | dict[str, list], are_files: Sequence[bool]):
    """
    Refuses parts of recordings where clips are read whole: each would count as its whole recording.

    Args:
        are_files: whether the clip of each row is a file: times beside stored audio are those of another recording

    Raises:
        InputError: a row has a file, and a time in a column with a usual name.
    """
    for pair in _pairs_of_times(table):
        for is_file, *times in zip(are_files, *(table[name] for name in pair)):
            if is_file and not all(map(is_empty, times)):
                raise _lists_parts(source, pair)


def warn_of_parts(source: str | Path, table: Table | dict[str, list], files: Sequence[str | None], columns: Columns):
    """
    Warns of labelled clips that may be parts of recordings, while no columns of times are set: each is then its whole
    recording. They may as well be whole files that were cut from others, as those of UrbanSound8K.

    Args:
        files: path of each row's clip; `None`: its audio is stored, and its times are those of another recording

    Raises:
        InputError: a file has several times, so that they are times in it.
    """
    if columns.start is not None or columns.end is not None:
        return
    for pair in _pairs_of_times(table):
        rows = [(file, times) for file, *times in zip(files, *(table[name] for name in pair)) if file is not None]
        rows = [(file, tuple(map(str, times))) for file, times in rows if not all(map(is_empty, times))]
        start, end = pair
        remedy = f"set start_column to {start} and end_column to {end}"
        other = "rename these columns if they are no times in these files, but in others"
        if len(set(rows)) > len({file for file, _ in rows}):
            raise InputError(f"{source}: lists parts of recordings, and their times are not read; {remedy}, or {other}")
        if rows:
            some = f"{len(rows)} clips have" if len(rows) > 1 else "a clip has"
            logger.warning(
                f"{source}: {some} times in {start} and {end}, which are not read: each clip is its whole file. If it "
                f"is a part of it, {remedy}"
            )
            return


def _path_of_file(clip: str | dict) -> str | None:
    """Returns the path of a clip that is a file; `None` for stored audio."""
    return clip if isinstance(clip, str) else clip["path"] if clip["bytes"] is None else None


def time_columns(names: Iterable[str]) -> list[str]:
    """Returns the columns that may hold the times of parts, by their usual names."""
    return [name for pair in _pairs_of_times(names) for name in pair]


def _pairs_of_times(names: Iterable[str]) -> list[tuple[str, str]]:
    known = {name.strip().casefold(): name for name in names}
    return [(known[start], known[end]) for start, end in PAIRS_OF_TIMES if {start, end} <= known.keys()]


def _lists_parts(source: str | Path, times: tuple[str, str]) -> InputError:
    return InputError(
        f"{source}: lists parts of recordings; name the recordings, or their folder, or rename its columns "
        f"{' and '.join(times)} if they are no times in these files, but in others"
    )


def _own_columns(table: Table) -> pyarrow.Table:
    """Returns the columns of a table as they stand there, without stored audio."""
    own = {name: column for name in dict.fromkeys(table) if (column := _as_it_stands(table[name])) is not None}
    return pyarrow.table(own)


def _named_clips(table: Table, column: str) -> list[NamedClip]:
    """Returns what a table calls its clips. Stored audio without a name has that of its row."""
    clips = []
    for index, value in enumerate(table[column]):
        if isinstance(value, (dict, bytes)):
            value = (value.get("path") if isinstance(value, dict) else None) or _name_of_row(table, index)
        if is_empty(value):
            raise InputError(f"{table.path}: {table.row_of(index)} has no name in {column}; fill it in or remove it")
        clips.append(NamedClip(str(value), _locate(table, str(value))))
    return clips


def _name_of_row(table: Table, index: int) -> str:
    """Returns the name of a clip that is stored in a table without one."""
    return f"{table.row_of(index)} of {table.path.name}"


def _as_it_stands(values: list) -> pyarrow.Array | None:
    """Returns a column for Arrow, as texts where it holds several kinds; `None` for stored audio."""
    if any(isinstance(value, (bytes, dict)) for value in values):
        return None
    try:
        return pyarrow.array(values)
    except (ValueError, TypeError, OverflowError, pyarrow.ArrowException):  # texts that are not UTF-8, or several kinds
        return pyarrow.array([None if value is None else storable(str(value)) for value in values], pyarrow.string())


def _read_table(path: Path, columns: Columns, may_be_empty: bool = False) -> Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path of the manifest")
    reader = TABLE_READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of table; known are {', '.join(TABLE_READERS)}")
    try:
        table = reader(path, columns)
    except (ValueError, OSError, KeyError, TypeError, RecursionError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not readable as a table ({one_line(error)}); check its format") from None
    if not len(table) and not may_be_empty:
        raise InputError(f"{path}: the table has no rows; add clips or leave it out")
    return table


def _read_text_table(path: Path, columns: Columns) -> Table:
    named = (getattr(columns, name) for name in ("audio", "label", *OTHER_COLUMNS))
    known = (*AUDIO_COLUMNS, *LABEL_COLUMNS, RAVEN_BEGIN, *filter(None, named))
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    text = read_text(path)
    has_commas = find_separator(path, text, separator, known) != ","
    return _from_rows(path, *read_rows(path, separator, known, text), has_commas)


def _from_rows(
    path: Path, names: list[str], rows: list[list], lines: list[int] | None, has_commas: bool = False
) -> Table:
    return Table(path, names, list(zip(*rows)) or [()] * len(names), lines, has_commas=has_commas)


def _read_excel(path: Path, columns: Columns) -> Table:
    """Reads the first sheet of a workbook as texts: a cell that shows 1 is "1", also where Excel stores 1.0."""
    try:
        import openpyxl
    except ImportError:
        raise InputError(f"{path}: Excel files need openpyxl; pip install openpyxl, or save the sheet as CSV") from None
    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet, *others = [sheet for sheet in workbook.worksheets if hasattr(sheet, "reset_dimensions")]
        sheet.reset_dimensions()  # some writers store wrong ones
        records = [
            (line, [_excel_text(cell) for cell in cells]) for line, cells in enumerate(sheet.iter_rows(), start=1)
        ]
        workbook.close()
        width = max(len(cells) for _, cells in records)  # rows end with their last filled cell
        records = [(line, cells + [""] * (width - len(cells))) for line, cells in records if any(cells)]
    except Exception as error:  # openpyxl raises many kinds: zip, XML, missing parts
        raise InputError(f"{path}: not readable as an Excel file ({one_line(error)}); save it as CSV") from None
    if others:
        logger.warning(f"{path}: only the first sheet, {sheet.title}, is read; it has {len(others)} more")
    return _from_rows(path, *check_rows(path, records), has_commas=True)


def _excel_text(cell) -> str:
    value = cell.value
    if value is None or cell.data_type == "e":  # an error such as #N/A
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return str(value.date())
    return str(value)


def _read_parquet(path: Path, columns: Columns) -> Table:
    # Not `pyarrow.parquet.read_table`, which makes columns of folders such as fold=1. An index of pandas is a column.
    table = pyarrow.parquet.ParquetFile(path).read()
    try:
        features = datasets.Features.from_arrow_schema(table.schema)
    except (ValueError, TypeError, NotImplementedError, KeyError):  # types that `datasets` does not know
        features = {}
    names, says_origin = [str(name) for name in table.schema.names], ABOUT.encode() in (table.schema.metadata or {})
    return Table(path, names, table.columns, features=features, says_origin=says_origin)


def _read_json(path: Path, columns: Columns) -> Table:
    """
    Reads a list of rows, columns ({"file": [...]}, also pandas' {"file": {"0": ...}}), a list of lists with the header
    first, or SSAST's {"data": [{"wav": ..., "labels": "/m/09x0r,/m/05zppz"}]}.
    """
    data = json.loads(read_text(path))
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        rows = data["data"]
        if isinstance(data.get("columns"), list):  # pandas' "split"
            return _from_lists(path, [data["columns"], *rows])
        return _from_objects(path, [_with_split_labels(row) for row in rows])
    if isinstance(data, dict) and data and all(isinstance(value, (list, dict)) for value in data.values()):
        if all(isinstance(value, dict) for value in data.values()):
            names = {name for row in data.values() for name in row}
            if names & {*AUDIO_COLUMNS, columns.audio}:  # pandas' "index": a row for each key
                return _from_objects(path, list(data.values()))
            keys = dict.fromkeys(key for column in data.values() for key in column)
            data = {name: [column.get(key) for key in keys] for name, column in data.items()}
        lengths = {name: len(column) for name, column in data.items()}
        if len(set(lengths.values())) > 1 or not all(isinstance(column, list) for column in data.values()):
            raise InputError(f"{path}: its columns differ in length ({lengths}); write a list of rows")
        return Table(path, list(data), list(data.values()))
    if not isinstance(data, list):
        raise InputError(f"{path}: holds no rows; write a list of rows, [{{'file_name': ..., 'label': ...}}, ...]")
    if data and all(isinstance(row, list) for row in data):
        return _from_lists(path, data)
    return _from_objects(path, data)


def _read_json_lines(path: Path, columns: Columns) -> Table:
    return _from_objects(path, *read_json_lines(path))


def _with_split_labels(row):
    """Splits the labels of a row of SSAST's manifests."""
    if not (isinstance(row, dict) and isinstance(row.get("labels"), str)):
        return row
    return row | {"labels": [part.strip() for part in row["labels"].split(",") if part.strip()]}


def _from_objects(path: Path, rows: list, lines: list[int] | None = None) -> Table:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            where = row_of(index) if lines is None else f"line {lines[index]}"
            raise InputError(f"{path}: {where} is not an object {{'file_name': ..., 'label': ...}}; correct it")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, names, [[row.get(name) for row in rows] for name in names], lines)


def _from_lists(path: Path, rows: list) -> Table:
    """Divides lists into header and rows; their lines are unknown."""
    records = ((index, row if isinstance(row, list) else [row]) for index, row in enumerate(rows))
    names, rows, _ = check_rows(path, records)
    return _from_rows(path, names, rows, None)


def _choose_audio(table: Table, wanted: str | None) -> str:
    own = [name for name, feature in table.features.items() if isinstance(feature, datasets.Audio)]
    raven = [name for name in RAVEN_AUDIO if name in table.names]
    there = [name for name in raven if len(table) and os.path.exists(_locate(table, str(table[name][0])))]
    chosen = choose_column(table.path, table, "audio", wanted, (*own, *AUDIO_COLUMNS, *there, *raven))
    if wanted is not None or chosen == FILE or table.names.count(FILE) != 1:
        return chosen
    # The other column of a table that a program wrote is that of its manifest, relative to another folder. In tables of
    # others, a column called file may name the recordings that clips were cut from.
    is_of_program = table.says_origin or about_path(table.path).exists()
    are_paths = all(isinstance(value, str) or is_empty(value) for value in table[chosen])
    is_better = are_paths and _leads_to_files(table, FILE) and (is_of_program or not _leads_to_files(table, chosen))
    return FILE if is_better else chosen


def _leads_to_files(table: Table, column: str) -> bool:
    return any(
        isinstance(value, str) and value.strip() and os.path.isfile(_locate(table, value)) for value in table[column]
    )


def _read_audio(table: Table, column: str) -> list:
    """Returns paths, or {"bytes", "path"} if some rows hold audio; `None` where a path is missing."""
    values = table[column]
    if not any(isinstance(value, (dict, bytes, list)) for value in values):
        return [None if is_empty(value) else _path(table, index, str(value)) for index, value in enumerate(values)]
    clips = []
    for index, value in enumerate(values):
        if isinstance(value, list):
            raise InputError(
                f"{table.path}: {table.row_of(index)} has a list in {column}, not a path or audio; set audio_column, "
                "or store paths, bytes or {array, sampling_rate}"
            )
        clip = as_stored(value if isinstance(value, (dict, bytes)) or is_empty(value) else str(value))
        if clip["bytes"] is None and clip["path"]:
            clip["path"] = _path(table, index, clip["path"])
        clips.append(named_clip(clip, _name_of_row(table, index)))
    return clips


def _path(table: Table, index: int, name: str) -> str:
    """Returns the path of a row's clip."""
    if "://" in name:
        raise InputError(
            f"{table.path}: {table.row_of(index)} has the address {name}, and tables name files; download the clips, "
            "and write their paths"
        )
    return _locate(table, name)


def _locate(table: Table, name: str) -> str:
    """
    Returns the path of a cell, see `resolve`; relative to the working directory where it is missing beside the table
    and is there: so do programs name the recordings in their tables.
    """
    path = resolve(name, table.path.parent)
    return name if not os.path.exists(path) and os.path.isfile(name) else path


def resolve(name: str, folder: Path) -> str:
    """
    Returns the path of a cell relative to its table. Where no such file exists, other spellings of the name are tried:
    without blanks around it, with the slashes of Windows, or with accents in the other form, as macOS stores them.
    """
    path = str(folder / name)
    if (name.isascii() and "\\" not in name and name == name.strip()) or os.path.exists(path):
        return path
    plain = name.strip()
    slashed = plain.replace("\\", "/")
    forms = (unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))
    return next((str(folder / other) for other in (plain, slashed, *forms) if (folder / other).is_file()), path)


def _with_times(table: Table, audio_column: str, columns: Columns) -> tuple[Table, Columns]:
    """Returns a selection table of Raven with the times of each selection in its own file, and the columns to read."""
    if columns.start is not None or columns.end is not None:
        return table, columns
    times = times_in_files(table.path, table, table[audio_column], table.row_of)
    table = replace(table, names=[*table.names, START, END], columns=[*table.columns, *times])
    return table, replace(columns, start=START, end=END)


def names_table(path: str | Path) -> bool:
    """Returns whether a path names a table, and no folder or data set: a file, or the ending of one that is missing."""
    return Path(path).is_file() or Path(path).suffix.lower() in TABLE_READERS


def _one_view(table: Table) -> Table:
    """Leaves out the rows of other views than Raven's main one."""
    kept = main_view(table.path, table["View"]) if "View" in table.names else range(len(table))
    columns = [[column[index] for index in kept] for column in table.columns]
    return replace(table, columns=columns, lines=table.lines and [table.lines[index] for index in kept])


TABLE_READERS = {
    ".csv": _read_text_table,
    ".tsv": _read_text_table,
    ".txt": _read_text_table,  # Raven's, or with tabs
    ".xlsx": _read_excel,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
