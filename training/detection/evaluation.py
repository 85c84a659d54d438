"""
Runs the task `event_evaluation`: scores a table of events, of this project or of any other tool, against annotations.

Whatever is not scored is reported in one line: recordings and labels that only one side has, and what a label map or a
lowest score leaves out.
"""

import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from transformers.utils import logging

from model_cards.card import with_interval

from ..base.detection_scores import event_metrics
from ..base.event_detection import without_unsure
from ..base.outputs import check_free, describe_recipe, dispensable, new_staging, publish, write_results
from ..base.reproduction import versions
from ..console import print_table
from ..data.annotations import NOT_ANNOTATED, REST, RULES, mapped, outside, read_label_map
from ..data.audio import audio_seconds
from ..data.events import BACKGROUND, UNSURE, Event, as_named, in_order, read_event_tables, read_events
from ..data.labels import class_name
from ..data.listing import AUDIO_EXTENSIONS, OTHER_AUDIO_EXTENSIONS, find_audio_files
from ..errors import InputError, nearest, printable, short
from ..files import storable
from .evaluation_arguments import EventEvaluationArguments
from .html_report import Findings, draw_figures, write_report
from .recordings import Stretch

logger = logging.get_logger(__name__)

NAMED = 3  # names in a message
PRINTED = 30  # rows of a printed table
ENDINGS = AUDIO_EXTENSIONS | OTHER_AUDIO_EXTENSIONS
KINDS = ("event", "segment", "intersection")
RATES = ("precision_micro", "recall_micro", "f1_micro", "f1_macro")

Events = dict[str | None, list[Event]]


def run(arguments: EventEvaluationArguments):
    """
    Scores the events, prints the metrics and writes `results.json`.

    Raises:
        InputError: bad input, or events and annotations that have no recording or no label in common.
    """
    folder = Path(arguments.output_dir)
    check_free(folder, "run", arguments.overwrite)
    results, findings = evaluate(arguments)
    staging = new_staging(folder)
    recipe = {"task": "event_evaluation"} | describe_recipe(arguments)
    if findings is not None and arguments.html_report:
        draw_figures(staging, findings)
        with dispensable("report.html"):
            write_report(staging, folder.resolve().name, results, findings, arguments.report_clips)
    write_results({**results, "versions": versions(), "recipe": recipe}, staging)
    publish(staging, folder)
    print_results(results)
    print(f"everything is in {folder}")


def evaluate(arguments: EventEvaluationArguments) -> tuple[dict, Findings | None]:
    """
    Returns the entries of `results.json`: `metrics`, `confidence_intervals`, `per_class`, and what was scored; and what
    `report.html` shows, `None` without recordings.

    Raises:
        InputError: see `run`.
    """
    found_path, wanted_path, remarks = Path(arguments.events), Path(arguments.annotations), Remarks()
    found = read_events(found_path, arguments.events_label_column, arguments.events_audio_column)
    wanted, _, stretches = read_event_tables(wanted_path, arguments.label_column, arguments.audio_column)
    places = None if arguments.recordings is None else _places(Path(arguments.recordings))
    durations_s = None if places is None else _durations_s(arguments, remarks, places, wanted)
    exclude = _excluded(arguments)
    found, wanted = _paired(arguments, remarks, found, wanted, durations_s, exclude)
    stretches, _ = _placed(wanted_path, stretches, wanted) if stretches else ({}, [])
    if durations_s is not None:
        for path, side in ((found_path, found), (wanted_path, wanted)):
            late = [name for name, events in side.items() for event in events if event.onset_s >= durations_s[name]]
            remarks.add(path, late, "events begin after the end of their recordings")
    if arguments.min_score is not None:
        found = _above(found_path, remarks, found, arguments.min_score)
    if arguments.label_map is not None:
        found, wanted = _renamed(arguments, remarks, found, wanted, exclude)
    wanted, excluded = _without_excluded(arguments, remarks, found, wanted, exclude)
    labels, found, wanted = _with_labels(arguments, remarks, found, wanted)
    unsure = _unsure(found, wanted, durations_s, stretches, excluded)
    known = {name: without_unsure(own, unsure[name], wanted[name]) for name, own in found.items()}
    kept = {id(event) for own in known.values() for event in own}
    unknown = [event.label for own in found.values() for event in own if id(event) not in kept]
    reasons = ["outside the annotated clips"] if stretches else []
    reasons += ["in time with excluded labels"] if any(excluded.values()) else []
    remarks.add(found_path, unknown, f"events lie {' or '.join(reasons)} of {wanted_path} and are left out")
    found = known
    results = event_metrics(
        found, wanted, durations_s, labels, arguments.onset_collar_s, arguments.offset_share, arguments.segment_s
    )
    findings = None
    if places is not None:
        scored = [
            Stretch(places[name], places[name], durations_s[name], tuple(wanted[name]), tuple(unsure[name]))
            for name in wanted
        ]
        collar_s, share = arguments.onset_collar_s, arguments.offset_share
        findings = Findings(scored, labels, [found[name] for name in wanted], collar_s, share)
    entries = {
        "metrics": {"test": results["metrics"]},
        "confidence_intervals": results["confidence_intervals"],
        "per_class": results["per_class"],
        "recordings": {"test": len(wanted)},
        "hours": None if durations_s is None else sum(durations_s[name] for name in wanted) / 3600,
        "labels": labels,
        "remarks": remarks,
    }
    return entries, findings


def print_results(results: dict):
    """Prints the metrics with their intervals, and the labels, those with the lowest F1 first."""
    metrics, intervals = results["metrics"]["test"], results["confidence_intervals"]
    rows = [
        [
            f"{kind}s" if kind != "intersection" else kind,
            *(_cell(f"{kind}_{rate}", metrics, intervals) for rate in RATES),
        ]
        for kind in KINDS
    ]
    print_table(rows, ["", "precision", "recall", "F1", "F1, mean of the labels"])
    print(f"segment error rate {_cell('segment_error_rate', metrics, intervals)}")
    if "false_alarms_per_hour" in metrics:
        alarms = _cell("false_alarms_per_hour", metrics, intervals)
        print(f"false alarms per hour {alarms}, in {results['hours']:.2f} hours")
    if intervals is None:
        print("one recording has no confidence intervals")
    columns = ("annotated_events", "predicted_events", *(f"{kind}_f1" for kind in KINDS))
    own = sorted(results["per_class"].items(), key=lambda item: (item[1]["event_f1"], item[0]))
    rows = [[label, *(values[name] for name in columns)] for label, values in own]
    print()
    print_table(rows[:PRINTED], ["label", "annotated", "found", "event F1", "segment F1", "intersection F1"])
    if len(rows) > PRINTED:
        print(f"... and {len(rows) - PRINTED} more in results.json")


def _cell(name: str, metrics: Mapping, intervals: Mapping | None) -> str:
    return "-" if math.isnan(metrics[name]) else with_interval(name, metrics[name], intervals)


class Remarks(list):
    """Collects what is not scored, and logs each line."""

    def add(self, source, items: Iterable, what: str):
        """Adds how many there are, and the most frequent of their names; nothing for no items."""
        counts = Counter("the only recording" if item is None else str(item) for item in items)
        if not counts:
            return
        named = [short(name, 80) + f" ({count})" * (count > 1) for name, count in counts.most_common(NAMED)]
        more = f" and {len(counts) - NAMED} others" if len(counts) > NAMED else ""
        self.append(printable(f"{source}: {counts.total()} {what}: {', '.join(named)}{more}"))
        logger.warning(self[-1])


# ---- Recordings ----


def _places(place: Path) -> dict[str, str]:
    """Returns the recordings of a folder by their paths in it, or the only one, with where they are."""
    paths = find_audio_files(place) if place.is_dir() else [place]
    base = place if place.is_dir() else place.parent
    found = {storable(Path(os.path.relpath(path, base)).as_posix()): str(path) for path in paths}
    if not found:
        raise InputError(f"{place}: holds no recordings; name another folder")
    return found


def _durations_s(
    arguments: EventEvaluationArguments, remarks: Remarks, places: Mapping[str, str], wanted: Events
) -> dict[str, float]:
    """
    Returns the seconds of the recordings that can be read.

    Raises:
        InputError: one with annotations cannot be read, or all cannot.
    """
    found, errors = {}, {}
    for name, path in places.items():
        try:
            found[name] = audio_seconds(path)
        except InputError as error:
            errors[name] = error
    if errors:
        annotated, _ = _placed(arguments.annotations, wanted, places)
        for name, error in errors.items():
            if name in annotated or not found:
                raise error
        remarks.add(arguments.recordings, errors, "recordings cannot be read, have no annotations and are left out")
    return found


def _parts(name: str | None) -> tuple[str, ...]:
    """Returns the folders and the name of a recording, without an ending of audio."""
    path = PurePosixPath("" if name is None else as_named(name))
    return (path.with_suffix("") if path.suffix.lower() in ENDINGS else path).parts


def _shared(names: Iterable[tuple[str, ...]]) -> int:
    """Returns how many folders all recordings share."""
    levels = zip(*(parts[:-1] for parts in names))
    return sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def _placed(source, events: Events, recordings: Iterable[str | None]) -> tuple[Events, list]:
    """
    Returns the events by the names of the recordings, and which names of the table are none of them.

    Names are compared without endings. One is the end of the other, such as x of a/x.wav, or both are when the folders
    that all recordings of a side share are left out.

    Raises:
        InputError: a name may be several recordings, or several names are one.
    """
    recordings, found, unknown = list(recordings), {}, []
    if events == {None: []} and len(recordings) != 1:
        return {}, []  # an empty table
    if None in events or recordings == [None]:
        number = max(len(recordings), len(events))
        if number > 1 or not recordings:
            raise InputError(
                f"{source}: does not say which of {number} recordings it describes; name them in the table"
            )
        return dict(zip(recordings, events.values())), []
    known, named = {name: _parts(name) for name in recordings}, {name: _parts(name) for name in events}
    alike = defaultdict(list)
    for name, parts in known.items():
        alike[parts[-1:]].append(name)
    bases = ((0, 0), (_shared(named.values()), _shared(known.values())))
    for name, parts in named.items():
        best = []
        for own, others in bases:
            ranks = {other: _likeness(parts[own:], known[other][others:]) for other in alike[parts[-1:]]}
            ranks = {other: (rank, name == other) for other, rank in ranks.items() if rank is not None}
            best = [other for other, rank in ranks.items() if rank == max(ranks.values())]
            if len(best) == 1:
                break
        if len(best) > 1:
            raise InputError(
                f"{source}: {printable(name)} may be {' or '.join(map(printable, best[:2]))}; write its path"
            )
        if best and best[0] in found:
            raise InputError(f"{source}: {printable(name)} and another name are {printable(best[0])}; write one name")
        unknown += [] if best else [name]
        found |= dict.fromkeys(best, events[name])
    return found, unknown


def _likeness(one: tuple[str, ...], two: tuple[str, ...]) -> tuple[int, bool] | None:
    """Returns how many parts are equal from the end on, and whether all are; `None` unless one is the other's end."""
    shortest = min(len(one), len(two))
    return (shortest, len(one) == len(two)) if one[-shortest:] == two[-shortest:] else None


def _paired(
    arguments: EventEvaluationArguments,
    remarks: Remarks,
    found: Events,
    wanted: Events,
    durations_s: Mapping | None,
    exclude: set[str],
) -> tuple[Events, Events]:
    """Returns both sides by the names of the recordings that are scored."""
    found_path, wanted_path, place = arguments.events, arguments.annotations, arguments.recordings
    if durations_s is not None:
        wanted, unknown = _placed(wanted_path, wanted, durations_s)
        remarks.add(wanted_path, unknown, f"annotated recordings are not in {place} and are left out")
    names = list(wanted if durations_s is None else durations_s)
    own = found
    found, unknown = _placed(found_path, own, names)
    if unknown and not found:
        some = " and ".join(printable(str(side[0])) for side in (unknown, names) if side)
        raise InputError(f"{found_path}: has none of the recordings of {place or wanted_path}: {some} are other names")
    is_empty = arguments.unannotated == "empty"
    if durations_s is not None:
        remarks.add(found_path, unknown, f"recordings with events are not in {place} and are left out")
        unknown = [name for name in names if name not in wanted]
        what = "recordings have no annotations"
    else:
        what = "recordings have events and no annotations"
    remarks.add(wanted_path, unknown, f"{what} and {'count as empty' if is_empty else 'are left out'}")
    if is_empty:
        wanted = wanted | dict.fromkeys(unknown, ())
        found = {name: own[name] for name in unknown if name in own} | found
    sure = {name: [event for event in events if event.label not in exclude] for name, events in wanted.items()}
    silent = [name for name in wanted if name not in found and sure[name]]
    num_missed = sum(len(sure[name]) for name in silent)
    missed = f"annotated recordings have no events here; all {num_missed} annotated ones are missed"
    remarks.add(found_path, silent, missed)
    if not wanted:
        raise InputError(
            f"{wanted_path}: annotates none of the recordings of {place or found_path}; name another table"
        )
    return {name: found.get(name, []) for name in wanted}, wanted


def _unsure(found: Events, wanted: Events, durations_s: Mapping | None, stretches: Mapping, excluded: Events) -> Events:
    """
    Returns per recording the events with excluded labels, and what lies outside its annotated clips, as far as there
    are events if its end is unknown.
    """
    unsure = {}
    for name in wanted:
        ends_s = [event.offset_s for event in (*found[name], *wanted[name])]
        end_s = max(ends_s, default=0.0) if durations_s is None else durations_s[name]
        gaps = outside(end_s, stretches[name]) if name in stretches else []
        unsure[name] = in_order([*(Event(*gap, NOT_ANNOTATED) for gap in gaps), *excluded[name]])
    return unsure


# ---- Labels and scores ----


def _above(source: Path, remarks: Remarks, found: Events, min_score: float) -> Events:
    """Returns the events whose score is at least the lowest one."""
    without = [event for events in found.values() for event in events if event.score is None]
    if without:
        raise InputError(f"min_score: {len(without)} events of {source} have no score; leave it out")
    kept = {name: [event for event in events if event.score >= min_score] for name, events in found.items()}
    left_out = [event.label for events in found.values() for event in events if event.score < min_score]
    remarks.add(source, left_out, f"events have scores below {min_score:g} and are left out")
    return kept


def _excluded(arguments: EventEvaluationArguments) -> set[str]:
    """Returns the labels whose time is unsure: those that are excluded, unless they are to be scored."""
    labels, excluded = (set(map(class_name, own or ())) for own in (arguments.labels, arguments.exclude_labels))
    return excluded - labels


def _without_excluded(
    arguments: EventEvaluationArguments, remarks: Remarks, found: Events, wanted: Events, exclude: set[str]
) -> tuple[Events, Events]:
    """Returns the annotated events without those with excluded labels, and these."""
    known = {event.label for side in (found, wanted) for events in side.values() for event in events}
    unused = sorted(exclude - known - {UNSURE})  # UNSURE: a default
    remarks.add("exclude_labels", unused, "labels are those of no event")
    excluded = {name: [event for event in events if event.label in exclude] for name, events in wanted.items()}
    sure = {name: [event for event in events if event.label not in exclude] for name, events in wanted.items()}
    labels = [event.label for events in excluded.values() for event in events]
    remarks.add(arguments.annotations, labels, RULES["excluded"])
    return sure, excluded


def _renamed(
    arguments: EventEvaluationArguments, remarks: Remarks, found: Events, wanted: Events, exclude: set[str]
) -> tuple[Events, Events]:
    """Applies the label map to both sides; excluded labels stay."""
    pairs = read_label_map(arguments.label_map)
    names = {class_name(old): None if new is None else class_name(new) for old, new in pairs.items()}
    known = {event.label for side in (found, wanted) for events in side.values() for event in events}
    remarks.add(
        "label_map", [name for name in names if name not in known and name != REST], "labels are on neither side"
    )
    own = {*(arguments.labels or ()), *names.values()}
    renamed = {label: label if label in exclude else mapped(label, names, own) for label in known}
    sides = []
    for source, side in ((arguments.events, found), (arguments.annotations, wanted)):
        left_out = [event.label for events in side.values() for event in events if renamed[event.label] is None]
        remarks.add(source, left_out, "events have labels that label_map leaves out")
        sides.append(
            {
                name: [event._replace(label=label) for event in events if (label := renamed[event.label]) is not None]
                for name, events in side.items()
            }
        )
    return tuple(sides)


def _with_labels(
    arguments: EventEvaluationArguments, remarks: Remarks, found: Events, wanted: Events
) -> tuple[list[str], Events, Events]:
    """Returns the labels that are scored, and the events that have them; background is one only if it is named."""
    skipped = {BACKGROUND} - {class_name(label) for label in arguments.labels or ()}
    given, annotated = (
        {event.label for events in side.values() for event in events} - skipped for side in (found, wanted)
    )
    labels = [class_name(label) for label in dict.fromkeys(arguments.labels or sorted(annotated))]
    if not labels:
        raise InputError(f"{arguments.annotations}: has no events to score by; name another table, or set labels")
    for label in labels:
        if label not in annotated | given:
            hint = nearest(label, annotated | given, f"there are {', '.join(sorted(annotated | given)[:5])}")
            raise InputError(f"labels: no event is called {printable(short(label, 80))}; {hint}")
    if given and not given & set(labels):
        some = ", ".join(map(printable, [min(given), labels[0]]))
        raise InputError(f"{arguments.events}: has none of the labels that are scored, such as {some}; set label_map")
    what = "annotated" if arguments.labels is None else "among labels"
    for source, side in ((arguments.events, found), (arguments.annotations, wanted)):
        others = [event.label for events in side.values() for event in events if event.label not in labels]
        nothing = [label for label in others if label in skipped]
        remarks.add(source, nothing, "events stand for no event and are left out, as labels does not name them")
        others = [label for label in others if label not in skipped]
        remarks.add(source, others, f"events have labels that are not {what} and are left out")
    never = [event.label for events in wanted.values() for event in events if event.label in set(labels) - given]
    remarks.add(arguments.events, never, "annotated events are missed, because no event here has their labels")
    return labels, *(
        {name: [event for event in events if event.label in labels] for name, events in side.items()}
        for side in (found, wanted)
    )
