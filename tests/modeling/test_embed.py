"""Tests model.embed and model.embed_frames: any rate, any length, results independent of batches."""

import builtins
import math
import pickle

import numpy as np
import pytest
import soxr
import torch
from audio_files import tone
from tiny_models import TINY, save_tiny_classifier
from transformers import AutoFeatureExtractor, AutoModel

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTModel,
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14Model,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishModel,
)
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop, window_starts

RATE = 16000
LENGTHS_S = (0.5, 0.1, 1.5, 0.3, 0.655, 0.01)  # the tiny model takes 0.655 s at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), initializer_range=0.3)


def load(folder, **overrides):
    return AutoModel.from_pretrained(folder, **overrides)


def clips():
    return [tone(seconds, hz=200.0 * (index + 1), seed=index) for index, seconds in enumerate(LENGTHS_S)]


def features_of(model, waveform):
    extractor = model.own_feature_extractor()
    return extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")


def pooled(model, waveform):
    with torch.no_grad():
        return model(**features_of(model, waveform)).pooler_output[0]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_embeddings_are_pooler_outputs_averaged_over_windows(folder, batch_size):
    """Clips that fit, in whatever batch, are their pooler_output; the window arithmetic is that of classify_windows."""
    model, found = load(folder), clips()
    embeddings = model.embed(found, RATE, batch_size=batch_size)
    assert embeddings.shape == (6, model.config.fused_size) and embeddings.dtype == torch.float32
    window = math.floor(0.655 * RATE)
    for clip, embedding in zip(found, embeddings):
        starts = window_starts(len(clip), window, window // 2)
        assert len(starts) == (1 if len(clip) <= window else 4)
        expected = torch.stack([pooled(model, clip[start : start + window]) for start in starts]).mean(dim=0)
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


def test_windows_are_those_that_are_asked_for(folder):
    model, clip = load(folder), clips()[0]
    extractor = model.own_feature_extractor()
    embedding = model.embed(clip, RATE, extractor, window_s=0.2, hop_s=0.1)
    expected = torch.stack([pooled(model, clip[start : start + 3200]) for start in (0, 1600, 3200, 4800)]).mean(dim=0)
    torch.testing.assert_close(embedding[0], expected, atol=1e-5, rtol=1e-5)
    assert window_starts(10, 4, 3) == [0, 3, 6] and window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 1) == window_starts(3, 4, 1) == [0]


def test_other_rates_are_resampled(folder, monkeypatch):
    model = load(folder)
    audio = tone(0.4, 44100)
    expected = pooled(model, soxr.resample(audio, 44100, RATE))
    for given in (audio, torch.from_numpy(audio), audio.tolist(), audio.astype(np.float64)[None]):
        torch.testing.assert_close(model.embed(given, 44100)[0], expected, atol=1e-4, rtol=1e-4)
    assert model.embed(np.zeros(1, dtype=np.float32), 96000).isfinite().all()  # resampled to nothing
    original = builtins.__import__

    def without_soxr(name, *rest, **options):
        if name == "soxr":
            raise ImportError
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_soxr)
    with pytest.raises(ImportError, match="at 44100 Hz, but this model needs 16000 Hz: pip install soxr"):
        model.embed(audio, 44100)
    model.embed(soxr.resample(audio, 44100, RATE), RATE)  # needs no soxr


@pytest.mark.parametrize(
    ("waveforms", "options", "message"),
    [
        ([], {}, "the batch is empty: pass at least one clip"),
        (np.zeros((0,), dtype=np.float32), {}, "clip 0 is empty"),
        ([np.ones(400, dtype=np.float32), np.ones((400, 2), dtype=np.float32)], {}, r"clip 1 has shape \(400, 2\)"),
        ([np.ones(400, dtype=np.int16)], {}, "clip 0 holds int16 samples"),
        ([np.full(400, np.nan)], {}, "clip 0 holds 400 NaN or infinite samples"),
        ([np.ones(400)], {"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ([np.ones(400)], {"window_s": 9}, "window_s must be positive and at most max_length's 0.655 s, got 9"),
        ([np.ones(400)], {"sampling_rate": -1}, "sampling_rate must be a positive number of Hz, got -1"),
        ([np.ones(400)], {"sampling_rate": math.nan}, "sampling_rate must be a positive number of Hz, got nan"),
        ([np.ones(400)], {"sampling_rate": math.inf}, "sampling_rate must be a positive number of Hz, got inf"),
    ],
)
def test_impossible_calls_are_refused(folder, waveforms, options, message):
    model, options = load(folder), {"sampling_rate": RATE, **options}
    for embed in (model.embed, model.embed_frames):
        with pytest.raises(ValueError, match=message):
            embed(waveforms, **options)


def test_an_encoder_without_fusion_says_so():
    encoder = DualSSASTModel(DualSSASTConfig(**TINY), add_fusion=False)
    for embed in (encoder.embed, encoder.embed_frames):
        with pytest.raises(ValueError, match="this encoder has no fusion: load the folder with AutoModel"):
            embed(clips()[0], RATE, DualSSASTFeatureExtractor(max_length=64))


def test_the_feature_extractor_is_the_one_beside_the_model(folder, tmp_path):
    model = load(folder, max_length=128)  # resizes the positions; the extractor has the same length
    assert model.own_feature_extractor().max_length == 128
    assert model.own_feature_extractor() is model.own_feature_extractor()
    clip = clips()[2][: int(1.2 * RATE)]
    extractor = DualSSASTFeatureExtractor(max_length=128)
    torch.testing.assert_close(model.embed(clip, RATE), model.embed(clip, RATE, extractor))
    torch.manual_seed(0)
    fresh = DualSSASTModel(DualSSASTConfig(**TINY))
    with pytest.raises(ValueError, match="was not loaded from a folder: pass its feature_extractor"):
        fresh.embed(clip, RATE)
    model.config._name_or_path = str(tmp_path)
    with pytest.raises(OSError, match="preprocessor_config.json"):
        model.own_feature_extractor()


@pytest.mark.parametrize("loader", [AutoModel, DualSSASTModel, DualSSASTForAudioClassification])
def test_the_feature_extractor_of_a_subfolder_is_the_models_own(tmp_path, loader):
    save_tiny_classifier(tmp_path / "fold")
    DualSSASTFeatureExtractor(max_length=64, mean=1.0).save_pretrained(tmp_path)
    encoder = loader.from_pretrained(tmp_path, subfolder="fold").base_model
    assert encoder.own_feature_extractor().mean == DualSSASTFeatureExtractor().mean
    assert not hasattr(encoder.config, "subfolder")


def test_the_keywords_that_found_the_model_find_its_feature_extractor(folder, tmp_path, monkeypatch):
    options = {"token": "secret", "cache_dir": str(tmp_path), "local_files_only": True, "revision": "v2"}
    model = load(folder, **options)
    asked = {}
    monkeypatch.setattr(AutoFeatureExtractor, "from_pretrained", lambda name, **given: asked.update(given))
    model.own_feature_extractor()
    assert asked == options | {"max_length": 64}
    assert b"secret" not in pickle.dumps(model)


def test_a_model_in_training_embeds_without_dropout_and_goes_on_training(folder):
    model = load(folder, hidden_dropout_prob=0.5).train()
    model.layernorm.eval()
    clip = clips()[0]
    torch.testing.assert_close(model.embed(clip, RATE), load(folder).embed(clip, RATE))
    assert model.training and model.layers[0].dropout.training and not model.layernorm.training


FRAME_SETTINGS = [
    {},
    {"readout": "frames"},
    {"readout": "frames", "fusion": "sum"},
    {"fusion": "weighted", "fusion_norm": "none"},
    {"fusion_layers": [1], "fusion_norm": "separate", "time_stride": 8},
    {"patch_size": (128, 2), "frequency_stride": 128, "time_stride": 2},
]


@pytest.mark.parametrize("settings", FRAME_SETTINGS)
def test_the_mean_over_time_frames_is_the_embedding(settings):
    """For mean pooling, whatever is read out and however the layers are fused."""
    torch.manual_seed(0)
    model = DualSSASTModel(DualSSASTConfig(**TINY, **settings, pooling=["mean"], initializer_range=0.3)).eval()
    extractor = DualSSASTFeatureExtractor(max_length=64)
    found = [clip for clip, seconds in zip(clips(), LENGTHS_S) if seconds < 1]
    frames = model.embed_frames(found, RATE, extractor, batch_size=3)
    embeddings = model.embed(found, RATE, extractor)
    for clip, one, embedding in zip(found, frames, embeddings):
        num_frames = extractor(clip, RATE)["input_values"][0].shape[0]
        assert one.values.shape == (model.config.num_columns(num_frames), model.frame_size)
        torch.testing.assert_close(one.values.mean(dim=0), embedding, atol=1e-5, rtol=1e-5)


def test_a_frame_s_time_is_the_middle_of_its_patches():
    model = DualSSASTModel(DualSSASTConfig(**TINY))
    extractor = DualSSASTFeatureExtractor(max_length=64)
    time_ms = model.embed_frames(clips()[0], RATE, extractor)[0].time_ms
    # 16 frames: the first window begins at 0 ms, the last one ends at 15 * 10 + 25 ms.
    np.testing.assert_allclose(time_ms, 87.5 + 160 * np.arange(3))


def test_long_clips_have_one_grid_of_time_frames(folder):
    """Windows begin at columns, so that a frame has the same place as in a model that takes the whole clip."""
    clip = clips()[2]
    model = load(folder)
    frames = model.embed_frames(clip, RATE)[0]
    whole = load(folder, max_length=160).embed_frames(clip, RATE)[0]
    assert frames.values.shape == whole.values.shape and torch.equal(frames.time_ms, whole.time_ms)
    extractor = model.own_feature_extractor()
    window = extractor.num_samples(64)  # 4 columns
    total, counts = torch.zeros(len(frames.values), model.frame_size), torch.zeros(len(frames.values), 1)
    for column in (0, 2, 4, 6):
        values = model.embed_frames(clip[column * 2560 :][:window], RATE)[0].values
        total[column : column + len(values)] += values
        counts[column : column + len(values)] += 1
    assert counts.flatten().tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 1, 1]
    torch.testing.assert_close(frames.values, total / counts, atol=1e-5, rtol=1e-5)
    batch = model.embed_frames(clips(), RATE, batch_size=3)
    torch.testing.assert_close(batch[2].values, frames.values, atol=1e-5, rtol=1e-5)


def test_networks_without_a_longest_clip():
    """VGGish's examples are independent: neither windows nor the padding of a batch change anything."""
    torch.manual_seed(0)
    vggish = VGGishModel(VGGishConfig(channels=[2, 3, 4, 5], fc_size=8, embedding_size=4)).eval()
    cnn14 = PannsCnn14Model(PannsCnn14Config(channels=[2, 3, 4, 5, 6, 7])).eval()
    found = [tone(seconds, seed=index) for index, seconds in enumerate((4.4, 1.0, 0.2))]
    for model, extractor in ((vggish, VGGishFeatureExtractor()), (cnn14, PannsCnn14FeatureExtractor())):
        embeddings, frames = model.embed(found, RATE, extractor), model.embed_frames(found, RATE, extractor)
        for clip, embedding, one in zip(found, embeddings, frames):
            features = extractor(clip, sampling_rate=RATE, return_tensors="pt")
            with torch.no_grad():
                output = model(**features)
            torch.testing.assert_close(embedding, output.pooler_output[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.values, output.last_hidden_state[0], atol=1e-4, rtol=1e-4)
    windowed = vggish.embed_frames(found, RATE, VGGishFeatureExtractor(), window_s=2.5)
    for one, part in zip(vggish.embed_frames(found, RATE, VGGishFeatureExtractor()), windowed):
        torch.testing.assert_close(one.values, part.values, atol=1e-5, rtol=1e-5)
        assert torch.equal(one.time_ms, part.time_ms)
    with pytest.raises(ValueError, match="window_s must be at least 0.975, the length of 6 time frame"):
        vggish.embed_frames(found, RATE, VGGishFeatureExtractor(), window_s=0.5)
    np.testing.assert_allclose(windowed[1].time_ms[:2], [87.5, 247.5])


def test_recordings_of_minutes_are_heard_in_windows():
    """A clip longer than about a minute is never in memory as a whole; its frames stay the same."""
    torch.manual_seed(0)
    vggish = VGGishModel(VGGishConfig(channels=[2, 3, 4, 5], fc_size=8, embedding_size=4)).eval()
    extractor, clip = VGGishFeatureExtractor(), np.tile(tone(10.0), 10)
    window, hop = window_and_hop(vggish, extractor)
    assert window == extractor.num_samples(6144) and hop == pytest.approx(window / 2, abs=1)
    parts = [clip[start : start + window] for start in (0, hop, len(clip) - window)]
    expected = vggish.embed(parts, RATE, extractor).mean(dim=0)
    torch.testing.assert_close(vggish.embed(clip, RATE, extractor)[0], expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        whole = vggish(**extractor(clip, sampling_rate=RATE, return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(vggish.embed_frames(clip, RATE, extractor)[0].values, whole, atol=1e-4, rtol=1e-4)
