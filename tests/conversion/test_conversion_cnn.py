"""Tests `python -m conversion vggish` and `panns-cnn14`: options, dropped names; numbers: test_golden_cnn.py."""

import pytest
import torch
from conversions import assert_refused, run_conversion
from golden import shrunk_state
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from conversion.__main__ import main
from modeling_dual_ssast import (
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    PannsCnn14Model,
    VGGishFeatureExtractor,
    VGGishForAudioClassification,
    VGGishModel,
)
from modeling_dual_ssast.feature_extraction_panns_cnn14 import slaney_mel_filters

FRONT_END = ("spectrogram_extractor.", "logmel_extractor.")


@pytest.fixture(scope="module")
def vggish():
    return shrunk_state("vggish_weights.json")


@pytest.fixture(scope="module")
def cnn14():
    """State dict of the 16 kHz model with its front end and 16 labels."""
    return shrunk_state("cnn14_weights.json")


@pytest.fixture
def convert(tmp_path, capsys):
    return lambda family, content, *options: run_conversion(family, content, tmp_path, capsys, "--overwrite", *options)


def without(state: dict, *prefixes: str) -> dict:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def nested(state: dict, wrapper: str | None, prefix: str) -> dict:
    state = {prefix + name: tensor for name, tensor in state.items()}
    return {wrapper: state, "iteration": 600000} if wrapper else state


NESTINGS = [
    (None, ""),
    ("model", ""),
    ("state_dict", ""),
    (None, "model."),
    ("model", "module."),
    (None, "module.model."),
]


@pytest.mark.parametrize(("wrapper", "prefix"), NESTINGS)
def test_vggish_in_every_wrapping(convert, vggish, wrapper, prefix):
    status, out, _, folder = convert("vggish", nested(vggish, wrapper, prefix), "--verify")
    assert status == 0
    assert "VGGish, without a classifier" in out and "verified  18 tensors read back, largest difference 0" in out
    assert ("iteration: stored beside the weights" in out) == (wrapper is not None)
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == vggish.keys() and all(torch.equal(saved[name], tensor) for name, tensor in vggish.items())
    assert type(AutoModel.from_pretrained(folder)) is VGGishModel
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is VGGishFeatureExtractor
    assert type(AutoModelForAudioClassification.from_pretrained(folder)) is VGGishForAudioClassification


def test_vggish_of_torchvggish(convert, vggish):
    """The same network with another name for its Linear layers, and the post-processing of AudioSet's embeddings."""
    state = {name.replace("fc.", "embeddings."): tensor for name, tensor in vggish.items()}
    state |= {"pproc.pca_matrix": torch.eye(4), "pproc.pca_means": torch.zeros(4, 1)}
    status, out, _, folder = convert("vggish", state)
    assert status == 0
    assert "dropped   pproc.pca_matrix, pproc.pca_means: PCA and quantisation" in out
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in vggish.items())


def test_vggish_is_strict_in_both_directions(convert, vggish):
    broken = without(vggish, "features.3.bias") | {"fc.7.weight": torch.zeros(3), "fc.2.bias": torch.zeros(7)}
    words = ("missing features.3.bias", "unknown fc.7.weight", "fc.2.bias has shape (7,), expected (128,)")
    assert_refused(convert("vggish", broken), "source.pth does not fit a VGGish checkpoint", *words)
    assert_refused(convert("vggish", {"v.norm.weight": torch.zeros(3)}), "is not a VGGish checkpoint", "features.0")
    wider = vggish | {"fc.0.weight": torch.zeros(128, 768)}  # of examples of another length
    assert_refused(convert("vggish", wider), "fc.0.weight has shape (128, 768), expected (128, 384)")


@pytest.mark.parametrize(("wrapper", "prefix"), NESTINGS)
def test_cnn14_in_every_wrapping(convert, cnn14, wrapper, prefix):
    status, out, _, folder = convert("panns-cnn14", nested(cnn14, wrapper, prefix), "--verify")
    assert status == 0
    assert "PANNs' CNN14, with its classifier" in out and "largest difference 0" in out
    assert "logmel_extractor.melW: front end, with the same window and mel filters as the feature extractor" in out
    saved = load_file(folder / "model.safetensors")
    for name, original in (
        ("panns_cnn14.bn0.running_mean", "bn0.running_mean"),
        ("panns_cnn14.blocks.2.conv2.weight", "conv_block3.conv2.weight"),
        ("panns_cnn14.blocks.5.bn1.running_var", "conv_block6.bn1.running_var"),
        ("panns_cnn14.blocks.5.bn1.num_batches_tracked", "conv_block6.bn1.num_batches_tracked"),
        ("panns_cnn14.embedding.fc1.weight", "fc1.weight"),
        ("audioset_classifier.bias", "fc_audioset.bias"),
    ):
        assert torch.equal(saved[name], cnn14[original]), name
    assert len(saved) == len(without(cnn14, *FRONT_END))
    assert type(AutoModelForAudioClassification.from_pretrained(folder)) is PannsCnn14ForAudioClassification
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert type(extractor) is PannsCnn14FeatureExtractor and extractor.sampling_rate == 16000


def test_cnn14_keeps_the_original_head(convert, cnn14, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(f"sound {index}" for index in range(16)))
    *_, folder = convert("panns-cnn14", cnn14, "--labels", tmp_path / "labels.txt")
    config = AutoModelForAudioClassification.from_pretrained(folder).config
    assert (config.readout, config.classifier_dropout, config.hidden_dropout_prob) == ("panns", 0.5, 0.2)
    assert config.id2label[3] == "sound 3"
    *_, folder = convert("panns-cnn14", cnn14 | audioset_head(cnn14))
    config = AutoModelForAudioClassification.from_pretrained(folder).config
    assert (config.num_labels, config.problem_type) == (527, "multi_label_classification")
    status, _, err, _ = convert("panns-cnn14", cnn14, "--task", "encoder", "--labels", tmp_path / "labels.txt")
    assert status == 1 and "names no outputs of an encoder" in err


def audioset_head(state: dict) -> dict:
    size = state["fc_audioset.weight"].shape[1]
    return {"fc_audioset.weight": torch.ones(527, size), "fc_audioset.bias": torch.ones(527)}


def test_cnn14_as_an_encoder(convert, cnn14):
    status, out, _, folder = convert("panns-cnn14", cnn14, "--task", "encoder", "--verify")
    assert status == 0
    assert (
        "fc1.bias, fc1.weight, fc_audioset.bias, fc_audioset.weight: head, which only --task classification keeps"
        in out
    )
    assert type(AutoModel.from_pretrained(folder)) is PannsCnn14Model
    assert AutoModel.from_pretrained(folder).config.readout == "composed"
    # EVAR's file has no classifier, so it can only become an encoder.
    headless = without(cnn14, "fc_audioset.")
    status, out, _, folder = convert("panns-cnn14", headless)
    assert status == 0 and "CNN14, without its classifier" in out
    result = convert("panns-cnn14", headless, "--task", "classification")
    assert result[0] == 1 and "has no fc_audioset" in result[2]


def test_cnn14_without_a_front_end_needs_its_rate(convert, cnn14):
    bare = without(cnn14, *FRONT_END)
    assert_refused(convert("panns-cnn14", bare), "holds no front end", "give --sampling-rate 16000 or 32000")
    status, *_, folder = convert("panns-cnn14", bare, "--sampling-rate", 32000)
    assert status == 0
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert (extractor.sampling_rate, extractor.window_size, extractor.fmax) == (32000, 1024, 14000.0)


def front_end(extractor: PannsCnn14FeatureExtractor, scale: float = 1.0) -> dict:
    """Returns torchlibrosa's tensors: a windowed Fourier matrix by its formula, and mel filters."""
    size = extractor.window_size
    angle = 2 * torch.pi * torch.outer(torch.arange(size // 2 + 1), torch.arange(size)).double() / size
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(size).double() / size)
    settings = (64, size, extractor.sampling_rate, extractor.fmin, extractor.fmax, torch.device("cpu"))
    return {
        "spectrogram_extractor.stft.conv_real.weight": (window * angle.cos()).float().unsqueeze(1),
        "spectrogram_extractor.stft.conv_imag.weight": (-window * angle.sin()).float().unsqueeze(1),
        "logmel_extractor.melW": slaney_mel_filters(*settings) * scale,
    }


def test_cnn14_front_end_tells_the_rate(convert, cnn14):
    extractor = PannsCnn14FeatureExtractor(sampling_rate=32000)
    status, *_, folder = convert("panns-cnn14", cnn14 | front_end(extractor))
    assert status == 0 and AutoFeatureExtractor.from_pretrained(folder).sampling_rate == 32000


@pytest.mark.parametrize("damage", ["scale", "fmax", "window", "nan", "missing", "rate"])
def test_cnn14_with_another_front_end_is_refused(convert, cnn14, damage):
    options, words = (), ("another front end than the published one of 16000 Hz: logmel_extractor.melW",)
    state = dict(cnn14)
    if damage == "scale":
        state |= front_end(PannsCnn14FeatureExtractor(), scale=1.01)
    elif damage == "fmax":
        state |= front_end(PannsCnn14FeatureExtractor(fmax=7900.0))
    elif damage == "window":
        state |= front_end(PannsCnn14FeatureExtractor(window_size=256))
        words = ("windows of 256 samples, expected 512 (16000 Hz) or 1024 (32000 Hz)",)
    elif damage == "nan":
        state["logmel_extractor.melW"] = torch.full((257, 64), float("nan"))
    elif damage == "missing":
        del state["logmel_extractor.melW"]
        words = ("missing logmel_extractor.melW",)
    else:
        options = ("--sampling-rate", 32000)
        words = ("takes 16000 Hz (windows of 512 samples), but --sampling-rate is 32000",)
    assert_refused(convert("panns-cnn14", state, *options), *words)


def test_cnn14_is_strict_in_both_directions(convert, cnn14):
    broken = without(cnn14, "conv_block2.bn1.weight", "fc1.bias") | {
        "conv_block7.conv1.weight": torch.zeros(3),
        "conv_block4.bn2.running_var": torch.zeros(5),
    }
    assert_refused(
        convert("panns-cnn14", broken),
        "does not fit a checkpoint of PANNs' CNN14",
        "missing conv_block2.bn1.weight, fc1.bias",
        "conv_block4.bn2.running_var has shape (5,), expected (16,)",
        "unknown conv_block7.conv1.weight",
    )
    foreign = convert("panns-cnn14", {"v.norm.weight": torch.zeros(3)})
    assert_refused(foreign, "is not a checkpoint of PANNs' CNN14", "missing bn0.weight", "vggish or panns-cnn14")


def test_cnn14_of_old_pytorch_has_no_counters(convert, cnn14):
    state = {name: tensor for name, tensor in cnn14.items() if not name.endswith("num_batches_tracked")}
    status, *_, folder = convert("panns-cnn14", state, "--verify")
    assert status == 0
    assert load_file(folder / "model.safetensors")["panns_cnn14.bn0.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("family", "option"), [("vggish", "--labels"), ("vggish", "--max-length"), ("panns-cnn14", "--mean")]
)
def test_options_of_other_families_are_unknown(family, option):
    with pytest.raises(SystemExit) as outcome:
        main([family, "SRC", "OUT", option, "1"])
    assert outcome.value.code == 2
