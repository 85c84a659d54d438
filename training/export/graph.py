"""
Traces a model and its feature extraction as one graph, for any number of clips of any length.

Sizes that depend on the input follow the longest clip, in whole columns of patches or the network's equivalent. So the
graph contains no comparison of lengths (`torch.export` would fix its outcome), and padding costs little.
"""

import contextlib
import logging as python_logging
import math
import warnings

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_dual_ssast import DualSSASTFeatureExtractor, PannsCnn14FeatureExtractor, VGGishFeatureExtractor
from modeling_dual_ssast import feature_extraction_panns_cnn14 as panns
from modeling_dual_ssast import feature_extraction_vggish as vggish
from modeling_dual_ssast.classifier_dual_ssast import FrameClassifierMixin
from modeling_dual_ssast.feature_extraction_dual_ssast import (
    LOG_FLOOR,
    PREEMPHASIS,
    SpectrogramFeatureExtractor,
    frame_sizes,
    hann_window,
    kaldi_mel_filters,
)
from modeling_dual_ssast.fusion_dual_ssast import align_frames, frame_mask

CPU = torch.device("cpu")


class WholeFrames:
    """Rounds the number of spectrogram frames up to whole columns of patches, or the network's equivalent."""

    def __init__(self, config):
        self.config = config
        if hasattr(config, "patch_shape"):
            self.limit = config.max_length
            self.beyond = config.max_length if config.attention_over_padding else config.patch_shape[1]
        else:  # whole VGGish examples or CNN14 time frames, without a limit
            self.limit, self.beyond = None, config.min_frames

    def __call__(self, lengths: torch.Tensor) -> int:
        """Rounds up the longest of `lengths` (batch,), in frames, by at most `beyond`: a symbolic integer."""
        config = self.config
        if self.limit is None:
            size = config.min_frames
            columns = config.num_examples(lengths) if hasattr(config, "num_examples") else -(-lengths // size)
            return self._largest(columns.clamp(min=1), None) * size
        if config.attention_over_padding:
            return config.max_length
        return config.num_covered_frames(self._largest(config.num_columns(lengths), config.grid_shape[1]))

    @staticmethod
    def _largest(columns: torch.Tensor, limit: int | None) -> int:
        largest = columns.amax(0).item()
        torch._check(largest >= 1)
        if limit is not None:
            torch._check(largest <= limit)
        return largest


class LengthCheck(nn.Module):
    """Raises an error in every runtime for a clip beyond the model's limit, by a look-up out of range."""

    def __init__(self, limit: int | None):
        super().__init__()
        self.has_limit = limit is not None
        self.register_buffer("longest_clip", torch.zeros((limit or 0) + 1, dtype=torch.long))

    def forward(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths + self.longest_clip[lengths] if self.has_limit else lengths


class FeatureGraph(nn.Module):
    """
    Maps `input_values` (batch, frames, mel), `attention_mask` (batch, frames) to logits (batch, labels), a frame
    classifier's (batch, time frames, labels), or embeddings (batch, size).
    """

    inputs = ("input_values", "attention_mask")

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.whole_frames = WholeFrames(model.config)
        self.check = LengthCheck(self.whole_frames.limit)
        self.is_classifier = hasattr(model, "classifier")

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        lengths = self.check(attention_mask.long().sum(dim=1))
        num_frames, beyond = self.whole_frames(lengths), self.whole_frames.beyond
        # The cut below is at the end: padding on the left, as the model accepts it, has to move there first.
        values = align_frames(input_values, attention_mask, self.model.config.padding_value)
        values = nn.functional.pad(values, (0, 0, 0, beyond))
        torch._check(num_frames <= values.shape[1])
        return self.read_own_frames(values.narrow(1, 0, num_frames), lengths)

    def read(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Returns the outputs for spectrograms of `lengths` (batch,) frames."""
        outputs = self.model(values, frame_mask(lengths, values.shape[1]), return_dict=True)
        return outputs.logits if self.is_classifier else outputs.pooler_output

    def read_own_frames(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Returns the same; time frames only as far as the longest clip has some."""
        found = self.read(values, lengths)
        if not gives_frames(self.model) or self.whole_frames.limit is not None:
            return found
        # The spectrogram was rounded up, the model's time frames are rounded down.
        num_frames = self.model.base_model.num_label_frames(lengths).amax(0).item()
        torch._check(num_frames >= 1)
        torch._check(num_frames <= found.shape[1])
        return found.narrow(1, 0, num_frames)


class WaveformGraph(FeatureGraph):
    """Maps `waveform` (batch, samples), any padding, and `lengths` (batch,) in samples to outputs of `FeatureGraph`."""

    inputs = ("waveform", "lengths")

    def __init__(self, model: PreTrainedModel, extractor: SpectrogramFeatureExtractor):
        super().__init__(model)
        self.spectrogram = spectrogram_of(extractor)

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        frame_lengths = self.check(self.spectrogram.num_frames(lengths))
        num_frames = self.whole_frames(frame_lengths)
        values = self.spectrogram(waveform, lengths, num_frames, self.whole_frames.beyond)  # (batch, num_frames, mel)
        return self.read_own_frames(values, frame_lengths)


class Spectrogram(nn.Module):
    """
    Extracts features as one graph: the extractor's steps, rounded to float32 in the same places. The Fourier transform
    and the steps after it are in float64, so that sums of products are as exact as the extractor's fast transform.
    """

    min_samples = 0  # shorter clips are lengthened with zeros, which count as audio

    def __init__(self, window: torch.Tensor, shift: int, num_fft: int, filters: torch.Tensor):
        super().__init__()
        self.size, self.shift = len(window), shift
        self.register_buffer("window", window)
        angles = torch.arange(self.size, dtype=torch.float64)[:, None] * torch.arange(num_fft // 2 + 1)
        angles = angles.remainder(num_fft) * (2 * math.pi / num_fft)
        self.register_buffer("cosines", angles.cos())  # (window, fft / 2 + 1)
        self.register_buffer("sines", angles.sin())
        self.register_buffer("filters", filters.double())  # (fft / 2 + 1, mel)

    def num_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        """Converts lengths (batch,) from samples to frames."""
        return 1 + (lengths.clamp(min=max(self.size, self.min_samples)) - self.size) // self.shift

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor, num_frames: int, beyond: int) -> torch.Tensor:
        """
        Returns log-mels of `waveform` (batch, samples), `lengths` (batch,): float32 (batch, num_frames, mel), undefined
        after a clip's end. `beyond`: frames that may follow the end of the longest clip.
        """
        waveform = waveform.masked_fill(torch.arange(waveform.shape[1]) >= lengths.unsqueeze(1), 0)
        if self.min_samples:
            waveform = nn.functional.pad(waveform, (0, self.min_samples))
            lengths = lengths.clamp(min=self.min_samples)
        waveform = self.prepare(waveform, lengths)
        waveform = nn.functional.pad(waveform, (0, beyond * self.shift + 2 * self.size))
        frames = self.shape(self.cut(waveform, lengths, num_frames)).double()  # (batch, num_frames, window)
        power = (frames @ self.cosines).square() + (frames @ self.sines).square()  # (batch, num_frames, fft / 2 + 1)
        return self.to_log_mel(power).float()

    def prepare(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Changes the waveforms (batch, samples), zero after a clip's end, before they are cut. Here: not at all."""
        return waveform

    def cut(self, waveform: torch.Tensor, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Cuts waveforms (batch, samples) into frames (batch, num_frames, window)."""
        return waveform[:, torch.arange(num_frames)[:, None] * self.shift + torch.arange(self.size)]

    def shape(self, frames: torch.Tensor) -> torch.Tensor:
        """Multiplies frames (batch, num_frames, window) by the window."""
        return frames * self.window

    def to_log_mel(self, power: torch.Tensor) -> torch.Tensor:
        """Converts power (batch, num_frames, fft / 2 + 1) to log-mels (batch, num_frames, mel)."""
        raise NotImplementedError


class KaldiSpectrogram(Spectrogram):
    """Computes `kaldi_log_mel`, normalised."""

    def __init__(self, extractor: DualSSASTFeatureExtractor):
        rate, bins = extractor.sampling_rate, extractor.num_mel_bins
        size, shift, num_fft = frame_sizes(rate, extractor.frame_length_ms, extractor.frame_shift_ms)
        super().__init__(hann_window(size, CPU), shift, num_fft, kaldi_mel_filters(bins, num_fft, rate, CPU))
        self.normalize, self.min_samples = extractor._normalize, extractor.min_samples or 0

    def prepare(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Subtracts the clip's mean from its samples."""
        mean = (waveform.double().sum(dim=1) / lengths.clamp(min=1)).float()
        is_audio = torch.arange(waveform.shape[1]) < lengths.unsqueeze(1)  # (batch, samples)
        return (waveform - mean.unsqueeze(1)).masked_fill(~is_audio, 0)

    def shape(self, frames: torch.Tensor) -> torch.Tensor:
        frames = frames - frames.double().mean(dim=2, keepdim=True).float()
        # The window begins with a zero, so the first sample needs no pre-emphasis.
        emphasised = frames[:, :, 1:] - PREEMPHASIS * frames[:, :, :-1]
        return nn.functional.pad(emphasised, (1, 0)) * self.window

    def to_log_mel(self, power: torch.Tensor) -> torch.Tensor:
        return self.normalize((power @ self.filters).clamp(min=LOG_FLOOR).log().float())


class VGGishSpectrogram(Spectrogram):
    """Computes `vggish_log_mel`."""

    def __init__(self, extractor: VGGishFeatureExtractor):
        window = torch.hann_window(vggish.WINDOW, periodic=True, dtype=torch.float64)
        filters = vggish.vggish_mel_filters(extractor.num_mel_bins, CPU, torch.float64)
        super().__init__(window, vggish.HOP, vggish.NUM_FFT, filters)

    def to_log_mel(self, power: torch.Tensor) -> torch.Tensor:
        return (power.sqrt() @ self.filters + vggish.LOG_OFFSET).log()


class PannsSpectrogram(Spectrogram):
    """Computes `panns_log_mel`: windows centred on multiples of the hop, each clip mirrored at its own ends."""

    def __init__(self, extractor: PannsCnn14FeatureExtractor):
        size = extractor.window_size
        settings = (extractor.num_mel_bins, size, extractor.sampling_rate, extractor.fmin, extractor.fmax)
        filters = panns.slaney_mel_filters(*settings, CPU)
        super().__init__(torch.hann_window(size, periodic=True), extractor.hop_size, size, filters)

    def num_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        return 1 + lengths.clamp(min=self.size) // self.shift

    def cut(self, waveform: torch.Tensor, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
        last = lengths.clamp(min=self.size).view(-1, 1, 1) - 1
        index = torch.arange(num_frames)[:, None] * self.shift + torch.arange(self.size) - self.size // 2
        index = index.abs()  # mirrored at the beginning; (num_frames, window)
        index = torch.minimum(index, 2 * last - index).clamp(min=0)  # and at the end; (batch, num_frames, window)
        return waveform.gather(1, index.flatten(1)).unflatten(1, (-1, self.size))

    def to_log_mel(self, power: torch.Tensor) -> torch.Tensor:
        return 10.0 * (power @ self.filters).clamp(min=panns.POWER_FLOOR).log10()


SPECTROGRAMS = {
    DualSSASTFeatureExtractor: KaldiSpectrogram,
    VGGishFeatureExtractor: VGGishSpectrogram,
    PannsCnn14FeatureExtractor: PannsSpectrogram,
}


def spectrogram_of(extractor: SpectrogramFeatureExtractor) -> Spectrogram:
    """Returns the graph of a feature extractor."""
    return next(made for kind, made in SPECTROGRAMS.items() if isinstance(extractor, kind))(extractor)


def output_name(model) -> str:
    """Returns the name of the model's output that is exported."""
    return "logits" if hasattr(model, "classifier") else "pooler_output"


def gives_frames(model) -> bool:
    """Returns whether the model classifies time frames instead of clips."""
    return isinstance(model, FrameClassifierMixin)


def longest_samples(model, extractor) -> int | None:
    """Returns the longest clip that model and feature extractor accept, in samples; `None`: any length."""
    limits = (getattr(model, "base_model", model).max_frames, extractor.max_length)
    limits = [limit for limit in limits if limit is not None]
    return extractor.num_samples(min(limits)) if limits else None


@contextlib.contextmanager
def quiet():
    """Silences the logs and warnings of the exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        python_logging.disable(python_logging.WARNING)
        try:
            yield
        finally:
            python_logging.disable(python_logging.NOTSET)


def trace(graph: FeatureGraph, extractor) -> torch.export.ExportedProgram:
    """Traces with two clips of different lengths; batch and time stay dynamic."""
    if isinstance(graph, WaveformGraph):
        waveform = torch.zeros(2, extractor.num_samples(40))
        example, axis = (waveform, torch.tensor([waveform.shape[1], waveform.shape[1] // 2])), {0: "batch"}
        dynamic = {"waveform": {0: "batch", 1: "samples"}, "lengths": axis}
    else:
        values, mask = torch.zeros(2, 40, extractor.num_mel_bins), torch.ones(2, 40, dtype=torch.long)
        mask[1, 20:] = 0
        axes = {0: "batch", 1: "frames"}
        example, dynamic = (values, mask), {"input_values": axes, "attention_mask": axes}
    dims = {name: torch.export.Dim(name) for axes in dynamic.values() for name in axes.values()}
    shapes = {name: {axis: dims[dim] for axis, dim in axes.items()} for name, axes in dynamic.items()}
    with quiet():
        return torch.export.export(graph.eval(), example, dynamic_shapes=shapes)
