"""
Tests examples/xares_dual_ssast.py by the rules of X-ARES' encoders; `tests/validators/run.py` runs X-ARES' own check.
"""

import importlib.util

import pytest
import torch
from audio_files import ROOT
from tiny_models import save_tiny_classifier, save_tiny_cnn

FRAMES = {"patch_size": (128, 2), "frequency_stride": 128, "time_stride": 2}
OVERLAP = {"frequency_stride": 10, "time_stride": 10, "readout": "frames"}
MODELS = {
    "patches": save_tiny_classifier,
    "frames": lambda folder: save_tiny_classifier(folder, **FRAMES),
    "overlapping patches": lambda folder: save_tiny_classifier(folder, **OVERLAP),
    "vggish": lambda folder: save_tiny_cnn(folder, "vggish"),
    "panns_cnn14": lambda folder: save_tiny_cnn(folder, "panns_cnn14"),
}


@pytest.fixture(scope="module")
def xares():
    spec = importlib.util.spec_from_file_location("xares_dual_ssast", ROOT / "examples" / "xares_dual_ssast.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=MODELS)
def encoder(request, xares, tmp_path_factory):
    return xares.DualSSASTEncoder(str(MODELS[request.param](tmp_path_factory.mktemp("xares"))))


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("num_samples", [1, 8000, 50000])
def test_clips_become_frames_of_the_stated_size(encoder, num_samples):
    audio = noise(2, num_samples)
    embeddings = encoder(audio)
    assert embeddings.dtype == torch.float32 and embeddings.isfinite().all()
    assert embeddings.shape[0] == 2 and embeddings.shape[2] == encoder.output_dim
    alone = torch.cat([encoder(clip) for clip in audio])
    torch.testing.assert_close(embeddings, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("duration_s", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_long_clips_pass_and_frames_are_a_hop_apart(encoder, duration_s):
    (frames,) = encoder.model.embed_frames(noise(100_000), encoder.sampling_rate)
    hop_ms = torch.full((len(frames.time_ms) - 1,), encoder.hop_size_in_ms, dtype=torch.float64)
    torch.testing.assert_close(frames.time_ms.diff(), hop_ms)
    count = encoder(torch.zeros(1, duration_s * encoder.sampling_rate)).shape[1]
    assert 0 <= 1000 * duration_s - count * encoder.hop_size_in_ms < 1000


def test_the_environment_names_the_model(xares, encoder, monkeypatch):
    """X-ARES makes the only attribute whose name ends with Encoder, without arguments."""
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["DualSSASTEncoder"]
    monkeypatch.delenv("ENCODER", raising=False)
    with pytest.raises(ValueError, match="set ENCODER to the folder"):
        xares.DualSSASTEncoder()
    monkeypatch.setenv("ENCODER", encoder.model.config._name_or_path)
    assert torch.equal(xares.DualSSASTEncoder()(noise(1, 8000)), encoder(noise(1, 8000)))
