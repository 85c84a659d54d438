"""Chooses how events are found in scores: median filter, two thresholds, shortest event and gap of each label."""

from collections.abc import Callable, Sequence

import numpy as np

from ..base.detection_scores import counter
from ..base.event_detection import DEFAULT_THRESHOLD, find_events, median_filtered, without_unsure
from ..data.events import Event
from .arguments import POSTPROCESSING_METRICS
from .recordings import Stretch

MEDIANS_S = (0.0, 0.1, 0.2, 0.36, 0.6, 1.0, 1.6)  # lengths that the filter may have
THRESHOLDS = np.arange(1, 20) / 20
LOWS = (1.0, 0.75, 0.5, 0.25)  # second thresholds, as shares of the first
GAPS_S = (0.0, 0.1, 0.2, 0.5, 1.0)
DURATIONS = (0.0, 0.25, 0.5)  # shortest events, as shares of the shortest tenth of the annotated ones
APART_S = 1e5  # between two recordings
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
    Returns the `event_detection` of a configuration with the highest F1 of each label, found in two steps, each of which
    tries all of its grid: filter and threshold, then the second threshold, gap and shortest event. Labels without an
    event have the medians of the others.

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
    unsure = [one.unsure for one in stretches]
    hop_s = float(np.median(np.concatenate([np.diff(edges) for edges in edges_s])))
    chosen: dict[int, dict] = {}
    for index, label in enumerate(labels):
        own = [_times([event for event in one.events if event.label == label]) for one in stretches]
        if any(map(len, own)):
            chosen[index] = _choose([one[:, index] for one in scores], edges_s, own, unsure, hop_s, count)
    if not chosen:
        return None
    rows = [chosen.get(index) or _middle(list(chosen.values())) for index in range(len(labels))]
    return {name: [row[name] for row in rows] for name in rows[0]} | {"metric": metric}


def _middle(rows: list[dict]) -> dict:
    found = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    return found | {"median_steps": 2 * int(found["median_steps"] // 2) + 1, "low": min(found["low"], found["high"])}


def _choose(
    scores: list[np.ndarray], edges_s, wanted: list[np.ndarray], unsure: list, hop_s: float, count: Callable
) -> dict:
    best, filtered = (-1.0, 1, DEFAULT_THRESHOLD), scores
    for steps in sorted({2 * round(length_s / hop_s / 2) + 1 for length_s in MEDIANS_S}):
        own = [median_filtered(one[:, None], steps)[:, 0] for one in scores]
        quality = _qualities(own, edges_s, wanted, unsure, count, THRESHOLDS)
        # Of thresholds that are equally good, the middle one.
        place = _middle_of_best(quality)
        if quality[place] > best[0] + 1e-9:
            best, filtered = (quality[place], steps, float(THRESHOLDS[place])), own
    quality, steps, high = best
    short_s = float(np.quantile(np.diff(np.concatenate(wanted), axis=1), 0.1))
    trials = [(high * low, gap_s, short_s * share) for low in LOWS for gap_s in GAPS_S for share in DURATIONS]
    low, gap_s, duration_s = map(np.array, zip(*trials))
    settings = (np.full(len(trials), high), low, gap_s, duration_s)
    place = int(_qualities(filtered, edges_s, wanted, unsure, count, *settings).argmax())
    return {
        "high": high,
        "low": float(low[place]),
        "min_duration_s": round(float(duration_s[place]), 4),
        "max_gap_s": float(gap_s[place]),
        "median_steps": steps,
    }


def _middle_of_best(quality: np.ndarray) -> int:
    best = np.flatnonzero(quality >= quality.max() - 1e-9)
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[len(longest) // 2])


def _qualities(
    scores: list[np.ndarray],
    edges_s: Sequence[np.ndarray],
    wanted: list[np.ndarray],
    unsure: list,
    count: Callable,
    high: np.ndarray,
    low: np.ndarray | None = None,
    max_gap_s: np.ndarray | None = None,
    min_duration_s: np.ndarray | None = None,
) -> np.ndarray:
    """
    Returns the F1 of one label with each of several settings: (settings,)

    All recordings are one sequence for the finder, a long time apart, and each setting is a label of its own.
    """
    steps, starts_s, ends_s = [], [], []
    for index, (own, edges) in enumerate(zip(scores, edges_s)):
        begin_s = index * APART_S
        steps += [own, [-1.0]]  # a step below every threshold ends what goes on
        starts_s += [edges[:-1] + begin_s, [edges[-1] + begin_s]]
        ends_s += [edges[1:] + begin_s, [edges[-1] + begin_s]]
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
        place = int(event.onset_s // APART_S)
        moved = event._replace(onset_s=event.onset_s - place * APART_S, offset_s=event.offset_s - place * APART_S)
        found.setdefault((event.label, place), []).append(moved)
    right, given = np.zeros(len(high)), np.zeros(len(high))
    total = sum(count(_times([]), times)[2] for times in wanted)
    for (setting, place), own in found.items():
        counts = count(_times(without_unsure(own, unsure[place])), wanted[place])
        right[setting] += counts[0]
        given[setting] += counts[1]
    return 2 * right / np.maximum(given + total, 1)


def _times(events: Sequence[Event]) -> np.ndarray:
    """Returns onsets and offsets, (events, 2)"""
    return np.array([event[:2] for event in events], dtype=np.float64).reshape(-1, 2)
