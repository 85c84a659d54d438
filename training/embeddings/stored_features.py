"""
Encodes the clips of a probe once, and stores what its heads read: fused vectors, pooled layers, and tokens of layers in
float16. A row per window: a clip's logits are the mean over its windows, like those of the finished model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from modeling_dual_ssast.configuration_composed import ComposedConfig
from modeling_dual_ssast.fusion_dual_ssast import frame_mask

from ..data.audio import num_samples
from ..data.columns import audio_of
from ..data.dataset import ClipDataset
from ..errors import InputError
from ..inference.shards import NUM_TOKENS, TOKENS, Shards, mean
from .heads import COMPOSED_TOKENS, EMBEDDING, POOLED, Head
from .representations import DatasetNetwork, normalised

GB = 1e9
TOKEN_DTYPE = "float16"
MOST_NUMBERS = 2**25  # of tokens in float32 at once: 128 MiB


class FeatureNetwork(DatasetNetwork):
    """
    Gives the arrays that heads read, of every window.

    Args:
        model: frozen encoder
        dataset: labelled clips
        heads: their `names` say what is stored
        more: further names
    """

    keeps_windows = True

    def __init__(self, model, dataset: ClipDataset, heads: Collection[Head], more: Sequence[str] = ()):
        super().__init__(model, dataset)
        self.names = sorted({*more, *(name for head in heads for name in head.names)})
        self.tokens = [name for name in self.names if name.startswith(TOKENS)]
        self.per_window = [NUM_TOKENS, *(name for name in self.names if name not in self.tokens)]
        self.layers = {int(name.rpartition(".")[2]) for name in self.names if name not in (EMBEDDING, COMPOSED_TOKENS)}
        pooling = (head for head in heads if head.method.reads == POOLED)
        self.pooled = {name: (place, head) for head in pooling for place, name in enumerate(head.names)}

    def dtype_of(self, name: str) -> str:
        return TOKEN_DTYPE if name in self.tokens else "float32"

    def run(self, features):
        model, config, mask = self.model, self.model.config, features.get("attention_mask")
        outputs = model(**features, output_hidden_states=bool(self.layers), return_dict=True)
        found = {EMBEDDING: outputs.pooler_output} if EMBEDDING in self.names else {}
        states = {layer: normalised(model, layer, outputs.hidden_states[layer]) for layer in self.layers}
        for name, (place, head) in self.pooled.items():
            state = states[int(name.removeprefix(POOLED))]
            patch_mask = model.embeddings.patch_mask(mask, state.shape[1] - config.num_prefix_tokens)
            found[name] = head.fusion_of_encoder.read_out(place, state, patch_mask)
        if not self.tokens:
            return found, None
        if isinstance(config, ComposedConfig):
            tokens = {COMPOSED_TOKENS: outputs.last_hidden_state.unsqueeze(2)}
        else:
            tokens = {name: model.fusion.frame_tokens(states[int(name.removeprefix(TOKENS))]) for name in self.tokens}
        num_frames = next(iter(tokens.values())).shape[1]
        counts = torch.full(outputs.last_hidden_state.shape[:1], num_frames)
        if mask is not None and not is_whole(config):
            counts = model.num_label_frames(mask.sum(dim=1)).cpu()
        return {NUM_TOKENS: counts, **found, **tokens}, counts.tolist()


def is_whole(config) -> bool:
    """Returns whether the tokens of padding take part, or tokens have no place in time."""
    return getattr(config, "attention_over_padding", False) or getattr(config, "readout", None) == "prefix"


def num_frames_of(model, extractor, num_samples: int) -> int:
    """Returns the number of stored time frames of a window of some samples; a few more or less do not matter."""
    config = model.config
    if getattr(config, "readout", None) == "prefix":
        return 1
    frames = extractor.num_frames(num_samples)
    longest = min(filter(None, (model.max_frames, extractor.max_length)), default=frames)
    frames = longest if is_whole(config) else min(frames, longest)
    return max(int(model.num_label_frames(torch.tensor([frames]))), 1)


def token_bytes(network: FeatureNetwork, datasets: Mapping[str, ClipDataset]) -> dict[str, float]:
    """Returns about how many bytes each array of tokens takes, from the headers of the clips."""
    config, extractor = network.model.config, network.extractor
    num_frames = 0
    for dataset in datasets.values():
        for example in dataset.examples:
            length = num_samples(audio_of(example), extractor.sampling_rate)
            starts, window = network.layout(length)
            sizes = [min(window, length - start) for start in starts]
            num_frames += sum(num_frames_of(network.model, extractor, size) for size in sizes)
    if isinstance(config, ComposedConfig):
        size = config.fused_size
    elif config.readout == "prefix":
        size = config.num_prefix_tokens * config.hidden_size
    else:
        size = config.hidden_size * (1 if config.readout == "tokens" else config.grid_shape[0])
    return dict.fromkeys(network.tokens, float(num_frames * size * np.dtype(TOKEN_DTYPE).itemsize))


def check_size(network: FeatureNetwork, datasets: Mapping[str, ClipDataset], heads: Collection[Head], most_gb: float):
    """Raises `InputError` if the tokens that heads read take more than some gigabytes; before anything is encoded."""
    if not network.tokens:
        return
    sizes = token_bytes(network, datasets)
    total = sum(sizes.values()) / GB
    if total > most_gb:
        own = {head.method.name: sum(sizes.get(name, 0) for name in head.names) / GB for head in heads}
        listed = ", ".join(f"{name} {size:.2g} GB" for name, size in own.items() if size)
        raise InputError(
            f"max_feature_gb: the tokens take about {total:.2g} GB ({listed}), more than {most_gb:g}; raise it, leave "
            "out methods, or name fewer fusion_layers"
        )


@dataclass
class Stored:
    """
    Holds arrays of the windows of some clips.

    Args:
        windows: (clips + 1,), the first window of each clip
        vectors: name -> float32 (windows, size)
        frames: (windows + 1,), the first time frame of each window
        tokens: name -> float16 (time frames, tokens of a frame, size)
    """

    windows: np.ndarray
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    frames: np.ndarray | None = None
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_clips(cls, name: str, vectors: np.ndarray) -> "Stored":
        """Returns clips with a vector each: (clips, size)."""
        return cls(np.arange(len(vectors) + 1), {name: vectors})

    @classmethod
    def load(cls, shards: Shards, names: Sequence[str]) -> "Stored":
        """
        Reads the arrays of all clips.

        Raises:
            InputError: tokens that overflow in float16.
        """
        counts, arrays = {}, {name: [] for name in (*names, NUM_TOKENS)}
        for part in shards.parts({*names, NUM_TOKENS}):
            for segment in part.segments:
                counts[segment.number] = counts.get(segment.number, 0) + segment.rows
            for name, array in part.arrays.items():
                if not np.isfinite(array).all():
                    raise InputError(
                        f"{shards.folder}: {name} is not finite in {array.dtype}; leave out methods that read tokens, "
                        "or set fusion_norm shared"
                    )
                arrays[name].append(array)
        joined = {name: np.concatenate(own) for name, own in arrays.items() if own}
        ends = np.cumsum([0, *(counts[number] for number in sorted(counts))])
        frames = np.cumsum([0, *joined[NUM_TOKENS]]).astype(np.int64) if NUM_TOKENS in joined else None
        tokens = {name: torch.from_numpy(joined[name]) for name in names if name.startswith(TOKENS)}
        return cls(ends, {name: joined[name] for name in names if name not in tokens}, frames, tokens)

    def __len__(self) -> int:
        return len(self.windows) - 1

    @property
    def most_clips(self) -> int:
        """Returns how many clips may be in memory at once, in float32."""
        if not self.tokens:
            return max(len(self), 1)
        longest = int(np.diff(self.frames).max()) * int(np.diff(self.windows).max())
        size = sum(array[0].numel() for array in self.tokens.values())
        return max(MOST_NUMBERS // (longest * size), 1)

    def batch(self, clips: np.ndarray, device) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, list[int]]:
        """
        Returns the arrays of the windows of some clips, padded; the mask of their time frames (windows, frames), or
        `None` without tokens; and the number of windows of each clip.
        """
        counts = (self.windows[clips + 1] - self.windows[clips]).tolist()
        rows = np.concatenate([np.arange(self.windows[clip], self.windows[clip + 1]) for clip in clips])
        found = {name: torch.from_numpy(values[rows]).to(device) for name, values in self.vectors.items()}
        if not self.tokens:
            return found, None, counts
        lengths = torch.from_numpy(self.frames[rows + 1] - self.frames[rows])
        for name, values in self.tokens.items():
            padded = values.new_zeros(len(rows), int(lengths.max()), *values.shape[1:])
            for place, row in enumerate(rows):
                padded[place, : lengths[place]] = values[self.frames[row] : self.frames[row + 1]]
            found[name] = padded.to(device).float()
        return found, frame_mask(lengths, int(lengths.max())).to(device), counts


def clip_means(shards: Shards, name: str) -> np.ndarray:
    """Returns the mean over the windows of each clip: (clips, size)"""
    found = {}
    for part in shards.parts({name, NUM_TOKENS}):
        for segment, arrays in part.split():
            if segment.rows:
                found.setdefault(segment.number, []).append((segment.windows, arrays[name].mean(axis=0)))
    return np.stack([mean(found[number]) for number in sorted(found)])
