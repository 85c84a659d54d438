"""
Tests examples/hear_dual_ssast.py by the rules of HEAR's API; `tests/validators/run.py` runs HEAR's own validator.
"""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from audio_files import ROOT, tone
from tiny_models import TINY

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel

MODELS = {
    "patches": {},
    "overlapping patches": {"time_stride": 10, "frequency_stride": 10, "readout": "frames"},
    "frames": {"patch_size": (128, 2), "frequency_stride": 128, "time_stride": 2, "fusion": "sum"},
    "32 kHz": {},
}
LENGTHS_S = (1.07, 1.98, 4.0)  # the validator's, all longer than the tiny models' input


@pytest.fixture(scope="module")
def hear():
    spec = importlib.util.spec_from_file_location("hear_dual_ssast", ROOT / "examples" / "hear_dual_ssast.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=MODELS)
def model(request, hear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hear")
    torch.manual_seed(0)
    settings = {**TINY, **MODELS[request.param], "initializer_range": 0.2}
    DualSSASTModel(DualSSASTConfig(**settings)).save_pretrained(folder)
    rate = 32000 if request.param == "32 kHz" else 16000
    DualSSASTFeatureExtractor(max_length=TINY["max_length"], sampling_rate=rate).save_pretrained(folder)
    return hear.load_model(str(folder))


def noise(num_sounds: int, length_s: float, rate: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_sounds, int(length_s * rate), generator=generator) * 2 - 1


def test_the_model_is_a_module_with_the_attributes(hear, model):
    assert isinstance(model, torch.nn.Module) and not model.training
    assert model.sample_rate in (16000, 22050, 44100, 48000)
    assert type(model.scene_embedding_size) is type(model.timestamp_embedding_size) is int
    with pytest.raises(ValueError, match="model_file_path is empty"):
        hear.load_model()


def test_scene_embeddings(hear, model):
    audio = noise(4, 2.74, model.sample_rate)
    embeddings = hear.get_scene_embeddings(audio, model)
    assert embeddings.dtype == torch.float32 and embeddings.shape == (4, model.scene_embedding_size)
    alone = torch.cat([hear.get_scene_embeddings(sound[None], model) for sound in audio])
    torch.testing.assert_close(embeddings, alone, atol=1e-5, rtol=1e-5)
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


@pytest.mark.parametrize("length_s", LENGTHS_S)
def test_timestamp_embeddings(hear, model, length_s):
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(2, length_s, model.sample_rate), model)
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size) and len(embeddings) == 2
    assert embeddings.isfinite().all() and torch.equal(timestamps[0], timestamps[1])
    check_timestamps(timestamps.numpy(), 1000 * length_s)


def check_timestamps(timestamps: np.ndarray, length_ms: float):
    """Increasing, at most 50 ms apart, regular to 1 ms, from near 0 to within a step and 50 ms of the end."""
    spacings = np.diff(timestamps)
    mean = spacings.mean()
    assert spacings.min() > 0 and spacings.max() <= 50.0 + 1e-3
    assert np.abs(spacings - mean).max() <= 1
    assert 0 <= timestamps.min() <= mean
    assert max(length_ms - mean, length_ms - 50) - 1e-3 <= timestamps.max() <= length_ms


@pytest.mark.parametrize("length_s", [0.001, 0.02, 0.051, 0.2, 0.6551])
def test_short_sounds_have_timestamps_too(hear, model, length_s):
    audio = noise(1, length_s, model.sample_rate)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape[1] == timestamps.shape[1] >= 1 and timestamps.max() <= 1000 * length_s + 1e-3
    assert hear.get_scene_embeddings(audio, model).shape == (1, model.scene_embedding_size)


def test_a_batch_changes_nothing(hear, model):
    audio = noise(3, 1.07, model.sample_rate)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    for sound, together in zip(audio, embeddings):
        alone, times = hear.get_timestamp_embeddings(sound[None], model)
        torch.testing.assert_close(alone[0], together, atol=1e-5, rtol=1e-5)
        assert torch.equal(times[0], timestamps[0])


def test_timestamps_do_not_drift(hear, model):
    """Rounded sample hops would put the last frames of a long clip away from their times."""
    audio = torch.zeros(1, 60 * model.sample_rate)
    timestamps = hear.get_timestamp_embeddings(audio, model)[1]
    check_timestamps(timestamps.numpy(), 60_000)


def test_between_the_frames_embeddings_are_interpolated(hear, model):
    audio = torch.from_numpy(tone(0.6, model.sample_rate))[None]
    (frames,) = model.embed_frames(audio, model.sample_rate)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    at = timestamps[0].double().numpy()
    for feature in (0, model.timestamp_embedding_size - 1):
        expected = np.interp(at, frames.time_ms.numpy(), frames.values[:, feature].numpy())
        np.testing.assert_allclose(embeddings[0, :, feature].numpy(), expected, atol=1e-4)
    heard = frames.time_ms.numpy()
    assert all(np.abs(at - time).min() < 1e-3 for time in heard[heard <= 600])  # includes the frames themselves
