"""Tests modeling_dual_ssast/corruption_asit.py: the original's numbers, draw by draw, and other inputs."""

import random

import numpy as np
import pytest
import torch
from golden import arrays, settings

from modeling_dual_ssast.corruption_asit import KINDS, corrupt, corruption_rng, replace, replace_from_batch

EXAMPLES = settings("asit")["gmml_args"]
# Frames that are no multiple of 16, too few for 16 to cover 70 % of them, and the published ones.
HEIGHTS = (108, 64, 592)


@pytest.fixture
def spectrogram():
    return positive(96)


def positive(frames: int) -> np.ndarray:
    """(frames, mel) without a zero."""
    return np.random.RandomState(0).uniform(0.5, 1, (frames, 128)).astype(np.float32)


def as_kind(array: np.ndarray, kind: type):
    return torch.from_numpy(array) if kind is torch.Tensor else array


# ---- the original's numbers ----


@pytest.mark.parametrize("kind", [np.ndarray, torch.Tensor])
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_reproduced_bit_for_bit(name, kind):
    stored, example = arrays("asit"), EXAMPLES[name]
    rng = np.random.RandomState(settings("asit")["gmml_seeds"][name])
    clean, donor = (as_kind(stored[key][0], kind) for key in ("gmml_input", "gmml_replacement"))
    is_utils = example["function"] == "utils"
    fraction, align = (example[key] for key in (("max_replace", "align") if is_utils else ("drop_perc", "drop_align")))
    if example["replacement"]:
        corrupted, mask = replace(clean, donor, fraction, align, rng)
    else:
        corrupted, mask = corrupt(clean, fraction, example["drop_type"], align, rng)
    assert isinstance(corrupted, kind) and isinstance(mask, kind)
    np.testing.assert_array_equal(corrupted, stored[f"gmml_{name}_output"][0])
    np.testing.assert_array_equal(mask, stored[f"gmml_{name}_mask"][0].astype(bool))


@pytest.mark.parametrize("kind", [np.ndarray, torch.Tensor])
def test_replacement_in_a_batch_is_reproduced_bit_for_bit(kind):
    """The original decides with Python's `random` and draws the rest with numpy, both at the same seed."""
    stored, described = arrays("asit"), settings("asit")
    names = ("clean_crop_0", "replace_list_prev", "replace_list_prev_mask")
    clean, corrupted, masks = (as_kind(stored[name][:, 0], kind) for name in names)  # (batch, frames, mel)
    seed = described["replace_list_seed"]
    rng, coin = np.random.RandomState(seed), random.Random(seed).random
    outcome = replace_from_batch(
        clean, corrupted, masks, described["drop_replace"], described["drop_align"], rng, coin=coin
    )
    np.testing.assert_array_equal(outcome[0], stored["replace_list_output"][:, 0])
    np.testing.assert_array_equal(outcome[1], stored["replace_list_mask"][:, 0])


# ---- properties ----


@pytest.mark.parametrize("align", [1, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_area_is_reached_and_the_input_stays(spectrogram, kind, align):
    before = spectrogram.copy()
    for seed in range(10):
        corrupted, mask = corrupt(spectrogram, 0.7, kind, align, corruption_rng(seed))
        assert 0.5 <= mask.mean() <= 0.7 + 0.3  # one `time` block can add as much as 30 %
        assert (corrupted[~mask] == spectrogram[~mask]).all()
        assert corrupted.dtype == spectrogram.dtype and mask.dtype == bool
    np.testing.assert_array_equal(spectrogram, before)


@pytest.mark.parametrize("kind", ["zeros", "time", "freq"])
def test_the_mask_is_what_was_blanked(spectrogram, kind):
    corrupted, mask = corrupt(spectrogram, 0.6, kind, 1, corruption_rng(1))
    np.testing.assert_array_equal(mask, corrupted == 0)
    np.testing.assert_array_equal(mask, corrupted != spectrogram)
    if kind == "time":
        assert (mask.all(axis=1) == mask.any(axis=1)).all()
    if kind == "freq":
        assert (mask.all(axis=0) == mask.any(axis=0)).all()


def test_noise_is_normal_and_copies_are_of_the_spectrogram(spectrogram):
    corrupted, mask = corrupt(spectrogram, 0.7, "noise", 1, corruption_rng(2))
    assert abs(corrupted[mask].mean()) < 0.05 and abs(corrupted[mask].std() - 1) < 0.05
    corrupted, mask = corrupt(spectrogram, 0.7, "copy", 1, corruption_rng(2))
    assert np.isin(corrupted, spectrogram).all()
    assert (corrupted != spectrogram)[mask].mean() > 0.9


def test_blocks_are_aligned(spectrogram):
    _, mask = corrupt(spectrogram, 0.6, "zeros", 16, corruption_rng(3))
    cells = mask.reshape(6, 16, 8, 16).mean(axis=(1, 3))  # (rows, columns) of 16 x 16
    assert set(np.unique(cells)) == {0, 1}


def test_replacement_copies_the_same_place(spectrogram):
    donor = -spectrogram
    corrupted, mask = replace(spectrogram, donor, 0.4, 1, corruption_rng(4))
    np.testing.assert_array_equal(corrupted, np.where(mask, donor, spectrogram))


def test_a_key_gives_the_same_corruption(spectrogram):
    first, again, other = (
        corrupt(spectrogram, 0.5, "noise", 1, corruption_rng(*key)) for key in ((1, 2), (1, 2), (2, 1))
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_happens_beyond_the_valid_frames(spectrogram, kind):
    for align in (1, 4):
        corrupted, mask = corrupt(spectrogram, 0.7, kind, align, corruption_rng(5), num_valid_frames=50)
        assert not mask[50:].any() and mask[:50].mean() >= 0.5
        np.testing.assert_array_equal(corrupted[50:], spectrogram[50:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("align", [1, 16])
def test_audio_too_short_for_blocks_is_corrupted_cell_by_cell(spectrogram, kind, align):
    """Data, unlike settings, must not stop a training."""
    for valid in (1, 2, 5, 20):
        _, mask = corrupt(spectrogram, 0.7, kind, align, corruption_rng(8), num_valid_frames=valid)
        assert mask[:valid].mean() >= 0.5 and not mask[valid:].any()


def test_a_batch_keeps_or_replaces_each_item(spectrogram):
    """Items are constant, so that a replaced one holds its own number and its donor's."""
    clean = np.arange(1, 9, dtype=np.float32)[:, None, None] * np.ones((8, 40, 32), np.float32)  # (batch, frames, mel)
    blanked = [corrupt(item, 0.7, "zeros", 1, corruption_rng(6, index)) for index, item in enumerate(clean)]
    corrupted, masks = (np.stack(part) for part in zip(*blanked))
    valid = np.full(8, 20)
    outcome, new_masks = replace_from_batch(clean, corrupted, masks, 0.3, 1, corruption_rng(7), num_valid_frames=valid)
    kept = np.array([(item == before).all() for item, before in zip(outcome, corrupted)])
    assert 0 < kept.sum() < 8
    np.testing.assert_array_equal(new_masks[kept], masks[kept])
    for item, mask, own in zip(outcome[~kept], new_masks[~kept], clean[~kept]):
        assert (item != 0).all() and (item == own)[~mask].all() and len(np.unique(item[mask])) == 1
        assert mask[:20].mean() >= 0.3 and not mask[20:].any()


# ---- where the original stops with an error, or never ----


@pytest.mark.parametrize("kind", [*KINDS, "replace"])
@pytest.mark.parametrize("frames", HEIGHTS)
def test_blocks_rounded_beyond_the_edge_are_cut(frames, kind):
    clean = positive(frames)
    for seed in range(20):
        rng = corruption_rng(frames, seed)
        corrupted, mask = (
            replace(clean, -clean, 0.7, 16, rng) if kind == "replace" else corrupt(clean, 0.7, kind, 16, rng)
        )
        assert corrupted.shape == mask.shape == clean.shape
        assert mask.mean() >= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_can_be_asked_for(kind):
    class Highest(np.random.RandomState):
        def uniform(self, low, high):
            return high

    for frames, align in ((64, 16), (8, 1), (40, 2)):
        assert corrupt(positive(frames), 1.0, kind, align, Highest(0))[1].all()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "zero"}, "kind must be one of zeros, noise, time, freq, copy, got 'zero'"),
        ({"fraction": 0.0}, "fraction must be above 0 and at most 1, got 0.0"),
        ({"fraction": 1.5}, "got 1.5"),
        ({"align": 0}, "align must be at least 1, got 0"),
        ({"align": 28}, "align=28 is too large for 96 frames: blocks are below 30% of them, 28"),
        ({"align": 16, "spectrogram": positive(48)}, "align=16 is too large for 48 frames"),
        ({"num_valid_frames": 97}, "between 1 and the spectrogram's 96, got 97"),
        ({"num_valid_frames": 0}, "got 0"),
        (
            {"rng": np.random.default_rng(0)},
            "must be a numpy.random.RandomState, see corruption_rng, got a Generator",
        ),
        ({"spectrogram": np.zeros((1, 96, 128))}, "(frames, mel), got shape (1, 96, 128)"),
    ],
)
def test_wrong_values_name_both_sides(spectrogram, change, words):
    arguments = {"spectrogram": spectrogram, "fraction": 0.7, "kind": "zeros", "align": 1, "rng": corruption_rng(0)}
    with pytest.raises(ValueError) as raised:
        corrupt(**arguments | change)
    assert words in str(raised.value)


def test_shapes_must_agree(spectrogram):
    with pytest.raises(ValueError, match=r"donor has shape \(95, 128\), but the spectrogram has \(96, 128\)"):
        replace(spectrogram, spectrogram[1:], 0.3, 1, corruption_rng(0))
    batch = spectrogram[None]
    with pytest.raises(ValueError, match=r"one shape \(batch, frames, mel\), got \(1, 96, 128\), \(1, 96, 127\)"):
        replace_from_batch(batch, batch[:, :, 1:], batch, 0.3, 1, corruption_rng(0))
