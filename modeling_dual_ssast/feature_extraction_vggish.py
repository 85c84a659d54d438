# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
VGGish's log-mel features in torch, on any device.

The numerics are plain functions of tensors (`vggish_log_mel` and what it calls); the class adds what Transformers
expects of a feature extractor.
"""

import functools
import math
from typing import Optional

import torch

from .feature_extraction_dual_ssast import CHUNK_FRAMES, SpectrogramFeatureExtractor, hz_to_mel

SAMPLING_RATE = 16000  # in Hz, as all that follows
WINDOW, HOP, NUM_FFT = 400, 160, 512  # samples
LOWEST_MEL_HZ, HIGHEST_MEL_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01


@functools.lru_cache(maxsize=16)
def vggish_mel_filters(num_mel_bins: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """
    Triangles of height one, linear in mel, from 125 to 7500 Hz: (NUM_FFT / 2 + 1, num_mel_bins). The DC bin carries no
    weight.
    """
    bins = hz_to_mel(torch.linspace(0, SAMPLING_RATE / 2, NUM_FFT // 2 + 1, dtype=torch.float64)).unsqueeze(1)
    edges = torch.linspace(hz_to_mel(LOWEST_MEL_HZ), hz_to_mel(HIGHEST_MEL_HZ), num_mel_bins + 2, dtype=torch.float64)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]  # (mel,) each
    triangles = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0.0)
    triangles[0] = 0.0
    return triangles.to(device, dtype)


def vggish_log_mel(waveform: torch.Tensor, num_mel_bins: int = 64) -> torch.Tensor:
    """
    log(mel + 0.01) of the magnitude spectrogram, as the original computes it: in float64, periodic Hann windows without
    centring.

    Args:
        waveform: (samples,) at 16 kHz; shorter than a window, it is zero-padded to one

    Returns:
        float32 (frames, num_mel_bins), frames = 1 + (samples - WINDOW) // HOP
    """
    dtype = torch.float32 if waveform.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    filters = vggish_mel_filters(num_mel_bins, waveform.device, dtype)
    window = torch.hann_window(WINDOW, periodic=True, dtype=dtype, device=waveform.device)
    padded = torch.nn.functional.pad(waveform.to(dtype), (0, max(WINDOW - waveform.shape[0], 0)))
    features = []
    for frames in padded.unfold(0, WINDOW, HOP).split(CHUNK_FRAMES):  # (frames, WINDOW)
        magnitude = torch.fft.rfft(frames * window, n=NUM_FFT).abs()  # (frames, NUM_FFT / 2 + 1)
        features.append((magnitude @ filters + LOG_OFFSET).log().float())
    return torch.cat(features)


class VGGishFeatureExtractor(SpectrogramFeatureExtractor):
    r"""
    Turns waveforms at 16 kHz into the log-mel spectrograms that VGGish reads. The model cuts them into its examples of
    96 frames.

    Args:
        sampling_rate (`int`, defaults to 16000): VGGish hears nothing else. Other rates are refused: resample first.
        num_mel_bins (`int`, defaults to 64)
        max_length (`int`, *optional*): most frames of a clip, of 10 ms; by default clips are never cut.
        padding (`str` or `bool`, defaults to `"longest"`): what a call does by default. `"longest"` (or `True`),
            `"max_length"` or `False`.
        return_attention_mask (`bool`, defaults to `True`)

    Raises:
        ValueError: an impossible value, another sampling rate for one.
        TypeError: an unknown keyword, with the nearest known one.
    """

    def __init__(
        self,
        sampling_rate=SAMPLING_RATE,
        num_mel_bins=64,
        max_length: Optional[int] = None,
        padding="longest",
        return_attention_mask=True,
        **kwargs,
    ):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"VGGish hears audio at {SAMPLING_RATE} Hz, got sampling_rate={sampling_rate}")
        settings = {**kwargs, "padding_value": math.log(LOG_OFFSET)}  # of silence
        super().__init__(num_mel_bins, sampling_rate, max_length, padding, return_attention_mask, **settings)

    @property
    def hop_s(self) -> float:
        return HOP / SAMPLING_RATE

    def num_samples(self, num_frames: int) -> int:
        """Samples that `num_frames` frames span."""
        return (num_frames - 1) * HOP + WINDOW

    def spectrograms(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [vggish_log_mel(waveform, self.num_mel_bins) for waveform in waveforms]


VGGishFeatureExtractor.register_for_auto_class()
