"""Finds the links of a chained Ogg file: each begins with pages of its own."""

import bisect
import dataclasses
import zlib
from array import array
from collections.abc import Sequence

from .common import Link, Piece, Reader, Survey

LARGEST_BLOCK = 8192  # samples of a packet of Vorbis; Opus and FLAC have fewer
PAGES = 4  # one page in four has its place in memory
TURNED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))  # bits of a byte in the other order


@dataclasses.dataclass(frozen=True)
class OggLink(Link):
    """Holds the places of pages in samples: libsndfile seeks to wrong places in one of ten Vorbis segments."""

    headers: tuple[int, int] = (0, 0)
    ends: Sequence[int] = ()  # samples up to the end of a page, of some pages
    places: Sequence[int] = ()  # their first bytes

    def near(self, reader: Reader, sample: int) -> tuple[list[Piece], int | None] | None:
        if self.has_gaps:
            return list(self.pieces), 0
        if not self.ends:
            return None
        page = bisect.bisect_right(self.ends, sample) - 2  # one earlier: a page can begin within a packet
        return ([self.headers, (self.places[page], self.pieces[-1][1])], None) if page > 0 else (list(self.pieces), 0)


@dataclasses.dataclass
class _Stream:
    """Collects the pages of a link."""

    start: int
    serial: bytes
    codec: bytes
    stop: int = 0
    number: int = -1  # of the last page
    segments: int = 0  # each is at most one packet
    is_ended: bool = False
    has_gaps: bool = False
    pages: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # samples up to its end, its first byte

    def add(self, head: bytes, place: int, size: int):
        self.stop = place + size
        if head[14:18] != self.serial:  # a stream beside the sound
            return
        self.segments += head[26]
        number = int.from_bytes(head[18:22], "little")
        self.has_gaps |= number not in (self.number + 1, self.number)
        self.number = number
        self.is_ended |= bool(head[5] & 4)
        samples = int.from_bytes(head[6:14], "little", signed=True)
        if samples > 0:
            self.pages.append((samples, place))

    def link(self) -> OggLink:
        whole = ((self.start, self.stop),)
        if self.codec[:7] != b"\x01vorbis" or not self.pages or self.has_gaps:
            return OggLink(whole, self.has_gaps)
        ends, places = (array("q", column) for column in zip(*self.pages[::PAGES]))
        return OggLink(whole, headers=(self.start, self.pages[0][1]), ends=ends, places=places)


def look_at_ogg(reader: Reader, start: int) -> Survey | None:
    streams, place, was_first, has_junk = [], start, False, start > 0
    stop = reader.size
    while place + 27 <= stop:
        head = reader.take(place, 27 + 255)
        size = 27 + head[26] + sum(head[27 : 27 + head[26]])
        if head[:4] != b"OggS" or (place + size <= stop and ogg_checksum(reader.take(place, size)) != head[22:26]):
            has_junk, found = True, reader.find(b"OggS", place + 1, stop)
            if found < 0:
                break
            place = found
            continue
        if place + size > stop:
            break
        is_first = bool(head[5] & 2)
        if is_first and not was_first:
            streams.append(_Stream(place, head[14:18], codec=reader.take(place + 27 + head[26], 8)))
        was_first = is_first
        if streams:
            streams[-1].add(head, place, size)
        place += size
    if not streams:
        return None
    is_cut = not streams[-1].is_ended or (place < stop and reader.take(place, 4) == b"OggS")
    most_frames = LARGEST_BLOCK * sum(stream.segments for stream in streams)
    links = tuple(stream.link() for stream in streams)
    if len(links) == 1 and not has_junk and not is_cut and not links[0].ends and not links[0].has_gaps:
        return Survey(most_frames=most_frames)
    return Survey(links, is_cut=is_cut, most_frames=most_frames)


def ogg_checksum(page: bytes) -> bytes:
    """Returns the checksum of an Ogg page: that of zlib with the bits in the other order, its own field taken as 0."""
    turned = (page[:22] + bytes(4) + page[26:]).translate(TURNED)
    return (zlib.crc32(turned, 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "big").translate(TURNED)
