"""
Computes the metrics of sound event detection, with confidence intervals over recordings.

Each metric is a function of counts per recording, so that a resample of recordings only weights them. The definitions
are those of sed_eval (event-based and segment-based), psds_eval (intersection-based) and sed_scores_eval (PSDS over
all thresholds); the tests compare the numbers with theirs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ..data.events import Event
from .bootstrap import LEVEL, NUM_RESAMPLES, draw_weights, interval_of, mean_of_known, resamples_for
from .finite import check_scores

DECIMALS = 6  # of seconds: intersections are compared with shares of lengths
HOUR_S = 3600.0
MOST_ALARMS = 100.0  # per hour, up to which the area under a PSD ROC is computed


class Scenario(NamedTuple):
    """
    Sets up a PSDS (Bilen et al., ICASSP 2020), or an intersection-based F1.

    Args:
        detection: share of a detection that annotated events of its label must cover, or it is a false alarm (DTC)
        coverage: share of an annotated event that detections must cover, or it is missed (GTC)
        crossing: share of a false alarm that another label's events must cover, or it is no cross-trigger (CTTC)
        cross_weight: weight of cross-triggers among the false alarms; 0: they do not count more than others
    """

    detection: float
    coverage: float
    crossing: float = 1.0
    cross_weight: float = 0.0


# The scenarios of DCASE's task 4 since 2021, in which the deviation over the labels is subtracted with weight 1.
PSDS = {"psds1": Scenario(0.7, 0.7), "psds2": Scenario(0.1, 0.1, 0.3, 0.5)}
INTERSECTION = Scenario(0.5, 0.5)

Scores = Mapping[str, tuple[np.ndarray, np.ndarray]]
Annotations = Mapping[str, Iterable[Event]]


def detection_metrics(
    scores: Scores,
    annotations: Annotations,
    durations_s: Mapping[str, float],
    labels: Sequence[str],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    frame_scores: Scores | None = None,
) -> dict:
    """
    Returns the metrics that need no thresholds: PSDS 1 and 2, each over all labels (`psds1`) and as the mean of the
    values of single labels (`psds1_macro`, which leaves out the penalty for differences between labels), and the mean
    average precision of the frames. A frame is positive if an event of the label overlaps it.

    Events without duration are left out, and overlapping ones of one label are joined. Labels without events have no
    value and are left out of all means.

    Args:
        scores: recording -> scores (frames, labels), and the borders of the frames in seconds (frames + 1,)
        annotations: recording -> its events; of all recordings that have scores
        durations_s: recording -> its length
        num_resamples: most resamples of the recordings for the confidence intervals; many scores get fewer. 0: none
        frame_scores: those before a median filter, for the average precision of the frames; `None`: `scores`

    Returns:
        `metrics`, `per_class`, and `confidence_intervals` (`None` without resamples, and of one recording). A number is
        NaN where it is undefined

    Raises:
        InputError: a score is not finite.
        ValueError: shapes or recordings that do not fit, or an event with another label.
    """
    recordings, labels = list(scores), list(labels)
    durations = np.array([durations_s[name] for name in recordings], dtype=np.float64)
    wanted = [_by_label(annotations[name], labels, is_joined=True) for name in recordings]
    parts = _without_padding(scores, labels)
    num_resamples = min(num_resamples, resamples_for(sum(values.size for values, _ in parts)))
    weights = _resamples(len(recordings), num_resamples, seed)
    draws, per_class = {}, {}
    for name, scenario in PSDS.items():
        whole, single = _psds(parts, wanted, durations, scenario, weights)  # (resamples,), (labels, resamples)
        draws |= {name: whole, f"{name}_macro": mean_of_known(single)}
        per_class[name] = single[:, 0]
    if frame_scores is not None:
        parts = _without_padding({name: frame_scores[name] for name in recordings}, labels)
    precisions = _frame_precisions(parts, wanted, weights)
    draws["frame_mean_average_precision"] = mean_of_known(precisions)
    per_class["frame_ap"] = precisions[:, 0]
    return _described(draws, per_class, labels, weights)


def frame_mean_average_precision(scores: Scores, annotations: Annotations, labels: Sequence[str]) -> float:
    """Returns one of the metrics of `detection_metrics`, and raises what it raises."""
    wanted = [_by_label(annotations[name], list(labels), is_joined=True) for name in scores]
    precisions = _frame_precisions(_without_padding(scores, labels), wanted, np.ones((len(scores), 1)))
    return float(mean_of_known(precisions)[0])


def event_metrics(
    predicted: Annotations,
    annotations: Annotations,
    durations_s: Mapping[str, float] | None,
    labels: Sequence[str],
    collar_s: float = 0.2,
    offset_share: float = 0.2,
    segment_s: float = 1.0,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict:
    """
    Returns precision, recall and F1 of events, of segments and by intersection, over all decisions (`event_f1_micro`)
    and as means over the labels that are annotated (`event_f1_macro`); and the error rate of the segments.

    **Events** (sed_eval): a predicted event is right if its onset differs by at most the collar from that of an
    annotated one, and its offset by at most the collar or a share of the annotated length. Each event has one partner;
    as many as possible have one. **Segments** (sed_eval): a label is active in every segment that an event touches.
    **Intersection** (psds_eval): events of one label that overlap are joined, see `INTERSECTION`.

    Args:
        predicted, annotations: recording -> its events; of the same recordings
        durations_s: recording -> its length, for `false_alarms_per_hour`, of events; `None`: unknown
        collar_s: largest difference of onsets, in seconds
        offset_share: share of an annotated event's length by which its offset may differ
        segment_s: length of the segments in seconds

    Returns:
        see `detection_metrics`

    Raises:
        ValueError: other recordings on both sides, or an event with another label.
    """
    recordings, labels = list(annotations), list(labels)
    if set(predicted) != set(annotations):
        raise ValueError(f"other recordings are predicted than annotated: {sorted(set(predicted) ^ set(annotations))}")
    sides, joined = (
        [[_by_label(side[name], labels, is_joined) for name in recordings] for side in (predicted, annotations)]
        for is_joined in (False, True)
    )

    weights = _resamples(len(recordings), num_resamples, seed)
    segments, errors = _count_segments(*sides, segment_s)
    events = _counted(counter("event", collar_s, offset_share), *sides)
    draws, per_class = {}, {}
    for kind, counts in (
        ("event", events),
        ("segment", segments),
        ("intersection", _counted(_count_intersections, *joined)),
    ):
        sums = np.moveaxis(np.tensordot(counts, weights, axes=(0, 0)), 1, 0)  # (3, labels, resamples)
        micro, single = _rates(sums.sum(axis=1)), _rates(sums)
        for name in ("precision", "recall", "f1"):
            # A label that is annotated and never predicted counts as 0 in the mean of the precisions too.
            own = np.where(sums[2] > 0, np.nan_to_num(single[name]), np.nan)
            draws |= {f"{kind}_{name}_micro": micro[name], f"{kind}_{name}_macro": mean_of_known(own)}
            per_class[f"{kind}_{name}"] = single[name][:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        draws["segment_error_rate"] = _known(errors @ weights / (segments[..., 2].sum(axis=1) @ weights))
        right, given, wanted = segments.sum(axis=0).T
        per_class["segment_error_rate"] = _known((given + wanted - 2 * right) / wanted)
        if durations_s is not None:
            hours = np.array([durations_s[name] for name in recordings]) / HOUR_S
            alarms = (events[..., 1] - events[..., 0]).sum(axis=1)
            draws["false_alarms_per_hour"] = _known(alarms @ weights / (hours @ weights))
    per_class |= dict(zip(("predicted_events", "annotated_events"), events.sum(axis=0).T[1:].astype(int)))
    return _described(draws, per_class, labels, weights)


def _resamples(num_recordings: int, num_resamples: int, seed: int) -> np.ndarray:
    """Returns how often each recording counts, (recordings, 1 + resamples): first once each; no resamples of one."""
    drawn = draw_weights(np.arange(num_recordings), num_resamples, seed) if num_recordings > 1 and num_resamples else ()
    return np.concatenate([np.ones((num_recordings, 1)), *drawn], axis=1)


def _described(draws: dict, per_class: dict, labels: list[str], weights: np.ndarray) -> dict:
    """Returns the result of both functions. draws: metric -> its value and those of the resamples"""
    intervals = {name: values[1:][~np.isnan(values[1:])] for name, values in draws.items()}
    found = {name: interval_of(values) for name, values in intervals.items() if len(values)}
    return {
        "metrics": {name: float(values[0]) for name, values in draws.items()},
        "per_class": {
            label: {name: values[index].item() for name, values in per_class.items()}
            for index, label in enumerate(labels)
        },
        "confidence_intervals": None
        if weights.shape[1] == 1
        else {"level": LEVEL, "resamples": weights.shape[1] - 1, "resampled": "recordings", "intervals": found},
    }


def _without_padding(scores: Scores, labels: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the scores and borders of each recording, without frames after its end, which have no duration."""
    parts = []
    for name, (values, edges) in scores.items():
        fits = values.ndim == 2 and values.shape[1] == len(labels) and edges.shape == (len(values) + 1,)
        if not fits or (np.diff(edges) < 0).any():
            raise ValueError(f"{name}: scores {values.shape} and borders {edges.shape} do not fit {len(labels)} labels")
        check_scores(values)
        is_audio = np.diff(edges) > 0
        parts.append((values[is_audio], np.append(edges[:1], edges[1:][is_audio]).astype(np.float64)))
    return parts


def _by_label(events: Iterable[Event], labels: list[str], is_joined: bool = False) -> list[np.ndarray]:
    """Returns the times of each label's events by onset, (events, 2). is_joined: see `detection_metrics`"""
    places, found = {label: index for index, label in enumerate(labels)}, [[] for _ in labels]
    for event in sorted(events, key=lambda event: event[:2]):
        if event.label not in places:
            raise ValueError(f"an event has the label {event.label}, which is not among {', '.join(labels)}")
        own = found[places[event.label]]
        if is_joined and own and event.onset_s < own[-1][1]:
            own[-1][1] = max(own[-1][1], event.offset_s)
        elif not is_joined or event.offset_s > event.onset_s:
            own.append([event.onset_s, event.offset_s])
    return [np.array(own, dtype=np.float64).reshape(-1, 2) for own in found]


def _known(values: np.ndarray) -> np.ndarray:
    """Returns values with NaN for what was divided by zero."""
    return np.where(np.isfinite(values), values, np.nan)


def _rates(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1 of what is right, predicted and annotated, (3, ...); NaN for 0 / 0."""
    right, given, wanted = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"precision": right / given, "recall": right / wanted, "f1": 2 * right / (given + wanted)}


# ---- Events against events ----


def _counted(count: Callable[[np.ndarray, np.ndarray], tuple], found: list, wanted: list) -> np.ndarray:
    """Returns the counts of every recording and label: (recordings, labels, 3)"""
    return np.array([[count(*pair) for pair in zip(*sides)] for sides in zip(found, wanted)], dtype=np.float64)


def counter(
    kind: str, collar_s: float = 0.2, offset_share: float = 0.2, segment_s: float = 1.0
) -> Callable[[np.ndarray, np.ndarray], tuple[int, int, int]]:
    """
    Returns what counts how many events of one label in one recording are right, predicted and annotated.

    Args:
        kind: event, segment or intersection; the other settings are those of `event_metrics`

    Returns:
        a function of the times of predicted and annotated events, (events, 2) by onset
    """
    if kind == "event":
        return lambda found, wanted: (count_matches(found, wanted, collar_s, offset_share), len(found), len(wanted))
    if kind == "intersection":
        return lambda found, wanted: _count_intersections(*map(_joined, (found, wanted)))

    def count_segments(found: np.ndarray, wanted: np.ndarray) -> tuple[int, int, int]:
        counts, _ = _count_segments([[found]], [[wanted]], segment_s)
        return tuple(counts[0, 0].astype(int).tolist())

    return count_segments


def _joined(times: np.ndarray) -> np.ndarray:
    """Joins stretches (stretches, 2), by onset, that overlap, and leaves out those without duration."""
    times = times[times[:, 1] > times[:, 0]]
    until = np.maximum.accumulate(times[:, 1])
    first = np.flatnonzero(np.append(True, times[1:, 0] >= until[:-1])) if len(times) else np.zeros(0, dtype=int)
    return np.stack([times[first, 0], until[np.append(first[1:], len(times))[: len(first)] - 1]], axis=1)


def count_matches(found: np.ndarray, wanted: np.ndarray, collar_s: float, offset_share: float) -> int:
    """Returns the largest number of pairs that are near each other. found, wanted: (events, 2), by onset"""
    return len(match_events(found, wanted, collar_s, offset_share))


def match_events(found: np.ndarray, wanted: np.ndarray, collar_s: float, offset_share: float) -> np.ndarray:
    """
    Returns as many pairs as possible that are near each other, (pairs, 2): places in `found` and in `wanted`.

    found, wanted: (events, 2), by onset
    """
    if not len(found) or not len(wanted):
        return np.zeros((0, 2), dtype=int)
    reach = collar_s + 1e-6  # of the candidates; the comparison below is exact
    first, stop = (
        np.searchsorted(found[:, 0], wanted[:, 0] + side * reach, side=end)
        for side, end in ((-1, "left"), (1, "right"))
    )
    rows = np.repeat(np.arange(len(wanted)), stop - first)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    limits = np.maximum(collar_s, offset_share * (wanted[:, 1] - wanted[:, 0]))
    differences = np.abs(wanted[rows] - found[columns])
    is_near = (differences[:, 0] <= collar_s) & (differences[:, 1] <= limits[rows])
    rows, columns = rows[is_near], columns[is_near]
    graph = csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(wanted), len(found)))
    partners = maximum_bipartite_matching(graph, perm_type="column")  # (wanted,), -1: none
    return np.stack([partners, np.arange(len(wanted))], axis=1)[partners >= 0]


def _count_segments(found: list, wanted: list, segment_s: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the counts of active segments, (recordings, labels, 3), and of errors, (recordings,): in a segment where
    more labels are predicted than annotated or the other way round, a wrong one takes the place of a missing one.
    """
    counts, errors = [], []
    for sides in zip(found, wanted):
        most = max((times[:, 1].max(initial=0) for own in sides for times in own), default=0)
        rolls = [_roll(own, int(np.ceil(most / segment_s)) + 1, segment_s) for own in sides]  # (segments, labels)
        right = rolls[0] & rolls[1]
        counts.append(np.stack([roll.sum(axis=0) for roll in (right, *rolls)], axis=-1))
        errors.append((np.maximum(*(roll.sum(axis=1) for roll in rolls)) - right.sum(axis=1)).sum())
    return np.array(counts, dtype=np.float64), np.array(errors, dtype=np.float64)


def _roll(times: list[np.ndarray], num_segments: int, segment_s: float) -> np.ndarray:
    """Returns which label is active in which segment: (segments, labels)"""
    roll = np.zeros((num_segments, len(times)), dtype=bool)
    for label, own in enumerate(times):
        starts = np.floor(own[:, 0] / segment_s).astype(int)
        for start, stop in zip(starts, np.ceil(own[:, 1] / segment_s).astype(int)):
            roll[start:stop, label] = True
    return roll


def _count_intersections(found: np.ndarray, wanted: np.ndarray) -> tuple[int, int, int]:
    lengths = found[:, 1] - found[:, 0]
    is_relevant = _reaches(_covered(found, wanted), INTERSECTION.detection, lengths)
    covered = _covered(wanted, found[is_relevant])
    hits = int(_reaches(covered, INTERSECTION.coverage, wanted[:, 1] - wanted[:, 0]).sum())
    return hits, hits + int((~is_relevant).sum()), len(wanted)


def _covered(times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the seconds of each stretch (stretches, 2) that others cover, (others, 2), which do not overlap."""
    if not len(others):
        return np.zeros(len(times))
    places = others.ravel()
    sums = np.concatenate([[0.0], np.repeat(np.cumsum(others[:, 1] - others[:, 0]), 2)[:-1]])
    until = np.interp(times, places, sums)
    return until[:, 1] - until[:, 0]


def _reaches(covered: np.ndarray, share: float, lengths: np.ndarray) -> np.ndarray:
    return np.round(covered, DECIMALS) >= np.round(share * lengths, DECIMALS)


# ---- Scores against events, over all thresholds ----


def _psds(
    parts: list, wanted: list, durations: np.ndarray, scenario: Scenario, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the PSDS of all labels (resamples,), and of single ones (labels, resamples).

    Args:
        parts: per recording, scores (frames, labels) and borders (frames + 1,)
        wanted: per recording, the times of each label's events
        durations: (recordings,), in seconds
        weights: (recordings, resamples)
    """
    numbers = np.array([[len(times) for times in own] for own in wanted])  # (recordings, labels)
    lengths = np.array([[(times[:, 1] - times[:, 0]).sum() for times in own] for own in wanted])
    is_known = numbers.sum(axis=0) > 0
    curves = {label: _Changes(parts, wanted, label, scenario) for label in np.flatnonzero(is_known)}
    rates = HOUR_S / (durations @ weights)  # (resamples,)
    num_others = max(len(curves) - 1, 1)
    crossing = (
        HOUR_S * scenario.cross_weight / num_others / np.maximum(lengths.T @ weights, 1e-12)
    )  # (labels, resamples)
    totals = numbers.T @ weights  # (labels, resamples)
    single = np.full((len(is_known), weights.shape[1]), np.nan)
    whole = np.full(weights.shape[1], np.nan)
    for index in range(weights.shape[1]):
        steps = []
        for label, changes in curves.items():
            if totals[label, index]:
                alarms, hits = changes.curve(weights[:, index], rates[index], crossing[:, index])
                steps.append((alarms, hits / totals[label, index]))
                single[label, index] = _area(*steps[-1])
        if steps:
            alarms = np.unique(np.concatenate([own for own, _ in steps]))
            values = [rates_of[np.searchsorted(own, alarms, side="right") - 1] for own, rates_of in steps]
            whole[index] = _area(alarms, np.maximum(np.mean(values, axis=0) - np.std(values, axis=0), 0))
    return whole, single


def _area(alarms: np.ndarray, values: np.ndarray) -> float:
    """Returns the area under a staircase up to `MOST_ALARMS`, as a share. alarms: where it changes, from 0 on"""
    return float(values @ np.diff(alarms, append=MOST_ALARMS) / MOST_ALARMS)


class _Changes:
    """
    Holds how hits, false alarms and cross-triggers of a label change where the threshold falls below a score.

    Above a threshold the frames of a recording form stretches. Each stretch appears at its lowest score, and it
    disappears in a longer one at the higher of the scores beside it.
    """

    def __init__(self, parts: list, wanted: list, label: int, scenario: Scenario):
        self.rows = []  # levels, recordings, changes of the hits, of the alarms, labels that are crossed or -1
        numbers = [len(values) for values, _ in parts]
        recordings = np.repeat(np.arange(len(parts)), numbers)
        scores = np.concatenate([values[:, label] for values, _ in parts]).astype(np.float64)
        before = np.where(np.diff(recordings, prepend=-1) > 0, -np.inf, np.roll(scores, 1))
        begins = scores > before  # a stretch begins here while the threshold is between both
        self._add(recordings[begins], scores[begins], before[begins], alarms=1)
        own_scores = np.split(scores, np.cumsum(numbers)[:-1])
        for recording, (own, (_, edges), times) in enumerate(zip(own_scores, parts, wanted)):
            others = [other for other, own in enumerate(times) if len(own) and other != label]
            has_crossings = scenario.cross_weight and others
            if not len(own) or (not len(times[label]) and not has_crossings):
                continue
            first, stop, levels, below = _stretches(own)
            bounds = np.stack([edges[first], edges[stop]], axis=1)
            spans = bounds[:, 1] - bounds[:, 0]
            is_relevant = _reaches(_covered(bounds, times[label]), scenario.detection, spans)
            self._add(recording, levels[is_relevant], below[is_relevant], alarms=-1)
            for onset_s, offset_s in times[label]:
                near = is_relevant & (bounds[:, 0] < offset_s) & (bounds[:, 1] > onset_s)
                shared = np.minimum(bounds[near, 1], offset_s) - np.maximum(bounds[near, 0], onset_s)
                enough = np.round(scenario.coverage * (offset_s - onset_s), DECIMALS)
                self._add_hits(recording, levels[near], below[near], shared, enough)
            if has_crossings:
                for other in others:
                    is_crossing = ~is_relevant & _reaches(_covered(bounds, times[other]), scenario.crossing, spans)
                    self._add(recording, levels[is_crossing], below[is_crossing], alarms=1, crossed=other)
        columns = [np.concatenate(column) for column in zip(*self.rows)]
        order = np.argsort(-columns[0], kind="stable")
        levels, self.recordings, self.hits, self.alarms, self.crossed = (column[order] for column in columns)
        self.recordings, self.crossed = self.recordings.astype(int), self.crossed.astype(int)
        self.ends = np.flatnonzero(np.diff(levels, append=-np.inf))  # the last change of each level
        del self.rows

    def _add(self, recordings, levels: np.ndarray, below: np.ndarray, alarms: int, crossed: int = -1):
        """Adds what holds from the levels on until the threshold falls below the scores `below`."""
        is_kept = np.isfinite(below)
        recordings = np.broadcast_to(recordings, levels.shape)
        places, recordings = (np.append(one, two[is_kept]) for one, two in ((levels, below), (recordings, recordings)))
        signs = np.repeat([1, -1], [len(levels), is_kept.sum()])
        self.rows.append((places, recordings, 0 * signs, alarms * signs, crossed * np.abs(signs)))

    def _add_hits(self, recording: int, levels, below, shared: np.ndarray, enough: float):
        """Adds the levels at which an annotated event becomes covered enough, or ceases to be."""
        is_kept = np.isfinite(below)
        places = np.concatenate([levels, below[is_kept]])
        changes = np.concatenate([shared, -shared[is_kept]])
        order = np.argsort(-places, kind="stable")
        places, covered = places[order], np.cumsum(changes[order])
        ends = np.flatnonzero(np.diff(places, append=-np.inf))
        is_hit = np.round(covered[ends], DECIMALS) >= enough
        begins = np.diff(is_hit.astype(int), prepend=0)
        changed = np.flatnonzero(begins)
        same = np.ones(len(changed))
        self.rows.append((places[ends][changed], recording * same, begins[changed] * same, 0 * same, -same))

    def curve(self, weights: np.ndarray, rate: float, crossing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Returns false alarms per hour, rising from 0 to at most `MOST_ALARMS`, and the most hits with that many.

        Args:
            weights: (recordings,), how often each counts
            rate: alarms per hour that one alarm stands for
            crossing: (labels,), the same of one more cross-trigger with a label
        """
        own = weights[self.recordings]
        costs = np.where(self.crossed < 0, rate, crossing[self.crossed])
        hits = np.cumsum(own * self.hits)[self.ends]
        alarms = np.maximum(np.cumsum(own * self.alarms * costs)[self.ends], 0)
        is_near = alarms <= MOST_ALARMS
        alarms, hits = np.append(alarms[is_near], 0.0), np.append(hits[is_near], 0.0)
        order = np.lexsort((-hits, alarms))
        alarms, hits = alarms[order], np.maximum.accumulate(hits[order])
        steps = np.concatenate([[True], np.diff(hits) > 0])
        return alarms[steps], hits[steps]


def _stretches(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Returns the stretches of frames that thresholds leave: first frame, frame after the last, lowest score, and the
    higher of the scores beside it (minus infinity: none).
    """
    found, open_ = [], []  # open_: (first frame, level) of the stretches that still go on, with rising levels
    for place, score in enumerate([*scores.tolist(), -np.inf]):
        first = place
        while open_ and open_[-1][1] > score:
            first, level = open_.pop()
            found.append((first, place, level, max(score, open_[-1][1] if open_ else -np.inf)))
        if not open_ or open_[-1][1] < score:
            open_.append((first, score))
    first, stop, levels, below = zip(*found)
    return np.array(first), np.array(stop), np.array(levels), np.array(below)


def _frame_precisions(parts: list, wanted: list, weights: np.ndarray) -> np.ndarray:
    """Returns the average precision of each label over all frames: (labels, resamples), NaN where undefined."""
    recordings = np.repeat(np.arange(len(parts)), [len(values) for values, _ in parts])
    found = np.full((parts[0][0].shape[1], weights.shape[1]), np.nan)
    for label in range(len(found)):
        scores = np.concatenate([values[:, label] for values, _ in parts])
        is_positive = np.concatenate([_overlapped(edges, times[label]) for (_, edges), times in zip(parts, wanted)])
        thresholds = np.unique(scores[is_positive])[::-1]
        ranks = np.searchsorted(-thresholds, -scores)  # the highest threshold that the score reaches
        counts = []
        for chosen in (ranks < len(thresholds), is_positive):
            places = (ranks[chosen], recordings[chosen])
            shape = (len(thresholds), len(parts))
            counts.append(csr_array((np.ones(int(chosen.sum())), places), shape=shape) @ weights)
        total = counts[1].sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precisions = np.nan_to_num(np.cumsum(counts[1], axis=0) / np.cumsum(counts[0], axis=0))
            found[label] = np.where(total > 0, (counts[1] * precisions).sum(axis=0) / total, np.nan)
    return found


def _overlapped(edges: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns which frames an event overlaps by more than a rounding error: (frames,)"""
    bounds = np.stack([edges[:-1], edges[1:]], axis=1)
    return np.round(_covered(bounds, times), DECIMALS) > 0
