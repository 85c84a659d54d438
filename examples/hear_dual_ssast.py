"""
Implements the HEAR 2021 API (https://hearbenchmark.com/hear-api.html) for every model of this project. It needs only
the saved folder, which contains the code of the model: copy this file to where HEAR runs.

    hear-validator hear_dual_ssast --model MODEL
    python -m heareval.embeddings.runner hear_dual_ssast --model MODEL

Needs transformers and torch, and soxr for models whose sampling rate is not one of HEAR's.
"""

import math

import torch
from transformers import AutoModel

RATES_HZ = (16000, 22050, 44100, 48000)  # the sampling rates of HEAR's recordings
LONGEST_SPACING_MS = 50.0  # HEAR's suggestion for the onsets of its transcription tasks
BATCH_SIZE = 8


def load_model(model_file_path: str = "") -> torch.nn.Module:
    """
    Loads a model with HEAR's attributes: `sample_rate`, `scene_embedding_size` and `timestamp_embedding_size`.

    Args:
        model_file_path: folder or Hub name of a model of this project; HEAR's --model
    """
    if not model_file_path:
        raise ValueError("model_file_path is empty: name the folder or the Hub name of a model, with --model")
    model = AutoModel.from_pretrained(model_file_path, trust_remote_code=True).eval()
    rate = model.own_feature_extractor().sampling_rate
    # A model of another rate resamples from the next higher rate: this loses the least.
    model.sample_rate = rate if rate in RATES_HZ else next((r for r in RATES_HZ if r > rate), RATES_HZ[-1])
    model.scene_embedding_size = model.config.fused_size
    model.timestamp_embedding_size = model.frame_size
    return model


def get_scene_embeddings(audio: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """
    Embeds clips, one vector each.

    Args:
        audio: (n_sounds, n_samples) in [-1, 1] at `model.sample_rate`

    Returns:
        float32 (n_sounds, scene_embedding_size)
    """
    return model.embed(audio, model.sample_rate, batch_size=BATCH_SIZE)


def get_timestamp_embeddings(audio: torch.Tensor, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Embeds clips over time, at the middles of the model's time frames. If these are more than 50 ms apart, timestamps
    between them are added and interpolated linearly; before the first and after the last middle the embedding is
    constant.

    Args:
        audio: (n_sounds, n_samples) in [-1, 1] at `model.sample_rate`

    Returns:
        float32 embeddings (n_sounds, n_timestamps, timestamp_embedding_size), and times in ms (n_sounds, n_timestamps)
    """
    found = model.embed_frames(audio, model.sample_rate, batch_size=BATCH_SIZE)
    values = torch.stack([frames.values for frames in found])  # (n_sounds, frames, size): lengths are equal
    extractor = model.own_feature_extractor()
    hop_ms = 1000 * (extractor.num_samples(2) - extractor.num_samples(1)) / extractor.sampling_rate
    frame_ms = model.time_grid.stride * hop_ms
    steps = math.ceil(frame_ms / LONGEST_SPACING_MS - 1e-9)  # from frame to frame
    spacing_ms = frame_ms / steps
    duration_ms = 1000 * audio.shape[1] / model.sample_rate
    first_ms = float(found[0].time_ms[0])
    start_ms = min(first_ms % spacing_ms, duration_ms)
    count = int((duration_ms - start_ms) / spacing_ms + 1e-9) + 1
    # A product, not a running sum: its errors would grow with the length of the clip.
    times_ms = torch.arange(count, dtype=torch.float64) * spacing_ms + start_ms
    places = ((times_ms - first_ms) / frame_ms).clamp(0, values.shape[1] - 1)  # in frames
    before = places.floor().long()
    after = (before + 1).clamp(max=values.shape[1] - 1)
    share = (places - before).float().unsqueeze(1)  # (timestamps, 1)
    embeddings = values[:, before] * (1 - share) + values[:, after] * share
    return embeddings, times_ms.float().expand(len(values), -1)
