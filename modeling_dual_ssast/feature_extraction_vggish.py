# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Feature extractor of VGGish (Hershey et al., ICASSP 2017): log-mels in torch, on any device.

The numerics are plain functions of tensors (`vggish_log_mel` and the functions that it calls). The class adds checks,
padding, masks, saving and loading.
"""

import math
from typing import Optional

import torch

from .feature_extraction_dual_ssast import SpectrogramFeatureExtractor, cached, chunk_frames, hz_to_mel

SAMPLING_RATE = 16000  # Hz
WINDOW, HOP, NUM_FFT = 400, 160, 512  # samples
LOWEST_MEL_HZ, HIGHEST_MEL_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01


@cached
def vggish_mel_filters(num_mel_bins: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """
    Returns the mel filters (NUM_FFT / 2 + 1, num_mel_bins): triangles of height one, linear in mel, from 125 to
    7500 Hz. The DC bin carries no weight.
    """
    bins = hz_to_mel(torch.linspace(0, SAMPLING_RATE / 2, NUM_FFT // 2 + 1, dtype=torch.float64)).unsqueeze(1)
    edges = torch.linspace(hz_to_mel(LOWEST_MEL_HZ), hz_to_mel(HIGHEST_MEL_HZ), num_mel_bins + 2, dtype=torch.float64)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]  # (mel,) each
    triangles = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0.0)
    triangles[0] = 0.0
    return triangles.to(device, dtype)


def vggish_log_mel(waveform: torch.Tensor, num_mel_bins: int = 64) -> torch.Tensor:
    """
    Computes VGGish's log-mels, log(mel + 0.01) of the magnitude spectrogram, in float64 like the original, with
    periodic Hann windows that are not centred.

    Args:
        waveform: (samples,) at 16 kHz. A clip shorter than a window is zero-padded to one.
        num_mel_bins: Mel bins from 125 to 7500 Hz.

    Returns:
        float32 (frames, num_mel_bins), frames = 1 + (samples - WINDOW) // HOP.
    """
    dtype = torch.float32 if waveform.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    filters = vggish_mel_filters(num_mel_bins, waveform.device, dtype)
    window = torch.hann_window(WINDOW, periodic=True, dtype=dtype, device=waveform.device)
    padded = torch.nn.functional.pad(waveform.to(dtype), (0, max(WINDOW - waveform.shape[0], 0)))
    features = []
    for frames in padded.unfold(0, WINDOW, HOP).split(chunk_frames(waveform.device)):  # (frames, WINDOW)
        magnitude = torch.fft.rfft(frames * window, n=NUM_FFT).abs()  # (frames, NUM_FFT / 2 + 1)
        features.append((magnitude @ filters + LOG_OFFSET).log().float())
    return torch.cat(features)


class VGGishFeatureExtractor(SpectrogramFeatureExtractor):
    r"""
    Turns waveforms at 16 kHz into the log-mel spectrograms of VGGish (Hershey et al., ICASSP 2017). The model cuts them
    into examples of 96 frames.

    Args:
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate in Hz. Other rates are rejected: resample first.
        num_mel_bins (`int`, *optional*, defaults to 64):
            Mel bins from 125 to 7500 Hz.
        max_length (`int`, *optional*):
            Longest output in frames of 10 ms. `None`: clips are never truncated.
        padding (`str` or `bool`, *optional*, defaults to `"longest"`):
            Padding of a call that names none: `"longest"` (or `True`), `"max_length"` or `False`.
        return_attention_mask (`bool`, *optional*, defaults to `True`):
            Whether a call that does not choose returns the mask.
        **kwargs:
            Settings that Transformers stores in `preprocessor_config.json`.

    Raises:
        ValueError: A value is impossible, or `sampling_rate` is not 16000.
        TypeError: A keyword is unknown. The message names the nearest known one.
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
            raise ValueError(f"VGGish needs audio at {SAMPLING_RATE} Hz, got sampling_rate={sampling_rate}")
        settings = {**kwargs, "padding_value": math.log(LOG_OFFSET)}  # silence
        super().__init__(num_mel_bins, sampling_rate, max_length, padding, return_attention_mask, **settings)

    @property
    def hop_s(self) -> float:
        """Seconds from frame to frame."""
        return HOP / SAMPLING_RATE

    def num_samples(self, num_frames: int) -> int:
        """Returns the number of samples that `num_frames` frames span."""
        return (num_frames - 1) * HOP + WINDOW

    def spectrograms(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        """Computes log-mels by `vggish_log_mel`: per clip float32 (samples,) -> float32 (frames, num_mel_bins)."""
        return [vggish_log_mel(waveform, self.num_mel_bins) for waveform in waveforms]


VGGishFeatureExtractor.register_for_auto_class()
