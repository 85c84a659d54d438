"""Finds and reads the columns of a table: audio, labels, folds, groups and times."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import pyarrow.compute

from ..errors import InputError
from .audio import AudioSource, audio_name

AUDIO_COLUMNS = ("audio", "file_name", "file", "path", "filename", "filepath", "file_path", "wav")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")
WEBDATASET_LABELS = ("cls", "txt")  # members of a tar: class index or text
OTHER_COLUMNS = ("fold", "group", "start", "end")
TIME_COLUMNS = ("start", "end")


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
    """

    audio: str | None = None
    label: str | None = None
    separator: str | None = None
    fold: str | None = None
    group: str | None = None
    start: str | None = None
    end: str | None = None


def choose_label_column(source: str, features: dict, wanted: str | None) -> str:
    """
    Returns the label column of a stored data set: `wanted`, or the first with a usual name.

    Raises:
        InputError: no such column.
    """
    usual = (*LABEL_COLUMNS, *WEBDATASET_LABELS) if "__key__" in features else LABEL_COLUMNS
    return _choose_column(source, features, "label", wanted, usual)


def label_reader(source: str, feature, separator: str | None) -> Callable:
    """Returns a function: value of a stored column -> a text, a list of texts, or `None` (no label)."""
    class_label = getattr(feature, "feature", feature)  # a list of classes holds its ClassLabel inside
    is_class = isinstance(class_label, datasets.ClassLabel)

    def read(value):
        # Many data sets of the Hub mark the hidden labels of a test split with -1.
        if _is_missing(value) or (isinstance(value, int) and value == -1 and is_class):
            return None
        return _as_label(class_label.int2str(value) if is_class else value, separator, source)

    return read


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
    return _choose_column(source, features, "audio", wanted, (*audio_features, *AUDIO_COLUMNS))


def clip_names(data: datasets.Dataset) -> list[str]:
    """Returns the name of each clip, without loading the audio of all clips at once."""
    if isinstance(data.features["audio"], datasets.Value):
        paths = data["audio"][:]
    else:
        tables = data.select_columns(["audio"]).with_format("arrow").iter(batch_size=100)
        paths = [path for table in tables for path in pyarrow.compute.struct_field(table["audio"], "path").to_pylist()]
    starts, ends = (data[name] if name in data.column_names else [None] * len(data) for name in TIME_COLUMNS)
    return [audio_name({"path": path, "start": start, "end": end}) for path, start, end in zip(paths, starts, ends)]


def _other_columns(source, table, columns: Columns) -> dict[str, list]:
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
        values = list(table[_choose_column(source, _names(table), name, wanted, ())])
        found[name] = _as_seconds(source, wanted, values) if name in TIME_COLUMNS else _as_names(source, wanted, values)
    return found


def _names(table) -> list[str]:
    return table.column_names if isinstance(table, datasets.Dataset) else list(table)


def _as_names(source, column: str, values: list) -> list[str]:
    """Returns folds or groups as texts. An empty cell is an error: empty cells would form a group of their own."""
    for row, value in enumerate(values, start=1):
        if _is_missing(value):
            raise InputError(f"{source}: row {row} has nothing in {column}; fill it in, or leave the column out")
    return [str(value) for value in values]


def _as_seconds(source, column: str, values: list) -> list[float | None]:
    """Returns times in seconds; `None` for an empty cell, which stands for the recording's own start or end."""
    seconds = []
    for row, value in enumerate(values, start=1):
        try:
            seconds.append(None if _is_missing(value) else float(value))
        except (TypeError, ValueError):
            raise InputError(f"{source}: row {row} has {value!r} in {column}, not a number of seconds") from None
    return seconds


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


def _is_missing(value) -> bool:
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value)


def _alike(labels: list) -> list:
    """Returns all labels as lists if some are lists, since a column holds one type."""
    if not any(isinstance(label, list) for label in labels):
        return labels
    return [label if isinstance(label, list) else [label] for label in labels]


def _as_label(value, separator: str | None, source):
    """Returns a label as a text or a list of texts; with a separator, an empty cell is an empty list."""
    if separator and _is_missing(value):
        return []
    if isinstance(value, str):
        return _split(value, separator) if separator else value
    if not hasattr(value, "__iter__"):
        return str(value)
    value = list(value)
    if not all(isinstance(part, str) for part in value):
        raise InputError(f"{source}: the label {value} is a list of numbers; write lists of class names instead")
    return value


def _split(text, separator: str = ",") -> list[str]:
    """Splits the labels in one text; returns a list unchanged."""
    return [part.strip() for part in text.split(separator) if part.strip()] if isinstance(text, str) else text
