# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Embeddings of clips of any rate and length, for every encoder of the project: `model.embed(waveforms, sampling_rate)`,
and over time `model.embed_frames(...)`. Knows the fusion alone, and a feature extractor by its methods.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple, Optional, Union

import numpy as np
import torch
from transformers import AutoFeatureExtractor

from .fusion_dual_ssast import time_frames

Waveforms = Union[np.ndarray, torch.Tensor, list]

# Of models without a limit, whose maps of an hour fill no memory: 64 examples of VGGish, 192 time frames of CNN14.
WINDOW_FRAMES = 6144


class FrameEmbeddings(NamedTuple):
    """
    What a model says of one clip over time.

    values: float32 (frames, model.frame_size)
    time_ms: float64 (frames,), the middle of each frame in milliseconds from the beginning of the clip
    """

    values: torch.Tensor
    time_ms: torch.Tensor


class TimeGrid(NamedTuple):
    """
    How time frames lie on the spectrogram.

    length, stride: spectrogram frames that one covers, and from one to the next
    unit: time frames that are made together, side by side with the next ones: windows must not cut through them
    """

    length: int
    stride: int
    unit: int = 1


class Piece(NamedTuple):
    """Samples `start` to `stop` of a clip, which begin at its time frame `column`."""

    clip: int
    start: int
    stop: int
    column: int = 0


class EmbeddingMixin:
    """
    `embed` and `embed_frames` for a model whose `pooler_output` (batch, config.fused_size) is the embedding of a clip.

    As it stands it suits models of input without a limit whose `last_hidden_state` are time frames of size
    `config.fused_size`; these have `time_grid` and `num_time_frames` to add.
    """

    @property
    def max_frames(self) -> Optional[int]:
        """Most spectrogram frames that the model reads at once; `None` for any number."""
        return None

    @property
    def window_frames(self) -> int:
        """Spectrogram frames of a window where none is asked for: all that the model reads, or about a minute."""
        return WINDOW_FRAMES if self.max_frames is None else self.max_frames

    @property
    def frame_size(self) -> int:
        """Size of a time frame of `embed_frames`."""
        return self.config.fused_size

    @property
    def time_grid(self) -> TimeGrid:
        raise NotImplementedError

    def num_time_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        """Time frames of clips of so many spectrogram frames, integers (batch,)."""
        raise NotImplementedError

    def time_frames(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, time frames of the longest clip, frame_size); what lies behind the end of a clip is not looked at."""
        return self(input_values, attention_mask, return_dict=True).last_hidden_state

    @torch.no_grad()
    def embed(
        self,
        waveforms: Waveforms,
        sampling_rate: int,
        feature_extractor=None,
        batch_size: int = 8,
        window_s: Optional[float] = None,
        hop_s: Optional[float] = None,
    ) -> torch.Tensor:
        """
        One vector per clip: its `pooler_output`; of a clip longer than a window, their average over overlapping
        windows, the last of which ends where the clip ends.

        Args:
            waveforms: one mono clip (samples,), or a batch of any lengths: a list of clips, or (batch, samples)
            sampling_rate: of the waveforms, in Hz; what is not the feature extractor's is resampled, which needs soxr
            feature_extractor: by default the one saved beside the model
            batch_size: clips or windows per forward pass; clips of similar length share one
            window_s: seconds per window; at most, and by default, what the model hears at once; about a minute of a
                model without a limit
            hop_s: seconds from window to window; by default half a window

        Returns:
            float32 (clips, config.fused_size), on the CPU

        Raises:
            ValueError: no, empty, non-finite or integer clips, or an impossible setting.
            TypeError: clips that are neither arrays, tensors nor lists.
            ImportError: another rate, without soxr.
        """
        extractor, clips = self._prepare(waveforms, sampling_rate, feature_extractor, batch_size)
        window, hop = window_and_hop(self, extractor, window_s, hop_s)
        pieces = []
        for index, clip in enumerate(clips):
            starts = window_starts(len(clip), window, hop)
            pieces += [Piece(index, start, min(start + window, len(clip))) for start in starts]
        embeddings = torch.zeros(len(clips), self.config.fused_size)
        counts = torch.bincount(torch.tensor([piece.clip for piece in pieces]))
        with evaluating(self):
            for batch, features in self._batches(clips, pieces, extractor, batch_size):
                pooled = self(**features, return_dict=True).pooler_output
                if pooled is None:
                    raise ValueError("this encoder has no fusion: load the folder with AutoModel to embed clips")
                embeddings.index_add_(0, torch.tensor([piece.clip for piece in batch]), pooled.float().cpu())
        return embeddings / counts.unsqueeze(1)

    @torch.no_grad()
    def embed_frames(
        self,
        waveforms: Waveforms,
        sampling_rate: int,
        feature_extractor=None,
        batch_size: int = 8,
        window_s: Optional[float] = None,
    ) -> list[FrameEmbeddings]:
        """
        One vector per time frame and clip, not pooled over time. Windows of a clip longer than one overlap by half and
        begin at time frames, so that all of the clip has one regular grid; where they overlap they are averaged.

        Args:
            waveforms, sampling_rate, feature_extractor, batch_size, window_s: as for `embed`

        Returns:
            per clip `values` float32 (frames, frame_size) and `time_ms` (frames,), on the CPU

        Raises:
            ValueError, ImportError: as `embed`.
        """
        extractor, clips = self._prepare(waveforms, sampling_rate, feature_extractor, batch_size)
        window, _ = window_and_hop(self, extractor, window_s, None)
        hop_samples = extractor.num_samples(2) - extractor.num_samples(1)  # from spectrogram frame to frame
        column_samples = self.time_grid.stride * hop_samples
        pieces = []
        for index, clip in enumerate(clips):
            if len(clip) <= window:
                pieces.append(Piece(index, 0, len(clip)))
                continue
            length, columns, hop_columns = self._window_columns(extractor, window, hop_samples)
            unit = self.time_grid.unit
            beyond = -(-max(len(clip) - length, 0) // (column_samples * unit)) * unit  # columns after the first window
            for column in window_starts(columns + beyond, columns, hop_columns):
                start = column * column_samples
                pieces.append(Piece(index, start, min(start + length, len(clip)), column))
        parts = [[] for _ in clips]
        with evaluating(self):
            for batch, features in self._batches(clips, pieces, extractor, batch_size):
                frames = self.time_frames(**features).float().cpu()  # (batch, columns, frame_size)
                counts = self.num_time_frames(features["attention_mask"].sum(dim=1)).tolist()
                for piece, values, count in zip(batch, frames, counts):
                    parts[piece.clip].append((piece.column, values[:count]))
        offset = extractor.num_samples(self.time_grid.length) / 2  # to the middle of the first time frame
        found = []
        for part in parts:
            values = _average(part)
            samples = torch.arange(len(values), dtype=torch.float64) * column_samples + offset
            found.append(FrameEmbeddings(values, samples * (1000 / extractor.sampling_rate)))
        return found

    def own_feature_extractor(self):
        """
        The feature extractor saved beside this model, with the model's own `max_length`.

        Raises:
            OSError, ValueError: there is none, or the model was not loaded from a folder or the Hub.
        """
        name = getattr(self.config, "_name_or_path", None)
        if not name:
            raise ValueError("this model was not loaded from a folder: pass its feature_extractor")
        kept = getattr(self, "_kept_feature_extractor", None)  # or each call would ask the Hub for it
        if kept is not None and kept[0] == (name, self.max_frames):
            return kept[1]
        options = {} if self.max_frames is None else {"max_length": self.max_frames}
        if getattr(self.config, "_commit_hash", None):
            options["revision"] = self.config._commit_hash
        if type(self).__module__.startswith("transformers_modules."):
            options["trust_remote_code"] = True  # as the model's own code was trusted, which lies in the same folder
        self._kept_feature_extractor = (name, self.max_frames), AutoFeatureExtractor.from_pretrained(name, **options)
        return self._kept_feature_extractor[1]

    def _prepare(self, waveforms, sampling_rate, feature_extractor, batch_size):
        """Checks the arguments. Returns the feature extractor and the clips at its rate, float32 (samples,) each."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        feature_extractor = self.own_feature_extractor() if feature_extractor is None else feature_extractor
        clips = feature_extractor.as_clips(waveforms)
        return feature_extractor, [resample(clip, sampling_rate, feature_extractor.sampling_rate) for clip in clips]

    def _batches(self, clips: list[torch.Tensor], pieces: list[Piece], extractor, batch_size: int) -> Iterator[tuple]:
        """Pieces of similar length and their features, on the model's device."""
        pieces = sorted(pieces, key=lambda piece: piece.stop - piece.start)
        for first in range(0, len(pieces), batch_size):
            batch = pieces[first : first + batch_size]
            features = extractor(
                [clips[piece.clip][piece.start : piece.stop].to(self.device) for piece in batch],
                sampling_rate=extractor.sampling_rate,
                padding="longest",
                return_attention_mask=True,
                return_tensors="pt",
            )
            yield batch, features

    def _window_columns(self, extractor, window: int, hop_samples: int) -> tuple[int, int, int]:
        """The largest window of whole time frames: its samples, its time frames, and those from one to the next."""
        length, stride, unit = self.time_grid
        num_frames = 1 + (window - extractor.num_samples(1)) // hop_samples
        columns = (num_frames - length) // stride + 1
        if columns < unit:
            needed_s = extractor.num_samples((unit - 1) * stride + length) / extractor.sampling_rate
            raise ValueError(f"window_s must be at least {needed_s:g}, the length of {unit} time frame(s)")
        columns -= columns % unit
        hop_columns = max(columns // 2 // unit, 1) * unit
        return extractor.num_samples((columns - 1) * stride + length), columns, hop_columns


class PatchEmbeddingMixin(EmbeddingMixin):
    """
    For the transformers: a time frame is a column of patches. With `readout="frames"` it is frequency x channel of the
    column, else the mean over its patches; the fused layers are normalised and fused as those of a clip.
    """

    @property
    def max_frames(self) -> Optional[int]:
        return self.config.max_length

    @property
    def frame_size(self) -> int:
        config = self.config
        size = config.hidden_size * (config.grid_shape[0] if config.readout == "frames" else 1)
        return size * len(config.fused_layers) if config.fusion == "concat" else size

    @property
    def time_grid(self) -> TimeGrid:
        return TimeGrid(self.config.patch_shape[1], self.config.time_stride)

    def num_time_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        return self.config.num_columns(num_frames)

    def time_frames(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        config = self.config
        states = self(input_values, attention_mask, output_hidden_states=True, return_dict=True).hidden_states
        frames = []
        for index, layer in enumerate(self.fusion.layer_indices):
            state = self.fusion.normalise(states[layer], index, self.layernorm)
            patches = state[:, config.num_prefix_tokens :]  # (batch, rows * columns, hidden)
            feature_map = patches.transpose(1, 2).unflatten(2, (config.grid_shape[0], -1))
            if config.readout != "frames":
                feature_map = feature_map.mean(dim=2, keepdim=True)  # (batch, hidden, 1, columns)
            frames.append(time_frames(feature_map))
        return self.fusion.fusion(frames)  # (batch, columns, frame_size)


def window_and_hop(
    model: EmbeddingMixin, feature_extractor, window_s: Optional[float] = None, hop_s: Optional[float] = None
) -> tuple[int, int]:
    """
    The window and the hop in samples.

    Args:
        model: has `max_frames` and `window_frames`; the feature extractor's `max_length` may be smaller
        window_s: by default the model's own
        hop_s: by default half a window

    Raises:
        ValueError: a window longer than the longest, or a hop that skips audio.
    """
    rate = feature_extractor.sampling_rate
    limits = [frames for frames in (model.max_frames, feature_extractor.max_length) if frames is not None]
    longest_s = feature_extractor.num_samples(min(limits)) / rate if limits else math.inf
    if window_s is None:
        window_s = min(longest_s, feature_extractor.num_samples(model.window_frames) / rate)
    hop_s = window_s / 2 if hop_s is None else hop_s
    if not 0 < window_s <= longest_s + 1e-9 or math.isinf(window_s):
        raise ValueError(f"window_s must be positive and at most max_length's {longest_s:g} s, got {window_s}")
    if not 0 < hop_s <= window_s:
        raise ValueError(f"hop_s must be positive and at most window_s={window_s:g}, got {hop_s}")
    return max(1, round(window_s * rate)), max(1, round(hop_s * rate))


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Where windows begin, a hop apart but for the last one, which ends where the clip ends."""
    last = max(length - window, 0)
    return [*range(0, last, hop), last] if last else [0]


def resample(clip: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """
    (samples,) -> (samples,), at least one.

    Raises:
        ImportError: the rates differ, and soxr is not installed.
    """
    if from_rate == to_rate:
        return clip
    if not isinstance(from_rate, (int, float, np.integer)) or isinstance(from_rate, bool) or from_rate <= 0:
        raise ValueError(f"sampling_rate must be a positive number of Hz, got {from_rate!r}")
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"the audio is at {from_rate} Hz, but this model hears {to_rate} Hz: pip install soxr, which resamples "
            "here, or resample it first"
        ) from error
    resampled = torch.from_numpy(soxr.resample(clip.cpu().numpy(), from_rate, to_rate))
    return resampled if len(resampled) else torch.zeros(1)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module):
    """Without dropout and the like; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _average(parts: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Windows of time frames, each with the place of its first one -> (frames, size), the mean where they overlap."""
    if len(parts) == 1:
        return parts[0][1]
    length = max(column + len(values) for column, values in parts)
    total, counts = parts[0][1].new_zeros(length, parts[0][1].shape[1]), torch.zeros(length, 1)
    for column, values in sorted(parts, key=lambda part: part[0]):
        total[column : column + len(values)] += values
        counts[column : column + len(values)] += 1
    return total / counts
