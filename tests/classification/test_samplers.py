"""Tests samplers: every clip, by seed and epoch alone; little padding; class frequencies."""

import types

import numpy as np
import pytest
import torch
from audio_files import ROOT
from sklearn.utils.class_weight import compute_class_weight

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor
from training.classification.arguments import ClassificationTrainingArguments, TuningArguments
from training.classification.samplers import ClipSampler, class_weights, clip_weights, make_sampler, positive_weights
from training.data.columns import Columns
from training.data.dataset import ClipDataset, Collator
from training.data.labels import LabelSet, find_labels
from training.data.tables import load_table
from training.errors import InputError


def sampler(num_clips: int = 50, epoch: int = 0, seed: int = 0, **settings) -> ClipSampler:
    return ClipSampler(num_clips, seed, torch.tensor([epoch]), **settings)


@pytest.mark.parametrize("lengths", [None, [3 * index % 17 + 1 for index in range(50)]])
def test_an_epoch_is_every_clip_once_by_seed_and_epoch(lengths):
    settings = {"lengths": lengths, "group_size": 4}
    orders = [list(sampler(epoch=epoch, seed=seed, **settings)) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    torch.rand(3)  # the global generators do not matter
    assert list(sampler(**settings)) == orders[0]


def test_clips_of_a_step_are_alike_in_length_and_the_rest_comes_last():
    lengths = np.random.default_rng(0).integers(10, 1000, size=1003)
    order = list(sampler(len(lengths), lengths=lengths.tolist(), group_size=8))
    steps = [lengths[order[first : first + 8]] for first in range(0, len(order), 8)]
    assert len(steps[-1]) == 3
    padding = 1 - lengths.sum() / sum(step.max() * len(step) for step in steps)
    assert padding < 0.08
    means = np.array([step.mean() for step in steps])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2  # neither the longest nor the shortest first


@pytest.mark.parametrize("batch_size", [8, 16])
def test_padding_of_the_voice_prompts_is_below_a_tenth(batch_size):
    """Measures the padding of batches, with lengths from the headers, with groups and without."""
    data = load_table(ROOT / "data" / "voice_prompts" / "train.csv", Columns(label="language"))
    extractor = DualSSASTFeatureExtractor(max_length=512)
    dataset = ClipDataset(data, extractor, find_labels(data["label"], None))
    arguments = ClassificationTrainingArguments(
        output_dir="unused", per_device_train_batch_size=batch_size, train_sampling_strategy="group_by_length"
    )
    grouped = make_sampler(TuningArguments(), dataset.labels, dataset, arguments, DualSSASTConfig())
    shares = []
    for order in (grouped, np.random.default_rng(0).permutation(len(dataset)).tolist()):
        loader = torch.utils.data.DataLoader(dataset, batch_size, sampler=order, collate_fn=Collator(extractor))
        masks = [batch["attention_mask"] for batch in loader]
        shares.append(1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks))
    assert shares[0] < 0.1 and shares[1] > 0.3


def test_lengths_are_those_the_model_hears(tmp_path):
    from audio_files import write_tone
    from datasets import Dataset

    paths = [
        str(write_tone(tmp_path / f"{rate}.wav", seconds=seconds, rate=rate))
        for seconds, rate in ((0.5, 8000), (9, 16000))
    ]
    data = Dataset.from_dict({"audio": paths, "label": ["a", "b"]})
    extractor = DualSSASTFeatureExtractor(max_length=100)
    assert ClipDataset(data, extractor, find_labels(["a", "b"], None)).num_samples() == [8000, extractor.max_samples]


def test_balanced_classes_are_drawn_alike():
    classes = np.repeat([0, 1, 2], [900, 90, 10])
    weights = clip_weights(np.eye(3, dtype=bool)[classes])
    order = list(sampler(1000, weights=weights))
    assert len(order) == 1000 and order == list(sampler(1000, weights=weights))
    counts = np.bincount(classes[order])
    assert (np.abs(counts - 1000 / 3) < 5 * np.sqrt(1000 / 3)).all()
    lengths = np.arange(1000).tolist()
    grouped = list(sampler(1000, weights=weights, lengths=lengths, group_size=8))
    assert sorted(grouped) == sorted(order)  # the same draw in another order


def test_weights_of_several_labels_are_the_sums_of_inverse_counts():
    matrix = np.array([[1, 0], [1, 1], [1, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose(clip_weights(matrix), [1 / 3, 1 / 3 + 1, 1 / 3, 1 / 2, 1 / 2])
    np.testing.assert_allclose(positive_weights(matrix), [2 / 3, 4])
    np.testing.assert_allclose(positive_weights(np.array([[1, 0], [1, 0]])), [1, 1])


def test_class_weights_are_scikit_learns():
    classes = np.array([0, 0, 0, 2, 2, 3])
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=classes)
    np.testing.assert_allclose(class_weights(np.eye(4)[classes]), [expected[0], 1, expected[1], expected[2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("problem_type", "strategy", "pattern"),
    [
        ("regression", "random", "sampler: balanced needs classes"),
        ("single_label_classification", "sequential", "train_sampling_strategy is sequential; set random"),
    ],
)
def test_samplers_that_cannot_be_are_told(problem_type, strategy, pattern):
    arguments, labels = types.SimpleNamespace(train_sampling_strategy=strategy), LabelSet(("a", "b"), problem_type)
    with pytest.raises(InputError, match=pattern):
        make_sampler(TuningArguments(sampler="balanced"), labels, None, arguments, DualSSASTConfig())
