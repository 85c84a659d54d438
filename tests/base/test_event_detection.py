"""Tests that events follow from scores by the stated rules, in one pass and in parts."""

from types import SimpleNamespace

import numpy as np
import pytest
from audio_files import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from training.base import event_detection
from training.base.event_detection import (
    EventFinder,
    event_scores,
    event_thresholds,
    find_events,
    median_filtered,
    step_times,
)
from training.data.labels import LabelSet
from training.errors import InputError


def _times(events) -> list[tuple]:
    return [(event.label, event.onset_s, event.offset_s, event.score) for event in events]


@pytest.mark.golden
@pytest.mark.parametrize(
    ("key", "clips", "duration_s"), [("events", [[0], [1]], 10.0), ("events_long", [[0, 1]], 13.3)]
)
def test_events_of_the_published_post_processing(key, clips, duration_s):
    """PretrainedSED: sigmoid, a median filter of 9 frames, runs above 0.1, 0.2 and 0.5, clipped to the audio."""
    data = np.load(ROOT / "tests" / "fixtures" / "asit_psed.npz")
    scores = 1 / (1 + np.exp(-data["strong_logits"].astype(np.float64)))  # (items, labels, frames)
    found = []
    for clip, items in enumerate(clips):
        frames = np.concatenate([scores[item].T for item in items])
        times = step_times(len(frames), 0.04, duration_s=duration_s)
        for number, threshold in enumerate((0.1, 0.2, 0.5)):
            events = find_events(frames, range(frames.shape[1]), *times, threshold, median_steps=9)
            found += [(clip, number, event.label, event.onset_s, event.offset_s) for event in events]
    wanted = data[key]
    wanted = wanted[wanted[:, 4] > wanted[:, 3]]  # theirs has events without duration in the padding
    np.testing.assert_allclose(sorted(found), wanted, rtol=0, atol=1e-12)


def test_neighbouring_windows_share_their_overlap():
    starts, ends = np.array([0.0, 5.0, 10.0, 12.0]), np.array([10.0, 15.0, 20.0, 22.0])  # the last ends with the clip
    for above, times in [
        ([0], (0.0, 7.5)),
        ([1], (7.5, 12.5)),
        ([2], (12.5, 16.0)),  # windows 2 and 3 share 12 to 20
        ([3], (16.0, 22.0)),
        ([1, 2], (7.5, 16.0)),
        ([0, 1, 2, 3], (0.0, 22.0)),
    ]:
        scores = np.zeros((4, 1))
        scores[above] = 0.75
        assert _times(find_events(scores, ["owl"], starts, ends, 0.5)) == [("owl", *times, 0.75)]
    alone = find_events(np.ones((1, 1)), ["owl"], [0.0], [3.0], 0.5)
    assert _times(alone) == [("owl", 0.0, 3.0, 1.0)]
    assert find_events(np.zeros((0, 1)), ["owl"], [], [], 0.5) == []


def test_frames_are_their_own_time():
    scores = np.array([[0.0, 1], [1, 1], [1, 0], [0, 0], [1, 0]])
    events = find_events(scores, ["a", "b"], *step_times(5, 0.5, duration_s=2.25), 0.5)
    assert _times(events) == [("b", 0.0, 1.0, 1.0), ("a", 0.5, 1.5, 1.0), ("a", 2.0, 2.25, 1.0)]
    padding = find_events(np.ones((4, 1)), ["a"], *step_times(4, 0.5, duration_s=0.7), 0.5)
    assert _times(padding) == [("a", 0.0, 0.7, 1.0)]
    starts, ends = step_times(3, 0.5, 1.0, duration_s=2.75, first=2)
    assert starts.tolist() == [1.0, 1.5, 2.0] and ends.tolist() == [2.0, 2.5, 2.75]


@pytest.mark.parametrize(
    ("scores", "settings", "wanted"),
    [
        ([0.3, 0.6, 0.3, 0.3, 0.1], {"low": 0.2}, [(1, 4, 0.6)]),  # begins at high, goes on while above low
        ([0.3, 0.6, 0.2, 0.3, 0.1], {"low": 0.2}, [(1, 2, 0.6)]),  # at low is not above it
        ([0.5, 0.3, 0.3], {"low": 0.2}, []),  # at high is not above it
        ([0.6, 0.3, 0.6, 0.1], {}, [(0, 1, 0.6), (2, 3, 0.6)]),
        ([0.6, 0.3, 0.9, 0.1], {"max_gap_s": 1.0}, [(0, 3, 0.9)]),
        ([0.6, 0.3, 0.3, 0.9], {"max_gap_s": 1.0}, [(0, 1, 0.6), (3, 4, 0.9)]),
        ([0.6, 0.0, 0.9, 0.9], {"min_duration_s": 2.0}, [(2, 4, 0.9)]),
        ([0.6, 0.0, 0.9, 0.0], {"min_duration_s": 3.0, "max_gap_s": 1.0}, [(0, 3, 0.9)]),  # gaps first
        ([0.6, 0.0, 0.6, 0.0, 0.9], {"max_gap_s": 1.0}, [(0, 5, 0.9)]),
        ([0.0, 0.9, 0.0, 0.9, 0.9], {"median_steps": 3}, [(2, 5, 0.9)]),
        ([0.9, 0.0, 0.0], {"median_steps": 3}, [(0, 1, 0.9)]),  # the mirrored edge counts twice
    ],
)
def test_rules(scores, settings, wanted):
    events = find_events(np.array(scores)[:, None], ["x"], *step_times(len(scores), 1.0), 0.5, **settings)
    assert [(event.onset_s, event.offset_s, event.score) for event in events] == wanted


def test_every_setting_may_differ_by_label():
    scores = np.tile(np.array([[0.6], [0.0], [0.6], [0.4], [0.0]]), 5)
    events = find_events(
        scores,
        list("abcde"),
        *step_times(5, 1.0),
        [0.5, 0.7, 0.5, 0.5, 0.5],
        low=[0.5, 0.7, 0.3, 0.3, 0.5],
        max_gap_s=[0, 0, 0, 1, 0],
        min_duration_s=[0, 0, 2, 0, 0],
        median_steps=[1, 1, 1, 1, 3],
    )
    assert {label: [times[1:3] for times in _times(events) if times[0] == label] for label in "abcde"} == {
        "a": [(0, 1), (2, 3)],
        "b": [],
        "c": [(2, 4)],
        "d": [(0, 4)],
        "e": [(0, 2)],
    }


def test_gaps_are_compared_up_to_rounding():
    scores = np.array([1.0, 0, 0, 0, 1])[:, None]
    times = step_times(5, 0.1)
    assert times[0][4] - times[0][1] > 0.3  # 0.30000000000000004
    assert len(find_events(scores, ["x"], *times, 0.5, max_gap_s=0.3)) == 1
    assert len(find_events(np.ones((3, 1)), ["x"], *step_times(3, 0.1), 0.5, min_duration_s=0.3)) == 1


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_filters_of_many_times_the_length_mirror_both_edges_again_and_again(num_steps):
    scores = np.random.default_rng(num_steps).random((num_steps, 1))
    mirrored = np.concatenate([scores[:, 0], scores[::-1, 0]])
    for size in (3, 21, 61):
        places = np.arange(num_steps)[:, None] + np.arange(-(size // 2), size // 2 + 1)
        expected = np.median(mirrored[places % (2 * num_steps)], axis=1)
        assert median_filtered(scores, size)[:, 0].tolist() == expected.tolist()


def test_a_long_filter_costs_no_memory_for_its_square():
    """With a second axis scipy would ask for 80 GB here, for a request of one second."""
    scores = np.random.default_rng(0).random((25, 2))
    filtered = median_filtered(scores, 100_001)
    period = np.concatenate([scores, scores[::-1]])  # of the mirrored scores, whose median it nearly is
    assert np.abs(filtered - np.median(period, axis=0)).max() < 0.2 and filtered.shape == scores.shape
    both = median_filtered(scores, [3, 7])
    for column, size in enumerate((3, 7)):
        assert np.array_equal(both[:, column], median_filtered(scores[:, [column]], size)[:, 0])


# ---- against a plain loop, and in parts ----

LEVELS = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.9])


@st.composite
def _recordings(draw):
    num_steps, num_labels = draw(st.integers(0, 25)), draw(st.integers(1, 3))
    scores = [[draw(LEVELS) for _ in range(num_labels)] for _ in range(num_steps)]
    hop_s, window_s = draw(st.sampled_from([(0.25, 0.25), (0.5, 1.0), (0.5, 1.75), (0.04, 0.04)]))
    starts_s, ends_s = step_times(num_steps, hop_s, window_s, draw(st.sampled_from([None, 4.1])))
    options = {
        "high": draw(st.sampled_from([0.5, 0.55])),
        "low": draw(st.sampled_from([None, 0.2, 0.5])),
        "max_gap_s": draw(st.sampled_from([0.0, 0.04, 0.5, 1.0])),
        "min_duration_s": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "median_steps": draw(st.sampled_from([1, 3, 7, 61])),
    }
    return np.array(scores).reshape(num_steps, num_labels), starts_s, ends_s, options


def _plainly(scores, starts_s, ends_s, high, low, max_gap_s, min_duration_s, median_steps) -> list[tuple]:
    """The stated rules, step by step."""
    low, found, reach, last = high if low is None else low, [], median_steps // 2, len(scores) - 1

    def mirrored(index):
        while not 0 <= index <= last:
            index = -1 - index if index < 0 else 2 * last + 1 - index
        return index

    for label in range(scores.shape[1]):
        values = [
            np.median([scores[mirrored(index + shift), label] for shift in range(-reach, reach + 1)])
            for index in range(len(scores))
        ]
        runs, run = [], None
        for index, value in enumerate(values):
            begin = starts_s[0] if index == 0 else (ends_s[index - 1] + starts_s[index]) / 2
            end = ends_s[last] if index == last else (ends_s[index] + starts_s[index + 1]) / 2
            if value > high and run is None:
                run = [begin, end, value]
                runs.append(run)
            elif run is not None and value > low:
                run[1:] = end, max(run[2], value)
            else:
                run = None
        merged = []
        for run in runs:
            if merged and run[0] - merged[-1][1] <= max_gap_s + 1e-6:
                merged[-1][1:] = run[1], max(run[2], merged[-1][2])
            else:
                merged.append(run)
        found += [(str(label), *run) for run in merged if run[1] > run[0] and run[1] - run[0] >= min_duration_s - 1e-6]
    return sorted(found)


@given(_recordings())
@settings(max_examples=150, deadline=None)
def test_equals_a_plain_loop(recording):
    scores, starts_s, ends_s, options = recording
    labels = [str(index) for index in range(scores.shape[1])]
    found = find_events(scores, labels, starts_s, ends_s, **options)
    assert found == sorted(found, key=lambda event: (event.onset_s, event.offset_s, event.label))
    assert sorted(_times(found)) == _plainly(scores, starts_s, ends_s, **options)


@given(_recordings(), st.lists(st.integers(0, 25), max_size=6), st.sampled_from([2, 5, 4096]))
@settings(max_examples=150, deadline=None)
def test_parts_equal_one_pass(recording, cuts, block_steps):
    scores, starts_s, ends_s, options = recording
    labels = [str(index) for index in range(scores.shape[1])]
    whole = find_events(scores, labels, starts_s, ends_s, **options)
    finder, found = EventFinder(labels, **options), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_detection, "BLOCK_STEPS", block_steps)
        for rows in np.split(np.arange(len(scores)), sorted(cut for cut in cuts if cut <= len(scores))):
            found += finder.add(scores[rows], starts_s[rows], ends_s[rows])
        found += finder.finish()
    assert sorted(found) == sorted(whole)


def test_events_come_as_soon_as_nothing_can_change_them():
    finder, seen = EventFinder(["x"], 0.5, max_gap_s=1.0), []
    for step, score in enumerate([0.9, 0.0, 0.0, 0.9, 0.9]):
        seen.append(_times(finder.add([[score]], [step], [step + 1])))
    assert seen == [[], [], [], [("x", 0.0, 1.0, 0.9)], []]
    assert _times(finder.finish()) == [("x", 3.0, 5.0, 0.9)]


def test_memory_does_not_grow_with_the_recording():
    finder = EventFinder(["x"], 0.5, median_steps=5)
    for first in range(0, 3000, 100):
        finder.add(np.zeros((100, 1)), *step_times(100, 1.0, first=first))
        assert len(finder.scores) <= 4


# ---- from a model ----


def test_one_class_wins_a_step_of_a_single_label_model():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.1, 0.3, 0.6]])
    scores = event_scores(probabilities, LabelSet(tuple("abc"), "single_label_classification"))
    assert scores.tolist() == [[0.5, 0, 0], [0, 0.4, 0], [0, 0, 0.6]]
    multi = LabelSet(tuple("abc"), "multi_label_classification")
    np.testing.assert_array_equal(event_scores(probabilities, multi), probabilities)
    with pytest.raises(InputError, match="a number per clip, so it has no events; use a classifier"):
        event_scores(probabilities, LabelSet(("value",), "regression"))


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_background_is_no_event_and_still_wins(problem_type):
    labels = LabelSet(("background", "owl"), problem_type)
    scores = event_scores(np.array([[0.6, 0.4], [0.2, 0.8]]), labels)
    assert scores.tolist() == [[0, 0.4 if labels.is_multi else 0], [0, 0.8]]


@pytest.mark.parametrize(
    ("problem_type", "own", "given", "wanted"),
    [
        ("multi_label_classification", None, None, [0.5, 0.5]),
        ("multi_label_classification", [0.2, 0.7], None, [0.2, 0.7]),
        ("multi_label_classification", [0.2, 0.7], 0.4, [0.4, 0.4]),
        ("multi_label_classification", [0.2, 0.7], 0.0, [0.0, 0.0]),
        ("single_label_classification", [0.2, 0.7], None, [0.5, 0.5]),
        (None, None, None, [0.5, 0.5]),
    ],
)
def test_thresholds_of_a_model(problem_type, own, given, wanted):
    config = SimpleNamespace(problem_type=problem_type, decision_thresholds=own, num_labels=2)
    assert event_thresholds(config, given).tolist() == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 0.6}, "low must be at most high"),
        ({"high": [0.5, 0.5, 0.5]}, "high must be a number, or one for each of 2 labels"),
        ({"high": float("nan")}, "high must be a number"),
        ({"median_steps": 4}, "median_steps must be odd, got 4"),
        ({"median_steps": -1}, "median_steps must be odd, got -1"),
        ({"max_gap_s": -1.0}, "durations must be 0 or more"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        EventFinder(["a", "b"], **{"high": 0.5} | settings)


@pytest.mark.parametrize(
    ("scores", "starts_s", "ends_s", "message"),
    [
        ([[0.5]], [0.0], [1.0], r"expected scores \(steps, 2\)"),
        ([[0.5, 0.5]], [0.0, 1.0], [1.0, 2.0], r"expected scores \(steps, 2\)"),
        ([[0.5, np.nan]], [0.0], [1.0], "must be finite"),
        ([[0.5, 0.5]] * 2, [1.0, 0.0], [2.0, 1.0], "in the order of their times"),
    ],
)
def test_steps_that_do_not_fit(scores, starts_s, ends_s, message):
    with pytest.raises(ValueError, match=message):
        EventFinder(["a", "b"], 0.5).add(scores, starts_s, ends_s)
