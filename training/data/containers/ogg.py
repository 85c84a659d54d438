"""Finds the links of a chained Ogg file: each begins with pages of its own."""

import bisect
import dataclasses
import zlib
from array import array
from collections.abc import Sequence

from .common import Link, Piece, Reader, Survey

PAGES = 4  # one page in four has its place in memory
TURNED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))  # bits of a byte in the other order


@dataclasses.dataclass(frozen=True)
class OggLink(Link):
    """Holds the places of pages in samples: libsndfile seeks to wrong places in one of ten Vorbis segments."""

    has_gaps: bool = False
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


def look_at_ogg(reader: Reader, start: int) -> Survey | None:
    links, place, was_first, has_junk = [], start, False, start > 0
    stop = reader.size
    while place + 27 <= stop:
        head = reader.take(place, 27 + 255)
        size = 27 + head[26] + sum(head[27 : 27 + head[26]])
        if head[:4] != b"OggS" or (place + size <= stop and not _is_whole(reader.take(place, size))):
            has_junk, found = True, reader.find(b"OggS", place + 1, stop)
            if found < 0:
                break
            place = found
            continue
        if place + size > stop:
            break
        is_first, serial = bool(head[5] & 2), head[14:18]
        if is_first and not was_first:
            kind = reader.take(place + 27 + head[26], 8)
            links.append({"start": place, "serial": serial, "pages": [], "packets": 0, "kind": kind})
            links[-1] |= {"is_ended": False, "has_gaps": False, "number": -1}
        was_first = is_first
        if links:
            link = links[-1]
            link["stop"] = place + size
            if serial == link["serial"]:
                link["packets"] += head[26]
                number = int.from_bytes(head[18:22], "little")
                link["has_gaps"] |= number not in (link["number"] + 1, link["number"])
                link["number"] = number
                link["is_ended"] |= bool(head[5] & 4)
                samples = int.from_bytes(head[6:14], "little", signed=True)
                if samples > 0:
                    link["pages"].append((samples, place))
        place += size
    if not links:
        return None
    is_cut = not links[-1]["is_ended"] or (place < stop and reader.take(place, 4) == b"OggS")
    most_frames = 8192 * sum(link["packets"] for link in links)
    made = [_ogg_link(**link) for link in links]
    if len(made) == 1 and not has_junk and not is_cut and not made[0].ends and not made[0].has_gaps:
        return Survey(most_frames=most_frames)
    return Survey(tuple(made), is_cut=is_cut, most_frames=most_frames)


def _ogg_link(start: int, stop: int, kind: bytes, pages: list[tuple[int, int]], has_gaps: bool, **_) -> OggLink:
    if kind[:7] != b"\x01vorbis" or not pages or has_gaps:
        return OggLink(((start, stop),), has_gaps)
    some = pages[::PAGES]
    return OggLink(((start, stop),), False, (start, pages[0][1]), *(array("q", column) for column in zip(*some)))


def _is_whole(page: bytes) -> bool:
    """Returns whether the checksum of an Ogg page is right: that of zlib with the bits in the other order."""
    turned = (page[:22] + bytes(4) + page[26:]).translate(TURNED)
    checksum = zlib.crc32(turned, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(TURNED) == page[22:26]
