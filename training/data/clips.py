"""Reads local or streamed unlabelled clips in an order that a key determines."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
import fsspec.asyn
import numpy as np
import pyarrow.compute

from ..errors import InputError, one_line
from .audio import as_stored, datasets_without_torchcodec
from .columns import check_audio_kind, choose_audio_column, stored_audio, stored_paths

STREAM_BATCH = 16  # undecoded clips that are read from a stream at once
# Endless sequence of a source: position -> the clip's index in the source (streams: its position), the undecoded clip.
Reader = Callable[[int], tuple[int, dict]]


class LocalClips:
    """
    Holds clips that can be read in any order.

    Args:
        name: name of the source, for messages
        data: a `datasets.Dataset` with a column of audio, in any form that `stored_audio` reads
        audio_column: name of that column
        own: the columns of a manifest as they stand there, a `pyarrow.Table`
    """

    def __init__(self, name: str, data: datasets.Dataset, audio_column: str = "audio", own=None):
        if not len(data):
            raise InputError(f"{name}: holds no clips; add some or leave it out")
        self.name = name
        self.own = own
        # One type, so that several sources can be joined.
        self.data = stored_audio(name, data, audio_column).cast_column("audio", datasets.Audio(decode=False))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        """Returns a clip undecoded: {"path", "bytes"}."""
        return self.data[int(index)]["audio"]

    def names(self) -> list[str]:
        """Returns the name of each clip."""
        return [path or self.name_of(index, {}) for index, path in enumerate(stored_paths(self.data))]

    def are_files(self) -> list[bool]:
        """Returns for each clip whether its audio is a file; else it is stored in the data set."""
        tables = self.data.select_columns(["audio"]).with_format("arrow").iter(batch_size=100)
        parts = (pyarrow.compute.struct_field(table["audio"], "bytes") for table in tables)
        return [is_file for part in parts for is_file in part.is_null().to_pylist()]

    def name_of(self, index: int, audio: dict) -> str:
        return audio.get("path") or f"clip {index} of {self.name}"

    @property
    def root(self) -> str:
        """Returns the folder of a local source, or the folder of its manifest."""
        path = Path(self.name)
        return str(path if path.is_dir() else path.parent)

    def select(self, indices: Sequence[int]) -> "LocalClips":
        return self._with(self.name, self.data.select(indices))

    def _with(self, name: str, data: datasets.Dataset) -> "LocalClips":
        """Returns other clips of the same type, without reading them."""
        clips = copy.copy(self)
        clips.name, clips.data, clips.own = name, data, None
        return clips

    def reader(self, key: tuple[int, ...]) -> Reader:
        """Returns a reader of pass after pass, each a new permutation drawn from `key`; positions in any order."""

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
    Reads clips one after the other, in a new order per pass: shuffled shards, then a shuffle buffer of clips.

    This class shuffles by itself: the order of `datasets` changes between its versions, and its saved states lose the
    clips in the buffer.

    Args:
        name: name of the source, for messages
        audio_column: column of the audio; `None`: guessed
        shuffle_buffer: undecoded clips that every worker keeps in memory
        others: further entries of a clip beside `path` and `bytes`: name -> column, see `with_json`
        locate: see `sources.locator`; `None`: paths stay as they are
    """

    def __init__(
        self,
        name: str,
        data: datasets.IterableDataset,
        audio_column: str | None,
        shuffle_buffer: int = 1000,
        others: dict[str, str] | None = None,
        locate: Callable[[str | None, bytes | None], str | None] | None = None,
    ):
        self.name = name
        self.others = others or {}
        self.shuffle_buffer = shuffle_buffer
        with datasets_without_torchcodec():  # JSON lines: their first row gives the features
            features = data.features or next(iter(data), {})
        self.columns = list(features)
        self.locate = locate
        self.column = choose_audio_column(name, features, audio_column)
        if isinstance(features, datasets.Features):
            check_audio_kind(name, features[self.column])
        read = (name if name in features else "json" for name in self.others.values())
        self.data = data.select_columns(list(dict.fromkeys((self.column, *read))))

    def facts(self) -> dict[str, int]:
        """Returns what the order of the clips depends on, beside the data set and the key."""
        return {"shards": self.data.num_shards, "shuffle_buffer": self.shuffle_buffer}

    def name_of(self, position: int, audio: dict) -> str:
        return audio.get("path") or f"clip {position} of the stream {self.name}"

    def reader(self, key: tuple[int, ...]) -> Reader:
        """Returns a reader like that of `LocalClips`, but sequential: skipping ahead reads and discards clips."""
        sequence = None

        def read(position: int) -> tuple[int, dict]:
            nonlocal sequence
            sequence = sequence or self._passes(key, position)
            return next(clip for clip in sequence if clip[0] == position)

        return read

    def _passes(self, key: tuple[int, ...], start: int) -> Iterator[tuple[int, dict]]:
        """Yields position and undecoded clip from position `start` on, pass after pass."""
        pass_number, first = 0, 0  # first: the position at which the pass begins
        while True:
            position = first
            for audio in self.shuffled(np.random.default_rng((*key, pass_number))):
                if position >= start:
                    yield position, audio
                position += 1
            length = position - first
            if not length:
                raise self._holds_none()
            # All passes have the same length, so those that end before `start` are skipped unread.
            pass_number = max(pass_number + 1, start // length)
            first = pass_number * length

    def in_order(self) -> Iterator[dict]:
        """
        Yields every undecoded clip once, in stored order.

        Raises:
            InputError: there is none.
        """
        holds_some = False
        for clip in self._read(self.data):
            holds_some = True
            yield clip
        if not holds_some:
            raise self._holds_none()

    def first(self, data: datasets.IterableDataset, columns: Sequence[str]) -> dict:
        """Returns the first undecoded clip with further columns of `data`, which holds the same clips."""
        others = {column: column for column in columns}
        return next(StreamedClips(self.name, data, self.column, others=others, locate=self.locate).in_order())

    def _holds_none(self) -> InputError:
        return InputError(f"{self.name}: the stream holds no clips; name another split or leave it out")

    def shuffled(self, rng: np.random.Generator) -> Iterator[dict]:
        """Yields every undecoded clip once, in an order drawn from `rng`."""
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
        fsspec.asyn.reset_lock()  # a forked worker may inherit it locked
        # `iter(shard)` would distribute the shards over the data-loader workers; here every worker counts all clips.
        batches = shard.iter(batch_size=STREAM_BATCH)
        while True:
            try:
                with datasets_without_torchcodec():  # around `yield` it would change the caller's `datasets`
                    batch = next(batches, None)
            except Exception as error:  # `datasets` raises many kinds: network, damaged shard
                reason = one_line(error)
                raise InputError(
                    f"{self.name}: the stream broke off ({reason}); resume the run when it is back, or load the data "
                    "set without streaming"
                ) from error
            if batch is None:
                return
            others = [{}] * len(batch[self.column])
            if self.others:
                values = zip(*(_values(batch, column) for column in self.others.values()))
                others = [dict(zip(self.others, row)) for row in values]
            yield from (self._stored(audio) | other for audio, other in zip(batch[self.column], others))

    def _stored(self, audio) -> dict:
        stored = as_stored(audio)
        return stored if self.locate is None else stored | {"path": self.locate(stored["path"], stored["bytes"])}


def with_json(features: dict) -> dict:
    """Returns the columns of a stream with the entries of a WebDataset's .json members as columns: name -> type."""
    entries = features.get("json") if "__key__" in features else None
    if not isinstance(entries, dict):
        return features
    return entries | {name: kind for name, kind in features.items() if name != "json"}


def _values(batch: dict, column: str) -> list:
    """Returns a column of a batch, see `with_json`."""
    return batch[column] if column in batch else [(entries or {}).get(column) for entries in batch["json"]]


def join(clips: Sequence[LocalClips]) -> LocalClips:
    """Joins several local sources into one."""
    name = " + ".join(source.name for source in clips)
    return clips[0]._with(name, datasets.concatenate_datasets([source.data for source in clips]))
