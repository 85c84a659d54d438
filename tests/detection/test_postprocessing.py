"""Tests the chosen settings of events, and what unsure time does to the metrics."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modeling_dual_ssast import DualSSASTConfig
from training.base.detection_scores import counter
from training.base.event_detection import counts_in_unsure, event_settings, step_times, without_unsure
from training.data.events import Event
from training.detection import postprocessing
from training.detection.arguments import POSTPROCESSING_METRICS
from training.detection.metrics import find_all, score_events
from training.detection.postprocessing import choose_settings, count_right
from training.detection.recordings import Stretch
from training.detection.verdicts import RIGHT, UNSCORED, judge

HOP_S = 0.1


def events_of(*times: tuple, label: str = "a") -> list[Event]:
    return [Event(*pair, label) for pair in times]


def noisy_scores(events: list[Event], num_frames: int, rng, flicker: float) -> np.ndarray:
    """Scores of 0.7 within events and 0.1 outside, with single frames that are wrong."""
    starts_s, ends_s = step_times(num_frames, HOP_S)
    scores = np.full(num_frames, 0.1)
    for event in events:
        scores[(starts_s < event.offset_s - 1e-6) & (ends_s > event.onset_s + 1e-6)] = 0.7
    wrong = rng.random(num_frames) < flicker
    wrong &= ~np.roll(wrong, 1)
    return np.where(wrong, 0.8 - scores, scores)


def test_settings_remove_flicker_and_fit_each_label():
    rng, names = np.random.default_rng(0), ["a", "b", "c"]
    events = [
        events_of((2.0, 4.0), (6.0, 8.0)) + events_of((1.0, 3.0), (5.0, 6.0), label="b"),
        events_of((1.0, 3.0), (4.0, 6.0)) + events_of((1.0, 3.0), (5.0, 9.0), label="b"),
    ]
    wanted = [Stretch("x.wav", f"{index}.wav", 10.0, tuple(own)) for index, own in enumerate(events)]
    scores, edges = [], []
    for own in events:
        columns = [noisy_scores([e for e in own if e.label == "a"], 100, rng, 0.06)]
        columns.append(0.1 * noisy_scores([e for e in own if e.label == "b"], 100, rng, 0.0))
        scores.append(np.stack([*columns, rng.random(100)], axis=1))
        edges.append(np.arange(101) * HOP_S)

    def f1_of(settings: dict) -> list[float]:
        per_class = score_events(find_all(scores, edges, names, settings), wanted, names, 0.2)["per_class"]
        return [per_class[name]["event_f1"] for name in names[:2]]

    settings = choose_settings(scores, edges, wanted, names, 0.2)
    assert settings.pop("metric") == "event_f1"
    plain = f1_of({"high": 0.5})
    assert plain[0] < 0.7 and plain[1] == 0
    assert f1_of(settings) == [1.0, 1.0]
    assert settings["median_steps"][0] > 1 == settings["median_steps"][1]
    assert settings["high"][1] < 0.1 < settings["high"][0]
    assert settings["high"][2] in settings["high"][:2]  # no event: what the labels share
    assert choose_settings(scores, edges, [one._replace(events=()) for one in wanted], names, 0.2) is None


@pytest.mark.parametrize(("count", "is_own"), [(2, False), (40, True)])
def test_a_label_with_few_events_has_the_settings_of_the_others(count, is_own):
    """A label whose events a higher threshold would find better, in one of two cases by far."""
    wanted, scores = [], []
    for index in range(10):
        events = [*events_of(*((place + 1.0, place + 2.0) for place in range(0, 40, 4)))]
        own = events[: max(count // 10, 1)] if index < count else []
        columns = np.full((400, 2), 0.1)
        for event in events:
            columns[round(event.onset_s * 10) : round(event.offset_s * 10), 0] = 0.4
        for number, event in enumerate(own):
            first, last = round(event.onset_s * 10), round(event.offset_s * 10)
            columns[first:last, 1] = 0.9
            if (number + index) % 2 == 0:
                columns[last : last + 10, 1] = 0.6
        wanted.append(Stretch("x.wav", f"{index}.wav", 40.0, (*events, *(one._replace(label="b") for one in own))))
        scores.append(columns)
    settings = choose_settings(scores, [np.arange(401) * HOP_S] * 10, wanted, ["a", "b"], 0.2)
    assert (settings["high"][1] > settings["high"][0]) == is_own


@pytest.mark.parametrize("metric", POSTPROCESSING_METRICS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_setting_of_the_grid_is_better(metric, seed, monkeypatch):
    """By the metrics of whole recordings, one setting after the other."""
    monkeypatch.setattr(postprocessing, "THRESHOLDS", np.array([0.2, 0.35, 0.5, 0.65]))
    monkeypatch.setattr(postprocessing, "MEDIANS_S", (0.0, 0.2, 0.6))
    rng, wanted, scores, edges = np.random.default_rng(seed), [], [], []
    for index in range(3):
        onsets = np.sort(rng.uniform(0, 11, 4))
        events = events_of(*((onset, onset + rng.uniform(0.1, 2.0)) for onset in onsets))
        unsure = tuple(events_of((3.0, 5.0))) if index == 2 else ()
        wanted.append(Stretch("x.wav", f"{index}.wav", 13.0, tuple(events), unsure))
        scores.append(np.clip(noisy_scores(events, 130, rng, 0.15) + rng.normal(0, 0.15, 130), 0, 1)[:, None])
        edges.append(np.arange(131) * HOP_S)

    def f1_of(settings: dict) -> float:
        found = score_events(find_all(scores, edges, ["a"], settings), wanted, ["a"], 0.2)
        return np.nan_to_num(found["per_class"]["a"][metric])

    settings = choose_settings(scores, edges, wanted, ["a"], 0.2, metric)
    assert settings.pop("metric") == metric
    chosen = {name: value for name, (value,) in settings.items()}
    first = {
        (steps, high): f1_of({"high": high, "median_steps": steps})
        for steps, high in itertools.product((1, 3, 7), postprocessing.THRESHOLDS)
    }
    assert first[chosen["median_steps"], chosen["high"]] == pytest.approx(max(first.values()), abs=1e-9)
    length_s = np.quantile([event.offset_s - event.onset_s for one in wanted for event in one.events], 0.1)
    second = [
        f1_of(chosen | {"low": chosen["high"] * low, "max_gap_s": gap_s, "min_duration_s": round(length_s * share, 4)})
        for low, gap_s, share in itertools.product(postprocessing.LOWS, postprocessing.GAPS_S, postprocessing.DURATIONS)
    ]
    assert f1_of(chosen) == pytest.approx(max(second), abs=1e-9) and max(second) >= max(first.values())
    assert min(second) < max(second) and min(first.values()) < max(first.values())


@pytest.mark.parametrize("metric", POSTPROCESSING_METRICS)
def test_events_from_the_first_to_the_last_frame_stay_in_their_recordings(metric):
    times = [((0.0, 2.0), (8.0, 10.0)), ((0.0, 10.0),), ((0.0, 1.0),), ((9.0, 10.0),)]
    wanted, scores = [], []
    for index, own in enumerate(times):
        wanted.append(Stretch("x.wav", f"{index}.wav", 10.0, tuple(events_of(*own))))
        scores.append(np.full((100, 1), 0.1))
        for onset_s, offset_s in own:
            scores[-1][round(onset_s * 10) : round(offset_s * 10)] = 0.8
    edges = [np.arange(101) * HOP_S] * len(times)
    count = counter(metric.removesuffix("_f1"), 0.2, postprocessing.OFFSET_SHARE)
    own = [column[:, 0] for column in scores]
    times = [np.array(one) for one in times]
    right, given, total = count_right(own, edges, times, [()] * 4, count, np.array([0.5, 0.9]))
    assert right[0] == given[0] == total and right[1] == given[1] == 0
    found = find_all(scores, edges, ["a"], {"high": 0.5})
    assert score_events(found, wanted, ["a"], 0.2)["per_class"]["a"][metric] == 1
    settings = choose_settings(scores, edges, wanted, ["a"], 0.2, metric)
    assert 0.1 < settings["high"][0] < 0.8


def test_each_metric_chooses_its_own_settings():
    """An event in two halves: one event of the right times, or both halves."""
    wanted = [Stretch("x.wav", "x.wav", 20.0, tuple(events_of((2.0, 6.0), (10.0, 14.0))))]
    scores = np.full(200, 0.1)
    for first in (20, 100):
        scores[first : first + 25] = scores[first + 30 : first + 40] = 0.6
    found = {
        metric: choose_settings([scores[:, None]], [np.arange(201) * HOP_S], wanted, ["a"], 0.2, metric)
        for metric in POSTPROCESSING_METRICS
    }
    assert found["event_f1"]["median_steps"][0] > 1  # closes the gap
    assert found["intersection_f1"]["median_steps"] == [1] and found["intersection_f1"]["max_gap_s"] == [0.0]
    config = DualSSASTConfig(num_labels=1, event_detection=found["segment_f1"])
    assert config.event_detection["metric"] == "segment_f1" and "metric" not in event_settings(config)


def test_events_in_unsure_stretches_count_for_nothing():
    unsure = events_of((1.0, 2.0), (1.5, 3.0), (6.0, 6.5))
    found = events_of((0.0, 1.5), (0.0, 2.1), (2.9, 3.2), (5.9, 6.6), (7.0, 8.0), (6.2, 6.2))
    kept = [event[:2] for event in without_unsure(found, unsure)]
    assert kept == [(0.0, 1.5), (2.9, 3.2), (7.0, 8.0), (6.2, 6.2)]
    assert without_unsure(found, []) == found


@given(*[st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=6)] * 3)
@hypothesis_settings(max_examples=100, deadline=None)
def test_what_counts_in_unsure_stretches_equals_a_plain_loop(found, unsure, wanted):
    found, unsure, wanted = (
        [(begin / 4, (begin + length) / 4) for begin, length in own] for own in (found, unsure, wanted)
    )
    expected = []
    for begin, end in found:
        ticks = [tick / 8 for tick in range(round(begin * 8) + 1, round(end * 8), 2)]  # middles of quarters of a second
        num_unsure = sum(any(first < tick < last for first, last in unsure) for tick in ticks)
        is_near = any(first < end and last > begin if first < last else begin <= first <= end for first, last in wanted)
        expected.append(2 * num_unsure <= len(ticks) or is_near)
    sides = [np.array(own, dtype=float).reshape(-1, 2) for own in (found, unsure, wanted)]
    assert counts_in_unsure(*sides).tolist() == expected


def test_annotated_events_in_unsure_stretches_can_be_found():
    """As the frames there are known to be positive. Found events of other labels there still count for nothing."""
    own = events_of((2.0, 3.0), (6.0, 7.0))
    stretch = Stretch("x.wav", "x.wav", 10.0, tuple(own), tuple(events_of((1.0, 5.0), label="rain")))
    found = [*own, Event(3.5, 4.5, "a"), Event(2.0, 3.0, "b")]
    metrics = score_events([found], [stretch], ["a", "b"], 0.2)["metrics"]
    assert metrics["event_recall_micro"] == metrics["event_precision_micro"] == metrics["segment_f1_micro"] == 1.0
    verdicts = [(one.event.label, one.is_annotated, one.verdict) for one in judge(found, stretch, 0.2, 0.2)]
    assert verdicts.count(("a", True, RIGHT)) == verdicts.count(("a", False, RIGHT)) == 2
    assert [one[::2] for one in verdicts if one[2] != RIGHT] == [("b", UNSCORED), ("a", UNSCORED)]


@pytest.mark.parametrize("metric", POSTPROCESSING_METRICS)
def test_settings_are_chosen_where_all_annotated_events_lie_in_unsure_stretches(metric):
    own, rain = events_of((2.0, 3.0), (6.0, 7.0)), events_of((0.0, 10.0), label="rain")
    scores = np.full((100, 1), 0.1)
    scores[20:30] = scores[60:70] = 0.35
    stretch, edges = Stretch("x.wav", "x.wav", 10.0, tuple(own), tuple(rain)), np.arange(101) * HOP_S
    settings = choose_settings([scores], [edges], [stretch], ["a"], 0.2, metric)
    found = find_all([scores], [edges], ["a"], {name: settings[name] for name in ("high", "low", "median_steps")})
    assert [event[:2] for event in found[0]] == [pytest.approx(event[:2]) for event in own]


def test_recordings_of_any_length_stay_apart():
    """Of thirty hours, the second and the third one."""
    edges = [np.linspace(0.0, 108000.0, 109)] * 3
    scores = [np.full(108, 0.1) for _ in edges]
    for own in scores[1:]:
        own[0] = own[-1] = 0.9
    wanted = [np.zeros((0, 2)), *[np.array([[0.0, 1000.0], [107000.0, 108000.0]])] * 2]
    none, count = [np.zeros((0, 2))] * 3, counter("event", 0.2, postprocessing.OFFSET_SHARE)
    right, given, total = count_right(scores, edges, wanted, none, count, np.array([0.5]), None, np.array([1.0]))
    assert right[0] == given[0] == total == 4
