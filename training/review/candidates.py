"""
Chooses what of annotated, or of unlabelled, recordings is worth a look: where a model and the annotations disagree, and
where the model is not sure.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..base.event_detection import EventFinder, event_scores, without_unsure
from ..data.annotations import AnnotatedRecording
from ..data.events import DECIMALS, Event
from ..data.labels import class_name
from ..errors import printable
from ..inference.scores import Classifier
from ..inference.shards import Part

NEAR = 0.25  # of `certainty`: what is nearer to the threshold is uncertain
FEW = 10  # annotated events below which a label is rare
MISSING, NOT_FOUND, OTHER = "missing annotation", "not found", "other label"
UNCERTAIN, RARE = "uncertain", "rare"
REASONS = (MISSING, NOT_FOUND, OTHER, UNCERTAIN, RARE)
SUSPECTED = REASONS[:3]  # errors of the annotations
MINUTE_S = 60.0


@dataclass(frozen=True)
class Candidate:
    """
    Holds what is worth a look.

    Args:
        recording: the name of the recording
        event: the times, the label in question, and its highest score
        reason: one of `REASONS`
        worth: see `worth_of`
        annotated: the annotated event in question; `None`: none
        evidence: the scores in the stretch, in words
        clip: path of a clip that was cut from the recording
    """

    recording: str
    event: Event
    reason: str
    worth: float
    annotated: Event | None = None
    evidence: str = ""
    clip: str = ""

    @property
    def order(self) -> tuple:
        """The best first; ties by name, time and label."""
        own = self.annotated or self.event
        return (-self.worth, self.recording, *self.event[:3], self.reason, *own[:3])


def certainty(score: float, threshold: float) -> float:
    """Returns how far a score is from its threshold: 1 at the score 1, 0 at the threshold, -1 at the score 0."""
    room = 1 - threshold if score > threshold else threshold
    return (score - threshold) / room if room else 0.0


def worth_of(reason: str, certainties: Sequence[float], num_annotated: int) -> float:
    """
    Returns how much a candidate is worth a look, from 0 to 2: the mean certainty of a disagreement, half of it for
    other events, 0.5 at a threshold; and up to twice as much for rare labels.

    Args:
        certainties: distances of the scores in question from their thresholds
        num_annotated: annotated events of the label
    """
    strength = sum(map(abs, certainties)) / len(certainties)
    if reason == UNCERTAIN:
        strength = (1 - strength / NEAR) / 2
    elif reason == RARE:
        strength /= 2
    return round(strength * (1 + FEW / (FEW + num_annotated)), 4)


class Stretches:
    """
    Tallies the scores in stretches of a recording whose steps (windows or frames) may come in parts. Steps count whose
    middles lie in a stretch; where there is none, the step whose middle is nearest to that of the stretch.

    Args:
        times: (onset, offset) of each stretch in seconds

    Attributes:
        highest, total: (stretches, labels)
        count: (stretches,), steps; 0: the stretch lies outside all steps
    """

    def __init__(self, times: Sequence[tuple[float, float]], num_labels: int):
        self.times = np.asarray(times, dtype=np.float64).reshape(-1, 2)
        self.highest = np.zeros((len(self.times), num_labels))
        self.total = np.zeros((len(self.times), num_labels))
        self.count = np.zeros(len(self.times), dtype=np.int64)
        self._distance_s = np.full(len(self.times), np.inf)  # of the nearest step, as long as none lies inside

    def add(self, scores: np.ndarray, starts_s: np.ndarray, ends_s: np.ndarray):
        """Reads the next steps: scores (steps, labels), and (steps,) times in order."""
        middles_s = (starts_s + ends_s) / 2
        onsets_s, offsets_s = self.times.T
        for place in np.flatnonzero((onsets_s <= ends_s[-1]) & (offsets_s >= starts_s[0])):
            first = np.searchsorted(middles_s, onsets_s[place], side="left")
            last = np.searchsorted(middles_s, offsets_s[place], side="right")
            if last > first:
                if np.isfinite(self._distance_s[place]):
                    self.total[place], self.count[place], self.highest[place] = 0.0, 0, 0.0
                self._distance_s[place] = -np.inf
                self.highest[place] = np.maximum(self.highest[place], scores[first:last].max(axis=0))
                self.total[place] += scores[first:last].sum(axis=0, dtype=np.float64)
                self.count[place] += last - first
                continue
            middle_s = self.times[place].mean()
            nearest = np.abs(middles_s - middle_s).argmin()
            if abs(middles_s[nearest] - middle_s) < self._distance_s[place]:
                self._distance_s[place] = abs(middles_s[nearest] - middle_s)
                self.highest[place] = self.total[place] = scores[nearest]
                self.count[place] = 1

    @property
    def mean(self) -> np.ndarray:
        return self.total / np.maximum(self.count, 1)[:, None]


def read_scores(
    classifier: Classifier, parts: Iterable[Part], failed: set[int]
) -> Iterator[tuple[str, bool, np.ndarray, np.ndarray, np.ndarray]]:
    """
    Yields the scores of recordings, part by part: name, whether it is the last part, scores (steps, labels), and the
    beginnings and ends of the steps in seconds.

    Args:
        failed: numbers of recordings to leave out
    """
    rate, num_labels = classifier.extractor.sampling_rate, len(classifier.labels.names)
    for part in parts:
        for segment, arrays in part.split():
            if segment.number in failed:
                continue
            if segment.rows:
                scores = classifier.probabilities(arrays["logits"])
                yield segment.name, segment.is_last, scores, arrays["start"] / rate, arrays["stop"] / rate
            else:
                yield segment.name, segment.is_last, np.zeros((0, num_labels)), np.zeros(0), np.zeros(0)


class Suggester:
    """
    Finds all candidates of recordings; memory holds a part of one, its annotated events, and the candidates.

    Args:
        classifier: gives the scores
        settings: of `EventFinder`
        recordings: name -> what is annotated; events of labels that the model lacks are not judged

    Raises:
        InputError: the model has no classes.
    """

    def __init__(self, classifier: Classifier, settings: Mapping, recordings: Mapping[str, AnnotatedRecording]):
        event_scores(np.zeros((0, len(classifier.labels.names))), classifier.labels)  # refuses a regression
        self.classifier, self.settings, self.recordings = classifier, dict(settings), recordings
        self.names = [class_name(name) for name in classifier.labels.names]
        self.places = {name: place for place, name in enumerate(self.names)}
        high = np.broadcast_to(np.asarray(self.settings["high"], dtype=np.float64), len(self.names))
        self.thresholds = dict(zip(self.names, high.tolist()))
        # Finds what stays below the threshold, but near to it.
        low = np.asarray(self.settings.get("low", high))
        lowered = {"high": high * (1 - NEAR), "low": np.minimum(low, high * (1 - NEAR))}
        self.lowered = self.settings | lowered
        self.counts = Counter(event.label for one in recordings.values() for event in one.events or ())

    def find(self, parts: Iterable[Part], failed: set[int]) -> Iterator[Candidate]:
        """Yields the candidates of all recordings but the failed ones."""
        finders = None
        for name, is_last, scores, starts_s, ends_s in read_scores(self.classifier, parts, failed):
            if finders is None:
                recording = self.recordings[name]
                own = {event[:3]: event for event in recording.events or () if event.label in self.places}
                judged = list(own.values())  # an event may be listed twice
                finders = [EventFinder(self.names, **own) for own in (self.settings, self.lowered)]
                found, near = [], []
                stretches = Stretches([event[:2] for event in judged], len(self.names))
            if len(scores):
                own_scores = event_scores(scores, self.classifier.labels)
                for finder, events in zip(finders, (found, near)):
                    events += finder.add(own_scores, starts_s, ends_s)
                stretches.add(scores, starts_s, ends_s)
            if is_last:
                found, near = (events + finder.finish() for finder, events in zip(finders, (found, near)))
                places = [self.places[event.label] for event in judged]
                highest = stretches.highest[np.arange(len(judged)), places].tolist()
                pairs = [(event, score) for event, score, n in zip(judged, highest, stretches.count) if n]
                yield from self.judge(name, found, near, pairs, recording)
                finders = None

    def judge(
        self,
        name: str,
        found: list[Event],
        near: list[Event],
        judged: list[tuple[Event, float]],
        recording: AnnotatedRecording,
    ) -> Iterator[Candidate]:
        """
        Yields the candidates of one recording. Annotated events that lie mostly in unsure stretches are none, but they
        still explain what is found.

        Args:
            found: events above their thresholds
            near: events found with lower thresholds
            judged: annotated events of labels that the model has, each with the highest score of its label
        """
        found, near = (without_unsure(events, recording.unsure) for events in (found, near))
        near = [event for event in near if event.score <= self.thresholds[event.label]]
        annotated = _Times(event for event, _ in judged)
        known = set(without_unsure([event for event, _ in judged], recording.unsure))
        others = [event for event in found if not annotated.overlapping(event, event.label).size]
        by_label, explained = _Times(others), set()
        for event, score in judged:
            certain = certainty(score, self.thresholds[event.label])
            shown = event._replace(score=score)
            if certain > NEAR:
                continue
            if certain > -NEAR:
                if event in known:
                    yield self._candidate(name, shown, UNCERTAIN, [certain], event)
                continue
            rivals = [other for other in by_label.near(event) if _is_half(event, other)]
            if rivals:
                best = max(rivals, key=lambda other: (_shared_s(event, other), other.score, other.label))
                explained |= {other for other in rivals if other.label == best.label}
                shown = event._replace(label=best.label, score=best.score)
                if event in known:
                    yield self._candidate(name, shown, OTHER, [certain, self._certainty(best)], event)
            elif event in known:
                yield self._candidate(name, shown, NOT_FOUND, [certain], event)
        for event in others:
            certain = self._certainty(event)
            if event in explained:
                continue
            if certain <= NEAR:
                yield self._candidate(name, event, UNCERTAIN, [certain])
            elif recording.events is not None:
                yield self._candidate(name, event, MISSING, [certain])
            elif self.counts[event.label] < FEW:
                yield self._candidate(name, event, RARE, [certain])
        above = _Times(found)
        for event in near:
            if not annotated.overlapping(event, event.label).size and not above.overlapping(event, event.label).size:
                yield self._candidate(name, event, UNCERTAIN, [self._certainty(event)])

    def _certainty(self, event: Event) -> float:
        return certainty(event.score, self.thresholds[event.label])

    def _candidate(self, name: str, event: Event, reason: str, certainties: list[float], annotated=None) -> Candidate:
        times = (round(time_s, DECIMALS) for time_s in event[:2])
        event = event._replace(**dict(zip(("onset_s", "offset_s"), times)))  # what tables hold
        labels = {event.label, event.label if annotated is None else annotated.label}
        worth = worth_of(reason, certainties, min(self.counts[label] for label in labels))
        return Candidate(name, event, reason, worth, annotated)

    def describe(self, candidates: Iterable[Candidate], parts: Iterable[Part], failed: set[int]) -> Iterator[Candidate]:
        """Yields the candidates with their evidence; those of recordings in the order of the parts."""
        own: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            own.setdefault(candidate.recording, []).append(candidate)
        stretches = None
        for name, is_last, scores, starts_s, ends_s in read_scores(self.classifier, parts, failed):
            if name not in own:
                continue
            if stretches is None:
                stretches = Stretches([one.event[:2] for one in own[name]], len(self.names))
            if len(scores):
                stretches.add(scores, starts_s, ends_s)
            if is_last:
                for place, one in enumerate(own[name]):
                    text = self.evidence(one, stretches.highest[place], stretches.mean[place])
                    yield replace(one, evidence=text)
                stretches = None

    def evidence(self, candidate: Candidate, highest: np.ndarray, mean: np.ndarray) -> str:
        """Returns the scores of the labels in question on one line. highest, mean: (labels,) in the stretch"""
        label = candidate.event.label
        roles = {} if candidate.annotated is None else {candidate.annotated.label: "annotated"}
        roles.setdefault(label, "found" if candidate.event.score > self.thresholds[label] else "near its threshold")
        best = self.names[int(highest.argmax())]
        roles.setdefault(best, "has the highest score")
        return "; ".join(
            f"{printable(name)} ({role}): highest {highest[place]:.2f}, mean {mean[place]:.2f}, threshold "
            f"{self.thresholds[name]:.2f}"
            for name, role in roles.items()
            for place in [self.places[name]]
        )


class _Times:
    """Holds the times of events by label, to find what overlaps another event."""

    def __init__(self, events: Iterable[Event]):
        self.events: dict[str, list[Event]] = {}
        for event in events:
            self.events.setdefault(event.label, []).append(event)
        self.times = {label: np.array([event[:2] for event in own]) for label, own in self.events.items()}

    def overlapping(self, event: Event, label: str) -> np.ndarray:
        """Returns the indices of the label's events that overlap an event."""
        if label not in self.times:
            return np.zeros(0, dtype=int)
        onsets_s, offsets_s = self.times[label].T
        shared_s = np.minimum(offsets_s, event.offset_s) - np.maximum(onsets_s, event.onset_s)
        # Events without duration share no time, but may lie inside.
        is_point = (event.offset_s == event.onset_s) | (offsets_s == onsets_s)
        return np.flatnonzero((shared_s > 0) | (is_point & (shared_s >= 0)))

    def near(self, event: Event) -> Iterator[Event]:
        """Yields the events of all labels that overlap an event."""
        for label, own in self.events.items():
            yield from (own[place] for place in self.overlapping(event, label))


def _shared_s(one: Event, two: Event) -> float:
    return min(one.offset_s, two.offset_s) - max(one.onset_s, two.onset_s)


def _is_half(one: Event, two: Event) -> bool:
    """Returns whether two events share at least half of the shorter one."""
    return _shared_s(one, two) >= min(one.offset_s - one.onset_s, two.offset_s - two.onset_s) / 2


def choose(candidates: Iterable[Candidate], limit: int) -> list[Candidate]:
    """
    Returns the best candidates in order. At most a tenth of `limit` begins in the same minute of a recording, and at
    most a half has the same label, as long as others are left.
    """
    kept, rest, minutes, labels = [], [], Counter(), Counter()
    for one in sorted(candidates, key=lambda one: one.order):
        minute = (one.recording, int(one.event.onset_s // MINUTE_S))
        is_varied = minutes[minute] < max(limit // 10, 1) and labels[one.event.label] < max(limit // 2, 1)
        if is_varied and len(kept) < limit:
            minutes[minute] += 1
            labels[one.event.label] += 1
            kept.append(one)
        else:
            rest.append(one)
    return sorted([*kept, *rest[: limit - len(kept)]], key=lambda one: one.order)
