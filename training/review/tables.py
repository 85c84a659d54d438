"""
Writes the table of candidates as CSV, as Raven's selection tables or as Audacity's label tracks, and reads the answers.

A candidate has a key that says what it was made from, so that it is found again in annotations whose order has changed,
and is refused by annotations that no longer hold it.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile

from ..data.annotations import AnnotatedRecording
from ..data.audio import decode_audio
from ..data.events import DECIMALS, FORMATS, Event, Recordings, event_files, list_tables, read_event_rows, table_name
from ..data.labels import class_name
from ..errors import InputError, printable
from ..files import TEXT_ERRORS, complete_file, csv_row
from .candidates import Candidate

COLUMNS = ("review", "reason", "worth", "annotated", "evidence", "clip", "candidate")  # beside those of an event
SEPARATORS = {"csv": ",", "raven": "\t", "audacity": "\t"}
NEW = "new"  # key of what no candidate shows
KEY = re.compile(rf"[an][0-9a-f]{{14}}|{NEW}")
SHORTEST_CLIP_S, LONGEST_CLIP_S = 0.05, 60.0  # that can be listened to


def key_of(event: Event, annotated: Event | None = None) -> str:
    """Returns what a candidate is found again by: that it is annotated, its label, and what it was made from."""
    own = annotated or event
    times = f"{own.label}|{own.onset_s:.{DECIMALS}f}|{own.offset_s:.{DECIMALS}f}"
    return f"{'n' if annotated is None else 'a'}{_digest(event.label)[:4]}{_digest(times)[:10]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors=TEXT_ERRORS)).hexdigest()


# ---- Writing ----


def write_candidates(
    path: Path,
    candidates: Sequence[Candidate],
    event_format: str,
    durations_s: Mapping[str, float],
    highest_hz: float,
):
    """
    Writes candidates in their order, whole or not at all. A folder gets a table for each recording that has some; the
    tables of others are removed from it.

    Args:
        event_format: one of `SEPARATORS`
        durations_s: recording -> its duration; Raven's times count through these recordings, in their order
        highest_hz: see `write_events`
    """
    is_folder = not path.suffix or path.is_dir()
    places = event_files(path, durations_s, event_format)
    tables = {} if is_folder else {path: []}
    for one in candidates:
        tables.setdefault(places[one.recording], []).append(one)
    for place in {*places.values()} - {*tables}:  # of an earlier run, which would be merged with these
        place.unlink(missing_ok=True)
    for place, own in tables.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(place) as unfinished, open(unfinished, "wb") as file:
            for line in _lines(own, event_format, {} if is_folder else durations_s, highest_hz):
                file.write(f"{line}\n".encode(errors=TEXT_ERRORS))


def _lines(
    candidates: list[Candidate], event_format: str, durations_s: Mapping[str, float], highest_hz: float
) -> Iterator[str]:
    """Yields the lines of a table. durations_s: empty: the table is that of one recording, and does not name it"""
    kind, separator, is_raven = FORMATS[event_format], SEPARATORS[event_format], event_format == "raven"
    # Where each recording begins among all.
    bases_s = dict(zip(durations_s, itertools.accumulate(durations_s.values(), initial=0.0)))

    def lines_of(name: str, event: Event) -> list[str]:
        if event_format == "audacity" or not durations_s:
            return list(kind.lines({None: [event]}, durations_s={}, highest_hz=highest_hz))
        before, lengths = ({"": []}, {"": bases_s[name], name: 0.0}) if is_raven else ({}, {})
        return list(kind.lines(before | {name: [event]}, durations_s=lengths, highest_hz=highest_hz))

    if event_format == "audacity":
        for one in candidates:
            text = f"#{key_of(one.event, one.annotated)} {_title(one)}: {one.evidence}"
            yield from lines_of(one.recording, one.event._replace(label=text))
        return
    names = [name.capitalize() if is_raven else name for name in COLUMNS]
    header = next(kind.lines({"": []} if durations_s else {None: []}, durations_s={}, highest_hz=highest_hz))
    yield separator.join([header, *names])
    for number, one in enumerate(candidates, start=1):
        _, line = lines_of(one.recording, one.event)
        line = f"{number}\t{line.partition(separator)[2]}" if is_raven else line  # Raven counts its selections
        annotated = "" if one.annotated is None else one.annotated.label
        cells = ["", one.reason, f"{one.worth:g}", annotated, one.evidence, one.clip, key_of(one.event, one.annotated)]
        yield separator.join([line, csv_row(cells) if event_format == "csv" else separator.join(cells)])


def _title(candidate: Candidate) -> str:
    annotated = candidate.annotated
    was = "" if annotated is None or annotated.label == candidate.event.label else f", annotated {annotated.label}"
    return f"{printable(candidate.event.label)}?{printable(was)}, {candidate.reason}, worth {candidate.worth:g}"


def write_clip(path: Path, recording: AnnotatedRecording, event: Event, margin_s: float):
    """
    Cuts an event with a margin out of its recording, with its own rate and channels: `SHORTEST_CLIP_S` (an event may
    have no duration) to `LONGEST_CLIP_S`, as far as the recording has them.

    Raises:
        InputError: the recording cannot be read.
    """
    margin_s = max(margin_s, (SHORTEST_CLIP_S - (event.offset_s - event.onset_s)) / 2)
    start_s = max(event.onset_s - margin_s, 0.0)
    end_s = min(event.offset_s + margin_s, recording.duration_s, start_s + LONGEST_CLIP_S)
    samples, rate = decode_audio({"path": str(recording.path), "start": start_s, "end": end_s})
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as unfinished:
        soundfile.write(unfinished, samples, rate, subtype="PCM_16")


# ---- Reading ----


class Answer(NamedTuple):
    """
    Holds what somebody wrote about a candidate.

    Args:
        where: table and row, for messages
        recording: the recording
        key: of the candidate, see `key_of`, or `NEW`
        answer: empty: not looked at
        label: the label in question as the table shows it; `None`: it shows none
    """

    where: str
    recording: Path
    key: str
    answer: str
    label: str | None
    onset_s: float
    offset_s: float


def read_answers(path: Path, places: Recordings) -> list[Answer]:
    """
    Reads a table of candidates, or all tables of a folder.

    Raises:
        InputError: unreadable, no table of candidates, a row whose candidate is not named, or no such recording.
    """
    found = []
    for table in list_tables(path):
        if table.suffix.lower() not in {FORMATS[name].suffix for name in SEPARATORS}:
            raise InputError(f"{table}: is no table of candidates (.csv or .txt); name what training.review wrote")
        folder = table.parent.relative_to(path).as_posix() if path.is_dir() else ""
        own_name = table_name(Path(table.name))
        has_own = bool(places.candidates(own_name, folder))
        for row in read_event_rows(table):
            if row.event is None:
                continue
            name = own_name if row.name is None and (has_own or len(places.paths) > 1) else row.name
            recording = places.find(table, name, folder, table.parent)
            found.append(_answer(table, row, recording))
    return found


def _answer(table: Path, row, recording: Path) -> Answer:
    label, times = row.event.label, row.event[:2]
    if not row.cells:  # a label track: the answer, #key and what the candidate says
        match = re.search(rf"#({KEY.pattern})\b", label)
        if match is None:
            raise InputError(
                f"{row.where} names no candidate, such as #a0123456789abcd; leave that behind your answer, and write "
                f"#{NEW} behind the label of an event that no candidate shows"
            )
        shown = label[match.end() :]
        ends = [place for place, character in enumerate(shown) if character == "?"]
        own = (shown[1:end] for end in ends if _digest(shown[1:end])[:4] == match[1][1:5])
        return Answer(row.where, recording, match[1], class_name(label[: match.start()]), next(own, None), *times)
    cells = {name.strip().casefold(): cell for name, cell in row.cells.items()}
    if not {"candidate", "review"} <= set(cells):
        raise InputError(f"{table}: has no columns candidate and review; name a table that training.review wrote")
    key, answer = (class_name(str(cells[name] or "")) for name in ("candidate", "review"))
    if not KEY.fullmatch(key):
        raise InputError(
            f"{row.where} has {printable(key)!r} as candidate; leave that column as it was, and write {NEW} into it "
            "for an event that no candidate shows"
        )
    return Answer(row.where, recording, key, answer, label, *times)
