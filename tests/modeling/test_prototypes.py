"""Tests learned readouts in whole models: attention, standard deviation, gates and prototypes, of every encoder."""

import json

import pytest
import torch
from tiny_models import MELS, TINY, batch
from torch import nn
from transformers import AutoModelForAudioClassification

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForAudioClassification,
    DualSSASTConfig,
    DualSSASTForAudioClassification,
    PannsCnn14Config,
    PannsCnn14ForAudioClassification,
    VGGishConfig,
    VGGishForAudioClassification,
)
from modeling_dual_ssast.classifier_dual_ssast import PrototypeClassifier

DUAL = (DualSSASTConfig, DualSSASTForAudioClassification, TINY | {"num_mel_bins": MELS, "time_stride": 8})
ENCODERS = {
    "patches": DUAL,
    "frames": (*DUAL[:2], DUAL[2] | {"readout": "frames"}),
    "frame model": (*DUAL[:2], DUAL[2] | {"patch_size": [MELS, 2], "frequency_stride": MELS, "time_stride": 1}),
    "over padding": (*DUAL[:2], DUAL[2] | {"attention_over_padding": True}),
    "prefix": (*DUAL[:2], DUAL[2] | {"readout": "prefix"}),
    "tokens": (*DUAL[:2], DUAL[2] | {"readout": "tokens", "num_token_frames": 8, "attention_over_padding": True}),
    "asit": (ASiTConfig, ASiTForAudioClassification, DUAL[2]),
    "vggish": (
        VGGishConfig,
        VGGishForAudioClassification,
        {"channels": [4, 4, 6, 6], "fc_size": 8, "embedding_size": 6, "num_mel_bins": MELS, "example_length": 16},
    ),
    "cnn14": (PannsCnn14Config, PannsCnn14ForAudioClassification, {"channels": [2, 2, 4, 4, 6, 6], "num_mel_bins": 32}),
}
READOUTS = {
    "attention": {"pooling": ["attention"], "num_pooling_heads": 2},
    "std": {"pooling": ["mean", "std"]},
    "gated": {"pooling": ["std", "attention"], "fusion": "gated", "pooling_combination": "concat"},
    "prototypes": {"classifier": "prototypes", "fusion": "gated", "problem_type": "multi_label_classification"},
    "binary": {"classifier": "prototypes", "binary_prototypes": True, "prototypes_per_class": 2},
}
CASES = [
    (encoder, readout)
    for encoder in ENCODERS
    for readout in READOUTS
    if encoder not in ("prefix", "tokens") or "classifier" in READOUTS[readout]  # these do not pool
]


def make(encoder: str, readout: str, **settings):
    config_class, model_class, own = ENCODERS[encoder]
    values = own | READOUTS[readout] | {"num_labels": 3} | settings
    if encoder in ("vggish", "cnn14"):
        values = {"temporal_pooling" if name == "pooling" else name: value for name, value in values.items()}
        values = {name: value for name, value in values.items() if name not in ("fusion", "pooling_combination")}
    torch.manual_seed(0)
    model = model_class(config_class(**values)).eval()
    for name, parameter in model.named_parameters():  # zeros and tiny numbers hide mistakes
        if any(part in name for part in ("query", "layer_weights", "classifier")):
            nn.init.normal_(parameter, std=0.5)
    return model


@torch.no_grad()
@pytest.mark.parametrize("encoder, readout", CASES)
def test_a_clip_in_a_batch_padded_anywhere_has_its_own_logits(encoder, readout):
    model = make(encoder, readout)
    lengths = (64, 33, 1, 16)
    clips, _ = batch(*lengths)
    inputs, mask = torch.full((4, 64, MELS), 7.0), torch.zeros(4, 64, dtype=torch.long)
    for row, (length, start) in enumerate(zip(lengths, (0, 31, 20, 0))):  # no padding, left, both sides, right
        inputs[row, start : start + length] = clips[row, :length]
        mask[row, start : start + length] = 1
    logits = model(inputs, mask).logits
    alone = torch.cat([model(clips[row : row + 1, :length]).logits for row, length in enumerate(lengths)])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # the comparison means something


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("encoder, readout", CASES)
def test_gradients_reach_all_that_is_trained_and_are_finite(encoder, readout, dtype):
    model = make(encoder, readout).to(dtype)
    inputs, mask = batch(64, 1)  # one token with frame models
    output = model(inputs, mask, labels=torch.eye(3)[:2])
    assert output.hidden_states is None and output.loss.isfinite()
    output.loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    learned = [grad for name, grad in grads.items() if any(part in name for part in ("query", "layer_w", "prototypes"))]
    assert readout == "std" or (learned and all(grad.any() for grad in learned))


@torch.no_grad()
@pytest.mark.parametrize("encoder, readout", CASES)
def test_a_saved_folder_is_loaded_by_its_auto_class(encoder, readout, tmp_path):
    model = make(encoder, readout)
    model.save_pretrained(tmp_path)
    again, report = AutoModelForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs, mask = batch(64, 20)
    torch.testing.assert_close(again.eval()(inputs, mask).logits, model(inputs, mask).logits, atol=0, rtol=0)


@torch.no_grad()
def test_a_folder_without_the_new_settings_is_as_before(tmp_path):
    model = make("patches", "std", pooling=["mean", "max"])
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name in ("classifier", "prototypes_per_class", "binary_prototypes", "num_pooling_heads"):
        del stored[name]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again, report = AutoModelForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs, mask = batch(64, 20)
    assert torch.equal(again.eval()(inputs, mask).logits, model(inputs, mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("readout", ["attention", "prototypes"])
def test_another_grid_with_other_tokens_starts_anew(readout, tmp_path):
    make("frames", readout).save_pretrained(tmp_path)
    model = AutoModelForAudioClassification.from_pretrained(tmp_path, frequency_stride=8, dtype=torch.bfloat16).eval()
    size = 16 * 3  # three rows instead of two
    logits = model(*batch(64, 20)).logits
    assert logits.isfinite().all() and logits.dtype == torch.bfloat16
    if readout == "attention":
        queries = [attention.pooling_query for attention in model.dual_ssast.fusion.attention]
        assert [tuple(query.shape) for query in queries] == [(2, size)] * 2 and not any(q.any() for q in queries)
    else:
        assert model.classifier.prototypes.shape == (3, 5, size) and model.classifier.prototypes.any()


# ---- the classifier by itself ----


def head(size=6, **settings) -> PrototypeClassifier:
    classifier = PrototypeClassifier(DualSSASTConfig(num_labels=3, classifier="prototypes", **settings), size).double()
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    return classifier


def test_logits_equal_their_formula():
    classifier, tokens = head(), torch.randn(2, 4, 3, 6, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [False, True, True, False]])
    logits, frames = classifier(tokens, mask), classifier(tokens)
    normed = classifier.layernorm(tokens)
    for clip in range(2):
        for label in range(3):
            total = by_frame = classifier.bias[label]
            for prototype, weight in zip(classifier.prototypes[label], classifier.weight[label]):
                cosines = nn.functional.cosine_similarity(normed[clip], prototype, dim=-1)  # (frames, tokens)
                total = total + weight * cosines[mask[clip]].max()
                by_frame = by_frame + weight * cosines.amax(dim=1)
            torch.testing.assert_close(logits[clip, label], total)
            torch.testing.assert_close(frames[clip, :, label], by_frame)


def test_a_prototype_and_one_token_give_their_cosine():
    classifier = head(prototypes_per_class=1, classifier_layer_norm_eps=None)
    nn.init.ones_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    tokens = torch.randn(5, 1, 1, 6, dtype=torch.float64)
    expected = nn.functional.cosine_similarity(tokens[:, 0], classifier.prototypes[:, 0], dim=-1)  # (5, 3)
    torch.testing.assert_close(classifier(tokens, torch.ones(5, 1, dtype=torch.bool)), expected)
    alike = classifier(classifier.prototypes[:, :, None], torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(alike.diagonal(), torch.ones(3, dtype=torch.float64))


def test_gradients_are_their_finite_differences():
    classifier, mask = head(), torch.tensor([[True, True], [True, False]])
    names, values = zip(*classifier.named_parameters())

    def classify(tokens, *values):
        return torch.func.functional_call(classifier, dict(zip(names, values)), (tokens, mask))

    tokens = torch.randn(2, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(classify, (tokens, *(value.detach().requires_grad_() for value in values)))


def test_signs_take_the_place_of_binary_prototypes_and_pass_the_gradient_on():
    binary, plain = head(binary_prototypes=True), head()
    plain.prototypes.data = binary.prototypes.sign()
    tokens = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(binary(tokens), plain(tokens), atol=0, rtol=0)
    for classifier in (binary, plain):
        classifier(tokens).square().sum().backward()
    assert binary.prototypes.grad.any()
    torch.testing.assert_close(binary.prototypes.grad, plain.prototypes.grad)
