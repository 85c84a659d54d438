"""Tests the metrics of sound events: published numbers, plain loops over the definitions, and weights of recordings."""

import itertools

import numpy as np
import pytest
from golden import FIXTURES
from random_events import random_annotations, random_scores
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score

from training.base import detection_scores as module
from training.base.detection_scores import PSDS, detection_metrics, event_metrics, frame_mean_average_precision
from training.data.events import Event
from training.errors import InputError

LABELS = ["dog", "rain", "voice"]
ERRORS = ("segment_error_rate", "false_alarms_per_hour")


def example(seed: int = 0, num_recordings: int = 4):
    rng = np.random.default_rng(seed)
    durations_s = {f"{index}.wav": float(rng.integers(3, 9)) for index in range(num_recordings)}
    annotations = random_annotations(rng, durations_s, LABELS)
    annotations["0.wav"] = annotations["0.wav"] or [Event(0.5, 1.5, "dog")]
    scores = random_scores(rng, durations_s, annotations, LABELS, is_coarse=seed % 2 == 0)
    return durations_s, annotations, scores, random_annotations(rng, durations_s, LABELS, near=annotations)


# ---- The numbers of others ----


@pytest.mark.golden
def test_psds_is_what_the_authors_of_pretrainedsed_compute():
    stored = np.load(FIXTURES / "asit_psed.npz")
    labels = [str(index) for index in range(5)]
    scores = {str(clip): (values, np.arange(251) * 0.04) for clip, values in enumerate(stored["psds_scores"])}
    annotations = {name: [] for name in scores}
    for clip, label, onset_s, offset_s in stored["psds_ground_truth"]:
        annotations[str(int(clip))].append(Event(onset_s, offset_s, labels[int(label)]))
    found = detection_metrics(scores, annotations, dict.fromkeys(scores, 10.0), labels, num_resamples=0)
    assert found["metrics"]["psds1"] == pytest.approx(float(stored["psds1"]), abs=1e-12)
    assert found["metrics"]["psds1_macro"] == pytest.approx(float(stored["psds1_macro"]), abs=1e-12)
    single = [found["per_class"][label]["psds1"] for label in labels]
    np.testing.assert_allclose(single, stored["psds1_per_class"], atol=1e-12)


# ---- The definitions, as plain loops ----


def stretches_above(values: np.ndarray, edges: np.ndarray, threshold: float) -> list[tuple[float, float]]:
    found, first = [], None
    for place, value in enumerate([*values, -np.inf]):
        if value >= threshold and first is None:
            first = place
        elif value < threshold and first is not None:
            found.append((edges[first], edges[place]))
            first = None
    return found


def overlap(one, two) -> float:
    return max(0.0, min(one[1], two[1]) - max(one[0], two[0]))


def curves(scores, annotations, durations_s, scenario) -> dict[str, list[tuple[float, float]]]:
    """Label -> (false alarms per hour, hits per annotated event) at every threshold."""
    hours = sum(durations_s.values()) / 3600
    events = [event for own in annotations.values() for event in own]
    labels = [label for label in LABELS if any(event.label == label for event in events)]
    lengths_s = {
        label: sum(event.offset_s - event.onset_s for event in events if event.label == label) for label in labels
    }
    found = {}
    for label in labels:
        column, points = LABELS.index(label), [(0.0, 0.0)]
        for threshold in np.unique(np.concatenate([values[:, column] for values, _ in scores.values()])):
            alarms, hits, crossings = 0, 0, dict.fromkeys(labels, 0)
            for name, (values, edges) in scores.items():
                right = []
                for stretch in stretches_above(values[:, column], edges, threshold):
                    length = stretch[1] - stretch[0]
                    shared = {
                        other: sum(overlap(stretch, e) for e in annotations[name] if e.label == other)
                        for other in labels
                    }
                    if shared[label] >= scenario.detection * length - 1e-7:
                        right.append(stretch)
                        continue
                    alarms += 1
                    for other in set(labels) - {label}:
                        crossings[other] += shared[other] >= scenario.crossing * length - 1e-7
                for event in annotations[name]:
                    covered = sum(overlap(stretch, event) for stretch in right)
                    enough = scenario.coverage * (event.offset_s - event.onset_s) - 1e-7
                    hits += event.label == label and covered >= enough
            crossed = [crossings[other] / lengths_s[other] * 3600 for other in labels if other != label]
            cost = scenario.cross_weight * np.mean(crossed) if scenario.cross_weight and crossed else 0
            points.append((alarms / hours + cost, hits / sum(event.label == label for event in events)))
        found[label] = points
    return found


def covered(edges: np.ndarray, events) -> np.ndarray:
    """Which label has an event in which frame: (frames, labels)"""
    frames = list(itertools.pairwise(edges))
    return np.array(
        [[any(e.label == label and overlap(f, e) > 1e-6 for e in events) for label in LABELS] for f in frames]
    )


def area(points_of_labels: list[list[tuple[float, float]]]) -> float:
    """Under the mean minus the deviation of the best hits with at most so many alarms, up to 100 per hour."""
    borders = sorted({alarms for points in points_of_labels for alarms, _ in points if alarms <= 100} | {100.0})
    total = 0.0
    for left, right in itertools.pairwise(borders):
        best = [max(hits for alarms, hits in points if alarms <= left + 1e-9) for points in points_of_labels]
        total += (right - left) * max(np.mean(best) - np.std(best), 0)
    return total / 100


@pytest.mark.parametrize("seed", range(4))
def test_psds_is_its_definition(seed):
    durations_s, annotations, scores, _ = example(seed)
    durations_s = {
        name: 40 * duration_s for name, duration_s in durations_s.items()
    }  # several alarms below 100 per hour
    found = detection_metrics(scores, annotations, durations_s, LABELS, num_resamples=0)
    for name, scenario in PSDS.items():
        expected = curves(scores, annotations, durations_s, scenario)
        assert found["metrics"][name] == pytest.approx(area(list(expected.values())), abs=1e-9)
        for label in LABELS:
            single = area([expected[label]]) if label in expected else np.nan
            assert found["per_class"][label][name] == pytest.approx(single, abs=1e-9, nan_ok=True)
        known = [area([points]) for points in expected.values()]
        assert found["metrics"][f"{name}_macro"] == pytest.approx(np.mean(known), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_frame_precision_is_that_of_scikit_learn(seed):
    durations_s, annotations, scores, _ = example(seed)
    metrics = detection_metrics(scores, annotations, durations_s, LABELS, num_resamples=0)
    found, mean = metrics["per_class"], metrics["metrics"]["frame_mean_average_precision"]
    assert frame_mean_average_precision(scores, annotations, LABELS) == mean
    filtered = {name: (np.full_like(values, 0.5), edges) for name, (values, edges) in scores.items()}
    others = detection_metrics(filtered, annotations, durations_s, LABELS, num_resamples=0, frame_scores=scores)
    assert others["metrics"]["frame_mean_average_precision"] == mean
    without = detection_metrics(filtered, annotations, durations_s, LABELS, num_resamples=0)["metrics"]
    assert others["metrics"] == without | {"frame_mean_average_precision": mean}
    for column, label in enumerate(LABELS):
        values = np.concatenate([values[:, column] for values, _ in scores.values()])
        targets = np.concatenate([covered(edges, annotations[name])[:, column] for name, (_, edges) in scores.items()])
        expected = average_precision_score(targets, values) if targets.any() else np.nan
        assert found[label]["frame_ap"] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_events_segments_and_intersections_are_their_definitions(seed):
    durations_s, wanted, _, predicted = example(seed, num_recordings=6)
    found = event_metrics(predicted, wanted, durations_s, LABELS, num_resamples=0)
    counts = {kind: np.zeros((len(LABELS), 3)) for kind in ("event", "segment", "intersection")}
    errors = 0
    for name in wanted:
        active = []
        for row, label in enumerate(LABELS):
            ours, theirs = ([e for e in side[name] if e.label == label] for side in (predicted, wanted))
            near = np.array(
                [
                    [
                        abs(one.onset_s - two.onset_s) <= 0.2
                        and abs(one.offset_s - two.offset_s) <= max(0.2, 0.2 * (two.offset_s - two.onset_s))
                        for one in ours
                    ]
                    for two in theirs
                ]
            ).reshape(len(theirs), len(ours))
            pairs = near[linear_sum_assignment(near, maximize=True)].sum()
            counts["event"][row] += (pairs, len(ours), len(theirs))
            segments = [
                {second for e in side for second in range(int(e.onset_s), int(np.ceil(e.offset_s)))}
                for side in (ours, theirs)
            ]
            active.append(segments)
            counts["segment"][row] += (len(segments[0] & segments[1]), *map(len, segments))
            right = [e for e in ours if sum(overlap(e, two) for two in theirs) >= 0.5 * (e.offset_s - e.onset_s) - 1e-7]
            hits = sum(
                sum(overlap(e, two) for e in right) >= 0.5 * (two.offset_s - two.onset_s) - 1e-7 for two in theirs
            )
            counts["intersection"][row] += (hits, hits + len(ours) - len(right), len(theirs))
        for second in range(20):
            ours, theirs, both = (
                sum(second in part for part in parts)
                for parts in ([a for a, _ in active], [b for _, b in active], [a & b for a, b in active])
            )
            errors += max(ours, theirs) - both
    for kind, own in counts.items():
        right, given, annotated = own.sum(axis=0)
        assert found["metrics"][f"{kind}_precision_micro"] == pytest.approx(
            right / given if given else np.nan, nan_ok=True
        )
        assert found["metrics"][f"{kind}_recall_micro"] == pytest.approx(right / annotated)
        assert found["metrics"][f"{kind}_f1_micro"] == pytest.approx(2 * right / (given + annotated))
        known = own[own[:, 2] > 0]
        assert found["metrics"][f"{kind}_f1_macro"] == pytest.approx(
            np.mean(2 * known[:, 0] / known[:, 1:].sum(axis=1))
        )
    assert found["metrics"]["segment_error_rate"] == pytest.approx(errors / counts["segment"][:, 2].sum())
    alarms = counts["event"][:, 1].sum() - counts["event"][:, 0].sum()
    assert found["metrics"]["false_alarms_per_hour"] == pytest.approx(alarms / sum(durations_s.values()) * 3600)


def test_as_many_events_as_possible_have_a_partner():
    """The first annotated event could take the partner that the second needs."""
    wanted = {"a": [Event(0.0, 1.0, "dog"), Event(0.2, 1.0, "dog")]}
    predicted = {"a": [Event(0.1, 1.0, "dog"), Event(-0.1, 1.0, "dog")]}
    assert event_metrics(predicted, wanted, None, LABELS)["metrics"]["event_f1_micro"] == 1.0


# ---- What must hold for any numbers ----


def test_what_is_right_has_the_best_values():
    durations_s, wanted, scores, _ = example(1)
    edges = {
        name: np.unique([0, duration_s, *(t for e in wanted[name] for t in e[:2])])
        for name, duration_s in durations_s.items()
    }
    scores = {name: (covered(own, wanted[name]).astype(float), own) for name, own in edges.items()}
    values = detection_metrics(scores, wanted, durations_s, LABELS, num_resamples=0)["metrics"]
    values |= event_metrics(wanted, wanted, durations_s, LABELS)["metrics"]
    assert len(values) == 25
    assert {name: value for name, value in values.items() if value != (name not in ERRORS)} == {}


def test_nothing_found_has_no_precision_and_misses_everything():
    durations_s, wanted, *_ = example(1)
    found = event_metrics(dict.fromkeys(wanted, ()), wanted, durations_s, LABELS)
    for kind in ("event", "segment", "intersection"):
        assert np.isnan(found["metrics"][f"{kind}_precision_micro"])
        for name in ("recall_micro", "f1_micro", "precision_macro", "recall_macro", "f1_macro"):
            assert found["metrics"][f"{kind}_{name}"] == 0
    assert found["metrics"]["segment_error_rate"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_resample_is_the_recordings_that_were_drawn(monkeypatch, seed):
    """Weights give the values of a data set in which recordings stand repeatedly, or not at all."""
    durations_s, wanted, scores, predicted = example(seed)
    draw = {"0.wav": 2, "1.wav": 0, "2.wav": 1, "3.wav": 3}
    monkeypatch.setattr(module, "draw_weights", lambda *_: [np.array(list(draw.values()), float)[:, None]] * 2)
    times, events, frames, ours = (
        {f"{name} {index}": side[name] for name, count in draw.items() for index in range(count)}
        for side in (durations_s, wanted, scores, predicted)
    )
    for found, expected in (
        (
            detection_metrics(scores, wanted, durations_s, LABELS),
            detection_metrics(frames, events, times, LABELS, num_resamples=0),
        ),
        (
            event_metrics(predicted, wanted, durations_s, LABELS),
            event_metrics(ours, events, times, LABELS, num_resamples=0),
        ),
    ):
        intervals = found["confidence_intervals"]["intervals"]
        known = {name: value for name, value in expected["metrics"].items() if not np.isnan(value)}
        assert set(intervals) == set(known)
        for name, value in known.items():
            assert intervals[name] == pytest.approx([value, value], abs=1e-9), name


def test_intervals_are_the_same_each_time_and_hold_the_value():
    durations_s, wanted, scores, predicted = example(2, num_recordings=12)
    for compute in (
        lambda seed: detection_metrics(scores, wanted, durations_s, LABELS, num_resamples=60, seed=seed),
        lambda seed: event_metrics(predicted, wanted, durations_s, LABELS, seed=seed),
    ):
        found = compute(0)
        assert found == compute(0) != compute(1)
        for name, (lower, upper) in found["confidence_intervals"]["intervals"].items():
            assert lower <= found["metrics"][name] <= upper, name
        assert found["confidence_intervals"]["resampled"] == "recordings"


def test_one_recording_has_no_intervals():
    durations_s, wanted, scores, predicted = ({"0.wav": side["0.wav"]} for side in example())
    assert detection_metrics(scores, wanted, durations_s, LABELS)["confidence_intervals"] is None
    assert event_metrics(predicted, wanted, None, LABELS)["confidence_intervals"] is None


def test_a_label_that_nobody_annotated_has_no_value_and_changes_no_mean():
    durations_s, wanted, scores, _ = example(1)
    more = {name: (np.c_[values, values[:, 0]], edges) for name, (values, edges) in scores.items()}
    found = detection_metrics(more, wanted, durations_s, [*LABELS, "siren"], num_resamples=0)
    assert all(map(np.isnan, found["per_class"]["siren"].values()))
    assert found["metrics"] == detection_metrics(scores, wanted, durations_s, LABELS, num_resamples=0)["metrics"]


def test_frames_after_the_end_and_events_in_pieces_change_nothing():
    """Frames of padding have no duration. Overlapping events of a label are one, those without duration are none."""
    durations_s, wanted, scores, _ = example(1)
    padded = {
        name: (np.r_[values, 9 + values[:2]], np.r_[edges, edges[-1], edges[-1]])
        for name, (values, edges) in scores.items()
    }
    pieces = {
        name: [
            Event(*times, event.label)
            for event in own
            for middle in [(event.onset_s + event.offset_s) / 2]
            for times in ((event.onset_s, middle + 1e-4), (middle, event.offset_s), (0.0, 0.0))
        ]
        for name, own in wanted.items()
    }
    expected, *changed = (
        detection_metrics(*example, durations_s, LABELS, num_resamples=0)["metrics"]
        for example in ((scores, wanted), (padded, wanted), (scores, pieces))
    )
    assert changed == [pytest.approx(expected, abs=1e-9)] * 2


@pytest.mark.parametrize("shape", [np.arange, lambda n: -np.arange(n), np.zeros, lambda n: np.arange(n) % 2])
def test_hours_of_any_shape_are_scored(shape):
    """As many nested stretches as frames, one, or one per frame."""
    num_frames = 20_000
    scores = {"a": (np.asarray(shape(num_frames), float)[:, None], np.arange(num_frames + 1) * 0.04)}
    found = detection_metrics(scores, {"a": [Event(0, 800, "dog")]}, {"a": 800.0}, ["dog"])
    assert found["metrics"]["psds1"] == 1.0  # below every score, all frames are the event


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda scores, wanted: wanted["0.wav"].append(Event(0, 1, "siren")), ValueError),
        (lambda scores, wanted: wanted.pop("0.wav"), KeyError),
        (lambda scores, wanted: scores.update({"0.wav": (np.zeros((3, 2)), np.arange(4))}), ValueError),
        (lambda scores, wanted: scores.update({"0.wav": (np.zeros((3, 3)), np.arange(3))}), ValueError),
        (lambda scores, wanted: scores.update({"0.wav": (np.zeros((3, 3)), np.arange(4)[::-1])}), ValueError),
        (lambda scores, wanted: scores.update({"0.wav": (np.full((3, 3), np.nan), np.arange(4))}), InputError),
    ],
)
def test_what_does_not_fit_is_refused(change, error):
    durations_s, wanted, scores, _ = example()
    change(scores, wanted)
    with pytest.raises(error):
        detection_metrics(scores, wanted, durations_s, LABELS)


def test_other_recordings_on_both_sides_are_refused():
    with pytest.raises(ValueError, match="b"):
        event_metrics({"a": []}, {"a": [], "b": []}, None, LABELS)
