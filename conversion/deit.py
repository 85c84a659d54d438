"""Maps timm's DeiT, the encoder of SSAST, AST and ASiT, and the classifier `mlp_head` of SSAST and AST."""

import re
from collections.abc import Callable

import torch

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification

from .checkpoint import ConversionError, Tensors, numbered_blocks
from .grids import read_grid
from .labels import label_notes, label_settings
from .options import Options
from .result import Converted, build_model, dtype_notes, make_feature_extractor, padding_notes

HEAD_SIZE = 64  # of every DeiT: the width determines the number of heads
LAYER_NORM_EPS = 1e-6  # timm's
NUM_MEL_BINS = 128  # of all published checkpoints, because fine-tuned files do not store it
UNUSED_HEADS = "timm's own 1000-class head, which the original never calls"
# timm's names -> this project's. Not listed: the prefix tokens, and the fused query, key and value of a block.
OUTER_NAMES = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK_NAMES = {
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
QKV_NAMES = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
DISTILLED = ("cls_token", "dist_token")
CLASSIFIER = r"mlp_head\.(\d+)\."


def read_sizes(tensors: Tensors, stem: str = "v.", prefix: tuple[str, ...] = DISTILLED) -> dict:
    """
    Reads the encoder's sizes from the shapes, as keywords of `DualSSASTConfig`; raises `ConversionError` on a file of
    another kind.

    Args:
        stem: prefix of the encoder's names
        prefix: names of the tokens before the patches
    """
    inner = ("patch_embed.proj.weight", "pos_embed", *prefix, "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
    tensors.require(*(stem + name for name in inner))
    projection = f"{stem}patch_embed.proj.weight"
    hidden_size, channels, *patch = tensors.shape(projection, 4)
    if channels != 1 or hidden_size % HEAD_SIZE or 0 in (hidden_size, *patch):
        raise ConversionError(
            f"{tensors.path} is not {tensors.kind}: {projection} has shape {(hidden_size, channels, *patch)}, expected "
            f"one channel and a multiple of {HEAD_SIZE} outputs"
        )
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": numbered_blocks(tensors, rf"{re.escape(stem)}blocks\.(\d+)\."),
        "num_attention_heads": hidden_size // HEAD_SIZE,
        "intermediate_size": tensors.shape(f"{stem}blocks.0.mlp.fc1.weight", 2)[0],
        "qkv_bias": f"{stem}blocks.0.attn.qkv.bias" in tensors,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "layer_norm_eps": LAYER_NORM_EPS,
        "num_prefix_tokens": len(prefix),
    }


def count_patches(tensors: Tensors) -> int:
    """Counts the positions of patches, without those of the class and the distillation token."""
    return tensors.shape("v.pos_embed", 3)[1] - len(DISTILLED)


def map_encoder(
    tensors: Tensors, config: DualSSASTConfig, stem: str = "v.", prefix: tuple[str, ...] = DISTILLED
) -> dict[str, torch.Tensor]:
    """Maps the weights of a `DualSSASTModel`: own name -> tensor; `stem` and `prefix` as for `read_sizes`."""
    size = config.hidden_size
    shapes = {
        "pos_embed": (1, config.num_prefix_tokens + config.num_patches, size),
        "patch_embed.proj.weight": (size, 1, *config.patch_shape),
    }
    tokens = [tensors.take(stem + name, 1, 1, size) for name in prefix]
    state = {"embeddings.prefix_tokens": torch.cat(tokens, dim=1)}
    for original, name in OUTER_NAMES.items():
        state[name] = tensors.take(stem + original, *shapes.get(original, (size,)))
    for index in range(config.num_hidden_layers):
        block = _map_block(tensors, config, f"{stem}blocks.{index}.")
        state |= {f"layers.{index}.{name}": tensor for name, tensor in block.items()}
    return state


def map_distilled(tensors: Tensors, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """Maps the encoder of SSAST or AST as part of a model with heads: own name -> tensor. Drops timm's own heads."""
    state = {f"dual_ssast.{name}": tensor for name, tensor in map_encoder(tensors, config).items()}
    tensors.drop(tensors.names("v.head.") + tensors.names("v.head_dist."), UNUSED_HEADS)
    return state


def _map_block(tensors: Tensors, config: DualSSASTConfig, source: str) -> dict[str, torch.Tensor]:
    """Maps one block: name within the block -> tensor; `source` is the block's prefix in the file."""
    size, wide = config.hidden_size, config.intermediate_size
    state = {}
    qkv = {"weight": tensors.take(f"{source}attn.qkv.weight", 3 * size, size)}
    if config.qkv_bias:
        qkv["bias"] = tensors.take(f"{source}attn.qkv.bias", 3 * size)
    for kind, fused in qkv.items():
        state |= {f"{name}.{kind}": part for name, part in zip(QKV_NAMES, fused.chunk(3))}
    shapes = {"attn.proj": (size, size), "mlp.fc1": (wide, size), "mlp.fc2": (size, wide)}
    for original, name in BLOCK_NAMES.items():
        shape = shapes.get(original, (size,))
        state[f"{name}.weight"] = tensors.take(f"{source}{original}.weight", *shape)
        state[f"{name}.bias"] = tensors.take(f"{source}{original}.bias", shape[0])
    return state


def count_labels(tensors: Tensors) -> int:
    count = numbered_blocks(tensors, CLASSIFIER) if tensors.names("mlp_head.") else 2
    last = f"mlp_head.{max(count, 2) - 1}.weight"
    tensors.require("mlp_head.0.weight", last)
    return tensors.shape(last, 2)[0]


def classifier_names(config: DualSSASTConfig) -> dict[str, str]:
    """Returns the pairs of LayerNorm and Linear in `mlp_head`: the original's name -> own name."""
    hidden = range(len(config.classifier_hidden_sizes))
    norms = ["classifier.layernorm", *(f"classifier.activations.{index}" for index in hidden)]
    linears = [*(f"classifier.hidden.{index}" for index in hidden), "classifier.dense"]
    names = [name for pair in zip(norms, linears) for name in pair]
    return {f"mlp_head.{index}": name for index, name in enumerate(names)}


def map_classifier(tensors: Tensors, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """Maps the classifier of a fine-tuned file: own name -> tensor."""
    width, state = config.fused_size, {}
    for original, name in classifier_names(config).items():
        is_norm = name.startswith(("classifier.layernorm", "classifier.activations"))
        shape = (width,) if is_norm else (config.num_labels if name == "classifier.dense" else width, width)
        state[f"{name}.weight"] = tensors.take(f"{original}.weight", *shape)
        state[f"{name}.bias"] = tensors.take(f"{original}.bias", shape[0])
    return state


def patch_shape(sizes: dict) -> tuple[int, int]:
    """Returns (mel bins, frames) of the `patch_size` in the sizes of `read_sizes`."""
    patch = sizes["patch_size"]
    return (patch, patch) if isinstance(patch, int) else tuple(patch)


def convert_classifier(
    tensors: Tensors, sizes: dict, options: Options, make: Callable, recipe_strides: tuple[int, int], title: str
) -> Converted:
    """
    Converts a fine-tuned file. The file stores neither its grid nor its readout.

    Args:
        sizes: as `read_sizes` returns them
        make: makes the `DualSSASTConfig` of the original's readout and head from the file's sizes, grid and labels
        recipe_strides: of the original's fine-tuning recipes, (mel bins, frames)
    """
    num_labels = count_labels(tensors)
    patches = count_patches(tensors)
    grid, notes = read_grid(
        tensors.path, patches, patch_shape(sizes), NUM_MEL_BINS, recipe_strides=recipe_strides, **options.grid
    )
    config = make(
        **sizes,
        **label_settings(tensors.path, num_labels, options.labels),
        num_mel_bins=NUM_MEL_BINS,
        max_length=grid.max_length,
        frequency_stride=grid.frequency_stride,
        time_stride=grid.time_stride,
    )
    weights = map_distilled(tensors, config) | map_classifier(tensors, config)
    tensors.finish()
    notes.append(f"the file does not store its number of mel bins: {NUM_MEL_BINS} is assumed")
    notes += label_notes(num_labels, are_named=options.labels is not None)
    notes += padding_notes(config) + dtype_notes(tensors)
    return Converted(
        model=build_model(DualSSASTForAudioClassification, config, weights),
        feature_extractor=make_feature_extractor(config, **options.statistics),
        title=title,
        notes=notes,
        dropped=tensors.dropped,
        new=[],
    )
