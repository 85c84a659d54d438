"""
Reads annotated recordings: the events of each, the stretches that are unsure, and which recordings have no table.

Each rule that changes what the tables say is reported in one line.
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import yaml
from transformers.utils import logging

from ..errors import InputError, nearest, one_line, printable
from .arguments import AnnotationArguments
from .audio import audio_seconds
from .events import UNSURE, Event, Recordings, in_order, list_tables, may_hold_events, read_event_table, table_name
from .labels import class_name
from .text_tables import is_empty, read_rows, read_text

logger = logging.get_logger(__name__)

MOST_WORKERS = 8  # threads that read headers
WHOLE = [(0.0, float("inf"))]
ROUNDING_S = 0.01  # an event that ends this much after its recording ends with it: tables hold rounded times
REST = "*"  # in a label map: every label that is neither in the map nor known
RULES = {  # kind -> what happened to the events or recordings
    "begins_after_end": "events begin after the end of their recordings and are left out",
    "cut_at_end": "events end after their recordings and are cut there",
    "without_duration": "events have no duration",
    "left_out": "events have labels that label_map leaves out",
    "excluded": "events have excluded labels, and their time is unsure",
    "not_annotated": "stretches lie outside the annotated clips of their recordings, and are unsure",
    "joined": "events overlap or touch one of the same label and are joined with it",
    "unlabelled": "recordings have no annotations and are unlabelled",
    "empty": "recordings have no annotations and count as empty",
    "without_site": "annotated recordings have no site",
    "no_table": "files are no tables of events",
    "missing": "recordings of the tables are not there and are left out",
    "unreadable": "recordings cannot be read and are left out",
}
MAP_COLUMNS = (("from", "to"), ("mid", "display_name"))  # of tables of label maps
NOT_ANNOTATED = "not annotated"  # label of unsure stretches outside annotated clips


@dataclass(frozen=True)
class AnnotatedRecording:
    """
    Holds the annotations of a recording.

    Args:
        path: the recording
        duration_s: its length in seconds
        events: its events by onset, none of which ends after the recording; `None`: unlabelled
        site: where it was recorded; `None`: unknown
        unsure: stretches that hold neither events nor their absence, by onset: events with excluded labels, and what
            lies outside the annotated clips of a collection of soundevent
    """

    path: Path
    duration_s: float
    events: tuple[Event, ...] | None
    site: str | None = None
    unsure: tuple[Event, ...] = ()


Acts = Mapping[str, list[dict]]  # kind of `RULES` -> where the rule acted


def warn_of_acts(source: Path, acts: Acts):
    """Logs a line for each rule that acted, with how often and where first; only in the first of several processes."""
    for kind, items in acts.items():
        if items and os.environ.get("RANK", "0") == "0":
            first = items[0]
            place = f"{first['label']} at {first['onset_s']:g} s of " if "label" in first else ""
            logger.warning(f"{printable(source)}: {len(items)} {RULES[kind]}: {printable(place + first['recording'])}")


def read_annotations(
    source: Path,
    recordings: Path | Recordings | None = None,
    *,
    label_column: str | None = None,
    audio_column: str | None = None,
    labels: Collection[str] | None = None,
    label_map: Mapping[str, str | None] | None = None,
    exclude: Collection[str] = (),
    unannotated: str = "unlabelled",
    overlaps: str = "join",
    point_s: float = 0.0,
    site: str | None = None,
    on_bad_audio: str = "error",
    report: Callable[[Path, Acts], None] = warn_of_acts,
    seen: set[str] | None = None,
) -> list[AnnotatedRecording]:
    """
    Reads the annotations of recordings from a table, or from all tables of a folder.

    A table names its recordings, or has the name of its only one. A recording in several tables has the events of all.

    Args:
        source: a table of events, or a folder of tables
        recordings: folder of the recordings, or the only one, or what is listed there; `None`: the folder of the table
        label_column, audio_column: columns of the labels and of the recordings; `None`: guessed
        labels: the labels that there may be; `None`: any
        label_map: label of the tables -> label, or `None` for what is no event. `REST` stands for every label that is
            neither in the map nor in `labels`. Other labels stay as they are
        exclude: labels of the tables, or of the map, whose events are `unsure`
        unannotated: recordings that no table names are "unlabelled", or "empty" (without events)
        overlaps: "join" makes one event of those of one label that overlap or touch: frames cannot tell them apart;
            "keep" keeps them
        point_s: length in seconds that events without duration get, around their time
        site: a column of the tables, or a regular expression that is searched in the path of a recording; its first
            group, or all that it finds, is the site
        on_bad_audio: "error" stops at a recording that is missing or cannot be read, "skip" leaves it out, and
            "skip_unannotated" leaves out those that cannot be read and that no table names
        report: takes the source, and where each rule acted
        seen: takes the labels of the events, those of the map included; `None`: labels of `label_map` and `exclude`
            that no event has are reported in a line each

    Returns:
        the recordings, sorted by path

    Raises:
        InputError: a table or a recording is missing or cannot be read, a label is not among `labels`, or a recording
            has several sites.
    """
    source = Path(source)
    places = recordings if isinstance(recordings, Recordings) else Recordings(recordings or _folder_of(source))
    acts: dict[str, list[dict]] = {kind: [] for kind in RULES}
    labels_of_events: set[str] = set() if seen is None else seen
    rename = _renamer(source, labels, label_map or {}, {class_name(name) for name in exclude}, labels_of_events)
    tables, stretches, cells = _read_tables(source, places, label_column, audio_column, site, on_bad_audio, acts)
    sites = _site_function(source, site, cells, places)
    paths = sorted({*places.paths, *tables}, key=lambda path: path.parts)
    with ThreadPool(MOST_WORKERS) as pool:
        durations_s = pool.map(_duration_s, paths)
    found = []
    for path, duration_s in zip(paths, durations_s):
        if isinstance(duration_s, InputError):
            if on_bad_audio == "error" or (on_bad_audio == "skip_unannotated" and path in {*tables, *stretches}):
                raise duration_s
            reason = str(duration_s).removeprefix(f"{path}: ")
            acts["unreadable"].append({"recording": str(path), "reason": reason})
            continue
        if path not in tables:
            is_empty = unannotated == "empty" and path not in stretches
            acts["empty" if is_empty else "unlabelled"].append({"recording": str(path)})
            found.append(AnnotatedRecording(path, duration_s, () if is_empty else None, sites(path)))
            continue
        sure, unsure = [], _gaps(path, duration_s, stretches[path], acts) if path in stretches else []
        for event in _within(path, duration_s, tables[path], point_s, acts):
            label, is_unsure = rename(path, event)
            if is_unsure or label is None:
                (unsure if is_unsure else []).append(event)
                acts["excluded" if is_unsure else "left_out"].append(_act(path, event))
            else:
                sure.append(event._replace(label=label))
        sure = _joined(path, sure, acts) if overlaps == "join" else in_order(sure)
        found.append(AnnotatedRecording(path, duration_s, tuple(sure), sites(path), tuple(in_order(unsure))))
    if site is not None:
        nowhere = [one for one in found if one.site is None and one.events is not None]
        acts["without_site"] += [{"recording": str(one.path)} for one in nowhere]
    report(source, acts)
    if seen is None:
        _warn_of_unused(label_map, exclude, labels_of_events)
    return found


def _warn_of_unused(label_map: Mapping | None, exclude: Collection[str], seen: set[str]):
    """Warns of labels that no event has: misspelt ones would do nothing, without a word."""
    for option, names in (("label_map", label_map or {}), ("exclude_labels", exclude)):
        unused = [name for name in map(class_name, names) if name not in {*seen, REST, UNSURE}]  # UNSURE: a default
        if unused and os.environ.get("RANK", "0") == "0":
            hint = nearest(unused[0], seen, "are they misspelt?")
            logger.warning(f"{option}: {len(unused)} labels are those of no event: {printable(unused[0])}; {hint}")


def load_annotations(
    arguments: AnnotationArguments, on_bad_audio: str = "error", report: Callable[[Path, Acts], None] = warn_of_acts
) -> dict[str, list[AnnotatedRecording]]:
    """
    Reads the annotated splits that a recipe names, as `train`, `validation` and `test`.

    Recordings without a table belong to the first split in whose folder they are, unless another one annotates them.

    Raises:
        InputError: no annotations are named, `site` gives no annotated recording a site, or see `read_annotations`.
    """
    sources = {split: getattr(arguments, f"{split}_annotations") for split in ("train", "validation", "test")}
    sources = {split: Path(source) for split, source in sources.items() if source}
    if not sources:
        raise InputError("data: set train_annotations")
    folders = {split: Path(arguments.recordings or _folder_of(source)) for split, source in sources.items()}
    places = {folder: Recordings(folder) for folder in dict.fromkeys(folders.values())}  # listed once
    label_map = read_label_map(arguments.label_map) if arguments.label_map else None
    exclude, seen = arguments.exclude_labels or (), set()
    splits, acts = {}, {}
    for split, source in sources.items():
        splits[split] = read_annotations(
            source,
            places[folders[split]],
            label_column=arguments.label_column,
            audio_column=arguments.audio_column,
            label_map=label_map,
            exclude=exclude,
            unannotated=arguments.unannotated,
            overlaps=arguments.overlaps,
            point_s=arguments.point_s,
            site=arguments.site,
            on_bad_audio=on_bad_audio,
            report=lambda _, own, split=split: acts.update({split: own}),
            seen=seen,
        )
    _check_sites(arguments.site, splits)
    _warn_of_unused(label_map, exclude, seen)
    kinds = ("unlabelled", "empty")
    without_table = {split: {item["recording"] for kind in kinds for item in own[kind]} for split, own in acts.items()}
    taken = {
        os.path.realpath(recording.path)
        for split, own in splits.items()
        for recording in own
        if str(recording.path) not in without_table[split]
    }
    unreadable: set[str] = set()
    for split, source in sources.items():
        others = {path for path in without_table[split] if os.path.realpath(path) in taken}
        taken |= {os.path.realpath(path) for path in without_table[split]}
        splits[split] = [recording for recording in splits[split] if str(recording.path) not in others]
        own = acts[split]
        for kind in (*kinds, "without_site"):
            own[kind] = [item for item in own[kind] if item["recording"] not in others]
        own["unreadable"] = [item for item in own["unreadable"] if item["recording"] not in unreadable]
        unreadable |= {item["recording"] for item in own["unreadable"]}
        report(source, own)
    return splits


def _check_sites(site: str | None, splits: Mapping[str, list[AnnotatedRecording]]):
    """Raises `InputError` if no annotated recording has a site: a misspelt one would do nothing, without a word."""
    annotated = [one for own in splits.values() for one in own if one.events is not None]
    if site is not None and annotated and all(one.site is None for one in annotated):
        raise InputError(
            f"site: no table has a column {site!r} with sites, nor does it match the path of an annotated recording, "
            f"such as {printable(annotated[0].path)}; correct it"
        )


def _folder_of(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def read_label_map(text: str) -> dict[str, str | None]:
    """
    Reads a label map: a mapping in JSON or YAML, or the name of a file that holds one, or of a table with two columns,
    or with columns that are called `from` and `to`, or `mid` and `display_name`, as AudioSet's.

    Keys and values are texts as they stand there, so that 010 is no number; an empty value is `None`.

    Raises:
        InputError: no such file, another form, or a label with two values.
    """
    path, is_mapping = Path(text), text.lstrip().startswith("{")
    source = "label_map" if is_mapping else str(path)
    if is_mapping:
        pairs = _as_pairs(source, text)
    elif path.suffix.lower() in (".csv", ".tsv"):
        names, rows, _ = read_rows(path, "," if path.suffix.lower() == ".csv" else "\t", itertools.chain(*MAP_COLUMNS))
        found = next((own for own in MAP_COLUMNS if set(own) <= set(names)), None)
        if found is None and len(names) != 2:
            raise InputError(f"{path}: has no columns from and to; name them so: {', '.join(names)}")
        old, new = map(names.index, found or names)
        pairs = [(row[old], row[new]) for row in (rows if found else [names, *rows])]
    else:
        pairs = _as_pairs(source, read_text(path))
    labels = {}
    for old, new in pairs:
        wrong = [part for part, kinds in ((old, str), (new, (str, type(None)))) if not isinstance(part, kinds)]
        if wrong:
            raise InputError(f"{source}: {wrong[0]!r} is no label; write it in quotes")
        old, new = class_name(old), None if is_empty(new) else class_name(new)
        if labels.setdefault(old, new) != new:
            raise InputError(f"{source}: {old!r} becomes {labels[old]!r} and {new!r}; keep one of the two")
    return labels


class _PairLoader(yaml.SafeLoader):
    """Reads mappings as pairs, of which none is lost, and scalars as texts, but `null`, `true` and `false`."""


_PairLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in own if tag.rsplit(":", 1)[1] in ("null", "bool")]
    for first, own in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PairLoader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: tuple(loader.construct_pairs(node, deep=True))
)


def _as_pairs(source: str, text: str) -> tuple[tuple, ...]:
    try:
        pairs = yaml.load(text, _PairLoader)  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not readable as YAML or JSON ({one_line(error)})") from None
    if not isinstance(pairs, tuple):
        raise InputError(f"{source}: expected lines label: label, got {type(pairs).__name__}")
    return pairs


def _duration_s(path: Path) -> float | InputError:
    try:
        return audio_seconds(str(path))
    except InputError as error:
        return error


def _act(path: Path, event: Event) -> dict:
    return {"recording": str(path), "label": event.label, "onset_s": event.onset_s, "offset_s": event.offset_s}


def _read_tables(
    source: Path,
    places: Recordings,
    label_column: str | None,
    audio_column: str | None,
    site: str | None,
    on_bad_audio: str,
    acts: Acts,
) -> tuple[dict[Path, list[Event]], dict[Path, list], dict[Path, set[str]]]:
    """
    Returns recording -> its events of all tables; recording -> its annotated stretches, where they are not all of it;
    and recording -> its cells in the column `site`. Recordings without annotated stretch are in the second alone.
    """
    found, parts, num_tables = {}, {}, 0
    cells, names_of = defaultdict(set), defaultdict(set)
    for path in list_tables(source):
        folder = path.parent.relative_to(source).as_posix() if source.is_dir() else ""
        own_name = table_name(Path(path.name))
        has_own = bool(places.candidates(own_name, folder))
        try:
            table = read_event_table(path, label_column, audio_column, site)
        except InputError:
            if not source.is_dir() or has_own or may_hold_events(path):
                raise
            acts["no_table"].append({"recording": str(path)})
            continue
        num_tables += 1
        names = dict.fromkeys([*table.events, *table.stretches])
        for name in names or ([None] if has_own else ()):  # Raven's table without selections has its header alone
            # A table without names describes the recording with its own name, or else the only one.
            wanted = own_name if name is None and (has_own or len(places.paths) > 1) else name
            if on_bad_audio == "skip" and not places.candidates(wanted, folder, path.parent):
                acts["missing"].append({"recording": wanted})
                continue
            recording = places.find(path, wanted, folder, path.parent)
            if wanted is not None:
                names_of[recording].add((wanted, places.is_elsewhere(wanted, folder, recording)))
            own_parts = table.stretches.get(name, WHOLE)
            if own_parts:
                found.setdefault(recording, []).extend(table.events.get(name, ()))
            parts[recording] = [*parts.get(recording, ()), *own_parts]
            cells[recording] |= table.cells.get(name, set())
    if not num_tables:
        raise InputError(f"{source}: holds no tables of events; name another folder")
    for recording, own in names_of.items():
        if len(own) > 1 and any(is_elsewhere for _, is_elsewhere in own):
            names = " and ".join(printable(name) for name, _ in sorted(own)[:2])
            raise InputError(f"{source}: {names} would be one recording, {printable(recording)}; write one name")
    stretches = {recording: own for recording, own in parts.items() if WHOLE[0] not in own}
    return found, stretches, cells


def read_cells(
    source: Path, places: Recordings, column: str, label_column: str | None = None, audio_column: str | None = None
) -> dict[Path, str] | None:
    """Returns recording -> its cell in another column of the tables; `None` if a recording has several."""
    acts: dict[str, list[dict]] = {kind: [] for kind in RULES}
    *_, cells = _read_tables(Path(source), places, label_column, audio_column, column, "skip", acts)
    if any(len(own) > 1 for own in cells.values()):
        return None
    return {recording: next(iter(own)) for recording, own in cells.items() if own}


def _site_function(source: Path, site: str | None, cells: Mapping, places: Recordings) -> Callable[[Path], str | None]:
    """Returns a function that gives the site of a recording; raises `InputError` if one has several."""
    several = next((recording for recording in cells if len(cells[recording]) > 1), None)
    if several is not None:
        names = " and ".join(map(printable, sorted(cells[several])[:2]))
        raise InputError(f"{source}: {printable(several)} has several values in {site}, {names}; correct them")
    if site is None or any(cells.values()):
        return lambda path: next(iter(cells.get(path, ())), None)
    try:
        pattern = re.compile(site)
    except re.error as error:
        raise InputError(f"site: no table has a column {site!r}, nor is it a regular expression ({error})") from None

    def site_of(path: Path) -> str | None:
        match = pattern.search(os.path.relpath(path, places.place) if places.place.is_dir() else path.name)
        return (match[1] if pattern.groups else match[0]) or None if match else None

    return site_of


def _gaps(path: Path, duration_s: float, stretches: list[tuple[float, float]], acts: Acts) -> list[Event]:
    """Returns what lies outside the annotated stretches."""
    gaps = [Event(start_s, end_s, NOT_ANNOTATED) for start_s, end_s in outside(duration_s, stretches)]
    acts["not_annotated"] += [_act(path, gap) for gap in gaps]
    return gaps


def outside(duration_s: float, stretches: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the stretches of a recording that lie in none of the given ones, in seconds; very short ones are none."""
    found, end_s = [], 0.0
    for start_s, stop_s in [*sorted(stretches), (duration_s, duration_s)]:
        start_s = min(start_s, duration_s)
        if start_s > end_s + ROUNDING_S:
            found.append((end_s, start_s))
        end_s = max(end_s, stop_s)
    return found


def mapped(label: str, names: Mapping[str, str | None], known: Collection[str]) -> str | None:
    """Returns what a label map makes of a label; `REST` is about none of the `known` ones."""
    return names[label] if label in names else label if label in known else names.get(REST, label)


def _renamer(source: Path, labels, label_map: Mapping, exclude: set[str], seen: set[str]) -> Callable:
    """
    Returns a function of recording and event: its label, `None` if it is left out, and whether it is unsure. It adds
    the labels of the event, before and after the map, to `seen`.
    """
    known = None if labels is None else {class_name(name) for name in labels}
    names = {class_name(old): None if is_empty(new) else class_name(new) for old, new in label_map.items()}

    def rename(path: Path, event: Event) -> tuple[str | None, bool]:
        label = mapped(event.label, names, known or ())
        seen.update({event.label, label} - {None})
        if {event.label, label} & exclude:
            return label, True
        if label is not None and known is not None and label not in known:
            hint = nearest(label, known, f"known are {', '.join(sorted(known)[:20])}")
            raise InputError(
                f"{source}: {printable(path)} has an event {printable(label)} at {event.onset_s:g} s, which is not in "
                f"the label set; set label_map or exclude_labels; {hint}"
            )
        return label, False

    return rename


def _within(path: Path, duration_s: float, events: list[Event], point_s: float, acts: Acts):
    """Yields the events as far as they lie in the recording; those without duration get their length."""
    for event in events:
        if event.onset_s >= duration_s + (ROUNDING_S if event.offset_s == event.onset_s else 0):
            acts["begins_after_end"].append(_act(path, event))
            continue
        if event.offset_s > duration_s + ROUNDING_S:
            acts["cut_at_end"].append(_act(path, event))
        onset_s, offset_s = min(event.onset_s, duration_s), min(event.offset_s, duration_s)
        if event.offset_s == event.onset_s:
            acts["without_duration"].append(_act(path, event))
            onset_s, offset_s = max(onset_s - point_s / 2, 0.0), min(onset_s + point_s / 2, duration_s)
        yield event._replace(onset_s=onset_s, offset_s=offset_s)


def _joined(path: Path, events: list[Event], acts: Acts) -> list[Event]:
    """Joins events of one label that overlap or touch: their times and frequencies together, and the highest score."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in in_order(events):
        own = found[event.label]
        if not own or event.onset_s > own[-1].offset_s:
            own.append(event)
            continue
        acts["joined"].append(_act(path, event))
        last = own[-1]
        own[-1] = Event(
            last.onset_s,
            max(last.offset_s, event.offset_s),
            event.label,
            None if None in (last.low_hz, event.low_hz) else min(last.low_hz, event.low_hz),
            None if None in (last.high_hz, event.high_hz) else max(last.high_hz, event.high_hz),
            max((score for score in (last.score, event.score) if score is not None), default=None),
        )
    return in_order(event for own in found.values() for event in own)
