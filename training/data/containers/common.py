"""Reads bytes and pieces of files, describes what was found in them, and skips the tags at their beginning and end."""

import dataclasses
import io
import itertools
import struct
from typing import BinaryIO

BLOCK = 1 << 16  # bytes read at once
SEARCHED = 1 << 18  # bytes at the beginning of a file in which a recording may begin
UNKNOWN = 0xFFFFFFFF  # size of a chunk that was written to a pipe
Piece = bytes | tuple[int, int]  # bytes to put there, or first and last + 1 byte of the file


class Reader:
    """Reads any bytes of a file, by blocks. No mmap: a file that shrinks meanwhile would end the process."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = file.seek(0, io.SEEK_END)
        self.start, self.block = 0, b""

    def take(self, start: int, count: int) -> bytes:
        """Returns up to `count` bytes from `start` on; fewer at the end of the file."""
        if start >= self.size:  # also by a damaged size of 64 bits
            return b""
        offset = start - self.start
        if offset < 0 or offset + count > len(self.block):
            self.file.seek(start)
            self.start, self.block, offset = start, self.file.read(max(count, BLOCK)), 0
        return self.block[offset : offset + count]

    def find(self, pattern: bytes, start: int, stop: int) -> int:
        """Returns the first place of a pattern that lies before `stop`, or -1."""
        while start < stop:
            found = self.take(start, min(BLOCK, stop - start)).find(pattern)
            if found >= 0:
                return start + found
            start += BLOCK - len(pattern) + 1
        return -1


class Pieces(io.RawIOBase):
    """A file made of pieces, to be read by libsndfile."""

    def __init__(self, reader: Reader, pieces: list[Piece]):
        self.reader, self.pieces, self.position = reader, pieces, 0
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]
        self.ends = list(itertools.accumulate(sizes))

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self.position = offset + (0, self.position, self.ends[-1])[whence]
        return self.position

    def tell(self):
        return self.position

    def readinto(self, buffer) -> int:
        filled = 0
        for piece, end in zip(self.pieces, self.ends):
            if self.position >= end or filled == len(buffer):
                continue
            count = min(end - self.position, len(buffer) - filled)
            if isinstance(piece, bytes):
                start = len(piece) - (end - self.position)
                part = piece[start : start + count]
            else:
                part = self.reader.take(piece[1] - (end - self.position), count)
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            self.position += len(part)
            if len(part) < count:
                break
        return filled


@dataclasses.dataclass(frozen=True)
class Link:
    """
    Holds what libsndfile can read from its beginning to its end.

    Args:
        pieces: none: the file as it is
        has_gaps: some of it is lost; how much must be found by decoding
    """

    pieces: tuple[Piece, ...] = ()
    has_gaps: bool = False

    @property
    def length(self) -> int | None:
        """The number of samples, where libsndfile would guess it."""
        return None

    def near(self, reader: Reader, sample: int) -> tuple[list[Piece], int | None] | None:
        """
        Returns pieces that begin a little before a sample and end with the link, and their first sample (`None`: the
        number of samples that they hold says where they begin). `None`: libsndfile itself seeks to the sample.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Survey:
    """
    Says what a file holds.

    Args:
        claimed: what the header claims, as a share of what is there; `None`: it claims nothing
        claimed_frames: samples per channel that the header claims, where its share is unknown
        is_joined: several recordings in one file, of which the header knows the first
        is_cut: the file ends in the middle, and no header says how much is missing
        most_frames: the most samples per channel that its bytes can hold, where libsndfile believes a header
    """

    links: tuple[Link, ...] = (Link(),)
    claimed: float | None = None
    claimed_frames: int | None = None
    is_joined: bool = False
    is_cut: bool = False
    most_frames: float | None = None


def after_id3(reader: Reader, start: int) -> int:
    """Returns the place after the ID3v2 tags that stand at `start`."""
    while True:
        tag = reader.take(start, 10)
        if len(tag) < 10 or tag[:3] != b"ID3" or max(tag[6:10]) > 127:
            return start
        start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9]) + (10 if tag[5] & 0x10 else 0)


def without_tags(reader: Reader, start: int) -> int:
    """Returns the end of a file without the ID3v1 and APE tags that stand there."""
    stop = reader.size
    if reader.take(max(stop - 128, start), 3) == b"TAG":
        stop -= 128
    footer = reader.take(max(stop - 32, start), 32)
    if footer[:8] == b"APETAGEX":
        size, flags = struct.unpack("<I", footer[12:16])[0], struct.unpack("<I", footer[20:24])[0]
        stop -= size + (32 if flags >> 31 else 0)
    return max(stop, start)
