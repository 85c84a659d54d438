"""
The sources of self-supervised pretraining: unlabelled folders, manifests and Hub data sets, local or streamed.

Each gives its clips undecoded, in an order that depends on a key alone; `clip_stream` mixes and decodes them.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec.asyn
import numpy as np
import pyarrow.compute
import torch
from tqdm.auto import tqdm

from ..errors import InputError, one_line
from .audio import audio_name, check_audio, datasets_without_torchcodec, find_audio_files
from .sources import TABLE_READERS, choose_audio_column, load_stored, load_unlabelled_table

UNREADABLE_CLIPS = "unreadable_clips.jsonl"  # in the folder of a run
STREAM_BATCH = 16  # undecoded clips that are read from a stream at once

# A source's own endless sequence: position -> what tells the clip apart in its source, and the undecoded clip.
Reader = Callable[[int], tuple[int, dict]]


@dataclass(frozen=True)
class UnlabelledSource:
    """One entry of the recipe's list of sources. Weights count as numbers of clips; `None` for as many as there are."""

    path: str
    weight: float | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    audio_column: str | None = None
    streaming: bool = False


class UnreadableLog:
    """
    The clips that could not be read: one JSON line {"clip", "reason"} each, which any number of workers, processes and
    resumed runs append to; and counters, which the workers of this process share.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._counts = torch.zeros(2, dtype=torch.long).share_memory_()  # unreadable, heard
        self._logged = set(self.entries())

    def add(self, clip: str, reason: str):
        if clip in self._logged:
            return
        self._logged.add(clip)
        line = json.dumps({"clip": clip, "reason": reason}) + "\n"
        # One write in append mode: lines of several writers follow each other, none is torn.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def entries(self) -> dict[str, str]:
        """clip -> reason, each clip once, sorted."""
        entries = {}
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the disk was full, or the machine went down
                continue
            entries[entry["clip"]] = entry["reason"]
        return dict(sorted(entries.items()))

    def count(self, readable: bool):
        self._counts[int(readable)] += 1

    def counts(self) -> tuple[int, int]:
        """Unreadable and heard clips that the workers of this process met since it began."""
        return int(self._counts[0]), int(self._counts[1])

    def check_share(self, num_unreadable: int, num_met: int, max_share: float, are_all: bool):
        """
        Raises `InputError` where more than `max_share` of the clips met are unreadable, or all of them. Unless these
        are all clips that there are (`are_all`), the share may be higher by chance: by three standard deviations.
        """
        chance = 0 if are_all else 3 * math.sqrt(max_share * (1 - max_share) / num_met)
        if num_unreadable and (num_unreadable / num_met > max_share + chance or num_unreadable == num_met):
            first = "; ".join(f"{clip} ({reason})" for clip, reason in itertools.islice(self.entries().items(), 3))
            raise InputError(
                f"{num_unreadable} of {num_met} clips are unreadable (max_unreadable_share is {max_share:g}): {first}; "
                f"{self.path} lists them all: repair or remove them, or raise max_unreadable_share"
            )


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


def parse_sources(name: str, entries: list[str]) -> list[UnlabelledSource]:
    """
    Each entry a path or Hub name, or the JSON text of an object with the fields of `UnlabelledSource`.

    Args:
        name: of the recipe's key

    Raises:
        InputError: no entries, no JSON, an unknown field, or a value that it cannot have.
    """
    if not entries:
        raise InputError(f"{name}: is empty; list folders, manifests or data sets")
    return [_parse_source(name, entry) for entry in entries]


def _parse_source(name: str, entry: str) -> UnlabelledSource:
    if not entry.lstrip().startswith("{"):
        values = {"path": entry}
    else:
        try:
            values = json.loads(entry)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}: {entry} is not readable as JSON ({error}); correct it") from None
    fields = {field.name: field for field in dataclasses.fields(UnlabelledSource)}
    for key, value in values.items():
        if key not in fields:
            nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(fields)}"
            raise InputError(f"{name}: unknown key {key} in {entry}; {hint}")
        is_right, kind = VALUE_CHECKS.get(key, (_is_text, "a text"))
        if not is_right(value) and (value is not None or fields[key].default is not None):
            raise InputError(f"{name}: {key} {value!r} in {entry}; it must be {kind}")
    if "path" not in values:
        raise InputError(
            f"{name}: {entry} has no path; add the path of a folder or manifest, or the name of a data set"
        )
    return UnlabelledSource(**values)


def open_source(source: UnlabelledSource, shuffle_buffer: int = 1000) -> LocalClips | StreamedClips:
    """
    A folder (all audio files below it, whatever its class folders and metadata say), a manifest, or what `datasets`
    loads: a data set of the Hub, or a local folder of Parquet or WebDataset files. Streamed, all but manifests.

    Args:
        shuffle_buffer: clips in the buffer of a streamed source

    Raises:
        InputError: it cannot be had, holds no clips, its audio column cannot be told, or a setting has no effect on it.
    """
    path = Path(source.path)
    if path.is_file() or path.suffix.lower() in TABLE_READERS:
        _refuse(source, "a manifest", ("config", "revision", "split", "streaming"))
        return LocalClips(source.path, load_unlabelled_table(path, source.audio_column))
    if not source.streaming and path.is_dir():
        files = find_audio_files(path)
        if files:
            _refuse(source, "a folder of audio files", ("config", "revision", "split", "audio_column"))
            data = datasets.Dataset.from_dict({"audio": [str(file) for file in files]})
            return LocalClips(source.path, data)
    data = load_stored(source.path, source.config, source.revision, split=source.split, streaming=source.streaming)
    if source.streaming:
        return StreamedClips(source.path, data, source.audio_column, shuffle_buffer)
    column = choose_audio_column(source.path, data.features, source.audio_column)
    data = data.select_columns([column])
    return LocalClips(source.path, data if column == "audio" else data.rename_column(column, "audio"))


def _is_weight(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


VALUE_CHECKS = {
    "weight": (_is_weight, "a finite number above 0"),
    "streaming": (lambda value: isinstance(value, bool), "true or false"),
}


def _refuse(source: UnlabelledSource, kind: str, names: tuple[str, ...]):
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if field.name in names and value != field.default:
            raise InputError(f"{source.path}: {field.name} = {value!r} has no effect on {kind}; remove it")


def join(clips: Sequence[LocalClips]) -> LocalClips:
    """Several local sources as one."""
    return LocalClips(
        " + ".join(source.name for source in clips), datasets.concatenate_datasets([c.data for c in clips])
    )


def drop_unreadable(clips: LocalClips, log: UnreadableLog, max_share: float) -> LocalClips:
    """
    The clips whose headers can be read; the others are logged.

    Raises:
        InputError: more than `max_share` of the clips, or all, are unreadable.
    """
    kept = []
    for index in tqdm(range(len(clips)), desc=f"checking {clips.name}", leave=False, disable=len(clips) < 1000):
        audio = clips[index]
        try:
            check_audio(audio)
            kept.append(index)
        except InputError as error:
            log.add(clips.name_of(index, audio), reason_of(error, audio))
    log.check_share(len(clips) - len(kept), len(clips), max_share, are_all=True)
    return clips if len(kept) == len(clips) else clips.select(kept)


def hold_out(
    clips: Sequence[LocalClips | StreamedClips], count: int, seed: int
) -> tuple[list[LocalClips | StreamedClips], LocalClips]:
    """
    Sets `count` clips of the local sources aside for validation, chosen by a hash of their names: a clip that is added
    or dropped does not move the others from one side to the other.

    Returns:
        the sources without them, and those clips

    Raises:
        InputError: the local sources have too few clips.
    """
    local = [source for source in clips if isinstance(source, LocalClips)]
    total = sum(len(source) for source in local)
    # Within its source: a collection that moves keeps its validation clips.
    names = [name.removeprefix(source.root) for source in local for name in source.names()]
    hashes = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    chosen = np.zeros(total, dtype=bool)
    chosen[sorted(range(total), key=hashes.__getitem__)[:count]] = True
    sides = np.split(chosen, np.cumsum([len(source) for source in local])[:-1]) if local else []
    if not 1 <= count < total or any(side.all() for side in sides):
        raise InputError(
            f"{count} clips for validation: the local sources have {total}, and each must keep one for training; hold "
            "out fewer, add clips, or name a validation source"
        )
    held_out = [source.select(np.flatnonzero(side)) for source, side in zip(local, sides) if side.any()]
    kept = iter([source.select(np.flatnonzero(~side)) for source, side in zip(local, sides)])
    training = [next(kept) if isinstance(source, LocalClips) else source for source in clips]
    return training, join(held_out)


def _as_stored(audio) -> dict:
    """What a stream holds as {"path", "bytes"}; what is neither path nor audio becomes an unreadable clip."""
    if isinstance(audio, dict):
        return {"path": audio.get("path"), "bytes": audio.get("bytes")}
    return {"path": audio if isinstance(audio, str) else None, "bytes": audio if isinstance(audio, bytes) else None}


def reason_of(error: Exception, audio: dict) -> str:
    """Without the clip's name, which stands beside it."""
    return (one_line(error) or type(error).__name__).removeprefix(f"{audio_name(audio)}: ")
