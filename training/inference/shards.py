"""
Stores what a run has computed, so that it survives a kill at any moment: shards of consecutive clips, in parts that are
written whole or not at all.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save

from ..errors import InputError
from ..files import UNFINISHED, check_same, complete_file, read_json, write_json

DESCRIPTION = "shards.json"
FORMAT = 2  # of the files: a run that another version began does not go on
# Arrays that begin with TOKENS have several rows per row of the others: as many as the array NUM_TOKENS says.
TOKENS, NUM_TOKENS = "tokens.", "num_tokens"
NAME = re.compile(r"shard-(\d+)(?:-(\d+)-of-(\d+))?\.safetensors")


@dataclass
class Segment:
    """
    Says what a part holds of one clip: a range of its windows, mostly all of them.

    Args:
        number: the clip's number among the inputs
        name: of the clip
        rows: rows in each array of the part; 0 for a clip that gave nothing
        windows: windows that the rows come from
        is_last: no later part holds windows of the clip
        error: why the clip gave nothing; empty: it gave rows
    """

    number: int
    name: str
    rows: int = 0
    windows: int = 0
    is_last: bool = True
    error: str = ""


@dataclass
class Part:
    """Holds the arrays (rows of all segments, ...) of a part of a shard."""

    segments: list[Segment]
    arrays: dict[str, np.ndarray]

    def split(self) -> Iterator[tuple[Segment, dict[str, np.ndarray]]]:
        """Yields each segment with its rows."""
        row = token = 0
        for segment in self.segments:
            rows = slice(row, row + segment.rows)
            tokens = slice(token, token + self._num_tokens(rows))
            yield (
                segment,
                {name: array[tokens if name.startswith(TOKENS) else rows] for name, array in self.arrays.items()},
            )
            row, token = rows.stop, tokens.stop

    def wrong_shapes(self) -> dict[str, tuple]:
        """Returns name -> shape of the arrays that have another number of rows than the segments together."""
        rows = sum(segment.rows for segment in self.segments)
        tokens = self._num_tokens(slice(None))
        return {
            name: array.shape
            for name, array in self.arrays.items()
            if len(array) != (tokens if name.startswith(TOKENS) else rows)
        }

    def _num_tokens(self, rows: slice) -> int:
        counts = self.arrays.get(NUM_TOKENS)
        return 0 if counts is None else int(counts[rows].sum())


class Shards:
    """
    Stores parts in a folder, as `shard-000000.safetensors`, or `shard-000000-0000-of-0012.safetensors`, ... of a shard
    with several parts.

    Args:
        folder: `None`: nothing is stored
        num_clips: number of all clips; `None` for a stream, whose length is unknown
        shard_size: clips per shard
        description: all that determines the arrays (model, data, settings), as JSON
        remarks: what else `about` says of them, such as the device
    """

    def __init__(
        self,
        folder: Path | None,
        num_clips: int | None,
        shard_size: int,
        description: dict,
        remarks: dict | None = None,
    ):
        self.folder = folder
        self.num_clips = num_clips
        self.shard_size = shard_size
        self.description = {**description, "num_clips": num_clips, "shard_size": shard_size, "format": FORMAT}
        self.about = {**self.description, **(remarks or {})}
        self._found: dict[int, dict[int, int]] = {}  # shard -> the numbers of its parts -> of how many

    def prepare(self, overwrite: bool = False):
        """
        Makes the folder, or checks that its shards can be continued. Called by the main process, before the others.

        Raises:
            InputError: the folder contains shards with another description.
        """
        if self.folder is None:
            return
        path = self.folder / DESCRIPTION
        if overwrite:
            self.remove()
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, self.description)
            return
        wanted = json.loads(json.dumps(self.description))
        remedy = "use another folder, or set overwrite to compute the numbers anew"
        check_same(self.folder, read_json(path, remedy), wanted, remedy)

    def look(self):
        """Finds the parts that are stored."""
        self._found = {}
        for path in self.folder.iterdir() if self.folder is not None else ():
            if found := NAME.fullmatch(path.name):
                shard, part, count = (int(text) if text else None for text in found.groups())
                self._found.setdefault(shard, {})[part or 0] = count or 1

    @property
    def num_shards(self) -> int:
        """Returns the number of shards; for a stream, of the stored ones."""
        return len(self._found) if self.num_clips is None else -(-self.num_clips // self.shard_size)

    @property
    def num_stored(self) -> tuple[int, int]:
        """Returns the number of complete shards at the last `look`, and the number of parts of the others."""
        counts = [(bool(self.num_parts(shard)), len(parts)) for shard, parts in self._found.items()]
        return sum(done for done, _ in counts), sum(parts for done, parts in counts if not done)

    def num_parts(self, shard: int) -> int:
        """Returns the number of parts of a shard that was complete at the last `look`; 0 for another."""
        parts = self._found.get(shard, {})
        return len(parts) if parts and set(parts.values()) == {len(parts)} else 0

    def has(self, shard: int, part: int, count: int) -> bool:
        return self._found.get(shard, {}).get(part) == count

    def missing(self) -> list[int]:
        """Returns the shards that are not complete."""
        return [number for number in range(self.num_shards) if not self.num_parts(number)]

    def clips(self, shard: int) -> range:
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_clips))

    def save(self, shard: int, number: int, count: int, part: Part):
        """Writes part `number` of `count` of a shard, whole or not at all."""
        if self.folder is None:
            return
        if wrong := part.wrong_shapes():
            raise ValueError(f"expected arrays of {sum(s.rows for s in part.segments)} rows, got {wrong}")
        arrays = {name: np.ascontiguousarray(array) for name, array in part.arrays.items()}
        segments = json.dumps([vars(segment) for segment in part.segments])
        try:
            with complete_file(self._path(shard, number, count)) as unfinished:
                unfinished.write_bytes(save(arrays, metadata={"segments": segments}))  # OSError on a full disk
        except OSError:
            if self.folder.exists():
                raise
            raise InputError(
                f"{self.folder}: was removed by another process, which has finished the same output; nothing is left"
            ) from None

    def load(self, shard: int, number: int, count: int) -> Part:
        path = self._path(shard, number, count)
        return Part(_segments(path), load_file(path))

    def parts(self, names: Container[str] | None = None) -> Iterator[Part]:
        """Yields all parts in order, with the arrays of these names; `None`: with all."""
        for path in self._paths():
            if names is None:
                yield Part(_segments(path), load_file(path))
                continue
            with safe_open(path, framework="np") as file:
                found = [name for name in file.keys() if name in names]  # noqa: SIM118  no dict
                yield Part(_segments(path), {name: file.get_tensor(name) for name in found})

    def segments(self) -> Iterator[Segment]:
        """Yields all segments in order, without their arrays."""
        for path in self._paths():
            yield from _segments(path)

    def summary(self) -> tuple[int, dict[int, tuple[str, str]]]:
        """Returns the number of clips; and number -> name and error of those that gave nothing."""
        num_clips, errors = 0, {}
        for segment in self.segments():
            num_clips += segment.is_last
            if segment.error:
                errors.setdefault(segment.number, (segment.name, segment.error))
        return num_clips, errors

    def means(self) -> dict[str, np.ndarray]:
        """Returns the arrays of all clips, each (clips, ...): the means over their windows."""
        found = {}
        for part in self.parts():
            for segment, arrays in part.split():
                if segment.rows:
                    found.setdefault(segment.number, []).append((segment.windows, arrays))
        names = next(iter(found.values()))[0][1]
        return {name: np.stack([mean([(w, a[name][0]) for w, a in found[n]]) for n in sorted(found)]) for name in names}

    @property
    def marker(self) -> Path:
        """File that says that this run has begun to write its tables."""
        return self.folder / "kept"

    def remove(self):
        """Removes the folder, which leaves its place at once: half of it would be taken for another run."""
        if self.folder is None or not self.folder.exists():
            return
        removed = self.folder.with_name(f".{self.folder.name}.{os.getpid()}{UNFINISHED}")
        os.replace(self.folder, removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _paths(self) -> Iterator[Path]:
        self.look()
        for shard in range(self.num_shards):
            count = self.num_parts(shard)
            if not count:
                raise InputError(
                    f"{self.folder}: its shard {shard} is not complete; give the same command again to go on"
                )
            for number in range(count):
                yield self._path(shard, number, count)

    def _path(self, shard: int, number: int, count: int) -> Path:
        part = f"-{number:04}-of-{count:04}" if count > 1 else ""
        return self.folder / f"shard-{shard:06}{part}.safetensors"


def mean(parts: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Returns the mean of (windows, their mean); exactly the mean of a single part."""
    if len(parts) == 1:
        return parts[0][1]
    total = sum(count * values.astype(np.float64) for count, values in parts)
    return (total / sum(count for count, _ in parts)).astype(parts[0][1].dtype)


def _segments(path: Path) -> list[Segment]:
    with safe_open(path, framework="np") as file:
        return [Segment(**segment) for segment in json.loads(file.metadata()["segments"])]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Returns a short text that changes with the weights: a run must not continue after the model was replaced."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
