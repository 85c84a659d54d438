# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Packed sequences: the tokens of a batch in one row without the padding between the clips. Attention is block-diagonal: a
clip attends to its own tokens alone. Needs only torch.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None


# A tuple of tensors: Accelerate moves them to the device of a layer, and FSDP passes them on.
class Packing(NamedTuple):
    """
    Places the tokens of a batch in one row: clip after clip from the shortest to the longest, each clip's tokens in
    their order. So clips of one length lie side by side, and attention takes them together.

    Attributes:
        places: (tokens,), the place of each token in the padded batch, whose rows follow each other.
        clips: (tokens,), the clip of each token.
        positions: (tokens,), the place of each token in its clip.
        bounds: int32 (clips + 1,), the first token of each clip of the row, and the number of tokens.
        lengths: Tokens of each clip of the row, ascending.
        width: Tokens of each clip in the padded batch.
    """

    places: torch.Tensor
    clips: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    lengths: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, token_mask: torch.Tensor, lengths: list[int]) -> "Packing":
        """Makes the packing of a boolean mask (batch, tokens), true for what is kept; `lengths` are its sums."""
        width = token_mask.shape[1]
        order = torch.tensor(sorted(range(len(lengths)), key=lengths.__getitem__), device=token_mask.device)
        ranks, columns = token_mask[order].nonzero(as_tuple=True)  # (tokens,) each
        clips = order[ranks]
        bounds = nn.functional.pad(token_mask.sum(dim=1)[order].cumsum(dim=0), (1, 0))  # (clips + 1,)
        positions = torch.arange(len(clips), device=clips.device) - bounds[ranks]
        return cls(clips * width + columns, clips, positions, bounds.to(torch.int32), tuple(sorted(lengths)), width)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Drops the padding: (batch, width, hidden) -> (1, tokens, hidden)."""
        return states.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Writes zeros where the padding was: (1, tokens, hidden) -> (batch, width, hidden)."""
        padded = states.new_zeros(len(self.lengths) * self.width, states.shape[-1])  # (batch * width, hidden)
        return padded.index_copy(0, self.places, states[0]).unflatten(0, (-1, self.width))


def has_kernel(query: torch.Tensor, dropout: float) -> bool:
    """
    Returns whether `varlen_attn` takes queries (1, heads, tokens, head size): half precision on an NVIDIA GPU of
    compute capability 8.0 or more, heads of a multiple of 8 up to 256, and no dropout, which it does not have.
    """
    return (
        varlen_attn is not None
        and query.is_cuda
        and torch.version.hip is None
        and query.dtype in (torch.float16, torch.bfloat16)
        and dropout == 0
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def packed_attention(
    attend: Callable,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    implementation: str,
    dropout: float,
) -> torch.Tensor:
    """
    Computes attention within each clip of a packed row.

    The flash implementations get the bounds by the keywords of Transformers' packed sequences. `sdpa` runs
    `torch.nn.attention.varlen.varlen_attn` where `has_kernel`. Everything else runs once for all clips of one length,
    exactly and without scores between clips.

    Args:
        attend: Function of Transformers' attention interface.
        module: The attention layer.
        query: (1, heads, tokens, head size).
        key: Like `query`.
        value: Like `query`.
        packing: Where the clips lie in the row.
        implementation: Name of `attend`, such as `"sdpa"`.
        dropout: Probability that an attention weight is dropped.

    Returns:
        (1, tokens, heads, head size).
    """
    settings = {"dropout": dropout, "scaling": query.shape[-1] ** -0.5, "is_causal": False}
    longest = max(packing.lengths)
    if "flash" in implementation:
        bounds = {
            "cu_seq_lens_q": packing.bounds,
            "cu_seq_lens_k": packing.bounds,
            "max_length_q": longest,
            "max_length_k": longest,
            "position_ids": packing.positions.unsqueeze(0),  # Transformers 4.48 reads the bounds only beside them
        }
        return attend(module, query, key, value, None, **settings, **bounds)[0]
    if implementation == "sdpa" and has_kernel(query, dropout):
        row = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, head size) each
        return varlen_attn(*row, packing.bounds, packing.bounds, longest, longest).unsqueeze(0)
    groups = Counter(packing.lengths)  # length: clips, ascending as in the row
    sizes = [length * count for length, count in groups.items()]
    rows = (states[0].split(sizes, dim=1) for states in (query, key, value))  # (heads, tokens, head size) each
    attended = []
    for length, *row in zip(groups, *rows):
        clips = (states.unflatten(1, (-1, length)).transpose(0, 1) for states in row)  # (clips, heads, length, size)
        attended.append(attend(module, *clips, None, **settings)[0].flatten(0, 1))  # (tokens, heads, head size)
    return torch.cat(attended).unsqueeze(0)
