"""Finds errors and oddities of annotated recordings, for `training.check`."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from statistics import median

from .annotations import AnnotatedRecording
from .events import Event
from .labels import sort_key

LONG_GAP_S = 3600.0  # seconds without events in a recording that has some
LENGTH_RATIO = 10.0  # relative to the median length of the events of the class
FEWEST_EVENTS = 5  # of a class whose median is compared with
FIRST_BYTES = 4096  # of recordings that are compared
SHORTEST_S = 0.025  # one window of the features

KINDS = {  # kind -> (is it an error, meaning)
    "unreadable": (True, "recordings that cannot be read"),
    "missing": (True, "recordings of the tables that are not there"),
    "begins_after_end": (True, "events that begin after the end of their recordings: is it the right recording?"),
    "recordings_across_splits": (True, "recordings, or copies of them, that lie in several splits"),
    "sites_across_splits": (True, "sites with annotated recordings in several splits"),
    "cut_at_end": (False, "events that end after their recordings, and are cut there"),
    "no_table": (False, "files below the annotations that are no tables of events"),
    "unlabelled": (False, "recordings without annotations, which are unlabelled"),
    "empty": (False, "recordings without annotations, which count as empty"),
    "without_site": (False, "annotated recordings without a site, although site is set"),
    "not_annotated": (False, "stretches outside the annotated clips of a recording, which are unsure"),
    "excluded": (False, "events with excluded labels, whose time is unsure"),
    "left_out": (False, "events that label_map leaves out"),
    "repeated_events": (False, "events that are listed more than once"),
    "overlapping_events": (False, "events that overlap or touch another one of their label: frames join them"),
    "without_duration": (False, "events without duration; point_s gives them one"),
    "shorter_than_a_frame": (False, f"events shorter than {SHORTEST_S * 1000:g} ms"),
    "very_short": (False, f"events shorter than the median of their class by more than {LENGTH_RATIO:g} times"),
    "very_long": (False, f"events longer than the median of their class by more than {LENGTH_RATIO:g} times"),
    "high_frequencies": (False, "events above half of sampling_rate, which the model does not receive"),
    "long_gaps": (False, f"stretches of more than {LONG_GAP_S / 3600:g} h without events in recordings with events"),
    "similar_classes": (False, "classes whose names look like slips of each other"),
    "single_event_classes": (False, "classes with one event"),
    "missing_classes": (False, "classes that are missing from a split"),
}
ODD_EVENTS = ("repeated_events", "overlapping_events", "shorter_than_a_frame")
ODD_EVENTS += ("very_short", "very_long", "high_frequencies")

Splits = Mapping[str, list[AnnotatedRecording]]


def describe_splits(splits: Splits) -> dict[str, dict]:
    """Counts recordings, events, sites and hours of each split; empty hours are those of recordings without events."""
    found = {}
    for split, own in splits.items():
        labelled = [recording for recording in own if recording.events is not None]
        found[split] = {
            "recordings": len(own),
            "unlabelled": len(own) - len(labelled),
            "sites": len({recording.site for recording in labelled} - {None}),
            "events": sum(len(recording.events) for recording in labelled),
            "hours": _hours(recording.duration_s for recording in labelled),
            "hours of events": _hours(end - start for one in labelled for start, end in _covered(one.events)),
            "unsure hours": _hours(end - start for one in labelled for start, end in _covered(one.unsure)),
            "empty hours": _hours(one.duration_s for one in labelled if not one.events),
        }
    return found


def describe_classes(splits: Splits) -> dict[str, dict]:
    """Counts the events of each class by split, and gives their shortest, median and longest duration in seconds."""
    durations_s = {split: defaultdict(list) for split in splits}
    for split, _, event in _all_events(splits):
        durations_s[split][event.label].append(event.offset_s - event.onset_s)
    names = sorted(set().union(*durations_s.values()), key=sort_key)
    found = {}
    for name in names:
        all_s = [length for own in durations_s.values() for length in own[name]]
        found[name] = {split: len(own[name]) for split, own in durations_s.items()} | {
            "seconds": round(sum(all_s), 3), "min_s": round(min(all_s), 6), "median_s": round(median(all_s), 6),
            "max_s": round(max(all_s), 6),
        }  # fmt: skip
    return found


def describe_overlaps(splits: Splits) -> list[dict]:
    """Counts the pairs of events that sound at once, and their seconds, by pair of classes; most seconds first."""
    counts, seconds = defaultdict(int), defaultdict(float)
    for recording in (recording for own in splits.values() for recording in own):
        running: list[Event] = []
        for event in recording.events or ():  # by onset
            running = [other for other in running if other.offset_s > event.onset_s]
            for other in running:
                common_s = min(other.offset_s, event.offset_s) - event.onset_s
                if common_s > 0:
                    pair = tuple(sorted((event.label, other.label), key=sort_key))
                    counts[pair] += 1
                    seconds[pair] += common_s
            running.append(event)
    pairs = sorted(counts, key=lambda pair: (-seconds[pair], pair))
    return [{"class": a, "with": b, "pairs": counts[a, b], "seconds": round(seconds[a, b], 3)} for a, b in pairs]


def find_odd_events(splits: Splits, sampling_rate: int) -> dict[str, list[dict]]:
    """Finds events that are listed twice, that overlap, that are unusually short or long, or too high."""
    found = {kind: [] for kind in ODD_EVENTS}
    lengths = defaultdict(list)
    for _, _, event in _all_events(splits):
        lengths[event.label].append(event.offset_s - event.onset_s)
    medians_s = {label: median(own) for label, own in lengths.items() if len(own) >= FEWEST_EVENTS}
    last: dict[tuple, Event] = {}
    for split, recording, event in _all_events(splits):
        item = _item(split, recording, event)
        length_s, median_s = event.offset_s - event.onset_s, medians_s.get(event.label)
        before = last.get((split, recording.path, event.label))
        if before is not None and event[:2] == before[:2]:
            found["repeated_events"].append(item)
        elif before is not None and event.onset_s <= before.offset_s:
            found["overlapping_events"].append(item)
        if before is None or event.offset_s > before.offset_s:
            last[split, recording.path, event.label] = event
        if 0 < length_s < SHORTEST_S:
            found["shorter_than_a_frame"].append(item)
        elif median_s and 0 < length_s < median_s / LENGTH_RATIO:
            found["very_short"].append(item | {"median_s": round(median_s, 6)})
        if median_s and length_s > median_s * LENGTH_RATIO:
            found["very_long"].append(item | {"median_s": round(median_s, 6)})
        if event.low_hz is not None and event.low_hz >= sampling_rate / 2:
            found["high_frequencies"].append(item | {"low_hz": event.low_hz})
    return found


def find_long_gaps(splits: Splits) -> list[dict]:
    """Finds long stretches without events and without doubt in recordings that have events."""
    found = []
    for split, own in splits.items():
        for recording in own:
            covered = [*_covered([*(recording.events or ()), *recording.unsure]), (recording.duration_s,) * 2]
            end_s = 0.0
            for start_s, stop_s in covered if recording.events else ():
                if start_s - end_s > LONG_GAP_S:
                    times = {"onset_s": round(end_s, 6), "offset_s": round(start_s, 6)}
                    found.append({"split": split, "recording": str(recording.path)} | times)
                end_s = stop_s
    return found


def find_leaks(splits: Splits) -> dict[str, list[dict]]:
    """Finds recordings, byte-identical copies of them, and sites that are annotated in several splits."""
    alike, sites = defaultdict(dict), defaultdict(dict)
    for split, own in splits.items():
        for recording in own:
            place = os.path.realpath(recording.path)
            with open(place, "rb") as file:  # recorders make many files of one size
                start = file.read(FIRST_BYTES)
            alike[os.path.getsize(place), start].setdefault((split, place), str(recording.path))
            if recording.site is not None and recording.events is not None:
                counts = sites[recording.site]
                counts[split] = counts.get(split, 0) + 1
    copies = []
    for own in alike.values():
        for ((split, place), name), ((other_split, other), other_name) in combinations(own.items(), 2):
            if split != other_split and (place == other or filecmp.cmp(place, other, shallow=False)):
                copies.append({"recordings": [f"{split}: {name}", f"{other_split}: {other_name}"]})
    divided = [{"site": site} | counts for site, counts in sorted(sites.items()) if len(counts) > 1]
    return {"recordings_across_splits": copies, "sites_across_splits": divided}


def _all_events(splits: Splits) -> Iterable[tuple[str, AnnotatedRecording, Event]]:
    for split, own in splits.items():
        for recording in own:
            for event in recording.events or ():
                yield split, recording, event


def _item(split: str, recording: AnnotatedRecording, event: Event) -> dict:
    times = {"onset_s": event.onset_s, "offset_s": event.offset_s}
    return {"split": split, "recording": str(recording.path), "label": event.label} | times


def _covered(events: Iterable[Event]) -> list[tuple[float, float]]:
    """Returns the stretches in which at least one of the events is."""
    found: list[tuple[float, float]] = []
    for onset_s, offset_s in sorted(event[:2] for event in events):
        if found and onset_s <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], offset_s))
        else:
            found.append((onset_s, offset_s))
    return found


def _hours(seconds: Iterable[float]) -> float:
    return round(sum(seconds) / 3600, 4)
