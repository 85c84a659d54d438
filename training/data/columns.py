"""Finds and reads the columns of a table: audio, labels, folds, groups and times."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow
import pyarrow.compute

from ..errors import InputError, one_line
from .audio import AudioSource, as_stored, audio_name
from .labels import class_name
from .text_tables import as_numbers, find_column, is_empty

AUDIO_COLUMNS = ("audio", "file_name", "file", "path", "filename", "filepath", "file_path", "wav")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")
WEBDATASET_LABELS = ("cls", "txt")  # members of a tar: class index or text
OTHER_COLUMNS = ("fold", "group", "start", "end")
TIME_COLUMNS = ("start", "end")
# Types of a column that may hold audio: of `Value`, and the entries of a struct.
AUDIO_DTYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
AUDIO_KEYS = {"array", "bytes", "path"}
STORED_AUDIO = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


@dataclass(frozen=True)
class Columns:
    """
    Names the columns to read.

    Args:
        audio, label: `None`: guessed
        separator: separates several labels in one text; `None`: a text is one label
        fold: folds of the data set; `None`: none
        group: speakers, recordings or others whose clips must stay in one split; `None`: none
        start, end: times of segments of recordings, in seconds; `None`: none
        is_multi: a clip may have several labels or none; else a clip without a label is an error
    """

    audio: str | None = None
    label: str | None = None
    separator: str | None = None
    fold: str | None = None
    group: str | None = None
    start: str | None = None
    end: str | None = None
    is_multi: bool = False


def choose_label_column(source: str, features: dict, wanted: str | None) -> str:
    """
    Returns the label column of a stored data set: `wanted`, or the first with a usual name.

    Raises:
        InputError: no such column.
    """
    usual = (*LABEL_COLUMNS, *WEBDATASET_LABELS) if "__key__" in features else LABEL_COLUMNS
    return choose_column(source, features, "label", wanted, usual)


def label_reader(source: str, feature, columns: Columns) -> Callable:
    """
    Returns a function: value of a stored column, and where it stands -> a text, a list of texts, or `None` (no label).
    """
    class_label = getattr(feature, "feature", feature)  # a list of classes holds its ClassLabel inside
    names = class_label.names if isinstance(class_label, datasets.ClassLabel) else None

    def name_of(value, where: str) -> str | None:
        if names is not None and isinstance(value, int):
            # Many data sets of the Hub mark the hidden labels of a test split with -1.
            if not -1 <= value < len(names):
                raise InputError(f"{where}: has the class number {value}, and the column {len(names)} classes")
            return class_name(names[value]) if value >= 0 else None
        return None if is_empty(value) else as_text(value)

    def read(value, where: str = source):
        if isinstance(value, str) and columns.separator:
            return [class_name(part) for part in value.split(columns.separator) if part.strip()]
        if (columns.separator or columns.is_multi) and is_empty(value):
            return []
        if isinstance(value, (list, tuple, np.ndarray)):
            parts = [part for part in value if not is_empty(part)]
            if names is None and not all(isinstance(part, str) for part in parts):
                raise InputError(f"{where}: the label {list(value)} is a list of numbers; write lists of class names")
            return [name for part in parts if (name := name_of(part, where)) is not None]
        if isinstance(value, dict):
            raise InputError(f"{where}: the label {value} has several entries; set label_column to another column")
        return name_of(value, where)

    return read


def read_labels(source: str, values: Iterable, feature, columns: Columns, row_of: Callable[[int], str]) -> list:
    """
    Reads a column of labels: texts, or lists of texts if some clips have several.

    Raises:
        InputError: a label of another kind; names its row. A missing label stays `None`.
    """
    read = label_reader(source, feature, columns)
    labels = [read(value, f"{source}: {row_of(index)}") for index, value in enumerate(values)]
    return of_one_kind(labels)


def of_one_kind(labels: list) -> list:
    """Returns labels as lists if any of them is one: a column holds one type. A missing label stays `None`."""
    if not any(isinstance(label, list) for label in labels):
        return labels
    return [label if isinstance(label, list) or label is None else [label] for label in labels]


def as_text(value) -> str:
    """Returns a label, fold or group as a text. Whole numbers have no point: a missing cell makes 1 a 1.0 elsewhere."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return class_name(value.decode(errors="replace") if isinstance(value, bytes) else str(value))


def row_of(index: int) -> str:
    """Returns the name of a row for messages; rows are counted from 1."""
    return f"row {index + 1}"


def stored_audio(source: str, data: datasets.Dataset, column: str) -> datasets.Dataset:
    """
    Returns the audio column of a stored data set as `audio`: paths, or {"path", "bytes"}.

    Reads paths, bytes, {"path", "bytes"} and {"array", "sampling_rate"}. A row without audio becomes a clip that
    cannot be read, so that `on_bad_audio` decides about it; its path names the row.

    Raises:
        InputError: the column holds anything else.
    """
    data, kind = data.select_columns([column]), data.features[column]
    if column != "audio":
        data = data.rename_column(column, "audio")
    try:
        if kind in (datasets.Value("large_string"), datasets.Value("string_view")):  # as pandas writes
            data = data.cast_column("audio", datasets.Value("string"))
        elif isinstance(kind, datasets.Audio) or (isinstance(kind, dict) and kind.keys() <= STORED_AUDIO.keys()):
            data = data.cast_column("audio", datasets.Audio(decode=False))
        kind = data.features["audio"]
        is_stored = isinstance(kind, datasets.Audio) or kind == datasets.Value("string")
        if is_stored and not _lacks_audio(data):
            return data
        check_audio_kind(source, kind)
        stored = data.with_format("arrow").map(
            lambda table, indices: {"audio": [_as_clip(source, *pair) for pair in zip(table["audio"], indices)]},
            with_indices=True,
            batched=True,
            batch_size=16,
            features=datasets.Features({"audio": STORED_AUDIO}),
        )
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{source}: the audio column cannot be read ({one_line(error)}); set audio_column") from None
    return stored.with_format(None)


def _lacks_audio(data: datasets.Dataset) -> bool:
    """Returns whether a row has neither path nor bytes."""
    for table in data.with_format("arrow").iter(batch_size=1000):
        audio = table["audio"]
        are_paths = pyarrow.types.is_string(audio.type)
        paths = audio if are_paths else pyarrow.compute.struct_field(audio, "path")
        lacks = pyarrow.compute.equal(pyarrow.compute.fill_null(paths, ""), "")
        if not are_paths:
            lacks = pyarrow.compute.and_(lacks, pyarrow.compute.struct_field(audio, "bytes").is_null())
        if pyarrow.compute.any(lacks).as_py():
            return True
    return False


def check_audio_kind(source: str, kind):
    """Raises `InputError` if a column of this type holds no audio."""
    is_value = isinstance(kind, datasets.Value) and kind.dtype in AUDIO_DTYPES
    if not (is_value or isinstance(kind, datasets.Audio) or (isinstance(kind, dict) and kind.keys() & AUDIO_KEYS)):
        raise InputError(
            f"{source}: the audio column holds {kind}, not paths or audio; set audio_column, or store paths, bytes or "
            "{array, sampling_rate}"
        )


def _as_clip(source: str, value: pyarrow.Scalar, index: int) -> dict:
    """Returns an Arrow value as {"bytes", "path"}, with its row as path where it has none."""
    if isinstance(value, pyarrow.StructScalar) and value.is_valid:
        value = {name: _samples(part) if name == "array" else part.as_py() for name, part in value.items()}
    else:
        value = value.as_py()
    return named_clip(as_stored(value), f"{row_of(index)} of {source}")


def named_clip(stored: dict, name: str) -> dict:
    """Returns {"bytes", "path"} with `name` as path where there is none; without audio its bytes are empty."""
    if stored["path"]:
        return stored
    return {"bytes": b"" if stored["bytes"] is None else stored["bytes"], "path": name}


def _samples(value: pyarrow.Scalar) -> np.ndarray | None:
    """Returns an Arrow list of numbers, or of channels, as an array, without a Python object per sample."""
    if not value.is_valid:
        return None
    values = value.value.storage if isinstance(value, pyarrow.ExtensionScalar) else getattr(value, "values", None)
    if isinstance(values, pyarrow.Array) and not pyarrow.types.is_nested(values.type):
        return values.to_numpy(zero_copy_only=False)
    try:
        return np.asarray(value.as_py())
    except ValueError:  # channels of different lengths
        return None


def audio_of(example: dict) -> AudioSource:
    """Returns the audio of a row, with its times if it is a segment of a recording."""
    audio, times = example["audio"], {name: example[name] for name in TIME_COLUMNS if name in example}
    if not times:
        return audio
    return ({"path": audio} if isinstance(audio, str) else dict(audio)) | times


def choose_audio_column(source: str, features: dict, wanted: str | None) -> str:
    """
    Returns the audio column of a stored data set: `wanted`, the first of type `Audio`, or the first with a usual name.

    Raises:
        InputError: no such column.
    """
    audio_features = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    return choose_column(source, features, "audio", wanted, (*audio_features, *AUDIO_COLUMNS))


def stored_paths(data: datasets.Dataset) -> list[str | None]:
    """Returns the path of each clip (`None`: it has none), without loading the audio of all clips at once."""
    if isinstance(data.features["audio"], datasets.Value):
        return data["audio"][:]
    tables = data.select_columns(["audio"]).with_format("arrow").iter(batch_size=100)
    return [path for table in tables for path in pyarrow.compute.struct_field(table["audio"], "path").to_pylist()]


def clip_names(data: datasets.Dataset) -> list[str]:
    """Returns the name of each clip, see `audio_name`."""
    paths = stored_paths(data)
    starts, ends = (data[name] if name in data.column_names else [None] * len(data) for name in TIME_COLUMNS)
    return [audio_name({"path": path, "start": start, "end": end}) for path, start, end in zip(paths, starts, ends)]


def other_columns(source, table, columns: Columns) -> dict[str, list]:
    """
    Returns the values of the fold, group, start and end columns that `columns` names: name -> values.

    Raises:
        InputError: a missing column, times that are not numbers, or clips without fold or group.
    """
    found = {}
    for name in OTHER_COLUMNS:
        wanted = getattr(columns, name)
        if wanted is None:
            continue
        chosen = choose_column(source, _names(table), name, wanted, ())
        values, name_of = list(table[chosen]), getattr(table, "row_of", row_of)
        if name in TIME_COLUMNS:
            found[name] = as_seconds(source, chosen, values, name_of, getattr(table, "has_commas", False))
        else:
            found[name] = _as_names(source, chosen, values, name_of)
    return found


def _names(table) -> list[str]:
    return table.column_names if isinstance(table, datasets.Dataset) else list(table)


def _as_names(source, column: str, values: list, row_of: Callable[[int], str]) -> list[str]:
    """Returns folds or groups as texts. An empty cell is an error: empty cells would form a group of their own."""
    for index, value in enumerate(values):
        if is_empty(value):
            raise InputError(f"{source}: {row_of(index)} has nothing in {column}; fill it in, or leave the column out")
    return [as_text(value) for value in values]


def as_seconds(
    source, column: str, values: list, row_of: Callable[[int], str] = row_of, has_commas: bool = False
) -> list[float | None]:
    """Returns times in seconds; `None` for an empty cell, which stands for the recording's own start or end."""
    return as_numbers(source, column, values, row_of, has_commas=has_commas)


def choose_column(source, table, kind: str, wanted: str | None, candidates: tuple[str, ...]) -> str:
    """Returns the column with a wanted or usual name, see `find_column`; `InputError` without one."""
    found, names = find_column(source, table, wanted, candidates), [str(name) for name in table]
    if found is not None:
        return found
    alone = "; cells must be separated by commas, semicolons, tabs or bars" if len(names) == 1 else ""
    raise InputError(f"{source}: which column is the {kind}? Set {kind}_column to one of {', '.join(names)}{alone}")
