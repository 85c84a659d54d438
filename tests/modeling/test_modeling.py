"""Tests the model: independent clips, attention implementations, gradients, losses, resizing, windows, loading."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import MELS, THREE_BLOCKS, batch
from tiny_models import make_three_blocks as tiny
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
    DualSSASTModel,
)
from modeling_dual_ssast.classifier_dual_ssast import classification_loss
from modeling_dual_ssast.modeling_dual_ssast import attention_mask_for

RATE = 16000
PATCH_16 = dict(patch_size=16, frequency_stride=16, time_stride=16)
PATCH_10 = dict(patch_size=16, frequency_stride=10, time_stride=10)
FRAME_2 = dict(patch_size=[MELS, 2], frequency_stride=MELS, time_stride=2)
FRAME_1 = dict(patch_size=[MELS, 2], frequency_stride=MELS, time_stride=1)
SUBSETS = [list(s) for size in (1, 2, 3) for s in itertools.combinations(("mean", "max", "min"), size)]
NORMS, READOUTS, FUSIONS = (
    ("shared", "separate", "none"),
    ("patches", "prefix", "frames"),
    ("concat", "sum", "weighted"),
)
pytestmark = pytest.mark.usefixtures("one_thread")


# ---- a clip's logits do not depend on the clips beside it ----

OPTIONS = list(itertools.product(READOUTS, SUBSETS, ("sum", "mean", "concat"), FUSIONS, NORMS))
GEOMETRIES = [PATCH_16, PATCH_10, FRAME_2, FRAME_1, {**PATCH_16, "attention_over_padding": True}]


@pytest.mark.parametrize("index", range(20))
def test_logits_of_a_clip_do_not_depend_on_its_batch(index):
    """20 random batches from the waveform on; together they cover every combination of the fusion's options."""
    rng = np.random.default_rng(index)
    lengths = (np.exp(rng.uniform(np.log(0.05), np.log(10), size=4)) * RATE).astype(int)
    lengths[index % 4] = RATE * (10 if index % 5 == 0 else 0.05 if index % 2 else 2)
    clips = [rng.normal(0, rng.uniform(0.01, 0.3), length).astype(np.float32) for length in lengths]
    extractor = DualSSASTFeatureExtractor(num_mel_bins=MELS)
    together = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    alone = [extractor(clip, sampling_rate=RATE, return_tensors="pt") for clip in clips]
    geometry = GEOMETRIES[index % len(GEOMETRIES)]
    # Stepping by 20 would meet the same norms and fusions again and again; the prime 13 passes all of them.
    chosen = [OPTIONS[(13 * number) % len(OPTIONS)] for number in range(index, len(OPTIONS), 20)]
    for number, (readout, pooling, combination, fusion, norm) in enumerate(chosen):
        model = tiny(
            **geometry,
            max_length=1024,
            readout=readout,
            pooling=pooling,
            pooling_combination=combination,
            fusion=fusion,
            fusion_norm=norm,
            fusion_layers=([1, 3], [0, 2], [-1, 1])[number % 3],
            num_prefix_tokens=1 + number % 2,
        )
        with torch.no_grad():
            logits = model(**together).logits
            single = torch.cat([model(**features).logits for features in alone])
            unmasked = torch.cat([model(features["input_values"]).logits for features in alone[:1]])
        torch.testing.assert_close(logits, single, atol=1e-5, rtol=0)
        torch.testing.assert_close(unmasked, single[:1], atol=1e-5, rtol=0)
        assert (single[0] - single[1]).abs().max() > 1e-3  # the comparison means something


@pytest.mark.parametrize("geometry", [PATCH_16, PATCH_10, FRAME_2, FRAME_1])
@pytest.mark.parametrize("readout, pooling", [("patches", ["mean", "max", "min"]), ("frames", ["mean", "min"])])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_float64_the_batch_changes_nothing(geometry, readout, pooling, attention):
    model = tiny(**geometry, readout=readout, pooling=pooling, attn_implementation=attention).double()
    lengths = (128, 1, 15, 16, 17, 61, 100, 127)
    input_values, mask = batch(*lengths)
    logits = model(input_values.double(), mask).logits
    for index, length in enumerate(lengths):
        single = model(input_values[index : index + 1, :length].double()).logits
        torch.testing.assert_close(logits[index : index + 1], single, atol=1e-12, rtol=0)


@pytest.mark.parametrize("over_padding", [False, True])
def test_what_the_caller_padded_with_does_not_matter(over_padding):
    model = tiny(**PATCH_10, attention_over_padding=over_padding)
    input_values, mask = batch(90, 33, 5)
    expected = model(input_values, mask).logits
    for rubbish in (0.0, 1e4, float("inf"), float("nan")):
        dirty = input_values.masked_fill(mask.unsqueeze(-1) == 0, rubbish)
        assert torch.equal(model(dirty, mask).logits, expected)
    assert torch.equal(model(input_values, mask.bool()).logits, expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_row_without_audio_counts_as_one_column(geometry):
    model = tiny(**geometry)
    input_values, mask = batch(60, 60)
    mask[1] = 0
    silent = torch.full((1, 1, MELS), model.config.padding_value)
    logits = model(input_values, mask).logits
    torch.testing.assert_close(logits[1:], model(silent).logits, atol=1e-5, rtol=0)


def test_originals_attend_to_padding_up_to_max_length():
    model = tiny(attention_over_padding=True)
    clip, _ = batch(40)
    full = nn.functional.pad(clip, (0, 0, 0, 88), value=model.config.padding_value)
    torch.testing.assert_close(model(clip).logits, model(full).logits, atol=1e-6, rtol=0)
    assert (model(clip).logits - tiny()(clip).logits).abs().max() > 1e-2


def test_cost_follows_the_length():
    model = tiny(DualSSASTModel)
    assert [model(batch(n)[0]).last_hidden_state.shape[1] for n in (1, 16, 17, 64, 128)] == [4, 4, 6, 10, 18]


def test_inputs_that_do_not_fit_raise_with_both_sides():
    model = tiny()
    with pytest.raises(ValueError, match=r"has 129 frames.*max_length=128.*classify_windows"):
        model(torch.zeros(1, 129, MELS))
    with pytest.raises(ValueError, match=r"\(batch, frames, 32 mel bins\), got \(1, 64, 128\)"):
        model(torch.zeros(1, 64, 128))
    with pytest.raises(ValueError, match=r"\(batch, frames, 32 mel bins\), got \(64, 32\)"):
        model(torch.zeros(64, MELS))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 63\).*\(1, 64\)"):
        model(torch.zeros(1, 64, MELS), torch.ones(1, 63))
    encoder = tiny(DualSSASTModel)
    for layer in (1, 4):
        with pytest.raises(ValueError, match=f"last_layer must be from 3, the highest fused layer, to 3, got {layer}"):
            encoder(torch.zeros(1, 64, MELS), last_layer=layer)


# ---- what the forward pass computes ----


def test_pooler_output_is_normalise_pool_combine_fuse():
    """The order of the design, written out for one clip without padding."""
    model = tiny(DualSSASTModel, fusion_layers=[1, -1], pooling=[["mean"], ["max", "min"]], pooling_combination="mean")
    output = model(batch(64)[0], output_hidden_states=True)
    first, last = (model.layernorm(output.hidden_states[layer])[:, 2:] for layer in (1, 3))
    expected = torch.cat((first.mean(dim=1), (last.amax(dim=1) + last.amin(dim=1)) / 2), dim=1)
    torch.testing.assert_close(output.pooler_output, expected, atol=1e-6, rtol=0)


def test_frames_readout_keeps_frequency_and_channel():
    model = tiny(DualSSASTModel, readout="frames", fusion_layers=[2], pooling=["max"], fusion_norm="none")
    output = model(batch(64)[0], output_hidden_states=True)
    grid = output.hidden_states[2][:, 2:].unflatten(1, (2, 4))  # (batch, rows, columns, hidden)
    expected = grid.permute(0, 3, 1, 2).flatten(1, 2).amax(dim=2)
    torch.testing.assert_close(output.pooler_output, expected)


def test_prefix_readout_is_the_mean_of_the_prefix_tokens():
    model = tiny(DualSSASTModel, readout="prefix", fusion_layers=[1, 3], fusion="sum", fusion_norm="separate")
    output = model(batch(64)[0], output_hidden_states=True)
    norms = model.fusion.layernorms
    expected = sum(norm(output.hidden_states[layer])[:, :2].mean(dim=1) for norm, layer in zip(norms, (1, 3)))
    torch.testing.assert_close(output.pooler_output, expected)


def test_patches_are_frequency_major():
    """A change in one patch reaches exactly its own token of the embedding."""
    model = tiny(DualSSASTModel)
    input_values, _ = batch(64)
    changed = input_values.clone()
    changed[0, 35, 20] += 1  # column 2 of 4, row 1 of 2
    states = [model(x, output_hidden_states=True).hidden_states[0] for x in (input_values, changed)]
    assert (states[0] != states[1]).any(dim=-1)[0].nonzero().tolist() == [[2 + 1 * 4 + 2]]


@pytest.mark.parametrize("model_class", [DualSSASTModel, DualSSASTForAudioClassification])
def test_optional_outputs(model_class):
    model = tiny(model_class, fusion_layers=[1])
    input_values, mask = batch(64, 20)
    plain = model(input_values, mask)
    assert plain.hidden_states is None and plain.attentions is None
    full = model(input_values, mask, output_hidden_states=True, output_attentions=True)
    assert len(full.hidden_states) == 4 and {s.shape for s in full.hidden_states} == {(2, 10, 16)}
    assert len(full.attentions) == 3 and {a.shape for a in full.attentions} == {(2, 2, 10, 10)}
    torch.testing.assert_close(full.attentions[0].sum(dim=-1), torch.ones(2, 2, 10))
    assert (full.attentions[2][1, :, :, [4, 5, 8, 9]] == 0).all()  # 20 frames hold 2 of 4 columns
    by_config = tiny(model_class, fusion_layers=[1], output_hidden_states=True)
    assert len(by_config(input_values, mask).hidden_states) == 4
    as_tuple = model(input_values, mask, output_hidden_states=True, return_dict=False)
    assert type(as_tuple) is tuple and torch.equal(as_tuple[0], model(input_values, mask, output_hidden_states=True)[0])


def test_last_hidden_state_is_the_normalised_last_state():
    model = tiny(DualSSASTModel)
    output = model(batch(64)[0], output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, model.layernorm(output.hidden_states[-1]))


@pytest.mark.parametrize("layers, calls", [([0], 0), ([1], 1), ([2, 0], 2), ([-1], 3)])
def test_blocks_above_the_highest_fused_layer_are_not_computed(layers, calls):
    model = tiny(fusion_layers=layers)
    seen = []
    for index, layer in enumerate(model.dual_ssast.layers):
        layer.register_forward_hook(lambda *_, index=index: seen.append(index))
    input_values, mask = batch(64, 20)
    early = model(input_values, mask).logits
    assert seen == list(range(calls))
    seen.clear()
    assert torch.equal(model(input_values, mask, output_hidden_states=True).logits, early)
    assert seen == [0, 1, 2]


# ---- attention implementations ----


@pytest.mark.parametrize("geometry", [PATCH_16, PATCH_10, FRAME_1])
@pytest.mark.parametrize("masked", [True, False])
def test_eager_equals_sdpa(geometry, masked):
    model = tiny(**geometry, attn_implementation="sdpa")
    input_values, mask = batch(100, 3, 40)
    mask = mask if masked else None
    expected = model(input_values, mask).logits
    # Also a check that Transformers may switch the implementation of a finished model.
    model.set_attn_implementation("eager")
    assert model.dual_ssast.config._attn_implementation == "eager"
    torch.testing.assert_close(model(input_values, mask).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_flex_attention_equals_sdpa(masked):
    model = tiny(attn_implementation="sdpa", hidden_size=32)
    input_values, mask = batch(100, 3)
    mask = mask if masked else None
    with torch.no_grad():
        expected = model(input_values, mask).logits
        model.set_attn_implementation("flex_attention")
        assert model.dual_ssast.config._attn_implementation == "flex_attention"
        torch.testing.assert_close(model(input_values, mask).logits, expected, atol=1e-5, rtol=0)


def test_masks_have_the_form_that_each_implementation_reads():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert attention_mask_for("flash_attention_2", mask, torch.float16) is mask
    assert attention_mask_for("kernels-community/flash-attn2", mask, torch.float16) is mask
    sdpa = attention_mask_for("sdpa", mask, torch.float16)
    assert sdpa.dtype == torch.bool and sdpa.shape == (2, 1, 1, 3)
    bias = attention_mask_for("eager", mask, torch.float16)
    assert bias.dtype == torch.float16 and bias.shape == (2, 1, 1, 3)
    assert bias[0, 0, 0].tolist() == [0, 0, torch.finfo(torch.float16).min] and not bias[1].any()
    flex = attention_mask_for("flex_attention", mask, torch.float16)
    allowed = [[flex.mask_mod(torch.tensor(b), 0, 2, torch.tensor(k)).item() for k in range(3)] for b in range(2)]
    assert flex.seq_lengths == (3, 3) and allowed == mask.tolist()
    assert all(attention_mask_for(name, None, torch.float32) is None for name in ("eager", "sdpa", "flex_attention"))


def test_flash_attention_is_declared_and_not_causal():
    assert DualSSASTForAudioClassification._supports_flash_attn
    assert all(layer.attention.is_causal is False for layer in tiny().dual_ssast.layers)


# ---- gradients ----

FROZEN_CASES = [
    *[
        dict(fusion_layers=[1, 2], fusion_norm=norm, fusion=fusion)
        for norm, fusion in itertools.product(NORMS, FUSIONS)
    ],
    *[
        dict(fusion_layers=[0], readout=readout, fusion_norm=norm)
        for readout in READOUTS
        for norm in ("shared", "none")
    ],
    dict(fusion_layers=[-1], readout="prefix", fusion_norm="separate", classifier_hidden_sizes=[8, 4]),
]


def unreached_names(model):
    """Names of parameters that no forward pass with early exit reads."""
    config = model.config
    above = tuple(f"dual_ssast.layers.{i}." for i in range(max(config.fused_layers), config.num_hidden_layers))
    unread = () if config.fusion_norm == "shared" else ("dual_ssast.layernorm.",)
    return {name for name, _ in model.named_parameters() if name.startswith(above + unread)}


@pytest.mark.parametrize("options", FROZEN_CASES)
@pytest.mark.parametrize("loaded", [False, True])
def test_unreached_parameters_are_frozen_and_all_others_get_a_gradient(tmp_path, options, loaded):
    model = tiny(**options)
    if loaded:
        model.save_pretrained(tmp_path)
        model = DualSSASTForAudioClassification.from_pretrained(tmp_path)
    model.train()
    input_values, mask = batch(100, 40)
    model(input_values, mask, labels=torch.tensor([0, 2])).loss.backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == unreached_names(model)
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == frozen
    # The key's bias shifts all scores of a query alike, and softmax forgets it. The embedding alone mixes no tokens.
    zero = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() < 1e-9}
    exempt = ("k_proj.bias",)
    if options["fusion_layers"] == [0]:
        exempt += ("projection.weight", "projection.bias") if options["readout"] == "prefix" else ("prefix_tokens",)
    assert {name for name in zero if not name.endswith(exempt)} == set()


def test_the_head_learns_when_the_encoder_is_frozen():
    model = tiny()
    model.dual_ssast.requires_grad_(False)
    model(batch(40)[0], labels=torch.tensor([1])).loss.backward()
    assert model.classifier.dense.weight.grad.any()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradients(use_reentrant, dropout):
    input_values, mask = batch(100, 40)
    gradients = []
    for checkpointing in (False, True):
        model = tiny(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        calls = []
        model.dual_ssast.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        model(input_values, mask, labels=torch.tensor([0, 2])).loss.backward()
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


# ---- losses ----

LOGITS = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.1, -2.0]])
ONE_HOT = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), ONE_HOT, torch.tensor([[0.7, 0.3, 0], [0, 0.4, 0.6]])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_hard_and_soft_labels(labels, smoothing):
    target = labels if labels.ndim == 2 else ONE_HOT
    target = (1 - smoothing) * target + smoothing / 3
    expected = -(target * LOGITS.log_softmax(dim=1)).sum(dim=1).mean()
    loss = classification_loss(LOGITS, labels, "single_label_classification", smoothing)
    torch.testing.assert_close(loss, expected)


def test_binary_cross_entropy_of_several_labels():
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    p = LOGITS.sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(classification_loss(LOGITS, labels, "multi_label_classification"), expected)


@pytest.mark.parametrize("outputs, labels", [(1, [0.5, -1.0]), (1, [[0.5], [-1.0]]), (3, [[0.5, 1, 2], [0, 1, -1]])])
def test_squared_error_of_regression(outputs, labels):
    logits, labels = LOGITS[:, :outputs], torch.tensor(labels)
    expected = (logits - labels.reshape(2, outputs)).square().mean()
    torch.testing.assert_close(classification_loss(logits, labels, "regression"), expected)


@pytest.mark.parametrize(
    "labels, problem_type, message",
    [
        (torch.zeros(3).long(), "single_label_classification", r"labels of shape \(3,\) do not fit logits \(2, 3\)"),
        (torch.zeros(2, 4), "single_label_classification", r"\(2, 4\) do not fit logits \(2, 3\)"),
        (torch.zeros(2, 1).long(), "single_label_classification", r"\(2, 1\) do not fit logits \(2, 3\)"),
        (torch.tensor([0.0, 1.5]), "single_label_classification", r"integer classes .*got torch.float32"),
        (torch.zeros(2).long(), "multi_label_classification", r"\(2,\) do not fit .*multi_label_classification"),
        (torch.zeros(2), "regression", r"\(2,\) do not fit logits \(2, 3\) \(regression\)"),
        (torch.zeros(2, 1), "regression", r"\(2, 1\) do not fit logits \(2, 3\) \(regression\)"),
        (torch.zeros(2).long(), "multi_label", "problem_type must be one of single_.*, got 'multi_label'"),
        (torch.zeros(2).long(), None, "problem_type must be one of single_.*, got None"),
    ],
)
def test_labels_that_do_not_fit_raise(labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(LOGITS, labels, problem_type)


def test_a_regression_on_three_clips_and_three_numbers_does_not_broadcast():
    with pytest.raises(ValueError, match=r"\(3,\) do not fit logits \(3, 3\)"):
        classification_loss(torch.zeros(3, 3), torch.zeros(3), "regression")


@pytest.mark.parametrize(
    "num_labels, labels, guessed",
    [
        (3, torch.tensor([0, 2]), "single_label_classification"),
        (3, torch.tensor([[1.0, 1, 0], [0, 0, 1]]), "multi_label_classification"),
        (1, torch.tensor([0.3, 2.0]), "regression"),
    ],
)
def test_problem_type_is_guessed_as_transformers_does(num_labels, labels, guessed):
    model = tiny(num_labels=num_labels)
    output = model(batch(20, 30)[0], labels=labels)
    assert model.config.problem_type == guessed
    torch.testing.assert_close(output.loss, classification_loss(output.logits, labels, guessed))


def test_label_smoothing_and_problem_type_come_from_the_config():
    model = tiny(label_smoothing=0.2, problem_type="single_label_classification")
    labels = torch.tensor([[0.5, 0.5, 0], [0, 0, 1.0]])  # mixup, which would be taken for several labels
    output = model(*batch(20, 30), labels=labels)
    expected = nn.functional.cross_entropy(output.logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(output.loss, expected)
    as_tuple = model(*batch(20, 30), labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)


# ---- precision and compilation ----


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"fusion": "weighted", "fusion_norm": "none", "pooling": ["mean", "min"]}])
def test_half_precision_stays_close(dtype, atol, attention, options):
    model = tiny(**options, attn_implementation=attention)
    input_values, mask = batch(100, 40)
    expected = model(input_values, mask).logits
    output = model.to(dtype)(input_values, mask, labels=torch.tensor([0, 1]))  # the model casts its input
    assert output.logits.dtype == dtype and output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits.float(), expected, atol=atol, rtol=0)


def test_autocast_stays_close():
    model = tiny().train()
    input_values, mask = batch(100, 40)
    expected = model(input_values, mask).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_values, mask, labels=torch.tensor([0, 1]))
    torch.testing.assert_close(output.logits.float(), expected, atol=0.1, rtol=0)
    output.loss.backward()
    assert model.classifier.dense.weight.grad.dtype == torch.float32


def check_compiled(model, backend):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    input_values, mask = batch(100, 40)
    labels = torch.tensor([0, 2])
    for arguments in ({}, {"attention_mask": mask}):
        torch.testing.assert_close(
            compiled(input_values, **arguments).logits, model(input_values, **arguments).logits, atol=1e-5, rtol=0
        )
    expected = torch.autograd.grad(model(input_values, mask, labels).loss, model.classifier.dense.weight)[0]
    compiled(input_values, attention_mask=mask, labels=labels).loss.backward()
    torch.testing.assert_close(model.classifier.dense.weight.grad, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {**FRAME_1, "readout": "frames", "fusion": "weighted"}])
def test_the_whole_model_is_one_graph(options):
    check_compiled(tiny(**options).train(), "aot_eager")


@pytest.mark.slow
def test_the_compiled_model_equals_eager():
    check_compiled(tiny(num_hidden_layers=2).train(), "inductor")


# ---- another patch grid ----


def resized_by_loop(positions, old_shape, new_shape):
    """SSAST's rule value by value: (rows, columns, hidden), time first, centre cut or linear interpolation."""
    for axis in (1, 0):
        old, new = old_shape[axis], new_shape[axis]
        positions = positions.movedim(axis, 0)
        if new < old:
            start = old // 2 - new // 2
            rows = [positions[start + i] for i in range(new)]
        else:
            rows = []
            for i in range(new):
                at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
                low = int(at)
                high = min(low + 1, old - 1)
                rows.append(positions[low] * (1 - (at - low)) + positions[high] * (at - low))
        positions = torch.stack(rows).movedim(0, axis)
    return positions


CHANGES = [
    dict(max_length=64),
    dict(max_length=71, time_stride=10),
    dict(max_length=300),
    dict(frequency_stride=10, time_stride=10),
    dict(frequency_stride=5, time_stride=7, max_length=50),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("start", [PATCH_16, {**PATCH_16, "frequency_stride": 4}])
def test_positions_are_resized_by_the_rule_of_ssast(change, start):
    model = tiny(**start, num_prefix_tokens=1)
    old, old_shape = model.dual_ssast.embeddings.position_embeddings.detach().clone(), model.config.grid_shape
    model.resize_position_embeddings(**change)
    new, new_shape = model.dual_ssast.embeddings.position_embeddings, model.config.grid_shape
    assert new_shape == DualSSASTConfig(**{**THREE_BLOCKS, **start, **change}).grid_shape
    assert torch.equal(new[:, :1], old[:, :1])
    expected = resized_by_loop(old[0, 1:].unflatten(0, old_shape), old_shape, new_shape)
    # Along both axes, coordinates of up to 8 patches round by 1e-6, and neighbours differ by up to 1.5.
    torch.testing.assert_close(new[0, 1:].unflatten(0, new_shape), expected, atol=3e-6, rtol=0)
    output = model(torch.zeros(1, model.config.max_length, MELS), output_hidden_states=True)
    assert output.hidden_states[0].shape[1] == 1 + model.config.num_patches
    output.logits.sum().backward()
    assert model.dual_ssast.embeddings.position_embeddings.grad is not None


def test_resizing_to_the_same_grid_changes_nothing():
    model = tiny()
    clip, _ = batch(128)
    expected = model(clip).logits
    model.resize_position_embeddings(max_length=128)
    torch.testing.assert_close(model(clip).logits, expected, atol=1e-6, rtol=0)


def test_an_impossible_grid_leaves_the_model_as_it_was():
    model = tiny()
    with pytest.raises(ValueError, match="time_stride=17"):
        model.resize_position_embeddings(max_length=64, time_stride=17)
    assert (model.config.max_length, model.config.time_stride) == (128, 16)
    assert model(batch(128)[0]).logits.shape == (1, 3)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("loader", [DualSSASTForAudioClassification, AutoModelForAudioClassification])
def test_from_pretrained_resizes(tmp_path, change, loader):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded, info = loader.from_pretrained(tmp_path, **change, output_loading_info=True)
    model.resize_position_embeddings(**change)
    clip, _ = batch(model.config.max_length)
    assert torch.equal(loaded(clip).logits, model(clip).logits)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(getattr(loaded.config, name) == value for name, value in change.items())
    assert loaded.config.max_length == loaded.dual_ssast.config.max_length
    loaded.save_pretrained(tmp_path / "resized")
    again = loader.from_pretrained(tmp_path / "resized")
    assert torch.equal(again(clip).logits, model(clip).logits)


def test_from_pretrained_resizes_for_a_given_config_and_leaves_it_alone(tmp_path):
    tiny().save_pretrained(tmp_path)
    config = DualSSASTConfig(**{**THREE_BLOCKS, "max_length": 64})
    model = DualSSASTForAudioClassification.from_pretrained(tmp_path, config=config)
    assert model.config.max_length == config.max_length == 64
    assert model.dual_ssast.embeddings.position_embeddings.shape[1] == 2 + 8


def test_weights_without_a_config_load_into_a_given_one(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert_same_weights(DualSSASTForAudioClassification.from_pretrained(tmp_path, config=model.config), model)


def test_from_pretrained_checks_overrides(tmp_path):
    tiny().save_pretrained(tmp_path)
    for loader in (DualSSASTForAudioClassification, AutoModelForAudioClassification):
        with pytest.raises(ValueError, match="from -4 to 3, got 99"):
            loader.from_pretrained(tmp_path, fusion_layers=[99])
        with pytest.raises(ValueError, match=r"time_stride=17 .* patches of 16"):
            loader.from_pretrained(tmp_path, time_stride=17)


@pytest.mark.parametrize("loader", [DualSSASTForAudioClassification, AutoModelForAudioClassification])
def test_a_new_frequency_grid_rebuilds_the_head_of_frames_and_says_so(tmp_path, loader, warnings_of_models):
    model = tiny(readout="frames")
    model.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path, frequency_stride=8)
    assert [m for m in warnings_of_models if "fused_size from 64 to 96" in m and "must be trained" in m]
    assert loaded.classifier.dense.weight.shape == (3, 96) and loaded.classifier.dense.weight.std() > 0.1
    assert torch.equal(loaded.classifier.layernorm.weight, torch.ones(96))
    loaded(batch(64)[0], labels=torch.tensor([0])).loss.backward()
    assert loaded.classifier.dense.weight.grad.any()
    warnings_of_models.clear()
    loaded = loader.from_pretrained(tmp_path, time_stride=8)  # does not change the size: the trained head stays
    assert not warnings_of_models and torch.equal(loaded.classifier.dense.weight, model.classifier.dense.weight)


@pytest.mark.parametrize("frozen", [False, True])
def test_new_parts_for_a_new_grid_say_so_and_keep_mode_and_trainability(tmp_path, frozen, warnings_of_models):
    model = tiny(readout="frames", pooling=["attention"]).train(not frozen).requires_grad_(not frozen)
    model.resize_position_embeddings(frequency_stride=8)
    queries = [m for m in warnings_of_models if "'attention'" in m and "from 32 to 48" in m and "must be trained" in m]
    assert len(queries) == 1
    model.dual_ssast.reset_fusion()
    for part in (model.dual_ssast.fusion, model.classifier):
        assert {module.training for module in part.modules()} == {not frozen}
        assert {parameter.requires_grad for parameter in part.parameters()} == {not frozen}
    tiny(readout="frames", pooling=["attention"]).save_pretrained(tmp_path)
    warnings_of_models.clear()
    AutoModel.from_pretrained(tmp_path, frequency_stride=8)
    assert [m for m in warnings_of_models if "'attention'" in m]


PATCH_8 = dict(patch_size=8, frequency_stride=8, time_stride=8)


@pytest.mark.parametrize("loader", [DualSSASTModel, AutoModel])
def test_other_patches_get_new_projections_and_positions(tmp_path, loader):
    tiny(DualSSASTModel).save_pretrained(tmp_path)
    configs = [PATCH_8] if loader is AutoModel else [PATCH_8, {"config": DualSSASTConfig(**THREE_BLOCKS | PATCH_8)}]
    for options in configs:
        model, info = loader.from_pretrained(
            tmp_path, **options, ignore_mismatched_sizes=True, output_loading_info=True
        )
        new = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
        assert new == {"embeddings.projection.weight", "embeddings.position_embeddings"}
        assert model(batch(128)[0]).last_hidden_state.shape == (1, 2 + 4 * 16, 16)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            loader.from_pretrained(tmp_path, **options)
    same = loader.from_pretrained(tmp_path, patch_size=[16, 16], time_stride=8)  # the stored patches, in other words
    assert same.config.time_stride == 8 and same.embeddings.position_embeddings.shape[1] == 2 + 2 * 15


def test_a_config_may_be_a_folder(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    tiny(max_length=64, hidden_dropout_prob=0.3).save_pretrained(tmp_path / "other")
    for name in (tmp_path / "other", str(tmp_path / "other")):
        load = DualSSASTForAudioClassification.from_pretrained
        model, info = load(tmp_path / "model", config=name, output_loading_info=True, label_smoothing=0.1)
        config = model.config
        assert (config.max_length, config.hidden_dropout_prob, config.label_smoothing) == (64, 0.3, 0.1)
        assert model.dual_ssast.embeddings.position_embeddings.shape[1] == 2 + 8 and not info["missing_keys"]
        assert load(tmp_path / "model", config=name, max_length=96).config.max_length == 96


def test_labels_are_predicted_from_logits_of_all_labels():
    for problem_type in (None, "multi_label_classification", "regression"):
        model = tiny(num_labels=2, problem_type=problem_type)
        assert len(model.predict_labels(torch.ones(4, 2))) == 4
        for columns in (1, 5):
            with pytest.raises(ValueError, match=rf"got \(1, {columns}\) for 2 label"):
                model.predict_labels(torch.ones(1, columns))


# ---- windows ----


@pytest.fixture(scope="module")
def windows():
    extractor = DualSSASTFeatureExtractor(num_mel_bins=MELS, max_length=128)
    audio = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    audio *= np.linspace(0.01, 1, len(audio), dtype=np.float32)
    return tiny(**PATCH_10), extractor, audio


@pytest.mark.parametrize("num_samples", [1, 8000, int(1.295 * RATE)])
def test_a_clip_that_fits_gives_the_ordinary_logits(windows, num_samples):
    model, extractor, audio = windows
    clip = audio[:num_samples]
    output = model.classify_windows(clip, extractor, sampling_rate=RATE)
    with torch.no_grad():
        expected = model(**extractor(clip, sampling_rate=RATE, return_tensors="pt")).logits[0]
    assert torch.equal(output.logits, expected)
    assert output.start_s.tolist() == [0] and output.end_s.tolist() == [num_samples / RATE]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_window_equals_its_segment_alone(windows, batch_size):
    model, extractor, audio = windows
    options = dict(sampling_rate=RATE, window_s=1.0, hop_s=0.75, batch_size=batch_size)
    output = model.classify_windows(torch.from_numpy(audio), extractor, average=False, **options)
    assert output.start_s.tolist() == [0, 0.75, 1.5, 2.25, 3.0, 3.75, 4.0]
    assert output.end_s.tolist() == [start + 1 for start in output.start_s.tolist()]
    assert output.logits.shape == (7, 3)
    for start, logits in zip(output.start_s.tolist(), output.logits):
        segment = audio[int(start * RATE) : int((start + 1) * RATE)]
        with torch.no_grad():
            expected = model(**extractor(segment, sampling_rate=RATE, return_tensors="pt")).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    average = model.classify_windows(audio, extractor, **options)
    torch.testing.assert_close(average.logits, output.logits.mean(dim=0), atol=1e-5, rtol=0)
    assert not average.logits.requires_grad


def test_default_windows_are_as_long_as_the_positions_and_half_overlap(windows):
    model, extractor, audio = windows
    output = model.classify_windows(audio, extractor, sampling_rate=RATE)
    assert (output.end_s - output.start_s).unique().tolist() == pytest.approx([1.295])
    assert (output.start_s[1] - output.start_s[0]).item() == pytest.approx(0.6475)
    assert output.end_s[-1] == 5.0


@pytest.mark.parametrize("rate", [16000, 22050, 32000, 44100])
@pytest.mark.parametrize("extractor_length", [100, 128, 200])
def test_windows_fill_the_shorter_of_model_and_extractor(rate, extractor_length, monkeypatch):
    model = tiny()
    extractor = DualSSASTFeatureExtractor(sampling_rate=rate, num_mel_bins=MELS, max_length=extractor_length)
    audio = np.random.default_rng(0).normal(0, 0.1, 3 * rate).astype(np.float32)
    lengths, log_mel = set(), extractor.log_mel
    monkeypatch.setattr(extractor, "log_mel", lambda clips: [lengths.add(len(f)) or f for f in log_mel(clips)])
    window_s = extractor.num_samples(min(128, extractor_length)) / rate
    outputs = [model.classify_windows(audio, extractor, window_s=seconds) for seconds in (None, window_s)]
    assert lengths == {min(128, extractor_length)}
    assert torch.equal(outputs[0].logits, outputs[1].logits)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window_s": 1.3}, "at most max_length's 1.295 s, got 1.3"),
        ({"window_s": 0}, "window_s must be positive.*got 0"),
        ({"window_s": 1.0, "hop_s": 1.5}, "hop_s must be positive and at most window_s=1, got 1.5"),
        ({"hop_s": 0}, "hop_s must be positive.*got 0"),
        ({"window_s": float("nan")}, "window_s must be positive.*got nan"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"sampling_rate": 8000}, "at 8000 Hz.*needs 16000 Hz"),
    ],
)
def test_wrong_windows_raise(windows, options, message):
    model, extractor, audio = windows
    with pytest.raises(ValueError, match=message):
        model.classify_windows(audio, extractor, **{"sampling_rate": RATE, **options})


def test_windows_of_stereo_or_nothing_raise(windows):
    model, extractor, audio = windows
    with pytest.raises(ValueError, match="average the channels"):
        model.classify_windows(audio.reshape(2, -1), extractor, sampling_rate=RATE)
    with pytest.raises(ValueError, match="average the channels"):
        model.classify_windows(audio.reshape(-1, 2), extractor, sampling_rate=RATE)
    with pytest.raises(ValueError, match="empty"):
        model.classify_windows(audio[:0], extractor, sampling_rate=RATE)


# ---- saving, loading, initialising ----


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "model_class, auto_class",
    [
        (DualSSASTModel, AutoModel),
        (DualSSASTForAudioClassification, AutoModelForAudioClassification),
        (DualSSASTForPreTraining, AutoModelForPreTraining),
    ],
)
def test_saved_and_loaded_models_are_bit_equal(tmp_path, model_class, auto_class):
    model = tiny(model_class, fusion="weighted", fusion_norm="separate")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for loader in (model_class, auto_class):  # imported: no trust_remote_code
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is model_class and not loaded.training
        assert_same_weights(loaded, model)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("options", [{}, {"fusion": "weighted", "fusion_norm": "separate"}])
def test_a_base_checkpoint_in_a_classifier_lacks_only_the_head(tmp_path, options):
    base = tiny(DualSSASTModel, **options)
    base.save_pretrained(tmp_path)
    model, info = DualSSASTForAudioClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert set(info["missing_keys"]) == {f"classifier.{n}" for n, _ in model.classifier.named_parameters()}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_weights(model.dual_ssast, base)
    assert (model.classifier.layernorm.weight == 1).all() and not model.classifier.dense.bias.any()
    assert 0.15 < model.classifier.dense.weight.std() < 0.45  # initializer_range is 0.3


def test_a_pretrained_encoder_passes_to_the_classifier_and_back(tmp_path):
    pretraining = tiny(DualSSASTForPreTraining, num_decoder_layers=1)
    pretraining.save_pretrained(tmp_path)
    model, info = DualSSASTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert not info["unexpected_keys"]  # the heads of the pretraining are left out without a report
    assert_same_weights(model.dual_ssast, pretraining.dual_ssast)
    model.save_pretrained(tmp_path / "classifier")
    back, info = DualSSASTForPreTraining.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    missing = {name.split(".")[0] for name in info["missing_keys"]}
    assert missing == {"mask_token", "discriminative_head", "generative_head", "decoder"}
    assert_same_weights(back.dual_ssast, pretraining.dual_ssast)
    assert back.mask_token.isfinite().all() and back.mask_token.any()


def test_initialisation_follows_the_seed_and_leaves_nothing_out():
    def fresh(seed):
        torch.manual_seed(seed)
        config = DualSSASTConfig(
            **{**THREE_BLOCKS, "initializer_range": 0.02}, fusion="weighted", fusion_norm="separate"
        )
        return DualSSASTForAudioClassification(config)

    assert_same_weights(fresh(0), fresh(0))
    assert not torch.equal(fresh(0).classifier.dense.weight, fresh(1).classifier.dense.weight)
    for name, parameter in fresh(0).named_parameters():
        if "layernorm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif name.endswith(("bias", "layer_weights")):
            assert (parameter == 0).all(), name
        else:
            assert 0.01 < parameter.std() < 0.03 and parameter.abs().max() < 2, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision(tmp_path, dtype):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    resized = AutoModelForAudioClassification.from_pretrained(tmp_path, dtype=dtype, max_length=200, time_stride=10)
    assert {parameter.dtype for parameter in resized.parameters()} == {dtype}
    assert resized(batch(200)[0]).logits.isfinite().all()


def test_models_can_be_made_on_the_meta_device():
    with torch.device("meta"):
        model = DualSSASTForAudioClassification(DualSSASTConfig(**THREE_BLOCKS, fusion="weighted"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not list(model.buffers())


def test_device_maps_and_parameter_counts_work(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = DualSSASTForAudioClassification.from_pretrained(tmp_path, device_map="cpu")
    assert_same_weights(loaded, model)
    assert model.get_input_embeddings() is model.dual_ssast.embeddings.projection
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
