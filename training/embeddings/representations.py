"""
All that a fusion can be made of, from one encoder pass per clip: what every layer says, read out and pooled.

A sweep over layers and poolings composes its features from these; see `compose`.
"""

import itertools

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModel

from modeling_dual_ssast.configuration_composed import ComposedConfig
from modeling_dual_ssast.fusion_dual_ssast import POOLINGS, frame_mask, time_frames, to_feature_map

from ..base.arguments import EncoderArguments
from ..base.loading import config_changes, load_config
from ..data.dataset import mean_over_windows
from ..errors import InputError
from .shards import Shards

READOUTS = ("patches", "prefix", "frames")
COMPOSED = "composed"  # the one readout of the convolutional networks


def name_of(readout: str, layer: int, pooling: str | None = None) -> str:
    """The name of an array of `representations`; the prefix tokens are not pooled."""
    return ".".join(map(str, (readout, layer) if pooling is None else (readout, layer, pooling)))


@torch.no_grad()
def representations(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    What every layer of an encoder says of each clip, for every readout and pooling.

    Args:
        model: a convolutional network that fuses all its layers (`fusion_layers`), or a `DualSSASTModel`, whose states
            are normalised as its configuration fuses: by the encoder's final LayerNorm, or not at all

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
        state = state if config.fusion_norm == "none" else model.layernorm(state)
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


def composed_representations(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As `representations`, of VGGish and CNN14: each layer's part of the time frames, pooled over time."""
    config, (num_clips, num_frames) = model.config, batch["input_values"].shape[:2]
    frames = model(**batch, return_dict=True).last_hidden_state  # (clips, columns, the sizes of all layers)
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
    """What any model of this project makes of a clip: `embedding` (clips, size)."""
    with torch.no_grad():
        return {"embedding": model(**batch, return_dict=True).pooler_output}


def compute(
    model,
    dataset,
    collator,
    shards: Shards,
    batch_size: int,
    num_workers: int,
    dtype: str = "float32",
    represent=representations,
    process: tuple[int, int] = (0, 1),
):
    """
    Fills the shards that are missing. A clip of several windows is the mean of what is said of them.

    Args:
        represent: (model, batch) -> arrays of the batch's clips: `representations` or `fused`
        dataset: index -> example; collator: examples -> batch
        dtype: of the stored arrays, `float32` or `float16`
        process: index and number of processes that share the work
    """
    missing = shards.missing(*process)
    progress = tqdm(total=sum(map(len, missing)), desc="encoding", unit="clip", disable=process[0] != 0)
    for clips in missing:
        loader = torch.utils.data.DataLoader(
            torch.utils.data.Subset(dataset, clips), batch_size, num_workers=num_workers, collate_fn=collator
        )
        parts = []
        for batch in loader:
            progress.update(len(batch.pop("labels")))
            num_windows = batch.pop("num_windows", None)
            # Long clips have many windows: no more of them go through the model at once than clips.
            pieces = zip(*(value.split(batch_size) for value in batch.values()))
            found = [represent(model, {name: v.to(model.device) for name, v in zip(batch, piece)}) for piece in pieces]
            part = {name: torch.cat([one[name] for one in found]) for name in found[0]}
            if num_windows is not None:
                part = {name: mean_over_windows(value, num_windows) for name, value in part.items()}
            parts.append({name: value.float().cpu().numpy().astype(dtype) for name, value in part.items()})
        shards.save(clips, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    progress.close()


def subsets(names: tuple[str, ...] = tuple(POOLINGS)) -> list[tuple[str, ...]]:
    """All non-empty subsets: seven of mean, max and min."""
    return [subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size)]


def blocks(readout: str, layers: tuple[int, ...], pooling: tuple[str, ...], combination: str) -> list[tuple]:
    """
    The parts whose concatenation is a configuration's fused vector (`fusion="concat"`): (readout, layer, poolings whose
    sum it is). Concatenation never changes how each part is standardised, so parts can be computed once.
    """
    if readout == "prefix":
        return [(readout, layer, ()) for layer in layers]
    if combination == "concat":
        return [(readout, layer, (name,)) for layer in layers for name in pooling]
    return [(readout, layer, pooling) for layer in layers]


def block_features(arrays: dict[str, np.ndarray], readout: str, layer: int, pooling: tuple[str, ...]) -> np.ndarray:
    """(clips, size), in float64. A sum of poolings; their mean differs by a factor that standardising removes."""
    names = [name_of(readout, layer, name) for name in pooling] or [name_of(readout, layer)]
    return sum(arrays[name].astype(np.float64) for name in names)


def compose(arrays: dict[str, np.ndarray], readout: str, layers, pooling, combination: str) -> np.ndarray:
    """The fused vectors of a configuration, as `pooler_output` with it gives them: (clips, fused_size)"""
    parts = blocks(readout, tuple(layers), tuple(pooling), combination)
    return np.concatenate([block_features(arrays, *part) for part in parts], axis=1)


def load_encoder(model_arguments: EncoderArguments, extractor, fuse_all: bool = False):
    """
    The encoder in evaluation mode, on the accelerator if there is one; with `fuse_all` a convolutional network composes
    all its layers.
    """
    config = load_config(model_arguments)
    if config is None:
        raise InputError("model_name_or_path: is not set; name the checkpoint whose layers are to be compared")
    changes = config_changes(model_arguments, config) | {"padding_value": extractor.padding_value}
    if fuse_all and isinstance(config, ComposedConfig):
        changes |= {"fusion_layers": list(config.layers)}
        changes |= {"readout": COMPOSED} if hasattr(config, "readout") else {}
    try:
        model = AutoModel.from_pretrained(
            model_arguments.model_name_or_path, revision=model_arguments.model_revision, **changes
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"model: {error}") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.eval().to(device)
