"""Tests training/data/dataset.py and augmentation.py: seeds by clip and epoch, with any number of workers."""

import dataclasses
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from audio_files import write_tone
from tiny_models import TINY

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.data.augmentation import (
    AugmentationArguments,
    FeatureChanges,
    add_background,
    clip_generator,
    mix_features,
    mix_waveforms,
    random_crop,
    random_gain,
)
from training.data.dataset import ClipDataset, Collator, EpochCallback, mean_over_windows
from training.data.labels import LabelSet
from training.errors import InputError

LABELS = LabelSet(("high", "low"), "single_label_classification")
ALL = AugmentationArguments(
    frequency_mask_bins=24, time_mask_frames=10, mixup_rate=0.5, noise=True, time_shift_frames=5
)


def augment_features(features, settings, masked_value, rng):
    return FeatureChanges.draw(*features.shape, settings, rng).apply(features, masked_value)


@pytest.fixture
def examples(tmp_path):
    paths = [write_tone(tmp_path / f"{i}.wav", seconds=0.2 + 0.1 * i, hz=200 * (i + 1), seed=i) for i in range(6)]
    return datasets.Dataset.from_dict({"audio": list(map(str, paths)), "label": ["high", "low"] * 3})


@pytest.fixture
def backgrounds(tmp_path):
    """A folder with a short background and a long one."""
    for seconds in (0.1, 3.0):
        write_tone(tmp_path / "backgrounds" / "deeper" / f"{seconds}.wav", seconds=seconds, hz=90, rate=8000)
    return str(tmp_path / "backgrounds")


@pytest.fixture
def extractor():
    return DualSSASTFeatureExtractor(max_length=40)


def test_without_augmentation_a_clip_is_its_features(examples, extractor):
    dataset = ClipDataset(examples, extractor, LABELS)
    item, (features,) = dataset[1], dataset[1]["input_values"]
    assert item["labels"] == 1 and features.shape == (28, 128)
    assert torch.equal(features, dataset[1]["input_values"][0])


def test_without_augmentation_a_long_clip_comes_in_windows(examples, extractor):
    """Clips of 0.7 s have 68 frames; the model takes 40 at once."""
    windows = window_and_hop(DualSSASTModel(DualSSASTConfig(**TINY | {"max_length": 40})), extractor)
    dataset = ClipDataset(examples, extractor, LABELS, windows=windows)
    assert [[len(part) for part in dataset[index]["input_values"]] for index in (0, 5)] == [[18], [40, 40, 40]]
    batch = Collator(extractor)([dataset[0], dataset[5], dataset[1]])
    assert batch["input_values"].shape == (5, 40, 128) and batch["num_windows"].tolist() == [1, 3, 1]
    assert next(iter(batch)) == "labels" and len(batch["labels"]) == 3
    means = mean_over_windows(torch.tensor([1.0, 2.0, 3.0, 7.0, 5.0]), batch["num_windows"])
    assert means.tolist() == [1.0, 4.0, 5.0]


def test_augmentation_depends_on_seed_epoch_and_index_only(examples, extractor):
    one, two = (ClipDataset(examples, extractor, LABELS, ALL, seed=7) for _ in range(2))
    torch.rand(10)  # the global generators do not matter
    np.random.random(10)
    for index in range(6):
        assert torch.equal(one[index]["input_values"], two[index]["input_values"])
        np.testing.assert_array_equal(one[index]["labels"], two[index]["labels"])
    two.epoch.fill_(1)
    assert any(not torch.equal(one[i]["input_values"], two[i]["input_values"]) for i in range(6))
    other = ClipDataset(examples, extractor, LABELS, ALL, seed=8)
    assert any(not torch.equal(one[i]["input_values"], other[i]["input_values"]) for i in range(6))


NEW = {"gain_db": 6.0, "random_resized_crop": True, "mixup_alpha": 2.0, "mixup_rate": 0.7}


@pytest.mark.parametrize(
    "settings", [{}, NEW, NEW | {"mixup_domain": "spectrogram"}], ids=["old", "new", "spectrogram"]
)
def test_workers_see_the_epoch_and_give_the_same_batches(examples, extractor, backgrounds, settings):
    if settings:
        settings = settings | {"background_folder": backgrounds, "background_rate": 0.7}
    dataset = ClipDataset(examples, extractor, LABELS, dataclasses.replace(ALL, **settings))
    batches = {}
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=Collator(extractor))
        for epoch in (0, 1):
            dataset.epoch.fill_(epoch)
            batches[workers, epoch] = list(loader)
    for epoch in (0, 1):
        for one, two in zip(batches[0, epoch], batches[2, epoch]):
            assert all(torch.equal(one[key], two[key]) for key in ("input_values", "attention_mask", "labels"))
    assert not torch.equal(batches[0, 0][0]["input_values"][0, :19], batches[0, 1][0]["input_values"][0, :19])


def test_the_callback_sets_whole_epochs(examples, extractor):
    dataset = ClipDataset(examples, extractor, LABELS, ALL)
    callback = EpochCallback(dataset)
    for state_epoch, epoch in ((0.0, 0), (1.9999999999, 2), (2.5, 2)):
        callback.on_epoch_begin(None, type("State", (), {"epoch": state_epoch}), None)
        assert int(dataset.epoch) == epoch


def test_collator_pads_to_the_longest_and_masks(examples, extractor):
    dataset = ClipDataset(examples, extractor, LABELS)
    batch = Collator(extractor)([dataset[0], dataset[1]])
    assert batch["input_values"].shape == (2, 28, 128)
    assert batch["attention_mask"].sum(dim=1).tolist() == [18, 28]
    assert (batch["input_values"][0, 18:] == np.float32(extractor.padding_value)).all()
    assert batch["labels"].tolist() == [0, 1]


def test_mixup_gives_every_clip_soft_labels_that_sum_to_one(examples, extractor):
    dataset = ClipDataset(examples, extractor, LABELS, AugmentationArguments(mixup_rate=0.5))
    labels = np.stack([dataset[index]["labels"] for index in range(6)])
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    assert ((labels > 0.01) & (labels < 0.99)).any() and (labels == 1).any()


def test_mixed_waveforms_are_weighted_sums_without_means():
    first, second = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0])
    mixed = mix_waveforms(first, second, 0.25)
    np.testing.assert_allclose(mixed, [0.25 * -1 + 0.75 * -5, 0.75 * 5, 0.25])


def test_random_crop_covers_every_start():
    clip = np.arange(12)
    starts = {int(random_crop(clip, 10, clip_generator(0, 0, index))[0]) for index in range(50)}
    assert starts == {0, 1, 2}
    assert len(random_crop(clip, 20, clip_generator(0, 0, 0))) == 12


def test_masks_are_bands_of_the_padding_value_and_no_wider_than_asked():
    features = torch.ones(50, 128)
    settings = AugmentationArguments(frequency_mask_bins=20, time_mask_frames=8)
    widest_band = widest_gap = 0
    for index in range(40):
        masked = augment_features(features, settings, 0.467, clip_generator(0, 0, index)) != 1
        bins, frames = masked.all(dim=0), masked.all(dim=1)
        assert torch.equal(masked, bins.unsqueeze(0) | frames.unsqueeze(1))
        for line in (bins, frames):
            assert (line.long().diff() == 1).sum() <= 1  # one band
        widest_band, widest_gap = max(widest_band, int(bins.sum())), max(widest_gap, int(frames.sum()))
    assert 10 < widest_band < 20 and 4 < widest_gap < 8


def test_a_time_shift_rolls_and_noise_stays_small():
    features = torch.arange(30.0).unsqueeze(1).expand(30, 4)
    shifted = augment_features(features, AugmentationArguments(time_shift_frames=5), 0.0, clip_generator(0, 0, 1))
    shift = int((features[:, 0] == shifted[0, 0]).nonzero())
    assert torch.equal(torch.roll(features, -shift, 0), shifted) and min(shift, 30 - shift) <= 5
    noise = augment_features(features, AugmentationArguments(noise=True), 0.0, clip_generator(0, 0, 1)) - features
    assert noise.min() >= 0 and 0 < noise.max() <= 0.1


def test_mixed_spectrograms_are_weighted_sums_of_the_firsts_length():
    first, second = torch.ones(3, 2), torch.full((2, 2), 5.0)
    mixed = mix_features(first, second, 0.25, padding_value=9.0)
    assert mixed.tolist() == [[4.0, 4.0], [4.0, 4.0], [7.0, 7.0]]
    assert mix_features(second, first, 0.25, 9.0).tolist() == [[2.0, 2.0], [2.0, 2.0]]


@pytest.mark.parametrize("domain", ["waveform", "spectrogram"])
def test_the_weight_of_a_mixture_is_that_of_its_labels(examples, extractor, domain):
    """Mixes a clip with itself: labels and features stay, except for the mean that waveforms lose."""
    settings = AugmentationArguments(mixup_rate=1.0, mixup_domain=domain, mixup_alpha=0.3)
    dataset = ClipDataset(examples.select([2]), extractor, LABELS, settings)
    plain = ClipDataset(examples.select([2]), extractor, LABELS)[0]["input_values"][0]
    torch.testing.assert_close(dataset[0]["input_values"], plain, atol=1e-3, rtol=1e-3)
    assert dataset[0]["labels"].tolist() == pytest.approx([1, 0])
    weights = [ClipDataset(examples, extractor, LABELS, settings, seed)[0]["labels"][0] for seed in range(40)]
    extreme = np.mean([min(weight, 1 - weight) < 0.05 for weight in weights])  # of Beta(0.3, 0.3), and the same class
    assert extreme > 0.3


def test_gains_are_uniform_in_decibels():
    waveform = np.ones(10, dtype=np.float32)
    gains = [20 * np.log10(random_gain(waveform, 6.0, clip_generator(0, 0, index))[0]) for index in range(400)]
    assert -6 <= min(gains) < -5.8 and 5.8 < max(gains) <= 6 and abs(np.mean(gains)) < 0.6
    assert random_gain(waveform, 6.0, clip_generator(0, 0, 0)).dtype == np.float32


@pytest.mark.parametrize("length", [400, 1000, 1500])
def test_a_background_has_its_signal_to_noise_ratio(length):
    rng = np.random.default_rng(0)
    clip = rng.standard_normal(1000).astype(np.float32)
    background = (0.01 * rng.standard_normal(length) + 3).astype(np.float32)
    added = add_background(clip, background, 10.0) - clip
    assert added.dtype == np.float32
    assert 10 * np.log10(np.var(clip) / np.var(added)) == pytest.approx(10, abs=0.01)
    if length == 400:
        np.testing.assert_allclose(added[:200], added[800:], atol=1e-5)
    silence = np.zeros(1000, dtype=np.float32)
    assert np.array_equal(add_background(silence, background, 10.0), silence)
    assert np.array_equal(add_background(clip, silence, 10.0), clip)


def test_backgrounds_are_heard_as_often_as_asked(examples, extractor, backgrounds):
    plain = ClipDataset(examples, extractor, LABELS, AugmentationArguments())
    heard = []
    for seed in range(10):
        settings = AugmentationArguments(background_folder=backgrounds, background_rate=0.3, background_snr_db=[0, 5])
        dataset = ClipDataset(examples, extractor, LABELS, settings, seed)
        pairs = [(dataset[index]["input_values"], plain[index]["input_values"]) for index in range(3)]
        heard += [not torch.equal(*pair) for pair in pairs]  # clips that are not cropped
    assert 0.1 < np.mean(heard) < 0.6
    none = AugmentationArguments(background_folder=backgrounds, background_rate=0.0)
    assert torch.equal(ClipDataset(examples, extractor, LABELS, none)[0]["input_values"], plain[0]["input_values"])


def test_a_background_folder_without_audio_is_told(examples, extractor, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        (tmp_path / "empty").mkdir(exist_ok=True)
        folder = tmp_path / "empty" if folder == tmp_path else folder
        with pytest.raises(InputError, match=f"background_folder: {folder} holds no audio files"):
            ClipDataset(examples, extractor, LABELS, AugmentationArguments(background_folder=str(folder)))


def test_a_damaged_background_is_told_before_the_training(examples, extractor, backgrounds):
    """The training ended at the first step that drew it."""
    for name in ("a", "b"):
        Path(backgrounds, f"{name}.wav").write_bytes(b"RIFF and no audio")
    settings = AugmentationArguments(background_folder=backgrounds, background_rate=0.1)
    with pytest.raises(InputError, match=r"a.wav: not readable as audio .*remove it \(and 1 more damaged files\)"):
        ClipDataset(examples, extractor, LABELS, settings)


def test_a_random_resized_crop_stretches_a_part():
    """A ramp stays a ramp, less steep the smaller the part is; what is longer than the clip holds padding."""
    ramp = torch.arange(100.0).unsqueeze(1).expand(100, 16)
    settings = AugmentationArguments(random_resized_crop=True, crop_time_scale=[0.5, 0.5])
    crops = [augment_features(ramp, settings, -1.0, clip_generator(0, 0, index)) for index in range(60)]
    ends = torch.stack([crop[[0, -1], 0] for crop in crops])  # exact where the corners meet
    inside = ends[(ends > -0.5).all(dim=1)]
    assert {crop.shape for crop in crops} == {ramp.shape} and 15 < len(inside) < 45
    torch.testing.assert_close(inside[:, 1] - inside[:, 0], torch.full((len(inside),), 49.0))
    bins = torch.arange(40.0).expand(20, 40)
    settings = AugmentationArguments(random_resized_crop=True, crop_frequency_scale=[0.5, 0.5], crop_time_scale=[1, 1])
    lowest = set()
    for index in range(200):
        crop = augment_features(bins, settings, -1.0, clip_generator(0, 0, index))
        first, last = crop[10, [0, -1]].tolist()  # never padding: the middle of the clip
        assert last - first == pytest.approx(19, abs=1e-3)
        lowest.add(round(first))
    assert lowest == set(range(21))
    settings = AugmentationArguments(random_resized_crop=True, crop_frequency_scale=[1, 1], crop_time_scale=[1.5, 1.5])
    crop = augment_features(ramp, settings, -1.0, clip_generator(0, 0, 0))
    padding = torch.full((12, 16), -1.0)
    torch.testing.assert_close(crop[:12], padding)
    torch.testing.assert_close(crop[-12:], padding)
    assert float(crop[49:51, 0].mean()) == pytest.approx(49.5, abs=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup_rate": 1.5},
        {"time_mask_frames": -1},
        {"mixup_alpha": 0.0},
        {"mixup_domain": "cepstrum"},
        {"gain_db": -3.0},
        {"gain_db": float("nan")},
        {"background_rate": -0.1},
        {"background_snr_db": [10.0, 0.0]},
        {"background_snr_db": [10.0]},
        {"crop_time_scale": [0.0, 1.0]},
        {"crop_frequency_scale": [1.0, float("inf")]},
    ],
)
def test_impossible_settings_are_told(settings):
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: must be"):
        AugmentationArguments(**settings)


def test_a_damaged_clip_is_told_from_inside_a_worker(examples, extractor, tmp_path):
    from training.errors import one_line

    (tmp_path / "2.wav").write_bytes(b"nothing")
    dataset = ClipDataset(examples, extractor, LABELS)
    with pytest.raises(InputError) as caught:
        list(torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=Collator(extractor)))
    assert one_line(caught.value).startswith(str(tmp_path / "2.wav")) and "\n" not in one_line(caught.value)
