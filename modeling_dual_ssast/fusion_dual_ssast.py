# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Masks of frames, token pooling, layer fusion (Dual SSAST, Choi et al., Neurocomputing 623, 2025) and composed features
(Niizumi et al., EUSIPCO 2022): from the states of several layers to one vector per clip. Needs only torch.
"""

from typing import Optional

import torch
from torch import nn


def in_graph() -> bool:
    """Returns whether torch records a graph, in which no Python branch may depend on values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def at_least(number, lowest: int):
    """Returns the larger number; sizes are tensors in `torch.jit.trace`, whose graph would lose Python's `max`."""
    return number.clamp(min=lowest) if isinstance(number, torch.Tensor) else max(number, lowest)


def pad_end(spectrogram: torch.Tensor, num_frames, value: float, most: int) -> torch.Tensor:
    """
    Pads (batch, frames, mel) at the end with `value` to at least `num_frames` frames. The caller knows that at most
    `most` are missing: a compiled graph pads by this constant and cuts.
    """
    own = spectrogram.shape[1]
    if torch.compiler.is_dynamo_compiling():  # inductor finds the sign of a maximum, but not of a sum with one
        return nn.functional.pad(spectrogram, (0, 0, 0, most), value=value)[:, : max(own, num_frames)]
    return nn.functional.pad(spectrogram, (0, 0, 0, at_least(num_frames - own, 0)), value=value)


def check_spectrograms(input_values: torch.Tensor, attention_mask: Optional[torch.Tensor], num_mel_bins: int):
    """
    Checks the input of a model.

    Args:
        input_values: (batch, frames, mel).
        attention_mask: (batch, frames), or `None`.
        num_mel_bins: Mel bins of the model.

    Raises:
        ValueError: Shapes that do not fit, or a mask that holds other numbers than 0 and 1.
    """
    if input_values.ndim != 3 or input_values.shape[2] != num_mel_bins:
        raise ValueError(
            f"expected input_values (batch, frames, {num_mel_bins} mel bins), got {tuple(input_values.shape)}: use the "
            "feature extractor saved with this model"
        )
    if attention_mask is None:
        return
    if attention_mask.shape != input_values.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected (batch, frames) = "
            f"{tuple(input_values.shape[:2])}: use the one that the feature extractor returns"
        )
    # Floats may be a bias with 0 for audio. The test waits for the device, so the usual integers go without it.
    if (
        attention_mask.is_floating_point()
        and not in_graph()
        and not ((attention_mask == 0) | (attention_mask == 1)).all()
    ):
        raise ValueError(
            f"attention_mask holds {attention_mask.dtype} numbers beside 0 and 1: pass 1 for audio and 0 for padding"
        )


def align_frames(values: torch.Tensor, mask: torch.Tensor, padding_value: float) -> torch.Tensor:
    """
    Moves the frames that a mask marks to the beginning, in their order, and writes `padding_value` behind them.

    So a clip that is padded on the left, on both sides or in between gives the numbers of one padded on the right.

    Args:
        values: (batch, frames, mel).
        mask: (batch, frames), 1 for audio and 0 for padding.
        padding_value: Value of a padded frame.

    Returns:
        (batch, frames, mel).
    """
    mask = mask.bool()
    # The usual case, in a third of the time. Elsewhere than on a CPU the test would wait for the device.
    if not in_graph() and values.device.type == "cpu" and (mask[:, 1:] <= mask[:, :-1]).all():
        return torch.where(mask.unsqueeze(-1), values, padding_value)
    audio, padding = mask.long().cumsum(dim=1), (~mask).long().cumsum(dim=1)
    place = torch.where(mask, audio, audio[:, -1:] + padding) - 1  # (batch, frames), a permutation
    values = torch.where(mask.unsqueeze(-1), values, padding_value)
    return torch.zeros_like(values).scatter(1, place.unsqueeze(-1).expand_as(values), values)


def frame_mask(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Marks the frames of each clip: lengths (batch,) -> boolean (batch, num_frames), false for padding."""
    return torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)


def masked_mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Averages the tokens where `mask` is true: (batch, tokens, size), (batch, tokens) -> (batch, size)."""
    # Summed in at least float32: a float16 sum over a thousand tokens overflows.
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    total = tokens.masked_fill(~mask.unsqueeze(-1), 0).sum(dim=1, dtype=dtype)
    return (total / mask.sum(dim=1, keepdim=True)).to(tokens.dtype)


def masked_max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Takes the maximum of the tokens where `mask` is true: (batch, tokens, size), (batch, tokens) -> (batch, size)."""
    return tokens.masked_fill(~mask.unsqueeze(-1), torch.finfo(tokens.dtype).min).amax(dim=1)


def masked_min(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Takes the minimum of the tokens where `mask` is true: (batch, tokens, size), (batch, tokens) -> (batch, size)."""
    return tokens.masked_fill(~mask.unsqueeze(-1), torch.finfo(tokens.dtype).max).amin(dim=1)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Converts half precision to float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_std(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Computes the standard deviation (divided by the number of tokens) where `mask` is true: (batch, tokens, size),
    (batch, tokens) -> (batch, size). It is 0 for one token, with the gradient 0.
    """
    values = at_least_float32(tokens.masked_fill(~mask.unsqueeze(-1), 0))
    variance = masked_mean((values - masked_mean(values, mask).unsqueeze(1)).square(), mask)
    is_positive = variance > 0  # the gradient of a root is infinite at 0
    return variance.where(is_positive, 1.0).sqrt().masked_fill(~is_positive, 0).to(tokens.dtype)


POOLINGS = {"mean": masked_mean, "max": masked_max, "min": masked_min, "std": masked_std}


def in_place_of(old: nn.Module, new: nn.Module) -> nn.Module:
    """Gives a new module the mode of the one it replaces, and device, dtype and trainability of its parameters."""
    parameter = next(old.parameters(), None)
    if parameter is not None:
        new.to(parameter.device, parameter.dtype).requires_grad_(parameter.requires_grad)
    return new.train(old.training)


class TokenAttention(nn.Module):
    """
    Averages tokens with the attention of learned queries, one per head (attentive probing, arXiv 2605.10494).

    Head h gives the weight softmax_t(q_h . x_t / sqrt(size)) to token t, and averages its own part of the channels. A
    projection of the keys would be no gain: it is contained in the query. A query of zeros gives the mean.

    Args:
        size: Size of a token.
        num_heads: Number of queries, a divisor of the size.
    """

    def __init__(self, size: int, num_heads: int = 1):
        super().__init__()
        self.pooling_query = nn.Parameter(torch.zeros(num_heads, size))  # the mean at the start

    def weights(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Computes the weights of tokens (batch, tokens, size) with a boolean mask: (batch, tokens, heads)."""
        values = at_least_float32(tokens)
        scores = values @ self.pooling_query.to(values.dtype).mT * values.shape[-1] ** -0.5  # (batch, tokens, heads)
        return scores.masked_fill(~mask.unsqueeze(-1), torch.finfo(scores.dtype).min).softmax(dim=1)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pools the tokens where `mask` is true: (batch, tokens, size), (batch, tokens) -> (batch, size)."""
        values = at_least_float32(tokens.masked_fill(~mask.unsqueeze(-1), 0))
        by_head = values.unflatten(-1, (self.pooling_query.shape[0], -1))  # (batch, tokens, heads, size / heads)
        weights = self.weights(values, mask).unsqueeze(-1)  # (batch, tokens, heads, 1)
        return (weights * by_head).sum(dim=1).flatten(1).to(tokens.dtype)


def pool_tokens(
    tokens: torch.Tensor,
    mask: torch.Tensor,
    poolings: list[str],
    combination: str,
    attention: Optional[TokenAttention] = None,
) -> torch.Tensor:
    """
    Pools tokens in several ways and combines the results.

    Args:
        tokens: (batch, tokens, size).
        mask: Boolean (batch, tokens), with at least one true value per row.
        poolings: Some of `mean`, `max`, `min`, `std` and `attention`.
        combination: `sum`, `mean` or `concat`.
        attention: The pooling that is called `attention`.

    Returns:
        (batch, size), or (batch, len(poolings) * size) for `concat`.
    """
    pooled = [(attention if name == "attention" else POOLINGS[name])(tokens, mask) for name in poolings]
    if combination == "concat":
        return torch.cat(pooled, dim=-1)
    total = torch.stack(pooled).sum(dim=0)
    return total / len(pooled) if combination == "mean" else total


def to_feature_map(patches: torch.Tensor, rows: int) -> torch.Tensor:
    """Arranges frequency-major patches on their grid: (batch, rows * columns, size) -> (batch, size, rows, columns)."""
    # Not unflatten, whose size ONNX export takes from the example.
    return patches.transpose(1, 2).reshape(patches.shape[0], patches.shape[2], rows, -1)


def time_frames(feature_map: torch.Tensor) -> torch.Tensor:
    """
    Flattens frequency x channel at every time step (Niizumi et al., EUSIPCO 2022): feature = channel * rows + row.

    Args:
        feature_map: (batch, channels, rows in frequency, columns in time).

    Returns:
        (batch, columns, channels * rows).
    """
    return feature_map.flatten(1, 2).transpose(1, 2)


def token_frames(tokens: torch.Tensor, num_prefix: int, rows: int, num_frames: int) -> torch.Tensor:
    """
    Averages all tokens, in the order of time with the prefix first, to a fixed number of frames, without regard to the
    columns of patches; fewer tokens are stretched (PretrainedSED, Schmid et al., ICASSP 2025).

    Args:
        tokens: (batch, prefix + rows * columns, size), the patches frequency-major.
        num_prefix: Number of prefix tokens.
        rows: Rows of the patch grid.
        num_frames: Number of frames.

    Returns:
        (batch, num_frames, size).
    """
    patches = tokens[:, num_prefix:].unflatten(1, (rows, -1)).transpose(1, 2).flatten(1, 2)  # time-major
    tokens = torch.cat((tokens[:, :num_prefix], patches), dim=1).transpose(1, 2)  # (batch, size, tokens)
    if tokens.shape[-1] < num_frames:
        frames = nn.functional.interpolate(tokens, num_frames, mode="linear", align_corners=False)
    else:
        frames = nn.functional.adaptive_avg_pool1d(tokens, num_frames)
    return frames.transpose(1, 2)


def pool_rows(
    feature_map: torch.Tensor, poolings: list[str], combination: str, attention: Optional[TokenAttention] = None
) -> torch.Tensor:
    """
    Pools the rows of every column: (batch, size, rows, columns) -> (batch, columns, size), or (batch, columns,
    len(poolings) * size) for the combination `concat`.
    """
    columns = feature_map.permute(0, 3, 2, 1).flatten(0, 1)  # (batch * columns, rows, size)
    mask = torch.ones(columns.shape[:2], dtype=torch.bool, device=columns.device)  # a column is whole or padding
    pooled = pool_tokens(columns, mask, poolings, combination, attention)  # (batch * columns, ...)
    return pooled.reshape(feature_map.shape[0], feature_map.shape[3], -1)  # not len, which fixes an exported batch


def compose_frames(feature_maps: list[torch.Tensor], time_strides: list[int], time_stride: int) -> torch.Tensor:
    """
    Joins the maps of several layers at every time step (Niizumi et al., EUSIPCO 2022).

    Frequency x channel of each map is flattened, finer layers are max-pooled over time to the common stride, and the
    layers are concatenated.

    Args:
        feature_maps: Per layer (batch, channels, rows in frequency, columns in time); all sizes may differ.
        time_strides: Per layer the input frames per column.
        time_stride: Input frames per column of the result, a multiple of each. Frames that do not fill a column are
            dropped.

    Returns:
        (batch, columns, sum of channels * rows over the layers).
    """
    composed = []
    for feature_map, stride in zip(feature_maps, time_strides):
        factor = time_stride // stride
        pooled = nn.functional.max_pool2d(feature_map, (1, factor)) if factor > 1 else feature_map
        composed.append(time_frames(pooled))  # (batch, columns, channels * rows)
    return torch.cat(composed, dim=-1)


class LayerFusion(nn.Module):
    """
    Combines one vector per fused layer into one.

    `weighted` and `gated` are convex combinations by a learned scalar a_l per layer. `weighted` is softmax(a), like the
    layer weights of Convex Gated Probing (arXiv 2602.16305). `gated` is sigmoid(a_l) / sum_k sigmoid(a_k): a gate is
    open or closed whatever the others are, and no layer can outweigh another that is open.

    Args:
        mode: `concat`, `sum`, `weighted` or `gated`.
        num_layers: Number of fused layers.
    """

    def __init__(self, mode: str, num_layers: int):
        super().__init__()
        self.mode = mode
        if mode in ("weighted", "gated"):
            self.layer_weights = nn.Parameter(torch.zeros(num_layers))  # equal weights at the start

    @property
    def weights(self) -> torch.Tensor:
        """Weights that a learned fusion applies to the layers: (layers,), with a sum of 1."""
        # The softmax of logarithms: gates that are all closed would give 0 / 0.
        scores = nn.functional.logsigmoid(self.layer_weights) if self.mode == "gated" else self.layer_weights
        return scores.softmax(dim=0)

    def forward(self, vectors: list[torch.Tensor]) -> torch.Tensor:
        """Combines one vector (batch, ..., size) per fused layer; `concat` gives (batch, ..., layers * size)."""
        if self.mode == "concat":
            return torch.cat(vectors, dim=-1)
        stacked = torch.stack(vectors, dim=-1)  # (batch, ..., size, layers)
        if self.mode == "sum":
            return stacked.sum(dim=-1)
        return (stacked * self.weights).sum(dim=-1)
