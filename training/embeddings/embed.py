"""
Embeds any number of clips, for embed_hf.py: threads decode ahead, one process or several encode shard by shard, and the
shards are joined into one Parquet or npz file.
"""

import collections
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop

from ..base.finite import OVERFLOW
from ..base.inference import check_checkpoint, check_folder, explained, load_encoder
from ..data.clips import LocalClips, StreamedClips, join
from ..data.listing import AUDIO_EXTENSIONS
from ..data.tables import TABLE_READERS
from ..data.unlabelled_sources import open_source, parse_sources
from ..data.unreadable import UnreadableLog, try_to_read
from ..errors import InputError
from ..files import complete_file, fingerprint, storable
from .shards import Shards

LEVELS = ("clip", "frames", "layers")
EXTENSIONS = (".parquet", ".npz")
RAGGED = ("names", "embedding", "time_ms")  # text, and arrays with a row per readable clip or time frame
MAX_CHUNK_S = 600.0  # decoded audio in memory at a time; a longer clip is decoded alone


@dataclass
class Embedder:
    """
    Embeds with an encoder and the settings of a run.

    Args:
        overrides: fields of the checkpoint's configuration that the options changed
        level: one of `LEVELS`
        batch_size: clips or windows per forward pass
        window_s: seconds per window of long clips; `None`: the model's own
    """

    model: torch.nn.Module
    extractor: object
    overrides: dict
    level: str
    batch_size: int
    window_s: float | None

    def embed(self, waveforms: list[np.ndarray]) -> dict[str, np.ndarray]:
        """
        Embeds clips (samples,) at the extractor's rate.

        Returns:
            `embedding` (rows, size); `rows` (clips,), number of rows of each clip; for time frames also `time_ms`
            (rows,)

        Raises:
            InputError: a window that the model does not accept.
        """
        options = {"feature_extractor": self.extractor, "batch_size": self.batch_size, "window_s": self.window_s}
        try:
            if self.level != "frames":
                embedding = self.model.embed(waveforms, self.extractor.sampling_rate, **options)
                return {"embedding": embedding.numpy(), "rows": np.ones(len(waveforms), dtype=np.int64)}
            found = self.model.embed_frames(waveforms, self.extractor.sampling_rate, **options)
        except ValueError as error:
            raise InputError(str(error)) from error
        return {
            "embedding": torch.cat([frames.values for frames in found]).numpy(),
            "time_ms": torch.cat([frames.time_ms for frames in found]).numpy(),
            "rows": np.asarray([len(frames.values) for frames in found]),
        }

    def shard(self, names: list[str], is_readable: list[bool], parts: list[dict]) -> dict[str, np.ndarray]:
        """Joins results of `embed` into a shard: its arrays, with 0 `rows` for unreadable clips, and the `names`."""
        size = sum(self.columns().values())
        empty = {"embedding": np.zeros((0, size), dtype=np.float32), "rows": np.zeros(0, dtype=np.int64)}
        if self.level == "frames":
            empty["time_ms"] = np.zeros(0)
        arrays = {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in empty}
        rows = np.zeros(len(names), dtype=np.int64)
        rows[np.flatnonzero(is_readable)] = arrays["rows"]
        return arrays | {"rows": rows, "names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8)}

    def columns(self) -> dict[str, int]:
        """Returns the columns of vectors in the output, and the size of each."""
        config = self.model.config
        if self.level != "layers":
            return {"embedding": self.model.frame_size if self.level == "frames" else config.fused_size}
        layers, sizes = config.fused_layers, getattr(config, "fused_size_per_layer", None)
        sizes = map(config.layer_size, layers) if sizes is None else sizes
        return {f"layer_{layer}": size for layer, size in zip(layers, sizes)}


def load(name: str, level: str, batch_size: int, window_s: float | None, **settings) -> Embedder:
    """
    Loads an encoder with the options of embed_hf.py.

    Args:
        name: folder or Hub name
        settings: `readout`, `fusion_layers`, `pooling` and `pooling_combination`; `None`: the model's own

    Raises:
        InputError: the model cannot be loaded, lacks weights, or does not have such a setting.
    """
    check_checkpoint(name)
    with explained(name, "cannot embed", "correct the options or name another model"):
        check_folder(name)
        overrides = find_overrides(name, AutoConfig.from_pretrained(name), level, settings)
        model = load_encoder(name, **overrides)
        extractor = model.own_feature_extractor()
        window_and_hop(model, extractor, window_s)  # raises ValueError before the first clip is read
    return Embedder(model, extractor, overrides, level, batch_size, window_s)


def find_overrides(name: str, config, level: str, settings: dict) -> dict:
    """
    Returns the fields of the configuration to change: the settings, and for the level `layers` all layers side by side.

    Raises:
        InputError: this kind of model does not have such a field, or lacks norms for some layers.
    """
    found = {field: value for field, value in settings.items() if value is not None}
    if level == "layers":
        if getattr(config, "fusion_norm", None) == "separate":
            raise InputError(f"{name}: has a norm for each fused layer and none for the others; use --level clip")
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


def open_inputs(inputs: list[str], streaming: bool) -> list[LocalClips | StreamedClips]:
    """
    Opens audio files, and any source of a pretraining: folders, manifests, Hub data sets, JSON objects.

    Raises:
        InputError: one of them cannot be opened, or contains no clips.
    """
    opened = []
    for are_files, group in itertools.groupby(inputs, _is_audio_file):
        if are_files:
            files = list(group)
            opened.append(LocalClips(files[0], datasets.Dataset.from_dict({"audio": list(map(_as_stored, files))})))
            continue
        for source in parse_sources("inputs", list(group)):
            opened.append(open_source(dataclasses.replace(source, streaming=streaming or source.streaming)))
    return opened


def _is_audio_file(entry: str) -> bool:
    """Returns whether an input is a recording: a file, but no table, or a missing file with a recording's name."""
    extension = os.path.splitext(entry)[1].lower()
    if extension in AUDIO_EXTENSIONS:
        return not os.path.isdir(entry)
    return extension not in TABLE_READERS and os.path.isfile(entry)


def _as_stored(file: str) -> dict:
    """Returns the clip of a file; its content too where its name is not UTF-8, which Arrow cannot store."""
    content = None
    if storable(file) != file:
        with contextlib.suppress(OSError):  # a file that cannot be read is reported as every other
            content = Path(file).read_bytes()
    return {"path": storable(file), "bytes": content}


class ClipSequence:
    """
    Iterates over the undecoded clips of several sources, one source after the other.

    `num_clips` is `None` if a source is streamed: every process then reads all stored clips, and decodes its share.
    """

    def __init__(self, sources: list[LocalClips | StreamedClips]):
        is_local = all(isinstance(source, LocalClips) for source in sources)
        self.sources = [join(sources)] if is_local and len(sources) > 1 else sources
        self.num_clips = len(self.sources[0]) if is_local else None

    def fingerprint(self) -> str:
        """Returns a short text that changes with the names of the clips; for streams, with the sources."""
        parts = [source.names() if isinstance(source, LocalClips) else [source.name] for source in self.sources]
        return fingerprint(list(itertools.chain(*parts)))

    def missing(self, shards: Shards, process: tuple[int, int]) -> Iterator[tuple[int, str, dict]]:
        """
        Yields number, name and audio of the clips that are not encoded yet.

        Args:
            process: index and number of processes that share the work
        """
        if self.num_clips is not None:
            (source,) = self.sources
            for number in itertools.chain(*shards.missing(*process)):
                audio = source[number]
                yield number, source.name_of(number, audio), audio
            return
        clips = itertools.chain(*map(_named, self.sources))
        for number, (name, audio) in enumerate(clips):
            shard = number // shards.shard_size
            if shard % process[1] == process[0] and shards.is_missing(shard):
                yield number, name, audio


def _named(source: LocalClips | StreamedClips) -> Iterator[tuple[str, dict]]:
    clips = source.in_order() if isinstance(source, StreamedClips) else (source[index] for index in range(len(source)))
    return ((source.name_of(index, audio), audio) for index, audio in enumerate(clips))


def read_ahead(items: Iterator, read: Callable, num_threads: int) -> Iterator:
    """Yields `read(item)` of every item, in order; threads read a few items ahead."""
    if not num_threads:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode(
    embedder: Embedder,
    clips: ClipSequence,
    shards: Shards,
    log: UnreadableLog,
    num_threads: int = 0,
    process: tuple[int, int] = (0, 1),
):
    """
    Fills the missing shards. A shard depends neither on the others nor on the process that makes it.

    Args:
        log: lists the unreadable clips
        num_threads: threads that decode ahead
        process: index and number of processes that share the work
    """
    rate = embedder.extractor.sampling_rate

    def read(clip):
        number, name, audio = clip
        return number, name, try_to_read(audio, name, rate, log)[0]

    total = None if clips.num_clips is None else sum(map(len, shards.missing(*process)))
    progress = tqdm(total=total, desc="embedding", unit="clip", disable=None if process[0] == 0 else True)
    waveforms = read_ahead(clips.missing(shards, process), read, num_threads)
    for number, group in itertools.groupby(waveforms, lambda clip: clip[0] // shards.shard_size):
        names, rows, parts, chunk, waiting_s = [], [], [], [], 0.0
        for _, name, waveform in group:
            names.append(name)
            rows.append(waveform is not None)
            if waveform is not None:
                if chunk and waiting_s + len(waveform) / rate > MAX_CHUNK_S:
                    parts.append(embedder.embed(chunk))
                    chunk, waiting_s = [], 0.0
                chunk.append(waveform)
                waiting_s += len(waveform) / rate
            progress.update()
        if chunk:
            parts.append(embedder.embed(chunk))
        parts, rows = without_overflow(parts, names, rows, log)
        start = number * shards.shard_size
        shards.save(range(start, start + len(names)), embedder.shard(names, rows, parts), RAGGED)
    progress.close()


def without_overflow(
    parts: list[dict], names: list[str], is_readable: list[bool], log: UnreadableLog
) -> tuple[list[dict], list[bool]]:
    """
    Leaves out clips with an embedding that is not finite, and logs them as unreadable.

    Args:
        parts: results of `Embedder.embed`, together of all readable clips
        names, is_readable: of all clips of the shard
    """
    waiting, is_readable = iter(np.flatnonzero(is_readable)), list(is_readable)
    kept = []
    for part in parts:
        values = np.split(part["embedding"], np.cumsum(part["rows"])[:-1])
        keeps = np.asarray([bool(np.isfinite(rows).all()) for rows in values])
        for keep, index in zip(keeps, waiting):
            if not keep:
                is_readable[index] = False
                log.add(names[index], OVERFLOW)
        kept.append(
            {name: value[keeps if name == "rows" else keeps.repeat(part["rows"])] for name, value in part.items()}
        )
    return kept, is_readable


def write(shards: Shards, log: UnreadableLog, output: Path, columns: dict[str, int]) -> tuple[int, dict[str, str]]:
    """
    Joins the shards into `output`, and lists the unreadable clips beside it, in OUTPUT.unreadable.csv.

    Args:
        columns: the columns of vectors, and the size of each

    Returns:
        the number of readable clips; unreadable clip -> reason

    Raises:
        InputError: no clip is readable.
    """
    num_readable, unreadable, reasons = 0, {}, log.entries()
    for arrays in shards:
        num_readable += int((arrays["rows"] > 0).sum())
        unreadable |= {name: reasons.get(name, "") for name, rows in zip(_names(arrays), arrays["rows"]) if not rows}
    if not num_readable:
        first = next((f"; {name}: {reason}" for name, reason in unreadable.items()), "")
        raise InputError(f"none of {len(unreadable)} clips is readable{first}; name other inputs")
    listing = unreadable_path(output)
    with complete_file(output) as unfinished:
        (_write_parquet if output.suffix == ".parquet" else _write_npz)(unfinished, shards, columns)
        listing.unlink(missing_ok=True)
        if unreadable:
            with complete_file(listing) as table, table.open("w", newline="", encoding="utf-8") as file:
                rows = [("file_name", "reason"), *unreadable.items()]
                csv.writer(file).writerows([storable(name), reason] for name, reason in rows)
    return num_readable, unreadable


def unreadable_path(output: Path) -> Path:
    """Returns the path of the list of unreadable clips."""
    return output.with_name(f"{output.name}.unreadable.csv")


def _names(arrays: dict[str, np.ndarray]) -> list[str]:
    return json.loads(arrays["names"].tobytes())


def _tables(shards: Shards, columns: dict[str, int]) -> Iterator[dict[str, np.ndarray]]:
    """Yields the columns of the output shard by shard, one row per readable clip or time frame."""
    ends = np.cumsum(list(columns.values()))[:-1]
    for arrays in shards:
        names = [storable(name) for name in _names(arrays)]
        table = {"file_name": np.asarray(names, dtype=object).repeat(arrays["rows"])}
        if "time_ms" in arrays:
            table["time_ms"] = arrays["time_ms"]
        yield table | dict(zip(columns, np.split(arrays["embedding"], ends, axis=1)))


def _write_parquet(path: Path, shards: Shards, columns: dict[str, int]):
    """Writes a row group per shard, so that memory holds one shard."""
    writer = None
    for table in _tables(shards, columns):
        if not len(table["file_name"]):
            continue
        for name, size in columns.items():
            values = pyarrow.array(np.ascontiguousarray(table[name]).reshape(-1))
            table[name] = pyarrow.FixedSizeListArray.from_arrays(values, size)
        table["file_name"] = pyarrow.array(table["file_name"], pyarrow.string())
        table = pyarrow.table(table)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def _write_npz(path: Path, shards: Shards, columns: dict[str, int]):
    tables = list(_tables(shards, columns))
    arrays = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    arrays["file_name"] = arrays["file_name"].astype(str)  # objects would need pickle to be read
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Returns a short text that changes with the weights: a run must not continue after the model was replaced."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
