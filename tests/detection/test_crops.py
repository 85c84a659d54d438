"""Tests that crops show what they should, are the same in every process, and decode little of a long recording."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.augmentation import clip_generator
from training.detection.crops import CropDrawer
from training.detection.recordings import UNSURE, Annotated


def recording(num_samples: int, *events: tuple) -> Annotated:
    intervals = np.array([event[:2] for event in events], dtype=float).reshape(-1, 2)
    labels = np.array([event[2] for event in events], dtype=int)
    return Annotated("x.wav", "x.wav", num_samples, intervals, labels)


def draw_all(drawer: CropDrawer, epoch: int = 0, seed: int = 0):
    return [drawer.draw(index, clip_generator(seed, epoch, index)) for index in range(drawer.num_crops)]


EVENTS = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 300), st.sampled_from([0, 1, UNSURE])), max_size=5)


@given(st.lists(st.tuples(st.integers(1, 1000), EVENTS), min_size=1, max_size=4), st.sampled_from([20, 100, 400]))
@settings(max_examples=150, deadline=None)
def test_crops_show_events_or_none_in_the_stated_share(content, crop_samples):
    recordings = [
        recording(length, *((min(a, length), min(a + b, length), label) for a, b, label in events))
        for length, events in content
    ]
    drawer = CropDrawer(recordings, crop_samples, 20, 0.3)
    has_events = any((one.labels >= 0).any() for one in recordings)
    for index, (number, start, stop) in enumerate(draw_all(drawer)):
        one = recordings[number]
        assert 0 <= start < stop <= one.num_samples and stop - start == min(crop_samples, one.num_samples)
        shared = np.minimum(one.intervals[:, 1], stop) - np.maximum(one.intervals[:, 0], start)
        lengths = np.minimum(np.diff(one.intervals, axis=1)[:, 0], crop_samples)
        if has_events and index < 6:  # at least half of an event, or of the crop; starts are whole samples
            assert ((shared >= lengths / 2 - 1) & (one.labels >= 0)).any()
        elif len(drawer.free):
            assert (shared <= 0).all()


def test_crops_depend_on_seed_epoch_and_index_alone():
    recordings = [recording(1000, (100, 150, 0), (600, 700, 1)), recording(2000)]
    drawer = CropDrawer(recordings, 100, 16, 0.5)
    first = draw_all(drawer)
    assert first == draw_all(CropDrawer(recordings, 100, 16, 0.5))
    assert draw_all(drawer, epoch=1) != first != draw_all(drawer, seed=1)
    backwards = [drawer.draw(index, clip_generator(0, 0, index)) for index in reversed(range(16))]
    assert backwards[::-1] == first


def test_balanced_classes_are_shown_equally_often():
    events = [(10 * place, 10 * place + 5, 0) for place in range(90)] + [(950, 955, 1)]
    shown = {}
    for is_balanced in (False, True):
        drawer = CropDrawer([recording(1000, *events)], 10, 2000, 1.0, is_balanced)
        shown[is_balanced] = np.mean([start > 930 for _, start, _ in draw_all(drawer)])
    assert shown[False] == pytest.approx(1 / 91, abs=0.01) and shown[True] == pytest.approx(0.5, abs=0.05)


def test_crops_from_anywhere_follow_the_time_of_the_recordings():
    drawer = CropDrawer([recording(1000, (0, 1000, 0)), recording(9000)], 100, 2000, None)
    assert np.mean([number for number, *_ in draw_all(drawer)]) == pytest.approx(0.9, abs=0.03)


def test_recordings_without_a_quiet_place_are_told(caplog):
    drawer = CropDrawer([recording(1000, (0, 1000, 0))], 100, 10, 0.5)
    assert "no recording has 100 samples without events" in caplog.text
    assert len(draw_all(drawer)) == 10
