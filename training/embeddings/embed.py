"""Embeds clips, for embed_hf.py: the networks of each level, and the Parquet or npz file of their vectors."""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop, window_starts

from ..base.inference import check_checkpoint, check_folder, explained, load_encoder
from ..errors import InputError
from ..files import arrow_array, complete_file
from ..inference.engine import Network
from ..inference.overlaps import Overlaps
from ..inference.plan import Stretch
from ..inference.shards import Part, Segment, mean
from ..inference.tables import Columns, open_table, with_own_columns
from .log_mel import LOG_MEL, load_log_mel

ABOUT = "about"  # member of an npz file that says what made its vectors; a column of this name becomes given_about
LEVELS = ("clip", "frames", "layers")
EXTENSIONS = (".parquet", ".npz")


class ClipEmbedder(Network):
    """
    Gives the fused vector of a clip, the mean over its windows, as `model.embed`.

    Args:
        overrides: fields of the checkpoint's configuration that the options changed
        level: one of `LEVELS`
        window_s: seconds per window of long clips; `None`: the model's own

    Raises:
        ValueError: a window that the model does not accept.
    """

    def __init__(self, model, extractor, overrides: dict, level: str, window_s: float | None):
        super().__init__(model, extractor)
        self.overrides = overrides
        self.level = level
        self.window, self.hop = window_and_hop(model, extractor, window_s)

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        return window_starts(num_samples, self.window, self.hop), self.window

    def run(self, features):
        return {"embedding": self.model(**features, return_dict=True).pooler_output}, None

    def columns(self) -> dict[str, int]:
        """Returns the columns of vectors in the output, and the size of each."""
        config = self.model.config
        if self.level != "layers":
            return {"embedding": config.fused_size}
        layers, sizes = config.fused_layers, getattr(config, "fused_size_per_layer", None)
        sizes = map(config.layer_size, layers) if sizes is None else sizes
        return {f"layer_{layer}": size for layer, size in zip(layers, sizes)}

    def clips(self, parts: Iterable[Part]) -> Iterator[list[tuple[Segment, dict[str, np.ndarray]]]]:
        """Yields, part by part, what is complete of each clip: its segment, and its rows of the output."""
        waiting = []
        for part in parts:
            found = []
            for segment, arrays in part.split():
                if segment.rows:
                    waiting.append((segment.windows, arrays["embedding"]))
                if segment.is_last:
                    if waiting:
                        found.append((segment, {"embedding": mean(waiting)}))
                    waiting = []
            yield found


class FrameEmbedder(ClipEmbedder):
    """Gives a vector per time frame; overlapping windows are averaged, as by `model.embed_frames`."""

    keeps_windows = True

    def __init__(self, model, extractor, overrides: dict, level: str, window_s: float | None):
        super().__init__(model, extractor, overrides, level, window_s)
        self.hop_samples = extractor.num_samples(2) - extractor.num_samples(1)  # from spectrogram frame to frame
        self.column_samples = model.time_grid.stride * self.hop_samples

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        return self.model.frame_windows(self.extractor, num_samples, self.window)

    def run(self, features):
        counts = self.model.num_time_frames(features["attention_mask"].sum(dim=1)).tolist()
        return {"embedding": self.model.time_frames(**features)}, counts

    def places(self, stretch: Stretch, counts: list[int]) -> dict[str, np.ndarray]:
        starts = (start // self.column_samples + np.arange(count) for start, count in zip(stretch.starts, counts))
        return {"frame": np.concatenate(list(starts))}

    def columns(self) -> dict[str, int]:
        return {"embedding": self.model.frame_size}

    def clips(self, parts: Iterable[Part]) -> Iterator[list[tuple[Segment, dict[str, np.ndarray]]]]:
        offset = self.extractor.num_samples(self.model.time_grid.length) / 2  # to the middle of the first time frame
        joined = Overlaps()
        for part in parts:
            found = []
            for segment, arrays in part.split():
                frames = list(joined.add(arrays["frame"], arrays["embedding"])) if segment.rows else []
                frames += joined.end() if segment.is_last else []
                for first, values in frames:
                    samples = (first + np.arange(len(values), dtype=np.float64)) * self.column_samples + offset
                    time_ms = samples * (1000 / self.extractor.sampling_rate)
                    found.append((segment, {"embedding": values, "time_ms": time_ms}))
            yield found


def load(name: str, level: str, window_s: float | None, **settings) -> ClipEmbedder:
    """
    Loads an encoder with the options of embed_hf.py.

    Args:
        name: folder or Hub name; or `LOG_MEL`, statistics without weights
        settings: `readout`, `fusion_layers`, `pooling` and `pooling_combination`; `None`: the model's own

    Raises:
        InputError: the model cannot be loaded, lacks weights, or does not have such a setting.
    """
    remedy = "correct the options or name another model"
    if name == LOG_MEL:
        with explained(name, "cannot embed", remedy):
            return ClipEmbedder(*load_log_mel(level, settings), {}, level, window_s)
    check_checkpoint(name)
    with explained(name, "cannot embed", remedy):
        check_folder(name)
        overrides = find_overrides(name, AutoConfig.from_pretrained(name), level, settings)
        model = load_encoder(name, **overrides)
        extractor = model.own_feature_extractor()
        kind = FrameEmbedder if level == "frames" else ClipEmbedder
        return kind(model, extractor, overrides, level, window_s)


def find_overrides(name: str, config, level: str, settings: dict) -> dict:
    """
    Returns the fields of the configuration to change: the settings, and for the level `layers` all layers side by side.

    Raises:
        InputError: this kind of model or level does not have such a field, or lacks norms or attention for some layers.
    """
    found = {field: value for field, value in settings.items() if value is not None}
    if level == "frames":
        pooled = next((field for field in ("pooling", "pooling_combination") if field in found), None)
        if pooled is not None:
            raise InputError(f"{pooled}: --level frames has a vector per time frame and pools none; leave it out")
        if found.get("readout") == "prefix":
            raise InputError("readout prefix: has no time frames; take patches or frames, or another --level")
    if level == "layers":
        if getattr(config, "fusion_norm", None) == "separate":
            raise InputError(f"{name}: has a norm for each fused layer and none for the others; use --level clip")
        own = getattr(config, "pooling", getattr(config, "temporal_pooling", ()))
        if "attention" in str(found.get("pooling", own)):
            raise InputError(f"{name}: has attention for each fused layer and none for the others; use --level clip")
        found = {"fusion_layers": list(config.layers), **found}
        if hasattr(config, "fusion"):
            found = {"fusion": "concat", **found}
        elif hasattr(config, "readout"):
            found = {"readout": "composed", **found}  # PANNs' own readout has no layers
    if hasattr(config, "temporal_pooling") and "pooling" in found:
        found["temporal_pooling"] = found.pop("pooling")
    unknown = [field for field in found if not hasattr(config, field)]
    if unknown:
        raise InputError(f"{name}: a {config.model_type} model has no {unknown[0]}; leave it out")
    return found


def write(
    embedder: ClipEmbedder,
    parts: Callable[[], Iterable[Part]],
    failed: set[int],
    own,
    about: dict,
    output: Path,
):
    """
    Writes the vectors to `output`; memory holds a part, but all of an npz file.

    Args:
        parts: opens all parts
        failed: clips without vectors
        own: columns of the manifests, see `with_own_columns`
        about: what made the vectors
    """
    sizes = embedder.columns()
    ends = np.cumsum(list(sizes.values()))[:-1]

    def tables() -> Iterator[Columns]:
        for found in embedder.clips(parts()):
            clips = [(segment, arrays) for segment, arrays in found if segment.number not in failed]
            if not clips:
                continue
            rows = [len(arrays["embedding"]) for _, arrays in clips]
            names, numbers = (
                np.asarray([getattr(segment, name) for segment, _ in clips], dtype=object).repeat(rows).tolist()
                for name in ("name", "number")
            )
            arrays = {name: np.concatenate([one[name] for _, one in clips]) for name in clips[0][1]}
            times = [("time_ms", arrays["time_ms"])] if "time_ms" in arrays else []
            vectors = zip(sizes, map(np.ascontiguousarray, np.split(arrays["embedding"], ends, axis=1)))
            yield with_own_columns("file_name", names, numbers, own, [*times, *vectors])

    if output.suffix == ".parquet":
        with open_table(output, about) as write_rows:
            for table in tables():
                write_rows(table)
        return
    with complete_file(output) as unfinished, open(unfinished, "wb") as file:
        pieces = list(tables())
        arrays = {
            name: np.concatenate([_as_array(piece[place][1]) for piece in pieces])
            for place, (name, _) in enumerate(pieces[0])
        }
        own = {f"given_{ABOUT}" if name == ABOUT else name: values for name, values in arrays.items()}
        write_npz(file, own | {ABOUT: np.asarray(json.dumps(about))})


def write_npz(file, arrays: Mapping[str, np.ndarray]):
    """Writes arrays as `np.savez` does, by any name: its own parameters, such as `file`, are names of columns, too."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)


def _as_array(values) -> np.ndarray:
    """Returns a column as an array that can be read without pickle: texts instead of objects."""
    if isinstance(values, np.ndarray):
        return values
    values = arrow_array(values).to_pylist()
    array = np.asarray(values)
    return array if array.dtype.kind in "biufU" else np.asarray(["" if cell is None else str(cell) for cell in values])
