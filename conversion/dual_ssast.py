"""Converts checkpoints of the published Dual SSAST (Choi et al., Neurocomputing 623, 2025; PhDHyosunChoi/hssast)."""

import functools
from pathlib import Path

from modeling_dual_ssast import DualSSASTConfig
from modeling_dual_ssast.configuration_dual_ssast import PUBLISHED_MLP_LAYERS, PUBLISHED_POOLINGS

from . import deit
from .checkpoint import ConversionError, numbered_blocks, open_checkpoint
from .options import LABELS, Family, Options, grid, statistics
from .result import Converted

STRIDES = (10, 10)  # of all the authors' fine-tuning scripts, mel bins and frames


class AverageMeter:
    """Stands for the class of the loss that `checkpoint.pt` holds: four numbers, which no conversion needs."""


ALLOWED = ((AverageMeter, "utilities.util.AverageMeter"), (AverageMeter, "utilities.AverageMeter"))


def convert(source: Path, options: Options) -> Converted:
    """Converts a fine-tuned checkpoint; raises `ConversionError` if the file or the options are wrong."""
    tensors = open_checkpoint(source, "a Dual SSAST checkpoint", ALLOWED)
    sizes = deit.read_sizes(tensors)
    if not tensors.names("mlp_head."):
        raise ConversionError(
            f"{source} is pretrained: it has no classifier (mlp_head), and is an SSAST; its family is ssast"
        )
    tensors.require("mlp_head.0.weight")
    size, (width,) = sizes["hidden_size"], tensors.shape("mlp_head.0.weight", 1)
    if width == size:
        raise ConversionError(
            f"{source} has a classifier of {size} inputs: it is the authors' baseline (comp_fusion False), a plain "
            "SSAST; its family is ssast"
        )
    mlp_layers = numbered_blocks(tensors, deit.CLASSIFIER)
    if width != 2 * size or mlp_layers not in PUBLISHED_MLP_LAYERS:
        raise ConversionError(
            f"{source} is not a Dual SSAST checkpoint: its classifier has {mlp_layers} layers and {width} inputs, "
            f"expected {', '.join(map(str, PUBLISHED_MLP_LAYERS))} layers and twice {size} inputs"
        )
    if options.pooling is None:
        raise ConversionError(
            f"{source} does not store its pooling: give --pooling {', '.join(PUBLISHED_POOLINGS)}; the name of the "
            "authors' output folder and the args.pkl in it hold it"
        )
    make = functools.partial(DualSSASTConfig.published, options.pooling, mlp_layers)
    title = f"Dual SSAST as published, {options.pooling}, mlp_layers {mlp_layers}, fine-tuned"
    converted = deit.convert_classifier(tensors, sizes, options, make, STRIDES, title)
    first, last = converted.model.config.fused_layers
    converted.notes.append(
        f"the file does not store its pooling ({options.pooling}, as given) and its layers: blocks {first} and {last}, "
        "with the final LayerNorm applied twice, are those of the authors' code since 13 October 2023"
    )
    if options.pooling in ("max", "max_max"):
        converted.notes.append("max and max_max differ by a factor that the classifier's first LayerNorm removes")
    if len(options.statistics) < 2:
        converted.notes.append(
            "the file does not store the statistics of its features: AudioSet's are assumed, and the authors used "
            "those of each data set; --mean and --std give them"
        )
    return converted


FAMILY = Family(
    name="dual-ssast",
    source="a fine-tuned .pth or checkpoint.pt of the Dual SSAST authors' repository (hssast)",
    convert=convert,
    options={
        "pooling": {
            "choices": tuple(PUBLISHED_POOLINGS),
            "help": "its pooling, which the file does not store; required",
        },
        **grid("describes the file, which does not store it"),
        **LABELS,
        **statistics(),
    },
)
