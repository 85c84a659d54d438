"""
Tests VGGish's and CNN14's numbers (fixtures/README.md), through the conversion command and from_pretrained: front ends,
maps, composed features, and the originals' own embeddings and scores. golden.py derives the tolerances.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from golden import FROM_WAVEFORM, arrays, assert_close, assert_filter_bank_close, convert, settings

from modeling_dual_ssast import (
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    PannsCnn14Model,
    VGGishFeatureExtractor,
    VGGishModel,
)
from modeling_dual_ssast.feature_extraction_panns_cnn14 import panns_power, slaney_mel_filters

pytestmark = pytest.mark.golden

NATS_PER_DB = math.log(10) / 10
# Convolutions add up to 18432 products. The originals' own repetitions differ by 4e-6 of an array's largest value, here
# up to 19.
CONVOLUTIONS = 1e-4
# VGGish's front end computes in float64 on both sides and rounds once, to float32. A network that is fed the waveform
# therefore gets the tolerance of stored features.
VGGISH_FEATURES = 1e-6
# The original resamples with resampy, not soxr. Below their low-pass the two differ by 5e-4.
RESAMPLED = 5e-3
# Stored, and compared with nothing here:
# - spectrogram_extractor.stft.conv_*.weight: the conversion compares them when it drops them.
# Wrong in EVAR and reproduced all the same: AR_VGGish_Fusion interleaves the frames of a clip's examples, which no
# pooling notices; the test puts them in that order.
NOT_COMPARED = {
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
}


@pytest.mark.parametrize("fixture", ["vggish", "cnn14", "cnn14_frontend"])
def test_every_stored_array_is_compared(fixture):
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in arrays(fixture) if name not in NOT_COMPARED and f'"{name}"' not in source] == []


# ---- VGGish ----


@pytest.fixture(scope="module")
def vggish(tmp_path_factory):
    """72 M parameters: converted once."""
    return convert("vggish", "vggish_weights.json", tmp_path_factory.mktemp("vggish"))


def stored_examples() -> torch.Tensor:
    """(batch, frames of one example, mel)"""
    return torch.from_numpy(arrays("vggish")["vgg_logmel"])[:, 0]


def evar_inputs():
    """Features of the two clips: 2.2 s, two whole examples and a partial one that is dropped."""
    return VGGishFeatureExtractor()(arrays("vggish")["evar_waveform"], sampling_rate=16000, return_tensors="pt")


def whole_examples(waveform: np.ndarray) -> torch.Tensor:
    """(samples,) -> (whole examples, 96, mel)"""
    features = VGGishFeatureExtractor()(waveform, sampling_rate=16000, return_tensors="pt").input_values[0]
    return features[: len(features) // 96 * 96].unflatten(0, (-1, 96))


def test_vggish_features():
    stored = arrays("vggish")
    clips = stored["evar_waveform"]
    assert_close(whole_examples(clips[0]), stored["frontend_float64_examples"], VGGISH_FEATURES, share=0.0)
    # The original averages the channels; here the caller does.
    assert_close(whole_examples(clips.mean(axis=0)), stored["frontend_stereo_examples"], VGGISH_FEATURES, share=0.0)
    assert_close(
        torch.stack([whole_examples(clip) for clip in clips]),
        stored["evar_logmel_examples"],
        VGGISH_FEATURES,
        share=0.0,
    )


def test_vggish_features_of_resampled_audio():
    """The original resamples with resampy. Its low-pass and soxr's differ in the two highest bins, by up to 0.5."""
    stored = arrays("vggish")
    features = whole_examples(soxr.resample(stored["frontend_wave_44100"], 44100, 16000))
    assert_close(features[..., :62], stored["frontend_resampled_44100_examples"][..., :62], RESAMPLED)


@torch.no_grad()
@pytest.mark.parametrize(
    ("fusion_layers", "frames", "pooled"),
    [
        ([14, 9], "vgg_frames_9_14", "vgg_forward_9_14"),  # in the network's order, whatever the list's
        (settings("vggish")["layers_all"], "vgg_frames_all", "vgg_forward_all"),
        ([1, 7, 14, 21], None, "vgg_forward_1_7_14_21"),
    ],
)
def test_vggish_composed_features(vggish, fusion_layers, frames, pooled):
    expected = arrays("vggish")
    output = VGGishModel.from_pretrained(vggish, fusion_layers=fusion_layers)(stored_examples())
    assert_close(output.pooler_output, expected[pooled], CONVOLUTIONS)
    if frames:
        assert_close(output.last_hidden_state.transpose(1, 2), expected[frames], CONVOLUTIONS)


@torch.no_grad()
def test_vggish_own_embedding(vggish):
    expected = arrays("vggish")["vgg_embedding_original_forward"]
    model = VGGishModel.from_pretrained(vggish, fusion_layers=[21], temporal_pooling=["mean"])
    output = model(stored_examples(), output_hidden_states=True)
    assert_close(output.pooler_output, expected, CONVOLUTIONS)
    assert_close(output.hidden_states[-1][:, 0], expected, CONVOLUTIONS)


@torch.no_grad()
@pytest.mark.parametrize(
    ("fusion_layers", "temporal_pooling", "pooled"),
    [
        ([21], ["mean", "max"], "evar_vggish_embedding"),
        ([17], ["mean", "max"], "evar_vggish4k_embedding"),  # EVAR cuts the network after the first Linear and its ReLU
        ([9, 19], ["mean", "max"], "evar_fusion919_embedding"),
        ([9, 14], ["mean", "max"], "evar_fusion_embedding"),
        ([9, 14], ["mean"], "evar_fusion_mean_embedding"),
        ([9, 14], ["max"], "evar_fusion_max_embedding"),
    ],
)
def test_vggish_of_several_examples(vggish, fusion_layers, temporal_pooling, pooled):
    expected = arrays("vggish")
    settings = {"fusion_layers": fusion_layers, "temporal_pooling": temporal_pooling}
    output = VGGishModel.from_pretrained(vggish, **settings)(**evar_inputs())
    assert_close(output.pooler_output, expected[pooled], CONVOLUTIONS)
    frames = output.last_hidden_state.transpose(1, 2)  # (batch, size, 2 examples * 6 frames)
    if fusion_layers == [21]:
        assert_close(frames[:, :, ::6], expected["evar_vggish_frames"], CONVOLUTIONS)
    if fusion_layers == [9, 14]:
        interleaved = frames.unflatten(2, (2, 6)).transpose(2, 3).flatten(2)
        assert_close(interleaved, expected["evar_fusion_frames"], CONVOLUTIONS)


# ---- CNN14 ----


@pytest.fixture(scope="module")
def cnn14(tmp_path_factory):
    """81 M parameters: converted once."""
    return convert("panns-cnn14", "cnn14_weights.json", tmp_path_factory.mktemp("cnn14"))


def log_mel(name: str) -> torch.Tensor:
    """(batch, frames, mel)"""
    return torch.from_numpy(arrays("cnn14")[name])[:, 0]


def cnn14_inputs(name: str = "waveform", sampling_rate: int = 16000):
    extractor = PannsCnn14FeatureExtractor(sampling_rate=sampling_rate)
    return extractor(arrays("cnn14")[name], sampling_rate=sampling_rate, return_tensors="pt")


def test_cnn14_front_end_settings():
    original, extractor = settings("cnn14"), PannsCnn14FeatureExtractor()
    for name in ("window_size", "hop_size", "fmin", "fmax"):
        assert getattr(extractor, name) == original[name]
    assert (extractor.sampling_rate, extractor.num_mel_bins) == (original["sample_rate"], original["mel_bins"])
    filters = slaney_mel_filters(64, 512, 16000, 50.0, 8000.0, torch.device("cpu"))
    assert_close(filters, arrays("cnn14_frontend")["logmel_extractor.melW"], 1e-7, share=0.0)


@pytest.mark.parametrize(
    ("waveform", "sampling_rate", "name"),
    [
        ("waveform", 16000, "panns_logmel"),
        ("waveform", 16000, "evar_logmel"),
        ("waveform_32k", 32000, "cnn14_32k_logmel"),
    ],
)
def test_cnn14_features(waveform, sampling_rate, name):
    extractor = PannsCnn14FeatureExtractor(sampling_rate=sampling_rate)
    features = cnn14_inputs(waveform, sampling_rate).input_values
    expected = arrays("cnn14")[name][:, 0]
    assert_filter_bank_close(features, expected, extractor.window_size, NATS_PER_DB, atol=1e-3)


def test_cnn14_power_spectrogram():
    stored = arrays("cnn14")
    power = torch.cat(list(panns_power(torch.from_numpy(stored["waveform"][0]), 512, 160)))
    assert_filter_bank_close(power.log(), np.log(stored["panns_spectrogram_item0"]), num_fft=512, nats=1.0, atol=1e-3)


@torch.no_grad()
def test_cnn14_blocks_embedding_and_scores(cnn14):
    expected, inputs = arrays("cnn14"), log_mel("panns_logmel")
    model = PannsCnn14ForAudioClassification.from_pretrained(cnn14)
    assert_close(model.panns_cnn14.normalise_mels(inputs, None), expected["panns_bn0"], CONVOLUTIONS)
    output = model(inputs, output_hidden_states=True)
    blocks = (
        (1, 16, "panns_block1_every16thchannel"),
        (2, 16, "panns_block2_every16thchannel"),
        (3, 16, "panns_block3_every16thchannel"),
        (4, 8, "panns_block4_every8thchannel"),
        (5, 4, "panns_block5_every4thchannel"),
        (6, 4, "panns_block6_every4thchannel"),
    )
    for block, step, name in blocks:
        assert_close(output.hidden_states[block - 1][:, ::step], expected[name], CONVOLUTIONS)
    assert_close(output.logits, expected["panns_clipwise_logits"], CONVOLUTIONS)
    assert_close(output.logits.sigmoid(), expected["panns_clipwise_output"], CONVOLUTIONS)
    assert_close(model.panns_cnn14(inputs).pooler_output, expected["panns_embedding"], CONVOLUTIONS)


@torch.no_grad()
def test_cnn14_from_waveforms(cnn14):
    expected = arrays("cnn14")
    model = PannsCnn14ForAudioClassification.from_pretrained(cnn14)
    assert_close(model(**cnn14_inputs()).logits, expected["panns_clipwise_logits"], FROM_WAVEFORM)
    inputs = cnn14_inputs("waveform_32k", 32000)  # the same weights at 32 kHz
    assert_close(model(**inputs).logits.sigmoid(), expected["cnn14_32k_clipwise_output"], FROM_WAVEFORM)
    assert_close(model.panns_cnn14(**inputs).pooler_output, expected["cnn14_32k_embedding"], FROM_WAVEFORM)


@torch.no_grad()
def test_cnn14_own_frames(cnn14):
    expected = arrays("cnn14")
    model = PannsCnn14Model.from_pretrained(cnn14)  # as converted: readout="panns"
    output = model(log_mel("gp_logmel"))
    assert_close(output.last_hidden_state.transpose(1, 2), expected["gp_logmel_decoupled_encode"], CONVOLUTIONS)
    assert_close(output.pooler_output, expected["gp_logmel_decoupled_embedding"], CONVOLUTIONS)
    output = model(**cnn14_inputs())
    assert_close(output.last_hidden_state.transpose(1, 2), expected["evar_cnn14_frames"], FROM_WAVEFORM)
    assert_close(output.pooler_output, expected["evar_cnn14_embedding"], FROM_WAVEFORM)


ALL_BLOCKS = [1, 2, 3, 4, 5, 6]


@torch.no_grad()
@pytest.mark.parametrize(
    ("inputs", "fusion_layers", "frames", "pooled"),
    [
        ("gp_logmel", [6, 3], "gp_logmel_frames_3_6", "gp_logmel_forward_3_6"),
        ("gp_logmel", ALL_BLOCKS, "gp_logmel_frames_all", "gp_logmel_forward_all"),
        ("panns_logmel", [3, 6], "gp_panns_logmel_frames_3_6", "gp_panns_logmel_forward_3_6"),
        ("panns_logmel", ALL_BLOCKS, None, "gp_panns_logmel_forward_all"),
    ],
)
def test_cnn14_composed_features(cnn14, inputs, fusion_layers, frames, pooled):
    expected = arrays("cnn14")
    model = PannsCnn14Model.from_pretrained(cnn14, readout="composed", fusion_layers=fusion_layers)
    output = model(log_mel(inputs))
    assert_close(output.pooler_output, expected[pooled], CONVOLUTIONS)
    if frames:
        assert_close(output.last_hidden_state.transpose(1, 2), expected[frames], CONVOLUTIONS)


@torch.no_grad()
@pytest.mark.parametrize(
    ("fusion_layers", "temporal_pooling", "pooled"),
    [
        ([3, 6], ["mean", "max"], "evar_fusion_embedding"),
        (ALL_BLOCKS, ["mean", "max"], "evar_fusion_all_embedding"),
        ([3, 6], ["mean"], "evar_fusion_mean_embedding"),
        ([3, 6], ["max"], "evar_fusion_max_embedding"),
    ],
)
def test_cnn14_composed_features_of_waveforms(cnn14, fusion_layers, temporal_pooling, pooled):
    expected = arrays("cnn14")
    settings = {"fusion_layers": fusion_layers, "temporal_pooling": temporal_pooling}
    output = PannsCnn14Model.from_pretrained(cnn14, readout="composed", **settings)(**cnn14_inputs())
    assert_close(output.pooler_output, expected[pooled], FROM_WAVEFORM)
    if fusion_layers == [3, 6]:
        assert_close(output.last_hidden_state.transpose(1, 2), expected["evar_fusion_frames"], FROM_WAVEFORM)
