"""Tests the configuration: it refuses impossible values, derives others, and survives saving."""

import itertools
import json

import pytest
import torch
from transformers import AutoConfig

from modeling_dual_ssast import DualSSASTConfig, DualSSASTModel

SMALL = dict(hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8)


@pytest.mark.parametrize(
    "values, message",
    [
        *[
            ({name: value}, f"{name} must be a positive integer, got {value!r}")
            for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
            for value in (0, 1.5)
        ],
        *[
            ({name: value}, f"{name} must be a positive integer, got {value!r}")
            for name in ("frequency_stride", "time_stride", "max_length", "num_mel_bins")
            for value in (-1, "16", True, None)
        ],
        *[
            ({name: value}, f"{name} must be a number from 0 to below 1, got {value!r}")
            for name in (
                "hidden_dropout_prob",
                "attention_probs_dropout_prob",
                "classifier_dropout",
                "label_smoothing",
            )
            for value in (1, -0.1, "0.1")
        ],
        *[
            ({name: value}, f"{name} must be a positive number, got {value!r}")
            for name in ("layer_norm_eps", "initializer_range")
            for value in (0, -1e-6, "1e-6")
        ],
        *[
            ({name: 1}, f"{name} must be true or false, got 1")
            for name in (
                "qkv_bias",
                "attention_over_padding",
            )
        ],
        *[
            ({name: "best"}, f"{name} must be one of {choices}, got 'best'")
            for name, choices in (
                ("fusion_norm", "shared, shared_twice, separate, none"),
                ("readout", "patches, prefix, frames, tokens"),
                ("pooling_combination", "sum, mean, concat"),
                ("fusion", "concat, sum, weighted, gated"),
            )
        ],
        (
            {"problem_type": "multi_label"},
            "problem_type must be None or one of single_label_classification, multi_label_classification, regression, "
            "got 'multi_label'",
        ),
        ({"hidden_size": 10, "num_attention_heads": 4}, "num_attention_heads, got 10 and 4"),
        ({"hidden_act": "gelloo"}, "gelu.*got 'gelloo'"),
        ({"hidden_act": "prelu"}, "hidden_act must be one of .*got 'prelu'"),  # has weights
        ({"classifier_activation": "xielu"}, "classifier_activation must be one of .*got 'xielu'"),
        (
            {"classifier_hidden_sizes": [8], "classifier_activation": None, "classifier_layer_norm_eps": None},
            r"classifier_hidden_sizes=\[8\] needs classifier_activation, or a LayerNorm before every Linear",
        ),
        ({"patch_size": 0}, "patch_size must be a positive integer, got 0"),
        ({"patch_size": [16]}, r"an int or \[frequency, time\], got \[16\]"),
        ({"patch_size": 16.0}, r"an int or \[frequency, time\], got 16.0"),
        ({"patch_size": None}, r"an int or \[frequency, time\], got None"),
        ({"patch_size": [16, "16"]}, "patch_size must be a positive integer, got '16'"),
        ({"patch_size": [256, 2], "time_stride": 2}, "num_mel_bins is 128, the patch needs 256"),
        ({"max_length": 15}, "max_length is 15, the patch needs 16"),
        ({"time_stride": 17}, "time_stride=17 .* patches of 16"),
        ({"frequency_stride": 17}, "frequency_stride=17 .* patches of 16"),
        ({"num_prefix_tokens": 3}, r"1 \(class\) or 2 .*got 3"),
        ({"fusion_layers": [5]}, "from -5 to 4, got 5"),
        ({"fusion_layers": [-6]}, "from -5 to 4, got -6"),
        ({"fusion_layers": [1.0]}, "from -5 to 4, got 1.0"),
        ({"fusion_layers": []}, r"at least one layer, got \[\]"),
        ({"fusion_layers": 3}, "at least one layer, got 3"),
        ({"fusion_layers": [4, -1]}, r"\[4, -1\] name the same layer twice: \[4, 4\]"),
        ({"pooling": []}, r"non-empty list of mean, max, min, std, attention, got \[\]"),
        ({"pooling": None}, "non-empty list of mean, max, min, std, attention, got None"),
        ({"pooling": ["median"]}, r"mean, max, min, std, attention at most once, got \['median'\]"),
        ({"pooling": ["mean", "mean"]}, r"at most once, got \['mean', 'mean'\]"),
        ({"pooling": [["mean"]]}, "1 lists for 2 fused layers"),
        ({"pooling": [["mean"], []]}, "at most once"),
        ({"pooling": ["mean", ["max"]]}, "at most once"),
        (
            {"pooling": [["mean"], ["mean", "max"]], "pooling_combination": "concat", "fusion": "sum"},
            r"fusion='sum' needs vectors of one size.*gives \[8, 16\]",
        ),
        ({"classifier": "mlp"}, "classifier must be one of linear, prototypes, got 'mlp'"),
        ({"prototypes_per_class": 0}, "prototypes_per_class must be a positive integer, got 0"),
        ({"binary_prototypes": 1}, "binary_prototypes must be true or false, got 1"),
        ({"classifier": "prototypes", "classifier_hidden_sizes": [8]}, r"has no hidden layers, got .*\[8\]"),
        (
            {"pooling": ["attention"], "num_pooling_heads": 3},
            "num_pooling_heads must divide the size of a token, got 3 and 8",
        ),
        ({"pooling": ["attention"], "readout": "prefix"}, "readout='prefix' does not pool, so pooling 'attention'"),
        (
            {"pooling": [["mean"], ["attention"]], "classifier": "prototypes"},
            "classifier='prototypes' does not pool, so pooling 'attention'",
        ),
        ({"classifier_hidden_sizes": [8, 0]}, "classifier_hidden_sizes must be a positive integer, got 0"),
        ({"classifier_hidden_sizes": 8}, "classifier_hidden_sizes must be a list, got 8"),
        ({"id2label": {1: "a", 2: "b"}}, r"id2label must name the labels from 0 on without gaps, got {1: 'a', 2: 'b'}"),
        ({"num_labels": 0}, "id2label must name the labels from 0 on"),
        ({"padding_value": float("nan")}, "padding_value must be a finite number, got nan"),
        ({"padding_value": None}, "padding_value must be a finite number, got None"),
    ],
)
def test_wrong_values_fail_at_construction_and_name_both_sides(values, message):
    with pytest.raises(ValueError, match=message):
        DualSSASTConfig(**{**SMALL, **values})


def test_unknown_keyword_names_the_nearest():
    with pytest.raises(TypeError, match="unexpected keyword 'fusion_layer'; did you mean 'fusion_layers'"):
        DualSSASTConfig(fusion_layer=[1])


def test_stored_unknown_keys_are_kept():
    config = DualSSASTConfig.from_dict({**DualSSASTConfig(**SMALL).to_dict(), "written_by_a_later_version": 7})
    assert config.written_by_a_later_version == 7 and config.hidden_size == 8
    assert DualSSASTConfig.from_dict({**config.to_dict(), "num_patches": 7}).num_patches != 7  # a property here


def test_keywords_of_transformers_pass():
    config = DualSSASTConfig(
        num_labels=3, problem_type="regression", attn_implementation="eager", output_hidden_states=True
    )
    assert (config.num_labels, config.problem_type, config.output_hidden_states) == (3, "regression", True)
    assert config._attn_implementation == "eager"
    assert DualSSASTConfig(id2label={0: "dog", 1: "cat", 2: "owl"}).num_labels == 3


@pytest.mark.parametrize(
    "layers, indices", [(None, [2, 4]), ([-1], [4]), ([0, 4], [0, 4]), ([-5, -2], [0, 3]), ((3, 1), [3, 1])]
)
def test_fused_layers_count_from_the_embedding(layers, indices):
    assert DualSSASTConfig(**SMALL, fusion_layers=layers).fused_layers == indices


def test_poolings_are_shared_by_the_layers_or_given_per_layer():
    assert DualSSASTConfig(**SMALL, pooling="max").pooling_per_layer == [["max"], ["max"]]
    assert DualSSASTConfig(**SMALL, pooling=(("max",), ("mean", "min"))).pooling_per_layer == [["max"], ["mean", "min"]]


@pytest.mark.parametrize("readout, tokens", [("patches", 1), ("prefix", None), ("frames", 12)])
@pytest.mark.parametrize("combination, fusion", itertools.product(("sum", "mean", "concat"), ("concat", "sum")))
@pytest.mark.parametrize("pooling", [["mean"], ["mean", "max", "min"]])
def test_fused_size_is_what_the_model_returns(readout, tokens, combination, fusion, pooling):
    config = DualSSASTConfig(
        **SMALL,
        frequency_stride=10,
        max_length=40,
        readout=readout,
        pooling=pooling,
        pooling_combination=combination,
        fusion=fusion,
    )
    per_layer = 8 if tokens is None else 8 * tokens * (len(pooling) if combination == "concat" else 1)
    assert config.fused_size == per_layer * (2 if fusion == "concat" else 1)
    output = DualSSASTModel(config)(torch.zeros(1, 20, 128))
    assert output.pooler_output.shape == (1, config.fused_size)


def test_layers_of_different_poolings_can_be_concatenated():
    config = DualSSASTConfig(**SMALL, pooling=[["mean"], ["max", "min"]], pooling_combination="concat")
    assert (config.fused_size_per_layer, config.fused_size) == ([8, 16], 24)


@pytest.mark.parametrize(
    "patch, strides, frames, grid",
    [
        (16, (16, 16), 1024, (8, 64)),
        (16, (10, 10), 1024, (12, 101)),
        ([128, 2], (128, 2), 1024, (1, 512)),
        ([128, 2], (128, 1), 1024, (1, 1023)),
        (16, (16, 16), 1030, (8, 64)),
        (16, (16, 16), 16, (8, 1)),
        ([16, 8], (12, 5), 30, (10, 5)),
    ],
)
def test_patch_grid(patch, strides, frames, grid):
    config = DualSSASTConfig(patch_size=patch, frequency_stride=strides[0], time_stride=strides[1], max_length=frames)
    assert config.grid_shape == grid and config.num_patches == grid[0] * grid[1]
    lengths = range(frames + 1)
    columns = [columns_by_counting(n, config.patch_shape[1], strides[1], grid[1]) for n in lengths]
    assert [config.num_columns(n) for n in lengths] == columns
    assert config.num_columns(torch.arange(frames + 1)).tolist() == columns
    # The last column begins where the columns before it end, and every frame up to the grid's edge is covered.
    edge = config.num_covered_frames(grid[1])
    assert all(config.num_covered_frames(c) >= min(n, edge) for n, c in zip(lengths, columns))


def columns_by_counting(num_frames, patch, stride, most):
    """Adds windows until they cover the clip."""
    columns = 1
    while columns < most and (columns - 1) * stride + patch < num_frames:
        columns += 1
    return columns


def test_save_and_load_keep_every_field(tmp_path):
    config = DualSSASTConfig(
        **SMALL,
        hidden_act="relu",
        patch_size=(128, 2),
        frequency_stride=128,
        time_stride=1,
        max_length=300,
        num_prefix_tokens=1,
        fusion_layers=(0, -1),
        fusion_norm="separate",
        readout="frames",
        pooling=(("mean",), ("max", "min")),
        pooling_combination="concat",
        classifier_hidden_sizes=(5,),
        label_smoothing=0.1,
        padding_value=0.618,
        attention_over_padding=True,
        num_labels=3,
    )
    config.save_pretrained(tmp_path)
    for loaded in (DualSSASTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is DualSSASTConfig and loaded.max_length == 300
        ours, theirs = config.to_dict(), loaded.to_dict()
        assert {k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)} <= {
            "transformers_version",
            "_name_or_path",
        }
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["max_length"] == 300
    derived = {"fused_layers", "fused_size", "grid_shape", "num_patches", "patch_shape", "pooling_per_layer"}
    assert not derived & set(stored)


def test_default_max_length_is_stored_too(tmp_path):
    DualSSASTConfig().save_pretrained(tmp_path)
    assert DualSSASTConfig.from_pretrained(tmp_path).max_length == 1024


@pytest.mark.parametrize("loader", [DualSSASTConfig, AutoConfig])
def test_from_pretrained_checks_overrides(tmp_path, loader):
    DualSSASTConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from -5 to 4, got 99"):
        loader.from_pretrained(tmp_path, fusion_layers=[99])
    config = loader.from_pretrained(tmp_path, fusion_layers=(1, 2), pooling="min", max_length=512)
    assert (config.fusion_layers, config.pooling, config.max_length) == ([1, 2], ["min"], 512)
    config, rest = loader.from_pretrained(tmp_path, readout="prefix", output_loading_info=1, return_unused_kwargs=True)
    assert config.readout == "prefix" and rest == {"output_loading_info": 1}


def test_a_config_changed_by_hand_is_checked_by_the_model():
    config = DualSSASTConfig(**SMALL)
    config.fusion_layers = [99]
    with pytest.raises(ValueError, match="from -5 to 4, got 99"):
        DualSSASTModel(config)
    config = DualSSASTConfig(**SMALL)
    config.problem_type = "multi_label"
    with pytest.raises(ValueError, match="problem_type must be None or one of .* got 'multi_label'"):
        DualSSASTModel(config)


def test_auto_map_is_local_even_when_loaded_from_a_repository(tmp_path):
    config = DualSSASTConfig(**SMALL)
    config.auto_map = {"AutoConfig": "user/name--configuration_dual_ssast.DualSSASTConfig"}
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(stored) == {
        "AutoConfig",
        "AutoFeatureExtractor",
        "AutoModel",
        "AutoModelForAudioClassification",
        "AutoModelForAudioFrameClassification",
        "AutoModelForPreTraining",
    }
    assert not any("--" in reference for reference in stored.values())
