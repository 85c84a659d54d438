"""
Finds sound events in the scores of windows or frames: median filter, two thresholds, shortest gap, shortest event.

Recordings may come in parts, and their events are those of one pass.
"""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from modeling_dual_ssast.configuration_dual_ssast import WINDOW_SETTINGS

from ..data.events import BACKGROUND, Event
from ..data.labels import LabelSet
from ..errors import InputError, printable

DEFAULT_THRESHOLD = 0.5
BLOCK_STEPS = 4096
# Sums of hops are not exact, and tables hold microseconds.
TOLERANCE_S = 1e-6

PerLabel = float | Sequence[float] | np.ndarray


class EventFinder:
    """
    Finds the events of one recording, whose steps (windows or frames) may come in parts.

    **Times.** Each step decides about the time that it shares with no neighbour, and about half of what it shares with
    each: an event begins in the middle of the overlap of its first step and the step before, and ends in the middle of
    the overlap of its last step and the next. The first step decides from its own beginning, the last one to its own
    end. Frames that follow each other have no overlap: an event is the time of its frames.

    **Thresholds.** An event begins with a step whose score is above `high`, and goes on while scores are above `low`.
    Its score is the highest of its steps, after the median filter.

    Then events of a label with a gap of at most `max_gap_s` become one, and events shorter than `min_duration_s` are
    left out.

    Args:
        labels: name of each label
        high: threshold, or one per label
        low: second threshold, or one per label, at most `high`; `None`: the same
        min_duration_s, max_gap_s: seconds, or one per label
        median_steps: odd size of the median filter over time, or one per label; 1: no filter. Edges are mirrored

    Raises:
        ValueError: settings that do not fit each other or the labels.
    """

    def __init__(
        self,
        labels: Sequence[str],
        high: PerLabel,
        low: PerLabel | None = None,
        min_duration_s: PerLabel = 0.0,
        max_gap_s: PerLabel = 0.0,
        median_steps: int | Sequence[int] = 1,
    ):
        self.labels = list(labels)
        self.high = self._per_label("high", high)
        self.low = self.high if low is None else self._per_label("low", low)
        self.min_duration_s = self._per_label("min_duration_s", min_duration_s)
        self.max_gap_s = self._per_label("max_gap_s", max_gap_s)
        self.median_steps = self._per_label("median_steps", median_steps).astype(int)
        if (self.low > self.high).any():
            raise ValueError(f"low must be at most high, got {low} and {high}")
        if min(self.min_duration_s.min(), self.max_gap_s.min()) < 0:
            raise ValueError(f"durations must be 0 or more, got {min_duration_s} and {max_gap_s}")
        if (self.median_steps < 1).any() or (self.median_steps % 2 == 0).any():
            raise ValueError(f"median_steps must be odd, got {median_steps}")
        self.reach = self.median_steps.max() // 2  # steps beside a step on which its filtered score depends
        # Steps that are still needed: those without a decision, and before them what the filter and the times need.
        self.scores, self.starts_s, self.ends_s = np.zeros((0, len(self.labels))), np.zeros(0), np.zeros(0)
        self.num_decided = 0  # of the steps that are held
        # Per label: is an event going on, since when, its highest score; and the last one that ended, to be merged.
        self.is_active = np.zeros(len(self.labels), dtype=bool)
        self.onset_s, self.peak = np.zeros(len(self.labels)), np.full(len(self.labels), -np.inf)
        self.ended: dict[int, tuple[float, float, float]] = {}  # label -> onset, offset, score

    def _per_label(self, name: str, value: PerLabel) -> np.ndarray:
        values = np.asarray(value, dtype=np.float64)
        if values.shape not in ((), (len(self.labels),)) or not np.isfinite(values).all() or not self.labels:
            raise ValueError(f"{name} must be a number, or one for each of {len(self.labels)} labels, got {value}")
        return np.broadcast_to(values, len(self.labels))

    def add(self, scores: np.ndarray, starts_s: np.ndarray, ends_s: np.ndarray) -> list[Event]:
        """
        Reads the next steps.

        Args:
            scores: (steps, labels)
            starts_s, ends_s: (steps,), neither ever decreasing

        Returns:
            The events that no further step can change.

        Raises:
            ValueError: other shapes, times that go back, or numbers that are not finite.
        """
        scores, starts_s, ends_s = (np.asarray(values, dtype=np.float64) for values in (scores, starts_s, ends_s))
        if scores.ndim != 2 or scores.shape[1] != len(self.labels) or not len(scores) == len(starts_s) == len(ends_s):
            raise ValueError(
                f"expected scores (steps, {len(self.labels)}) and two times per step, got shapes {scores.shape}, "
                f"{starts_s.shape} and {ends_s.shape}"
            )
        if not all(np.isfinite(values).all() for values in (scores, starts_s, ends_s)):
            raise ValueError("scores and times must be finite numbers")
        events = []
        for first in range(0, len(scores), BLOCK_STEPS):  # bounds the memory
            block = slice(first, first + BLOCK_STEPS)
            self.scores = np.concatenate([self.scores, scores[block]])
            self.starts_s = np.concatenate([self.starts_s, starts_s[block]])
            self.ends_s = np.concatenate([self.ends_s, ends_s[block]])
            if (np.diff(self.starts_s) < 0).any() or (np.diff(self.ends_s) < 0).any():
                raise ValueError("steps must be in the order of their times")
            events += self._decide(len(self.scores) - self.reach)
        return events

    def finish(self) -> list[Event]:
        """Returns the remaining events of the recording; nothing may be added after it."""
        events = self._decide(len(self.scores))
        if len(self.scores):
            for label in np.flatnonzero(self.is_active):
                events += self._end(label, self.ends_s[-1])
        events += [event for label in list(self.ended) for event in self._release(label)]
        return events

    def _decide(self, stop: int) -> list[Event]:
        """Decides on the steps before `stop`, and returns the events that are complete."""
        first = self.num_decided
        if stop <= first:
            return []
        scores = self._filtered()[first:stop]  # (steps, labels)
        # Borders between steps; before the first step held there is none, except at the recording's beginning.
        borders_s = np.concatenate([self.starts_s[:1], (self.ends_s[:-1] + self.starts_s[1:]) / 2])
        begins_s = borders_s[first:stop]

        # Whether an event goes on after a step is what the last decisive step before it said.
        starts, stops = scores > self.high, scores <= self.low
        steps = np.arange(1, len(scores) + 1)[:, None]
        decisive = np.maximum.accumulate(np.where(starts | stops, steps, 0), axis=0)
        before = np.concatenate([self.is_active[None], starts])
        active = np.take_along_axis(before, decisive, axis=0)  # (steps, labels)

        changes = np.diff(active, axis=0, prepend=self.is_active[None])
        events = []
        for label in np.flatnonzero(active.any(axis=0) | self.is_active):
            places = np.flatnonzero(changes[:, label])
            begin = 0
            for place in places:
                if active[place, label]:
                    begin, self.onset_s[label], self.peak[label] = place, begins_s[place], -np.inf
                else:
                    self._raise_peak(label, scores[begin:place, label])
                    events += self._end(label, begins_s[place])
            if active[-1, label]:
                self._raise_peak(label, scores[begin:, label])
        self.is_active = active[-1]

        kept = max(0, stop - max(self.reach, 1))  # times depend on the step before
        self.num_decided = stop - kept
        # No event can begin before this any more.
        now_s = begins_s[-1]
        for label in list(self.ended):
            next_s = self.onset_s[label] if self.is_active[label] else now_s
            if next_s - self.ended[label][1] > self.max_gap_s[label] + TOLERANCE_S:
                events += self._release(label)
        self.scores, self.starts_s, self.ends_s = self.scores[kept:], self.starts_s[kept:], self.ends_s[kept:]
        return events

    def _filtered(self) -> np.ndarray:
        """Returns the filtered scores of the steps held; right for those that are decided on now."""
        return median_filtered(self.scores, self.median_steps)

    def _raise_peak(self, label: int, scores: np.ndarray):
        self.peak[label] = max(self.peak[label], scores.max(initial=-np.inf))

    def _end(self, label: int, offset_s: float) -> list[Event]:
        """Ends the event of a label that is going on; returns the one before it if it stays apart."""
        onset_s, peak, events = self.onset_s[label], self.peak[label], []
        if label in self.ended:
            if onset_s - self.ended[label][1] <= self.max_gap_s[label] + TOLERANCE_S:
                onset_s, peak = self.ended[label][0], max(peak, self.ended[label][2])
            else:
                events = self._release(label)
        self.ended[label] = (onset_s, offset_s, peak)
        return events

    def _release(self, label: int) -> list[Event]:
        onset_s, offset_s, peak = self.ended.pop(label)
        # Steps of padding, after the recording's end, have no duration.
        if offset_s <= onset_s or offset_s - onset_s < self.min_duration_s[label] - TOLERANCE_S:
            return []
        return [Event(float(onset_s), float(offset_s), self.labels[label], score=float(peak))]


def median_filtered(scores: np.ndarray, median_steps: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns scores (steps, labels) after a median filter over time of odd size, or one per label; mirrored edges."""
    sizes = np.broadcast_to(median_steps, scores.shape[1])
    if (sizes == 1).all() or not len(scores):
        return scores
    filtered = np.empty_like(scores)
    for column, size in enumerate(sizes.tolist()):
        # Mirrored here: scipy does not do it right for filters of many times the length. Label by label: with a second
        # axis scipy needs memory for the square of the size.
        reach = size // 2
        padded = np.pad(scores[:, column], reach, mode="symmetric")
        filtered[:, column] = scipy.ndimage.median_filter(padded, size=size)[reach : reach + len(scores)]
    return filtered


def find_events(
    scores: np.ndarray, labels: Sequence[str], starts_s: np.ndarray, ends_s: np.ndarray, high: PerLabel, **settings
) -> list[Event]:
    """
    Returns the events of a whole recording, sorted by onset, see
    [`EventFinder`][training.base.event_detection.EventFinder].

    Args:
        scores: (steps, labels)
        starts_s, ends_s: (steps,), see `step_times`
        settings: further ones of `EventFinder`
    """
    finder = EventFinder(labels, high, **settings)
    events = finder.add(scores, starts_s, ends_s) + finder.finish()
    return sorted(events, key=lambda event: (event.onset_s, event.offset_s, event.label))


def without_unsure(found: Sequence[Event], unsure: Sequence[Event], wanted: Sequence[Event] = ()) -> list[Event]:
    """
    Leaves out events that count for nothing, see `counts_in_unsure`. wanted: the annotated events, of any labels
    """
    if not unsure:
        return list(found)
    counts = np.zeros(len(found), dtype=bool)
    for label in {event.label for event in found}:
        places = [place for place, event in enumerate(found) if event.label == label]
        own = times_of([found[place] for place in places])
        counts[places] = counts_in_unsure(
            own, times_of(unsure), times_of([event for event in wanted if event.label == label])
        )
    return [event for event, is_counted in zip(found, counts) if is_counted]


def counts_in_unsure(found: np.ndarray, unsure: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """
    Returns which found events of a label count, (events,): not those of which more than half lies in unsure stretches,
    because nobody knows whether they are right, unless they overlap an annotated event of the label.

    Args:
        found, unsure, wanted: onsets and offsets in any order, (events, 2); `wanted` are the annotated events
    """
    if not len(unsure) or not len(found):
        return np.ones(len(found), dtype=bool)
    unsure = unsure[np.argsort(unsure[:, 0])]
    ends_s = np.maximum.accumulate(unsure[:, 1])
    begins_s = np.maximum(unsure[:, 0], np.append(0.0, ends_s[:-1]))  # of what no stretch before has
    lengths_s = np.maximum(ends_s - begins_s, 0.0)
    until_s = np.cumsum(lengths_s)  # unsure seconds until the end of each stretch
    borders_s = np.stack([ends_s - lengths_s, ends_s], axis=1).ravel()
    shared_s = np.diff(np.interp(found, borders_s, np.stack([until_s - lengths_s, until_s], axis=1).ravel()))[:, 0]
    is_known = shared_s <= (found[:, 1] - found[:, 0]) / 2 + TOLERANCE_S
    # Events without duration lie in what they touch.
    reach_s = np.where(wanted[:, 1] > wanted[:, 0], 0.0, TOLERANCE_S)
    onsets_s, offsets_s = np.sort(wanted[:, 0] - reach_s), np.sort(wanted[:, 1] + reach_s)
    num_begun = np.searchsorted(onsets_s, found[:, 1], side="left")
    return is_known | (num_begun > np.searchsorted(offsets_s, found[:, 0], side="right"))


def times_of(events: Sequence[Event]) -> np.ndarray:
    """Returns onsets and offsets, (events, 2)"""
    return np.array([event[:2] for event in events], dtype=np.float64).reshape(-1, 2)


def step_times(
    num_steps: int, hop_s: float, window_s: float | None = None, duration_s: float | None = None, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the beginnings and ends of steps that are a hop apart, in seconds.

    Args:
        window_s: seconds per step; `None`: the hop
        duration_s: the recording's duration, which no step exceeds
        first: index of the first step
    """
    starts_s = np.arange(first, first + num_steps) * hop_s
    # The next frame's beginning, and not a sum that may differ by a rounding error.
    ends_s = np.arange(first + 1, first + num_steps + 1) * hop_s if window_s is None else starts_s + window_s
    if duration_s is None:
        return starts_s, ends_s
    return np.minimum(starts_s, duration_s), np.minimum(ends_s, duration_s)


def event_scores(probabilities: np.ndarray, labels: LabelSet) -> np.ndarray:
    """
    Returns the scores that thresholds are compared with: multi-label, the probabilities. Single-label, those of the
    winning class of each step and 0 for the others: a class has an event while it wins with enough probability, and
    events of two classes never overlap. A class called background stands for nothing, so its score is always 0.

    Args:
        probabilities: (steps, labels)

    Raises:
        InputError: the model gives numbers, not classes.
    """
    if labels.is_regression:
        raise InputError("the model gives a number per clip, so it has no events; use a classifier")
    can_occur = np.array([name != BACKGROUND for name in labels.names])
    if not labels.is_multi:
        can_occur = can_occur & (np.arange(len(can_occur)) == probabilities.argmax(axis=1)[:, None])
    return np.where(can_occur, probabilities, 0.0)


def event_settings(
    config,
    threshold: float | None = None,
    low_threshold: float | None = None,
    min_duration_s: float | None = None,
    max_gap_s: float | None = None,
    median_steps: int | None = None,
) -> dict:
    """
    Returns the settings of [`EventFinder`][training.base.event_detection.EventFinder]: the given ones, else the model's
    own (`event_detection` of its configuration). A given threshold replaces both of the model's.

    Args:
        threshold: of all classes
        low_threshold: second one, above which an event goes on

    Raises:
        InputError: the second threshold is above the first of a class, or the median filter's size is even.
    """
    if median_steps is not None and (median_steps < 1 or median_steps % 2 == 0):
        raise InputError(
            f"median_steps {median_steps}: the median is that of a step and as many on each side; give an odd number"
        )
    own = getattr(config, "event_detection", None) or {}
    low = own.get("low") if threshold is None and low_threshold is None else low_threshold
    given = {"low": low, "min_duration_s": min_duration_s, "max_gap_s": max_gap_s, "median_steps": median_steps}
    high = event_thresholds(config, threshold)
    if low_threshold is not None and low_threshold > high.min():
        name, least = printable(config.id2label[int(high.argmin())]), f"{high.min():g}"
        raise InputError(f"low_threshold {low_threshold:g}: the threshold of {name} is {least}; give at most that")
    settings = {"high": high}
    for name, value in given.items():
        value = own.get(name) if value is None and name != "low" else value
        settings |= {} if value is None else {name: value}
    return settings


def has_event_settings(config) -> bool:
    """Returns whether a model says how its events are found, and not only in which windows."""
    return bool((getattr(config, "event_detection", None) or {}).keys() - set(WINDOW_SETTINGS))


def event_thresholds(config, threshold: float | None = None) -> np.ndarray:
    """
    Returns the threshold of each label: the given one, else the model's own (`high` of `event_detection`, or
    `decision_thresholds`), else 0.5.

    Args:
        config: configuration of a classifier
    """
    own = None if config.problem_type == "single_label_classification" else config.decision_thresholds
    own = (getattr(config, "event_detection", None) or {}).get("high", own)
    chosen = threshold if threshold is not None else DEFAULT_THRESHOLD if own is None else own
    return np.broadcast_to(np.asarray(chosen, dtype=np.float64), config.num_labels)
