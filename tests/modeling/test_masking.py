"""Tests modeling_dual_ssast/masking_dual_ssast.py against a slow sampler written from SSAST's published procedure."""

import random

import pytest
import torch

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForPreTraining
from modeling_dual_ssast.masking_dual_ssast import num_masked_patches, sample_masked_patches

ROWS, COLUMNS, MASKED = 8, 64, 400


def published_mask(rng: random.Random, columns: int = COLUMNS, masked: int = MASKED, unbiased: bool = True) -> set[int]:
    """One clip's mask, square by square. `unbiased`: with the two differences that the docstring names."""
    cells = ROWS * columns
    side = rng.randrange(3) + 3
    chosen: list[int] = []
    while len(set(chosen)) < masked + (not unbiased):
        start = rng.randrange(cells)
        square = [start + columns * i + j for i in range(side) for j in range(side)]
        square = [cell for cell in square if (0 if unbiased else 1) <= cell < cells]
        rng.shuffle(square)
        chosen += square
    if not unbiased:
        return set(sorted(set(chosen))[:masked])
    return set(list(dict.fromkeys(chosen))[:masked])


def frequencies(masks) -> torch.Tensor:
    counts = torch.zeros(ROWS * COLUMNS)
    for mask in masks:
        counts[list(mask)] += 1
    return counts / len(masks)


def draw(batch: int, columns=None, clustered: bool = True, ratio: float = MASKED / 512, seed: int = 0) -> torch.Tensor:
    columns = torch.full((batch,), COLUMNS) if columns is None else columns
    generator = torch.Generator().manual_seed(seed)
    return sample_masked_patches(ROWS, COLUMNS, columns, ratio, clustered, generator)


@pytest.fixture(scope="module")
def hundred_thousand():
    """Counts per clip and how often each place is masked, over 100,000 clips."""
    counts, places = [], torch.zeros(ROWS * COLUMNS)
    for seed in range(100):
        mask = draw(1000, seed=seed)
        counts.append(mask.sum(dim=1))
        places += mask.sum(dim=0)
    return torch.cat(counts), places / 100_000


def test_the_count_is_exact():
    assert (draw(1000).sum(dim=1) == MASKED).all()


@pytest.mark.slow
def test_the_count_is_exact_a_hundred_thousand_times(hundred_thousand):
    counts, _ = hundred_thousand
    assert len(counts) == 100_000 and (counts == MASKED).all()


@pytest.mark.slow
def test_every_place_is_masked_as_often_as_in_the_reference(hundred_thousand):
    _, places = hundred_thousand
    rng = random.Random(0)
    reference = frequencies([published_mask(rng) for _ in range(8000)])
    assert (places - reference).abs().max() < 0.02


@pytest.mark.slow
def test_it_differs_from_the_published_sampler_only_where_that_is_biased(hundred_thousand):
    _, places = hundred_thousand
    rng = random.Random(0)
    published = frequencies([published_mask(rng, unbiased=False) for _ in range(8000)])
    assert published[0] == 0 and places[0] > 0.1
    assert published[-1] < 0.1 < places[-1]
    assert (places - published)[1:450].abs().max() < 0.03


def test_sides_are_three_four_and_five():
    """If the first square is the whole mask, its extent is its side."""
    for side in (3, 4, 5):
        masks = draw(3000, ratio=side * side / 512).view(-1, ROWS, COLUMNS)
        extents = torch.stack([masks.any(dim=2).sum(dim=1), masks.any(dim=1).sum(dim=1)], dim=1)  # (clips, 2)
        whole = (extents == side).all(dim=1).float().mean()
        # A third of the clips draw this side; of their squares those that keep off the edges are whole.
        inside = (ROWS - side + 1) * (COLUMNS - side + 1) / (ROWS * COLUMNS)
        assert whole == pytest.approx(inside / 3, abs=0.04)


def test_short_clips_are_masked_in_proportion_and_never_on_padding():
    columns = torch.tensor([64, 32, 5, 1])
    for clustered in (True, False):
        mask = draw(4, columns, clustered).view(4, ROWS, COLUMNS)
        assert mask.sum(dim=(1, 2)).tolist() == num_masked_patches(columns * ROWS, MASKED / 512).tolist()
        for clip, width in zip(mask, columns):
            assert not clip[:, width:].any()


def test_frames_are_masked_one_by_one_and_uniformly():
    places = torch.stack([draw(1000, clustered=False, seed=seed).float().mean(dim=0) for seed in range(20)]).mean(dim=0)
    assert (places - MASKED / 512).abs().max() < 0.02
    neighbours = draw(2000, clustered=False).view(-1, ROWS, COLUMNS).float()
    together = (neighbours[:, :, 1:] * neighbours[:, :, :-1]).mean()
    assert together == pytest.approx((MASKED / 512) ** 2, abs=0.005)
    clusters = draw(2000, clustered=True).view(-1, ROWS, COLUMNS).float()
    assert (clusters[:, :, 1:] * clusters[:, :, :-1]).mean() > together + 0.02


def test_a_seed_gives_the_same_masks():
    assert torch.equal(draw(3, seed=5), draw(3, seed=5)) and not torch.equal(draw(3, seed=5), draw(3, seed=6))


@pytest.mark.parametrize("patch", [{}, {"patch_size": [128, 2], "frequency_stride": 128, "time_stride": 2}])
def test_the_model_draws_a_mask_of_its_own(patch):
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = DualSSASTForPreTraining(DualSSASTConfig(**tiny, **patch, max_length=96, mask_ratio=0.5))
    values, mask = torch.randn(2, 96, 128), torch.ones(2, 96, dtype=torch.long)
    mask[1, 40:] = 0
    torch.manual_seed(0)
    output = model(values, mask)
    torch.manual_seed(0)
    assert torch.equal(model(values, mask).loss, output.loss)
    assert not torch.equal(model(values, mask).loss, output.loss)
    assert output.reconstruction.shape[1] == model.config.num_patches
    assert output.num_masked[0] == model.config.num_patches // 2
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
