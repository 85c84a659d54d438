"""
Reads out and pools every layer in one encoder pass per clip.

From these arrays a sweep composes the fused vectors of all configurations; see `compose`.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast.configuration_composed import ComposedConfig
from modeling_dual_ssast.embedding_dual_ssast import window_starts
from modeling_dual_ssast.fusion_dual_ssast import (
    frame_mask,
    masked_max,
    masked_mean,
    masked_min,
    time_frames,
    to_feature_map,
)

from ..base.arguments import EncoderArguments
from ..base.inference import explained, load_encoder
from ..base.loading import config_changes, load_config
from ..data.dataset import ClipDataset
from ..errors import InputError
from ..inference.engine import Engine, Network
from ..inference.inputs import ClipSequence, Examples
from ..inference.shards import Shards, weights_fingerprint
from .arguments import FrozenEncoderArguments

POOLINGS = {"mean": masked_mean, "max": masked_max, "min": masked_min}  # that a sweep compares; the model has others
COMPOSED = "composed"  # the only readout of the convolutional networks that a sweep can compose


def name_of(readout: str, layer: int, pooling: str | None = None) -> str:
    """Returns the name of an array of `representations`; prefix tokens have no pooling."""
    return ".".join(map(str, (readout, layer) if pooling is None else (readout, layer, pooling)))


@torch.no_grad()
def representations(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Reads out and pools every layer of an encoder, by every readout and pooling.

    Args:
        model: a convolutional network that fuses all its layers (`fusion_layers`), or a `DualSSASTModel`, whose states
            are `normalised`
        batch: inputs of the model

    Returns:
        `name_of` -> (clips, size)
    """
    if isinstance(model.config, ComposedConfig):
        return composed_representations(model, batch)
    config = model.config
    outputs = model(**batch, output_hidden_states=True, return_dict=True)
    num_prefix, rows = config.num_prefix_tokens, config.grid_shape[0]
    patch_mask = model.embeddings.patch_mask(
        batch.get("attention_mask"), outputs.hidden_states[0].shape[1] - num_prefix
    )
    found = {}
    for layer, state in enumerate(outputs.hidden_states):
        state = normalised(model, layer, state)
        found[name_of("prefix", layer)] = state[:, :num_prefix].mean(dim=1)
        patches = state[:, num_prefix:]
        frames = time_frames(to_feature_map(patches, rows))  # (clips, columns, hidden * rows)
        mask = (
            torch.ones(patches.shape[:2], dtype=torch.bool, device=state.device) if patch_mask is None else patch_mask
        )
        for name, pool in POOLINGS.items():
            found[name_of("patches", layer, name)] = pool(patches, mask)
            found[name_of("frames", layer, name)] = pool(frames, mask[:, : frames.shape[1]])
    return found


def normalised(model, layer: int, state: torch.Tensor) -> torch.Tensor:
    """
    Normalises the state of any layer as a model that fuses it would (`fusion_norm`): (batch, tokens, hidden) -> the
    same shape. A layer that the model does not fuse has no norm of its own yet: its `separate` norm is a new one.
    """
    config = model.config
    if config.fusion_norm == "none":
        return state
    if config.fusion_norm == "separate":
        if layer in config.fused_layers:
            return model.fusion.layernorms[config.fused_layers.index(layer)](state)
        return torch.nn.functional.layer_norm(state, state.shape[-1:], eps=config.layer_norm_eps)
    for _ in range(2 if config.fusion_norm == "shared_twice" else 1):
        state = model.layernorm(state)
    return state


def composed_representations(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pools each layer's part of the time frames of VGGish or CNN14 over time; see `representations`."""
    config, (num_clips, num_frames) = model.config, batch["input_values"].shape[:2]
    frames = model(**batch, return_dict=True).last_hidden_state  # (clips, columns, sum of the layers' sizes)
    lengths = torch.full((num_clips,), num_frames, device=frames.device)
    if batch.get("attention_mask") is not None:
        lengths = batch["attention_mask"].sum(dim=1)
    mask = frame_mask(model.num_time_frames(lengths), frames.shape[1])
    parts = frames.split([config.layer_size(layer) for layer in config.fused_layers], dim=-1)
    return {
        name_of(COMPOSED, layer, name): pool(part, mask)
        for layer, part in zip(config.fused_layers, parts)
        for name, pool in POOLINGS.items()
    }


def fused(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the fused vector of any model of this project: `embedding` (clips, size)."""
    with torch.no_grad():
        return {"embedding": model(**batch, return_dict=True).pooler_output}


class DatasetNetwork(Network):
    """Runs a model over the windows of a data set's clips; a subclass names the arrays."""

    def __init__(self, model, dataset):
        super().__init__(model, dataset.feature_extractor)
        self.windows = dataset.windows

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        if self.windows is None:
            return [0], num_samples
        window, hop = self.windows
        return window_starts(num_samples, window, hop), window


class Represented(DatasetNetwork):
    """
    Gives arrays of every clip, the means over its windows.

    Args:
        dataset: labelled clips, or a source of clips with the same `feature_extractor` and `windows`
        represent: (model, batch) -> arrays of the batch's windows: `representations` or `fused`
        dtype: type of the stored arrays, `float32` or `float16`
    """

    def __init__(self, model, dataset, represent: Callable = representations, dtype: str = "float32"):
        super().__init__(model, dataset)
        self.represent = represent
        self.dtype = dtype

    def dtype_of(self, name: str) -> str:
        return self.dtype

    def run(self, features):
        return self.represent(self.model, dict(features)), None


def encode_clips(
    network: Network,
    dataset,
    folder: Path,
    model_arguments: EncoderArguments,
    arguments: FrozenEncoderArguments,
    **facts,
) -> Shards:
    """
    Returns the arrays of all clips, stored in a folder; encodes those that a stopped run has not.

    Args:
        dataset: labelled clips, or a source of clips with the same `feature_extractor` and `windows`
        facts: what else determines the arrays

    Raises:
        InputError: a clip cannot be read, or the folder holds arrays of another model, data set or setting.
    """
    description = {
        "model": str(model_arguments.model_name_or_path),
        "weights": weights_fingerprint(network.model),
        "settings": model_arguments.overrides(),
        "features": dataset.feature_extractor.to_dict() | {"windows": dataset.windows},
        "clips": _clips_of(dataset).fingerprint(),
    }
    shards = Shards(folder, len(dataset), arguments.shard_clips, description | facts)
    shards.prepare(arguments.overwrite)
    fill_shards(network, dataset, shards, arguments.per_device_eval_batch_size, arguments.dataloader_num_workers)
    return shards


def fill_shards(network: Network, dataset, shards: Shards, batch_size: int, num_workers: int = 0):
    """
    Encodes the clips of the missing shards; arguments as for `encode_clips`.

    Args:
        batch_size: clips or windows per encoder pass
        num_workers: threads that decode
    """
    clips = _clips_of(dataset)
    Engine(network, clips, shards, batch_size, num_workers, verb="encoding", stops_at_errors=True).fill()


def _clips_of(dataset) -> ClipSequence:
    return ClipSequence([Examples(dataset) if isinstance(dataset, ClipDataset) else dataset])


def subsets() -> list[tuple[str, ...]]:
    """Returns all non-empty subsets of `POOLINGS`: seven."""
    return [subset for size in range(1, len(POOLINGS) + 1) for subset in itertools.combinations(POOLINGS, size)]


def blocks(readout: str, layers: tuple[int, ...], pooling: tuple[str, ...], combination: str) -> list[tuple]:
    """
    Splits a configuration's fused vector (`fusion="concat"`) into its parts, each (readout, layer, poolings to sum).
    Parts are standardised separately, so that each is computed once for all configurations.
    """
    if readout == "prefix":
        return [(readout, layer, ()) for layer in layers]
    if combination == "concat":
        return [(readout, layer, (name,)) for layer in layers for name in pooling]
    return [(readout, layer, pooling) for layer in layers]


def block_features(arrays: dict[str, np.ndarray], readout: str, layer: int, pooling: tuple[str, ...]) -> np.ndarray:
    """
    Returns a part of a fused vector, the sum of its poolings: float64 (clips, size). Standardising removes the factor
    between their sum and their mean.
    """
    names = [name_of(readout, layer, name) for name in pooling] or [name_of(readout, layer)]
    return sum(arrays[name].astype(np.float64) for name in names)


def compose(arrays: dict[str, np.ndarray], readout: str, layers, pooling, combination: str) -> np.ndarray:
    """Returns the fused vectors of a configuration, equal to the model's `pooler_output`: (clips, fused_size)"""
    parts = blocks(readout, tuple(layers), tuple(pooling), combination)
    return np.concatenate([block_features(arrays, *part) for part in parts], axis=1)


def load_for_recipe(model_arguments: EncoderArguments, extractor, fuse_all: bool = False):
    """
    Loads the encoder that a recipe names, with the recipe's changes of its configuration.

    Args:
        fuse_all: make a convolutional network compose all its layers

    Raises:
        InputError: the recipe names no checkpoint, or it cannot be loaded or lacks weights.
    """
    name, config = model_arguments.model_name_or_path, load_config(model_arguments)
    if config is None:
        raise InputError("model_name_or_path: is not set; name the checkpoint whose layers are to be compared")
    changes = config_changes(model_arguments, config) | {"padding_value": extractor.padding_value}
    if fuse_all and isinstance(config, ComposedConfig):
        changes |= {"fusion_layers": list(config.layers)}
        changes |= {"readout": COMPOSED} if hasattr(config, "readout") else {}
    with explained(f"model: {name}", "cannot be loaded with these settings", "correct the recipe"):
        return load_encoder(name, model_arguments.model_revision, **changes)
