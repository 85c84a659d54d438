"""Chooses how events are found in scores: median filter, two thresholds, shortest event and gap of each label."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from ..base.detection_scores import counter
from ..base.event_detection import counts_in_unsure, find_events, median_filtered, times_of
from ..data.events import Event
from .arguments import POSTPROCESSING_METRICS
from .recordings import Stretch

MEDIANS_S = (0.0, 0.1, 0.2, 0.36, 0.6, 1.0, 1.6)  # lengths that the filter may have
THRESHOLDS = np.arange(1, 20) / 20
LOWS = (1.0, 0.75, 0.5, 0.25)  # second thresholds, as shares of the first
GAPS_S = (0.0, 0.1, 0.2, 0.5, 1.0)
DURATIONS = (0.0, 0.25, 0.5)  # shortest events, as shares of the shortest tenth of the annotated ones
BORDERS = tuple(itertools.product(LOWS, GAPS_S, DURATIONS))
OFFSET_SHARE = 0.2  # of an event's length, by which its offset may differ (DCASE)


def choose_settings(
    scores: Sequence[np.ndarray],
    edges_s: Sequence[np.ndarray],
    stretches: Sequence[Stretch],
    labels: Sequence[str],
    collar_s: float,
    metric: str = POSTPROCESSING_METRICS[0],
) -> dict | None:
    """
    Returns the `event_detection` of a configuration with the highest F1, found in two steps, each of which tries all of
    its grid: filter and threshold, then the second threshold, gap and shortest event.

    All labels share the settings with the highest mean F1. A label has its own where they are better by more than a
    standard error of both F1 (of a proportion of its events, with two hits and two misses added: Agresti and Coull,
    1998). The few events of a rare label fit almost any setting.

    Args:
        scores: per recording (frames, labels)
        edges_s: per recording (frames + 1,), in seconds
        stretches: the recordings with their events
        collar_s: of `event_f1`
        metric: one of `POSTPROCESSING_METRICS`

    Returns:
        setting -> a value per label, and the metric; `None` if no label has an event
    """
    count = counter(metric.removesuffix("_f1"), collar_s, OFFSET_SHARE)
    hop_s = float(np.median(np.concatenate([np.diff(edges) for edges in edges_s])))
    columns = []
    for index, label in enumerate(labels):
        wanted = [times_of([event for event in one.events if event.label == label]) for one in stretches]
        if any(map(len, wanted)):
            columns.append(_Column(index, [own[:, index] for own in scores], edges_s, wanted, stretches, count))
    if not columns:
        return None
    filters = sorted({2 * round(length_s / hop_s / 2) + 1 for length_s in MEDIANS_S})
    first = np.stack([column.by_threshold(filters) for column in columns])  # (labels, filters, thresholds)
    shared = _best_threshold(first.mean(axis=0))
    second = np.stack([column.by_border(filters[shared[0]], THRESHOLDS[shared[1]]) for column in columns])
    trial = int(second.mean(axis=0).argmax())
    rows = {}
    for column, grid, f1 in zip(columns, first, second[:, trial]):
        rows[column.index] = column.settings(filters[shared[0]], THRESHOLDS[shared[1]], trial)
        own = _best_threshold(grid)
        borders = column.by_border(filters[own[0]], THRESHOLDS[own[1]])
        if _interval(borders.max(), column.num_events)[0] > _interval(f1, column.num_events)[1]:
            rows[column.index] = column.settings(filters[own[0]], THRESHOLDS[own[1]], int(borders.argmax()))
    short_s = np.median([column.short_s for column in columns])
    others = _settings(filters[shared[0]], THRESHOLDS[shared[1]], trial, short_s)  # of labels without events
    rows = [rows.get(index, others) for index in range(len(labels))]
    return {name: [row[name] for row in rows] for name in others} | {"metric": metric}


class _Column:
    """Scores the settings of one label."""

    def __init__(self, index: int, scores: list[np.ndarray], edges_s, wanted: list[np.ndarray], stretches, count):
        self.index, self.scores = index, scores
        self.parts = (edges_s, wanted, [times_of(one.unsure) for one in stretches], count)
        self.num_events = sum(map(len, wanted))
        self.short_s = float(np.quantile(np.diff(np.concatenate(wanted), axis=1), 0.1))

    def by_threshold(self, filters: list[int]) -> np.ndarray:
        """Returns the F1 with each filter and threshold: (filters, thresholds)"""
        return np.stack([_f1(*count_right(self.filtered(steps), *self.parts, THRESHOLDS)) for steps in filters])

    def by_border(self, steps: int, high: float) -> np.ndarray:
        """Returns the F1 with each of `BORDERS`: (borders,)"""
        rows = [_settings(steps, high, place, self.short_s) for place in range(len(BORDERS))]
        names = ("high", "low", "max_gap_s", "min_duration_s")
        settings = [np.array([row[name] for row in rows]) for name in names]
        return _f1(*count_right(self.filtered(steps), *self.parts, *settings))

    def filtered(self, steps: int) -> list[np.ndarray]:
        return [median_filtered(own[:, None], steps)[:, 0] for own in self.scores]

    def settings(self, steps: int, high: float, place: int) -> dict:
        return _settings(steps, high, place, self.short_s)


def _settings(steps: int, high: float, place: int, short_s: float) -> dict:
    low, gap_s, share = BORDERS[place]
    return {
        "high": float(high),
        "low": float(high * low),
        "min_duration_s": round(float(short_s * share), 4),
        "max_gap_s": gap_s,
        "median_steps": steps,
    }


def _interval(share: float, count: int) -> tuple[float, float]:
    """Returns a standard error below and above a share of so many events."""
    middle = (share * count + 2) / (count + 4)
    error = np.sqrt(middle * (1 - middle) / (count + 4))
    return middle - error, middle + error


def _best_threshold(grid: np.ndarray) -> tuple[int, int]:
    """Returns the places of the best filter, the shortest of equally good ones, and of the best threshold with it."""
    place = int(np.argmax(grid.max(axis=1) > grid.max() - 1e-9))
    return place, _middle_of_best(grid[place])


def _middle_of_best(quality: np.ndarray) -> int:
    best = np.flatnonzero(quality >= quality.max() - 1e-9)
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[len(longest) // 2])


def _f1(right: np.ndarray, given: np.ndarray, total: int) -> np.ndarray:
    return 2 * right / np.maximum(given + total, 1)


def count_right(
    scores: list[np.ndarray],
    edges_s: Sequence[np.ndarray],
    wanted: list[np.ndarray],
    unsure: list[np.ndarray],
    count: Callable,
    high: np.ndarray,
    low: np.ndarray | None = None,
    max_gap_s: np.ndarray | None = None,
    min_duration_s: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """
    Returns how many events of one label are found rightly and at all, with each of several settings (settings,), and
    how many are annotated.

    All recordings are one sequence for the finder, so far apart that no gap joins them, and each setting is a label of
    its own.
    """
    longest_s = max(edges[-1] for edges in edges_s)
    apart_s = np.ceil(longest_s + np.max(0.0 if max_gap_s is None else max_gap_s)) + 1.0  # exact in multiples
    steps, starts_s, ends_s = [], [], []
    for index, (own, edges) in enumerate(zip(scores, edges_s)):
        begin_s = index * apart_s
        # Steps below every threshold, without duration: no event begins before the recording or goes on after it.
        steps += [[-1.0], own, [-1.0]]
        starts_s += [edges[:1] + begin_s, edges[:-1] + begin_s, edges[-1:] + begin_s]
        ends_s += [edges[:1] + begin_s, edges[1:] + begin_s, edges[-1:] + begin_s]
    column = np.concatenate(steps)[:, None]
    settings = {"low": low, "max_gap_s": 0.0 if max_gap_s is None else max_gap_s}
    settings["min_duration_s"] = 0.0 if min_duration_s is None else min_duration_s
    events = find_events(
        np.broadcast_to(column, (len(column), len(high))),
        range(len(high)),
        np.concatenate(starts_s),
        np.concatenate(ends_s),
        high,
        **settings,
    )
    found: dict[tuple, list[Event]] = {}
    for event in events:  # sorted by onset
        place = int(event.onset_s // apart_s)
        found.setdefault((event.label, place), []).append(event)
    right, given = np.zeros(len(high)), np.zeros(len(high))
    total = sum(count(times_of([]), times)[2] for times in wanted)
    for (setting, place), own in found.items():
        times = times_of(own) - place * apart_s
        counts = count(times[counts_in_unsure(times, unsure[place], wanted[place])], wanted[place])
        right[setting] += counts[0]
        given[setting] += counts[1]
    return right, given, total
