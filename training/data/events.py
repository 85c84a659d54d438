"""
Reads and writes sound events: Raven's selection tables, Audacity's label tracks, TSV of DCASE and AudioSet Strong, CSV,
JSON, JSON lines and the JSON of soundevent.

Reading goes by content, writing by the ending of the file and `event_format`. Numbers are written as plain decimals,
rounded to 6 places.
"""

import functools
import itertools
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers.utils import logging

from ..errors import UNPRINTABLE, InputError, nearest, one_line, printable, short
from ..files import TEXT_ERRORS, check_writable, complete_file, storable
from . import aoef
from .audio import audio_format, audio_seconds
from .labels import class_name
from .listing import find_audio_files, find_files
from .text_tables import as_number, as_numbers, find_column, is_empty, read_json_lines, read_rows, read_text

logger = logging.get_logger(__name__)

RAVEN_BEGIN, RAVEN_END, RAVEN_OFFSET = "Begin Time (s)", "End Time (s)", "File Offset (s)"
RAVEN_LOW, RAVEN_HIGH, RAVEN_ANNOTATION = "Low Freq (Hz)", "High Freq (Hz)", "Annotation"
RAVEN_AUDIO = ("Begin Path", "Begin File")
RAVEN_LABELS = (RAVEN_ANNOTATION, "Species", "Common Name", "Tag", "Tags", "Type")
# Names of columns, whatever their case: this project's, DCASE's, AudioSet Strong's, Raven's, and usual ones.
FILES = ("file", "filename", "file_name", "audio", "audio_file", "segment_id", "path", "filepath", *RAVEN_AUDIO)
ONSETS = ("onset_s", "onset", "start_s", "start", "start_time", "start_time_seconds", "begin_time", RAVEN_BEGIN)
ONSETS += ("start (s)",)  # BirdNET-Analyzer's
OFFSETS = ("offset_s", "offset", "end_s", "end", "end_time", "end_time_seconds", RAVEN_END, "end (s)")
LABELS = ("label", "event_label", "event", "class", *RAVEN_LABELS)
LOWS = ("low_hz", "low_freq", "low_f", "freq_low", "min_freq", RAVEN_LOW)
HIGHS = ("high_hz", "high_freq", "high_f", "freq_high", "max_freq", RAVEN_HIGH)
SCORES = ("score", "confidence", "probability")
KNOWN = (*FILES, *ONSETS, *OFFSETS, *LABELS)
PLAIN = {name.casefold() for name in (*KNOWN, *LOWS, *HIGHS, *SCORES, RAVEN_OFFSET, "View")}

AUDACITY_NUMBERS = [
    ("its first cell", "number of seconds"),
    ("its second cell", "number of seconds"),
    ("its low frequency", "number of Hz"),
    ("its high frequency", "number of Hz"),
]
MOST_HEADER = 4096  # characters in which the names of columns stand
OTHER_KINDS = (".xlsx", ".xlsm", ".xls", ".ods", ".parquet", ".feather", ".arrow", ".db", ".sqlite", ".h5", ".pkl")
OTHER_KINDS += (".textgrid", ".eaf", ".docx", ".pdf")  # Praat's and ELAN's, and what reports are written in
HOLD_ALL = ("json", "jsonl", "soundevent")  # formats whose texts may have any character
DECIMALS = 6
BACKGROUND = "background"  # class of clips without events
UNSURE = "unsure"  # label of what nobody can tell
HIGHEST_HZ = 8000.0  # what models at 16 kHz get
SURROGATES = re.compile("[\ud800-\udfff]+")
# x.txt, x.Table.1.selections.txt (Raven) and x.BirdNET.selection.table.txt describe x.wav.
TABLE_NAME = re.compile(r"((\.Table\.\d+)?\.selections|\.BirdNET\.(selection\.table|results))?\.\w+$")

_numbers = functools.partial(as_numbers, has_commas=True)


class Event(NamedTuple):
    """Holds a sound event: its times in seconds from the recording's beginning, frequencies in Hz, and its score."""

    onset_s: float
    offset_s: float
    label: str
    low_hz: float | None = None
    high_hz: float | None = None
    score: float | None = None


Events = Mapping[str | None, Iterable[Event]]


# ---- Reading ----


class EventTable(NamedTuple):
    """
    Holds a table.

    Args:
        events: name of the recording -> its events by onset; the name is `None` if the table does not say it
        cells: name of the recording -> its cells in another column
        stretches: name of the recording -> what is annotated of it, in seconds, where that is not all
    """

    events: dict[str | None, list[Event]]
    cells: dict[str | None, set[str]]
    stretches: dict[str | None, list[tuple[float, float]]]


class EventRow(NamedTuple):
    """
    Holds a row of a table.

    Args:
        where: path and row, for messages
        name: the recording; `None` if the table does not say it
        event: `None`: the row stands for a recording without events
        cells: column -> what stands there; a label track has none
    """

    where: str
    name: str | None
    event: Event | None
    cells: dict


def read_events(path: Path, label_column: str | None = None, audio_column: str | None = None) -> dict:
    """
    Reads a table of events, or all tables of a folder.

    Columns have the names that Raven, DCASE, AudioSet Strong and this project give them, or other usual ones. A file
    without header whose lines begin with numbers is a label track of Audacity. A row with a recording and nothing else
    stands for a recording without events.

    Args:
        label_column, audio_column: columns of the labels and of the recordings; `None`: guessed

    Returns:
        name of the recording -> its events by onset. The name is `None` if the table does not say it; in a folder it is
        then that of the table without its ending.

    Raises:
        InputError: unreadable, a column is missing, or an event is impossible; names the row.
    """
    return read_event_tables(path, label_column, audio_column).events


def read_event_tables(path: Path, label_column: str | None = None, audio_column: str | None = None) -> EventTable:
    """Reads a table, or all tables of a folder, as `read_events` does, with what is annotated of the recordings."""
    path = Path(path)
    found, stretches, wholes = {}, {}, set()
    for place in list_tables(path):
        table = read_event_table(place, label_column, audio_column)
        own_name = table_name(place.relative_to(path)) if path.is_dir() else None
        for name, events in table.events.items():
            is_whole, name = name not in table.stretches, own_name if name is None else name
            wholes |= {name} if is_whole else set()
            found[name] = in_order([*found.get(name, ()), *events])
        for name, own in table.stretches.items():
            stretches.setdefault(own_name if name is None else name, []).extend(own)
    return EventTable(found, {}, {name: own for name, own in stretches.items() if name not in wholes})


def read_event_table(
    path: Path, label_column: str | None = None, audio_column: str | None = None, other_column: str | None = None
) -> EventTable:
    """Reads one table as `read_events` does, and another column if the table has it."""
    _check_kind(path)
    if path.suffix.lower() in (".json", ".jsonl"):
        value, lines = _read_json(path)
        if aoef.is_collection(value):
            return _from_collection(path, value, label_column, other_column)
        return _from_columns(path, *_from_objects(path, value, lines), label_column, audio_column, other_column)
    text = read_text(path)
    if not text.strip():
        return EventTable({None: []}, {}, {})  # Audacity's track without labels
    if _is_track(text):
        return EventTable({None: in_order(row.event for row in _read_audacity(path, text))}, {}, {})
    return _from_columns(path, *_columns_of(path, text), label_column, audio_column, other_column)


def read_event_rows(path: Path) -> list[EventRow]:
    """Reads the rows of a table of text or a label track, in their order; raises as `read_events`."""
    _check_kind(path)
    text = read_text(path)
    if not text.strip():
        return []
    return list(_read_audacity(path, text) if _is_track(text) else _read_rows(path, *_columns_of(path, text)))


def _check_kind(path: Path):
    """Raises `InputError` for files of kinds that are never text of events."""
    if path.suffix.lower() in OTHER_KINDS:
        kinds = ", ".join(sorted({kind.suffix for kind in FORMATS.values()}))
        raise InputError(f"{path}: files of this kind are not read as events, but {kinds}; export it as .csv")


def _is_track(text: str) -> bool:
    """Returns whether a text is a label track of Audacity, which has no header."""
    cells = next(line for line in text.split("\n") if line.strip()).split("\t")
    return len(cells) > 1 and _is_number(cells[0]) and (_is_number(cells[1]) or len(cells) == 2)


def _columns_of(path: Path, text: str) -> tuple[list[str], list[list], Callable[[int], str]]:
    names, rows, lines = read_rows(path, "," if path.suffix.lower() == ".csv" else "\t", KNOWN, text)
    return names, rows, lambda index: f"row {index + 1} (line {lines[index]})"


def other_columns(path: Path, *chosen: str | None) -> list[str]:
    """
    Returns the columns of a table, or of all tables of a folder, that hold nothing of events; not those of collections
    of soundevent.

    Args:
        chosen: columns of the labels and of the recordings, if they are not guessed
    """
    usual = PLAIN | {"selection", "channel"} | {name.strip().casefold() for name in chosen if name is not None}
    names: dict[str, None] = {}
    for table in list_tables(Path(path)):
        try:
            names |= dict.fromkeys(_names_of(table))
        except InputError:  # a file of a folder that is no table of events
            continue
    return [name for name in names if name.strip() and name.strip().casefold() not in usual]


def _names_of(path: Path) -> list[str]:
    """Returns the columns of a table; a label track has none."""
    if path.suffix.lower() in (".json", ".jsonl"):
        value, lines = _read_json(path)
        return [] if aoef.is_collection(value) else _from_objects(path, value, lines)[0]
    text = read_text(path)
    return _columns_of(path, text)[0] if text.strip() and not _is_track(text) else []


def list_tables(path: Path) -> list[Path]:
    """Returns the tables below a folder, sorted, by the rules of `find_files`; a file is the only one."""
    if not path.is_dir():
        return [path]
    suffixes = {kind.suffix for kind in FORMATS.values()}
    found = find_files(path, suffixes)
    if not found:
        raise InputError(f"{path}: holds no tables of events ({', '.join(sorted(suffixes))}); name another folder")
    return found


def may_hold_events(path: Path) -> bool:
    """Returns whether a file that cannot be read as events looks like some: it has a column of onsets."""
    try:
        cells = re.split(r"[\t\n,;|\"{}\[\]:]", read_text(path)[:MOST_HEADER].casefold())
    except InputError:
        return False
    return not {cell.strip() for cell in cells}.isdisjoint({*(name.casefold() for name in ONSETS), "collection_type"})


def table_name(path: Path) -> str:
    """Returns the name of the recording that a table describes by its own name."""
    return TABLE_NAME.sub("", path.as_posix())


class Recordings:
    """
    Finds recordings by the names that tables give them: paths below a folder, or names, with or without endings.

    Args:
        place: a folder, or the only recording
    """

    def __init__(self, place: Path):
        self.place = Path(place)
        self.paths = find_audio_files(self.place) if self.place.is_dir() else [self.place]
        self.by_path, self.by_name, self.by_real_path = defaultdict(set), defaultdict(set), {}
        for path in self.paths:
            below = Path(os.path.relpath(path, self.place)) if self.place.is_dir() else Path(path.name)
            for form in (below, below.with_suffix(""), path):
                self.by_path[as_named(form.as_posix())].add(path)
            for form in (path.name, path.stem):
                self.by_name[as_named(form)].add(path)
            self.by_real_path[os.path.realpath(path)] = path
        # Recorders number their files anew in each folder: such a name alone says nothing.
        self.are_names_enough = all(len({path.parent for path in own}) == 1 for own in self.by_name.values())

    def candidates(self, name: str | None, folder: str = "", beside: Path | None = None) -> set[Path]:
        """
        Returns the recordings that a name may mean; `None` means all.

        A name is a path below the folder of its table, or below `place`, or beside its table. Else it is that of a
        recording anywhere; of several, those are meant whose last folders are those of the name.

        Args:
            folder: the folder of the table, below `place`
            beside: the folder of the table
        """
        if name is None:
            return set(self.paths)
        name = as_named(name)
        full = _full(name, folder)
        for form in (full, name):
            if form in self.by_path:
                return self.by_path[form]
        if beside is not None and os.path.isfile(beside / name):
            return {self.by_real_path.get(os.path.realpath(beside / name), beside / name)}
        found = self.by_name.get(name.rsplit("/", 1)[-1], set())
        shared = {path: _num_shared(full, as_named(path.as_posix())) for path in found}
        found = {path for path in found if shared[path] == max(shared.values())}
        return {path for path in found if self.are_names_enough or not self.is_elsewhere(name, folder, path)}

    def is_elsewhere(self, name: str, folder: str, path: Path) -> bool:
        """Returns whether a name has other folders than its recording."""
        full = _full(as_named(name), folder)
        return "/" in full and path.parent != self.place and not _num_shared(full, as_named(path.as_posix()))

    def find(self, source: Path, name: str | None, folder: str = "", beside: Path | None = None) -> Path:
        """Returns the recording that a table names; raises `InputError` unless there is one."""
        candidates = self.candidates(name, folder, beside)
        if len(candidates) != 1:
            what = f"{len(candidates)} recordings of {self.place}" if candidates else f"no recording of {self.place}"
            wanted = "the only recording" if name is None else f"called {printable(name)}"
            raise InputError(f"{source}: {what} is {wanted}; name the folder of its recordings")
        return next(iter(candidates))


def _full(name: str, folder: str) -> str:
    return os.path.normpath(os.path.join(as_named(folder), name))


def _num_shared(one: str, two: str) -> int:
    """Returns how many of the last folders of two paths are the same."""
    pairs = zip(one.split("/")[-2::-1], two.split("/")[-2::-1])
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def as_named(name: str) -> str:
    """Returns a name as tables hold it: with the slashes of Linux and composed accents."""
    return unicodedata.normalize("NFC", storable(name).replace("\\", "/"))


def in_order(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event.onset_s, event.offset_s, event.label))


def _is_number(cell: str) -> bool:
    return as_number(cell) is not None


def _read_json(path: Path) -> tuple[object, list[int] | None]:
    """Returns what a file holds, and the lines of its values if it has a value per line."""
    if path.suffix.lower() == ".jsonl":
        return read_json_lines(path)
    try:
        return json.loads(read_text(path)), None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({getattr(error, 'msg', error)}); correct it") from None


def _from_objects(
    path: Path, rows: object, lines: list[int] | None
) -> tuple[list[str], list[list], Callable[[int], str]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{path}: holds no events; write [{{"onset_s": 0.5, "offset_s": 1.2, "label": "dog"}}, ...]')
    names = list(dict.fromkeys(name for row in rows for name in row)) or [ONSETS[0], OFFSETS[0], LABELS[0], FILES[0]]

    def row_of(index: int) -> str:
        return f"event {index + 1}" if lines is None else f"line {lines[index]}"

    return names, [[row.get(name) for name in names] for row in rows], row_of


def _from_collection(path: Path, value: dict, label_key: str | None, other_column: str | None) -> EventTable:
    try:
        found = aoef.read_collection(value, label_key)
    except ValueError as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path}: is a damaged collection of soundevent ({reason}); export it again") from None

    def row_of(index: int) -> str:
        return f"the sound event {found.uuids[index]}"

    table = _from_columns(path, found.names, found.rows, row_of, "label", "file", other_column)
    return table._replace(stretches=found.stretches)


def _read_audacity(path: Path, text: str) -> Iterator[EventRow]:
    """Yields the labels of a track: onset, offset, label; possibly a line with a backslash, low and high frequency."""
    lines = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for index, (number, cells) in enumerate(lines):
        where = f"{path}: line {number}"
        if cells[0] == "\\":
            if index and lines[index - 1][1][0] != "\\" and len(cells) >= 3:
                continue  # read with the line before it
            raise InputError(f"{where} has frequencies without a label or without a number; correct it")
        point = len(cells) == 2 and not _is_number(cells[1])  # a label at one time
        cells = [cells[0], *cells] if point else cells
        with_frequencies = index + 1 < len(lines) and lines[index + 1][1][0] == "\\"
        texts = [*cells, ""][:2] + [*(lines[index + 1][1][1:3] if with_frequencies else ()), "", ""][:2]
        numbers = [
            _numbers(path, name, [text], lambda _, number=number: f"line {number}", kind)[0]
            for text, (name, kind) in zip(texts, AUDACITY_NUMBERS)
        ]
        if None in numbers[:2]:
            raise InputError(f"{where} has no {'onset' if numbers[0] is None else 'offset'}; fill it in or remove it")
        low, high = (None if value is None or value < 0 else value for value in numbers[2:])  # -1: none
        event = _checked(where, numbers[0], numbers[1], "\t".join(cells[2:]), low, high)
        yield EventRow(where, None, event, {})


def _from_columns(
    path: Path,
    names: list[str],
    rows: list[list],
    row_of: Callable[[int], str],
    label_column: str | None,
    audio_column: str | None,
    other_column: str | None = None,
) -> EventTable:
    found, cells = {}, {}
    for row in _read_rows(path, names, rows, row_of, label_column, audio_column):
        events = found.setdefault(row.name, [])
        other = row.cells.get(other_column)
        if not is_empty(other):
            cells.setdefault(row.name, set()).add(str(other).strip())
        if row.event is not None:
            events.append(row.event)
    if not found and find_column(path, names, audio_column, FILES) is None:
        found[None] = []
    return EventTable({name: in_order(events) for name, events in found.items()}, cells, {})


def _read_rows(
    path: Path,
    names: list[str],
    rows: list[list],
    row_of: Callable[[int], str],
    label_column: str | None = None,
    audio_column: str | None = None,
) -> Iterator[EventRow]:
    twice = next((name for name in names if names.count(name) > 1 and name.strip().casefold() in PLAIN), None)
    if twice:
        raise InputError(f"{path}: {names.count(twice)} columns are called {twice}; rename all but one")
    columns = dict(zip(names, zip(*rows))) if rows else dict.fromkeys(names, ())
    is_raven = {RAVEN_BEGIN, RAVEN_END} <= set(names)
    if is_raven and "View" in columns:
        kept = main_view(path, columns["View"])
        columns = {name: [values[index] for index in kept] for name, values in columns.items()}
        all_rows, row_of = row_of, lambda index: all_rows(kept[index])
    num_rows = len(columns[names[0]])
    audio = find_column(path, names, audio_column, FILES)
    if is_raven and audio_column is None:  # that which leads to a recording, as for tables of clips
        there = [name for name in RAVEN_AUDIO if name in columns and _leads_somewhere(path, columns[name])]
        audio = next(iter(there), audio)
    label = _choose(path, names, RAVEN_LABELS if is_raven else LABELS, label_column, "set label_column")
    files = columns[audio] if audio is not None else [None] * num_rows
    if is_raven:
        onset, offset = RAVEN_BEGIN, RAVEN_END
        onsets, offsets = times_in_files(path, columns, files, row_of)
    else:
        onset, offset = (_choose(path, names, known, None, f"name one {known[0]}") for known in (ONSETS, OFFSETS))
        onsets, offsets = (_numbers(path, name, columns[name], row_of) for name in (onset, offset))
    lows, highs, scores = (
        [None] * num_rows if name is None else _numbers(path, name, columns[name], row_of, kind)
        for name, kind in (
            (find_column(path, names, None, known), kind)
            for known, kind in ((LOWS, "number of Hz"), (HIGHS, "number of Hz"), (SCORES, "number"))
        )
    )
    has_files = not all(map(is_empty, files))
    for index, file in enumerate(files):
        where = f"{path}: {row_of(index)}"
        if has_files and is_empty(file):
            raise InputError(f"{where} has no {audio}; fill it in or remove it")
        key, cells = str(file) if has_files else None, {name: values[index] for name, values in columns.items()}
        name = columns[label][index]
        if onsets[index] is None and offsets[index] is None and is_empty(name):
            yield EventRow(where, key, None, cells)
            continue
        for value, column in ((onsets[index], onset), (offsets[index], offset)):
            if value is None:
                raise InputError(f"{where} has no {column}; fill it in or remove it")
        event = _checked(where, onsets[index], offsets[index], name, lows[index], highs[index], scores[index])
        yield EventRow(where, key, event, cells)


def _choose(path: Path, names: list[str], known: tuple[str, ...], wanted: str | None, remedy: str) -> str:
    found = find_column(path, names, wanted, known)
    if found is None:
        raise InputError(f"{path}: no column is called {', '.join(known[:3])} or alike; {remedy}: {', '.join(names)}")
    return found


def _leads_somewhere(path: Path, values) -> bool:
    return bool(values) and not is_empty(values[0]) and os.path.exists(path.parent / str(values[0]))


def _checked(where: str, onset_s, offset_s, label, low_hz=None, high_hz=None, score=None) -> Event:
    if isinstance(label, (list, dict, bool, float)):
        raise InputError(f"{where} has the label {short(str(label), 80)}, not a text; write a row per label")
    event = Event(onset_s, offset_s, class_name("" if label is None else str(label)), low_hz, high_hz, score)
    problem = problem_of(event)
    if problem:
        raise InputError(f"{where} {problem}")
    return event


def problem_of(event: Event) -> str | None:
    """Returns what is wrong with an event, and the remedy; `None`: nothing."""
    onset_s, offset_s, label, low_hz, high_hz, score = event
    numbers = [value for value in (onset_s, offset_s, low_hz, high_hz, score) if value is not None]
    if not all(abs(value) < float("inf") for value in numbers):  # NaN compares as false
        return f"holds a number that is not finite ({', '.join(map(str, numbers))}); correct it"
    if onset_s < 0:
        return f"begins at {onset_s:g} s, before the recording; correct it"
    if offset_s < onset_s:
        return f"ends at {offset_s:g} s and begins at {onset_s:g} s; exchange or correct them"
    if (low_hz is not None and low_hz < 0) or (high_hz is not None and high_hz < (low_hz or 0)):
        return f"has frequencies from {low_hz} to {high_hz} Hz; exchange or correct them"
    return None if class_name(label) else "has no label; fill it in, or remove the event"


# ---- Raven's tables, also as tables of clips ----


def main_view(path: Path, views: Iterable) -> list[int]:
    """Returns the rows of one view: Raven lists each selection in its waveform and in its spectrogram."""
    views = list(views)
    first = next((view for view in views if str(view).startswith("Spectrogram")), None)
    kept = [index for index, view in enumerate(views) if first is None or view == first]
    if len(kept) < len(views):
        logger.warning(f"{path}: {len(views) - len(kept)} rows of other views than {first} are left out")
    return kept


def times_in_files(
    path: Path, table: Mapping, files: Iterable, row_of: Callable[[int], str]
) -> tuple[list[float], list[float]]:
    """
    Returns onsets and offsets of Raven's selections in seconds, each in its own file: Raven's own times count from the
    first of several.

    Args:
        table: name of a column -> its cells
        files: the recording of each selection

    Raises:
        InputError: several files without their offsets, or a selection without times.
    """
    has_offsets = RAVEN_OFFSET in table
    if not has_offsets and len(set(files)) > 1:
        raise InputError(
            f"{path}: its times count from the first of several files; export it with the column "
            f"{RAVEN_OFFSET}, or set start_column and end_column"
        )
    names = (RAVEN_OFFSET if has_offsets else RAVEN_BEGIN, RAVEN_BEGIN, RAVEN_END)
    starts, begins, ends = (_numbers(path, name, table[name], row_of) for name in names)
    if None in (*starts, *begins, *ends):
        raise InputError(f"{path}: a selection has no time; fill in {RAVEN_BEGIN}, {RAVEN_END} and {names[0]}")
    lengths = (round(end - begin, 9) for begin, end in zip(begins, ends))
    return starts, [round(start + length, 9) for start, length in zip(starts, lengths)]


# ---- Writing ----


def check_events_file(
    path: Path, event_format: str | None = None, labels: Iterable[str] = (), files: Iterable[str] = ()
):
    """
    Checks that events can be written, before the work of hours that finds them.

    Args:
        path, event_format: see `write_events`
        labels: names that events can get
        files: names of the recordings

    Raises:
        InputError: the place or the format is impossible, or the format cannot hold a name.
    """
    name, is_folder = find_format(Path(path), event_format)
    files = list(files)
    check_writable(path, is_folder)
    _check_count(Path(path), name, is_folder, len(files))
    for label in labels:
        _check_text(path, name, "label", label)
    for file in files:
        _check_text(path, name, "recording", file)


def write_events(
    path: Path,
    events: Events,
    event_format: str | None = None,
    durations_s: Mapping[str, float] | None = None,
    highest_hz: float = HIGHEST_HZ,
    columns: Mapping[str, Mapping[str, str]] | None = None,
):
    """
    Writes the events of recordings, sorted by onset, whole or not at all.

    A path without an ending, or an existing folder, gets a table per recording. Raven's tables hold everything, but no
    recordings without events; Audacity's no scores; DCASE's neither scores nor frequencies. The JSON of soundevent also
    has the length and rate of the recordings that are there.

    Args:
        path: .txt (Raven or Audacity), .tsv (DCASE), .csv, .json, .jsonl, or a folder
        events: name of the recording -> its events; the only one may be called `None`
        event_format: one of `FORMATS`; `None`: by the ending; .txt and folders: Raven
        durations_s: recording -> its duration. Begin Time in Raven's tables then counts through all of them, in the
            order of `events`, as Raven does for recordings that are opened together. `None`: from each recording's
            beginning
        highest_hz: Raven only: the top of the box of events without a highest frequency. The bottom is 0
        columns: CSV only: other columns -> recording -> what stands there in all its rows

    Raises:
        InputError: the place or the format is impossible, the format cannot hold a name, or an event is impossible.
    """
    path = Path(path)
    name, is_folder = find_format(path, event_format)
    _check_count(path, name, is_folder, len(events))
    if None in events and len(events) > 1:
        raise ValueError("a recording without name must be the only one")
    events = {file: in_order(map(_rounded, found)) for file, found in events.items()}
    for file, found in events.items():
        if file is not None:
            _check_text(path, name, "recording", file)
        for label in {event.label for event in found}:
            _check_text(path, name, "label", label)
        for event in found:
            problem = problem_of(event)
            if problem:
                raise InputError(f"{path}: {printable(file)}: an event {problem}")
    settings = {"durations_s": durations_s or {}, "highest_hz": highest_hz, "columns": columns or {}}
    if not is_folder:
        _write_lines(path, FORMATS[name].lines(events, **settings))
        return
    for file, place in event_files(path, events, event_format).items():
        place.parent.mkdir(parents=True, exist_ok=True)
        _write_lines(place, FORMATS[name].lines({file: events[file]}, **settings))


def event_files(path: Path, files: Iterable[str | None], event_format: str | None = None) -> dict[str | None, Path]:
    """Returns the file that `write_events` writes for each recording, given their names."""
    name, is_folder = find_format(Path(path), event_format)
    return _places(path, list(files), FORMATS[name]) if is_folder else dict.fromkeys(files, Path(path))


def _write_lines(path: Path, lines: Iterable[str]):
    with complete_file(path) as unfinished, open(unfinished, "wb") as file:
        file.writelines(f"{line}\n".encode(errors=TEXT_ERRORS) for line in lines)


def find_format(path: Path, wanted: str | None) -> tuple[str, bool]:
    """Returns the name of the format, and whether the path is a folder."""
    if wanted is not None and wanted not in FORMATS:
        hint = nearest(wanted, list(FORMATS), f"known are {', '.join(FORMATS)}")
        raise InputError(f"event_format: there is no {wanted}; {hint}")
    suffix = path.suffix.lower()
    if not suffix or path.is_dir():
        return wanted or "raven", True
    fitting = [name for name, kind in FORMATS.items() if kind.suffix == suffix]
    if wanted is None and not fitting:
        known = ", ".join(dict.fromkeys(kind.suffix for kind in FORMATS.values()))
        raise InputError(f"{path}: no known ending for events; name a file {known}, or set event_format")
    if wanted is not None and wanted not in fitting:
        raise InputError(f"{path}: event_format {wanted} has the ending {FORMATS[wanted].suffix}; rename the file")
    return wanted or fitting[0], False


def _check_count(path: Path, name: str, is_folder: bool, num_recordings: int):
    if name == "audacity" and not is_folder and num_recordings > 1:
        raise InputError(
            f"{path}: a label track of Audacity describes one recording, and there are {num_recordings}; name a folder "
            f"(such as {path.with_suffix('')}), or another format"
        )


def _check_text(path: Path, name: str, kind: str, text: str):
    """Raises `InputError` for a text that would not come back, or that other readers would take for several cells."""
    bad = "nothing but blanks" if not class_name(text) else None
    if not bad and name not in HOLD_ALL:
        # Names of files that are not UTF-8 are shown as \udcXX, as in all tables; labels would be others.
        found = UNPRINTABLE.search(SURROGATES.sub("", text) if kind == "recording" else text)
        bad = f"the character {printable(found[0])}" if found else None
        if not bad and name != "csv" and class_name(text).startswith('"'):
            bad = "a quote at its beginning"
    if bad:
        remedy = "rename it" if name in HOLD_ALL else "rename it, or write .json"
        raise InputError(f"{path}: the {kind} '{printable(short(text, 80))}' has {bad}; {remedy}")


def _places(folder: Path, files: list[str | None], kind) -> dict[str | None, Path]:
    """Returns the table of each recording in a folder: their own folders below the common one, and their stems."""
    paths = {file: os.path.abspath("events" if file is None else file) for file in files}
    common = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else ""
    names = {file: os.path.relpath(path, common) for file, path in paths.items()}
    stems = {file: os.path.splitext(name)[0] for file, name in names.items()}
    are_different = len({stem.casefold() for stem in stems.values()}) == len(stems)  # not so for x.wav and x.flac
    return {file: Path(folder, (stems if are_different else names)[file] + kind.own_suffix) for file in files}


def _rounded(event: Event) -> Event:
    numbers = (event.onset_s, event.offset_s, event.low_hz, event.high_hz, event.score)
    onset_s, offset_s, *others = (None if value is None else round(float(value), DECIMALS) + 0.0 for value in numbers)
    return Event(onset_s, offset_s, class_name(event.label), *others)


def _decimal(value: float | None) -> str:
    """Returns a number with at least one decimal: some readers (crowsetta) refuse columns of whole numbers."""
    if value is None:
        return ""
    whole, decimals = f"{value:.{DECIMALS}f}".split(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _raven_lines(events: Events, durations_s: Mapping[str, float], highest_hz: float, **_) -> Iterator[str]:
    are_named = None not in events
    names = ["Selection", "View", "Channel", RAVEN_BEGIN, RAVEN_END, RAVEN_LOW, RAVEN_HIGH]
    yield "\t".join([*names, *([*RAVEN_AUDIO, RAVEN_OFFSET] if are_named else []), "Score", RAVEN_ANNOTATION])
    number, base_s = 0, 0.0
    for file, found in events.items():
        for event in found:
            number += 1
            # Raven and its readers want a box.
            low_hz = event.low_hz or 0.0
            high_hz = max(low_hz, highest_hz) if event.high_hz is None else event.high_hz
            cells = [str(number), "Spectrogram 1", "1"]
            cells += map(_decimal, (base_s + event.onset_s, base_s + event.offset_s, low_hz, high_hz))
            if are_named:
                cells += [file, re.split(r"[/\\]", file)[-1] or file, _decimal(event.onset_s)]
            yield "\t".join([*cells, _decimal(event.score), event.label])
        base_s = round(base_s + (durations_s[file] if durations_s else 0.0), DECIMALS)


def _audacity_lines(events: Events, **_) -> Iterator[str]:
    for found in events.values():
        for event in found:
            yield "\t".join([_decimal(event.onset_s), _decimal(event.offset_s), event.label])
            if event.low_hz is not None or event.high_hz is not None:
                low, high = ("-1" if value is None else _decimal(value) for value in (event.low_hz, event.high_hz))
                yield f"\\\t{low}\t{high}"


def _dcase_lines(events: Events, **_) -> Iterator[str]:
    """Yields DESED's table: recordings without events have a row with their name."""
    start = [] if None in events else ["filename"]
    yield "\t".join([*start, "onset", "offset", "event_label"])
    for file, found in events.items():
        name = [] if file is None else [file]
        for event in found:
            yield "\t".join([*name, _decimal(event.onset_s), _decimal(event.offset_s), event.label])
        if name and not found:
            yield "\t".join([*name, "", "", ""])


def _csv_lines(events: Events, columns: Mapping[str, Mapping[str, str]] | None = None, **_) -> Iterator[str]:
    columns = columns or {}
    yield ",".join([*([] if None in events else ["file"]), *Event._fields, *map(_quoted, columns)])
    for file, found in events.items():
        others = [_quoted(cells.get(file, "")) for cells in columns.values()]
        name = [] if file is None else [_quoted(file)]
        for event in found:
            times, rest = map(_decimal, event[:2]), map(_decimal, event[3:])
            yield ",".join([*name, *times, _quoted(event.label), *rest, *others])
        if name and not found:
            yield ",".join([*name, *[""] * len(Event._fields), *others])


def _quoted(text: str) -> str:
    """Returns a cell of CSV in quotes, so that blanks at its beginning stay."""
    text = text.replace('"', '""')
    return f'"{text}"'


def _json_objects(events: Events) -> Iterator[str]:
    for file, found in events.items():
        for values in found or [[None] * len(Event._fields)]:
            row = {"file": file} | dict(zip(Event._fields, values))
            yield json.dumps(row, ensure_ascii=False)


def _json_lines(events: Events, **_) -> Iterator[str]:
    return _json_objects(events)


def _json_list(events: Events, **_) -> Iterator[str]:
    before = "["
    for row in _json_objects(events):
        yield before
        before = f"  {row},"
    yield before.removesuffix(",")
    yield "]"


def _collection_lines(events: Events, durations_s: Mapping[str, float], **_) -> Iterator[str]:
    """Yields soundevent's JSON: it has the length, rate and channels of each recording."""
    unknown = []

    def facts_of(file: str | None) -> tuple[float, int, int]:
        try:
            if file is not None and os.path.isfile(file):
                return audio_seconds(file), *audio_format(file)
        except (InputError, ValueError):  # ValueError: a name with NUL
            pass
        unknown.append(file)
        last_s = max((event.offset_s for event in events[file]), default=0.0)
        return durations_s.get(file, last_s), 0, 0

    yield from aoef.write_collection(events, facts_of)
    if unknown:
        logger.warning(
            f"{len(unknown)} recordings are not there, such as {printable(unknown[0])}: their rate and number of "
            "channels are 0 in the JSON of soundevent, and their length is that of their events"
        )


@dataclass(frozen=True)
class Format:
    """
    Describes a format of events.

    Args:
        suffix: ending of its files
        lines: function of the events -> lines of the file
        own_suffix: replaces the ending of a recording where there is a table for each
    """

    suffix: str
    lines: Callable[..., Iterator[str]]
    own_suffix: str


FORMATS = {
    "raven": Format(".txt", _raven_lines, ".Table.1.selections.txt"),  # as Raven names it
    "audacity": Format(".txt", _audacity_lines, ".txt"),
    "dcase": Format(".tsv", _dcase_lines, ".tsv"),
    "csv": Format(".csv", _csv_lines, ".csv"),
    "json": Format(".json", _json_list, ".json"),
    "jsonl": Format(".jsonl", _json_lines, ".jsonl"),
    "soundevent": Format(".json", _collection_lines, ".json"),
}
