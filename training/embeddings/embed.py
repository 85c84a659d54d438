"""
Embeddings of any number of clips, for embed_hf.py: decoded ahead in threads, encoded shard by shard, by one process or
several, and joined into one Parquet or npz file.
"""

import collections
import csv
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from tqdm.auto import tqdm

from ..base.outputs import fingerprint
from ..data.audio import AUDIO_EXTENSIONS
from ..data.clips import LocalClips, StreamedClips, join
from ..data.unlabelled_sources import open_source, parse_sources
from ..data.unreadable import UnreadableLog, try_to_read
from ..errors import InputError
from .shards import Shards

LEVELS = ("clip", "frames", "layers")
EXTENSIONS = (".parquet", ".npz")
RAGGED = ("names", "embedding", "time_ms")  # what a shard holds one row of per readable clip or time frame, or text
MAX_CHUNK_S = 600.0  # decoded audio that waits in memory for the encoder; a longer clip waits alone


def open_inputs(inputs: list[str], streaming: bool) -> list[LocalClips | StreamedClips]:
    """
    Audio files, and whatever pretraining takes as a source: folders, manifests, Hub data sets, JSON objects.

    Raises:
        InputError: one of them cannot be had, or holds no clips.
    """
    opened = []
    for are_files, group in itertools.groupby(inputs, lambda entry: Path(entry).suffix.lower() in AUDIO_EXTENSIONS):
        if are_files:
            files = list(group)
            opened.append(LocalClips(files[0], datasets.Dataset.from_dict({"audio": files})))
            continue
        for source in parse_sources("inputs", list(group)):
            opened.append(open_source(dataclasses.replace(source, streaming=streaming or source.streaming)))
    return opened


class ClipSequence:
    """
    The clips of several sources, one source after the other, undecoded.

    `num_clips` is `None` where a source is streamed: then every process reads all that is stored, and decodes its own.
    """

    def __init__(self, sources: list[LocalClips | StreamedClips]):
        is_local = all(isinstance(source, LocalClips) for source in sources)
        self.sources = [join(sources)] if is_local and len(sources) > 1 else sources
        self.num_clips = len(self.sources[0]) if is_local else None

    def fingerprint(self) -> str:
        """Other clips have another one, as far as their names tell; of streams, other sources."""
        parts = [source.names() if isinstance(source, LocalClips) else [source.name] for source in self.sources]
        return fingerprint(list(itertools.chain(*parts)))

    def missing(self, shards: Shards, process: tuple[int, int]) -> Iterator[tuple[int, str, dict]]:
        """Number, name and audio of the clips that this process (index, number of processes) still has to encode."""
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
    """`read` of every item, in order; with threads, of a few items before they are asked for."""
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
    model,
    extractor,
    clips: ClipSequence,
    shards: Shards,
    log: UnreadableLog,
    level: str,
    batch_size: int = 8,
    num_threads: int = 0,
    window_s: float | None = None,
    process: tuple[int, int] = (0, 1),
):
    """
    Fills the shards that are missing. What a shard holds does not depend on the other ones, or on who made them.

    Args:
        log: takes the unreadable clips
        process: index and number of processes that share the work
    """
    rate = extractor.sampling_rate

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
                    parts.append(_embed(model, extractor, chunk, level, batch_size, window_s))
                    chunk, waiting_s = [], 0.0
                chunk.append(waveform)
                waiting_s += len(waveform) / rate
            progress.update()
        if chunk:
            parts.append(_embed(model, extractor, chunk, level, batch_size, window_s))
        shards.save(_range(shards, number, len(names)), _shard(names, rows, parts, model, level), RAGGED)
    progress.close()


def _range(shards: Shards, number: int, length: int) -> range:
    start = number * shards.shard_size
    return range(start, start + length)


def _embed(model, extractor, waveforms: list[np.ndarray], level: str, batch_size: int, window_s: float | None) -> dict:
    """`embedding` (rows, size), `rows` (clips,) of each clip, and `time_ms` (rows,) at the level of time frames."""
    options = {"feature_extractor": extractor, "batch_size": batch_size, "window_s": window_s}
    try:
        if level != "frames":
            embedding = model.embed(waveforms, extractor.sampling_rate, **options)
            return {"embedding": embedding.numpy(), "rows": np.ones(len(waveforms), dtype=np.int64)}
        found = model.embed_frames(waveforms, extractor.sampling_rate, **options)
    except ValueError as error:  # a window that the model cannot take
        raise InputError(str(error)) from error
    return {
        "embedding": torch.cat([frames.values for frames in found]).numpy(),
        "time_ms": torch.cat([frames.time_ms for frames in found]).numpy(),
        "rows": np.asarray([len(frames.values) for frames in found]),
    }


def _shard(names: list[str], is_readable: list[bool], parts: list[dict], model, level: str) -> dict[str, np.ndarray]:
    size = model.frame_size if level == "frames" else model.config.fused_size
    empty = {"embedding": np.zeros((0, size), dtype=np.float32), "rows": np.zeros(0, dtype=np.int64)}
    if level == "frames":
        empty["time_ms"] = np.zeros(0)
    arrays = {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in empty}
    rows = np.zeros(len(names), dtype=np.int64)
    rows[np.flatnonzero(is_readable)] = arrays["rows"]
    return arrays | {"rows": rows, "names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8)}


def columns_of(config, level: str, frame_size: int) -> dict[str, int]:
    """The columns of vectors in the output, and the size of each."""
    if level == "frames":
        return {"embedding": frame_size}
    if level == "clip":
        return {"embedding": config.fused_size}
    layers = config.fused_layers
    sizes = config.fused_size_per_layer if hasattr(config, "fused_size_per_layer") else map(config.layer_size, layers)
    return {f"layer_{layer}": size for layer, size in zip(layers, sizes)}


def write(shards: Shards, log: UnreadableLog, output: Path, columns: dict[str, int]) -> tuple[int, dict[str, str]]:
    """
    Joins the shards into `output`, and lists the unreadable clips beside it, in OUTPUT.unreadable.csv.

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
    unfinished = output.with_name(f"{output.name}.unfinished")
    (_write_parquet if output.suffix == ".parquet" else _write_npz)(unfinished, shards, columns)
    listing = unreadable_path(output)
    listing.unlink(missing_ok=True)
    if unreadable:
        with open(listing, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file_name", "reason"), *unreadable.items()])
    os.replace(unfinished, output)
    return num_readable, unreadable


def unreadable_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.unreadable.csv")


def _names(arrays: dict[str, np.ndarray]) -> list[str]:
    return json.loads(arrays["names"].tobytes())


def _tables(shards: Shards, columns: dict[str, int]) -> Iterator[dict[str, np.ndarray]]:
    """Shard by shard the columns of the output, one row per readable clip or time frame."""
    ends = np.cumsum(list(columns.values()))[:-1]
    for arrays in shards:
        table = {"file_name": np.asarray(_names(arrays), dtype=object).repeat(arrays["rows"])}
        if "time_ms" in arrays:
            table["time_ms"] = arrays["time_ms"]
        yield table | dict(zip(columns, np.split(arrays["embedding"], ends, axis=1)))


def _write_parquet(path: Path, shards: Shards, columns: dict[str, int]):
    """A row group per shard, so that memory holds one shard."""
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
    """A short text that other weights would change: a folder may hold another model by the time a run goes on."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
