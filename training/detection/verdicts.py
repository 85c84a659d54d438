"""Says of each event whether it is found, missed or a false alarm, and what is taken for what."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas

from ..base.detection_scores import match_events
from ..base.event_detection import times_of, without_unsure
from ..data.events import Event
from .recordings import Stretch

RIGHT, MISSED, ALARM, UNSCORED = "right", "missed", "false alarm", "not scored"
NOTHING = "nothing"


class Judged(NamedTuple):
    """
    Holds an event with what the metrics count it as.

    Args:
        is_annotated: else it is found
        verdict: `RIGHT`, `MISSED`, `ALARM`, or `UNSCORED` for what is found where annotations are unsure
    """

    event: Event
    is_annotated: bool
    verdict: str

    @property
    def is_error(self) -> bool:
        return self.verdict in (MISSED, ALARM)


def judge(found: Sequence[Event], stretch: Stretch, collar_s: float, offset_share: float) -> list[Judged]:
    """
    Returns the annotated and found events of a recording by onset. Which events are right is what
    [`event_metrics`][training.base.detection_scores.event_metrics] counts; arguments as there.
    """
    scored = without_unsure(found, stretch.unsure, stretch.events)
    kept = set(scored)
    judged = [Judged(event, False, UNSCORED) for event in found if event not in kept]
    for label in {event.label for event in (*scored, *stretch.events)}:
        sides = [
            sorted((event for event in side if event.label == label), key=lambda event: event[:2])
            for side in (scored, stretch.events)
        ]
        pairs = match_events(*map(times_of, sides), collar_s, offset_share)
        for own, right, is_annotated in zip(sides, pairs.T, (False, True)):
            others = MISSED if is_annotated else ALARM
            right = set(right.tolist())
            judged += [Judged(event, is_annotated, RIGHT if i in right else others) for i, event in enumerate(own)]
    return sorted(judged, key=lambda one: (*one.event[:3], not one.is_annotated))


def confusion_in_time(
    found: Iterable[Sequence[Event]], stretches: Sequence[Stretch], labels: Sequence[str]
) -> pandas.DataFrame:
    """
    Returns the seconds in which labels (rows) are annotated by what is found in them (columns), the last of both for
    nothing.

    A label that is found where it is annotated is right, whatever else sounds. Where it is not, its seconds belong to
    the labels that are found and not annotated there, in equal parts, or to nothing; and what is found without another
    label being missed was nothing. A row has the seconds of its label. Unsure stretches are left out.
    """
    seconds = np.zeros((len(labels) + 1, len(labels) + 1))
    places = {label: index for index, label in enumerate(labels)}
    for own, one in zip(found, stretches):
        present = sorted({places[event.label] for event in (*own, *one.events)})
        columns = {labels[place]: column for column, place in enumerate(present)}
        edges = np.unique([time for event in (*own, *one.events, *one.unsure) for time in event[:2]])
        if not present or len(edges) < 2:
            continue
        given, wanted = (_active(side, edges, columns) for side in (own, one.events))  # (spans, labels)
        is_unsure = _active((event._replace(label="") for event in one.unsure), edges, {"": 0})[:, 0]
        lengths = np.where(is_unsure, 0.0, np.diff(edges))
        missed, wrong = wanted & ~given, given & ~wanted
        num_wrong = wrong.sum(axis=1)
        seconds[present, present] += lengths @ (wanted & given)
        shares = lengths / np.maximum(num_wrong, 1)
        seconds[np.ix_(present, present)] += (missed * shares[:, None]).T @ wrong
        seconds[present, -1] += (lengths * (num_wrong == 0)) @ missed
        seconds[-1, present] += (lengths * ~missed.any(axis=1)) @ wrong
    names = pandas.Index([*labels, NOTHING], dtype=object)
    return pandas.DataFrame(seconds, index=names, columns=names)


def _active(events: Iterable[Event], edges: np.ndarray, columns: dict[str, int]) -> np.ndarray:
    """Returns which labels are active between the edges: boolean (spans, labels)."""
    active = np.zeros((len(edges) - 1, len(columns)), dtype=bool)
    for event in events:
        first, last = np.searchsorted(edges, event[:2])
        active[first:last, columns[event.label]] = True
    return active
