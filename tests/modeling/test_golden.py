"""
Tests the originals' numbers, through the conversion command and from_pretrained. golden.py derives the tolerances: of
states and outputs, gradients, features, and networks with a waveform as input instead of stored features.
"""

import numpy as np
import pytest
import torch
from golden import (
    EPS,
    FROM_WAVEFORM,
    arrays,
    assert_close,
    assert_filter_bank_close,
    assert_gradients_close,
    convert,
    grid_options,
    settings,
)

from modeling_dual_ssast import (
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
    DualSSASTModel,
)

pytestmark = pytest.mark.golden

SSAST = ("ssast_patch", "ssast_frame")
SIGNALS = ("noise16k", "sweep16k", "noise32k", "silence16k", "dc16k", "ambi_choir", "bd_808")


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
    assert_close(output.loss, expected["mpc_nce"] + 10 * expected["mpg_mse"])


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
    assert_close(output.loss, expected["ce_loss"])
    projection = model.dual_ssast.embeddings.projection.weight.grad
    assert_gradients_close(projection, expected["grad_patch_proj"])
    # The K third is zero in theory, since the softmax is shift invariant, and rounding noise in practice.
    attention = model.dual_ssast.layers[0].attention
    query, _, value = np.split(expected["grad_block0_qkv_bias"], 3)
    assert_gradients_close(attention.q_proj.bias.grad, query)
    assert_gradients_close(attention.v_proj.bias.grad, value)


# ---- features ----


def stored_signal(signal: str, num_mel_bins: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Waveform, sampling rate in Hz, and Kaldi's log-mels (frames, mel) before normalisation."""
    stored = arrays("kaldi_fbank")
    rate = int(stored[f"{signal}_sampling_rate"])
    return stored[f"{signal}_waveform"], rate, stored[f"{signal}_fbank{num_mel_bins}"]


@pytest.mark.parametrize("num_mel_bins", [128, 64])
@pytest.mark.parametrize("signal", SIGNALS)
def test_kaldi_features(signal, num_mel_bins):
    waveform, rate, fbank = stored_signal(signal, num_mel_bins)
    extractor = DualSSASTFeatureExtractor(sampling_rate=rate, num_mel_bins=num_mel_bins)
    features = extractor(waveform, sampling_rate=rate, return_tensors="np").input_values[0]
    expected = (fbank - extractor.mean) / (2 * extractor.std)
    assert_filter_bank_close(features, expected, num_fft(rate), nats=2 * extractor.std)


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
    nats = 2 * float(statistics[1])
    assert_filter_bank_close(features, normalise(expected[fbank], statistics), num_fft(16000), nats)
    if kind == "base":
        first = expected["base_fbank_normalised_item0_first50"]
        assert_filter_bank_close(features[0, :50], first, num_fft(16000), nats)


# ---- whether the comparison of features lets every processor pass and nothing else ----


def num_fft(sampling_rate: int) -> int:
    return 512 if sampling_rate == 16000 else 1024


def kaldi_in_float64(
    waveform: np.ndarray,
    sampling_rate: int,
    num_mel_bins: int,
    window=np.hanning,
    preemphasis: float = 0.97,
    removes_mean: bool = True,
    lowest_hz: float = 20.0,
    floor: float = EPS,
) -> np.ndarray:
    """Log-mels (frames, mel) by another path: NumPy's FFT and filters in float64. The defaults are Kaldi's settings."""
    size, points = sampling_rate // 40, num_fft(sampling_rate)
    waveform = waveform.astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(waveform - waveform.mean(), size)[:: sampling_rate // 100]
    frames = frames - removes_mean * frames.mean(axis=1, keepdims=True)
    frames = frames - preemphasis * np.pad(frames, ((0, 0), (1, 0)), mode="edge")[:, :-1]
    power = np.abs(np.fft.rfft(frames * window(size), points)) ** 2
    mels = 1127 * np.log1p(np.linspace(0, sampling_rate / 2, points // 2 + 1) / 700)[:, None]
    edges = np.linspace(1127 * np.log1p(lowest_hz / 700), mels[-1, 0], num_mel_bins + 2)
    width = edges[1] - edges[0]
    filters = np.minimum(mels - edges[:-2], edges[2:] - mels).clip(min=0) / width
    return np.log((power @ filters).clip(min=floor))


WRONG = {
    "another window": {"window": np.hamming},
    "the periodic window": {"window": lambda size: np.hanning(size + 1)[:-1]},
    "no pre-emphasis": {"preemphasis": 0.0},
    "another pre-emphasis": {"preemphasis": 0.9701},
    "the mean of each frame left": {"removes_mean": False},
    "mel filters from 19 Hz": {"lowest_hz": 19.0},
    "no floor": {"floor": 1e-30},
}


@pytest.mark.parametrize("num_mel_bins", [128, 64])
@pytest.mark.parametrize("signal", SIGNALS)
def test_features_of_another_fourier_transform_pass(signal, num_mel_bins):
    """Float64 stands for any processor: it differs from float32 as one processor's rounding differs from another's."""
    waveform, rate, fbank = stored_signal(signal, num_mel_bins)
    own = kaldi_in_float64(waveform, rate, num_mel_bins)
    assert_filter_bank_close(own, fbank, num_fft(rate), nats=1.0, atol=9e-4)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_features_do_not_pass(wrong):
    waveform, rate, fbank = stored_signal("sweep16k", 128)
    own = kaldi_in_float64(waveform, rate, 128, **WRONG[wrong])
    with pytest.raises(AssertionError):
        assert_filter_bank_close(own, fbank, num_fft(rate), nats=1.0, atol=9e-4)


@pytest.mark.parametrize("size", [0.9, 1.1])
@pytest.mark.parametrize("part", ["near the loudest bin", "quiet"])
def test_each_part_of_the_comparison_has_its_tolerance(part, size):
    rounding = 9 * EPS
    amplitude = np.geomspace(1.0, 1e-6, 20)[None]
    is_near = amplitude >= rounding / 1e-4
    assert 0 < is_near.sum() < 20
    actual = 2 * np.log(amplitude)
    if part == "quiet":
        actual[~is_near] = 2 * np.log(amplitude[~is_near] + size * rounding)
    else:
        actual[is_near] += size * 2e-4
    arguments = (actual, 2 * np.log(amplitude), 512, 1.0, 2e-4)
    if size < 1:
        assert_filter_bank_close(*arguments)
    else:
        with pytest.raises(AssertionError):
            assert_filter_bank_close(*arguments)


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
    assert_close(model(own).pooler_output, expected[name], FROM_WAVEFORM)


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
    assert_close(model(own).pooler_output, expected["base_evar_fusion_embedding"], FROM_WAVEFORM)
