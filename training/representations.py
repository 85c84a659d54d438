"""
All that a fusion can be made of, from one encoder pass per clip: what every layer says, read out and pooled.

A sweep over layers and poolings composes its features from these; see `compose`.
"""

import itertools

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_dual_ssast.fusion_dual_ssast import POOLINGS, time_frames

from .shards import Shards

READOUTS = ("patches", "prefix", "frames")


@torch.no_grad()
def representations(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    What every layer of a `DualSSASTModel` says of each clip, normalised as its configuration fuses: by the encoder's
    final LayerNorm, or not at all.

    Returns:
        `prefix` (clips, layers, hidden), and `patches_mean`, `frames_max`, ... (clips, layers, size), where layer 0 is
        the embedding and size is hidden, for frames times the rows of patches.
    """
    config = model.config
    outputs = model(**batch, output_hidden_states=True, return_dict=True)
    num_prefix, rows = config.num_prefix_tokens, config.grid_shape[0]
    patch_mask = model.embeddings.patch_mask(
        batch.get("attention_mask"), outputs.hidden_states[0].shape[1] - num_prefix
    )
    found = {name: [] for name in ("prefix", *(f"{r}_{p}" for r in ("patches", "frames") for p in POOLINGS))}
    for state in outputs.hidden_states:
        state = state if config.fusion_norm == "none" else model.layernorm(state)
        found["prefix"].append(state[:, :num_prefix].mean(dim=1))
        patches = state[:, num_prefix:]
        frames = time_frames(patches.transpose(1, 2).unflatten(2, (rows, -1)))  # (clips, columns, hidden * rows)
        mask = (
            torch.ones(patches.shape[:2], dtype=torch.bool, device=state.device) if patch_mask is None else patch_mask
        )
        for name, pool in POOLINGS.items():
            found[f"patches_{name}"].append(pool(patches, mask))
            found[f"frames_{name}"].append(pool(frames, mask[:, : frames.shape[1]]))
    return {name: torch.stack(layers, dim=1) for name, layers in found.items()}


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
    Fills the shards that are missing.

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
            batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            part = represent(model, batch)
            parts.append({name: value.float().cpu().numpy().astype(dtype) for name, value in part.items()})
            progress.update(len(batch["input_values"]))
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
    if readout == "prefix":
        return arrays["prefix"][:, layer].astype(np.float64)
    return sum(arrays[f"{readout}_{name}"][:, layer].astype(np.float64) for name in pooling)


def compose(arrays: dict[str, np.ndarray], readout: str, layers, pooling, combination: str) -> np.ndarray:
    """The fused vectors of a configuration, as `pooler_output` with it gives them: (clips, fused_size)"""
    parts = blocks(readout, tuple(layers), tuple(pooling), combination)
    return np.concatenate([block_features(arrays, *part) for part in parts], axis=1)
