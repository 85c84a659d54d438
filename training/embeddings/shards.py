"""
What is computed once per clip and kept: arrays in shards of consecutive clips, which any number of processes write and
a stopped run continues.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..errors import InputError

DESCRIPTION = "shards.json"


class Shards:
    """
    A folder of `shard-000000.safetensors`, ... with the arrays of `shard_size` clips each.

    Args:
        folder: made if it is not there
        num_clips: in all; `None` where only the end of a stream will tell
        shard_size: clips per shard
        description: what the numbers depend on (model, data, settings); shards of another description are not continued

    Raises:
        InputError: the folder holds shards of another computation.
    """

    def __init__(self, folder: Path, num_clips: int | None, shard_size: int, description: dict):
        self.folder = folder
        self.num_clips = num_clips
        self.shard_size = shard_size
        self.description = {**description, "num_clips": num_clips, "shard_size": shard_size}

    def prepare(self, overwrite: bool = False):
        """Makes the folder, or checks that what it holds can be continued. For the main process, before the others."""
        path = self.folder / DESCRIPTION
        if overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        wanted = json.loads(json.dumps(self.description))
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            different = [key for key in wanted if stored.get(key) != wanted[key]]
            if different:
                key = different[0]
                raise InputError(
                    f"{self.folder}: holds numbers for {key} = {stored.get(key)!r}, but {wanted[key]!r} is asked for; "
                    "use another folder, or set overwrite to compute them anew"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, lambda target: target.write_text(json.dumps(wanted, indent=2), encoding="utf-8"))

    @property
    def num_shards(self) -> int:
        """Of an unknown number of clips, those that are there."""
        if self.num_clips is None:
            return len(list(self.folder.glob("shard-*.safetensors")))
        return -(-self.num_clips // self.shard_size)

    def missing(self, process_index: int = 0, num_processes: int = 1) -> list[range]:
        """The clips of the shards that this process still has to compute."""
        numbers = range(process_index, self.num_shards, num_processes)
        return [self.clips(number) for number in numbers if self.is_missing(number)]

    def is_missing(self, number: int) -> bool:
        return not self._path(number).exists()

    def clips(self, number: int) -> range:
        start = number * self.shard_size
        return range(start, min(start + self.shard_size, self.num_clips))

    def save(self, clips: range, arrays: dict[str, np.ndarray], ragged: tuple[str, ...] = ()):
        """
        Writes a shard under another name first: a shard that is there is whole.

        Args:
            ragged: the arrays that have another number of rows than one per clip
        """
        wrong = {name: array.shape for name, array in arrays.items() if len(array) != len(clips) and name not in ragged}
        if wrong:
            raise ValueError(f"expected arrays of {len(clips)} clips, got {wrong}")
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        _write(self._path(clips.start // self.shard_size), lambda target: save_file(arrays, target))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of one shard after the other."""
        for number in range(self.num_shards):
            yield load_file(self._path(number))

    def load(self) -> dict[str, np.ndarray]:
        """The arrays of all clips."""
        shards = list(self)
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06}.safetensors"


def _write(path: Path, write):
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write(unfinished)
    os.replace(unfinished, path)
