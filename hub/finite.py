"""Finds weights that are NaN or infinite: every program refuses a model with them, since its outputs are no numbers."""

from collections.abc import Iterable, Mapping

import torch


def non_finite_weights(weights: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> str:
    """
    Returns `42 of 57 tensors hold NaN or infinity, the first one NAME`; empty where all numbers are finite.

    weights: a state dict, or pairs of name and tensor
    """
    found, total = [], 0
    for name, value in weights.items() if isinstance(weights, Mapping) else weights:
        total += 1
        if not is_finite(value):
            found.append(name)
    return f"{len(found)} of {total} tensors hold NaN or infinity, the first one {found[0]}" if found else ""


def is_finite(value: torch.Tensor) -> bool:
    """Returns whether all numbers of a tensor, or of the part of a sharded one that this process has, are finite."""
    value = value.to_local() if hasattr(value, "to_local") else value
    if not value.is_floating_point() or value.is_meta:
        return True
    value = value.detach()
    # torch cannot test numbers of 8 bits
    return bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())
