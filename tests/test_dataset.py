"""training/dataset.py and augmentation.py: seeded by clip and epoch, the same with any number of workers."""

import datasets
import numpy as np
import pytest
import torch
from audio_files import write_tone
from tiny_models import TINY

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.augmentation import (
    AugmentationArguments,
    augment_features,
    clip_generator,
    mix_waveforms,
    random_crop,
)
from training.dataset import ClipDataset, Collator, EpochCallback, mean_over_windows
from training.errors import InputError
from training.labels import LabelSet

LABELS = LabelSet(("high", "low"), "single_label_classification")
ALL = AugmentationArguments(
    frequency_mask_bins=24, time_mask_frames=10, mixup_rate=0.5, noise=True, time_shift_frames=5
)


@pytest.fixture
def examples(tmp_path):
    paths = [write_tone(tmp_path / f"{i}.wav", seconds=0.2 + 0.1 * i, hz=200 * (i + 1), seed=i) for i in range(6)]
    return datasets.Dataset.from_dict({"audio": list(map(str, paths)), "label": ["high", "low"] * 3})


@pytest.fixture
def extractor():
    return DualSSASTFeatureExtractor(max_length=40)


def test_without_augmentation_a_clip_is_its_features(examples, extractor):
    dataset = ClipDataset(examples, extractor, LABELS)
    item, (features,) = dataset[1], dataset[1]["input_values"]
    assert item["labels"] == 1 and features.shape == (28, 128)
    assert torch.equal(features, dataset[1]["input_values"][0])


def test_without_augmentation_a_long_clip_comes_in_windows(examples, extractor):
    """0.7 s are 68 frames, the model hears 40 of them at once."""
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


def test_workers_see_the_epoch_and_give_the_same_batches(examples, extractor):
    dataset = ClipDataset(examples, extractor, LABELS, ALL)
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


@pytest.mark.parametrize("settings", [{"mixup_rate": 1.5}, {"time_mask_frames": -1}])
def test_impossible_settings_are_told(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        AugmentationArguments(**settings)


def test_a_damaged_clip_is_told_from_inside_a_worker(examples, extractor, tmp_path):
    from training.errors import one_line

    (tmp_path / "2.wav").write_bytes(b"nothing")
    dataset = ClipDataset(examples, extractor, LABELS)
    with pytest.raises(InputError) as caught:
        list(torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=Collator(extractor)))
    assert one_line(caught.value).startswith(str(tmp_path / "2.wav")) and "\n" not in one_line(caught.value)
