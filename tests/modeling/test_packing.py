"""Tests packed sequences: a packed batch gives the losses, gradients and outputs of its clips one by one."""

import inspect
import itertools

import pytest
import torch
from tiny_models import MELS, Logits, batch, make_three_blocks
from tiny_pretrainings import HEADS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForPreTraining,
    DualSSASTConfig,
    DualSSASTForAudioFrameClassification,
    DualSSASTForPreTraining,
    DualSSASTModel,
    packing_dual_ssast,
)
from modeling_dual_ssast.packing_dual_ssast import Packing, has_kernel

FRAME = {"patch_size": [MELS, 2], "frequency_stride": MELS, "time_stride": 2}
GEOMETRIES = ({}, {"frequency_stride": 10, "time_stride": 10}, FRAME)
READOUTS = ("patches", "prefix", "frames")
POOLINGS = (["mean"], ["max"], ["min"], ["std"], ["attention"], ["mean", "max"], ["mean", "max", "min", "std"])
FUSIONS = ("concat", "sum", "weighted", "gated")
NORMS = ("shared", "shared_twice", "separate", "none")
# A sum of n terms rounds by up to n * eps / 2, the sums here have up to a thousand terms (three blocks, the tokens of
# four clips), and random signs leave about the root of it: 1e-5 = 170 * eps / 2 in float32, 1e-13 in float64.
FLOAT32, FLOAT64 = 1e-5, 1e-13
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(*classes, **options):
    return make_three_blocks(*classes, **{"fusion_layers": [1, 3], "pack_tokens": True, **options})


def random_lengths(seed: int, clips: int = 4) -> list[int]:
    """Lengths of very different clips in frames, among them the longest and a single frame, in random order."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([128, 1, *torch.randint(1, 129, (clips - 2,), generator=generator)])
    return lengths[torch.randperm(clips, generator=generator)].tolist()


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance: float):
    """Compares numbers by their largest one: rounding errors are relative to the terms of a sum."""
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=0)


def assert_same_gradients(found: dict, expected: dict, tolerance: float):
    assert found.keys() == expected.keys() and len(found) > 20
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).abs().max())
        assert difference <= tolerance * max(1.0, largest), (name, difference)


def count_tokens(model) -> list[tuple]:
    """Returns a list that collects the shapes (batch, tokens) that the first block gets."""
    shapes = []
    encoder = getattr(model, "dual_ssast", model)
    encoder.layers[0].mlp.register_forward_pre_hook(lambda mlp, args: shapes.append((*map(int, args[0].shape[:2]),)))
    return shapes


# ---- packed equals alone ----

OPTIONS = [
    (readout, pooling, fusion)
    for readout, pooling, fusion in itertools.product(READOUTS, POOLINGS, FUSIONS)
    if readout != "prefix" or pooling == ["mean"]  # the prefix is not pooled
]


@pytest.mark.parametrize("part", range(6))
def test_a_packed_classifier_equals_its_clips_one_by_one(part):
    """Every fusion with every pooling and readout: logits, loss and gradients in float32, over random lengths."""
    for number, (readout, pooling, fusion) in enumerate(OPTIONS[part::6]):
        model = tiny(
            **GEOMETRIES[number % 3],
            readout=readout,
            pooling=pooling,
            fusion=fusion,
            fusion_norm=NORMS[(number + part) % 4],
            pooling_combination=("sum", "mean", "concat")[(number + part) % 3],
            num_prefix_tokens=1 + number % 2,
            attn_implementation=("sdpa", "eager")[number % 2],
        )
        check_classifier(model, random_lengths(10 * part + number), FLOAT32)


def check_classifier(model, lengths, tolerance, dtype=torch.float32):
    shapes = count_tokens(model)
    input_values, mask = batch(*lengths)
    input_values, labels = input_values.to(dtype), torch.arange(len(lengths)) % 3
    output = model(input_values, mask, labels=labels)
    if dtype == torch.float64:  # the model's own loss is computed in float32
        output.loss = nn.functional.cross_entropy(output.logits, labels)
    together = gradients(model, output.loss)
    alone = [
        model(input_values[index : index + 1, :length], labels=labels[index : index + 1])
        for index, length in enumerate(lengths)
    ]
    logits = torch.cat([one.logits for one in alone])
    loss = torch.stack([one.loss for one in alone]).mean()
    loss = nn.functional.cross_entropy(logits, labels) if dtype == torch.float64 else loss
    assert shapes[0] == (1, sum(tokens for _, tokens in shapes[1:]))  # no padding among the tokens
    assert_same(output.logits, logits, tolerance)
    assert_same(output.loss, loss, tolerance)
    assert_same_gradients(together, gradients(model, loss), tolerance)
    assert (logits - logits.mean(dim=0)).abs().max() > 100 * tolerance  # the comparison means something


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_float64_only_rounding_differs(geometry, attention):
    for seed in range(4):
        model = tiny(**geometry, pooling=["mean", "std"], attn_implementation=attention).double()
        check_classifier(model, random_lengths(seed, clips=6), FLOAT64, torch.float64)


@pytest.mark.parametrize("readout", ["patches", "frames"])
def test_packed_prototypes_equal_their_clips_one_by_one(readout):
    check_classifier(tiny(readout=readout, classifier="prototypes"), random_lengths(3), FLOAT32)


@pytest.mark.parametrize("settings", [{}, {"readout": "frames"}, {"pooling": ["std", "attention"]}])
@pytest.mark.parametrize("classifier", ["linear", "prototypes"])
def test_a_packed_frame_classifier_equals_its_clips_one_by_one(settings, classifier):
    if classifier == "prototypes":
        settings = {name: value for name, value in settings.items() if name != "pooling"}
    model = tiny(DualSSASTForAudioFrameClassification, **settings, classifier=classifier, time_stride=8)
    lengths = random_lengths(5)
    input_values, mask = batch(*lengths)
    columns = model.config.num_columns(torch.tensor(lengths)).tolist()
    labels = torch.rand(len(lengths), max(columns), 3, generator=torch.Generator().manual_seed(0)).round()
    output = model(input_values, mask, labels=labels)
    together = gradients(model, output.loss)
    loss = 0.0
    for index, (length, count) in enumerate(zip(lengths, columns)):
        rows = slice(index, index + 1)
        one = model(input_values[rows, :length], labels=labels[rows, :count])
        assert_same(output.logits[rows, :count], one.logits, FLOAT32)
        loss = loss + one.loss * count / sum(columns)  # the mean is over frames
    assert_same(output.loss, loss, FLOAT32)
    assert_same_gradients(together, gradients(model, loss), FLOAT32)


FORMS = [{}, FRAME, {"num_decoder_layers": 1}, {**FRAME, "num_decoder_layers": 2}]


@pytest.mark.parametrize("form", FORMS, ids=["patch", "frame", "patch-decoder", "frame-decoder"])
@pytest.mark.parametrize("objective", ["joint", "discriminative", "generative"])
def test_packed_pretraining_equals_its_clips_one_by_one(form, objective):
    """With a decoder the encoder packs the visible patches, and the decoder all patches."""
    options = {"frequency_stride": 16, "time_stride": 16, "pretraining_objective": objective, **form}
    model = tiny(DualSSASTForPreTraining, **options)
    shapes = count_tokens(model)
    lengths = random_lengths(7)
    input_values, mask = batch(*lengths)
    torch.manual_seed(1)
    masked = model.sample_mask(input_values, mask)  # (batch, patches)
    output = model(input_values, mask, bool_masked_pos=masked)
    together = gradients(model, output.loss)
    rows, parts = model.config.grid_shape[0], []
    for index, length in enumerate(lengths):
        columns = model.config.num_columns(length)
        own = masked[index].unflatten(0, (rows, -1))[:, :columns].reshape(1, -1)
        parts.append(model(input_values[index : index + 1, :length], bool_masked_pos=own))
    for name in ("loss", "discriminative_loss", "discriminative_accuracy", "generative_loss"):
        if getattr(output, name) is not None:
            assert_same(getattr(output, name), torch.stack([part[name] for part in parts]).mean(), FLOAT32)
    loss = torch.stack([part.loss for part in parts]).mean()
    assert_same_gradients(together, gradients(model, loss), FLOAT32)
    assert shapes[0] == (1, sum(tokens for _, tokens in shapes[1:]))


def test_packed_asit_equals_its_clips_one_by_one():
    options = HEADS | {"frequency_stride": 16, "time_stride": 16, "drop_path_rate": 0.0}
    model = tiny(ASiTForPreTraining, ASiTConfig, **options)
    shapes = count_tokens(model)
    lengths = random_lengths(9)
    clips, mask = batch(*lengths)
    input_values = torch.stack((clips, batch(*lengths, seed=1)[0]), dim=1)  # two crops
    torch.manual_seed(2)
    corrupted, where = model.corrupt_crops(input_values, mask)
    output = model(input_values, corrupted, where, mask)
    together = gradients(model, output.loss)
    parts, areas = [], []
    for index, length in enumerate(lengths):
        cut = (slice(index, index + 1), slice(None), slice(length))
        parts.append(model(input_values[cut], corrupted[cut], where[cut]))
        areas.append(float(where[cut].sum()))
    shares = [area / sum(areas) for area in areas]  # the reconstruction is averaged over the corrupted area
    for name in ("class_loss", "data_loss"):
        assert_same(output[name], torch.stack([part[name] for part in parts]).mean(), FLOAT32)
    reconstruction = sum(part.reconstruction_loss * share for part, share in zip(parts, shares))
    assert_same(output.reconstruction_loss, reconstruction, FLOAT32)
    others = torch.stack([part.class_loss + part.data_loss for part in parts]).mean()
    loss = others + model.config.reconstruction_weight * reconstruction
    assert_same_gradients(together, gradients(model, loss), FLOAT32)
    assert shapes[0][0] == 1 and shapes[0][1] == sum(clips * tokens for clips, tokens in shapes[1:])


@pytest.mark.parametrize("shift", [1, -1])
def test_a_wrong_bound_between_clips_does_not_pass(monkeypatch, shift):
    """A clip that attends to one token of its neighbour changes the logits a hundred times more than rounding."""
    right = Packing.of

    def wrong(token_mask, lengths):
        return right(token_mask, [lengths[0] + shift, lengths[1] - shift, *lengths[2:]])

    monkeypatch.setattr(Packing, "of", wrong)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_classifier(tiny(), [90, 40, 60], 100 * FLOAT32)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_clips_of_one_length_attend_together(monkeypatch, attention):
    """A call for each length, whatever the order of the clips; the outputs are those of the clips one by one."""
    calls, attend = [], packing_dual_ssast.packed_attention

    def record(function, *arguments):
        def count(module, query, *others, **settings):
            calls.append(len(query))
            return function(module, query, *others, **settings)

        return attend(count, *arguments)

    monkeypatch.setattr("modeling_dual_ssast.modeling_dual_ssast.packed_attention", record)
    check_classifier(tiny(attn_implementation=attention), [30, 128, 64, 30, 128, 30], FLOAT32)
    assert calls == 3 * [3, 1, 2]  # three blocks; the shortest come first


def test_audio_may_lie_anywhere_in_the_row():
    model = tiny()
    clips, _ = batch(90, 50)
    left = torch.zeros(2, 90, MELS)
    left[0], left[1, 40:] = clips[0], clips[1, :50]
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[1, :40] = 0
    assert_same(model(left, mask).logits[1:], model(clips[1:, :50]).logits, FLOAT32)


# ---- kernels ----


def block_diagonal(query, key, value, bounds, scaling):
    """Computes attention over a whole row with a mask: (tokens, heads, head size) -> the same shape."""
    clip = torch.bucketize(torch.arange(len(query)), bounds[1:].long(), right=True)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
    scores = scores.masked_fill(clip[:, None] != clip[None, :], -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value)


def check_bounds(bounds, longest, tokens: int):
    assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == tokens
    assert type(longest) is int and longest == int(bounds.diff().max())


def test_varlen_attention_gets_the_row_and_its_bounds(monkeypatch):
    """The kernel itself needs a GPU: here a function of the same signature stands for it."""
    calls = []

    def fake(query, key, value, bounds_q, bounds_k, longest_q, longest_k):
        assert query.shape == key.shape == value.shape == (len(query), 2, 8) and bounds_q is bounds_k
        check_bounds(bounds_q, longest_q, len(query))
        check_bounds(bounds_k, longest_k, len(query))
        calls.append((query, key, value, bounds_q, bounds_k, longest_q, longest_k))
        return block_diagonal(query, key, value, bounds_q, scaling=8**-0.5)  # the default of the kernel

    monkeypatch.setattr(packing_dual_ssast, "varlen_attn", fake)
    monkeypatch.setattr(packing_dual_ssast, "has_kernel", lambda query, dropout: True)
    check_classifier(tiny(), random_lengths(11), FLOAT32)
    assert len(calls) == 3  # the blocks; a clip alone is not packed
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    inspect.signature(varlen.varlen_attn).bind(*calls[0])
    found = varlen.varlen_attn(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in calls[0]))
    assert found.shape == calls[0][0].shape


def test_flash_attention_gets_the_keywords_of_packed_sequences():
    """The names are those of Transformers' FlashAttentionKwargs."""
    calls = []

    def fake(module, query, key, value, attention_mask, dropout, scaling, is_causal, **packed):
        assert attention_mask is None and not is_causal
        if not packed:  # a clip alone
            return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, scaling=scaling, is_causal=False)
        calls.append(packed)
        bounds, row = packed["cu_seq_lens_q"], [states[0].transpose(0, 1) for states in (query, key, value)]
        for side in "qk":
            check_bounds(packed[f"cu_seq_lens_{side}"], packed[f"max_length_{side}"], query.shape[2])
        assert packed["position_ids"].shape == (1, query.shape[2])
        assert (packed["position_ids"][0] == 0).nonzero().flatten().tolist() == bounds[:-1].tolist()
        assert packed.keys() == {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids"}
        return block_diagonal(*row, bounds, scaling).unsqueeze(0), None

    ALL_ATTENTION_FUNCTIONS["fake_flash"] = fake
    try:
        model = tiny()
        model.config._attn_implementation = "fake_flash"
        check_classifier(model, random_lengths(12), FLOAT32)
    finally:
        del ALL_ATTENTION_FUNCTIONS["fake_flash"]
    assert len(calls) == 3


def test_the_kernel_is_for_half_precision_on_a_gpu():
    assert not has_kernel(torch.zeros(1, 2, 5, 8), 0.0)
    assert not has_kernel(torch.zeros(1, 2, 5, 8, dtype=torch.bfloat16), 0.0)


@pytest.mark.parametrize("num_decoder_layers", [0, 2])
@pytest.mark.parametrize("length, is_masked", [(128, False), (100, True)])
def test_a_mask_of_ones_does_not_reach_the_attention(monkeypatch, length, is_masked, num_decoder_layers):
    """Any mask would keep SDPA from its flash kernel; padding that is not packed needs one."""
    found, attend = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def record(module, query, key, value, attention_mask, **settings):
        found.append(attention_mask)
        return attend(module, query, key, value, attention_mask, **settings)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", record)
    model = tiny(DualSSASTForPreTraining, pack_tokens=False, num_decoder_layers=num_decoder_layers, mask_ratio=0.5)
    input_values, mask = batch(128, length)
    masked = torch.zeros(2, model.config.num_patches, dtype=torch.bool)
    masked[:, ::2] = True
    assert model(input_values, mask, bool_masked_pos=masked).loss.isfinite()
    assert len(found) == 3 + num_decoder_layers
    assert all((mask is not None) == is_masked for mask in found)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_graph_keeps_the_mask_of_ones():
    """A traced model takes other masks later."""
    model = tiny(pack_tokens=False).requires_grad_(False)
    input_values, mask = batch(128, 128)
    traced = torch.jit.trace(lambda values, mask: model(values, mask).logits, (input_values, mask), check_trace=False)
    mask[1, 40:] = 0
    torch.testing.assert_close(traced(input_values, mask), model(input_values, mask).logits)


@pytest.mark.cuda
def test_on_a_gpu_the_flash_kernel_takes_a_mask_of_ones():
    model = tiny(hidden_size=64, pack_tokens=False).to("cuda", torch.bfloat16)
    input_values, mask = (part.to("cuda") for part in batch(128, 128))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert model(input_values, mask).logits.isfinite().all()
        mask[1, 40:] = 0
        with pytest.raises(RuntimeError):  # no kernel: a mask reaches it
            model(input_values, mask)


@pytest.mark.cuda
def test_on_a_gpu_float32_gives_the_logits_of_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = tiny(hidden_size=64, pack_tokens=False)
    input_values, mask = batch(*random_lengths(14))
    expected = model(input_values, mask).logits
    found = model.to("cuda")(input_values.to("cuda"), mask.to("cuda")).logits.cpu()
    assert_same(found, expected, 10 * FLOAT32)  # exp and erf of GPUs are a few units in the last place apart


@pytest.mark.cuda
def test_on_a_gpu_flash_attention_equals_clips_one_by_one():
    pytest.importorskip("flash_attn")
    model = tiny(hidden_size=64, initializer_range=0.1).to("cuda", torch.bfloat16)  # as below
    lengths = random_lengths(15)
    input_values, mask = (part.to("cuda") for part in batch(*lengths))
    expected = [model(input_values[index : index + 1, :length]).logits for index, length in enumerate(lengths)]
    model.set_attn_implementation("flash_attention_2")
    logits = model(input_values, mask).logits
    for index, alone in enumerate(expected):  # rounded as below
        atol = 0.1 * float(alone.abs().max())
        torch.testing.assert_close(logits[index : index + 1], alone, atol=atol, rtol=0)


@pytest.mark.cuda
def test_on_a_gpu_the_kernel_equals_clips_one_by_one():
    # With these weights bfloat16 moves logits by up to 4 % of the largest, attention to other clips by 40 % or more.
    model = tiny(hidden_size=64, initializer_range=0.1).to("cuda", torch.bfloat16)
    lengths = random_lengths(13)
    input_values, mask = (part.to("cuda") for part in batch(*lengths))
    logits = model(input_values, mask).logits
    for index, length in enumerate(lengths):
        alone = model(input_values[index : index + 1, :length]).logits
        # A logit is the sum of 128 products, each state of which three blocks have rounded to 8 bits.
        torch.testing.assert_close(logits[index : index + 1], alone, atol=0.1 * float(alone.abs().max()), rtol=0)
    labels = torch.arange(len(lengths), device="cuda") % 3
    found = gradients(model, model(input_values, mask, labels=labels).loss)
    assert all(gradient.isfinite().all() for gradient in found.values())


# ---- training ----


def test_stochastic_depth_skips_whole_clips():
    """The same seed skips the same branches of the same clips as with padding."""
    losses, found = [], []
    for packs in (False, True):
        model = tiny(drop_path_rate=0.5, pack_tokens=packs).train()
        input_values, mask = batch(128, 20, 70, 64, 3)
        torch.manual_seed(3)
        losses.append(model(input_values, mask, labels=torch.tensor([0, 1, 2, 0, 1])).loss)
        found.append(gradients(model, losses[-1]))
    assert_same(losses[1], losses[0], FLOAT32)
    assert_same_gradients(found[1], found[0], FLOAT32)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_of_a_packed_batch_gives_the_same_gradients(use_reentrant):
    found = []
    for checkpointing in (False, True):
        model = tiny(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, drop_path_rate=0.3).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        shapes = count_tokens(model)
        input_values, mask = batch(100, 40)
        torch.manual_seed(1)
        found.append(gradients(model, model(input_values, mask, labels=torch.tensor([0, 2])).loss))
        assert len(shapes) == 1 + checkpointing and {clips for clips, _ in shapes} == {1}
    assert_same_gradients(found[1], found[0], FLOAT32)


def test_attention_dropout_drops_weights_of_a_packed_batch():
    model = tiny(attention_probs_dropout_prob=0.5).train()
    input_values, mask = batch(100, 40)
    torch.manual_seed(0)
    assert (model(input_values, mask).logits - model(input_values, mask).logits).abs().max() > 1e-3


# ---- what is packed ----


@pytest.mark.parametrize(
    ("packs", "lengths", "is_packed"),
    [
        (None, (128, 96), True),  # 1/8 of padding
        (None, (128, 128, 128, 128, 128, 128, 128, 112), False),  # 1/64
        (None, (128, 128), False),
        (True, (128, 128, 128, 128, 128, 128, 128, 112), True),
        (True, (128, 128), False),
        (False, (128, 1), False),
    ],
)
def test_what_is_packed(packs, lengths, is_packed):
    model = tiny(pack_tokens=packs, time_stride=16, frequency_stride=16)
    shapes = count_tokens(model)
    input_values, mask = batch(*lengths)
    model(input_values, mask)
    columns = [-(-length // 16) for length in lengths]
    packed, padded = (1, sum(2 + 2 * count for count in columns)), (len(lengths), 2 + 2 * max(columns))
    assert shapes == [packed if is_packed else padded]


def test_originals_that_attend_to_padding_are_not_packed():
    model = tiny(attention_over_padding=True)
    shapes = count_tokens(model)
    model(*batch(100, 3))
    assert shapes == [(2, 18)]


def test_states_keep_their_shapes_and_padding_is_zero():
    model, padded = tiny(DualSSASTModel), tiny(DualSSASTModel, pack_tokens=False)
    input_values, mask = batch(64, 20)
    found, expected = (one(input_values, mask, output_hidden_states=True) for one in (model, padded))
    is_audio = torch.ones(2, 2 + 2 * 4, dtype=torch.bool)
    is_audio[1, [4, 5, 8, 9]] = False  # 20 frames are 2 of 4 columns
    assert len(found.hidden_states) == 4 and torch.equal(found.hidden_states[0], expected.hidden_states[0])
    for one, other in zip(found.hidden_states[1:], expected.hidden_states[1:]):
        assert one.shape == other.shape and not one[~is_audio].any()
        assert_same(one[is_audio], other[is_audio], FLOAT32)
    assert_same(found.last_hidden_state[is_audio], expected.last_hidden_state[is_audio], FLOAT32)
    assert_same(found.pooler_output, expected.pooler_output, FLOAT32)


def test_kept_states_carry_the_whole_gradient():
    """Explanations read the gradient of a fused state, which later blocks read too."""
    found = []
    for packs in (True, False):
        model = tiny(pack_tokens=packs, num_hidden_layers=3, fusion_layers=[1, 3])
        output = model(*batch(64, 20), labels=torch.tensor([0, 1]), output_hidden_states=True)
        for state in output.hidden_states:
            state.retain_grad()
        output.loss.backward()
        found.append([state.grad for state in output.hidden_states])
    for one, other in zip(*found):
        assert other.any()
        assert_same(one, other, FLOAT32)


def test_attention_weights_are_those_of_the_padded_batch():
    model = tiny(DualSSASTModel)
    shapes = count_tokens(model)
    weights = model(*batch(64, 20), output_attentions=True).attentions
    assert shapes == [(2, 10)] and {one.shape for one in weights} == {(2, 2, 10, 10)}


@pytest.mark.filterwarnings("ignore")
def test_graphs_keep_the_padding():
    """A graph of a packed batch would hold the lengths of its example."""

    model = tiny()
    shapes = count_tokens(model)
    with torch.no_grad():
        traced = torch.jit.trace(Logits(model), batch(128, 40), check_trace=False)
        assert {clips for clips, _ in shapes} == {2}
        example = batch(20, 128, seed=1)
        assert_same(traced(*example), model(*example).logits, FLOAT32)
        program = torch.export.export(Logits(model), batch(128, 40), strict=False).module()
        assert_same(program(*example), model(*example).logits, FLOAT32)


@pytest.mark.parametrize("value", ["auto", 0, 1.0])
def test_a_value_that_is_no_choice_is_refused(value):
    with pytest.raises(ValueError, match=f"pack_tokens must be None, true or false, got {value!r}"):
        DualSSASTConfig(pack_tokens=value)
