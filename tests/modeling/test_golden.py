"""
The originals' numbers, through the conversion command and from_pretrained.

Tolerances: states and logits 1e-5 absolute, cross-entropy and gradients 1e-5 absolute and 1e-4 relative, features 1e-4
after normalisation. A network that is fed a waveform instead of stored features gets 1e-3: in quiet bins the original
and this project round log-mels differently, and the fixtures' makers derive that figure from their own repetitions.
"""

import numpy as np
import pytest
import torch
from golden import arrays, convert, grid_options, settings

from modeling_dual_ssast import (
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
    DualSSASTModel,
)

SSAST = ("ssast_patch", "ssast_frame")
SIGNALS = ("noise16k", "sweep16k", "noise32k", "silence16k", "dc16k", "ambi_choir", "bd_808")
# On the floor of the logarithm, where rounding alone decides on the value.
FLOOR_SIGNALS = ("silence16k", "dc16k")


def assert_close(actual, expected: np.ndarray, atol: float = 1e-5, rtol: float = 0.0):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=rtol)


# ---- SSAST, pretrained ----


@pytest.fixture(scope="module", params=SSAST)
def pretrained(request, tmp_path_factory):
    """(settings, arrays, converted folder) of a pretrained checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    return (
        settings(request.param),
        arrays(request.param),
        convert("ssast", f"{request.param}_pretrained.json", folder),
    )


@torch.no_grad()
def test_pretrained_states(pretrained):
    _, expected, folder = pretrained
    model = DualSSASTModel.from_pretrained(folder)
    output = model(torch.from_numpy(expected["pretrain_input"]), output_hidden_states=True)
    assert_close(torch.stack(output.hidden_states), expected["pretrain_hidden_states"])
    assert_close(output.last_hidden_state, expected["pretrain_last_normed"])


@torch.no_grad()
def test_pretext_losses(pretrained):
    _, expected, folder = pretrained
    model = DualSSASTForPreTraining.from_pretrained(folder)
    inputs, mask_index = torch.from_numpy(expected["pretrain_input"]), torch.from_numpy(expected["mask_index"])
    masked = torch.zeros(len(inputs), model.config.num_patches, dtype=torch.bool).scatter(1, mask_index, True)
    output = model(inputs, bool_masked_pos=masked)
    assert_close(output.discriminative_loss, expected["mpc_nce"])
    assert_close(output.discriminative_accuracy, expected["mpc_acc"])
    assert_close(output.generative_loss, expected["mpg_mse"])
    assert_close(output.loss, expected["mpc_nce"] + 10 * expected["mpg_mse"], atol=1e-4)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_resized_positions(pretrained, index):
    """Cut in time, cut in frequency, interpolated in both."""
    description, expected, folder = pretrained
    target = description[f"ft{index}"]
    model = DualSSASTModel.from_pretrained(folder)
    model.resize_position_embeddings(target["input_tdim"], target["fstride"], target["tstride"])
    assert_close(model.embeddings.position_embeddings, expected[f"ft{index}_pos_embed"])
    assert model.config.num_patches == expected[f"ft{index}_pos_embed"].shape[1] - 2


@pytest.mark.parametrize("family", SSAST)
def test_positions_resized_by_the_command(family, tmp_path):
    target = settings(family)["ft2"]
    (tmp_path / "labels.txt").write_text("quiet\nloud\n")
    grid = grid_options(target["input_tdim"], target["fstride"], target["tstride"])
    options = ["--task", "classification", "--labels", tmp_path / "labels.txt", *grid]
    model = DualSSASTForAudioClassification.from_pretrained(
        convert("ssast", f"{family}_pretrained.json", tmp_path, *options)
    )
    assert_close(model.dual_ssast.embeddings.position_embeddings, arrays(family)["ft2_pos_embed"])


# ---- SSAST, fine-tuned ----


@pytest.fixture(scope="module", params=[(family, index) for family in SSAST for index in range(3)], ids=str)
def fine_tuned(request, tmp_path_factory):
    """(settings, arrays without the prefix `ft{i}_`, converted folder) of a fine-tuned checkpoint."""
    family, index = request.param
    description = settings(family)[f"ft{index}"]
    expected = {
        name.removeprefix(f"ft{index}_"): array
        for name, array in arrays(family).items()
        if name.startswith(f"ft{index}_")
    }
    grid = grid_options(description["input_tdim"], description["fstride"], description["tstride"])
    folder = convert("ssast", description["recipe"], tmp_path_factory.mktemp(f"{family}_{index}"), *grid)
    return description, expected, folder


@torch.no_grad()
def test_fine_tuned_states_and_logits(fine_tuned):
    description, expected, folder = fine_tuned
    model = DualSSASTForAudioClassification.from_pretrained(folder)
    inputs, step = torch.from_numpy(expected["input"]), description["hidden_states_token_step"]
    output = model(inputs, output_hidden_states=True)
    assert_close(output.logits, expected["logits_avgtok"])
    assert_close(torch.stack(output.hidden_states)[:, :, ::step], expected["hidden_states"])
    assert_close(model.dual_ssast(inputs).last_hidden_state[:, ::step], expected["last_normed"])


@torch.no_grad()
def test_class_token_readout(fine_tuned):
    _, expected, folder = fine_tuned
    model = DualSSASTForAudioClassification.from_pretrained(folder, readout="prefix")
    assert_close(model(torch.from_numpy(expected["input"])).logits, expected["logits_cls"])


def test_cross_entropy_and_gradients(fine_tuned):
    description, expected, folder = fine_tuned
    model = DualSSASTForAudioClassification.from_pretrained(folder)
    output = model(torch.from_numpy(expected["input"]), labels=torch.tensor(description["ce_labels"]))
    output.loss.backward()
    assert_close(output.loss, expected["ce_loss"], rtol=1e-4)
    projection = model.dual_ssast.embeddings.projection.weight.grad
    assert_close(projection, expected["grad_patch_proj"], rtol=1e-4)
    # The K third is zero in theory, since the softmax is shift invariant, and rounding noise in practice.
    attention = model.dual_ssast.layers[0].attention
    query, _, value = np.split(expected["grad_block0_qkv_bias"], 3)
    assert_close(attention.q_proj.bias.grad, query, rtol=1e-4)
    assert_close(attention.v_proj.bias.grad, value, rtol=1e-4)


# ---- features ----


@pytest.mark.parametrize("num_mel_bins", [128, 64])
@pytest.mark.parametrize("signal", SIGNALS)
def test_kaldi_features(signal, num_mel_bins):
    stored = arrays("kaldi_fbank")
    extractor = DualSSASTFeatureExtractor(
        sampling_rate=int(stored[f"{signal}_sampling_rate"]), num_mel_bins=num_mel_bins
    )
    features = extractor(
        stored[f"{signal}_waveform"], sampling_rate=extractor.sampling_rate, return_tensors="np"
    ).input_values[0]
    expected = (stored[f"{signal}_fbank{num_mel_bins}"] - extractor.mean) / (2 * extractor.std)
    assert_close(features, expected, atol=2e-3 if signal in FLOOR_SIGNALS else 1e-4)


def test_every_stored_signal_is_tested():
    names = {name.removesuffix("_waveform") for name in arrays("kaldi_fbank") if name.endswith("_waveform")}
    assert names == set(SIGNALS)


def make_features(waveform: np.ndarray, statistics: np.ndarray) -> torch.Tensor:
    mean, std = statistics.tolist()
    extractor = DualSSASTFeatureExtractor(mean=mean, std=std)
    return extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values


def normalise(fbank: np.ndarray, statistics: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((fbank - statistics[0]) / (2 * statistics[1]))


@pytest.mark.parametrize(("kind", "fbank"), [("tiny_evar", "tiny_evar_fbank"), ("base", "base_fbank")])
def test_ast_features(kind, fbank):
    expected = arrays("ast")
    statistics = expected[f"{kind}_norm_stats"]
    features = make_features(expected[f"{kind}_waveform"], statistics)
    assert_close(features, normalise(expected[fbank], statistics).numpy(), atol=1e-4)
    if kind == "base":
        assert_close(features[0, :50], expected["base_fbank_normalised_item0_first50"], atol=1e-4)


# ---- AST, small ----


@pytest.fixture(scope="module")
def tiny_ast(tmp_path_factory):
    return convert("ast", "ast_tiny_weights.json", tmp_path_factory.mktemp("ast_tiny"), "--max-length", 100)


@torch.no_grad()
def test_ast_states_and_logits(tiny_ast):
    expected = arrays("ast")
    model = DualSSASTForAudioClassification.from_pretrained(tiny_ast)
    inputs = torch.from_numpy(expected["tiny_input"])
    output, encoded = model(inputs, output_hidden_states=True), model.dual_ssast(inputs)
    assert_close(output.logits, expected["tiny_logits"])
    assert_close(output.logits.sigmoid(), expected["tiny_probs_sigmoid"])
    assert_close(torch.stack(output.hidden_states)[:, :, ::2], expected["tiny_hidden_states_every2ndtoken"])
    assert_close(encoded.last_hidden_state, expected["tiny_last_normed"])
    assert_close(encoded.pooler_output, expected["tiny_pooled"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("fusion_layers", "name"),
    [
        ([5, 12], "tiny_evar_fusion_embedding"),  # 0-based blocks 4 and 11 in Niizumi's files
        ([1, 4, 7, 10, 12], "tiny_evar_fusion_embedding_0_3_6_9_11"),
        ([8], "tiny_evar_fusion_embedding_int7"),
    ],
)
def test_ast_fusion(tiny_ast, fusion_layers, name):
    expected = arrays("ast")
    model = DualSSASTModel.from_pretrained(tiny_ast, fusion_layers=fusion_layers)
    statistics = expected["tiny_evar_norm_stats"]
    stored = normalise(expected["tiny_evar_fbank"], statistics)
    assert_close(model(stored).pooler_output, expected[name])
    own = make_features(expected["tiny_evar_waveform"], statistics)
    assert_close(model(own).pooler_output, expected[name], atol=1e-3)


# ---- AST, full size, with AudioSet's 527 labels ----


@pytest.fixture(scope="module")
def base_ast(tmp_path_factory):
    """86 M parameters: converted once."""
    return convert("ast", "ast_base_weights.json", tmp_path_factory.mktemp("ast_base"))


@torch.no_grad()
def test_base_ast_logits(base_ast):
    expected = arrays("ast")
    model = DualSSASTForAudioClassification.from_pretrained(base_ast)
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.max_length == 1024
    logits = model(torch.from_numpy(expected["base_input_1024"]).float()).logits
    assert_close(logits, expected["base_logits_527"])


@torch.no_grad()
def test_base_ast_embeddings_of_short_clips(base_ast):
    expected = arrays("ast")
    statistics = expected["base_norm_stats"]
    model = DualSSASTModel.from_pretrained(base_ast, fusion_layers=[5, 12], max_length=198)
    positions = model.embeddings.position_embeddings
    assert_close(positions[:, :, ::16], expected["base_pos_embed_every16thdim"])

    output = model(normalise(expected["base_fbank"], statistics), output_hidden_states=True)
    tokens = [0, 1, 2, 57, positions.shape[1] - 1]
    states = torch.stack(output.hidden_states)[:, :, tokens]
    assert_close(states, expected["base_hidden_states_tokens0_1_2_57_last"])
    assert_close(output.last_hidden_state[:, tokens], expected["base_last_normed_tokens0_1_2_57_last"])
    assert_close(output.pooler_output, expected["base_evar_fusion_embedding"])
    assert_close(output.pooler_output[:, model.config.hidden_size :], expected["base_evar_ast_embedding"])

    own = make_features(expected["base_waveform"], statistics)
    assert_close(model(own).pooler_output, expected["base_evar_fusion_embedding"], atol=1e-3)
