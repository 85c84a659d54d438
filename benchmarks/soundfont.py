"""
Reads the samples of a SoundFont 2 file, and which programs of General MIDI play them, for package_clips.py.

The format is that of the SoundFont Technical Specification 2.04 (E-mu Systems, 2006), sections 3 to 8.
"""

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Tables of the chunk `pdta`; each ends with a row that only closes the one before it.
TABLES = {
    b"phdr": np.dtype([("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("unused", "<u4", 3)]),
    b"pbag": np.dtype([("generator", "<u2"), ("modulator", "<u2")]),
    b"pgen": np.dtype([("kind", "<u2"), ("value", "<u2")]),
    b"inst": np.dtype([("name", "S20"), ("bag", "<u2")]),
    b"ibag": np.dtype([("generator", "<u2"), ("modulator", "<u2")]),
    b"igen": np.dtype([("kind", "<u2"), ("value", "<u2")]),
    b"shdr": np.dtype([("name", "S20"), ("begin", "<u4"), ("end", "<u4"), ("loop_begin", "<u4"), ("loop_end", "<u4"),
                       ("rate", "<u4"), ("key", "u1"), ("cents", "i1"), ("other_side", "<u2"), ("kind", "<u2")]),
}  # fmt: skip
INSTRUMENT, SAMPLE = 41, 53  # generators that name an instrument, or a sample
RIGHT = 2  # kind of a sample that is the right channel of a pair


@dataclass(frozen=True)
class Sample:
    """
    Holds a recorded note, or the left or right channel of one.

    samples: (samples,), int16
    rate: in Hz
    programs: programs of General MIDI (0 to 127, bank 0) that play it
    """

    name: str
    samples: np.ndarray
    rate: int
    is_right: bool
    programs: frozenset[int]


def read_soundfont(path: Path) -> tuple[list[Sample], dict[int, str]]:
    """
    Returns the samples in the order of the file, and program of bank 0 -> its name.

    Raises:
        ValueError: no SoundFont 2 file, or one that is cut off.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"sfbk":
        raise ValueError(f"{path}: is no SoundFont 2 file")
    lists = {bytes(data[begin : begin + 4]): (begin + 4, end) for _, begin, end in chunks(data, 12, len(data))}
    parts = {name: data[begin:end] for kind in (b"sdta", b"pdta") for name, begin, end in chunks(data, *lists[kind])}
    missing = [name.decode() for name in (b"smpl", *TABLES) if name not in parts]
    if missing:
        raise ValueError(f"{path}: has no {missing[0]}")
    tables = {name: parts[name].view(dtype) for name, dtype in TABLES.items()}
    wave = parts[b"smpl"].view("<i2")
    in_instrument = [set(targets) for targets in zones(tables, b"inst", b"ibag", b"igen", SAMPLE)]
    programs, users = {}, {}
    for row, targets in zip(tables[b"phdr"], zones(tables, b"phdr", b"pbag", b"pgen", INSTRUMENT)):
        if row["bank"] == 0:
            programs[int(row["program"])] = row["name"].decode("latin-1")
            for sample in set().union(*(in_instrument[target] for target in targets)):
                users.setdefault(sample, set()).add(int(row["program"]))
    samples = [
        Sample(
            row["name"].decode("latin-1"),
            wave[row["begin"] : row["end"]],
            int(row["rate"]),
            bool(row["kind"] & RIGHT),
            frozenset(users.get(index, ())),
        )
        for index, row in enumerate(tables[b"shdr"][:-1])
    ]
    return samples, programs


def chunks(data: np.ndarray, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, begin and end of the content of each chunk; contents of odd length are followed by a byte."""
    while begin + 8 <= end:
        (size,) = struct.unpack("<I", bytes(data[begin + 4 : begin + 8]))
        if begin + 8 + size > end:
            raise ValueError(f"the chunk {bytes(data[begin : begin + 4])!r} is cut off")
        yield bytes(data[begin : begin + 4]), begin + 8, begin + 8 + size
        begin += 8 + size + size % 2


def zones(tables: dict, owners: bytes, bags: bytes, generators: bytes, kind: int) -> Iterator[list[int]]:
    """Yields for each preset or instrument what the generators of a kind in its zones name."""
    limits = tables[bags]["generator"][tables[owners]["bag"]]  # zones of an owner are neighbours, so that two ends do
    for begin, end in itertools.pairwise(limits):
        rows = tables[generators][begin:end]
        yield rows["value"][rows["kind"] == kind].tolist()
