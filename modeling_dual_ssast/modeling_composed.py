# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Base classes of the convolutional networks with composed features (Niizumi et al., EUSIPCO 2022): initialisation,
padding, temporal pooling and the classifier.
"""

from typing import Optional, Union

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .classifier_dual_ssast import ClassifierMixin, init, init_learned
from .configuration_composed import ComposedConfig
from .embedding_dual_ssast import ModelMixin
from .fusion_dual_ssast import (
    TokenAttention,
    align_frames,
    check_spectrograms,
    compose_frames,
    pad_end,
    pool_tokens,
)


class ComposedPreTrainedModel(ModelMixin, PreTrainedModel):
    """
    Initialises and loads a network, and composes its maps to a clip's vector: the base class of VGGish and CNN14. A
    subclass sets `config_class` and `base_model_prefix`.
    """

    config_class = ComposedConfig
    _no_split_modules = []

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        init_learned(module)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Loads a model like Transformers does, and freezes parameters that cannot get a gradient."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_unreached()  # Transformers 5 replaces the parameters, which resets requires_grad
        return loaded

    def pad_frames(
        self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Checks the input, moves each clip's frames to the beginning, and pads the batch to `config.min_frames`:
        -> the spectrogram (batch, frames, mel) in the dtype of the weights, and each clip's number of frames
        (batch,).
        """
        config = self.config
        check_spectrograms(input_values, attention_mask, config.num_mel_bins)
        spectrogram = input_values.to(self.dtype)
        num_frames = spectrogram.shape[1]
        lengths = torch.full(spectrogram.shape[:1], num_frames, device=spectrogram.device)
        if attention_mask is not None:
            spectrogram = align_frames(spectrogram, attention_mask, config.padding_value)
            lengths = attention_mask.bool().sum(dim=1)
        spectrogram = pad_end(spectrogram, config.min_frames, config.padding_value, most=config.min_frames)
        return spectrogram, lengths.clamp(min=config.min_frames)

    def compose(self, maps: dict[int, torch.Tensor], time_stride: int) -> torch.Tensor:
        """Joins the maps of the fused layers by `compose_frames` -> (clips, time frames, config.fused_size)."""
        layers = self.config.fused_layers
        feature_maps = [maps[layer].transpose(2, 3) for layer in layers]
        return compose_frames(feature_maps, [self.config.time_stride(layer) for layer in layers], time_stride)

    def _make_attention(self) -> Optional[TokenAttention]:
        config = self.config
        has_attention = "attention" in config.temporal_pooling
        return TokenAttention(config.fused_size, config.num_pooling_heads) if has_attention else None

    def pool(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Sums the temporal poolings: (batch, time frames, size), boolean (batch, time frames) -> (batch, size)."""
        return pool_tokens(frames, mask, self.config.temporal_pooling, "sum", self.attention)


class ComposedForAudioClassification(ClassifierMixin, ComposedPreTrainedModel):
    """
    Classifies clips by a network's `pooler_output`: one label, several labels, or numbers per clip. A subclass makes
    network and classifier.
    """

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        labels: Optional[torch.Tensor] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[tuple, SequenceClassifierOutput]:
        """
        Classifies a batch of spectrograms.

        Args:
            input_values: (batch, frames, mel), of any length.
            attention_mask: (batch, frames), 1 for audio and 0 for padding, on any side.
            labels: Classes (batch,), or floats (batch, labels): several true labels, regression targets, or the soft
                labels of mixup if `config.problem_type` is `"single_label_classification"`.
            output_hidden_states: Whether to return the maps of all layers.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            `loss` (scalar) if there are labels, `logits` (batch, labels), and `hidden_states` like those of the network
                if asked for.

        Raises:
            ValueError: Shapes that do not fit.
            TypeError: A keyword is unknown.
        """
        self.check_keywords(kwargs)
        config = self.config
        outputs: BaseModelOutputWithPooling = self.base_model(
            input_values, attention_mask, output_hidden_states=output_hidden_states, return_dict=True
        )
        output = self.classifier_output(self.logits_of(outputs, attention_mask), labels, outputs)
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()
