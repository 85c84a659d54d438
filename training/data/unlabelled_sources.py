"""
Opens the sources of self-supervised pretraining: unlabelled folders, manifests and Hub data sets, local or streamed.

A source's clips come undecoded, in an order that depends on a key alone; `clip_stream` mixes and decodes them.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import InputError, nearest, short
from .audio import check_audio
from .clips import LocalClips, StreamedClips, join
from .columns import choose_audio_column
from .listing import identity, list_audio_files, warn
from .sources import load_packed, load_stored, locator, with_paths
from .tables import load_table_as_it_stands, names_table, refuse_parts, time_columns
from .unreadable import UnreadableLog, reason_of

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class UnlabelledSource:
    """Holds one entry of the recipe's list of sources. `weight` is a number of clips; `None`: the source's own."""

    path: str
    weight: float | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    audio_column: str | None = None
    streaming: bool = False


def parse_sources(name: str, entries: list[str]) -> list[UnlabelledSource]:
    """
    Parses the sources of a recipe: each a path, a Hub name, or a JSON object with the fields of `UnlabelledSource`.

    Args:
        name: key of the recipe, for messages

    Raises:
        InputError: no entries, invalid JSON, an unknown field, or a wrong value.
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
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: {short(entry)} is not readable as JSON ({error}); correct it") from None
    fields = {field.name: field for field in dataclasses.fields(UnlabelledSource)}
    for key, value in values.items():
        if key not in fields:
            hint = nearest(key, list(fields), f"known are {', '.join(fields)}")
            raise InputError(f"{name}: unknown key {key} in {entry}; {hint}")
        is_right, kind = VALUE_CHECKS.get(key, (_is_text, "a text"))
        if not is_right(value) and (value is not None or fields[key].default is not None):
            raise InputError(f"{name}: {key} {value!r} in {entry}; it must be {kind}")
    if "path" not in values:
        raise InputError(
            f"{name}: {entry} has no path; add the path of a folder or manifest, or the name of a data set"
        )
    return UnlabelledSource(**values)


def open_source(
    source: UnlabelledSource, shuffle_buffer: int = 1000, reads_times: bool = False
) -> LocalClips | StreamedClips:
    """
    Opens a source: a folder (all audio files below it; class folders and metadata are ignored), a manifest, a data set
    of the Hub, or a local folder of Parquet or WebDataset files. All but manifests can be streamed.

    Args:
        shuffle_buffer: clips in the shuffle buffer of a streamed source
        reads_times: see `load_table_as_it_stands`

    Raises:
        InputError: a source that cannot be loaded, without clips or audio column, or with parts of recordings; or a
            setting without effect on it.
    """
    path = Path(source.path)
    if names_table(path):
        refuse(source, "a manifest", ("config", "revision", "split", "streaming"))
        data, own = load_table_as_it_stands(path, source.audio_column, reads_times)
        return LocalClips(source.path, data, own=own)

    def load():
        return load_stored(source.path, source.config, source.revision, split=source.split, streaming=source.streaming)

    if not source.streaming and os.path.isdir(path):
        listing = list_audio_files(path)
        if listing.files:
            refuse(source, "a folder of audio files", ("config", "revision", "split", "audio_column"))
            warn(path, listing.report())
            data = datasets.Dataset.from_dict({"audio": [str(file) for file in listing.files]})
            return LocalClips(source.path, data)
        data = with_paths(load_packed(source.path, listing, load), source.audio_column, listing)
    else:
        data = load()
    if source.streaming:
        locate = locator(list_audio_files(path)) if os.path.isdir(path) else None
        clips = StreamedClips(source.path, data, source.audio_column, shuffle_buffer, locate=locate)
    else:
        clips = LocalClips(source.path, data, choose_audio_column(source.path, data.features, source.audio_column))
    if not reads_times:
        _refuse_stored_parts(clips, data)
    return clips


def _refuse_stored_parts(clips: LocalClips | StreamedClips, data: datasets.Dataset | datasets.IterableDataset):
    """Refuses parts of recordings as `refuse_parts` does; `data`: the same clips with all columns."""
    names = time_columns(clips.columns if isinstance(clips, StreamedClips) else data.column_names)
    if not names:
        return
    if isinstance(clips, LocalClips):
        refuse_parts(clips.name, data.select_columns(names).to_dict(), clips.are_files())
        return
    # Its first clip stands for all: a stream is long.
    first = clips.first(data, names)
    refuse_parts(clips.name, {name: [first[name]] for name in names}, [first["bytes"] is None])


def _is_weight(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


VALUE_CHECKS = {
    "weight": (_is_weight, "a finite number above 0"),
    "streaming": (lambda value: isinstance(value, bool), "true or false"),
}


def refuse(source: UnlabelledSource, kind: str, names: tuple[str, ...]):
    """Raises `InputError` if one of these fields is set, which have no effect on such a source."""
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if field.name in names and value != field.default:
            raise InputError(f"{source.path}: {field.name} = {value!r} has no effect on {kind}; remove it")


def drop_unreadable(clips: LocalClips, log: UnreadableLog, max_share: float) -> LocalClips:
    """
    Returns the clips with readable headers, and logs the others.

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
    Sets `count` clips of the local sources aside for validation, by a hash of their names: adding or removing clips
    leaves almost all others on their side. A file that is listed twice, also by links, is one clip.

    Returns:
        the sources without these clips, and these clips

    Raises:
        InputError: too few clips in the local sources.
    """
    local = [source for source in clips if isinstance(source, LocalClips)]
    total = sum(len(source) for source in local)
    names = [name for source in local for name in source.names()]
    roots = [source.root for source in local for _ in range(len(source))]
    # Names relative to the source: a folder that moves keeps its validation clips.
    keys = [f"{seed}:{name.removeprefix(root)}" for name, root in zip(names, roots)]
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    own = [_identity(name) or index for index, name in enumerate(names)]
    first = {}  # of each file, in the order of the hashes
    for index in sorted(range(total), key=hashes.__getitem__):
        first.setdefault(own[index], index)
    drawn = set(list(first)[:count])
    chosen = np.array([identity in drawn for identity in own], dtype=bool)
    ends = np.cumsum([len(source) for source in local])[:-1]
    sides = np.split(chosen, ends) if local else []
    if not 1 <= count < total or any(side.all() for side in sides):
        raise InputError(
            f"{count} clips for validation: the local sources have {total}, and each must keep one for training; hold "
            "out fewer, add clips, or name a validation source"
        )
    shown = np.zeros(total, dtype=bool)
    shown[list(first.values())] = True
    shown &= chosen
    if shown.sum() < chosen.sum():
        logger.warning(
            f"{chosen.sum() - shown.sum()} more entries of {len(drawn)} clips for validation, such as "
            f"{names[np.flatnonzero(chosen & ~shown)[0]]}, are left out of the training: they are listed twice"
        )
    parts = np.split(shown, ends)
    held_out = [source.select(np.flatnonzero(part)) for source, part in zip(local, parts) if part.any()]
    kept = iter([source.select(np.flatnonzero(~side)) for source, side in zip(local, sides)])
    training = [next(kept) if isinstance(source, LocalClips) else source for source in clips]
    return training, join(held_out)


def _identity(name: str) -> tuple[int, int] | None:
    """Returns what identifies the file of a clip; `None` if there is no such file: the clip is stored."""
    try:
        return identity(name)
    except (OSError, ValueError):
        return None
