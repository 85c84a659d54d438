# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Masks of masked spectrogram patch modelling (SSAST, Gong et al., AAAI 2022): exact counts, clustered or single."""

from typing import Optional

import torch

CLUSTER_SIDES = (3, 5)  # sides of a clip's squares: SSAST draws one uniformly from 3, 4 and 5


def num_masked_patches(num_patches, mask_ratio: float):
    """Returns how many of `num_patches` (an `int` or an integer tensor) to mask: rounded, at least one."""
    if isinstance(num_patches, torch.Tensor):
        return (num_patches * mask_ratio).round().long().clamp(min=1)
    return max(1, round(num_patches * mask_ratio))


def sample_masked_patches(
    num_rows: int,
    num_columns: int,
    valid_columns: torch.Tensor,
    mask_ratio: float,
    clustered: bool,
    generator: Optional[torch.Generator] = None,
) -> torch.Tensor:
    """
    Draws a mask per clip, on the device of `valid_columns`, without a loop over the batch.

    Clusters follow SSAST (Gong et al., AAAI 2022, section 2.2, and the published code): squares at uniform places until
    the count is reached. Their side is drawn once per clip. A square lies on the clip's row-major grid, so that it
    continues in the next row at the right edge. The published sampler masks some places less often than others, so two
    things differ on purpose: the first patch can be masked, and the surplus beyond the exact count is removed from the
    last square at random (there, the highest indices are unmasked).

    Args:
        num_rows: Rows of the batch's patch grid.
        num_columns: Columns of the batch's patch grid.
        valid_columns: (batch,), columns that hold audio. The others are never masked.
        mask_ratio: Share of a clip's patches to mask.
        clustered: Whether to mask squares, as in SSAST's patch models. In a grid of one row, that of its frame models,
            single patches are masked in any case.
        generator: Random numbers; torch's default generator if `None`.

    Returns:
        Boolean (batch, num_rows * num_columns), frequency-major, with exactly `num_masked_patches` true per row.
    """
    device, batch = valid_columns.device, valid_columns.shape[0]
    num_cells = num_rows * num_columns
    own_columns = valid_columns.unsqueeze(1)  # (batch, 1)
    own_cells = own_columns * num_rows
    column = torch.arange(num_cells, device=device) % num_columns
    order = torch.rand(batch, num_cells, dtype=torch.float32, device=device, generator=generator)
    if clustered and num_rows > 1:
        order = order + _first_cluster(num_rows, num_columns, own_columns, generator)
    order = order.masked_fill(column >= own_columns, float("inf"))  # never on padding
    place = order.argsort(dim=1).argsort(dim=1)  # (batch, cells), the rank of every cell
    return place < num_masked_patches(own_cells, mask_ratio)


def _first_cluster(
    num_rows: int, num_columns: int, own_columns: torch.Tensor, generator: Optional[torch.Generator]
) -> torch.Tensor:
    """Returns the index of the first square that covers each cell: (batch, cells), as floats."""
    device, batch = own_columns.device, own_columns.shape[0]
    num_cells = num_rows * num_columns
    num_clusters = max(16, num_cells // 3)  # of side 3 they cover 95 % of a grid; uncovered cells come last
    lowest, highest = CLUSTER_SIDES
    side = torch.randint(lowest, highest + 1, (batch, 1, 1), device=device, generator=generator)
    start = torch.rand(batch, num_clusters, 1, dtype=torch.float32, device=device, generator=generator)
    own_columns = own_columns.unsqueeze(2)  # (batch, 1, 1)
    start = (start * own_columns * num_rows).long()  # (batch, clusters, 1), in the clip's own grid
    offset = torch.arange(highest * highest, device=device)  # (offsets,)
    down, right = offset // highest, offset % highest
    cell = start + down * own_columns + right  # (batch, clusters, offsets)
    inside = (down < side) & (right < side) & (cell < own_columns * num_rows)
    cell = cell // own_columns * num_columns + cell % own_columns  # in the batch's grid
    cell = torch.where(inside, cell, num_cells)  # the rest goes to a cell that is dropped
    index = torch.arange(num_clusters, device=device, dtype=torch.float32).view(1, -1, 1).expand_as(cell)
    first = torch.full((batch, num_cells + 1), float(num_clusters), dtype=torch.float32, device=device)
    return first.scatter_reduce(1, cell.flatten(1), index.flatten(1), reduce="amin")[:, :num_cells]
