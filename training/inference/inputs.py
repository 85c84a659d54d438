"""Opens what a program reads: audio files, folders, manifests, and data sets of the Hub, local or streamed."""

import bisect
import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

from ..data.listing import AUDIO_EXTENSIONS, list_audio_files, warn
from ..errors import InputError
from ..files import TEXT_ERRORS

TABLE_EXTENSIONS = (".csv", ".tsv", ".txt", ".xlsx", ".json", ".jsonl", ".parquet")
HELP = (
    'Audio files, folders, manifests, Hub data sets, or \'{"path": ..., "split": ..., "audio_column": ...}\'; the '
    "words after MODEL."
)


class Files:
    """Holds recordings by their paths alone, so that a million of them take little memory and no time."""

    own = None  # a manifest has columns of its own

    def __init__(self, files: Sequence[str]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        return {"path": self.files[index], "bytes": None}

    def names(self) -> list[str]:
        return list(self.files)

    def name_of(self, index: int, audio: dict) -> str:
        return self.files[index]


class Examples:
    """Holds the clips of a labelled data set (`ClipDataset`), undecoded."""

    own = None

    def __init__(self, dataset):
        self.data = dataset.examples
        self._names = dataset.names()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int):
        from ..data.columns import audio_of  # here: `datasets` takes a second to import

        return audio_of(self.data[index])

    def names(self) -> list[str]:
        return self._names

    def name_of(self, index: int, audio) -> str:
        return self._names[index]


def open_inputs(
    inputs: list[str], streaming: bool = False, empty: list[str] | None = None, reads_times: bool = False
) -> list:
    """
    Opens audio files, and any source of a pretraining: folders, manifests, Hub data sets, JSON objects.

    Args:
        empty: takes the messages of folders without clips, if other inputs have some; `None`: they are errors
        reads_times: whether the caller reads the times of parts from the columns of manifests; else they are refused

    Raises:
        InputError: one of them cannot be opened, or none contains clips.
    """
    opened, messages = [], []
    for are_files, group in itertools.groupby(map(str, inputs), _is_audio_file):
        if are_files:
            opened.append(Files(list(group)))
            continue
        for entry in group:
            try:
                opened.append(_open(entry, streaming, reads_times))
            except InputError as error:
                if empty is None or not os.path.isdir(entry):
                    raise
                messages.append(str(error))
    if not opened:
        raise InputError("; ".join(messages))
    if empty is not None:
        empty += messages
    return opened


def _is_audio_file(entry: str) -> bool:
    """Returns whether an input is a recording: a file, but no table, or a missing file with a recording's name."""
    extension = os.path.splitext(entry)[1].lower()
    if extension in AUDIO_EXTENSIONS:
        return not os.path.isdir(entry)
    return extension not in TABLE_EXTENSIONS and os.path.isfile(entry)


def _open(entry: str, streaming: bool, reads_times: bool):
    if not streaming and os.path.isdir(entry):
        listing = list_audio_files(entry)
        if listing.files:
            warn(entry, listing.report())
            return Files(list(map(str, listing.files)))
    import dataclasses

    # Here: `datasets` takes a second to import.
    from ..data.unlabelled_sources import open_source, parse_sources, refuse

    (source,) = parse_sources("inputs", [entry])
    refuse(source, "what is read once", ("weight",))
    if _is_audio_file(source.path):
        refuse(source, "a recording", ("config", "revision", "split", "audio_column", "streaming"))
        return Files([source.path])
    source = dataclasses.replace(source, streaming=streaming or source.streaming)
    return open_source(source, reads_times=reads_times)


class ClipSequence:
    """
    Iterates over the undecoded clips of several sources, one source after the other.

    `num_clips` is `None` if a source is streamed: every process then reads all stored clips, and decodes its share.
    """

    def __init__(self, sources: list):
        self.sources = sources
        self.num_clips = sum(map(len, sources)) if all(hasattr(source, "__len__") for source in sources) else None
        self._ends = list(itertools.accumulate(map(len, sources))) if self.num_clips is not None else []
        self._own = None
        # Called with number and name of each clip of a stream as soon as they are known.
        self.check_name: Callable[[int, str], None] | None = None

    def fingerprint(self) -> str:
        """
        Returns a short text that changes with the clips: with their names, the exact times of parts, and the sizes and
        times of change of files, or the sizes of what tables hold. For streams, it changes with the sources.
        """
        digest = hashlib.sha256()
        for source in self.sources:
            clips = zip(source.names(), _facts(source)) if hasattr(source, "__len__") else [(source.name,)]
            for clip in clips:
                digest.update(f"{clip}\n".encode(errors=TEXT_ERRORS))
        return digest.hexdigest()[:16]

    def names(self) -> list[str]:
        """Returns the names of the clips; of a stream, its own."""
        parts = [source.names() if hasattr(source, "__len__") else [source.name] for source in self.sources]
        return list(itertools.chain(*parts))

    def groups(self, shard_size: int, is_wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple]]]:
        """
        Yields the number of each wanted shard, and number, name and audio of its clips.

        Args:
            shard_size: clips per shard
            is_wanted: says whether a shard is to be computed, by its number
        """
        if self.num_clips is not None:
            for shard in filter(is_wanted, range(-(-self.num_clips // shard_size))):
                start = shard * shard_size
                yield shard, [self._clip(number) for number in range(start, min(start + shard_size, self.num_clips))]
            return
        for shard, group in itertools.groupby(self._streamed(), lambda clip: clip[0] // shard_size):
            if is_wanted(shard):
                yield shard, list(group)

    def _streamed(self) -> Iterator[tuple]:
        for number, (name, audio) in enumerate(itertools.chain(*map(_named, self.sources))):
            if self.check_name is not None:
                self.check_name(number, name)
            yield number, name, audio

    def _clip(self, number: int) -> tuple:
        place = bisect.bisect_right(self._ends, number)
        source, index = self.sources[place], number - self._ends[place] + len(self.sources[place])
        audio = source[index]
        return number, source.name_of(index, audio), audio

    def own(self, name: str | None = None):
        """
        Returns the columns that manifests have of their own, a row per clip, or `None`: a `pyarrow.Table`.

        Args:
            name: column of the files in the output. A manifest's own of that name becomes given_NAME, unless it is read
        """
        if self._own is None and any(getattr(source, "own", None) is not None for source in self.sources):
            self._own = _joined([(_for_output(name, source.own), len(source)) for source in self.sources])
        return self._own


def _facts(source) -> Iterator[tuple]:
    """Yields what distinguishes clips of one name: size and time of its file, size of its bytes, start, end."""
    for path, num_bytes, start, end in _stored(source.data) if hasattr(source, "data") else _read(source):
        facts = None
        if num_bytes is None:
            with contextlib.suppress(OSError, TypeError, ValueError):  # a missing file, an address, or no path
                facts = os.stat(path)
        yield num_bytes, facts and (facts.st_size, facts.st_mtime_ns), start, end


def _read(source) -> Iterator[tuple]:
    """Yields path, number of stored bytes, start and end of each clip of a source."""
    for index in range(len(source)):
        audio = source[index]
        audio = {"path": audio} if isinstance(audio, str) else audio
        content = audio.get("bytes")
        yield audio.get("path"), None if content is None else len(content), audio.get("start"), audio.get("end")


def _stored(data) -> Iterator[tuple]:
    """Yields the same of a `datasets.Dataset`, without loading the audio of all clips at once."""
    import pyarrow.compute  # here: a prediction of files needs no tables

    from ..data.columns import TIME_COLUMNS

    wanted = [name for name in ("audio", *TIME_COLUMNS) if name in data.column_names]
    for table in data.select_columns(wanted).with_format("arrow").iter(batch_size=100):
        audio, num_bytes = table["audio"], [None] * len(table)
        if pyarrow.types.is_struct(audio.type):
            num_bytes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(audio, "bytes")).to_pylist()
            audio = pyarrow.compute.struct_field(audio, "path")
        times = (table[name].to_pylist() if name in wanted else [None] * len(table) for name in TIME_COLUMNS)
        yield from zip(audio.to_pylist(), num_bytes, *times)


def _for_output(name: str | None, table):
    """
    Returns a manifest's columns for an output with the files in the column `name`: a column of its own by that name, or
    one that would be read before it, may hold paths from another folder. `None`: as they stand there.
    """
    if name is None or table is None:
        return table
    from ..data.tables import FILE, READ

    read, names = table.schema.metadata[READ.encode()].decode(), list(table.schema.names)
    wrong = {name} - {read}
    if name != FILE:  # which is read before others
        wrong |= {read} & {"audio", FILE}
    for place, field in enumerate(table.schema.names):
        if field in wrong:
            while names[place] in table.schema.names:
                names[place] = f"given_{names[place]}"
    return table.rename_columns(names)


def _joined(tables: list[tuple]):
    """Joins tables (`None`: a source without columns) of some rows; columns of several types become texts."""
    import pyarrow  # here: a prediction of files needs no tables

    types = {}
    for table, _ in tables:
        for field in () if table is None else table.schema:
            known = types.setdefault(field.name, field.type)
            if pyarrow.types.is_null(known):
                types[field.name] = field.type
            elif known != field.type and not pyarrow.types.is_null(field.type):
                types[field.name] = pyarrow.string()

    def column(table, length: int, name: str, kind):
        if table is None or name not in table.schema.names:
            return pyarrow.nulls(length, kind)
        values = table[name]
        if values.type != kind and pyarrow.types.is_nested(values.type):
            return pyarrow.array([None if value is None else str(value) for value in values.to_pylist()], kind)
        return values.cast(kind).combine_chunks()

    joined = {
        name: pyarrow.chunked_array([column(table, length, name, kind) for table, length in tables], kind)
        for name, kind in types.items()
    }
    return pyarrow.table(joined).combine_chunks()  # or every `take` of a few rows would look at all of them


def _named(source) -> Iterator[tuple[str, dict]]:
    clips = source.in_order() if hasattr(source, "in_order") else (source[index] for index in range(len(source)))
    return ((source.name_of(index, audio), audio) for index, audio in enumerate(clips))
