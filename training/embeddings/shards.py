"""Stores arrays per clip in shards of consecutive clips; several processes can write, and a stopped run continues."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..files import check_same, complete_file, write_json

DESCRIPTION = "shards.json"


class Shards:
    """
    Stores arrays in a folder, as files `shard-000000.safetensors`, ... of `shard_size` clips each.

    Args:
        num_clips: number of all clips; `None` for a stream, whose length is unknown
        shard_size: clips per shard
        description: all that determines the arrays (model, data, settings), as JSON
    """

    def __init__(self, folder: Path, num_clips: int | None, shard_size: int, description: dict):
        self.folder = folder
        self.num_clips = num_clips
        self.shard_size = shard_size
        self.description = {**description, "num_clips": num_clips, "shard_size": shard_size}

    def prepare(self, overwrite: bool = False):
        """
        Makes the folder, or checks that its shards can be continued. Called by the main process, before the others.

        Raises:
            InputError: the folder contains shards with another description.
        """
        path = self.folder / DESCRIPTION
        if overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, self.description)
            return
        wanted = json.loads(json.dumps(self.description))
        remedy = "use another folder, or set overwrite to compute the numbers anew"
        check_same(self.folder, json.loads(path.read_text(encoding="utf-8")), wanted, remedy)

    @property
    def num_shards(self) -> int:
        """Returns the number of shards; for a stream, of the stored ones."""
        if self.num_clips is None:
            return len(list(self.folder.glob("shard-*.safetensors")))
        return -(-self.num_clips // self.shard_size)

    def missing(self, process_index: int = 0, num_processes: int = 1) -> list[range]:
        """Returns the clips of this process's missing shards, shard by shard."""
        numbers = range(process_index, self.num_shards, num_processes)
        return [self.clips(number) for number in numbers if self.is_missing(number)]

    def is_missing(self, number: int) -> bool:
        return not self._path(number).exists()

    def clips(self, number: int) -> range:
        start = number * self.shard_size
        return range(start, min(start + self.shard_size, self.num_clips))

    def save(self, clips: range, arrays: dict[str, np.ndarray], ragged: tuple[str, ...] = ()):
        """
        Writes a shard, whole or not at all.

        Args:
            clips: the numbers of its clips
            arrays: name -> array with a row per clip
            ragged: names of the arrays with a different number of rows
        """
        wrong = {name: array.shape for name, array in arrays.items() if len(array) != len(clips) and name not in ragged}
        if wrong:
            raise ValueError(f"expected arrays of {len(clips)} clips, got {wrong}")
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        with complete_file(self._path(clips.start // self.shard_size)) as unfinished:
            save_file(arrays, unfinished)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the arrays of one shard after the other."""
        for number in range(self.num_shards):
            yield load_file(self._path(number))

    def load(self) -> dict[str, np.ndarray]:
        """Returns the arrays of all clips."""
        shards = list(self)
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06}.safetensors"
