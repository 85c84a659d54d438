# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Feature extractor of SSAST and its family (Gong et al., AAAI 2022): Kaldi-compatible log-mels in torch, on any device.

The numerics are plain functions of tensors (`kaldi_log_mel` and the functions that it calls). The classes add checks,
padding, masks, saving and loading. Nothing needs torchaudio.
"""

import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Optional, Union

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

logger = logging.get_logger(__name__)

LOG_FLOOR = torch.finfo(torch.float32).eps  # 1.1920929e-07, Kaldi's floor under the logarithm
PREEMPHASIS = 0.97
LOWEST_MEL_HZ = 20.0
# Frames transformed at a time, by the extractors of all families. On a CPU they fit its cache. Elsewhere they keep the
# device busy, and take 0.3 GB for windows of 25 ms at 16 kHz, whatever the length of the audio.
CHUNK_FRAMES, DEVICE_CHUNK_FRAMES = 1024, 32768
BAND_FILTERS = 16  # mel filters that are multiplied at a time: fewer make small products, more make zeros

PADDINGS = {
    True: "longest",
    False: "do_not_pad",
    "longest": "longest",
    "max_length": "max_length",
    "do_not_pad": "do_not_pad",
}


def frame_sizes(sampling_rate: int, frame_length_ms: float, frame_shift_ms: float) -> tuple[int, int, int]:
    """
    Returns samples per window, samples per shift, and FFT points (the next power of two), as Kaldi rounds them.

    Args:
        sampling_rate: Sampling rate in Hz.
        frame_length_ms: Window in milliseconds.
        frame_shift_ms: Shift from frame to frame in milliseconds.
    """
    window = int(sampling_rate * frame_length_ms * 0.001)
    return window, int(sampling_rate * frame_shift_ms * 0.001), 1 << (window - 1).bit_length()


def hz_to_mel(hz):
    """Converts Hz, a number or a tensor, to Kaldi's mel scale: 1127 ln(1 + f / 700)."""
    return 1127.0 * (torch.log(1.0 + hz / 700.0) if isinstance(hz, torch.Tensor) else math.log(1.0 + hz / 700.0))


def cached(function):
    """Caches tensors that depend on the arguments alone: not on torch's default dtype or device, or inference mode."""

    @functools.lru_cache(maxsize=16)
    @functools.wraps(function)
    def make(*args):
        with torch.inference_mode(False), torch.device("cpu"):
            return function(*args)

    return make


@cached
def kaldi_mel_filters(num_mel_bins: int, num_fft: int, sampling_rate: int, device: torch.device) -> torch.Tensor:
    """
    Returns the mel filters: triangles of height one, linear in mel, from 20 Hz to the Nyquist frequency.

    In float32 as torchaudio computes them; the Nyquist bin carries no weight.

    Args:
        num_mel_bins: Number of filters.
        num_fft: FFT points.
        sampling_rate: Sampling rate in Hz.
        device: Device of the result.

    Returns:
        (num_fft / 2 + 1, num_mel_bins).
    """
    lowest, highest = hz_to_mel(LOWEST_MEL_HZ), hz_to_mel(0.5 * sampling_rate)
    width = (highest - lowest) / (num_mel_bins + 1)
    left = lowest + torch.arange(num_mel_bins, dtype=torch.float32).unsqueeze(1) * width  # (mel, 1)
    center, right = left + width, left + 2.0 * width
    bins = torch.arange(num_fft // 2, dtype=torch.float32)
    mels = hz_to_mel(sampling_rate / num_fft * bins).unsqueeze(0)  # (1, fft / 2)
    rising = (mels - left) / (center - left)
    falling = (right - mels) / (right - center)
    triangles = torch.minimum(rising, falling).clamp(min=0.0)  # (mel, fft / 2)
    return torch.nn.functional.pad(triangles, (0, 1)).T.contiguous().to(device, torch.float32)


@cached
def hann_window(num_samples: int, device: torch.device) -> torch.Tensor:
    """Returns the symmetric Hann window, Kaldi's `hanning`: (num_samples,)."""
    return torch.hann_window(num_samples, periodic=False, dtype=torch.float32, device=device)


@cached
def kaldi_mel_bands(
    num_mel_bins: int, num_fft: int, sampling_rate: int, device: torch.device
) -> list[tuple[slice, slice, torch.Tensor]]:
    """
    Cuts `kaldi_mel_filters` into bands of neighbouring filters, without the zeros outside of a band.

    A filter covers few FFT bins: the products with the bands take a quarter of the time of the one with all filters.

    Returns:
        Per band its FFT bins, its mel bins, and its filters (FFT bins, mel bins).
    """
    filters = kaldi_mel_filters(num_mel_bins, num_fft, sampling_rate, device)
    bands = []
    for first in range(0, num_mel_bins, BAND_FILTERS):
        mel = slice(first, min(first + BAND_FILTERS, num_mel_bins))
        covered = filters[:, mel].any(dim=1).nonzero().flatten().tolist() or [0]  # narrow filters miss all FFT bins
        bins = slice(covered[0], covered[-1] + 1)
        bands.append((bins, mel, filters[bins, mel].contiguous()))
    return bands


def kaldi_log_mel(
    waveforms: list[torch.Tensor],
    sampling_rate: int,
    num_mel_bins: int = 128,
    frame_length_ms: float = 25.0,
    frame_shift_ms: float = 10.0,
) -> list[torch.Tensor]:
    """
    Computes Kaldi's fbank with SSAST's settings: mean of the clip removed, Hann windows without edges, pre-emphasis
    0.97, power spectrum, natural logarithm with floor 1.19e-07.

    Args:
        waveforms: float32 tensors (samples,), of any lengths, on one device. A clip shorter than a window is
            zero-padded to one.
        sampling_rate: Sampling rate in Hz.
        num_mel_bins: Mel bins from 20 Hz to the Nyquist frequency.
        frame_length_ms: Window in milliseconds.
        frame_shift_ms: Shift from frame to frame in milliseconds.

    Returns:
        Per clip a float32 tensor (frames, num_mel_bins), frames = 1 + (samples - window) // shift.
    """
    sizes = frame_sizes(sampling_rate, frame_length_ms, frame_shift_ms)
    # As many clips at a time as fill a chunk: a copy of all of them would not fit a CPU's cache, and its fresh memory
    # would take up to a third of the time.
    groups, room = [], 0
    for waveform in waveforms:
        num_frames = -(-max(len(waveform), sizes[0]) // sizes[1])
        if not groups or num_frames > room:
            groups.append([])
            room = chunk_frames(waveform.device)
        groups[-1].append(waveform)
        room -= num_frames
    return [log_mel for group in groups for log_mel in _joined_log_mel(group, sizes, num_mel_bins, sampling_rate)]


def _joined_log_mel(
    waveforms: list[torch.Tensor], sizes: tuple[int, int, int], num_mel_bins: int, sampling_rate: int
) -> list[torch.Tensor]:
    """Computes `kaldi_log_mel` of clips that are framed as one; `sizes` are those of `frame_sizes`."""
    window, shift, num_fft = sizes
    # The clips are laid end to end at multiples of the shift, so that one strided view frames them all without a
    # copy. The one or two frames that straddle two clips are computed and dropped.
    steps = [-(-max(len(waveform), window) // shift) for waveform in waveforms]
    starts = [0, *itertools.accumulate(steps)]
    joined = waveforms[0].new_empty(starts[-1] * shift)
    for waveform, part in zip(waveforms, joined.split([count * shift for count in steps])):
        torch.sub(waveform, waveform.mean(), out=part[: len(waveform)])
        part[len(waveform) :].zero_()
    features = log_mel_of_frames(joined.unfold(0, window, shift), num_fft, num_mel_bins, sampling_rate)
    lengths = [1 + (max(len(waveform), window) - window) // shift for waveform in waveforms]
    return [features[start : start + length] for start, length in zip(starts, lengths)]


def chunk_frames(device: torch.device) -> int:
    """Returns the number of frames that are transformed at a time on a device."""
    return CHUNK_FRAMES if device.type == "cpu" else DEVICE_CHUNK_FRAMES


def log_mel_of_frames(frames: torch.Tensor, num_fft: int, num_mel_bins: int, sampling_rate: int) -> torch.Tensor:
    """Computes log-mels of framed samples: float32 (frames, window) -> float32 (frames, num_mel_bins)."""
    window = frames.shape[1]
    hann = hann_window(window, frames.device)[1:]
    bands = kaldi_mel_bands(num_mel_bins, num_fft, sampling_rate, frames.device)
    features = frames.new_empty(len(frames), num_mel_bins)
    size = chunk_frames(frames.device)
    padded = frames.new_zeros(min(len(frames), size), num_fft)
    for chunk, log_mel in zip(frames.split(size), features.split(size)):
        padded = padded[: len(chunk)]
        chunk = chunk - chunk.mean(dim=1, keepdim=True)
        # The window begins with a zero, so the first sample needs no pre-emphasis. Product and difference are rounded
        # one after the other as in torchaudio: fused, they differ by 1e-2 in the quietest bins.
        torch.sub(chunk[:, 1:], PREEMPHASIS * chunk[:, :-1], out=padded[:, 1:window])
        padded[:, 1:window] *= hann
        squares = torch.view_as_real(torch.fft.rfft(padded)).square_()  # (frames, fft / 2 + 1, 2)
        power = squares[..., 0] + squares[..., 1]  # abs() would cost as much as all the rest
        for bins, mel, filters in bands:
            torch.mm(power[:, bins], filters, out=log_mel[:, mel])
        log_mel.clamp_(min=LOG_FLOOR).log_()
    return features


class SpectrogramFeatureExtractor(SequenceFeatureExtractor):
    """
    Checks waveforms, pads and masks spectrograms, saves and loads: the base class of the feature extractors.

    A subclass defines `spectrograms`, `num_samples` and `hop_s`, and `_normalize` if it normalises.

    Args:
        num_mel_bins (`int`):
            Mel bins of the spectrogram.
        sampling_rate (`int`):
            Sampling rate of the audio in Hz.
        max_length (`int`, *optional*):
            Longest output in frames. `None`: clips are never truncated.
        padding (`str` or `bool`):
            Padding of a call that names none.
        return_attention_mask (`bool`):
            Whether a call that does not choose returns the mask.
        padding_value (`float`):
            Value of a padded frame.
        **kwargs:
            Settings that Transformers stores in `preprocessor_config.json`.

    Raises:
        ValueError: A value is impossible.
        TypeError: A keyword is unknown. The message names the nearest known one.
    """

    model_input_names = ["input_values", "attention_mask"]
    LONG_CLIPS = "Pass truncation=False to keep whole clips."

    def __init__(
        self,
        num_mel_bins: int,
        sampling_rate: int,
        max_length: Optional[int],
        padding,
        return_attention_mask: bool,
        padding_value: float,
        **kwargs,
    ):
        kwargs.pop("feature_size", None)  # Transformers stores it in preprocessor_config.json
        _reject_unknown(type(self).__name__, type(self).__init__, kwargs, STORED_KEYS)
        _check_positive("sampling_rate", sampling_rate, int)
        _check_positive("num_mel_bins", num_mel_bins, int)
        if max_length is not None:
            _check_positive("max_length", max_length, int)
        super().__init__(feature_size=num_mel_bins, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.num_mel_bins = num_mel_bins
        self.max_length = max_length
        self.padding = _padding_strategy(padding)
        _check_flag("return_attention_mask", return_attention_mask)
        self.return_attention_mask = return_attention_mask

    @classmethod
    def from_dict(cls, feature_extractor_dict, **kwargs):
        """
        Makes an extractor from stored settings (a `dict`). Keys of another version or tool are dropped.

        Settings among the keywords replace stored ones, also those that an earlier version did not store.
        """
        own = set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
        settings = {k: v for k, v in feature_extractor_dict.items() if k in own | STORED_KEYS}
        settings |= {name: kwargs.pop(name) for name in own & set(kwargs)}
        return super().from_dict(settings, **kwargs)

    @property
    def hop_s(self) -> float:
        """Seconds from frame to frame."""
        raise NotImplementedError

    def num_samples(self, num_frames: int) -> int:
        """Returns the number of samples that `num_frames` frames span."""
        raise NotImplementedError

    @property
    def shortest_samples(self) -> int:
        """Samples that shorter clips are zero-padded to."""
        return self.num_samples(1)

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of a clip of `num_samples` samples, before truncation."""
        first, second = self.num_samples(1), self.num_samples(2)
        return 1 + (max(num_samples, self.shortest_samples) - first) // (second - first)

    def spectrograms(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        """Computes log-mels: per clip float32 (samples,) -> float32 (frames, num_mel_bins)."""
        raise NotImplementedError

    @property
    def max_samples(self) -> Optional[int]:
        """Longest clip in samples, which fills `max_length` frames; `None` without `max_length`."""
        return None if self.max_length is None else self.num_samples(self.max_length)

    @property
    def max_seconds(self) -> Optional[float]:
        """Longest clip in seconds, which fills `max_length` frames; `None` without `max_length`."""
        return None if self.max_length is None else self.max_samples / self.sampling_rate

    def __call__(
        self,
        raw_speech: Union[np.ndarray, torch.Tensor, list],
        sampling_rate: Optional[int] = None,
        padding: Union[bool, str, None] = None,
        max_length: Optional[int] = None,
        truncation: bool = True,
        return_attention_mask: Optional[bool] = None,
        return_tensors: Optional[str] = None,
        pad_to_multiple_of: Optional[int] = None,
        device: Union[str, torch.device, None] = None,
        return_waveforms: bool = False,
        **unknown,
    ) -> BatchFeature:
        """
        Extracts the features of one clip or a batch.

        Args:
            raw_speech: One mono clip (samples,) as array, tensor or list of floats; or a batch of any lengths: a list
                of those, or an array or tensor (batch, samples). Floats, nominally in [-1, 1]. The features of a
                tensor are computed and stay on its device.
            sampling_rate: Sampling rate of `raw_speech` in Hz, checked against the extractor's.
            padding: `"longest"`, `"max_length"` or `False`; `None` takes the extractor's setting. Without
                `return_tensors` it leaves each clip its own length, so that `pad` later builds the right mask; only an
                extractor without masks pads to `max_length` then, too.
            max_length: Longest output in frames; `None` takes the extractor's setting.
            truncation: Whether clips are cut at `max_length` frames, if there is one, with one warning.
            return_attention_mask: Whether to return the mask; `None` takes the extractor's setting.
            return_tensors: `"pt"` or `"np"`; `None` gives a list of arrays (tensors for tensor input).
            pad_to_multiple_of: Pads to a multiple of this many frames, unless clips keep their own length.
            device: Device that computes the features. The default is the clips' own.
            return_waveforms: Whether to return waveforms of any rate instead of spectrograms, for a model's
                `embed_padded`. Only `raw_speech`, which may also name files, and `sampling_rate` are used then.

        Returns:
            `input_values` (batch, frames, num_mel_bins) and, if asked for, `attention_mask` (batch, frames), 1 for
                audio and 0 for padding. One clip has the batch dimension, too. Waveforms: tensors `input_values`
                (batch, samples), padded with zeros at the end, `num_samples` (batch,) and `sampling_rates` (batch,),
                and this `feature_extractor`.

        Raises:
            ValueError: Another sampling rate, more than one channel, no, empty or non-finite audio, integer samples.
            TypeError: A keyword is unknown.
            ImportError: Files are named, but soundfile is not installed.

        Example:
            ```python
            >>> features = extractor([clip, longer_clip], sampling_rate=16000, return_tensors="pt")
            >>> features["input_values"].shape  # 1 s and 3 s
            torch.Size([2, 298, 128])
            ```
        """
        _reject_unknown(f"{type(self).__name__}()", type(self).__call__, unknown)
        if return_waveforms:
            return self._waveforms(raw_speech, sampling_rate)
        self._check_sampling_rate(sampling_rate)
        max_length = self.max_length if max_length is None else max_length
        if max_length is not None:
            _check_positive("max_length", max_length, int)
        clips = self.as_clips(raw_speech)
        clips = clips if device is None else [clip.to(device) for clip in clips]
        features = self.normalized_log_mel(clips, max_length if truncation else None)
        if return_tensors is None and not _holds_tensors(raw_speech):
            features = [feature.cpu().numpy() for feature in features]
        return_mask = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        if padding is None:
            padding = self.padding if return_tensors or not (return_mask or self.padding == "longest") else False
        return self.pad(
            [{"input_values": feature} for feature in features],
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_mask,
            return_tensors=return_tensors,
        )

    @staticmethod
    def as_clips(raw_speech: Union[np.ndarray, torch.Tensor, list]) -> list[torch.Tensor]:
        """
        Checks the audio of a call and splits it into clips.

        Args:
            raw_speech: One clip or a batch in any form that a call accepts.

        Returns:
            Per clip a float32 tensor (samples,).

        Raises:
            ValueError: No clip, an empty clip, more than one channel, integer or non-finite samples.
            TypeError: Neither an array, nor a tensor, nor a list.
        """
        return [_check_waveform(clip, index) for index, clip in enumerate(_split_batch(raw_speech))]

    def log_mel(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        """
        Computes log-mels before truncation and normalisation, without gradients.

        Args:
            waveforms: float32 tensors (samples,) on one device.

        Returns:
            Per clip a float32 tensor (frames, num_mel_bins).
        """
        with torch.no_grad(), torch.autocast(waveforms[0].device.type, enabled=False):
            return self.spectrograms(waveforms)

    def normalized_log_mel(self, waveforms: list[torch.Tensor], max_length: Optional[int]) -> list[torch.Tensor]:
        """
        Computes the features of clips that `as_clips` has checked: a call's `input_values` before its padding.

        Args:
            waveforms: float32 tensors (samples,) on one device. The host does not wait for the device.
            max_length: Frames at which clips are cut, with one warning. `None`: they are not.

        Returns:
            Per clip a float32 tensor (frames, num_mel_bins).
        """
        features = self.log_mel(waveforms)
        if max_length is not None:
            features = self._truncate(features, max_length)
        return [self._normalize(feature) for feature in features]

    def pad(
        self,
        processed_features,
        padding: Union[bool, str, None] = None,
        max_length: Optional[int] = None,
        truncation: bool = False,
        pad_to_multiple_of: Optional[int] = None,
        return_attention_mask: Optional[bool] = None,
        return_tensors: Optional[str] = None,
    ) -> BatchFeature:
        """
        Pads the `input_values` (frames, num_mel_bins) of several clips on `padding_side` and joins them, by the rules
        of Transformers' feature extractors.

        Args:
            processed_features: A list of mappings with `input_values`, for example from a data collator, or one
                mapping with a list of them. An `attention_mask` (frames,) of theirs is padded with zeros; other
                entries, such as labels, are kept.
            padding: `"longest"`, `"max_length"` or `False`; `None` takes the extractor's setting.
            max_length: Frames of `padding="max_length"` and of `truncation`, rounded up to `pad_to_multiple_of`.
            truncation: Whether clips are cut at `max_length`.
            pad_to_multiple_of: Pads to a multiple of this many frames, unless `padding=False`.
            return_attention_mask: Whether to return the mask; `None` takes the extractor's setting.
            return_tensors: `"pt"` or `"np"`; `None` gives lists.

        Returns:
            `input_values` (batch, frames, num_mel_bins), `attention_mask` (batch, frames), and the other entries.
                Float64 becomes float32. `"np"` gives a list if the clips keep different lengths.

        Raises:
            ValueError: No `max_length` where it is needed, tensors of clips that keep different lengths, an entry that
                only some clips have, or one that makes no tensor.
        """
        if max_length is None and padding is None and self.padding == "max_length":
            max_length = self.max_length
        padding = _padding_strategy(self.padding if padding is None else padding)
        if max_length is None and (truncation or padding == "max_length"):
            cause = "truncation=True" if truncation else "padding='max_length'"
            raise ValueError(f"{cause} needs a max_length in frames: pass max_length")
        if pad_to_multiple_of is not None:
            _check_positive("pad_to_multiple_of", pad_to_multiple_of, int)
        multiple = pad_to_multiple_of or 1
        limit = None if max_length is None else (max_length + multiple - 1) // multiple * multiple
        if not len(processed_features):
            raise ValueError("the batch is empty: pass at least one clip")
        if isinstance(processed_features, Mapping):
            columns = dict(processed_features)
        else:
            _check_same_keys(processed_features)
            columns = {key: [item[key] for item in processed_features] for key in processed_features[0]}
        if "input_values" not in columns:
            raise ValueError(f"clips to pad need input_values, got {', '.join(map(str, columns)) or 'nothing'}")
        for key, rows in columns.items():
            if len(rows) != len(columns["input_values"]):
                raise ValueError(
                    f"{key} has {len(rows)} entries for {len(columns['input_values'])} clips: give one each"
                )
        as_tensors = isinstance(columns["input_values"][0], torch.Tensor)
        values = [_as_tensor(value) for value in columns.pop("input_values")]
        masks = [_as_tensor(mask) for mask in columns.pop("attention_mask", ())]
        masks = masks or [value.new_ones(len(value), dtype=torch.long) for value in values]
        if truncation:
            values, masks = [value[:limit] for value in values], [mask[:limit] for mask in masks]
        targets = [len(value) for value in values]
        if padding != "do_not_pad":  # a clip that is longer than max_length and not cut keeps its length
            target = max(targets) if padding == "longest" else limit
            targets = [(max(n, target) + multiple - 1) // multiple * multiple for n in targets]
        left = self.padding_side == "left"
        padded = {"input_values": (values, self.padding_value)}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            padded["attention_mask"] = (masks, 0)
        as_torch = str(return_tensors) in ("pt", "TensorType.PYTORCH")
        if return_tensors is None or (not as_torch and len(set(targets)) > 1):
            batch = {
                key: [_join([clip], n, value, left)[0] for clip, n in zip(clips, targets)]
                for key, (clips, value) in padded.items()
            }
            if not as_tensors:
                batch = {key: [row.cpu().numpy() for row in rows] for key, rows in batch.items()}
            return BatchFeature(batch | columns)
        if len(set(targets)) > 1:
            raise ValueError(
                f"clips of {min(targets)} to {max(targets)} frames do not fit into one tensor: use padding='longest'"
            )
        joined = {key: _join(clips, targets[0], value, left) for key, (clips, value) in padded.items()}
        stacked = BatchFeature(joined | {key: _stack(rows, key) for key, rows in columns.items()})
        if as_torch:
            return stacked
        return BatchFeature({key: value.cpu().numpy() for key, value in stacked.items()}, tensor_type=return_tensors)

    def _normalize(self, log_mel):
        return log_mel

    def _truncate(self, features: list[torch.Tensor], max_length: int) -> list[torch.Tensor]:
        if any(feature.shape[0] > max_length for feature in features):
            logger.warning_once(
                f"Clips longer than max_length={max_length} frames ({max_length * self.hop_s:g} s) are cut there. "
                f"{self.LONG_CLIPS}"
            )
        return [feature[:max_length] for feature in features]

    def _waveforms(self, raw_speech, sampling_rate: Optional[float]) -> BatchFeature:
        """Joins clips and files of any rate and length to a padded batch of samples."""
        names_files = isinstance(raw_speech, list) and any(isinstance(clip, str) for clip in raw_speech)
        clips = raw_speech if names_files else _split_batch(raw_speech)
        if sampling_rate is None:
            if not all(isinstance(clip, str) for clip in clips):
                self._check_sampling_rate(None)
            sampling_rate = self.sampling_rate
        _check_positive("sampling_rate", sampling_rate, (int, float, np.integer))
        clips = [_read_file(clip) if isinstance(clip, str) else (clip, sampling_rate) for clip in clips]
        waveforms = [_check_waveform(clip, index).cpu() for index, (clip, _) in enumerate(clips)]
        return BatchFeature(
            {
                "input_values": torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
                "num_samples": torch.tensor([len(waveform) for waveform in waveforms], device="cpu"),
                "sampling_rates": torch.tensor([rate for _, rate in clips], dtype=torch.float32, device="cpu"),
                "feature_extractor": self,  # its settings: the model computes the features of its windows
            }
        )

    def _check_sampling_rate(self, sampling_rate: Optional[int]):
        if sampling_rate is None:
            logger.warning_once(
                f"{type(self).__name__} was called without sampling_rate and assumes {self.sampling_rate} Hz. Pass "
                "sampling_rate to have it checked."
            )
            return
        _check_positive("sampling_rate", sampling_rate, (int, float, np.integer))
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the audio is at {sampling_rate} Hz, but this feature extractor needs {self.sampling_rate} Hz: "
                f"resample it first, for example soxr.resample(audio, {sampling_rate}, {self.sampling_rate})"
            )


class DualSSASTFeatureExtractor(SpectrogramFeatureExtractor):
    r"""
    Turns waveforms into normalised log-mel spectrograms for the Dual SSAST and ASiT models.

    Normalises by `(fbank - mean) / (2 * std)`; the factor 2 is the convention of SSAST and AST. Padded frames hold
    `padding_value`, the value of the originals' zeros after normalisation.

    Args:
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate in Hz. A call rejects other rates: resample first.
        num_mel_bins (`int`, *optional*, defaults to 128):
            Mel bins from 20 Hz to the Nyquist frequency.
        max_length (`int`, *optional*, defaults to 1024):
            Longest output in frames; 10.24 s at a shift of 10 ms.
        mean (`float`, *optional*, defaults to -4.2677393):
            Mean of the training set's log-mels. The default is that of AudioSet and LibriSpeech, which the SSAST
            checkpoints use.
        std (`float`, *optional*, defaults to 4.5689974):
            Standard deviation of the training set's log-mels.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether the log-mels are normalised.
        padding (`str` or `bool`, *optional*, defaults to `"longest"`):
            Padding of a call that names none: `"longest"` (or `True`), `"max_length"` or `False`.
        return_attention_mask (`bool`, *optional*, defaults to `True`):
            Whether a call that does not choose returns the mask.
        frame_length_ms (`float`, *optional*, defaults to 25.0):
            Window in milliseconds.
        frame_shift_ms (`float`, *optional*, defaults to 10.0):
            Shift from frame to frame in milliseconds.
        min_samples (`int`, *optional*):
            Samples that shorter clips are padded to, with zeros at the end, before the features are computed:
            PretrainedSED's padding. Such padding counts as audio.
        **kwargs:
            Settings that Transformers stores in `preprocessor_config.json`.

    Raises:
        ValueError: A value is impossible.
        TypeError: A keyword is unknown. The message names the nearest known one.

    Example:
        ```python
        >>> from modeling_dual_ssast import DualSSASTFeatureExtractor

        >>> extractor = DualSSASTFeatureExtractor()
        >>> features = extractor(waveform, sampling_rate=16000, return_tensors="pt")
        ```
    """

    LONG_CLIPS = "A clip classifier's classify_windows and an encoder's embed read whole clips."

    def __init__(
        self,
        sampling_rate=16000,
        num_mel_bins=128,
        max_length=1024,
        mean=-4.2677393,
        std=4.5689974,
        do_normalize=True,
        padding="longest",
        return_attention_mask=True,
        frame_length_ms=25.0,
        frame_shift_ms=10.0,
        min_samples=None,
        **kwargs,
    ):
        _check_positive("max_length", max_length, int)
        if min_samples is not None:
            _check_positive("min_samples", min_samples, int)
        _check_positive("frame_length_ms", frame_length_ms, (int, float))
        _check_positive("frame_shift_ms", frame_shift_ms, (int, float))
        try:
            self.mean, self.std = float(mean), float(std)
        except (TypeError, ValueError, OverflowError):  # an integer of a file may have any number of digits
            raise ValueError(f"mean and std must be numbers, got mean={mean!r:.50} and std={std!r:.50}") from None
        if self.std <= 0 or not math.isfinite(self.std) or not math.isfinite(self.mean):
            raise ValueError(f"mean and std must be finite and std positive, got mean={mean} and std={std}")
        _check_flag("do_normalize", do_normalize)
        self.do_normalize = do_normalize
        self.frame_length_ms = frame_length_ms
        self.frame_shift_ms = frame_shift_ms
        self.min_samples = min_samples
        padding_value = self._normalize(0.0)
        if abs(padding_value) > torch.finfo(torch.float32).max:
            raise ValueError(
                f"mean={mean} and std={std} make {padding_value:.3g} of 0, beyond float32; take a larger std"
            )
        super().__init__(
            num_mel_bins,
            sampling_rate,
            max_length,
            padding,
            return_attention_mask,
            **{**kwargs, "padding_value": padding_value},
        )
        window, shift, _ = frame_sizes(sampling_rate, frame_length_ms, frame_shift_ms)
        if window < 2 or shift < 1:
            raise ValueError(
                f"sampling_rate={sampling_rate}, frame_length_ms={frame_length_ms} and frame_shift_ms={frame_shift_ms} "
                f"make windows of {window} samples, {shift} apart; take a higher sampling rate or longer windows"
            )

    @classmethod
    def original(cls, **kwargs) -> "DualSSASTFeatureExtractor":
        """Makes SSAST's own preprocessing: zero-padding to `max_length` before the normalisation, and no mask."""
        return cls(padding="max_length", return_attention_mask=False, **kwargs)

    def num_samples(self, num_frames: int) -> int:
        """Returns the number of samples that `num_frames` frames span, rounded as `frame_sizes` rounds."""
        window, shift, _ = frame_sizes(self.sampling_rate, self.frame_length_ms, self.frame_shift_ms)
        return (num_frames - 1) * shift + window

    @property
    def shortest_samples(self) -> int:
        """Samples that shorter clips are zero-padded to: a window, or `min_samples`."""
        return max(self.num_samples(1), self.min_samples or 0)

    @property
    def hop_s(self) -> float:
        """Seconds from frame to frame."""
        return self.frame_shift_ms / 1000

    def spectrograms(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        """Computes log-mels by `kaldi_log_mel`: per clip float32 (samples,) -> float32 (frames, num_mel_bins)."""
        if self.min_samples is not None:
            missing = [max(self.min_samples - len(waveform), 0) for waveform in waveforms]
            waveforms = [torch.nn.functional.pad(waveform, (0, count)) for waveform, count in zip(waveforms, missing)]
        return kaldi_log_mel(
            waveforms, self.sampling_rate, self.num_mel_bins, self.frame_length_ms, self.frame_shift_ms
        )

    def _normalize(self, log_mel):
        if not self.do_normalize:
            return log_mel
        centred = log_mel - self.mean
        centred /= 2 * self.std  # in place: a second tensor would cost as much as the division
        return centred


# Keys that Transformers writes into preprocessor_config.json beside the constructor's own arguments.
STORED_KEYS = {"auto_map", "feature_extractor_type", "padding_side", "processor_class", "name_or_path"}


def _reject_unknown(caller: str, function, unknown: dict, allowed: set = frozenset()):
    known = [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs", "unknown")]
    for key in unknown:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known)}"
            raise TypeError(f"{caller} got an unexpected keyword {key!r}{hint}")


def _padding_strategy(padding) -> str:
    padding = getattr(padding, "value", padding)  # Transformers' PaddingStrategy is an enum
    if not isinstance(padding, (bool, str)) or padding not in PADDINGS:
        raise ValueError(f"padding must be 'longest', 'max_length' or False, got {padding!r}")
    return PADDINGS[padding]


def _check_positive(name: str, value, kinds):
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive {'integer' if kinds is int else 'number'}, got {value!r}")


def _check_flag(name: str, value):
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def _holds_tensors(raw_speech) -> bool:
    first = raw_speech[0] if isinstance(raw_speech, (list, tuple)) and len(raw_speech) else raw_speech
    return isinstance(first, torch.Tensor)


def _split_batch(raw_speech) -> list:
    """Splits one clip or a batch in any accepted form into a list of clips."""
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        if raw_speech.ndim == 1:
            return [raw_speech]
        if raw_speech.ndim != 2:
            raise ValueError(
                f"expected one clip (samples,) or a batch (batch, samples), got shape {tuple(raw_speech.shape)}: "
                "average the channels first"
            )
        if raw_speech.shape[1] <= 8 < raw_speech.shape[0]:
            raise ValueError(
                f"shape {tuple(raw_speech.shape)} looks like one clip of {raw_speech.shape[1]} channels, (samples, "
                "channels), but a batch is (batch, samples): average the channels first"
            )
        if not len(raw_speech):
            raise ValueError("the batch is empty: pass at least one clip")
        return list(raw_speech)
    if not isinstance(raw_speech, (list, tuple)):
        raise TypeError(f"expected arrays, tensors or lists of floats, got {type(raw_speech).__name__}")
    if not len(raw_speech):
        raise ValueError("the batch is empty: pass at least one clip")
    is_batch = isinstance(raw_speech[0], (list, tuple)) or getattr(raw_speech[0], "ndim", 0) > 0
    return list(raw_speech) if is_batch else [raw_speech]


def _read_file(path: str) -> tuple[np.ndarray, int]:
    """Reads an audio file: the mean of its channels, float32 (samples,), and its sampling rate in Hz."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"{path}: pip install soundfile to read files here, or read them first") from error
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def _check_waveform(clip, index: int) -> torch.Tensor:
    """Checks one clip in any accepted form and converts it to a float32 tensor (samples,)."""
    is_tensor = isinstance(clip, torch.Tensor)
    clip = clip if is_tensor else np.asarray(clip)
    if clip.ndim != 1:
        raise ValueError(
            f"clip {index} has shape {tuple(clip.shape)}, expected (samples,): average the channels of stereo first"
        )
    if not len(clip):
        raise ValueError(f"clip {index} is empty: leave it out of the batch")
    if not is_tensor and clip.dtype.kind not in "fiub":
        what = "names of files: read them first" if clip.dtype.kind in "US" else "no numbers: pass a list of arrays"
        raise ValueError(f"clip {index} holds {clip.dtype} values, expected floats in [-1, 1], {what}")
    if not (clip.is_floating_point() if is_tensor else np.issubdtype(clip.dtype, np.floating)):
        raise ValueError(
            f"clip {index} holds {clip.dtype} samples, expected floats in [-1, 1]: divide 16-bit samples by 32768"
        )
    # Torch takes no negative strides or foreign byte orders, and warns of read-only arrays.
    tensor = clip.to(torch.float32) if is_tensor else torch.from_numpy(np.require(clip, np.float32, ["C", "W"]))
    # One pass: a single NaN or infinity makes the sum one. So do huge samples, hence the count.
    if not torch.isfinite(tensor.sum()) and (count := int((~torch.isfinite(tensor)).sum())):
        raise ValueError(f"clip {index} holds {count} NaN or infinite samples: repair the recording or leave it out")
    return tensor


def _as_tensor(value) -> torch.Tensor:
    """Converts arrays and lists, also under another default device; float64 becomes float32."""
    value = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    return value.float() if value.dtype == torch.float64 else value


def _check_same_keys(items):
    """Raises `ValueError` if an item lacks a key of another: a mask or a label would be lost."""
    for index, item in enumerate(items):
        for key in sorted(items[0].keys() ^ item.keys(), key=str):
            has, lacks = (index, 0) if key in item else (0, index)
            raise ValueError(f"item {has} of the batch has {key}, but item {lacks} lacks it: give it to all or to none")


def _stack(rows, key: str) -> torch.Tensor:
    """Makes a tensor of a batch's entries `key`."""
    try:
        return _as_tensor(torch.stack(list(rows)) if isinstance(rows[0], torch.Tensor) else rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{key} makes no tensor ({type(rows[0]).__name__} in the first item): leave it out, or give all items "
            "numbers of one shape"
        ) from error


def _join(clips: list[torch.Tensor], length: int, value: float, left: bool) -> torch.Tensor:
    """Joins clips (rows, ...), padded with `value`: (clips, length, ...). Each row is written once."""
    dtype = functools.reduce(torch.promote_types, (clip.dtype for clip in clips))
    joined = clips[0].new_empty((len(clips), length, *clips[0].shape[1:]), dtype=dtype)
    for index, clip in enumerate(clips):
        first = length - len(clip) if left else 0
        joined[index, :first] = value
        joined[index, first : first + len(clip)] = clip
        joined[index, first + len(clip) :] = value
    return joined


DualSSASTFeatureExtractor.register_for_auto_class()
