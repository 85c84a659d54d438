"""Tests the frame classifiers of all families: shapes, poolings, masks, losses, saved folders."""

import io

import onnxruntime
import pytest
import torch
from tiny_models import Logits
from torch import nn
from transformers import AutoModelForAudioFrameClassification

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForAudioFrameClassification,
    DualSSASTConfig,
    DualSSASTForAudioFrameClassification,
    PannsCnn14Config,
    PannsCnn14ForAudioFrameClassification,
    VGGishConfig,
    VGGishForAudioFrameClassification,
)
from modeling_dual_ssast.classifier_dual_ssast import frame_loss

TINY = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 64,
    "num_mel_bins": 32, "num_labels": 3,
}  # fmt: skip
CNN14 = {"channels": [2, 3, 4, 5, 6, 7], "embedding_size": 5, "num_labels": 3}
CASES = {
    "patches": (DualSSASTForAudioFrameClassification, DualSSASTConfig, TINY | {"time_stride": 8}),
    "frames": (DualSSASTForAudioFrameClassification, DualSSASTConfig, TINY | {"readout": "frames"}),
    "concat": (
        DualSSASTForAudioFrameClassification,
        DualSSASTConfig,
        TINY | {"pooling": ["mean", "max", "min"], "pooling_combination": "concat", "fusion": "weighted"},
    ),
    "frame_model": (DualSSASTForAudioFrameClassification, DualSSASTConfig, TINY | {"patch_size": [32, 2],
                    "frequency_stride": 32, "time_stride": 1}),
    "asit": (ASiTForAudioFrameClassification, ASiTConfig, TINY),
    "vggish": (
        VGGishForAudioFrameClassification,
        VGGishConfig,
        {"channels": [3, 4, 5, 6], "fc_size": 8, "embedding_size": 5, "num_labels": 3, "fusion_layers": [4, 9]},
    ),
    "cnn14": (PannsCnn14ForAudioFrameClassification, PannsCnn14Config, CNN14 | {"fusion_layers": [1, 2]}),
    "attention": (
        DualSSASTForAudioFrameClassification,
        DualSSASTConfig,
        TINY | {"pooling": ["std", "attention"], "num_pooling_heads": 4, "fusion": "gated"},
    ),
    "prototypes": (
        DualSSASTForAudioFrameClassification,
        DualSSASTConfig,
        TINY | {"classifier": "prototypes", "time_stride": 8},
    ),
    "vggish_prototypes": (
        VGGishForAudioFrameClassification,
        VGGishConfig,
        {"channels": [3, 4, 5, 6], "fc_size": 8, "embedding_size": 5, "num_labels": 3, "classifier": "prototypes"},
    ),
    "cnn14_own": (PannsCnn14ForAudioFrameClassification, PannsCnn14Config, CNN14 | {"readout": "panns"}),
}  # fmt: skip


def make(name: str):
    model_class, config_class, settings = CASES[name]
    torch.manual_seed(0)
    return model_class(config_class(**settings)).eval()


def batch(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two clips, the second half as long, and their mask."""
    frames = 64 if model.config.num_mel_bins == 32 else 192
    mask = torch.ones(2, frames, dtype=torch.long)
    mask[1, frames // 2 :] = 0
    return torch.randn(2, frames, model.config.num_mel_bins), mask


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_a_padded_clip_has_the_logits_of_the_clip_alone(name):
    model = make(name)
    inputs, mask = batch(model)
    logits = model(inputs, mask).logits
    alone = model(inputs[1:, : inputs.shape[1] // 2]).logits
    valid = model.frame_mask(logits, mask)
    assert logits.shape == (*valid.shape, 3) and valid[0].all() and valid[1].sum() == alone.shape[1]
    torch.testing.assert_close(logits[1, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)
    hop = model.base_model.time_grid.stride * 0.01
    assert model.config.frame_hop_s == pytest.approx(hop)
    probabilities = model.probabilities(logits)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    names = [{f"LABEL_{index}" for index, p in enumerate(row) if p > 0.5} for row in probabilities[0].tolist()]
    assert list(map(set, model.predict_labels(logits[0]))) == names


@pytest.mark.parametrize("name", CASES)
def test_the_loss_reaches_all_that_is_trained_and_ignores_padding(name):
    model = make(name).train()
    inputs, mask = batch(model)
    labels = torch.rand(model(inputs, mask).logits.shape).round()
    if name.startswith("cnn14"):
        model.eval()  # its batch norms would mix the clips
    output = model(inputs, mask, labels=labels)
    changed = torch.where(model.frame_mask(output.logits, mask)[..., None], labels, 1 - labels)
    torch.testing.assert_close(model(inputs, mask, labels=changed).loss, output.loss)
    output.loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_a_saved_folder_is_loaded_by_its_auto_class(name, tmp_path):
    model = make(name)
    inputs, mask = batch(model)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForAudioFrameClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and type(again) is type(model)
    torch.testing.assert_close(again.eval()(inputs, mask).logits, model(inputs, mask).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["frames", "vggish", "cnn14"])
def test_attention_over_time_is_refused_where_nothing_is_pooled(name):
    model_class, config_class, settings = CASES[name]
    pooling = {"pooling" if name == "frames" else "temporal_pooling": ["attention"]}
    with pytest.raises(ValueError, match="classified before any pooling"):
        model_class(config_class(**settings | pooling))


@torch.no_grad()
@pytest.mark.parametrize("pooling", [["mean"], ["max"], ["min"], ["mean", "max"], ["max", "max"]])
def test_poolings_run_over_frequency_alone(pooling):
    model = DualSSASTForAudioFrameClassification(DualSSASTConfig(**TINY, pooling=pooling, fusion_layers=[1, 3])).eval()
    inputs, _ = batch(model)
    encoder = model.dual_ssast
    states = encoder(inputs, output_hidden_states=True).hidden_states
    functions = {"mean": lambda x: x.mean(2), "max": lambda x: x.amax(2), "min": lambda x: x.amin(2)}
    expected = []
    for layer in (1, 3):
        rows = (
            encoder.layernorm(states[layer])[:, 2:].unflatten(1, (2, 4)).transpose(1, 2)
        )  # (batch, columns, rows, ...)
        expected.append(sum(functions[name](rows) for name in pooling))
    torch.testing.assert_close(model.classifier(torch.cat(expected, dim=-1)), model(inputs).logits)


def test_one_class_per_frame_and_frames_without_one():
    logits = torch.randn(2, 4, 3)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    labels = torch.tensor([[0, 1, 2, -100], [2, 1, 0, 0]])
    expected = nn.functional.cross_entropy(logits[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]], torch.tensor([0, 1, 2, 2, 1]))
    torch.testing.assert_close(frame_loss(logits, labels, mask, "single_label_classification"), expected)
    assert frame_loss(logits, torch.full((2, 4), -100), mask, "single_label_classification") == 0
    rows, classes = logits[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]], torch.tensor([0, 1, 2, 2, 1])
    smooth = nn.functional.cross_entropy(rows, classes, label_smoothing=0.3)
    torch.testing.assert_close(frame_loss(logits, labels, mask, "single_label_classification", 0.3), smooth)
    model = make("asit")
    inputs, _ = batch(model)
    assert model(inputs, labels=torch.zeros(2, 4, dtype=torch.long)).loss.isfinite()
    assert model.config.problem_type == "single_label_classification"
    sharp = model(inputs, labels=torch.zeros(2, 4, dtype=torch.long)).loss
    model.config.label_smoothing = 0.4
    assert model(inputs, labels=torch.zeros(2, 4, dtype=torch.long)).loss != sharp


def test_labels_that_are_refused_change_nothing_and_name_the_shape():
    model = make("patches")
    inputs, mask = batch(model)
    frames = model(inputs, mask).logits.shape[1]
    with pytest.raises(ValueError, match="classes must be integers"):
        model(inputs, mask, labels=torch.zeros(2, frames))
    with pytest.raises(ValueError, match=rf"expected \(batch, time frames\) = \(2, {frames}\)"):
        model(inputs, mask, labels=torch.zeros(2, frames + 1).long())
    assert model.config.problem_type is None
    assert model(inputs, mask, labels=torch.zeros(2, frames, 3)).loss.isfinite()
    assert model.config.problem_type == "multi_label_classification"


def test_another_grid_changes_the_hop_and_keeps_device_and_dtype(tmp_path):
    make("frames").save_pretrained(tmp_path)
    model = DualSSASTForAudioFrameClassification.from_pretrained(
        tmp_path, time_stride=8, frequency_stride=8, dtype=torch.bfloat16
    )
    assert model.config.frame_hop_s == 0.08
    assert model(torch.zeros(1, 64, 32, dtype=torch.bfloat16)).logits.dtype == torch.bfloat16


def test_what_is_refused():
    with pytest.raises(ValueError, match="readout='prefix' has no time frames"):
        DualSSASTForAudioFrameClassification(DualSSASTConfig(**TINY, readout="prefix"))
    with pytest.raises(ValueError, match="readout='tokens' needs attention_over_padding=True, got False"):
        DualSSASTConfig(**TINY, readout="tokens")
    with pytest.raises(ValueError, match="frame_hop_s must be a positive number, got 0"):
        DualSSASTConfig(**TINY, frame_hop_s=0)
    model = make("patches")
    inputs, mask = batch(model)
    with pytest.raises(ValueError, match=r"labels of shape \(2, 5, 3\) do not fit logits \(2, 7, 3\)"):
        model(inputs, mask, labels=torch.zeros(2, 5, 3))
    with pytest.raises(TypeError, match="did you mean 'labels'"):
        model(inputs, mask, label=torch.zeros(2, 7, 3))
    with pytest.raises(ValueError, match="classes must be integers"):
        frame_loss(torch.zeros(1, 4, 3), torch.ones(1, 4), torch.ones(1, 4).bool(), "single_label_classification")
    with pytest.raises(ValueError, match=r"\(time frames, labels\) of one clip, got \(2, 7, 3\)"):
        model.predict_labels(model(inputs, mask).logits)


def test_transformers_return_attentions_and_convolutional_networks_refuse_to():
    for name, count in (("patches", 3), ("asit", 3), ("vggish", 0), ("cnn14", 0)):
        model = make(name)
        inputs, mask = batch(model)
        assert model(inputs, mask, output_attentions=False).attentions is None
        if count:
            assert len(model(inputs, mask, output_attentions=True).attentions) == count
        else:
            with pytest.raises(TypeError, match="unexpected keyword 'output_attentions'"):
                model(inputs, mask, output_attentions=True)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["patches", "concat", "vggish", "cnn14"])
def test_onnx_at_another_length(name):
    model = make(name)
    inputs, mask = batch(model)
    names, axes = ["input_values", "attention_mask"], {0: "batch", 1: "frames"}
    buffer = io.BytesIO()
    torch.onnx.export(
        Logits(model).eval(),
        (inputs, mask),
        buffer,
        dynamo=False,
        input_names=names,
        dynamic_axes=dict.fromkeys(names, axes),
    )
    session = onnxruntime.InferenceSession(buffer.getvalue())
    for length in (inputs.shape[1], 3 * inputs.shape[1] // 4 + 3):
        part, part_mask = inputs[:, :length], mask[:, :length]
        (logits,) = session.run(None, dict(zip(names, (part.numpy(), part_mask.numpy()))))
        expected = model(part, part_mask).logits
        is_audio = model.frame_mask(expected, part_mask)  # the graph computes with the padding, the model without
        torch.testing.assert_close(torch.from_numpy(logits)[is_audio], expected[is_audio], atol=1e-5, rtol=1e-4)
