# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Embeddings of clips of any sampling rate and length, the same for all encoders: `model.embed(waveforms, sampling_rate)`
per clip and `model.embed_frames(...)` over time.
"""

import contextlib
import copy
import difflib
import inspect
import math
from collections.abc import Iterator
from typing import NamedTuple, Optional, Union

import numpy as np
import torch
from transformers import AutoFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .fusion_dual_ssast import time_frames, to_feature_map

Waveforms = Union[np.ndarray, torch.Tensor, list]

# For models without a longest input, to bound the memory: 64 examples of VGGish, 192 time frames of CNN14.
WINDOW_FRAMES = 6144

NO_FUSION = "this encoder has no fusion: load the folder with AutoModel to embed clips"

# Of `from_pretrained`: where and how a folder is found.
HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

IGNORED_KEYWORDS = ("use_cache", "num_items_in_batch")  # of forward; the values change nothing here


class FrameEmbeddings(NamedTuple):
    """
    Holds the frame-level embeddings of one clip.

    Attributes:
        values: float32 (frames, model.frame_size).
        time_ms: float64 (frames,), the middle of each frame in milliseconds from the clip's beginning.
    """

    values: torch.Tensor
    time_ms: torch.Tensor


class TimeGrid(NamedTuple):
    """
    Describes how time frames lie on the spectrogram.

    Attributes:
        length: Spectrogram frames per time frame.
        stride: Spectrogram frames from one time frame to the next.
        unit: Time frames that are computed together; windows must not cut through them.
    """

    length: int
    stride: int
    unit: int = 1


class Piece(NamedTuple):
    """Marks samples `start` to `stop` of the clip with index `clip`; they begin at its time frame `column`."""

    clip: int
    start: int
    stop: int
    column: int = 0


class ModelMixin:
    """Adds to a `PreTrainedModel` what all models of this package share: the base of their base classes."""

    main_input_name = "input_values"
    # The **kwargs in forward would make Trainer scale the loss by its own count of items; see Trainer.compute_loss.
    accepts_loss_kwargs = False
    _hub_options = {}  # the `HUB_KEYWORDS` that the model was loaded with

    def __init__(self, config, *args, **kwargs):
        # from_pretrained(..., name=value) sets attributes after the configuration was checked.
        config.check()
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Loads a model like Transformers does, and keeps the keywords that find the other files of its folder."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        options = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
        for module in model.modules():
            if isinstance(module, ModelMixin):  # also the encoder of a classifier
                module._hub_options = options
        return loaded

    def __getstate__(self):
        """Leaves the Hub's token out of pickles."""
        kept = {name: value for name, value in self._hub_options.items() if name != "token"}
        return self.__dict__ | {"_hub_options": kept}

    def check_keywords(self, kwargs: dict):
        """
        Rejects keywords of `forward` that ask for something unknown.

        PEFT, Trainer and sentence-transformers pass arguments of text models, for example `input_ids=None`: `None` is
        ignored whatever its name, and so are outputs that are turned off, `use_cache` and `num_items_in_batch`.

        Raises:
            TypeError: A keyword is unknown. The message names the nearest known one.
        """
        for name, value in kwargs.items():
            if value is None or name in IGNORED_KEYWORDS or (value is False and name.startswith("output_")):
                continue
            known = [known for known in inspect.signature(self.forward).parameters if known != "kwargs"]
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known)}"
            raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword {name!r}{hint}")

    def _freeze_unreached(self):
        """Freezes parameters that cannot get a gradient: none, unless a head stops the encoder early."""


class EmbeddingMixin:
    """
    Adds `embed` and `embed_frames` to an encoder. Its `pooler_output` (batch, config.fused_size) is a clip's embedding.

    The defaults suit encoders without a longest input whose `last_hidden_state` is (batch, time frames,
    config.fused_size). Such a subclass adds `time_grid` and `num_time_frames`.
    """

    @property
    def max_frames(self) -> Optional[int]:
        """Longest input in spectrogram frames; `None` without a limit."""
        return None

    @property
    def window_frames(self) -> int:
        """Default window in spectrogram frames: the longest input, or about a minute without a limit."""
        return WINDOW_FRAMES if self.max_frames is None else self.max_frames

    @property
    def frame_size(self) -> int:
        """Size of a time frame's vector in `embed_frames`."""
        return self.config.fused_size

    @property
    def time_grid(self) -> TimeGrid:
        """Place of the time frames on the spectrogram."""
        raise NotImplementedError

    def num_time_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        """Returns the number of time frames of clips of `num_frames` spectrogram frames, integers (batch,)."""
        raise NotImplementedError

    def time_frames(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Computes the time frames (batch, time frames, frame_size); callers ignore those of padding."""
        return self(input_values, attention_mask, return_dict=True).last_hidden_state

    # ---- label frames: what a frame classifier gives one row of logits each. Time frames, unless overridden ----

    @property
    def label_frame_size(self) -> int:
        """Size of a label frame's vector, the input of a frame classifier."""
        return self.frame_size

    @property
    def label_frame_stride(self) -> float:
        """Spectrogram frames from label frame to label frame."""
        return self.time_grid.stride

    def num_label_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        """Returns the number of label frames of clips of `num_frames` spectrogram frames, integers (batch,)."""
        return self.num_time_frames(num_frames)

    def label_frames(self, outputs) -> torch.Tensor:
        """Returns the input of a frame classifier from an output: (batch, label frames, label_frame_size)."""
        return outputs.last_hidden_state

    def label_tokens(self, outputs) -> torch.Tensor:
        """Returns the fused tokens of an output: (batch, label frames, tokens of a frame, frame_size)."""
        return outputs.last_hidden_state.unsqueeze(2)

    # ---- waveforms to embeddings ----

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
        Computes one embedding per clip: its `pooler_output`.

        A clip longer than a window gets the average over overlapping windows; the last window ends at the clip's end.

        Args:
            waveforms: One mono clip (samples,), or a batch of any lengths: a list of clips, or (batch, samples).
                Arrays, tensors or lists of floats, nominally in [-1, 1].
            sampling_rate: Sampling rate of the waveforms in Hz. Another rate than the feature extractor's is
                resampled, which needs soxr.
            feature_extractor (`SpectrogramFeatureExtractor`, *optional*): By default the one saved with the model.
            batch_size: Clips or windows per forward pass. Clips of similar length share a batch.
            window_s: Seconds per window. The default is the model's longest input, or about a minute without a limit.
            hop_s: Seconds from window to window. The default is half a window.

        Returns:
            float32 (clips, config.fused_size), on the CPU.

        Raises:
            ValueError: No clip, an empty clip, more than one channel, integer or non-finite samples, or an impossible
                setting.
            TypeError: The waveforms are neither arrays, tensors nor lists.
            ImportError: Resampling is needed, but soxr is not installed.

        Example:
            ```python
            >>> model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
            >>> model.embed([clip, longer_clip], sampling_rate=44100).shape
            torch.Size([2, 1536])
            ```
        """
        extractor, clips = self._prepare(waveforms, sampling_rate, feature_extractor, batch_size)
        window, hop = window_and_hop(self, extractor, window_s, hop_s)
        with evaluating(self):
            return self._average_windows(clips, extractor, window, hop, batch_size)

    def embed_padded(
        self, input_values: torch.Tensor, num_samples: torch.Tensor, sampling_rates: torch.Tensor, feature_extractor
    ) -> BaseModelOutputWithPooling:
        """
        Computes the embeddings of `embed` from what a feature extractor returns with `return_waveforms=True`, with
        gradients and in the model's own mode: the method that sentence-transformers calls.

        Args:
            input_values: Waveforms (clips, samples), padded at the end.
            num_samples: (clips,), the samples of each clip without padding.
            sampling_rates: (clips,), in Hz.
            feature_extractor (`SpectrogramFeatureExtractor`): Its `max_length` gives way to the model's.

        Returns:
            `pooler_output`, float32 (clips, config.fused_size).

        Raises:
            ImportError: Resampling is needed, but soxr is not installed.
        """
        extractor = copy.copy(feature_extractor)
        extractor.max_length = self.max_frames or extractor.max_length
        clips = [
            resample(samples[:count], rate, extractor.sampling_rate)
            for samples, count, rate in zip(input_values, num_samples.tolist(), sampling_rates.tolist())
        ]
        batch_size = max(len(clips), 8)  # the caller's own, except where few clips have many windows
        pooled = self._average_windows(clips, extractor, *window_and_hop(self, extractor), batch_size)
        return BaseModelOutputWithPooling(pooler_output=pooled.to(input_values.device))

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
        Computes one embedding per time frame, without pooling over time.

        A clip longer than a window is read in windows that overlap by half and begin at time frames, so that the whole
        clip has one regular grid. Overlapping windows are averaged.

        Args:
            waveforms: One mono clip (samples,), or a batch of any lengths: a list of clips, or (batch, samples).
            sampling_rate: Sampling rate of the waveforms in Hz. Another rate than the feature extractor's is
                resampled, which needs soxr.
            feature_extractor (`SpectrogramFeatureExtractor`, *optional*): By default the one saved with the model.
            batch_size: Clips or windows per forward pass.
            window_s: Seconds per window. The default is the model's longest input, or about a minute without a limit.

        Returns:
            Per clip `values`, float32 (frames, frame_size), and `time_ms`, (frames,), on the CPU.

        Raises:
            ValueError: No clip, an empty clip, more than one channel, integer or non-finite samples, or an impossible
                setting.
            TypeError: The waveforms are neither arrays, tensors nor lists.
            ImportError: Resampling is needed, but soxr is not installed.
        """
        extractor, clips = self._prepare(waveforms, sampling_rate, feature_extractor, batch_size)
        window, _ = window_and_hop(self, extractor, window_s, None)
        hop_samples = extractor.num_samples(2) - extractor.num_samples(1)  # from spectrogram frame to frame
        column_samples = self.time_grid.stride * hop_samples
        pieces = []
        for index, clip in enumerate(clips):
            starts, length = self.frame_windows(extractor, len(clip), window)
            pieces += [Piece(index, start, min(start + length, len(clip)), start // column_samples) for start in starts]
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
            samples = torch.arange(len(values), dtype=torch.float64, device="cpu") * column_samples + offset
            found.append(FrameEmbeddings(values, samples * (1000 / extractor.sampling_rate)))
        return found

    def frame_windows(self, feature_extractor, num_samples: int, window: int) -> tuple[list[int], int]:
        """
        Returns the first sample of each window of a clip, and the samples per window: windows of whole time frames that
        overlap by half and begin at time frames. A clip of up to `window` samples is one window.
        """
        if num_samples <= window:
            return [0], window
        hop_samples = feature_extractor.num_samples(2) - feature_extractor.num_samples(1)
        length, columns, hop_columns = self._window_columns(feature_extractor, window, hop_samples)
        column_samples, unit = self.time_grid.stride * hop_samples, self.time_grid.unit
        beyond = -(-max(num_samples - length, 0) // (column_samples * unit)) * unit  # columns after the first window
        return [column * column_samples for column in window_starts(columns + beyond, columns, hop_columns)], length

    def own_feature_extractor(self):
        """
        Loads the feature extractor saved with this model and gives it the model's `max_length`.

        Raises:
            ValueError: The model was not loaded from a folder or the Hub.
            OSError: The folder holds no feature extractor.
        """
        name = getattr(self.config, "_name_or_path", None)
        if not name:
            raise ValueError("this model was not loaded from a folder: pass its feature_extractor")
        kept = getattr(self, "_kept_feature_extractor", None)  # otherwise each call would ask the Hub for it
        if kept is not None and kept[0] == (name, self.max_frames):
            return kept[1]
        options = dict(self._hub_options)
        if self.max_frames is not None:
            options["max_length"] = self.max_frames
        if getattr(self.config, "_commit_hash", None):
            options["revision"] = self.config._commit_hash
        if type(self).__module__.startswith("transformers_modules."):
            options["trust_remote_code"] = True  # the folder's code is already trusted: the model came from it
        self._kept_feature_extractor = (name, self.max_frames), AutoFeatureExtractor.from_pretrained(name, **options)
        return self._kept_feature_extractor[1]

    def _prepare(self, waveforms, sampling_rate, feature_extractor, batch_size):
        """Checks the arguments; returns the feature extractor and the clips at its rate, float32 (samples,) each."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        feature_extractor = self.own_feature_extractor() if feature_extractor is None else feature_extractor
        clips = feature_extractor.as_clips(waveforms)
        return feature_extractor, [resample(clip, sampling_rate, feature_extractor.sampling_rate) for clip in clips]

    def _average_windows(self, clips: list[torch.Tensor], extractor, window: int, hop: int, batch_size: int):
        """Returns the mean `pooler_output` of each clip's windows, float32 (clips, config.fused_size), on the CPU."""
        pieces = []
        for index, clip in enumerate(clips):
            starts = window_starts(len(clip), window, hop)
            pieces += [Piece(index, start, min(start + window, len(clip))) for start in starts]
        embeddings = torch.zeros(len(clips), self.config.fused_size, dtype=torch.float32, device="cpu")
        counts = torch.bincount(_clip_indices(pieces))
        for batch, features in self._batches(clips, pieces, extractor, batch_size):
            pooled = self(**features, return_dict=True).pooler_output
            if pooled is None:
                raise ValueError(NO_FUSION)
            embeddings.index_add_(0, _clip_indices(batch), pooled.float().cpu())
        return embeddings / counts.unsqueeze(1)

    def _batches(self, clips: list[torch.Tensor], pieces: list[Piece], extractor, batch_size: int) -> Iterator[tuple]:
        """Yields batches of pieces of similar length and their features on the model's device."""
        device = input_device(self)
        pieces = sorted(pieces, key=lambda piece: piece.stop - piece.start)
        for first in range(0, len(pieces), batch_size):
            batch = pieces[first : first + batch_size]
            features = extractor(
                [clips[piece.clip][piece.start : piece.stop].to(device) for piece in batch],
                sampling_rate=extractor.sampling_rate,
                padding="longest",
                return_attention_mask=True,
                return_tensors="pt",
            )
            yield batch, features

    def _window_columns(self, extractor, window: int, hop_samples: int) -> tuple[int, int, int]:
        """Returns the largest window of whole time frames: its samples, its time frames, and its hop in time frames."""
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
    Defines the time frames of the transformers: a time frame is a column of patches.

    With `readout="frames"` its vector is frequency x channel of the column, else the mean over its patches. The layers
    are normalised and fused like those of a clip.
    """

    @property
    def max_frames(self) -> Optional[int]:
        """Longest input in spectrogram frames."""
        return self.config.max_length

    @property
    def frame_size(self) -> int:
        """Size of a time frame's vector in `embed_frames`."""
        config = self.config
        return config.token_size * (len(config.fused_layers) if config.fusion == "concat" else 1)

    @property
    def time_grid(self) -> TimeGrid:
        """Place of the patch columns on the spectrogram."""
        return TimeGrid(self.config.patch_shape[1], self.config.time_stride)

    def num_time_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        """Returns the number of patch columns of clips of `num_frames` spectrogram frames, integers (batch,)."""
        return self.config.num_columns(num_frames)

    def time_frames(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Computes the fused vector of every patch column: -> (batch, columns, frame_size)."""
        config = self.config
        if self.fusion is None:
            raise ValueError(NO_FUSION)
        states = self(input_values, attention_mask, output_hidden_states=True, return_dict=True).hidden_states
        frames = []
        for state in self.fused_states(states):
            feature_map = to_feature_map(state[:, config.num_prefix_tokens :], config.grid_shape[0])
            if config.readout != "frames":
                feature_map = feature_map.mean(dim=2, keepdim=True)  # (batch, hidden, 1, columns)
            frames.append(time_frames(feature_map))
        return self.fusion.fusion(frames)  # (batch, columns, frame_size)


def window_and_hop(
    model: EmbeddingMixin, feature_extractor, window_s: Optional[float] = None, hop_s: Optional[float] = None
) -> tuple[int, int]:
    """
    Returns the window and the hop in samples.

    Args:
        model: Encoder; `max_frames` and `window_frames` are used.
        feature_extractor (`SpectrogramFeatureExtractor`): Its `max_length` may be smaller than the model's.
        window_s: Seconds per window. The default is the model's longest input, or about a minute without a limit.
        hop_s: Seconds from window to window. The default is half a window.

    Raises:
        ValueError: A window longer than the longest input, or a hop that skips audio.
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
    """Returns the first sample of each window: a hop apart, except the last one, which ends at the clip's end."""
    last = max(length - window, 0)
    return [*range(0, last, hop), last] if last else [0]


def resample(clip: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """
    Resamples a clip with soxr: float32 (samples,) -> float32 (samples,), at least one sample.

    Args:
        clip: (samples,).
        from_rate: Sampling rate of the clip in Hz.
        to_rate: Wanted sampling rate in Hz.

    Raises:
        ValueError: `from_rate` is not a positive number.
        ImportError: The rates differ, and soxr is not installed.
    """
    if from_rate == to_rate:
        return clip
    if (
        not isinstance(from_rate, (int, float, np.integer))
        or isinstance(from_rate, bool)
        or not 0 < from_rate < math.inf
    ):
        raise ValueError(f"sampling_rate must be a positive number of Hz, got {from_rate!r}")
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"the audio is at {from_rate} Hz, but this model needs {to_rate} Hz: pip install soxr to resample it here, "
            "or resample it first"
        ) from error
    resampled = torch.from_numpy(soxr.resample(clip.cpu().numpy(), from_rate, to_rate))
    return resampled if len(resampled) else clip.new_zeros(1)


def input_device(model: torch.nn.Module) -> torch.device:
    """Returns the device for a model's input. Parameters that Accelerate keeps elsewhere are on the meta device."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def _clip_indices(pieces: list[Piece]) -> torch.Tensor:
    return torch.tensor([piece.clip for piece in pieces], device="cpu")


@contextlib.contextmanager
def evaluating(model: torch.nn.Module):
    """Puts a model into evaluation mode, and every module back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _average(parts: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Joins windows (first column, values (columns, size)) to (frames, size); averages where they overlap."""
    if len(parts) == 1:
        return parts[0][1]
    length = max(column + len(values) for column, values in parts)
    total, counts = parts[0][1].new_zeros(length, parts[0][1].shape[1]), parts[0][1].new_zeros(length, 1)
    for column, values in sorted(parts, key=lambda part: part[0]):
        total[column : column + len(values)] += values
        counts[column : column + len(values)] += 1
    return total / counts
