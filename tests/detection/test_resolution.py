"""Tests finer clocks: a time_stride below the checkpoint's resizes its positions, and keeps its other weights."""

import numpy as np
import pytest
import torch
from golden import convert
from transformers import AutoModel, AutoModelForAudioFrameClassification

from modeling_dual_ssast import DualSSASTFeatureExtractor
from training.base.arguments import ModelArguments
from training.base.label_frames import frame_grid
from training.base.loading import load_config, load_model
from training.data.labels import LabelSet

LABELS = LabelSet(("owl", "wren"), "multi_label_classification")
CHECKPOINTS = {
    "ssast": ("ssast", "ssast_patch_pretrained.json"),
    "ssast frames": ("ssast", "ssast_frame_pretrained.json"),
    "ast": ("ast", "ast_tiny_weights.json", "--max-length", 100),
    "asit": ("asit", "asit_psed_ssl.json"),
}


@pytest.mark.golden
@pytest.mark.parametrize(("name", "divisor"), [*((name, 2) for name in CHECKPOINTS), ("asit", 4)])
def test_a_finer_clock_resizes_the_positions(name, divisor, tmp_path):
    family, recipe, *options = CHECKPOINTS[name]
    folder = convert(family, recipe, tmp_path, *options)
    stored = AutoModel.from_pretrained(folder)
    config = stored.config
    stride = max(config.time_stride // divisor, 1)
    arguments = ModelArguments(model_name_or_path=str(folder), time_stride=stride, readout="patches")
    model = load_model(arguments, load_config(arguments), LABELS, AutoModelForAudioFrameClassification).eval()
    assert model.config.time_stride == stride < config.time_stride
    assert model.config.frame_hop_s == pytest.approx(stride / 100)

    # Linear along time, value by value; prefix and rows stay.
    rows, columns = config.grid_shape
    finer = model.config.grid_shape[1]
    assert model.config.grid_shape[0] == rows and finer > columns
    places = np.clip((np.arange(finer) + 0.5) * columns / finer - 0.5, 0, columns - 1)
    own, expected = model.base_model.state_dict(), stored.state_dict()
    key = next(key for key in own if key.endswith("position_embeddings"))
    old, new = expected.pop(key)[0].numpy(), own.pop(key)[0].numpy()
    prefix = config.num_prefix_tokens
    np.testing.assert_array_equal(new[:prefix], old[:prefix])
    old, new = (
        grid[prefix:].reshape(rows, -1, grid.shape[1]).transpose(1, 0, 2).reshape(count, -1)
        for grid, count in ((old, columns), (new, finer))
    )
    wanted = np.stack([np.interp(places, np.arange(columns), column) for column in old.T], axis=1)
    np.testing.assert_allclose(new, wanted, atol=1e-5)
    for name, value in expected.items():
        if not name.startswith("fusion."):
            assert torch.equal(own[name], value), name

    # As many frames as the finer grid has, where it says.
    extractor = DualSSASTFeatureExtractor.from_pretrained(folder)
    grid = frame_grid(model, extractor)
    assert grid.hop_s == pytest.approx(stride * extractor.hop_s)
    with torch.no_grad():
        logits = model(torch.zeros(1, config.max_length, config.num_mel_bins)).logits
    assert logits.shape == (1, finer, 2) and grid.frames == finer

    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForAudioFrameClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.base_model.state_dict()[key], model.base_model.state_dict()[key])
