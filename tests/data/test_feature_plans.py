"""Tests training/data/feature_plans.py: features made in batches, on any device, are those of the workers."""

import dataclasses
import pickle

import datasets
import numpy as np
import pytest
import torch
from audio_files import write_tone
from golden import EPS, assert_filter_bank_close
from tiny_models import TINY

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTModel,
    PannsCnn14FeatureExtractor,
    VGGishFeatureExtractor,
)
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.data.augmentation import AugmentationArguments
from training.data.dataset import ClipDataset, Collator
from training.data.feature_plans import FeaturePlan, PlannedBatch, make_features
from training.data.labels import LabelSet

LABELS = LabelSet(("high", "low"), "single_label_classification")
NUM_FFT = 512  # of windows of 25 ms at 16 kHz
ALL = AugmentationArguments(
    frequency_mask_bins=24, time_mask_frames=10, mixup_rate=0.7, noise=True, time_shift_frames=5, gain_db=6.0,
    random_resized_crop=True,
)  # fmt: skip
SETTINGS = {
    "none": None,
    "crops": AugmentationArguments(),
    "all": ALL,
    "spectrogram": dataclasses.replace(ALL, mixup_domain="spectrogram"),
    "noise": AugmentationArguments(noise=True),
}


@pytest.fixture
def examples(tmp_path):
    """Clips of 0.2 to 0.7 s, of which the extractor takes 0.4 s."""
    paths = [write_tone(tmp_path / f"{i}.wav", seconds=0.2 + 0.1 * i, hz=200 * (i + 1), seed=i) for i in range(6)]
    return datasets.Dataset.from_dict({"audio": list(map(str, paths)), "label": ["high", "low"] * 3})


@pytest.fixture
def extractor():
    return DualSSASTFeatureExtractor(max_length=40)


@pytest.fixture
def one_at_a_time(monkeypatch):
    """
    Computes log-mels clip by clip in batches, too: matrix products of other sizes may be rounded otherwise, and all
    else is the same arithmetic.
    """
    together = DualSSASTFeatureExtractor.normalized_log_mel
    monkeypatch.setattr(
        DualSSASTFeatureExtractor,
        "normalized_log_mel",
        lambda self, clips, most: [together(self, [clip], most)[0] for clip in clips],
    )


def pair(examples, extractor, augmentation=None, epoch=0, **settings):
    """The data set of features, and that of plans."""
    common = (examples, extractor, LABELS, augmentation, 3)
    found = [ClipDataset(*common, on_device=on_device, **settings) for on_device in (False, True)]
    for dataset in found:
        dataset.epoch.fill_(epoch)
    return found


def made(batch: dict, extractor) -> dict:
    return batch | batch.pop(PlannedBatch.KEY).make(extractor)


def assert_equal(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("augmentation", SETTINGS.values(), ids=SETTINGS)
def test_a_batch_made_of_plans_is_that_of_the_workers(examples, extractor, augmentation, epoch):
    plain, planned = pair(examples, extractor, augmentation, epoch)
    collate = Collator(extractor)
    expected, found = (collate([dataset[index] for index in range(6)]) for dataset in (plain, planned))
    assert next(iter(found)) == "labels"  # by which Trainer counts the clips
    assert_equal(made(found, extractor), expected)
    if augmentation is SETTINGS["all"]:
        other = pair(examples, extractor, augmentation, epoch + 1)[1]
        assert not torch.equal(made(collate([other[i] for i in range(6)]), extractor)["labels"], expected["labels"])


def test_log_mels_of_a_batch_are_those_of_each_clip(examples, extractor):
    """Within what the rounding of a Fourier transform and of sums of other orders allows."""
    plain, planned = pair(examples, extractor)
    plans = [planned[index]["input_values"][0] for index in range(6)]
    for plan, found, index in zip(plans, make_features(plans, extractor), range(6)):
        (expected,) = plain[index]["input_values"]
        assert found.shape == plan.shape(extractor) == expected.shape
        assert_filter_bank_close(found, expected.numpy(), NUM_FFT, nats=2 * extractor.std)


@pytest.mark.usefixtures("one_at_a_time")
def test_workers_hand_over_the_batches_of_the_process_itself(examples, extractor):
    plain, planned = pair(examples, extractor, ALL, epoch=1)
    settings = {"batch_size": 3, "collate_fn": Collator(extractor)}
    expected = list(torch.utils.data.DataLoader(plain, **settings))
    for workers in (0, 2):
        found = list(torch.utils.data.DataLoader(planned, num_workers=workers, **settings))
        assert len(found) == 2
        for batch, wanted in zip(found, expected):
            assert_equal(made(batch, extractor), wanted)


@pytest.mark.usefixtures("one_at_a_time")
def test_a_long_clip_comes_in_windows(examples, extractor):
    windows = window_and_hop(DualSSASTModel(DualSSASTConfig(**TINY | {"max_length": 40})), extractor)
    plain, planned = pair(examples, extractor, windows=windows)
    expected, found = (Collator(extractor)([one[index] for index in (0, 5, 1)]) for one in (plain, planned))
    assert found["num_windows"].tolist() == [1, 3, 1]
    assert_equal(made(found, extractor), expected)


def test_a_batch_is_one_tensor_and_moves_as_a_whole(examples, extractor):
    _, planned = pair(examples, extractor, SETTINGS["spectrogram"])
    plans = [planned[index]["input_values"] for index in range(6)]
    batch = PlannedBatch(plans)
    sizes = [tensor.numel() for plan in plans for tensor in plan.tensors if tensor is not None]
    assert batch.values.shape == (sum(sizes),) and any(plan.other is not None for plan in plans)
    assert all(tensor is None for plan in batch.plans for tensor in plan.tensors)
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert moved.values.device.type == "meta" and batch.values.device.type == "cpu"
    expected = batch.make(extractor)
    assert_equal(pickle.loads(pickle.dumps(batch)).make(extractor), expected)
    assert_equal(batch.make(extractor), expected)  # making changes nothing


def test_samples_that_are_not_finite_are_refused_in_the_worker(extractor):
    with pytest.raises(ValueError, match="clip 0 holds 1 NaN or infinite samples"):
        FeaturePlan.of(np.array([0.0, np.nan], dtype=np.float32), extractor)


@pytest.mark.parametrize(
    "extractor",
    [
        DualSSASTFeatureExtractor(max_length=90),
        DualSSASTFeatureExtractor(sampling_rate=11025, frame_shift_ms=12.5),
        DualSSASTFeatureExtractor(min_samples=5000),
        PannsCnn14FeatureExtractor(max_length=60),
        PannsCnn14FeatureExtractor(sampling_rate=32000),
        VGGishFeatureExtractor(),
    ],
)
@pytest.mark.parametrize("num_samples", [1, 399, 400, 511, 512, 513, 560, 1024, 4999, 5000, 5160, 16000])
def test_the_shape_of_features_is_known_before_they_are_made(extractor, num_samples):
    clip = np.random.default_rng(0).uniform(-0.5, 0.5, num_samples).astype(np.float32)
    plan = FeaturePlan.of(clip, extractor)
    assert make_features([plan], extractor)[0].shape == plan.shape(extractor)


class EqualNumbers(DualSSASTFeatureExtractor):
    """Makes numbers in [0, 1) instead of log-mels, the same on every device."""

    def normalized_log_mel(self, waveforms, max_length):
        rng, device = np.random.default_rng(0), waveforms[0].device
        shapes = [(min(self.num_frames(len(clip)), max_length), self.num_mel_bins) for clip in waveforms]
        return [torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device) for shape in shapes]


@pytest.mark.cuda
@pytest.mark.parametrize("augmentation", SETTINGS.values(), ids=SETTINGS)
def test_on_a_gpu_a_batch_is_that_of_a_cpu(examples, extractor, augmentation):
    """
    Log-mels within what the rounding of a Fourier transform allows. What is done to them has no such bound in quiet
    bins, so it is tested on equal numbers.
    """
    _, planned = pair(examples, extractor, augmentation)
    batch = Collator(extractor)([planned[index] for index in range(6)])[PlannedBatch.KEY]
    is_plain = augmentation in (None, AugmentationArguments())
    if not is_plain:
        extractor = EqualNumbers(max_length=40)
    expected, found = batch.make(extractor), batch.pin_memory().to("cuda", non_blocking=True).make(extractor)
    assert found["input_values"].is_cuda
    values, wanted = found["input_values"].cpu(), expected["input_values"]
    if is_plain:
        for row, own, mask in zip(values, wanted, expected["attention_mask"].bool()):
            assert_filter_bank_close(row[mask], own[mask].numpy(), NUM_FFT, nats=2 * extractor.std)
    else:
        # Of values up to 1: the weights of a bicubic resizing add up to 1.375 per axis in size, over 16 terms. Its
        # places, up to 128, are rounded by 64 EPS per axis, and it changes by at most 2 from place to place.
        torch.testing.assert_close(values, wanted, atol=(16 * 1.375**2 + 2 * 2 * 64) * EPS, rtol=0)
    assert torch.equal(found["attention_mask"].cpu(), expected["attention_mask"])
