"""Sequences of unlabelled clips, local or streamed, that are read in a given order."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
import fsspec.asyn
import numpy as np
import pyarrow.compute

from ..errors import InputError, one_line
from .audio import datasets_without_torchcodec
from .columns import choose_audio_column

STREAM_BATCH = 16  # undecoded clips that are read from a stream at once
# A source's own endless sequence: position -> what tells the clip apart in its source, and the undecoded clip.
Reader = Callable[[int], tuple[int, dict]]


class LocalClips:
    """
    Clips that can be read in any order.

    Args:
        name: of the source, for messages
        data: a `datasets.Dataset` with the column `audio`: paths, or {"path", "bytes"}
    """

    def __init__(self, name: str, data: datasets.Dataset):
        if not len(data):
            raise InputError(f"{name}: holds no clips; add some or leave it out")
        self.name = name
        data, kind = data.select_columns(["audio"]), data.features["audio"]
        if kind == datasets.Value("large_string"):  # pandas writes it; `Audio` takes plain texts alone
            data = data.cast_column("audio", datasets.Value("string"))
        try:
            self.data = data.cast_column("audio", datasets.Audio(decode=False))
        except (TypeError, ValueError, pyarrow.ArrowException):
            raise InputError(f"{name}: the audio column holds {kind}, not paths or audio; set audio_column") from None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        """{"path", "bytes"}, undecoded."""
        return self.data[int(index)]["audio"]

    def names(self) -> list[str]:
        """What to call each clip, without a copy of the audio of all of them."""
        tables = self.data.with_format("arrow").iter(batch_size=100)
        paths = (path for table in tables for path in pyarrow.compute.struct_field(table["audio"], "path").to_pylist())
        return [path or self.name_of(index, {}) for index, path in enumerate(paths)]

    def name_of(self, index: int, audio: dict) -> str:
        return audio.get("path") or f"clip {index} of {self.name}"

    @property
    def root(self) -> str:
        """What the paths of a local collection begin with: the folder, or the one that the manifest lies in."""
        path = Path(self.name)
        return str(path if path.is_dir() else path.parent)

    def select(self, indices: Sequence[int]) -> "LocalClips":
        return LocalClips(self.name, self.data.select(indices))

    def reader(self, key: tuple[int, ...]) -> Reader:
        """The clips pass after pass, each pass in a new order by `key`; any position at once."""

        @functools.lru_cache(maxsize=1)
        def order(pass_number: int) -> np.ndarray:
            return np.random.default_rng((*key, pass_number)).permutation(len(self))

        def read(position: int) -> tuple[int, dict]:
            pass_number, offset = divmod(position, len(self))
            index = int(order(pass_number)[offset])
            return index, self[index]

        return read


class StreamedClips:
    """
    Clips that are read one after the other, in a new order per pass: the shards shuffled, then a buffer of clips.

    The order is made here and not by `datasets`, whose own changes between its versions, and whose saved states lose
    the clips in the buffer.

    Args:
        name: of the source, for messages
        data: a `datasets.IterableDataset`
        audio_column: its column of the audio, guessed when `None`
        shuffle_buffer: clips, undecoded, that every worker keeps in memory
        others: what else a clip has beside `path` and `bytes`: name -> column
    """

    def __init__(
        self,
        name: str,
        data: datasets.IterableDataset,
        audio_column: str | None,
        shuffle_buffer: int = 1000,
        others: dict[str, str] | None = None,
    ):
        self.name = name
        self.others = others or {}
        self.shuffle_buffer = shuffle_buffer
        with datasets_without_torchcodec():  # the features of JSON lines are known after the first only
            features = data.features or next(iter(data), {})
        self.column = choose_audio_column(name, features, audio_column)
        self.data = data.select_columns([self.column, *self.others.values()])

    def name_of(self, position: int, audio: dict) -> str:
        return audio.get("path") or f"clip {position} of the stream {self.name}"

    def reader(self, key: tuple[int, ...]) -> Reader:
        """As of `LocalClips`, forward only: what lies before a position is read and left."""
        sequence = None

        def read(position: int) -> tuple[int, dict]:
            nonlocal sequence
            sequence = sequence or self._passes(key, position)
            return next(clip for clip in sequence if clip[0] == position)

        return read

    def _passes(self, key: tuple[int, ...], start: int) -> Iterator[tuple[int, dict]]:
        """The undecoded clips from a position on, pass after pass, with their positions."""
        pass_number, first = 0, 0  # first: the position at which the pass begins
        while True:
            position = first
            for audio in self.shuffled(np.random.default_rng((*key, pass_number))):
                if position >= start:
                    yield position, audio
                position += 1
            length = position - first
            if not length:
                raise InputError(f"{self.name}: the stream holds no clips; name another split or leave it out")
            # All passes have the same length: those that end before the start need not be read.
            pass_number = max(pass_number + 1, start // length)
            first = pass_number * length

    def in_order(self) -> Iterator[dict]:
        """The undecoded clips as they are stored, once."""
        return self._read(self.data)

    def shuffled(self, rng: np.random.Generator) -> Iterator[dict]:
        """One pass over the undecoded clips."""
        shards = rng.permutation(self.data.num_shards)
        clips = (clip for shard in shards for clip in self._read(self.data.shard(len(shards), int(shard))))
        buffer = []
        for clip in clips:
            if len(buffer) < self.shuffle_buffer:
                buffer.append(clip)
                continue
            place = rng.integers(len(buffer))
            yield buffer[place]
            buffer[place] = clip
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def _read(self, shard: datasets.IterableDataset) -> Iterator[dict]:
        fsspec.asyn.reset_lock()  # a forked worker inherits it, maybe held
        # Not `iter(shard)`, which deals the shards out to the data-loader workers: here every worker counts all clips.
        batches = shard.iter(batch_size=STREAM_BATCH)
        while True:
            try:
                with datasets_without_torchcodec():  # not around `yield`, where it would change the caller's `datasets`
                    batch = next(batches, None)
            except Exception as error:  # the network, a damaged shard: whatever `datasets` raises
                reason = one_line(error) or type(error).__name__
                raise InputError(
                    f"{self.name}: the stream broke off ({reason}); resume the run when it is back, or load the data "
                    "set without streaming"
                ) from error
            if batch is None:
                return
            others = [{}] * len(batch[self.column])
            if self.others:
                values = zip(*(batch[column] for column in self.others.values()))
                others = [dict(zip(self.others, row)) for row in values]
            yield from (_as_stored(audio) | other for audio, other in zip(batch[self.column], others))


def join(clips: Sequence[LocalClips]) -> LocalClips:
    """Several local sources as one."""
    return LocalClips(
        " + ".join(source.name for source in clips), datasets.concatenate_datasets([c.data for c in clips])
    )


def _as_stored(audio) -> dict:
    """What a stream holds as {"path", "bytes"}; what is neither path nor audio becomes an unreadable clip."""
    if isinstance(audio, dict):
        return {"path": audio.get("path"), "bytes": audio.get("bytes")}
    return {"path": audio if isinstance(audio, str) else None, "bytes": audio if isinstance(audio, bytes) else None}
