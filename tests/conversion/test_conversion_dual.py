"""Tests `python -m conversion dual-ssast`: what it recognises, says and refuses; numbers: test_golden_dual.py."""

import sys
import types

import pytest
import torch
from conversions import assert_refused, run_conversion
from golden import checkpoint
from safetensors.torch import load_file

from conversion.__main__ import main
from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification, DualSSASTForPreTraining


@pytest.fixture
def convert(tmp_path, capsys):
    def run(content, *options, family="dual-ssast"):
        return run_conversion(family, content, tmp_path, capsys, "--overwrite", *options)

    return run


@pytest.mark.parametrize("mlp_layers", [2, 4, 6, 8])
def test_the_file_gives_its_classifier_and_the_rest_is_said(convert, mlp_layers):
    status, out, _, folder = convert(f"dual_ssast_finetuned_{mlp_layers}.json", "--pooling", "max_max", "--verify")
    assert status == 0 and f"mlp_layers {mlp_layers}" in out and "largest difference 0" in out
    assumed = ("pooling (max_max, as given)", "blocks 5 and 12", "AudioSet's are assumed", "LABEL_0", "strides")
    for place in (out, (folder / "README.md").read_text()):
        assert [word for word in assumed if word not in place] == []
    config = DualSSASTConfig.from_pretrained(folder)
    assert (config.fusion_layers, config.fusion_norm, config.pooling) == ([5, 12], "shared_twice", ["max", "max"])
    assert config.classifier_hidden_sizes == [384] * (mlp_layers // 2 - 1) and config.classifier_activation is None
    assert config.attention_over_padding and (config.frequency_stride, config.time_stride) == (10, 10)


def test_statistics_that_are_given_are_not_said_to_be_assumed(convert):
    _, out, _, _ = convert(
        "dual_ssast_finetuned_2.json", "--pooling", "mean", "--mean", "-1.892599", "--std", "4.0277867"
    )
    assert "are assumed" not in out and "(log-mel - -1.8926) / (2 * 4.02779)" in out


def test_what_must_be_given_and_what_is_of_another_family(convert):
    assert_refused(convert("dual_ssast_finetuned_4.json"), "does not store its pooling", "mean_max", "args.pkl")
    assert_refused(convert("dual_ssast_finetuned_baseline.json", "--pooling", "mean"), "comp_fusion False", "ssast")
    assert_refused(convert("dual_ssast_pretrained.json", "--pooling", "mean"), "is pretrained", "family is ssast")
    assert_refused(convert("dual_ssast_finetuned_4.json", family="ssast"), "its family is dual-ssast")
    assert convert("dual_ssast_finetuned_baseline.json", family="ssast")[0] == 0


def test_damaged_classifiers(convert):
    whole = checkpoint("dual_ssast_finetuned_4.json")
    lacking = {name: tensor for name, tensor in whole.items() if "mlp_head.2." not in name and "head.3" not in name}
    lacking["module.mlp_head.1.weight"] = torch.zeros(7, 384)
    lacking["module.mlp_head.1.bias"] = torch.zeros(7)
    assert convert(lacking, "--pooling", "mean")[0] == 0  # is a file of mlp_layers 2
    for name in ("module.mlp_head.3.bias", "module.mlp_head.2.weight", "module.mlp_head.0.weight"):
        result = convert({key: value for key, value in whole.items() if key != name}, "--pooling", "mean")
        assert result[0] == 1 and result[2].count("\n") == 1 and name.removeprefix("module.") in result[2]


def test_the_checkpoint_of_a_training_is_read_without_its_classes(convert, tmp_path, capsys, monkeypatch):
    recipe = "dual_ssast_finetuned_2.json"
    folder = convert(recipe, "--pooling", "mean")[3]
    weights = load_file(folder / "model.safetensors")
    path, util = tmp_path / "checkpoint.pt", types.ModuleType("utilities.util")
    util.AverageMeter = type("AverageMeter", (), {"__module__": "utilities.util"})
    meter = util.AverageMeter()
    meter.val, meter.count = 0.5, 2
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]).state_dict()
    content = {"model_state_dict": checkpoint(recipe), "optimizer_state_dict": optimizer, "epoch": 45, "loss": meter}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "utilities", types.ModuleType("utilities"))
        patch.setitem(sys.modules, "utilities.util", util)
        torch.save(content, path)
    assert main(["dual-ssast", str(path), str(tmp_path / "again"), "--pooling", "mean"]) == 0
    assert "optimizer_state_dict, epoch, loss: stored beside the weights" in capsys.readouterr().out
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert set(again) == set(weights) and all(torch.equal(again[name], weights[name]) for name in weights)


@torch.no_grad()
def test_the_third_layer_of_their_own_pretraining_is_merged(convert):
    """Their generative head has two Linears with nothing between them where SSAST has one."""
    state = checkpoint("dual_ssast_pretrained.json")
    size = state["module.mask_embed"].shape[-1]
    generator = torch.Generator().manual_seed(0)
    state["module.gpredlayer.3.weight"] = state.pop("module.gpredlayer.2.weight")
    state["module.gpredlayer.3.bias"] = state.pop("module.gpredlayer.2.bias")
    state["module.gpredlayer.1.weight"] = torch.randn(size, size, generator=generator) / size**0.5
    state["module.gpredlayer.1.bias"] = torch.randn(size, generator=generator)
    status, out, _, folder = convert(state, family="ssast")
    assert status == 0 and "gpredlayer.1: merged into the Linear before it" in out
    model = DualSSASTForPreTraining.from_pretrained(folder)
    tokens = torch.randn(5, size, generator=generator)
    linear = torch.nn.functional.linear
    layers = [(state[f"module.gpredlayer.{i}.weight"], state[f"module.gpredlayer.{i}.bias"]) for i in (0, 1, 3)]
    hidden = torch.relu(linear(linear(tokens, *layers[0]), *layers[1]))
    torch.testing.assert_close(model.generative_head(tokens), linear(hidden, *layers[2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": ["min", "max"]}, "pooling_per_layer=[['min', 'max'], ['min', 'max']], which Dual SSAST cannot"),
        ({"fusion_layers": [3, 12]}, "fused_layers=[3, 12], which Dual SSAST cannot hold: it needs [5, 12]"),
        ({"fusion": "sum"}, "fusion='sum', which Dual SSAST cannot hold"),
    ],
)
def test_models_that_the_file_cannot_hold(tmp_path, capsys, options, words):
    tiny = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256, "max_length": 32}
    config = DualSSASTConfig.published("mean", **tiny)
    config = DualSSASTConfig.from_dict(config.to_dict() | options)
    DualSSASTForAudioClassification(config).save_pretrained(tmp_path / "folder")
    assert main(["export-ssast", str(tmp_path / "folder"), str(tmp_path / "out.pth")]) == 1
    assert words in capsys.readouterr().err
