# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Attention in bfloat16 on CPUs, as products of matrices in blocks. Needs only torch.

torch's own kernel takes as long in bfloat16 as in float32 on a CPU with AVX512-BF16 and without AMX, while products of
matrices are about four times as fast: `benchmarks/bfloat16.py` measures both.
"""

import math
from collections.abc import Callable, Iterator
from typing import Optional

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .fusion_dual_ssast import in_graph

# Scores of a block, 2 MiB in bfloat16: a few such matrices stay in the cache between one operation and the next.
BLOCK_SCORES = 2**20
# Scores of a call, without and with gradients, from which blocks are faster: few scores cost less than a dozen calls.
LEAST_SCORES = {False: 2**16, True: 2**13}


def with_blocks(attend: Callable) -> Callable:
    """
    Wraps torch's attention: returns a function of Transformers' attention interface that runs `block_attention` where
    `has_blocks`, and `attend` everywhere else.
    """

    def attention(module, query, key, value, attention_mask, dropout=0.0, **settings):
        chosen = block_attention if has_blocks(query, dropout) else attend
        return chosen(module, query, key, value, attention_mask, dropout=dropout, **settings)

    return attention


def has_blocks(query: torch.Tensor, dropout: float) -> bool:
    """
    Returns whether `block_attention` is the faster one for queries (batch, heads, tokens, head size).

    This is so in bfloat16 on a CPU with AVX512-BF16 and without AMX, which torch's kernel uses, from `LEAST_SCORES` on.
    Graphs have no blocks, because they would end there, and neither has dropout. Who has chosen one of torch's other
    kernels by `torch.nn.attention.sdpa_kernel` gets that one.
    """
    return (
        not in_graph()
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and dropout == 0
        and torch.backends.cuda.flash_sdp_enabled()  # of CPUs, too
        and query.shape[:3].numel() * query.shape[2] >= LEAST_SCORES[torch.is_grad_enabled() and query.requires_grad]
        and cpu_has("avx512_bf16")
        and not cpu_has("amx_tile")
    )


def cpu_has(feature: str) -> bool:
    """Returns whether torch reports a feature of the CPU, `"avx512_bf16"` or `"amx_tile"`; old versions report none."""
    check = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return check is not None and check()


def block_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Computes attention block by block, by Transformers' attention interface.

    The memory grows with the number of tokens, not with its square: the backward pass computes the weights again.

    Args:
        module: The attention layer.
        query: bfloat16 (batch, heads, tokens, head size).
        key: Like `query`.
        value: Like `query`.
        attention_mask: Boolean (batch, 1, 1, tokens), true for tokens that take part, or `None`.
        dropout: 0; see `has_blocks`.
        scaling: Factor of the scores.
        **kwargs: Ignored, like in other implementations.

    Returns:
        The result (batch, tokens, heads, head size), and `None` for the weights.
    """
    return BlockAttention.apply(query, key, value, attention_mask, scaling), None


class BlockAttention(torch.autograd.Function):
    """Computes `block_attention` and its gradients; every argument and result has its shape there."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        """Returns the result, and saves what the backward pass needs to compute the weights again."""
        query, key, value = (states.contiguous() for states in (query, key, value))
        batch, heads, tokens, size = query.shape
        attended = query.new_empty(batch, tokens, heads, size)
        maxima = query.new_empty(batch, heads, tokens, 1)
        sums = torch.empty_like(maxima, dtype=wide(query))
        for rows in blocks(query):
            clips_heads = rows[:2]
            scores = query[rows] @ key[clips_heads].mT
            if mask is not None:
                scores.masked_fill_(~mask[rows[0]], torch.finfo(scores.dtype).min)
            maxima[rows] = scores.amax(dim=-1, keepdim=True)
            weights = unscaled_weights(query, key, maxima, mask, scaling, rows)
            sums[rows] = weights.sum(dim=-1, keepdim=True, dtype=sums.dtype)
            attended.transpose(1, 2)[rows] = weights @ value[clips_heads] / sums[rows]
        ctx.save_for_backward(query, key, value, mask, attended, maxima, sums)
        ctx.scaling = scaling
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        """Returns the gradients of query, key and value for that of the result; mask and scaling have none."""
        query, key, value, mask, attended, maxima, sums = ctx.saved_tensors
        # The gradient of a score is its weight * (gradient . value - mean), where the mean over the keys is
        # gradient . attended. Two columns, with ones beside the value, subtract the mean before the product is rounded.
        gradient = gradient.transpose(1, 2) / sums  # (batch, heads, tokens, head size)
        mean = (gradient * attended.transpose(1, 2)).sum(dim=-1, keepdim=True)
        rounded, gradient = mean.to(value.dtype), gradient.to(value.dtype, memory_format=torch.contiguous_format)
        centred = torch.cat((gradient, -rounded, (rounded - mean).to(value.dtype)), dim=-1)
        with_ones = nn.functional.pad(value, (0, 2), value=1.0)
        of_query = torch.empty_like(query)
        # Sums over the rows, (batch, heads, head size, tokens): such products are twice as fast as transposed weights.
        of_key, of_value = (torch.zeros_like(states.mT, dtype=wide(states)) for states in (key, value))
        for rows in blocks(query):
            clips_heads = rows[:2]
            weights = unscaled_weights(query, key, maxima, mask, ctx.scaling, rows)
            of_value[clips_heads] += gradient[rows].mT @ weights
            of_scores = weights.mul_(centred[rows] @ with_ones[clips_heads].mT)
            of_query[rows] = of_scores @ key[clips_heads] * ctx.scaling
            of_key[clips_heads] += query[rows].mT @ of_scores
        of_key = (of_key * ctx.scaling).to(key.dtype).mT
        return of_query, of_key, of_value.to(value.dtype).mT, None, None


def wide(states: torch.Tensor) -> torch.dtype:
    """Returns the dtype of sums: float32, or float64 for such states."""
    return torch.promote_types(states.dtype, torch.float32)


def blocks(query: torch.Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """
    Yields blocks of (batch, heads, tokens, head size): several clips, or several heads of a clip, or some of the
    queries of a head. Each has at most `BLOCK_SCORES` scores, or one row of them.
    """
    batch, heads, tokens, _ = query.shape
    num_clips = max(BLOCK_SCORES // (heads * tokens**2), 1)
    num_heads = min(max(BLOCK_SCORES // tokens**2, 1), heads)
    parts = math.ceil(tokens / max(BLOCK_SCORES // tokens, 1))
    num_rows = math.ceil(tokens / parts)  # about as many in every part
    for clip in range(0, batch, num_clips):
        for head in range(0, heads, num_heads):
            for row in range(0, tokens, num_rows):
                yield slice(clip, clip + num_clips), slice(head, head + num_heads), slice(row, row + num_rows)


def unscaled_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    maxima: torch.Tensor,
    mask: Optional[torch.Tensor],
    scaling: float,
    rows: tuple[slice, slice, slice],
) -> torch.Tensor:
    """
    Computes exp(scaling * (scores - maxima)) of a block: (clips, heads, rows, tokens), 0 where the mask is false.

    The differences are rounded, not the scores: a score of 50 would have an error of up to 0.125 in bfloat16, which is
    13 % of the weight.
    """
    left, right = query[rows], key[rows[:2]]
    differences = torch.baddbmm(
        maxima[rows].flatten(0, 1), left.flatten(0, 1), right.flatten(0, 1).mT, beta=-scaling, alpha=scaling
    )
    weights = differences.unflatten(0, left.shape[:2]).exp_()
    return weights if mask is None else weights.masked_fill_(~mask[rows[0]], 0.0)
