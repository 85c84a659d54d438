# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Feature extractor of PANNs' CNN14 (Kong et al., IEEE/ACM TASLP 2020): log-mels in torch, on any device.

The numerics are plain functions of tensors (`panns_log_mel` and the functions that it calls). The class adds checks,
padding, masks, saving and loading.
"""

import math
from collections.abc import Iterator
from typing import Optional

import torch

from .feature_extraction_dual_ssast import SpectrogramFeatureExtractor, _check_positive, cached, chunk_frames

POWER_FLOOR = 1e-10  # under the logarithm: -100 dB
# Slaney's mel scale: linear up to 1000 Hz, then logarithmic.
LINEAR_HZ_PER_MEL = 200.0 / 3.0
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / LINEAR_HZ_PER_MEL
LOG_STEP = math.log(6.4) / 27.0
# Settings of the published networks by sampling rate in Hz: samples, samples, Hz, Hz.
VARIANTS = {
    16000: {"window_size": 512, "hop_size": 160, "fmin": 50.0, "fmax": 8000.0},
    32000: {"window_size": 1024, "hop_size": 320, "fmin": 50.0, "fmax": 14000.0},
}


def hz_to_slaney_mel(hz: float) -> float:
    """Converts Hz to Slaney's mel scale."""
    return hz / LINEAR_HZ_PER_MEL if hz < BREAK_HZ else BREAK_MEL + math.log(hz / BREAK_HZ) / LOG_STEP


def slaney_mel_to_hz(mels: torch.Tensor) -> torch.Tensor:
    """Converts mels on Slaney's scale to Hz, any shape."""
    return torch.where(mels < BREAK_MEL, mels * LINEAR_HZ_PER_MEL, BREAK_HZ * ((mels - BREAK_MEL) * LOG_STEP).exp())


@cached
def slaney_mel_filters(
    num_mel_bins: int, window_size: int, sampling_rate: int, fmin: float, fmax: float, device: torch.device
) -> torch.Tensor:
    """
    Returns the mel filters, float32 (window_size / 2 + 1, num_mel_bins): triangles of equal area, linear in Hz,
    equally spaced on Slaney's mel scale (librosa's default).
    """
    edges = torch.linspace(hz_to_slaney_mel(fmin), hz_to_slaney_mel(fmax), num_mel_bins + 2, dtype=torch.float64)
    edges = slaney_mel_to_hz(edges)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]  # (mel,) each
    bins = torch.linspace(0, sampling_rate / 2, window_size // 2 + 1, dtype=torch.float64).unsqueeze(1)
    triangles = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0.0)
    return (triangles * 2.0 / (right - left)).to(device, torch.float32)


def panns_power(waveform: torch.Tensor, window_size: int, hop_size: int) -> Iterator[torch.Tensor]:
    """Yields the power spectrogram in chunks (frames, window_size / 2 + 1); the clip is mirrored at its ends."""
    padded = torch.nn.functional.pad(waveform, (0, max(window_size - waveform.shape[0], 0)))
    half = window_size // 2
    mirrored = torch.nn.functional.pad(padded.unsqueeze(0), (half, half), mode="reflect").squeeze(0)
    window = torch.hann_window(window_size, periodic=True, dtype=torch.float32, device=waveform.device)
    for frames in mirrored.unfold(0, window_size, hop_size).split(chunk_frames(waveform.device)):
        spectrum = torch.fft.rfft(frames * window)  # (frames, window_size / 2 + 1)
        yield spectrum.real.square() + spectrum.imag.square()


def panns_log_mel(
    waveform: torch.Tensor,
    sampling_rate: int,
    num_mel_bins: int,
    window_size: int,
    hop_size: int,
    fmin: float,
    fmax: float,
) -> torch.Tensor:
    """Computes PANNs' log-mels, 10 * log10 of the mel power and at least -100 dB: -> (frames, num_mel_bins)."""
    filters = slaney_mel_filters(num_mel_bins, window_size, sampling_rate, fmin, fmax, waveform.device)
    chunks = panns_power(waveform, window_size, hop_size)
    return torch.cat([10.0 * (power @ filters).clamp(min=POWER_FLOOR).log10() for power in chunks])


class PannsCnn14FeatureExtractor(SpectrogramFeatureExtractor):
    r"""
    Turns waveforms into the log-mel spectrograms, in dB, of PANNs' CNN14 (Kong et al., IEEE/ACM TASLP 2020). The model
    itself normalises each mel bin.

    Args:
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate in Hz: 16000 or 32000 for the published networks. A call rejects other rates: resample first.
        num_mel_bins (`int`, *optional*, defaults to 64):
            Mel bins from `fmin` to `fmax`.
        window_size (`int`, *optional*, defaults to 512 at 16 kHz and 1024 at 32 kHz):
            Window in samples.
        hop_size (`int`, *optional*, defaults to 160 at 16 kHz and 320 at 32 kHz):
            Hop from frame to frame in samples.
        fmin (`float`, *optional*, defaults to 50):
            Lowest frequency in Hz.
        fmax (`float`, *optional*, defaults to 8000 at 16 kHz and 14000 at 32 kHz):
            Highest frequency in Hz.
        max_length (`int`, *optional*):
            Longest output in frames of 10 ms. `None`: clips are never truncated.
        padding (`str` or `bool`, *optional*, defaults to `"longest"`):
            Padding of a call that names none: `"longest"` (or `True`), `"max_length"` or `False`.
        return_attention_mask (`bool`, *optional*, defaults to `True`):
            Whether a call that does not choose returns the mask.
        **kwargs:
            Settings that Transformers stores in `preprocessor_config.json`.

    Raises:
        ValueError: A value is impossible, or another sampling rate lacks the four settings that depend on it.
        TypeError: A keyword is unknown. The message names the nearest known one.
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
        if settings["window_size"] % 2:
            raise ValueError(f"window_size must be even, got {settings['window_size']}")
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
        """Seconds from frame to frame."""
        return self.hop_size / self.sampling_rate

    def num_samples(self, num_frames: int) -> int:
        """Returns the number of samples from the middle of the first to the middle of the last frame."""
        return (num_frames - 1) * self.hop_size

    @property
    def shortest_samples(self) -> int:
        """Samples that shorter clips are zero-padded to: a window."""
        return self.window_size

    def spectrograms(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        """Computes log-mels by `panns_log_mel`: per clip float32 (samples,) -> float32 (frames, num_mel_bins)."""
        settings = (self.sampling_rate, self.num_mel_bins, self.window_size, self.hop_size, self.fmin, self.fmax)
        return [panns_log_mel(waveform, *settings) for waveform in waveforms]


PannsCnn14FeatureExtractor.register_for_auto_class()
