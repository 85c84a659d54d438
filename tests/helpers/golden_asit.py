"""Converts ASiT's golden checkpoint, and restores the original's order of patches."""

import torch
from golden import FIXTURES

from conversion.__main__ import main as convert_command

ROWS, COLUMNS = 8, 6


def time_major(patches: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Returns patches in the original's order: along `dim`, rows x columns becomes columns x rows."""
    return patches.unflatten(dim, (ROWS, COLUMNS)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def converted(folder, *options):
    command = ["asit", str(FIXTURES / "asit_pretrain.pth"), str(folder / "converted"), *options]
    assert convert_command(command) == 0
    return folder / "converted"
