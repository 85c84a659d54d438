"""What SSAST and AST checkpoints share: timm's distilled DeiT under `v.`, and the classifier `mlp_head`."""

import torch

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification

from .checkpoint import ConversionError, Tensors, numbered_blocks
from .grids import read_grid
from .labels import label_notes, label_settings
from .options import Options
from .result import Converted, build_model, dtype_notes, make_feature_extractor, padding_notes

HEAD_SIZE = 64  # of every DeiT, so that the number of heads follows from the width
LAYER_NORM_EPS = 1e-6  # timm's
NUM_MEL_BINS = 128  # of all published checkpoints; fine-tuned files do not tell
UNUSED_HEADS = "timm's own 1000-class head, which the original never calls"


def read_sizes(tensors: Tensors) -> dict:
    """The encoder's sizes as keywords of `DualSSASTConfig`, from the shapes; raises on a foreign file."""
    tensors.require(
        "v.patch_embed.proj.weight",
        "v.pos_embed",
        "v.cls_token",
        "v.dist_token",
        "v.blocks.0.attn.qkv.weight",
        "v.blocks.0.mlp.fc1.weight",
    )
    hidden_size, channels, *patch = tensors.shape("v.patch_embed.proj.weight", 4)
    if channels != 1 or hidden_size % HEAD_SIZE:
        raise ConversionError(
            f"{tensors.path} is not {tensors.kind}: v.patch_embed.proj.weight has shape "
            f"{(hidden_size, channels, *patch)}, expected one channel and a multiple of {HEAD_SIZE} outputs"
        )
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": numbered_blocks(tensors, r"v\.blocks\.(\d+)\."),
        "num_attention_heads": hidden_size // HEAD_SIZE,
        "intermediate_size": tensors.shape("v.blocks.0.mlp.fc1.weight", 2)[0],
        "qkv_bias": "v.blocks.0.attn.qkv.bias" in tensors,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "layer_norm_eps": LAYER_NORM_EPS,
        "num_prefix_tokens": 2,
    }


def count_patches(tensors: Tensors) -> int:
    """Positions of patches, without those of the class and the distillation token."""
    return tensors.shape("v.pos_embed", 3)[1] - 2


def map_encoder(tensors: Tensors, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """The encoder's weights under this project's names; the unused heads are dropped."""
    size, patch = config.hidden_size, config.patch_shape
    prefix = [tensors.take(name, 1, 1, size) for name in ("v.cls_token", "v.dist_token")]
    state = {
        "embeddings.prefix_tokens": torch.cat(prefix, dim=1),
        "embeddings.position_embeddings": tensors.take("v.pos_embed", 1, 2 + config.num_patches, size),
        "embeddings.projection.weight": tensors.take("v.patch_embed.proj.weight", size, 1, *patch),
        "embeddings.projection.bias": tensors.take("v.patch_embed.proj.bias", size),
        "layernorm.weight": tensors.take("v.norm.weight", size),
        "layernorm.bias": tensors.take("v.norm.bias", size),
    }
    for index in range(config.num_hidden_layers):
        block = _map_block(tensors, config, f"v.blocks.{index}.")
        state |= {f"layers.{index}.{name}": tensor for name, tensor in block.items()}
    tensors.drop(tensors.names("v.head.") + tensors.names("v.head_dist."), UNUSED_HEADS)
    return {f"dual_ssast.{name}": tensor for name, tensor in state.items()}


def _map_block(tensors: Tensors, config: DualSSASTConfig, source: str) -> dict[str, torch.Tensor]:
    size, wide = config.hidden_size, config.intermediate_size
    state = {}
    qkv = {"weight": tensors.take(f"{source}attn.qkv.weight", 3 * size, size)}
    if config.qkv_bias:
        qkv["bias"] = tensors.take(f"{source}attn.qkv.bias", 3 * size)
    for kind, fused in qkv.items():
        for name, part in zip(("q_proj", "k_proj", "v_proj"), fused.chunk(3)):
            state[f"attention.{name}.{kind}"] = part
    for original, name, rows, columns in (
        ("attn.proj", "attention.o_proj", size, size),
        ("mlp.fc1", "mlp.fc1", wide, size),
        ("mlp.fc2", "mlp.fc2", size, wide),
    ):
        state[f"{name}.weight"] = tensors.take(f"{source}{original}.weight", rows, columns)
        state[f"{name}.bias"] = tensors.take(f"{source}{original}.bias", rows)
    for original, name in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
        state[f"{name}.weight"] = tensors.take(f"{source}{original}.weight", size)
        state[f"{name}.bias"] = tensors.take(f"{source}{original}.bias", size)
    return state


def count_labels(tensors: Tensors) -> int:
    tensors.require("mlp_head.0.weight", "mlp_head.1.weight")
    return tensors.shape("mlp_head.1.weight", 2)[0]


def map_classifier(tensors: Tensors, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """LayerNorm and Linear of a fine-tuned file."""
    size, labels = config.hidden_size, config.num_labels
    return {
        "classifier.layernorm.weight": tensors.take("mlp_head.0.weight", size),
        "classifier.layernorm.bias": tensors.take("mlp_head.0.bias", size),
        "classifier.dense.weight": tensors.take("mlp_head.1.weight", labels, size),
        "classifier.dense.bias": tensors.take("mlp_head.1.bias", labels),
    }


def patch_shape(sizes: dict) -> tuple[int, int]:
    """(mel bins, frames) of the `patch_size` that `read_sizes` gives."""
    patch = sizes["patch_size"]
    return (patch, patch) if isinstance(patch, int) else tuple(patch)


def convert_classifier(
    tensors: Tensors, sizes: dict, options: Options, readout: dict, recipe_strides: tuple[int, int], title: str
) -> Converted:
    """
    A fine-tuned file, which tells neither its grid nor its readout.

    Args:
        sizes: of `read_sizes`
        readout: the settings of `DualSSASTConfig` that make the original's head
        recipe_strides: of the original's fine-tuning recipes, (mel bins, frames)
    """
    num_labels = count_labels(tensors)
    patches = count_patches(tensors)
    grid, notes = read_grid(
        tensors.path, patches, patch_shape(sizes), NUM_MEL_BINS, recipe_strides=recipe_strides, **options.grid
    )
    config = DualSSASTConfig(
        **sizes,
        **readout,
        **label_settings(tensors.path, num_labels, options.labels),
        num_mel_bins=NUM_MEL_BINS,
        max_length=grid.max_length,
        frequency_stride=grid.frequency_stride,
        time_stride=grid.time_stride,
    )
    weights = map_encoder(tensors, config) | map_classifier(tensors, config)
    tensors.finish()
    notes.append(f"the file does not tell its mel bins: {NUM_MEL_BINS}")
    notes += label_notes(num_labels, are_named=options.labels is not None)
    notes += padding_notes(config) + dtype_notes(tensors)
    return Converted(
        model=build_model(DualSSASTForAudioClassification, config, weights),
        feature_extractor=make_feature_extractor(config, options.mean, options.std),
        title=title,
        notes=notes,
        dropped=tensors.dropped,
        new=[],
    )
