# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
VGGish (Hershey et al., ICASSP 2017) with composed features (Niizumi et al., EUSIPCO 2022).

Shapes: `input_values` (batch, frames, mel) -> examples (batch, examples, 96, mel) -> maps of the layers -> time frames
(batch, 6 * examples, config.fused_size) -> `pooler_output` (batch, config.fused_size) -> `logits` (batch, labels).
"""

import itertools
from collections.abc import Iterator
from typing import Optional, Union

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .classifier_dual_ssast import FrameClassifierMixin, make_classifier
from .configuration_composed import ComposedConfig  # noqa: F401  Transformers 4.48 copies only direct imports, so
from .configuration_dual_ssast import StrictConfig  # noqa: F401  this file names what its siblings import
from .configuration_vggish import VGGISH_TIME_STRIDE, VGGishConfig
from .embedding_dual_ssast import EmbeddingMixin, TimeGrid
from .fusion_dual_ssast import at_least, frame_mask, in_graph
from .modeling_composed import ComposedForAudioClassification, ComposedPreTrainedModel


class VGGishModel(EmbeddingMixin, ComposedPreTrainedModel):
    """
    Computes VGGish's maps (Hershey et al., ICASSP 2017) and the composed feature of a clip (Niizumi et al., EUSIPCO
    2022).

    `pooler_output` (batch, config.fused_size) is the input of the classifier and the embedding of a clip. With
    `fusion_layers=[21], temporal_pooling=["mean"]` it is VGGish's own embedding, averaged over the examples.
    """

    config_class = VGGishConfig
    base_model_prefix = "vggish"

    def __init__(self, config: VGGishConfig):
        super().__init__(config)
        first, second, third, fourth = config.channels
        layers, inputs = [], 1
        for stage in ([first], [second], [third, third], [fourth, fourth]):
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # modules 0 to 15
        rows = config.num_mel_bins // VGGISH_TIME_STRIDE
        sizes = (fourth * config.frames_per_example * rows, config.fc_size, config.fc_size, config.embedding_size)
        linears = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
        self.fc = nn.Sequential(*(module for linear in linears for module in (linear, nn.ReLU())))  # modules 16 to 21
        self.attention = self._make_attention()
        self.post_init()

    @property
    def time_grid(self) -> TimeGrid:
        """Place of the time frames on the spectrogram; windows do not cut through examples."""
        return TimeGrid(VGGISH_TIME_STRIDE, VGGISH_TIME_STRIDE, self.config.frames_per_example)

    def num_time_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        """Returns the number of time frames of clips of `num_frames` spectrogram frames, integers (batch,)."""
        return self.config.num_examples(num_frames) * self.config.frames_per_example

    def unreached(self) -> list[nn.Module]:
        """Returns the modules after the highest fused layer; they run only if all maps are asked for."""
        return [*self.features, *self.fc][self.config.fused_layers[-1] + 1 :]

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
            input_values: (batch, frames, mel), of any length.
            attention_mask: (batch, frames), 1 for audio and 0 for padding, on any side.
            output_hidden_states: Whether to return the maps of all nine ReLUs.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            `last_hidden_state` (batch, time frames, config.fused_size), composed features before the pooling over time,
                zero in padding; `pooler_output` (batch, config.fused_size); if asked for, `hidden_states` in the order
                of `config.layers`: six maps (batch, examples, channels, columns in time, rows in frequency) and three
                outputs of Linear layers (batch, examples, size), zero in padding.

        Raises:
            ValueError: Shapes that do not fit.
            TypeError: A keyword is unknown.
        """
        self.check_keywords(kwargs)
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        examples, valid = self.split_examples(input_values, attention_mask)
        # Skips padding, except in graphs, whose shapes must not depend on values, and where all maps are returned.
        computes_all = attention_mask is None or output_hidden_states or in_graph()
        flat = examples.flatten(0, 1) if computes_all else examples[valid]  # (true examples, time, mel)
        kept = config.layers if output_hidden_states else config.fused_layers  # long clips have large maps
        layers = self.run_layers(flat, kept[-1], valid if output_hidden_states else None)
        maps = {layer: layer_map for layer, layer_map in layers if layer in kept}
        fused = {
            layer: maps[layer].flatten(0, 1) if output_hidden_states else maps[layer] for layer in config.fused_layers
        }
        frames = self.compose({layer: self.to_frames(fused[layer]) for layer in fused}, VGGISH_TIME_STRIDE)
        frames = by_clip(frames, valid).flatten(1, 2)  # (batch, examples * frames per example, fused size)
        output = BaseModelOutputWithPooling(
            last_hidden_state=frames,
            pooler_output=self.pool(frames, valid.repeat_interleave(config.frames_per_example, dim=1)),
            hidden_states=tuple(maps.values()) if output_hidden_states else None,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def split_examples(
        self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Cuts (batch, frames, mel) -> (batch, examples, config.example_length, mel), and a mask (batch, examples)
        of audio.
        """
        config = self.config
        spectrogram, lengths = self.pad_frames(input_values, attention_mask)
        num_examples = config.num_examples(spectrogram.shape[1])
        wanted = num_examples * config.example_length
        missing = at_least(wanted - spectrogram.shape[1], 0)  # frames of a partial example that is kept
        # One frame more, which is always cut: a graph would fix whether the slice is the whole.
        spectrogram = nn.functional.pad(spectrogram, (0, 0, 0, missing + 1), value=config.padding_value)[:, :wanted]
        return spectrogram.unflatten(1, (num_examples, -1)), frame_mask(config.num_examples(lengths), num_examples)

    def run_layers(
        self, examples: torch.Tensor, deepest: int, valid: Optional[torch.Tensor] = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """
        Runs the modules up to ReLU `deepest`: (examples, time, mel) -> maps.

        Yields:
            Each ReLU's index and its map, (examples, channels, time, rows) or (examples, size); arranged by clips, and
                zero in padding, if `valid` (batch, examples) is given.
        """
        state = examples.unsqueeze(1)  # (examples, 1, time, mel)
        for layer, module in enumerate([*self.features, *self.fc][: deepest + 1]):
            if layer == len(self.features):
                state = state.permute(0, 2, 3, 1).flatten(1)  # the weights come from TensorFlow: (time, rows, channels)
            state = module(state)
            if layer in self.config.layers:
                if valid is None:
                    yield layer, state
                else:  # the next layer reads the returned map, so that it gets a gradient
                    by_clips = by_clip(state, valid)
                    state = by_clips.flatten(0, 1)
                    yield layer, by_clips

    def to_frames(self, layer_map: torch.Tensor) -> torch.Tensor:
        """Repeats a linear layer's output over the time frames of its example: -> (examples, size, frames, 1)."""
        if layer_map.ndim == 4:
            return layer_map
        return layer_map[:, :, None, None].expand(-1, -1, self.config.frames_per_example, -1)


class VGGishForAudioClassification(ComposedForAudioClassification):
    """Classifies clips by the composed features of VGGish."""

    config_class = VGGishConfig
    base_model_prefix = "vggish"

    def __init__(self, config: VGGishConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vggish = VGGishModel(config)
        self.classifier = make_classifier(config, self.vggish)
        self.post_init()
        self._freeze_unreached()


class VGGishForAudioFrameClassification(FrameClassifierMixin, ComposedPreTrainedModel):
    """Classifies time frames by the network's features before the pooling over time."""

    config_class = VGGishConfig
    base_model_prefix = "vggish"

    def __init__(self, config: VGGishConfig):
        super().__init__(config)
        self.vggish = VGGishModel(config)
        self._finish()


def by_clip(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """
    Returns examples, all or the valid ones, to their clips: -> (batch, examples, ...), zero where `valid` is false.
    """
    if values.shape[0] == valid.numel():
        values = values.unflatten(0, tuple(valid.shape))
        return values.masked_fill(~valid.view(*valid.shape, *[1] * (values.ndim - 2)), 0)
    restored = values.new_zeros(*valid.shape, *values.shape[1:])
    restored[valid] = values
    return restored


VGGishModel.register_for_auto_class("AutoModel")
VGGishForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
VGGishForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
