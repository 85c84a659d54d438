"""Tests that the targets of frames are those of a plain loop over frames, for any grid, crop and augmentation."""

import itertools
import math

import numpy as np
import pytest
import torch
from audio_files import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForAudioFrameClassification,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioFrameClassification,
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioFrameClassification,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishForAudioFrameClassification,
)
from training.base.detection_scores import frame_mean_average_precision
from training.base.label_frames import FrameGrid, frame_grid, frame_targets
from training.data.augmentation import AugmentationArguments, FeatureChanges, TimeChanges, clip_generator
from training.data.events import Event
from training.data.labels import LabelSet
from training.detection.crops import CropDataset, CropDrawer, FrameCounter, WindowDataset
from training.detection.recordings import UNSURE, Annotated, Stretch
from training.errors import InputError

LABELS = LabelSet(("a", "b", "c"), "multi_label_classification")


@pytest.mark.golden
def test_the_published_targets():
    data = np.load(ROOT / "tests" / "fixtures" / "asit_psed.npz")
    grid = FrameGrid(16000, 160, 640, 0, 250, 160000, 125)
    for key in ("label_events", "label_events_merged"):  # frames do not know what was merged
        rows = data[key]
        found = frame_targets(grid, rows[:, 1:] * 16000, rows[:, 0].astype(int), 250, data["label_frames"].shape[1])
        np.testing.assert_array_equal(found, data["label_frames"])


# ---- a plain loop ----


def plain_targets(pieces: list[tuple], edges: list[float], num_labels: int) -> np.ndarray:
    """
    Looks at every frame by itself. pieces: (begin, end, label) in samples; edges: of the frames, in samples

    An event is in a frame if they share time; one without duration is in the frame that holds its moment.
    """
    targets = np.zeros((len(edges) - 1, num_labels))
    for frame, (left, right) in enumerate(itertools.pairwise(edges)):
        is_last = frame == len(edges) - 2
        for label in range(num_labels):
            known, unsure = False, False
            for begin, end, own in pieces:
                if end > begin:
                    touches = begin < right - 1e-6 and end > left + 1e-6
                else:
                    touches = left - 1e-6 <= begin < right - 1e-6 or (is_last and begin >= right - 1e-6)
                known |= touches and own == label
                unsure |= touches and own == UNSURE
            targets[frame, label] = 1 if known else math.nan if unsure else 0
    return targets


def edges_of(grid: FrameGrid, num_frames: int) -> list[float]:
    inner = [frame * grid.step + grid.offset for frame in range(1, num_frames)]
    return [-math.inf, *inner, math.inf]


TIMES = st.one_of(st.integers(0, 40).map(lambda number: number * 640), st.integers(0, 40 * 640))
EVENTS = st.lists(st.tuples(TIMES, TIMES, st.sampled_from([0, 1, 2, UNSURE])), max_size=6).map(
    lambda events: [(min(a, b), max(a, b), label) for a, b, label in events]
)
GRIDS = st.sampled_from([(640, 0), (1600, 0), (2560, 0), (640, 960), (1600, 480), (639, 0)])


@given(EVENTS, GRIDS, st.integers(1, 45))
@settings(max_examples=200, deadline=None)
def test_targets_equal_a_plain_loop(events, sizes, num_frames):
    step, offset = sizes
    grid = FrameGrid(16000, 160, step, offset, 10, 10 * step, 5)
    intervals, labels = [event[:2] for event in events], np.array([event[2] for event in events], dtype=int)
    found = frame_targets(grid, np.array(intervals, dtype=float).reshape(-1, 2), labels, num_frames, 3)
    np.testing.assert_array_equal(found, plain_targets(events, edges_of(grid, num_frames), 3))


AUGMENTATIONS = st.fixed_dictionaries(
    {
        "time_shift_frames": st.sampled_from([0, 7, 300]),
        "time_mask_frames": st.sampled_from([0, 60]),
        "random_resized_crop": st.booleans(),
    }
)


def plainly_moved(events: list[tuple], changes: TimeChanges, num_frames: int, unit: int) -> list[tuple]:
    """Moves each event as the picture was moved: resized, then rolled; in samples."""
    total, pieces = num_frames * unit, []
    for begin, end, label in events:
        if changes.part is not None:
            first, length = changes.part
            begin, end = ((side - first * unit) * num_frames / length for side in (begin, end))
        if changes.part is not None or changes.shift:
            if begin >= total or (end <= 0 and begin < 0):
                continue
            begin, end = max(begin, 0), min(end, total)
            begin, end = begin + changes.shift * unit, end + changes.shift * unit
            turns = begin // total
            begin, end = begin - turns * total, end - turns * total
            if end > total:
                pieces.append((0, end - total, label))
                end = total
        pieces.append((begin, end, label))
    return pieces


@given(EVENTS, AUGMENTATIONS, st.integers(0, 2**20), st.sampled_from([0, 3000, 12000]))
@settings(max_examples=150, deadline=None)
def test_augmented_crops_have_the_targets_of_a_plain_loop(events, options, seed, start):
    """The crop, its events and all that is done to its time, against each frame by itself."""
    extractor = DualSSASTFeatureExtractor(max_length=64, num_mel_bins=128)
    dataset = crops_of(extractor, events, options, seed)
    crop = dataset.drawer.draw(0, clip_generator(seed, 0, 0))._replace(start=start, stop=start + 10480)
    intervals, labels = dataset.events(crop)
    inside = [
        (max(begin, start) - start, min(end, crop.stop) - start, label)
        for begin, end, label in events
        if begin < crop.stop and (end > start or begin >= start)
    ]
    features = torch.ones(64, 128)
    drawn = FeatureChanges.draw(64, 128, dataset.augmentation, np.random.default_rng(seed))
    augmented, changes = drawn.apply(features, 0.0), drawn.in_time
    found = dataset.targets(intervals, labels, 10480, len(augmented), changes)
    count = dataset.count(10480)
    wanted = plain_targets(plainly_moved(inside, changes, 64, 160), edges_of(dataset.grid, count), 3)
    is_hidden = ~augmented.any(dim=1).numpy()
    if not options["random_resized_crop"]:  # its padding is hidden too
        for frame in range(count):
            first, stop = ((frame + side) * dataset.grid.step + dataset.grid.offset for side in (0, 1))
            if stop <= 64 * 160 and is_hidden[first // 160 : -(-stop // 160)].all():
                wanted[frame] = math.nan
        np.testing.assert_array_equal(found, wanted)
    else:
        seen = ~np.isnan(found).all(axis=1)
        np.testing.assert_array_equal(found[seen], wanted[seen])


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(5, 40)), min_size=1, max_size=3),
    AUGMENTATIONS,
    st.integers(0, 2**20),
)
@settings(max_examples=100, deadline=None)
def test_intervals_move_with_the_picture(events, options, seed):
    """A spectrogram that is 1 within events and 0 elsewhere stays so, but for blurred edges and masked frames."""
    num_frames, options = 100, options | {"time_mask_frames": 0}
    picture = torch.zeros(num_frames, 16)
    for begin, length in events:
        picture[begin : begin + length] = 1
    intervals = np.array([(begin, min(begin + length, num_frames)) for begin, length in events], dtype=float)
    settings = AugmentationArguments(**options, crop_frequency_scale=[1.0, 1.0])
    drawn = FeatureChanges.draw(num_frames, 16, settings, np.random.default_rng(seed))
    moved, changes = drawn.apply(picture, 0.0), drawn.in_time
    pieces, origins = changes.move(intervals, num_frames)
    assert set(origins.tolist()) <= set(range(len(events)))
    middles = np.arange(num_frames) + 0.5
    inside = ((pieces[:, :1] <= middles) & (middles < pieces[:, 1:])).any(axis=0)
    edges = np.concatenate([pieces.ravel(), [changes.shift % num_frames, 0, num_frames]])
    scale = 1 if changes.part is None else num_frames / changes.part[1]
    is_clear = np.abs(middles - edges[:, None]).min(axis=0) > (0 if changes.part is None else 1 + 2 * scale)
    np.testing.assert_array_equal((moved[:, 0] > 0.5).numpy()[is_clear], inside[is_clear])


def crops_of(extractor, events, options, seed) -> CropDataset:
    model = DualSSASTForAudioFrameClassification(
        DualSSASTConfig(**TINY | {"num_mel_bins": 128, "time_stride": 4, "num_labels": 3})
    )
    grid = frame_grid(model, extractor)
    recording = Annotated(
        "x.wav",
        "x.wav",
        16000 * 4,
        np.array([event[:2] for event in events], dtype=float).reshape(-1, 2),
        np.array([event[2] for event in events], dtype=int),
    )
    drawer = CropDrawer([recording], grid.length, 4, None)
    counter = FrameCounter(model, extractor, grid)
    return CropDataset([recording], extractor, LABELS, grid, counter, drawer, AugmentationArguments(**options), seed)


# ---- every encoder ----

MODELS = {
    "patch": lambda: DualSSASTForAudioFrameClassification(DualSSASTConfig(**TINY)),
    "fine": lambda: DualSSASTForAudioFrameClassification(DualSSASTConfig(**TINY | {"time_stride": 4})),
    "frames": lambda: DualSSASTForAudioFrameClassification(
        DualSSASTConfig(**TINY | {"patch_size": [128, 2], "frequency_stride": 128, "time_stride": 2})
    ),
    "asit": lambda: ASiTForAudioFrameClassification(
        ASiTConfig(
            **TINY | {"readout": "tokens", "num_token_frames": 16, "attention_over_padding": True, "frame_hop_s": 0.04}
        )
    ),
    "cnn14": lambda: PannsCnn14ForAudioFrameClassification(
        PannsCnn14Config(channels=[2, 3, 4, 5, 6, 7], embedding_size=5)
    ),
    "vggish": lambda: VGGishForAudioFrameClassification(
        VGGishConfig(channels=[3, 4, 5, 6], fc_size=8, embedding_size=5)
    ),
}
EXTRACTORS = {"cnn14": PannsCnn14FeatureExtractor, "vggish": VGGishFeatureExtractor}


def make(name: str):
    torch.manual_seed(0)
    extractor = EXTRACTORS[name]() if name in EXTRACTORS else DualSSASTFeatureExtractor(max_length=64)
    return MODELS[name]().eval(), extractor


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seconds", [0.05, 0.4, 0.64, 1.7, 3.33])
def test_frames_are_counted_as_the_model_gives_them(name, seconds, tmp_path):
    """Windows cover the recording without gaps, and every frame of theirs has a row of logits."""
    model, extractor = make(name)
    grid = frame_grid(model, extractor, window_s=None if name in ("patch", "fine", "frames", "asit") else 2.0)
    counter = FrameCounter(model, extractor, grid)
    num_samples = round(seconds * extractor.sampling_rate)
    recording = Annotated("x.wav", "x.wav", num_samples, np.zeros((0, 2)), np.zeros(0, dtype=int))
    labels = LabelSet(("a", "b"), "multi_label_classification")
    dataset = WindowDataset([recording], extractor, labels, grid, counter)
    seen = np.zeros(len(dataset.targets[0]), dtype=bool)
    for _, first in dataset.windows:
        start = first * grid.step
        waveform = torch.zeros(min(grid.length, num_samples - start))
        features = extractor([waveform], extractor.sampling_rate, return_attention_mask=True, return_tensors="pt")
        logits = model(**features).logits
        rows = min(grid.frames, len(seen) - first)
        assert 0 < rows <= logits.shape[1]
        assert logits.shape[1] == rows or name == "asit" or rows < grid.frames
        seen[first : first + rows] = True
    assert seen.all()
    edges = dataset.edges_s(0)
    assert edges[0] == 0 and edges[-1] == pytest.approx(seconds) and (np.diff(edges) >= 0).all()
    assert model.config.frame_hop_s == pytest.approx(grid.hop_s)


def test_frames_that_nobody_knows_have_no_score():
    model, extractor = make("patch")
    grid = frame_grid(model, extractor)
    num_samples = 3 * extractor.sampling_rate
    intervals = np.array([[0.5, 1.5], [1.0, 2.0]]) * extractor.sampling_rate
    recording = Annotated("x.wav", "x.wav", num_samples, intervals, np.array([0, UNSURE]))
    labels = LabelSet(("a", "b"), "multi_label_classification")
    stretches = [Stretch("x.wav", "x.wav", 3.0, (), ())]
    dataset = WindowDataset([recording], extractor, labels, grid, FrameCounter(model, extractor, grid), stretches)
    given = np.full(dataset.targets[0].shape, 0.5, dtype=np.float32)
    ((name, (scores, edges)),) = dataset.known_scores([given]).items()
    unknown = (edges[1:] > 1.0 + 1e-6) & (edges[:-1] < 2.0 - 1e-6)
    assert name == "x.wav" and unknown.any() and not unknown.all()
    assert ((scores[:, 1] == 0) == unknown).all() and (given == 0.5).all()
    assert ((scores[:, 0] == 0) == (unknown & (edges[:-1] > 1.5 - 1e-6))).all()  # an event is known
    given[:, 0] = np.where(unknown, 1.0, dataset.targets[0][:, 0])  # would be wrong, if somebody knew
    events = {"x.wav": [Event(0.5, 1.5, "a")]}
    assert frame_mean_average_precision(dataset.known_scores([given]), events, labels.names) == 1.0
    assert frame_mean_average_precision({"x.wav": (given, edges)}, events, labels.names) < 1.0


def test_the_published_chunks_of_asit_are_windows():
    """10 s of 998 spectrogram frames have 250 frames, although 9.995 s would be enough for the spectrogram."""
    config = ASiTConfig(
        **TINY | {"readout": "tokens", "max_length": 998, "num_token_frames": 250, "frame_hop_s": 0.04},
        attention_over_padding=True,
    )
    model, extractor = ASiTForAudioFrameClassification(config), DualSSASTFeatureExtractor(max_length=998)
    for window_s in (None, 10.0):
        grid = frame_grid(model, extractor, window_s, hop_s=10.0)
        assert (grid.step, grid.frames, grid.length, grid.hop) == (640, 250, 160000, 250)
    assert grid.windows(160000) == [0]
    assert grid.windows(160001) == [0, 1]
    assert frame_grid(model, extractor).hop == 125
    with pytest.raises(InputError, match="hop_s must be at most 10"):
        frame_grid(model, extractor, hop_s=10.1)


def test_a_window_without_a_frame_is_refused():
    model, extractor = make("patch")
    with pytest.raises(InputError, match="window_s must be at least 0.175"):
        frame_grid(model, extractor, window_s=0.1)
