"""Joins spectrograms of several lengths into batches."""

from collections.abc import Iterator

import torch

from modeling_dual_ssast import DualSSASTFeatureExtractor


def padded(extractor: DualSSASTFeatureExtractor, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Pads spectrograms (frames, mel) to the longest one.

    Returns:
        `input_values` (batch, frames, mel) and, if anything is padded, `attention_mask` (batch, frames): the fastest
        attention kernels take no mask.
    """
    batch = dict(
        extractor.pad(
            [{"input_values": clip} for clip in features],
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
    )
    if batch["attention_mask"].all():
        del batch["attention_mask"]
    return batch


def batches_of(
    extractor: DualSSASTFeatureExtractor, features: list[torch.Tensor], batch_size: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields spectrograms (frames, mel) in padded batches, in their order, on a device."""
    for start in range(0, len(features), batch_size):
        batch = padded(extractor, features[start : start + batch_size])
        yield {name: value.to(device) for name, value in batch.items()}
