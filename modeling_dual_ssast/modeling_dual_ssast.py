# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Dual SSAST (Choi et al., Neurocomputing 623, 2025): SSAST (Gong et al., AAAI 2022) with fusion of layers and poolings.

Shapes: `input_values` (batch, frames, mel) -> patches, frequency-major -> states (batch, prefix + patches, hidden) ->
`pooler_output` (batch, config.fused_size) -> `logits` (batch, labels).
"""

import contextvars
import copy
import math
import os
from collections.abc import Container
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, logging

from .attention_dual_ssast import with_blocks
from .classifier_dual_ssast import ClassifierMixin, FrameClassifierMixin, init, init_learned, make_classifier
from .configuration_dual_ssast import DualSSASTConfig
from .embedding_dual_ssast import HUB_KEYWORDS, ModelMixin, PatchEmbeddingMixin
from .fusion_dual_ssast import (
    LayerFusion,
    TokenAttention,
    align_frames,
    check_spectrograms,
    frame_mask,
    in_graph,
    in_place_of,
    pad_end,
    pool_rows,
    pool_tokens,
    time_frames,
    to_feature_map,
    token_frames,
)
from .masking_dual_ssast import sample_masked_patches
from .packing_dual_ssast import Packing, packed_attention

try:  # Transformers before 4.51 does not pass block masks to flex attention
    from torch.nn.attention.flex_attention import create_block_mask
    from transformers.integrations.flex_attention import BlockMask
except ImportError:
    BlockMask = create_block_mask = None

try:
    from transformers.modeling_layers import GradientCheckpointingLayer
except ImportError:  # Transformers before 4.52

    class GradientCheckpointingLayer(nn.Module):
        gradient_checkpointing = False

        def __call__(self, *args):
            if self.gradient_checkpointing and self.training:
                return self._gradient_checkpointing_func(super().__call__, *args)
            return super().__call__(*args)


logger = logging.get_logger(__name__)

# Fields that resize_position_embeddings changes; from_pretrained resizes when one of them is overridden.
GEOMETRY = ("max_length", "frequency_stride", "time_stride")
# Share of padding above which a batch is packed: `config.pack_tokens` -> share.
PADDING_TO_PACK = {None: 0.05, True: 0.0}
# Whether a model is being built for stored weights, with their patch grid: `from_pretrained` resizes it afterwards.
builds_stored_grid = contextvars.ContextVar("builds_stored_grid", default=False)


class DualSSASTEmbeddings(nn.Module):
    """Embeds a spectrogram: prefix tokens and patches, with positions."""

    def __init__(self, config: DualSSASTConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Conv2d(
            1, config.hidden_size, config.patch_shape, stride=(config.frequency_stride, config.time_stride)
        )
        self.prefix_tokens = nn.Parameter(torch.empty(1, config.num_prefix_tokens, config.hidden_size))
        self.position_embeddings = nn.Parameter(
            torch.empty(1, config.num_prefix_tokens + config.num_patches, config.hidden_size)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        bool_masked_pos: Optional[torch.Tensor] = None,
        mask_token: Optional[torch.Tensor] = None,
        return_positions: bool = False,
    ) -> tuple[torch.Tensor, Optional[torch.Tensor], Optional[tuple[torch.Tensor, torch.Tensor]]]:
        """
        Embeds the patches of a batch; the other arguments are those of [`DualSSASTModel`].

        Args:
            return_positions: Whether the positions are returned, too. A decoder needs them: where Accelerate's
                offloading keeps the weights elsewhere, they are here during this call alone.

        Returns:
            The embeddings (batch, prefix + patches, hidden); the boolean mask (batch, patches) of the patches that hold
                audio, or `None` if all do; the positions of prefix and patches, (1, tokens, hidden) each, or `None`.
        """
        spectrogram = self.pad_frames(input_values, attention_mask)  # (batch, frames, mel)
        patches = self.projection(spectrogram.transpose(1, 2).unsqueeze(1))  # (batch, hidden, rows, columns)
        columns = patches.shape[-1]
        patches = patches.flatten(2).transpose(1, 2)  # (batch, rows * columns, hidden)
        if bool_masked_pos is not None:
            check_masked(bool_masked_pos, patches, input_values.shape[1])
            if mask_token is None:
                raise ValueError(
                    "bool_masked_pos needs the vector that replaces the masked patches: pass mask_token (hidden,), or "
                    "use DualSSASTForPreTraining, which has one"
                )
            patches = torch.where(bool_masked_pos.bool().unsqueeze(-1), mask_token.to(patches.dtype), patches)
        prefix_positions, patch_positions = self.positions(columns)
        prefix = (self.prefix_tokens + prefix_positions).expand(patches.shape[0], -1, -1)
        embeddings = torch.cat((prefix, patches + patch_positions), dim=1)
        # Copies: views of a weight require gradients even without a graph, which ends torch's trackers of modules.
        positions = (prefix_positions.clone(), patch_positions.clone()) if return_positions else None
        return self.dropout(embeddings), self.patch_mask(attention_mask, patches.shape[1]), positions

    def pad_frames(self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """
        Checks the input, moves each clip's frames to the beginning, and pads the right edge to whole patches.

        Args:
            input_values: (batch, frames, mel).
            attention_mask: (batch, frames), 1 for audio and 0 for padding, or `None`.

        Returns:
            (batch, frames of whole patches, mel), in the dtype of the weights; `config.max_length` frames with
                `config.attention_over_padding`.

        Raises:
            ValueError: Shapes that do not fit, or more frames than `config.max_length`.
        """
        config = self.config
        check_spectrograms(input_values, attention_mask, config.num_mel_bins)
        num_frames = input_values.shape[1]
        if num_frames > config.max_length:
            raise ValueError(
                f"input_values has {num_frames} frames, but the positions end at max_length={config.max_length}: "
                "truncate, read windows (a clip classifier's classify_windows, an encoder's embed), or "
                "resize_position_embeddings"
            )
        spectrogram = input_values.to(self.projection.weight.dtype)
        if attention_mask is not None:
            spectrogram = align_frames(spectrogram, attention_mask, config.padding_value)
        if config.attention_over_padding:
            return pad_end(spectrogram, config.max_length, config.padding_value, most=config.max_length)
        wanted = config.num_covered_frames(config.num_columns(num_frames))
        return pad_end(spectrogram, wanted, config.padding_value, most=config.patch_shape[1])

    def positions(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the positions of the prefix and of the first `columns` of the grid, each (1, tokens, hidden)."""
        config = self.config
        prefix, grid = self.position_embeddings.split((config.num_prefix_tokens, config.num_patches), dim=1)
        grid = grid.unflatten(1, config.grid_shape)  # (1, rows, columns of max_length, hidden)
        return prefix, grid[:, :, :columns].flatten(1, 2)

    def patch_mask(self, attention_mask: Optional[torch.Tensor], num_patches: int) -> Optional[torch.Tensor]:
        """Marks the patches that hold audio: (batch, frames) -> boolean (batch, patches); `None` if all take part."""
        if attention_mask is None or self.config.attention_over_padding:
            return None
        rows = self.config.grid_shape[0]
        valid_columns = self.config.num_columns(attention_mask.bool().sum(dim=1))  # (batch,)
        column_mask = frame_mask(valid_columns, num_patches // rows)  # (batch, columns)
        return column_mask.repeat(1, rows)  # frequency-major: every row of patches repeats the columns

    def resize(self, frequency_stride: int, time_stride: int, max_length: int):
        """Resizes the positions by `cut_or_interpolate`, sets the projection's strides, updates the configuration."""
        config = self.config
        prefix, grid = self.position_embeddings.detach().split((config.num_prefix_tokens, config.num_patches), dim=1)
        grid = grid.unflatten(1, config.grid_shape)  # (1, rows, columns, hidden)
        config.frequency_stride, config.time_stride, config.max_length = frequency_stride, time_stride, max_length
        grid = cut_or_interpolate(grid.permute(0, 3, 1, 2), config.grid_shape)  # (1, hidden, rows, columns)
        resized = torch.cat((prefix, grid.flatten(2).transpose(1, 2)), dim=1)
        self.position_embeddings = nn.Parameter(resized, requires_grad=self.position_embeddings.requires_grad)
        self.projection.stride = (frequency_stride, time_stride)


def check_masked(bool_masked_pos: torch.Tensor, patches: torch.Tensor, num_frames: int):
    """Raises `ValueError` if a mask does not fit the patches (batch, patches, ...) of clips of `num_frames` frames."""
    if bool_masked_pos.shape != patches.shape[:2]:
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, expected (batch, patches) = "
            f"{tuple(patches.shape[:2])} for {num_frames} frames"
        )


def cut_or_interpolate(grid: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """
    Resizes positions to a new patch grid by SSAST's rule (Gong et al., AAAI 2022, section 3.3 and the published code).

    Along each axis, time first, a smaller grid takes the centre and a larger grid is interpolated bilinearly.

    Args:
        grid: (1, hidden, rows, columns).
        shape: Rows and columns of the new grid.

    Returns:
        (1, hidden, *shape).
    """
    rows, columns = shape
    if columns < grid.shape[3]:
        start = grid.shape[3] // 2 - columns // 2
        grid = grid[:, :, :, start : start + columns]
    else:
        grid = interpolate(grid, (grid.shape[2], columns))
    if rows < grid.shape[2]:
        start = grid.shape[2] // 2 - rows // 2
        return grid[:, :, start : start + rows]
    return interpolate(grid, (rows, columns))


def interpolate(grid: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Interpolates bilinearly in float32: (1, hidden, rows, columns) -> (1, hidden, *shape), in the dtype of `grid`."""
    # Some CPU builds have no half-precision kernel for it.
    return nn.functional.interpolate(grid.float(), size=shape, mode="bilinear", align_corners=False).to(grid.dtype)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes attention step by step, by Transformers' attention interface.

    Returns:
        The result (batch, tokens, heads, head size) and the weights (batch, heads, tokens, tokens).
    """
    scores = query @ key.transpose(2, 3) * scaling  # (batch, heads, tokens, tokens)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    attended = nn.functional.dropout(weights, p=dropout, training=module.training) @ value
    return attended.transpose(1, 2), weights


def attention_mask_for(
    implementation: str, token_mask: Optional[torch.Tensor], dtype: torch.dtype
) -> "Optional[Union[torch.Tensor, BlockMask]]":
    """Converts a boolean mask (batch, tokens) to the form that an attention implementation expects; `None` stays."""
    if token_mask is None or "flash" in implementation:
        return token_mask
    if implementation == "sdpa":
        return token_mask[:, None, None, :]  # boolean, (batch, 1, 1, tokens)
    if implementation == "flex_attention":
        batch, tokens = token_mask.shape
        return create_block_mask(lambda b, h, q, k: token_mask[b, k], batch, None, tokens, tokens, token_mask.device)
    bias = torch.zeros(token_mask.shape, dtype=dtype, device=token_mask.device)
    return bias.masked_fill(~token_mask, torch.finfo(dtype).min)[:, None, None, :]


class DualSSASTAttention(nn.Module):
    """Applies multi-head self-attention through Transformers' attention interface."""

    def __init__(self, config: DualSSASTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = False  # read by the flash implementations
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Optional[Union[torch.Tensor, Packing]], implementation: str
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Attends over the tokens of each clip; arguments and results are those of [`DualSSASTLayer`]."""
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # (batch, heads, tokens, head_dim)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        attend = eager_attention if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        if implementation == "sdpa":
            attend = with_blocks(attend)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        states = (query, key, value)
        if isinstance(attention_mask, Packing):
            attended = packed_attention(attend, self, *states, attention_mask, implementation, dropout)
            return self.o_proj(attended.flatten(2)), None
        attended, weights = attend(
            self, *states, attention_mask, dropout=dropout, scaling=self.head_dim**-0.5, is_causal=False
        )  # (batch, tokens, heads, head_dim)
        return self.o_proj(attended.flatten(2)), weights if implementation == "eager" else None


class DualSSASTMLP(nn.Module):
    """Applies the MLP of a block: Linear, activation, Linear."""

    def __init__(self, config: DualSSASTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transforms every token: (batch, tokens, hidden) -> the same shape."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class DropPath(nn.Module):
    """Skips a branch for some clips of a batch, in training only: stochastic depth (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor, packing: Optional[Packing] = None) -> torch.Tensor:
        """
        Zeroes the branch of some clips and scales the others: (batch, tokens, hidden), or a packed row, -> the same
        shape.
        """
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1 - self.rate
        clips = branch.shape[0] if packing is None else len(packing.lengths)
        scales = branch.new_empty(clips, 1, 1).bernoulli_(keep).div_(keep)
        return branch * (scales if packing is None else scales[packing.clips].transpose(0, 1))


class DualSSASTLayer(GradientCheckpointingLayer):
    """
    Applies a pre-norm transformer block.

    Args:
        config: Configuration of the encoder.
        drop_path_rate: Stochastic depth of both branches.
    """

    def __init__(self, config: DualSSASTConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = DualSSASTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DualSSASTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Optional[Union[torch.Tensor, Packing]], implementation: str
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """
        Runs the block.

        Args:
            hidden_states: (batch, tokens, hidden); a packed row is (1, tokens, hidden).
            attention_mask: A result of `attention_mask_for`, or the `Packing` of a packed row.
            implementation: Name of the attention implementation, such as `"sdpa"`.

        Returns:
            The states, of the same shape, and the attention weights: `None` unless eager and not packed.
        """
        packing = attention_mask if isinstance(attention_mask, Packing) else None
        attended, weights = self.attention(self.layernorm_before(hidden_states), attention_mask, implementation)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended), packing)
        transformed = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(transformed, packing), weights


class DualSSASTFusion(nn.Module):
    """
    Computes a clip's representation from several normalised hidden states (Choi et al., Neurocomputing 623, 2025): read
    out and pool each, fuse the layers.
    """

    def __init__(self, config: DualSSASTConfig):
        super().__init__()
        self.config = config
        self.layer_indices = config.fused_layers
        if config.fusion_norm == "separate":
            self.layernorms = nn.ModuleList(
                nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in self.layer_indices
            )
        self.attention = nn.ModuleList(
            TokenAttention(config.token_size, config.num_pooling_heads) if "attention" in pooling else nn.Identity()
            for pooling in config.pooling_per_layer
        )
        self.fusion = LayerFusion(config.fusion, len(self.layer_indices))

    def forward(self, states: list[torch.Tensor], patch_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Fuses normalised states (batch, tokens, hidden), one per fused layer -> (batch, config.fused_size)."""
        return self.fusion([self.read_out(place, state, patch_mask) for place, state in enumerate(states)])

    def read_out(self, place: int, state: torch.Tensor, patch_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Reads out and pools the fused layer at a place: normalised (batch, tokens, hidden) -> (batch, size)."""
        config = self.config
        prefix, tokens = state[:, : config.num_prefix_tokens], state[:, config.num_prefix_tokens :]
        if config.readout == "prefix":
            return prefix.mean(dim=1)
        if config.readout == "tokens":
            return self._token_frames(state).mean(dim=1)
        if patch_mask is None:
            patch_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if config.readout == "frames":
            tokens = time_frames(to_feature_map(tokens, config.grid_shape[0]))  # (batch, columns, hidden * rows)
            patch_mask = patch_mask[:, : tokens.shape[1]]  # the first row of patches: all rows have the same columns
        return pool_tokens(tokens, patch_mask, *self._pooling(place))

    def _pooling(self, place: int) -> tuple:
        """Returns how the fused layer at a place is pooled: the last arguments of `pool_tokens`."""
        return self.config.pooling_per_layer[place], self.config.pooling_combination, self.attention[place]

    def frames(self, states: list[torch.Tensor]) -> torch.Tensor:
        """
        Fuses the states like `forward`, but pools over frequency alone.

        Args:
            states: Per fused layer (batch, prefix + patches, hidden), normalised by [`DualSSASTModel`].

        Returns:
            (batch, columns of patches, [`DualSSASTModel`]'s label_frame_size); (batch, config.num_token_frames, ...)
                with `readout="tokens"`.
        """
        config, vectors = self.config, []
        for place, state in enumerate(states):
            if config.readout == "patches":
                feature_map = to_feature_map(state[:, config.num_prefix_tokens :], config.grid_shape[0])
                vectors.append(pool_rows(feature_map, *self._pooling(place)))
            else:
                vectors.append(self.frame_tokens(state).squeeze(2))
        return self.fusion(vectors)

    def tokens(self, states: list[torch.Tensor]) -> torch.Tensor:
        """
        Fuses the states at every token, without pooling.

        Args:
            states: Per fused layer (batch, prefix + patches, hidden), normalised by [`DualSSASTModel`].

        Returns:
            (batch, columns of patches, rows, [`DualSSASTModel`]'s frame_size); a column is one token with
                `readout="frames"` and `"tokens"`, and the prefix is one column with `"prefix"`.
        """
        return self.fusion([self.frame_tokens(state) for state in states])

    def frame_tokens(self, state: torch.Tensor) -> torch.Tensor:
        """Arranges the tokens of one state (batch, prefix + patches, hidden) like `tokens`."""
        config = self.config
        if config.readout == "prefix":
            return state[:, None, : config.num_prefix_tokens]
        if config.readout == "tokens":
            return self._token_frames(state).unsqueeze(2)
        feature_map = to_feature_map(state[:, config.num_prefix_tokens :], config.grid_shape[0])
        if config.readout == "frames":
            return time_frames(feature_map).unsqueeze(2)
        return feature_map.permute(0, 3, 2, 1)

    def _token_frames(self, state: torch.Tensor) -> torch.Tensor:
        config = self.config
        return token_frames(state, config.num_prefix_tokens, config.grid_shape[0], config.num_token_frames)


class DualSSASTPreTrainedModel(ModelMixin, PreTrainedModel):
    """
    Initialises, loads and resizes the Dual SSAST and ASiT models: their base class.
    """

    config_class = DualSSASTConfig
    base_model_prefix = "dual_ssast"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DualSSASTEmbeddings", "DualSSASTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # the name until Transformers 4.52
    _supports_flex_attn = create_block_mask is not None
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Weights that only a pretraining needs: ASiT's, and those of masked spectrogram patch modelling.
    _keys_to_ignore_on_load_unexpected = [
        r"^student", r"^teacher_", r"_center$",
        r"^decoder\.", r"^(discriminative|generative|contrast)_head\.", r"^mask_token$",
    ]  # fmt: skip

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # Transformers would search this file for a line that differs from version to version.
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DualSSASTEmbeddings):
            init.trunc_normal_(module.prefix_tokens, std=std)
            init.trunc_normal_(module.position_embeddings, std=std)
        init_learned(module)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the patch projection."""
        return self.base_model.embeddings.projection

    def resize_position_embeddings(
        self,
        max_length: Optional[int] = None,
        frequency_stride: Optional[int] = None,
        time_stride: Optional[int] = None,
    ):
        """
        Resizes the model to another patch grid by SSAST's rule (Gong et al., AAAI 2022, section 3.3): centre cut if
        smaller, bilinear interpolation if larger. Updates the configuration. What is `None` keeps its value.

        Args:
            max_length: Longest input in frames.
            frequency_stride: Step between patches in mel bins.
            time_stride: Step between patches in frames.

        Raises:
            ValueError: The patch does not fit, or a stride skips audio.
        """
        wanted = {"max_length": max_length, "frequency_stride": frequency_stride, "time_stride": time_stride}
        wanted = {name: getattr(self.config, name) if value is None else value for name, value in wanted.items()}
        trial = copy.deepcopy(self.config)
        for name, value in wanted.items():
            setattr(trial, name, value)
        trial.check()
        fused_size = self.config.fused_size
        self.base_model.embeddings.resize(**wanted)
        self._fit_fusion()
        self._fit_head(fused_size)

    def _fit_fusion(self):
        """Replaces the queries of attention if a new patch grid changed the size of a token."""
        size, attention = self.config.token_size, self.base_model.fusion.attention if self.base_model.fusion else ()
        old_sizes = set()
        for place, old in enumerate(attention):
            if isinstance(old, TokenAttention) and old.pooling_query.shape[1] != size:
                old_sizes.add(old.pooling_query.shape[1])
                attention[place] = in_place_of(old, TokenAttention(size, old.pooling_query.shape[0]))
        if old_sizes:
            logger.warning(
                f"The new patch grid changes the size of a token from {old_sizes.pop()} to {size}: the queries of the "
                "pooling 'attention' are newly initialised, as a mean, and must be trained."
            )

    def _fit_head(self, old_fused_size: int):
        """Fits a head to a new patch grid. Here: no head."""

    def _check_strides(self):
        """Checks the strides of a model that was made or loaded. Here: any that the configuration allows."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Loads a model like Transformers does, with another patch grid if asked for.

        `max_length`, `frequency_stride` and `time_stride` may differ from the checkpoint's: the positions are loaded
        first, then resized by `resize_position_embeddings`. Another `patch_size` needs new projections and positions:
        `ignore_mismatched_sizes=True` allows it.

        Args:
            pretrained_model_name_or_path: Folder or Hub name.
            *model_args: Arguments of the model's constructor.
            config: Configuration instead of the stored one, or the folder or Hub name of another.
            **kwargs: Configuration fields to override, and arguments of Transformers' `from_pretrained`.

        Returns:
            The model, or a tuple of it and the loading report with `output_loading_info=True`.

        Raises:
            ValueError: A value or a combination of values is impossible.
            OSError: There is no such checkpoint.
        """
        wanted = {name: kwargs.pop(name) for name in GEOMETRY if name in kwargs}
        hub = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
        if config is None and "patch_size" in kwargs:
            config = pretrained_model_name_or_path
        if isinstance(config, (str, os.PathLike)):
            config, unused = cls.config_class.from_pretrained(config, return_unused_kwargs=True, **wanted, **kwargs)
            kwargs = unused | hub
        if pretrained_model_name_or_path is not None and isinstance(config, PretrainedConfig):
            stored, _ = cls.config_class.get_config_dict(pretrained_model_name_or_path, **hub)
            # Without a config.json the given configuration describes the weights.
            stored = cls.config_class.from_dict(stored) if stored else config
            wanted = {name: getattr(config, name) for name in GEOMETRY} | wanted
            config = copy.deepcopy(config)
            # Positions of other patches are not resized, but new: Transformers finds that their sizes do not fit.
            has_same_patches = config.patch_shape == stored.patch_shape
            for name in GEOMETRY:
                setattr(config, name, getattr(stored, name) if has_same_patches else wanted[name])
        token = builds_stored_grid.set(True)
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        finally:
            builds_stored_grid.reset(token)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if any(getattr(model.config, name) != value for name, value in wanted.items()):
            model.resize_position_embeddings(**wanted)
        model._check_strides()
        model._freeze_unreached()  # Transformers 5 replaces the parameters, which resets requires_grad
        return loaded


class DualSSASTModel(PatchEmbeddingMixin, DualSSASTPreTrainedModel):
    """
    Encodes spectrograms and fuses several layers into one vector per clip (Choi et al., Neurocomputing 623, 2025).

    `pooler_output` (batch, config.fused_size) is the input of the classifier and the embedding of a clip. `embed`
    computes it for waveforms of any sampling rate and length, `embed_frames` computes embeddings over time.

    Args:
        config: Configuration of the encoder.
        add_fusion: Whether to add the fusion. Without it `pooler_output` is `None`.

    Example:
        ```python
        >>> from modeling_dual_ssast import DualSSASTFeatureExtractor, DualSSASTModel

        >>> extractor = DualSSASTFeatureExtractor.from_pretrained("FOLDER")
        >>> model = DualSSASTModel.from_pretrained("FOLDER").eval()
        >>> features = extractor(waveform, sampling_rate=16000, return_tensors="pt")
        >>> embedding = model(**features).pooler_output  # (1, 1536) for a base model
        ```
    """

    def __init__(self, config: DualSSASTConfig, add_fusion: bool = True):
        super().__init__(config)
        self.embeddings = DualSSASTEmbeddings(config)
        deepest = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            DualSSASTLayer(config, config.drop_path_rate * index / deepest) for index in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fusion = DualSSASTFusion(config) if add_fusion else None
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        bool_masked_pos: Optional[torch.Tensor] = None,
        mask_token: Optional[torch.Tensor] = None,
        last_layer: Optional[int] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[tuple, BaseModelOutputWithPooling]:
        """
        Encodes a batch of spectrograms.

        Args:
            input_values: (batch, frames, mel), normalised, at most `config.max_length` frames.
            attention_mask: (batch, frames), 1 for audio and 0 for padding, on any side.
            bool_masked_pos: Boolean (batch, patches), true for patches that `mask_token` replaces.
            mask_token: (hidden,), needed with `bool_masked_pos`.
            last_layer: Number of the block to stop after, the highest fused layer at least. `last_hidden_state` is then
                its output, normalised.
            output_attentions: Whether to return the attention weights. The eager implementation then computes them.
            output_hidden_states: Whether to return the hidden states.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            `last_hidden_state` (batch, prefix + patches, hidden) after the final LayerNorm; `pooler_output` (batch,
                config.fused_size); if asked for, `hidden_states`, num_hidden_layers + 1 states (batch, prefix +
                patches, hidden) before that LayerNorm, the embedding first, and `attentions`, per block (batch, heads,
                tokens, tokens).

        Raises:
            ValueError: Shapes that do not fit, more frames than `config.max_length`, `bool_masked_pos` alone, or a
                `last_layer` below a fused one.
            TypeError: A keyword is unknown.
        """
        self.check_keywords(kwargs)
        state, patch_mask, _ = self.embeddings(input_values, attention_mask, bool_masked_pos, mask_token)
        output = self.encode(state, patch_mask, output_attentions, output_hidden_states, last_layer)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def encode(
        self,
        state: torch.Tensor,
        patch_mask: Optional[torch.Tensor],
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        last_layer: Optional[int] = None,
    ) -> BaseModelOutputWithPooling:
        """Encodes embeddings (batch, prefix + patches, hidden) with a boolean mask (batch, patches) like `forward`."""
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        last_layer = config.num_hidden_layers if last_layer is None else last_layer
        fused = self.fusion.layer_indices if self.fusion else ()
        if not max(fused, default=0) <= last_layer <= config.num_hidden_layers:
            raise ValueError(
                f"last_layer must be from {max(fused, default=0)}, the highest fused layer, to "
                f"{config.num_hidden_layers}, got {last_layer}"
            )
        kept = range(last_layer + 1) if output_hidden_states else fused

        state, states, attentions = self.run_layers(
            self.layers[:last_layer], state, self.token_mask(patch_mask), kept, output_attentions
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=self.layernorm(state),
            pooler_output=self.fusion(self.fused_states(states), patch_mask) if self.fusion else None,
            hidden_states=tuple(states.values()) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def fused_states(self, states) -> list[torch.Tensor]:
        """Normalises the fused layers of `hidden_states` by `config.fusion_norm`: (batch, tokens, hidden) each."""
        # Not inside the fusion: Accelerate's offloading cannot move a module that is handed to another one.
        fusion_norm, layers = self.config.fusion_norm, self.fusion.layer_indices
        if fusion_norm == "none":
            return [states[layer] for layer in layers]
        norms = self.fusion.layernorms if fusion_norm == "separate" else [self.layernorm] * len(layers)
        normed = [norm(states[layer]) for norm, layer in zip(norms, layers)]
        return [self.layernorm(state) for state in normed] if fusion_norm == "shared_twice" else normed

    def unreached(self) -> list[nn.Module]:
        """Returns the modules that the fused representation does not depend on."""
        modules = list(self.layers[max(self.config.fused_layers) :])
        return modules if self.config.fusion_norm in ("shared", "shared_twice") else [*modules, self.layernorm]

    @property
    def layer_weights(self) -> Optional[dict[int, float]]:
        """Fused layer -> its weight in a `weighted` or `gated` fusion, with a sum of 1; `None` in other fusions."""
        if self.config.fusion not in ("weighted", "gated"):
            return None
        return dict(zip(self.config.fused_layers, self.fusion.fusion.weights.tolist()))

    @property
    def label_frame_size(self) -> int:
        """Size of a label frame's vector: a clip's, but `readout="frames"` leaves nothing to pool."""
        return self.frame_size if self.config.readout == "frames" else self.config.fused_size

    @property
    def label_frame_stride(self) -> float:
        """Spectrogram frames from label frame to label frame: a patch column's, unless `readout="tokens"`."""
        config = self.config
        return config.max_length / config.num_token_frames if config.readout == "tokens" else config.time_stride

    def num_label_frames(self, num_frames: torch.Tensor) -> torch.Tensor:
        """Returns the number of label frames of clips of `num_frames` spectrogram frames, integers (batch,)."""
        if self.config.readout == "tokens":
            return (num_frames / self.label_frame_stride).ceil().long()
        return self.num_time_frames(num_frames)

    def label_frames(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """Fuses the `hidden_states` of an output over frequency: (batch, label frames, label_frame_size)."""
        return self.fusion.frames(self.fused_states(outputs.hidden_states))

    def label_tokens(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """Fuses the `hidden_states` of an output by token: (batch, label frames, tokens of a frame, frame_size)."""
        return self.fusion.tokens(self.fused_states(outputs.hidden_states))

    def run_layers(
        self,
        layers: nn.ModuleList,
        state: torch.Tensor,
        token_mask: Optional[torch.Tensor],
        kept: Container[int] = (),
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], list[Optional[torch.Tensor]]]:
        """
        Runs blocks one after the other, without the padding between the clips where `config.pack_tokens` says so.

        Args:
            layers: Blocks.
            state: (batch, tokens, hidden).
            token_mask: Boolean (batch, tokens), true for tokens that take part; `None` if all do.
            kept: Numbers of the states to keep: 0 is `state`, i the output of block i.
            output_attentions: Whether to compute the attention weights, by the eager implementation.

        Returns:
            The last output (batch, tokens, hidden), the states that are kept by their numbers, and the attention
                weights of each block or `None`. Packed states are zeros at the padding.
        """
        # A mask, even of ones, keeps SDPA from its flash kernel. The test waits for the device.
        if token_mask is not None and not in_graph() and token_mask.all():
            token_mask = None
        implementation = "eager" if output_attentions else self.config._attn_implementation
        packing = None if output_attentions else self.packing(token_mask)
        if packing is None:
            mask, row = attention_mask_for(implementation, token_mask, state.dtype), state
        else:
            mask, row = packing, packing.pack(state)
        states, attentions = {0: state} if 0 in kept else {}, []
        for index, layer in enumerate(layers, start=1):
            row, weights = layer(row, mask, implementation)
            attentions.append(weights)
            if index in kept or index == len(layers):
                state = row if packing is None else packing.unpack(row)
            if index in kept:
                states[index] = state
                row = state if packing is None else packing.pack(state)  # a kept state carries the whole gradient
        return state, states, attentions

    def packing(self, token_mask: Optional[torch.Tensor]) -> Optional[Packing]:
        """Returns where the tokens of a boolean mask (batch, tokens) lie in one row; `None` to keep the padding."""
        packs = self.config.pack_tokens
        if token_mask is None or packs is False or in_graph():  # a graph has fixed shapes
            return None
        if packs is None and token_mask.device.type != "cpu":
            return None
        lengths = token_mask.sum(dim=1).tolist()  # waits for the device
        padding = token_mask.numel() - sum(lengths)
        return Packing.of(token_mask, lengths) if padding > PADDING_TO_PACK[packs] * token_mask.numel() else None

    def reset_fusion(self):
        """Resets the learned parts of the fusion: equal layer weights, and LayerNorms of scale 1 and shift 0."""
        self.fusion = in_place_of(self.fusion, DualSSASTFusion(self.config).to(self.device, self.dtype))

    def token_mask(self, patch_mask: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        """Extends a mask of patches by the prefix: (batch, patches) -> (batch, prefix + patches); `None` stays."""
        if patch_mask is None:
            return None
        return torch.cat((patch_mask.new_ones(patch_mask.shape[0], self.config.num_prefix_tokens), patch_mask), dim=1)


class DualSSASTForAudioClassification(ClassifierMixin, DualSSASTPreTrainedModel):
    """
    Classifies clips by the fused representation of a Dual SSAST encoder: one label, several, or numbers per clip.

    The encoder stops after the highest fused layer, unless hidden states or attentions are asked for.

    Args:
        config: Configuration of encoder and classifier.

    Example:
        ```python
        >>> from modeling_dual_ssast import DualSSASTFeatureExtractor, DualSSASTForAudioClassification

        >>> extractor = DualSSASTFeatureExtractor.from_pretrained("FOLDER")
        >>> model = DualSSASTForAudioClassification.from_pretrained("FOLDER").eval()
        >>> features = extractor(waveform, sampling_rate=16000, return_tensors="pt")
        >>> model.predict_labels(model(**features).logits)
        ['dog']
        ```
    """

    def __init__(self, config: DualSSASTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dual_ssast = DualSSASTModel(config)
        self.classifier = make_classifier(config, self.dual_ssast)
        self.post_init()
        self._freeze_unreached()

    @property
    def last_layer(self) -> int:
        """Highest fused layer, after which the encoder stops."""
        return max(self.config.fused_layers)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        labels: Optional[torch.Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[tuple, SequenceClassifierOutput]:
        """
        Classifies a batch of spectrograms.

        Args:
            input_values: (batch, frames, mel), normalised, at most `config.max_length` frames.
            attention_mask: (batch, frames), 1 for audio and 0 for padding, on any side.
            labels: Classes (batch,), or floats (batch, labels): several true labels, regression targets, or the soft
                labels of mixup if `config.problem_type` is `"single_label_classification"`.
            output_attentions: Whether to return the attention weights. The eager implementation then computes them.
            output_hidden_states: Whether to return the hidden states.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            `loss` (scalar) if there are labels, `logits` (batch, labels), and `hidden_states` and `attentions` like
                those of [`DualSSASTModel`] if asked for.

        Raises:
            ValueError: Shapes that do not fit, or more frames than `config.max_length`.
            TypeError: A keyword is unknown.
        """
        self.check_keywords(kwargs)
        config = self.config
        wants_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        inspects = any((output_attentions, output_hidden_states, config.output_attentions, config.output_hidden_states))
        outputs = self.dual_ssast(
            input_values,
            attention_mask,
            last_layer=None if inspects else self.last_layer,
            output_attentions=output_attentions,
            output_hidden_states=wants_states or config.classifier == "prototypes",
            return_dict=True,
        )
        logits = self.logits_of(outputs, attention_mask)
        output = self.classifier_output(logits, labels, outputs, wants_states)
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class DualSSASTForAudioFrameClassification(FrameClassifierMixin, DualSSASTPreTrainedModel):
    """
    Classifies every time frame by the fused layers of a Dual SSAST encoder: sound events in time.

    A time frame is a column of patches. `config.pooling` pools each over frequency. With `readout="tokens"` there are
    `config.num_token_frames` per clip instead.

    Args:
        config: Configuration of encoder and classifier.

    Raises:
        ValueError: `readout="prefix"`, which has no time frames.

    Example:
        ```python
        >>> from modeling_dual_ssast import DualSSASTForAudioFrameClassification

        >>> model = DualSSASTForAudioFrameClassification.from_pretrained("FOLDER", num_labels=10).eval()
        >>> model.probabilities(model(**features).logits).shape  # 3 s at a time stride of 10 frames
        torch.Size([1, 30, 10])
        ```
    """

    def __init__(self, config: DualSSASTConfig):
        super().__init__(config)
        if config.readout == "prefix":
            raise ValueError("readout='prefix' has no time frames: use 'patches' or 'frames'")
        self.dual_ssast = DualSSASTModel(config)
        self._finish()


@dataclass
class DualSSASTForPreTrainingOutput(ModelOutput):
    """
    Holds the losses of masked spectrogram patch modelling.

    Attributes:
        loss: Scalar, discriminative + 10 * generative, or the loss that `config.pretraining_objective` names.
        discriminative_loss: Scalar; `None` if the objective is off.
        discriminative_accuracy: Scalar; `None` if the objective is off.
        generative_loss: Scalar; `None` if the objective is off.
        clip_contrast_loss: Scalar; `None` if the objective is off.
        clip_contrast_accuracy: Scalar, share of crops whose nearest other crop is of the same clip; `None` if the
            objective is off.
        reconstruction: (batch, patches, mel bins * frames of a patch), row by row of the patch; `None` if the
            generative objective is off. Two crops of a clip are two rows, one after the other, here and below.
        num_masked: (batch,), number of masked patches.
        hidden_states: If asked for, those of the encoder's last pass, which reads the visible patches only if there is
            a decoder.
        attentions: If asked for, those of the encoder's last pass.
    """

    loss: torch.Tensor = None
    discriminative_loss: Optional[torch.Tensor] = None
    discriminative_accuracy: Optional[torch.Tensor] = None
    generative_loss: Optional[torch.Tensor] = None
    clip_contrast_loss: Optional[torch.Tensor] = None
    clip_contrast_accuracy: Optional[torch.Tensor] = None
    reconstruction: Optional[torch.Tensor] = None
    num_masked: torch.Tensor = None
    hidden_states: Optional[tuple[torch.Tensor, ...]] = None
    attentions: Optional[tuple[torch.Tensor, ...]] = None


class DualSSASTDecoder(nn.Module):
    """
    Decodes masked patches in MAE-style pretraining (MAE-AST, Baade et al., Interspeech 2022): the encoder sees visible
    patches only.

    Reuses the encoder's position embeddings. [`DualSSASTForPreTraining`] runs its blocks.
    """

    def __init__(self, config: DualSSASTConfig):
        super().__init__()
        self.layers = nn.ModuleList(DualSSASTLayer(config) for _ in range(config.num_decoder_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class SideBySideMixin:
    """
    Refuses overlapping patches, which both pretrainings exclude: what is hidden in one would be visible in the next.

    `from_pretrained` loads an encoder with overlapping patches, such as AST's, if both strides are given: it is resized
    to patches side by side.
    """

    def _check_strides(self):
        if not builds_stored_grid.get():
            check_side_by_side(self.config, self.config.frequency_stride, self.config.time_stride)

    def resize_position_embeddings(
        self,
        max_length: Optional[int] = None,
        frequency_stride: Optional[int] = None,
        time_stride: Optional[int] = None,
    ):
        """
        Resizes the model to another patch grid, like [`DualSSASTPreTrainedModel`]; the strides must equal the patch.

        Args:
            max_length: Longest input in frames.
            frequency_stride: Step between patches in mel bins. The default is the present one.
            time_stride: Step between patches in frames. The default is the present one.

        Raises:
            ValueError: Overlapping patches, or a patch that does not fit.
        """
        strides = (
            self.config.frequency_stride if frequency_stride is None else frequency_stride,
            self.config.time_stride if time_stride is None else time_stride,
        )
        check_side_by_side(self.config, *strides)
        super().resize_position_embeddings(max_length, *strides)


def check_side_by_side(config: DualSSASTConfig, frequency_stride: int, time_stride: int):
    """Raises `ValueError` if patches of a configuration overlap with strides in mel bins and frames."""
    mels, frames = config.patch_shape
    if (frequency_stride, time_stride) != (mels, frames):
        raise ValueError(
            f"pretraining needs patches side by side, got strides {frequency_stride} x {time_stride} for patches of "
            f"{mels} x {frames}: set frequency_stride={mels} and time_stride={frames}"
        )


class DualSSASTForPreTraining(SideBySideMixin, DualSSASTPreTrainedModel):
    """
    Pretrains by masked spectrogram patch modelling (Gong et al., AAAI 2022, section 2.2): identifies each masked patch
    among the masked patches of the clip (discriminative, InfoNCE) and reconstructs it (generative, MSE).

    The heads read every patch and the losses skip visible patches, so that shapes, memory and compiled code do not
    depend on the masks.

    With `config.clip_contrast_weight`, a third objective finds the two crops of a clip among all crops of the batch by
    the mean of their visible patches (COLA, Saeed et al., ICASSP 2021), with the cosines and the MLP of SimCLR (Chen et
    al., ICML 2020).

    Args:
        config: Configuration; the strides must equal the patch size.

    Raises:
        ValueError: The patches overlap.
    """

    GENERATIVE_WEIGHT = 10.0
    CONTRAST_SIZE = 128  # of the vectors that are compared
    CONTRAST_TEMPERATURE = 0.1

    def __init__(self, config: DualSSASTConfig):
        super().__init__(config)
        self._check_strides()
        self.dual_ssast = DualSSASTModel(config, add_fusion=False)
        self.mask_token = nn.Parameter(torch.empty(config.hidden_size))
        self.decoder = DualSSASTDecoder(config) if config.num_decoder_layers else None
        self.discriminative_head = self._head(config)
        self.generative_head = self._head(config)
        self.contrast_head = self._contrast_head(config) if config.clip_contrast_weight else None
        self.post_init()
        self._freeze_unreached()

    @staticmethod
    def _head(config: DualSSASTConfig) -> nn.Sequential:
        hidden = nn.Linear(config.hidden_size, config.hidden_size)
        return nn.Sequential(hidden, nn.ReLU(), nn.Linear(config.hidden_size, math.prod(config.patch_shape)))

    @classmethod
    def _contrast_head(cls, config: DualSSASTConfig) -> nn.Sequential:
        hidden = nn.Linear(config.hidden_size, config.hidden_size)
        return nn.Sequential(hidden, nn.GELU(), nn.Linear(config.hidden_size, cls.CONTRAST_SIZE))

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            init.trunc_normal_(self.mask_token, std=self.config.initializer_range)

    def _freeze_unreached(self):
        """Freezes the head of an objective that is off. The head stays, so that checkpoints keep it."""
        unused = {"generative": self.discriminative_head, "discriminative": self.generative_head}
        if self.config.pretraining_objective in unused:
            unused[self.config.pretraining_objective].requires_grad_(False)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        bool_masked_pos: Optional[torch.Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[tuple, DualSSASTForPreTrainingOutput]:
        """
        Computes the pretraining losses of a batch.

        Args:
            input_values: (batch, frames, mel), normalised, at most `config.max_length` frames. With
                `config.clip_contrast_weight` (batch, 2, frames, mel), two crops of each clip.
            attention_mask: (batch, frames), 1 for audio and 0 for padding, on any side; the same for both crops.
            bool_masked_pos: Boolean (batch, patches), true for masked patches, which must hold audio. Without
                `config.shared_mask` (batch, 2, patches), a mask per objective, the discriminative first; with
                `config.clip_contrast_weight` a mask per crop. By default `sample_mask` draws it.
            output_attentions: Whether to return the encoder's attention weights.
            output_hidden_states: Whether to return the encoder's hidden states.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            A [`DualSSASTForPreTrainingOutput`].

        Raises:
            ValueError: Shapes that do not fit, more frames than `config.max_length`, or two masks with
                `config.shared_mask` for one crop.
            TypeError: A keyword is unknown.
        """
        self.check_keywords(kwargs)
        objective = self.config.pretraining_objective
        if bool_masked_pos is None:
            bool_masked_pos = self.sample_mask(input_values, attention_mask)
        bool_masked_pos = bool_masked_pos.bool()
        if self.contrast_head is not None:
            input_values, attention_mask, bool_masked_pos = join_crops(input_values, attention_mask, bool_masked_pos)
        if self.config.shared_mask and bool_masked_pos.ndim == 3:
            raise ValueError("bool_masked_pos has a mask for each objective, but config.shared_mask is true")
        has_two = bool_masked_pos.ndim == 3 and bool_masked_pos.shape[1] == 2
        first, second = bool_masked_pos.unbind(1) if has_two else (bool_masked_pos, bool_masked_pos)
        inspected = (output_attentions, output_hidden_states)
        patches = self.patchify(input_values, attention_mask).float()  # (batch, patches, values of a patch)
        check_masked(first, patches, input_values.shape[1])
        loss, states = 0.0, None
        discriminative_loss = accuracy = generative_loss = reconstruction = contrast_loss = contrast_accuracy = None
        if objective != "generative":
            states, encoded, visible = self._encode(input_values, attention_mask, first, *inspected)
            discriminative_loss, accuracy = contrast(patches, self.discriminative_head(states), first)
            loss = loss + discriminative_loss
        if objective != "discriminative":
            if states is None or not self.config.shared_mask:
                states, encoded, visible = self._encode(input_values, attention_mask, second, *inspected)
            reconstruction = self.generative_head(states)
            squares = (reconstruction.float() - patches).square().mean(dim=-1)  # (batch, patches)
            generative_loss = clipwise_mean(squares, second)
            loss = loss + (self.GENERATIVE_WEIGHT if objective == "joint" else 1.0) * generative_loss
        if self.contrast_head is not None:
            patch_states = encoded.last_hidden_state[:, self.config.num_prefix_tokens :]
            means = mean_of_visible(patch_states, visible).to(patch_states.dtype)
            contrast_loss, contrast_accuracy = contrast_clips(
                self.contrast_head(means), self.CONTRAST_TEMPERATURE, self.training
            )
            loss = loss + self.config.clip_contrast_weight * contrast_loss
        output = DualSSASTForPreTrainingOutput(
            loss=loss,
            discriminative_loss=discriminative_loss,
            discriminative_accuracy=accuracy,
            generative_loss=generative_loss,
            clip_contrast_loss=contrast_loss,
            clip_contrast_accuracy=contrast_accuracy,
            reconstruction=reconstruction,
            num_masked=first.sum(dim=1),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def patchify(self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Cuts the targets of both objectives: (batch, frames, mel) -> (batch, patches, values of a patch)."""
        spectrogram = self.dual_ssast.embeddings.pad_frames(input_values, attention_mask)
        rows, columns = self.config.patch_shape  # mel and frames of a patch
        # (batch, patches along mel, patches along time, mel of a patch, frames of a patch)
        patches = spectrogram.transpose(1, 2).unfold(1, rows, rows).unfold(2, columns, columns)
        return patches.flatten(3).flatten(1, 2)

    def _encode(
        self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor], masked: torch.Tensor, *inspected
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling, torch.Tensor]:
        """
        Encodes a batch without the content of masked patches: -> (batch, patches, hidden), the encoder's output, and
        which of its patches are visible, boolean (batch, its patches).
        """
        if self.decoder is not None:
            return self._encode_visible(input_values, attention_mask, masked, *inspected)
        output_attentions, output_hidden_states = inspected
        outputs = self.dual_ssast(
            input_values,
            attention_mask,
            bool_masked_pos=masked,
            mask_token=self.mask_token,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        patch_mask = self.dual_ssast.embeddings.patch_mask(attention_mask, masked.shape[1])
        visible = ~masked if patch_mask is None else ~masked & patch_mask
        return outputs.last_hidden_state[:, self.config.num_prefix_tokens :], outputs, visible

    def _encode_visible(
        self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor], masked: torch.Tensor, *inspected
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling, torch.Tensor]:
        """Encodes the visible patches, then decodes all patches with mask tokens: results like `_encode`."""
        encoder, num_prefix = self.dual_ssast, self.config.num_prefix_tokens
        tokens, patch_mask, positions = encoder.embeddings(input_values, attention_mask, return_positions=True)
        prefix_positions, patch_positions = positions
        prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
        hidden = masked if patch_mask is None else masked | ~patch_mask  # (batch, patches)
        counts = (~hidden).sum(dim=1)
        longest = int(counts.max())
        places = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]  # the visible ones come first
        is_visible = frame_mask(counts, longest)  # (batch, longest)
        index = places.unsqueeze(-1).expand(-1, -1, patches.shape[-1])

        outputs = encoder.encode(torch.cat((prefix, patches.gather(1, index)), dim=1), is_visible, *inspected)
        state = outputs.last_hidden_state
        prefix, visible = state[:, :num_prefix], state[:, num_prefix:]

        mask_tokens = self.mask_token.to(visible.dtype).expand(patches.shape)
        # A clip with fewer visible patches than the longest writes mask tokens over mask tokens.
        visible = torch.where(is_visible.unsqueeze(-1), visible, self.mask_token.to(visible.dtype))
        state = torch.cat((prefix + prefix_positions, mask_tokens.scatter(1, index, visible) + patch_positions), dim=1)
        state, *_ = encoder.run_layers(self.decoder.layers, state, encoder.token_mask(patch_mask))
        return self.decoder.layernorm(state)[:, num_prefix:], outputs, is_visible

    def sample_mask(self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Draws masks of `config.mask_ratio` of each clip's patches: squares for patch models with
        `config.clustered_mask`, else single patches.

        Args:
            input_values: (batch, frames, mel).
            attention_mask: (batch, frames), 1 for audio and 0 for padding.

        Returns:
            Boolean (batch, patches), or (batch, 2, patches) for two objectives without `config.shared_mask` and for two
                crops.
        """
        config = self.config
        batch, num_frames = input_values.shape[0], input_values.shape[-2]
        rows, columns = config.grid_shape[0], config.num_batch_columns(num_frames)
        valid_columns = torch.full((batch,), config.num_columns(num_frames), device=input_values.device)
        if attention_mask is not None:
            valid_columns = config.num_columns(attention_mask.bool().sum(dim=1))
        copies = config.num_pretraining_masks
        valid_columns = valid_columns.repeat_interleave(copies)
        mask = sample_masked_patches(rows, columns, valid_columns, config.mask_ratio, config.clustered_mask)
        return mask if copies == 1 else mask.unflatten(0, (batch, copies))


def contrast(
    targets: torch.Tensor, predictions: torch.Tensor, masked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes InfoNCE among the masked patches of each clip (SSAST, Gong et al., AAAI 2022, equation 1).

    The softmax runs over the predictions, and the accuracy takes the target of the highest probability (not of the
    highest score), like in the published code.

    Args:
        targets: (batch, patches, values of a patch).
        predictions: (batch, patches, values of a patch).
        masked: Boolean (batch, patches).

    Returns:
        The loss, and the share of masked patches whose right target is the most probable; scalars.
    """
    with torch.autocast(targets.device.type, enabled=False):  # half precision would tie neighbouring patches
        scores = targets.float() @ predictions.float().transpose(1, 2)  # (batch, targets, predictions)
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~masked.unsqueeze(1), lowest).log_softmax(dim=2)
    own = scores.diagonal(dim1=1, dim2=2)  # (batch, patches)
    best = scores.detach().masked_fill(~masked.unsqueeze(2), lowest).argmax(dim=1)  # (batch, predictions)
    right = best == torch.arange(best.shape[1], device=best.device)
    return clipwise_mean(-own, masked), clipwise_mean(right.float(), masked)


def join_crops(
    input_values: torch.Tensor, attention_mask: Optional[torch.Tensor], bool_masked_pos: torch.Tensor
) -> tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor]:
    """
    Joins the two crops of every clip to the batch, one after the other.

    Args:
        input_values: (batch, 2, frames, mel).
        attention_mask: (batch, frames), or `None`.
        bool_masked_pos: (batch, 2, patches).

    Returns:
        The same with 2 * batch rows: (rows, frames, mel), (rows, frames) or `None`, and (rows, patches).

    Raises:
        ValueError: Other shapes.
    """
    if input_values.ndim != 4 or input_values.shape[1] != 2:
        raise ValueError(
            f"expected input_values (batch, 2 crops, frames, mel), because config.clip_contrast_weight is above 0, got "
            f"{tuple(input_values.shape)}: stack two crops of each clip"
        )
    if bool_masked_pos.ndim != 3 or bool_masked_pos.shape[1] != 2:
        raise ValueError(
            f"expected bool_masked_pos (batch, 2 crops, patches), because config.clip_contrast_weight is above 0, got "
            f"{tuple(bool_masked_pos.shape)}"
        )
    attention_mask = None if attention_mask is None else attention_mask.repeat_interleave(2, dim=0)
    return input_values.flatten(0, 1), attention_mask, bool_masked_pos.flatten(0, 1)


def contrast_clips(vectors: torch.Tensor, temperature: float, gather: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes InfoNCE between the two crops of each clip, among the crops of all clips (NT-Xent of SimCLR, Chen et al.,
    ICML 2020).

    Args:
        vectors: (2 * clips, size), the crops of a clip one after the other.
        temperature: Divides the cosine similarities.
        gather: Whether the crops of all processes are compared, each of which has as many.

    Returns:
        The loss, and the share of crops whose nearest other crop is of the same clip; scalars.
    """
    own = nn.functional.normalize(vectors.float(), dim=1)
    parts, processes = [own], 1
    if gather and torch.distributed.is_available() and torch.distributed.is_initialized():
        processes, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        parts = [torch.empty_like(own) for _ in range(processes)]
        torch.distributed.all_gather(parts, own.detach())
        parts[rank] = own
    crops = torch.cat(parts)  # (crops of all processes, size)
    with torch.autocast(crops.device.type, enabled=False):  # half precision would tie neighbouring clips
        scores = crops @ crops.T / temperature
    scores.fill_diagonal_(torch.finfo(scores.dtype).min)
    partner = torch.arange(len(crops), device=crops.device) ^ 1  # 0 and 1 are of one clip, 2 and 3 of the next
    loss = nn.functional.cross_entropy(scores, partner)
    # Each process has the gradient of its own crops alone, and the mean over the processes would divide it.
    loss = loss + (processes - 1) * (loss - loss.detach())
    return loss, (scores.argmax(dim=1) == partner).float().mean()


def mean_of_visible(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Averages states (batch, tokens, hidden) where a boolean mask (batch, tokens) is true, in float32: (batch, hidden).
    Unlike `masked_mean`, it gives zeros for a clip without visible patches: the only patch of a short one is masked.
    """
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def clipwise_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Averages over the clips each clip's mean, so that short clips count like long ones and several processes give the
    result of one.

    Args:
        values: (batch, patches).
        mask: Boolean (batch, patches), true for values that count.

    Returns:
        Scalar.
    """
    return (torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


DualSSASTModel.register_for_auto_class("AutoModel")
DualSSASTForPreTraining.register_for_auto_class("AutoModelForPreTraining")
DualSSASTForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
DualSSASTForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
