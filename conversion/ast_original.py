"""Converts checkpoints of AST (Gong, Chung, Glass, Interspeech 2021; github.com/YuanGongND/ast)."""

import functools
from pathlib import Path

from modeling_dual_ssast import DualSSASTConfig

from . import deit
from .checkpoint import open_checkpoint
from .options import LABELS, Family, Options, grid, statistics
from .result import Converted

# The mean of class and distillation token; clips are padded, and attention covers the padding.
AST_READOUT = {"fusion_layers": [-1], "pooling": ["mean"], "readout": "prefix", "attention_over_padding": True}


def convert(source: Path, options: Options) -> Converted:
    """Converts a fine-tuned checkpoint of AST; raises `ConversionError` if the file or the options are wrong."""
    tensors = open_checkpoint(source, "an AST checkpoint")
    sizes = deit.read_sizes(tensors)
    make = functools.partial(DualSSASTConfig, **AST_READOUT)
    return deit.convert_classifier(tensors, sizes, options, make, (10, 10), "AST patch model, fine-tuned")


FAMILY = Family(
    name="ast",
    source="a .pth file of the AST repository",
    convert=convert,
    options=grid("describes the file, which does not store it") | LABELS | statistics(),
)
