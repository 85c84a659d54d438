"""Tests that crops show what they should, are the same in every process, and decode little of a long recording."""

import numpy as np
import pytest
from annotated_tones import write_annotated_tones
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioFrameClassification
from training.base.label_frames import frame_grid
from training.data.augmentation import AugmentationArguments, clip_generator
from training.data.labels import LabelSet
from training.detection.crops import UNKNOWN, CropDataset, CropDrawer, FrameCollator, FrameCounter
from training.detection.recordings import UNSURE, Annotated, WeakClips


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


def test_crops_without_events_follow_the_time_of_their_places():
    """Short recordings and gaps of the length of a crop weigh as much as their time in long ones."""
    recordings = [*[recording(100)] * 9, recording(50), recording(110, (0, 10, 0)), recording(1000)]
    drawer = CropDrawer([*recordings, recording(10, (0, 10, 0))], 100, 4000, 0.0)
    shares = np.bincount([number for number, *_ in draw_all(drawer)], minlength=12) / 4000
    assert shares == pytest.approx(np.array([100] * 9 + [50, 100, 1000]) / 2050, abs=0.03)


def test_recordings_without_a_quiet_place_are_told(caplog):
    drawer = CropDrawer([recording(1000, (0, 1000, 0))], 100, 10, 0.5)
    assert "no recording has 100 samples without events" in caplog.text
    assert len(draw_all(drawer)) == 10


def test_weak_clips_are_mixed_with_their_own_kind(tmp_path):
    """Their frames are unknown; of crops of annotated recordings the labels of the clip are."""
    table = write_annotated_tones(tmp_path, num_recordings=2)
    extractor, labels = (
        DualSSASTFeatureExtractor(max_length=64),
        LabelSet(("high", "low"), "multi_label_classification"),
    )
    model = DualSSASTForAudioFrameClassification(DualSSASTConfig(**TINY | {"num_mel_bins": 128}))
    grid = frame_grid(model, extractor)
    source = str(table.with_name("r0.wav"))
    recordings = [Annotated(source, source, 64000, np.array([[0.0, 32000.0]]), np.array([0]))]
    weak = WeakClips([source, str(table.with_name("r1.wav"))], np.array([[1.0, 0.0], [0.0, 1.0]]))
    drawer = CropDrawer(recordings, grid.length, 6, 0.5)
    options = AugmentationArguments(mixup_rate=1.0)
    counter = FrameCounter(model, extractor, grid)
    dataset = CropDataset(recordings, extractor, labels, grid, counter, drawer, options, 0, weak, num_weak=4)
    examples = [dataset[index] for index in range(len(dataset))]
    assert len(examples) == 10
    assert all(np.isfinite(one["labels"]).all() and np.isnan(one["clip_labels"]).all() for one in examples[:6])
    assert all(np.isnan(one["labels"]).all() and one["clip_labels"].sum() == pytest.approx(1) for one in examples[6:])
    assert any(0 < one["clip_labels"][0] < 1 for one in examples[6:])
    batch = FrameCollator(extractor)(examples)
    assert (batch["labels"][6:] == UNKNOWN).all() and (batch["clip_labels"][:6] == UNKNOWN).all()
