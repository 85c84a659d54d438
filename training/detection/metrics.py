"""Scores what a frame classifier finds in the recordings of a split: its frames, and its events."""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import average_precision_score

from ..base.arguments import TrainingArguments
from ..base.event_detection import find_events
from ..data.events import Event
from ..errors import InputError
from .recordings import Stretch

OFFSET_SHARE = 0.2  # of an event's length, by which its offset may differ (DCASE)
# The metrics of an evaluation; the first one chooses the best checkpoint. Higher is better.
METRICS = ("frame_mean_average_precision", "event_f1", "event_precision", "event_recall")


def choose_metric(arguments: TrainingArguments):
    """
    Sets the metric that chooses the best checkpoint.

    Raises:
        InputError: there is no such metric.
    """
    name = (arguments.chosen_metric or METRICS[0]).removeprefix("eval_")
    if name not in (*METRICS, "loss"):
        raise InputError(f"metric_for_best_model: {name!r} is unknown; known are {', '.join(METRICS)}, loss")
    arguments.metric_for_best_model = name
    arguments.greater_is_better = name != "loss" if arguments.chosen_direction is None else arguments.chosen_direction


def frame_precisions(scores: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """
    Returns the average precision of each label over the frames of all recordings: (labels,), NaN for labels without a
    positive or a negative frame. Frames where nobody knows count for nothing.

    Args:
        scores, targets: per recording (frames, labels)
    """
    scores, targets = np.concatenate(scores), np.concatenate(targets)
    found = np.full(targets.shape[1], np.nan)
    for label in range(len(found)):
        is_known = ~np.isnan(targets[:, label])
        own = targets[is_known, label]
        if 0 < own.sum() < len(own):
            found[label] = average_precision_score(own, scores[is_known, label])
    return found


def count_matches(found: Sequence[Event], wanted: Sequence[Event], collar_s: float) -> int:
    """
    Counts the events of one label in one recording that are found: onsets differ by at most the collar, offsets by at
    most the collar or a fifth of the wanted event's length. Each event is matched once, in the order of onsets.
    """
    free, count = sorted(found, key=lambda event: event.onset_s), 0
    for event in sorted(wanted, key=lambda event: event.onset_s):
        reach_s = max(collar_s, OFFSET_SHARE * (event.offset_s - event.onset_s))
        for index, other in enumerate(free):
            is_near = abs(other.onset_s - event.onset_s) <= collar_s + 1e-6
            if is_near and abs(other.offset_s - event.offset_s) <= reach_s + 1e-6:
                del free[index]
                count += 1
                break
    return count


def without_unsure(found: Sequence[Event], unsure: Sequence[Event]) -> list[Event]:
    """Leaves out events of which more than half lies in unsure stretches: nobody knows whether they are right."""
    if not unsure:
        return list(found)
    stretches: list[list[float]] = []
    for event in sorted(unsure, key=lambda event: event.onset_s):
        if stretches and event.onset_s <= stretches[-1][1]:
            stretches[-1][1] = max(stretches[-1][1], event.offset_s)
        else:
            stretches.append([event.onset_s, event.offset_s])

    def is_known(event: Event) -> bool:
        shared_s = sum(
            max(min(event.offset_s, end_s) - max(event.onset_s, begin_s), 0.0) for begin_s, end_s in stretches
        )
        return shared_s <= (event.offset_s - event.onset_s) / 2

    return list(filter(is_known, found))


def by_label(events: Sequence[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.label, []).append(event)
    return found


def event_counts(
    found: Sequence[Sequence[Event]], wanted: Sequence[Stretch], labels: Sequence[str], collar_s: float
) -> np.ndarray:
    """Returns per label the events that are matched, found and wanted: (labels, 3). found: per recording"""
    counts = np.zeros((len(labels), 3))
    for own, stretch in zip(found, wanted):
        own, right = by_label(without_unsure(own, stretch.unsure)), by_label(stretch.events)
        for index, label in enumerate(labels):
            pair = own.get(label, ()), right.get(label, ())
            counts[index] += (count_matches(*pair, collar_s), len(pair[0]), len(pair[1]))
    return counts


def f1_of(counts: np.ndarray) -> np.ndarray:
    """Returns precision, recall and F1 of counts (..., 3) as `event_counts` gives them: (..., 3), 0 for 0 / 0."""
    matched, found, wanted = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    pairs = ((matched, found), (matched, wanted), (2 * matched, found + wanted))
    return np.stack([np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in pairs], axis=-1)


def event_metrics(counts: np.ndarray) -> dict[str, float]:
    """Returns the means over the labels that occur, from the counts of `event_counts`; NaN if none occurs."""
    means = f1_of(counts[counts[:, 2] > 0]).mean(axis=0) if (counts[:, 2] > 0).any() else np.full(3, np.nan)
    return dict(zip(("event_precision", "event_recall", "event_f1"), map(float, means)))


def find_all(
    scores: Sequence[np.ndarray], edges_s: Sequence[np.ndarray], labels: Sequence[str], settings: Mapping
) -> list[list[Event]]:
    """Returns the events of each recording. scores: per recording (frames, labels); settings: of `EventFinder`"""
    return [find_events(own, labels, edges[:-1], edges[1:], **settings) for own, edges in zip(scores, edges_s)]
