# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
PANNs' CNN14 (Kong et al., IEEE/ACM TASLP 2020) with composed features (Niizumi et al., EUSIPCO 2022).

Shapes: `input_values` (batch, frames, mel) in dB -> maps of six blocks -> time frames (batch, frames // 32, size) ->
`pooler_output` (batch, config.fused_size) -> `logits` (batch, labels).

In a batch of several lengths, padded frames are zero before every convolution, like the convolution's own padding at
the end of a single clip.
"""

from collections.abc import Iterator
from typing import Optional, Union

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .classifier_dual_ssast import FrameClassifierMixin, make_classifier
from .configuration_composed import ComposedConfig  # noqa: F401  Transformers 4.48 copies only direct imports, so
from .configuration_dual_ssast import StrictConfig  # noqa: F401  this file names what its siblings import
from .configuration_panns_cnn14 import CNN14_BLOCKS, CNN14_TIME_STRIDE, PannsCnn14Config
from .embedding_dual_ssast import EmbeddingMixin, TimeGrid
from .fusion_dual_ssast import frame_mask, pool_tokens
from .modeling_composed import ComposedForAudioClassification, ComposedPreTrainedModel


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Applies batch norm without padding: padded frames do not enter the statistics, and are zero in the output."""

    def forward(self, maps: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Normalises maps (batch, channels, time, rows) per channel; the boolean mask is (batch, time), or `None`."""
        if mask is None:
            return super().forward(maps)
        if not self.training:
            return zero_padding(super().forward(maps), mask)
        columns = maps.transpose(1, 2)  # (batch, time, channels, rows)
        normed = super().forward(columns[mask].unsqueeze(-1))  # (true columns, channels, rows, 1)
        restored = torch.zeros_like(columns, dtype=normed.dtype)
        restored[mask] = normed.squeeze(-1)
        return restored.transpose(1, 2)


class PannsCnn14Block(nn.Module):
    """Applies two convolutions with batch norm and ReLU, then average pooling over squares of side `pool_size`."""

    def __init__(self, inputs: int, outputs: int, pool_size: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn1 = MaskedBatchNorm2d(outputs)
        self.bn2 = MaskedBatchNorm2d(outputs)
        self.pool_size = pool_size
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, maps: torch.Tensor, lengths: Optional[torch.Tensor]
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """
        Computes (batch, outputs, time / pool_size, rows / pool_size), and the lengths (batch,) divided by
        `pool_size`.
        """
        mask = None if lengths is None else frame_mask(lengths, maps.shape[2])
        maps = self.bn1(self.conv1(maps), mask).relu()
        maps = self.bn2(self.conv2(maps), mask).relu()
        if self.pool_size > 1:
            maps = nn.functional.avg_pool2d(maps, self.pool_size)
            if lengths is not None:
                lengths = lengths // self.pool_size
                maps = zero_padding(maps, frame_mask(lengths, maps.shape[2]))
        return self.dropout(maps), lengths


class PannsCnn14Embedding(nn.Module):
    """Computes the original's embedding (Kong et al., IEEE/ACM TASLP 2020): mean + max over time, Linear, ReLU."""

    def __init__(self, config: PannsCnn14Config):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.fc1 = nn.Linear(config.channels[-1], config.embedding_size)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeds frames (batch, time frames, channels) with a boolean mask -> (batch, config.embedding_size)."""
        pooled = pool_tokens(frames, mask, ["mean", "max"], "sum")
        return self.fc1(self.dropout(pooled)).relu()


class PannsCnn14Model(EmbeddingMixin, ComposedPreTrainedModel):
    """
    Computes CNN14's maps (Kong et al., IEEE/ACM TASLP 2020) and one vector per clip.

    `pooler_output` (batch, config.fused_size) is the composed feature (Niizumi et al., EUSIPCO 2022) or the original's
    embedding, depending on `config.readout`.
    """

    config_class = PannsCnn14Config
    base_model_prefix = "panns_cnn14"
    _no_split_modules = ["PannsCnn14Block"]
    # Keys of the other readout, which this model does not have.
    _keys_to_ignore_on_load_unexpected = [r"embedding\.fc1\.", r"^audioset_classifier\."]

    def __init__(self, config: PannsCnn14Config):
        super().__init__(config)
        self.bn0 = MaskedBatchNorm2d(config.num_mel_bins)
        inputs = (1, *config.channels)
        self.blocks = nn.ModuleList(
            PannsCnn14Block(
                inputs[block - 1],
                inputs[block],
                pool_size=config.time_stride(block) // config.time_stride(block - 1),
                dropout=config.hidden_dropout_prob,
            )
            for block in CNN14_BLOCKS
        )
        self.embedding = PannsCnn14Embedding(config) if config.readout == "panns" else None
        self.attention = self._make_attention()
        self.post_init()

    @property
    def frame_size(self) -> int:
        """Size of a time frame's vector in `embed_frames`."""
        return self.config.channels[-1] if self.config.readout == "panns" else self.config.fused_size

    @property
    def time_grid(self) -> TimeGrid:
        """Place of the time frames on the spectrogram."""
        return TimeGrid(CNN14_TIME_STRIDE, CNN14_TIME_STRIDE)

    def num_time_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        """Returns the number of time frames of clips of `num_frames` spectrogram frames, integers (batch,)."""
        return num_frames.clamp(min=self.config.min_frames) // CNN14_TIME_STRIDE

    @property
    def used_blocks(self) -> list[int]:
        """Blocks that the readout uses."""
        return [CNN14_BLOCKS[-1]] if self.config.readout == "panns" else self.config.fused_layers

    def unreached(self) -> list[nn.Module]:
        """Returns the blocks after the highest block in use; they run only if all maps are asked for."""
        return list(self.blocks[self.used_blocks[-1] :])

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[tuple, BaseModelOutputWithPooling]:
        """
        Encodes a batch of spectrograms.

        Args:
            input_values: (batch, frames, mel) in dB, of any length.
            attention_mask: (batch, frames), 1 for audio and 0 for padding, on any side.
            output_hidden_states: Whether to return the maps of all six blocks.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            `last_hidden_state` (batch, frames // 32, size), before the pooling over time: composed features or, with
                `readout="panns"`, the last block's mean over frequency; `pooler_output` (batch, config.fused_size);
                if asked for, `hidden_states`, six maps (batch, channels, columns in time, rows in frequency), zero in
                padding.

        Raises:
            ValueError: Shapes that do not fit.
            TypeError: A keyword is unknown.
        """
        self.check_keywords(kwargs)
        config, panns = self.config, self.config.readout == "panns"
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        spectrogram, lengths = self.pad_frames(input_values, attention_mask)
        kept = CNN14_BLOCKS if output_hidden_states else self.used_blocks  # long clips have large maps
        blocks = self.run_blocks(spectrogram, None if attention_mask is None else lengths, kept[-1])
        maps = {block: block_map for block, block_map in blocks if block in kept}
        frames = maps[CNN14_BLOCKS[-1]].mean(dim=3).transpose(1, 2) if panns else self.compose(maps, CNN14_TIME_STRIDE)
        mask = frame_mask(lengths // CNN14_TIME_STRIDE, frames.shape[1])  # (batch, time frames)
        output = BaseModelOutputWithPooling(
            last_hidden_state=frames,
            pooler_output=self.embedding(frames, mask) if panns else self.pool(frames, mask),
            hidden_states=tuple(maps.values()) if output_hidden_states else None,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def normalise_mels(self, spectrogram: torch.Tensor, lengths: Optional[torch.Tensor]) -> torch.Tensor:
        """Applies batch norm to each mel bin: (batch, frames, mel), lengths (batch,) -> (batch, 1, frames, mel)."""
        mask = None if lengths is None else frame_mask(lengths, spectrogram.shape[1])
        return self.bn0(spectrogram.transpose(1, 2).unsqueeze(-1), mask).permute(0, 3, 2, 1)

    def run_blocks(
        self, spectrogram: torch.Tensor, lengths: Optional[torch.Tensor], deepest: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Runs the blocks up to number `deepest`; yields each number and map (batch, channels, time, rows)."""
        maps = self.normalise_mels(spectrogram, lengths)
        for block in CNN14_BLOCKS[:deepest]:
            maps, lengths = self.blocks[block - 1](maps, lengths)
            yield block, maps


class PannsCnn14ForAudioClassification(ComposedForAudioClassification):
    """
    Classifies clips by CNN14: LayerNorm and Linear on composed features, or the original's Linear on its embedding with
    `readout="panns"`.

    The two classifiers have different names, so that a checkpoint with one of them loads with the other readout, too.
    The classifier is then new.
    """

    config_class = PannsCnn14Config
    base_model_prefix = "panns_cnn14"
    _no_split_modules = ["PannsCnn14Block"]
    _keys_to_ignore_on_load_unexpected = [r"embedding\.fc1\.", r"^audioset_classifier\.", r"^composed_classifier\."]

    def __init__(self, config: PannsCnn14Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.panns_cnn14 = PannsCnn14Model(config)
        if config.readout == "panns":
            self.audioset_classifier = nn.Linear(config.embedding_size, config.num_labels)
        else:
            self.composed_classifier = make_classifier(config, self.panns_cnn14)
        self.post_init()
        self._freeze_unreached()

    @property
    def classifier(self) -> nn.Module:
        """Classifier of the readout."""
        return self.audioset_classifier if self.config.readout == "panns" else self.composed_classifier


class PannsCnn14ForAudioFrameClassification(FrameClassifierMixin, ComposedPreTrainedModel):
    """Classifies time frames by the network's features before the pooling over time."""

    config_class = PannsCnn14Config
    base_model_prefix = "panns_cnn14"
    _no_split_modules = ["PannsCnn14Block"]

    def __init__(self, config: PannsCnn14Config):
        super().__init__(config)
        self.panns_cnn14 = PannsCnn14Model(config)
        self._finish()

    def _freeze_unreached(self):
        super()._freeze_unreached()
        if self.panns_cnn14.embedding is not None:  # it follows the pooling
            self.panns_cnn14.embedding.requires_grad_(False)


def zero_padding(maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Zeroes maps where the mask is false: (batch, channels, time, rows), boolean (batch, time) -> the same shape."""
    return maps.masked_fill(~mask[:, None, :, None], 0)


PannsCnn14Model.register_for_auto_class("AutoModel")
PannsCnn14ForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
PannsCnn14ForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
