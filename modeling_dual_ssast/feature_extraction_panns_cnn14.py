# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
PANNs' log-mel features in torch, on any device.

The numerics are plain functions of tensors (`panns_log_mel` and what it calls); the class adds what Transformers
expects of a feature extractor.
"""

import functools
import math
from typing import Optional

import torch

from .feature_extraction_dual_ssast import CHUNK_FRAMES, SpectrogramFeatureExtractor, _check_positive

POWER_FLOOR = 1e-10  # under the logarithm: -100 dB
# Slaney's mel scale: linear up to 1000 Hz, then logarithmic.
LINEAR_HZ_PER_MEL = 200.0 / 3.0
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / LINEAR_HZ_PER_MEL
LOG_STEP = math.log(6.4) / 27.0
# What the published networks of each sampling rate (in Hz) were trained with: samples, samples, Hz, Hz.
VARIANTS = {
    16000: {"window_size": 512, "hop_size": 160, "fmin": 50.0, "fmax": 8000.0},
    32000: {"window_size": 1024, "hop_size": 320, "fmin": 50.0, "fmax": 14000.0},
}


def hz_to_slaney_mel(hz: float) -> float:
    return hz / LINEAR_HZ_PER_MEL if hz < BREAK_HZ else BREAK_MEL + math.log(hz / BREAK_HZ) / LOG_STEP


def slaney_mel_to_hz(mels: torch.Tensor) -> torch.Tensor:
    return torch.where(mels < BREAK_MEL, mels * LINEAR_HZ_PER_MEL, BREAK_HZ * ((mels - BREAK_MEL) * LOG_STEP).exp())


@functools.lru_cache(maxsize=16)
def slaney_mel_filters(
    num_mel_bins: int, window_size: int, sampling_rate: int, fmin: float, fmax: float, device: torch.device
) -> torch.Tensor:
    """
    Triangles of equal area, linear in Hz, at equal distances on Slaney's mel scale (librosa's default):
    (window_size / 2 + 1, num_mel_bins) in float32.
    """
    edges = torch.linspace(hz_to_slaney_mel(fmin), hz_to_slaney_mel(fmax), num_mel_bins + 2, dtype=torch.float64)
    edges = slaney_mel_to_hz(edges)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]  # (mel,) each
    bins = torch.linspace(0, sampling_rate / 2, window_size // 2 + 1, dtype=torch.float64).unsqueeze(1)
    triangles = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0.0)
    return (triangles * 2.0 / (right - left)).to(device, torch.float32)


def panns_power(waveform: torch.Tensor, window_size: int, hop_size: int) -> list[torch.Tensor]:
    """
    Power spectrogram with periodic Hann windows centred on multiples of the hop, the clip mirrored at its ends.

    Args:
        waveform: float32 (samples,); shorter than a window, it is zero-padded to one, which can be mirrored

    Returns:
        float32 (frames, window_size / 2 + 1) in chunks, frames = 1 + samples // hop_size
    """
    padded = torch.nn.functional.pad(waveform, (0, max(window_size - waveform.shape[0], 0)))
    half = window_size // 2
    mirrored = torch.nn.functional.pad(padded.unsqueeze(0), (half, half), mode="reflect").squeeze(0)
    window = torch.hann_window(window_size, periodic=True, device=waveform.device)
    chunks = mirrored.unfold(0, window_size, hop_size).split(CHUNK_FRAMES)  # (frames, window_size)
    spectra = [torch.fft.rfft(frames * window) for frames in chunks]
    return [spectrum.real.square() + spectrum.imag.square() for spectrum in spectra]


def panns_log_mel(
    waveform: torch.Tensor,
    sampling_rate: int,
    num_mel_bins: int,
    window_size: int,
    hop_size: int,
    fmin: float,
    fmax: float,
) -> torch.Tensor:
    """10 * log10 of the mel power, at least -100 dB: (samples,) -> float32 (frames, num_mel_bins)"""
    filters = slaney_mel_filters(num_mel_bins, window_size, sampling_rate, fmin, fmax, waveform.device)
    chunks = panns_power(waveform, window_size, hop_size)
    return torch.cat([10.0 * (power @ filters).clamp(min=POWER_FLOOR).log10() for power in chunks])


class PannsCnn14FeatureExtractor(SpectrogramFeatureExtractor):
    r"""
    Turns waveforms into the log-mel spectrograms, in dB, that PANNs' CNN14 reads. The model normalises each mel bin
    itself.

    Args:
        sampling_rate (`int`, defaults to 16000): in Hz; 16000 or 32000 for the published networks. Other rates are
            refused at the call: resample first.
        num_mel_bins (`int`, defaults to 64)
        window_size, hop_size (`int`, *optional*): in samples; by default 512 and 160 at 16 kHz, 1024 and 320 at 32 kHz.
        fmin, fmax (`float`, *optional*): lowest and highest frequency in Hz; by default 50 and 8000 at 16 kHz, 50 and
            14000 at 32 kHz.
        max_length (`int`, *optional*): most frames of a clip, of 10 ms; by default clips are never cut.
        padding (`str` or `bool`, defaults to `"longest"`): what a call does by default. `"longest"` (or `True`),
            `"max_length"` or `False`.
        return_attention_mask (`bool`, defaults to `True`)

    Raises:
        ValueError: an impossible value, or another sampling rate without the four settings that depend on it.
        TypeError: an unknown keyword, with the nearest known one.
    """

    def __init__(
        self,
        sampling_rate=16000,
        num_mel_bins=64,
        window_size: Optional[int] = None,
        hop_size: Optional[int] = None,
        fmin: Optional[float] = None,
        fmax: Optional[float] = None,
        max_length: Optional[int] = None,
        padding="longest",
        return_attention_mask=True,
        **kwargs,
    ):
        given = {"window_size": window_size, "hop_size": hop_size, "fmin": fmin, "fmax": fmax}
        settings = VARIANTS.get(sampling_rate, {}) | {name: value for name, value in given.items() if value is not None}
        if missing := [name for name in given if name not in settings]:
            raise ValueError(
                f"PANNs has networks for {' and '.join(map(str, VARIANTS))} Hz; sampling_rate={sampling_rate} needs "
                f"{', '.join(missing)} too"
            )
        for name, kinds in (("window_size", int), ("hop_size", int), ("fmin", (int, float)), ("fmax", (int, float))):
            _check_positive(name, settings[name], kinds)
        if not settings["fmin"] < settings["fmax"] <= sampling_rate / 2:
            raise ValueError(
                f"fmin={settings['fmin']} and fmax={settings['fmax']} must rise and end below half of "
                f"sampling_rate={sampling_rate}"
            )
        self.window_size = settings["window_size"]
        self.hop_size = settings["hop_size"]
        self.fmin = settings["fmin"]
        self.fmax = settings["fmax"]
        silence = 10.0 * math.log10(POWER_FLOOR)
        super().__init__(
            num_mel_bins,
            sampling_rate,
            max_length,
            padding,
            return_attention_mask,
            **{**kwargs, "padding_value": silence},
        )

    @property
    def hop_s(self) -> float:
        return self.hop_size / self.sampling_rate

    def num_samples(self, num_frames: int) -> int:
        """Samples from the middle of the first to the middle of the last of `num_frames` frames."""
        return (num_frames - 1) * self.hop_size

    def spectrograms(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        settings = (self.sampling_rate, self.num_mel_bins, self.window_size, self.hop_size, self.fmin, self.fmax)
        return [panns_log_mel(waveform, *settings) for waveform in waveforms]


PannsCnn14FeatureExtractor.register_for_auto_class()
