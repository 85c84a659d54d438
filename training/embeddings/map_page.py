"""Writes `map.html`: a map whose clips play under the pointer, with the nearest clips of each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas
from transformers.utils import logging

from ..base.page import audio_uri, public_names, write_page
from ..data.audio import audio_format, audio_seconds, read_stretch
from ..errors import InputError, one_line, printable, short
from .maps import Groups
from .neighbours import neighbours_of_each
from .stored import Embeddings, as_text

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("map.html")
EMBEDDED, LINKED, NO_SOUND, AUTO = "embedded", "linked", "none", "auto"
SOUNDS = (AUTO, EMBEDDED, LINKED, NO_SOUND)
MOST_SOUND_BYTES = 16_000_000  # of all embedded sounds of a page
SOUND_S = 10.0  # longest embedded sound
SOUND_RATE = 32000  # highest rate of embedded sounds
BYTES_PER_SAMPLE = 0.6  # of MP3 in a data URI, at most; to say before whether all clips fit
NEIGHBOURS = 10
MOST_COLUMNS = 8  # of the table, beside the name
MOST_LETTERS = 80  # of a cell
STEPS = 10_000  # places along an axis


@dataclass
class Sounds:
    """
    Holds what a page plays.

    Args:
        kind: `EMBEDDED`, `LINKED` or `NO_SOUND`
        addresses: of each clip, empty without a sound
        num_missing: clips without a recording that can be read
        num_left_out: clips whose sound had no room
        num_cut: clips of which only the first `SOUND_S` seconds are embedded
    """

    kind: str
    addresses: list[str]
    num_missing: int = 0
    num_left_out: int = 0
    num_cut: int = 0


def find_sounds(files: Sequence[str | None], folder: Path, kind: str) -> Sounds:
    """
    Returns the sounds of a page in `folder`: embedded where all fit, else addresses of the recordings.

    Args:
        files: of each clip the path, or `None`
        kind: one of `SOUNDS`
    """
    if kind == NO_SOUND or not any(files):
        return Sounds(NO_SOUND, [""] * len(files), sum(file is None for file in files))
    if kind == LINKED or (kind == AUTO and not _fit(files)):
        return Sounds(LINKED, [_address(file, folder) if file else "" for file in files], sum(not one for one in files))
    sounds, size = Sounds(EMBEDDED, []), 0
    for file in files:
        uri, is_cut = ("", False) if file is None else _embedded(file)
        sounds.num_missing += not uri
        if uri and size + len(uri) > MOST_SOUND_BYTES:
            uri, is_cut, sounds.num_left_out = "", False, sounds.num_left_out + 1
        size += len(uri)
        sounds.num_cut += is_cut
        sounds.addresses.append(uri)
    return sounds


def _fit(files: Sequence[str | None]) -> bool:
    """Returns whether all sounds can be embedded, by the lengths in their headers."""
    left = MOST_SOUND_BYTES
    for file in filter(None, files):
        try:
            left -= min(audio_seconds(file), SOUND_S) * min(audio_format(file)[0], SOUND_RATE) * BYTES_PER_SAMPLE
        except InputError:  # it has no sound
            continue
        if left < 0:
            return False
    return True


def _embedded(file: str) -> tuple[str, bool]:
    """Returns the beginning of a recording as a data URI, and whether there is more; empty if it is unreadable."""
    try:
        rate = min(audio_format(file)[0], SOUND_RATE)
        seconds = audio_seconds(file)
        waveform = read_stretch(file, rate, 0, round(min(seconds, SOUND_S) * rate))
        return audio_uri(waveform, rate), seconds > SOUND_S
    except InputError as error:
        logger.warning(one_line(f"map.html does not play {file} ({error})"))
        return "", False


def _address(file: str, folder: Path) -> str:
    """Returns the address of a recording for a page in `folder`."""
    try:
        path = os.path.relpath(os.path.realpath(file), os.path.realpath(folder))
    except ValueError:  # another drive
        return Path(file).absolute().as_uri()
    return quote(path.replace(os.sep, "/"), errors="surrogateescape")


def write_map_page(
    path: Path,
    title: str,
    method: str,
    found: Embeddings,
    places: np.ndarray,
    groups: Groups,
    table: pandas.DataFrame,
    sounds: Sounds,
    num_all: int,
):
    """
    Writes the page, whole or not at all.

    Args:
        found: the clips, and their vectors for the nearest ones
        places: (clips, 2)
        table: the columns that are shown, a row per clip
        num_all: clips of the collection, of which these are some
    """
    names = found.names
    rows, cosines = neighbours_of_each(found.vectors, NEIGHBOURS)
    low, size = places.min(axis=0), max(float(np.ptp(places, axis=0).max()), 1e-9)
    # In the middle of a square.
    grid = (places - low + (size - np.ptp(places, axis=0)) / 2) / size * STEPS
    columns = list(table.columns)[:MOST_COLUMNS]
    shown = range(len(columns))
    data = {
        "x": grid[:, 0].round().astype(int).tolist(),
        "y": (STEPS - grid[:, 1]).round().astype(int).tolist(),  # downwards
        "steps": STEPS,
        "names": list(map(printable, public_names(names))),
        "groups": groups.members.tolist(),
        "colours": groups.colours,
        "markers": groups.markers,
        "columns": list(map(_cell, columns)),
        "cells": [list(map(_cell, table.iloc[:, place])) for place in shown],
        "near": rows.tolist(),
        "cosines": (cosines * 10_000).round().astype(int).tolist(),
        "sounds": sounds.addresses,
    }
    write_page(
        path,
        TEMPLATE,
        name=title,
        method=method,
        column=groups.column,
        legend=list(zip(groups.names, groups.colours, groups.markers, groups.counts())),
        num_clips=len(names),
        num_all=num_all,
        columns_left_out=list(map(str, table.columns[MOST_COLUMNS:])),
        sounds=sounds,
        sound_s=SOUND_S,
        neighbours=rows.shape[1],
        data=data,
        config=None,
        captions={},
        pictures={},
    )


def _cell(value) -> str:
    return printable(short(as_text(value), MOST_LETTERS))
