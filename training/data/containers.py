"""
Finds in the bytes of a file what it holds, whatever its header claims: lengths, joined recordings, cut ends.

libsndfile believes the headers of WAV, AIFF, AU, CAF, FLAC and MP3, and stops at the end of the first link of a chained
Ogg file. Where the bytes say otherwise, `survey` gives files for libsndfile in which header and content agree: pieces
of the file in order, behind a mended header.
"""

import bisect
import dataclasses
import io
import itertools
import struct
import zlib
from array import array
from collections.abc import Sequence
from typing import BinaryIO

BLOCK = 1 << 16  # bytes read at once
SEARCHED = 1 << 18  # bytes at the beginning in which a recording may begin
MOST_SEARCHED = 1 << 24  # bytes, where a search costs more than it is worth
FLAC_START = b"fLaC\0\0\0\x22"
UNKNOWN = 0xFFFFFFFF  # size of a chunk that was written to a pipe
MOST_BYTES = 1 << 62
TURNED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
PAGES = 4  # Ogg: one in four has its place in memory
GROUP = 64  # MPEG frames: as many have one place in memory
PHASES = 4608  # samples, whole frames of each layer: the synthesis filter of mpg123 is in the same phase again, and so
# rounds in the same way
SMALLEST_FLAC_FRAME = 10  # bytes: header, one constant subframe, checksum
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
    """Holds what libsndfile can read from its beginning to its end. No pieces: the file as it is."""

    pieces: tuple[Piece, ...] = ()

    has_gaps = False  # what is lost must be found by decoding

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


def survey(file: BinaryIO) -> Survey:
    """Finds what a file holds. Reads all of an MP3 or Ogg file, little of any other; decodes nothing."""
    reader = Reader(file)
    start = _after_id3(reader, 0)
    look = LOOKS.get(reader.take(start, 4))
    if look is not None:
        return look(reader, start) or Survey()
    head = reader.take(start, 4)
    if start or head[:1] == b"\xff":
        return look_at_mpeg(reader, start, is_sure=mpeg_frame(head) is not None) or Survey()
    return Survey()


def _explicit(links: tuple[Link, ...], place: tuple[int, int]) -> list[Link]:
    """Returns links within a part of a file; those that say "the file as it is" get its place."""
    return [link if link.pieces else Link((place,)) for link in links]


def survey_after_junk(file: BinaryIO) -> Survey | None:
    """Finds a FLAC, Ogg or MPEG recording that begins somewhere in the first bytes of a file."""
    reader = Reader(file)
    for magic in (FLAC_START, b"OggS\0\x02"):
        found = reader.find(magic, 0, min(reader.size, SEARCHED))
        if found >= 0:
            return LOOKS[magic[:4]](reader, found)
    return look_at_mpeg(reader, 0, is_sure=False)


def _after_id3(reader: Reader, start: int) -> int:
    """Returns the place after the ID3v2 tags that stand at `start`."""
    while True:
        tag = reader.take(start, 10)
        if len(tag) < 10 or tag[:3] != b"ID3" or max(tag[6:10]) > 127:
            return start
        start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9]) + (10 if tag[5] & 0x10 else 0)


def _without_tags(reader: Reader, start: int) -> int:
    """Returns the end of a file without the ID3v1 and APE tags that stand there."""
    stop = reader.size
    if reader.take(max(stop - 128, start), 3) == b"TAG":
        stop -= 128
    footer = reader.take(max(stop - 32, start), 32)
    if footer[:8] == b"APETAGEX":
        size, flags = struct.unpack("<I", footer[12:16])[0], struct.unpack("<I", footer[20:24])[0]
        stop -= size + (32 if flags >> 31 else 0)
    return max(stop, start)


# WAV, AIFF, CAF, W64 and AU: samples in a chunk. Their headers are written last, and so are wrong where a recorder
# stopped, a download broke off, or the file is longer than 4 GiB.


def look_at_riff(reader: Reader, start: int) -> Survey | None:
    head = reader.take(start, 36)
    if head[8:12] != b"WAVE":
        return None
    in_ds64 = struct.unpack_from("<Q", head, 28)[0] if len(head) == 36 and head[12:16] == b"ds64" else None
    return _look_at_chunks(reader, start, ">I" if head[:4] == b"RIFX" else "<I", b"data", in_ds64=in_ds64)


def look_at_aiff(reader: Reader, start: int) -> Survey | None:
    if reader.take(start + 8, 3) == b"AIF":
        return _look_at_chunks(reader, start, ">I", b"SSND", inside=8)
    return None


def look_at_caf(reader: Reader, start: int) -> Survey | None:
    # Compressed packets (ALAC) have a table of their own: without it nothing can be decoded.
    if reader.take(start + 28, 4) in (b"lpcm", b"ulaw", b"alaw"):
        return _look_at_chunks(reader, start, ">Q", b"data", inside=4)
    place, claimed = start + 8, None
    while len(chunk := reader.take(place, 12)) == 12:
        if chunk[:4] == b"pakt" and len(table := reader.take(place + 12, 16)) == 16:
            claimed = struct.unpack(">QQ", table)[1]
        place += 12 + struct.unpack(">Q", chunk[4:])[0]
    return Survey(claimed_frames=claimed, is_cut=place > reader.size)


def look_at_w64(reader: Reader, start: int) -> Survey | None:
    place = reader.find(b"data\xf3\xac\xd3\x11", start, min(reader.size, start + BLOCK))
    if place < 0 or place + 24 >= reader.size:
        return None
    size = struct.unpack("<Q", reader.take(place + 16, 8))[0] - 24  # libsndfile reads to the end of the file
    return Survey(claimed=None if size > MOST_BYTES else max(size, 0) / (reader.size - place - 24))


def look_at_au(reader: Reader, start: int) -> Survey | None:
    order = ">" if reader.take(start, 4) == b".snd" else "<"
    head = reader.take(start, 12)
    if len(head) < 12:
        return None
    first, size = struct.unpack(order + "II", head[4:])
    there = reader.size - start - first
    if there <= 0 or size in (UNKNOWN, there):
        return None
    whole = (head[:8] + struct.pack(order + "I", UNKNOWN), (start + 12, reader.size))
    return Survey((Link(whole),), size / there)


def _look_at_chunks(
    reader: Reader, start: int, size_format: str, name: bytes, inside: int = 0, in_ds64: int | None = None
) -> Survey | None:
    """
    Finds the samples of a file that is made of chunks: four letters, size, content.

    Args:
        inside: bytes of the chunk before its samples
        in_ds64: size of the chunk, where its own field has no room for it
    """
    form, head_size = reader.take(start, 4), 4 + struct.calcsize(size_format)
    place, chunks, is_padded = start + (8 if form == b"caff" else 12), {}, True
    while True:
        chunk = reader.take(place, head_size)
        if len(chunk) < head_size:
            return None
        size = struct.unpack(size_format, chunk[4:])[0]
        if chunk[:4] == name:
            break
        chunks.setdefault(chunk[:4], (place, place + head_size + size))
        place, is_own = _after_chunk(reader, place + head_size, size, form)
        is_padded &= is_own
    if b"fmt " in chunks and reader.take(chunks[b"fmt "][0] + 8, 2) in (b"\x50\0", b"\x55\0"):
        return look_at_mpeg(reader, place + head_size)
    if in_ds64 is not None and size == UNKNOWN:
        size = in_ds64
    first, end = place + head_size + inside, place + head_size + size
    if end > reader.size:
        stop = reader.size  # libsndfile finds that in WAV and AIFF by itself
        is_readable = form != b"caff" and size < MOST_BYTES and is_padded
    else:
        after, _ = _after_chunk(reader, place + head_size, size, form)
        follows = reader.take(after, 4)
        if end > first and follows in (b"RIFF", b"RF64") and name == b"data":
            rest = look_at_riff(reader, after) or Survey()
            return Survey((Link(((start, end),)), *_explicit(rest.links, (after, reader.size))), is_joined=True)
        stop, is_readable = _without_tags(reader, first), False
        # Other chunks, a few bytes, or zeros that fill a sector, are no samples.
        if end > first and (
            after + 8 > reader.size
            or _is_chunk_name(follows)
            or stop - end < 64
            or not reader.take(end, min(stop - end, BLOCK)).strip(b"\0")
        ):
            if is_padded:
                return None
            stop = end
    if stop <= first:
        return None
    is_known = size != UNKNOWN and size < MOST_BYTES and not (end > reader.size and 0x7FFF0000 <= size <= 0x80000000)
    claimed = max(end - first, 0) / (stop - first) if is_known else None
    if is_readable:
        return Survey(claimed=claimed)
    size = stop - first + inside
    if form in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        if b"fmt " not in chunks:
            return None
        about = reader.take(chunks[b"fmt "][0], chunks[b"fmt "][1] - chunks[b"fmt "][0])
        if size < UNKNOWN:
            order = size_format[0]
            form = b"RIFX" if order == ">" else b"RIFF"
            head = form + struct.pack(order + "I", 12 + len(about) + size) + b"WAVE" + about
            head += b"data" + struct.pack(order + "I", size)
        else:
            sizes = struct.pack("<IQQQI", 28, 48 + len(about) + size, size, 0, 0)
            head = b"RF64\xff\xff\xff\xffWAVEds64" + sizes + about + b"data\xff\xff\xff\xff"
    else:
        head = reader.take(start, place + 4 - start) + struct.pack(size_format, min(size, 256 ** (head_size - 4) - 1))
        head += reader.take(place + head_size, inside)
    return Survey((Link((head, (first, stop))),), claimed)


def _after_chunk(reader: Reader, content: int, size: int, form: bytes) -> tuple[int, bool]:
    """Returns the place of the next chunk, and whether a byte of padding stands before it where it must."""
    end = content + size
    if size % 2 == 0 or form == b"caff":
        return end, True
    return (end, False) if _is_chunk_name(reader.take(end, 4)) else (end + 1, True)


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= letter < 127 for letter in name) and name[:3] not in (b"TAG", b"APE")


# FLAC: every frame has its number, so the last one says the length.


def look_at_flac(reader: Reader, start: int) -> Survey | None:
    is_first = start == 0 or _after_id3(reader, 0) == start  # libsndfile skips ID3 tags by itself
    stop = _without_tags(reader, start)
    found = _one_flac(reader, start, stop)
    if found is None:
        return None
    link, frames, total, most_frames = found
    # Two of equal length, joined, end with the number that the first one claims.
    is_alone = stop - start > MOST_SEARCHED or reader.find(FLAC_START, start + 4, stop) < 0
    if is_first and frames in (None, total) and is_alone:
        return Survey(most_frames=most_frames)
    starts = [start]
    while (another := reader.find(FLAC_START, starts[-1] + 4, stop)) >= 0:
        starts.append(another)
    if len(starts) == 1:
        return Survey((link,), total / frames if frames and total else None, most_frames=most_frames)
    parts = [_one_flac(reader, *place) for place in zip(starts, [*starts[1:], stop])]
    return Survey(tuple(part[0] for part in parts if part), is_joined=True, most_frames=most_frames)


def _one_flac(reader: Reader, start: int, stop: int) -> tuple[Link, int | None, int, float] | None:
    """
    Returns a link with the true length in its header, that length (`None`: not found), the length that the header
    claims (0: unknown), and the most samples that the bytes can hold; `None`: no FLAC header.
    """
    info = reader.take(start + 8, 34)
    if len(info) < 34 or reader.take(start + 4, 1)[0] & 0x7F:
        return None
    smallest, largest = struct.unpack(">HH", info[:4])
    counted = int.from_bytes(info[10:18], "big")
    total = counted & (1 << 36) - 1
    first, is_last = start + 4, False
    while not is_last:
        block = reader.take(first, 4)
        if len(block) < 4:
            return None
        is_last, first = bool(block[0] & 0x80), first + 4 + int.from_bytes(block[1:], "big")
    most_frames = max(stop - first, 0) / SMALLEST_FLAC_FRAME * max(largest, 16)
    frames = _count_flac(reader, first, stop, smallest, largest, total)
    # The checksum of all samples (the last 16 bytes) is left out: it may be of others.
    info = info[:10] + (counted - total + (frames or total)).to_bytes(8, "big") + bytes(16)
    return Link(((start, start + 8), info, (start + 42, stop))), frames, total, most_frames


def _count_flac(reader: Reader, first: int, stop: int, smallest: int, largest: int, total: int) -> int | None:
    """Returns the number of samples up to the end of the last whole frame; `None` if there is no frame."""
    begin = reader.take(first, 16)
    if _flac_frame(begin, smallest) is None:
        return None
    before = max(first, stop - max(BLOCK, 12 * largest))  # a frame of 8 channels of 24 bits has half as many bytes
    tail = reader.take(before, stop - before)
    place = len(tail)
    while (place := tail.rfind(begin[:2], 0, place)) >= 0:
        found = _flac_frame(tail[place : place + 16], smallest)
        if found is None or tail[place + 3] & 0xF0 > 0xA0:
            continue
        number, size = found
        if number + size == total or not _crc16(tail[place:]):
            return number + size
        return number or None  # the last frame is not whole
    return None


def _flac_frame(head: bytes, smallest: int) -> tuple[int, int] | None:
    """Returns the first sample of a FLAC frame and its number of samples; `None`: this is no frame."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    length = next((count for count in range(8) if not head[4] << count & 0x80), 8)  # as in UTF-8
    if length in (1, 8):
        return None
    length = max(length, 1)
    number = head[4] & (0x7F >> length if length > 1 else 0x7F)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    code, place = head[2] >> 4, 4 + length
    place += {6: 1, 7: 2}.get(code, 0)
    size = 1 + int.from_bytes(head[4 + length : place], "big") if code in (6, 7) else FLAC_BLOCKS[code]
    place += {12: 1, 13: 2, 14: 2}.get(head[2] & 0xF, 0)
    if not size or place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    return (number if head[1] & 1 else number * smallest), size


FLAC_BLOCKS = (0, 192, *(576 << n for n in range(4)), 0, 0, *(256 << n for n in range(8)))


def _crc_table(polynomial: int, bits: int) -> list[int]:
    table, top = [], 1 << bits - 1
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & (1 << bits) - 1
        table.append(value)
    return table


CRC8, CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)


def _crc8(content: bytes) -> int:
    value = 0
    for byte in content:
        value = CRC8[value ^ byte]
    return value


def _crc16(content: bytes) -> int:
    """Returns the checksum of a FLAC frame; 0 for a whole frame, with its checksum."""
    value = 0
    for byte in content:
        value = (value << 8 & 0xFF00) ^ CRC16[value >> 8 ^ byte]
    return value


# Ogg: pages; every link of a chained file begins with pages of its own.


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


# MPEG audio (mp3, mp2): frames, each with its own length. A first frame without sound may give their number.


@dataclasses.dataclass(frozen=True)
class MpegLink(Link):
    """
    Holds the frames of one kind (`spans`, without what stands between them) behind a frame with their true number, and
    an empty ID3 tag, without which libsndfile knows MP3 by the file's name only.

    Args:
        tag: a frame without sound that gives the number of frames (Xing, Info or VBRI); empty for layers I and II
        frames: number of frames with sound
        samples: number of samples of a frame
        groups: place of every 64th frame in the joined spans; empty: all is decoded from the beginning
    """

    tag: bytes = b""
    spans: tuple[tuple[int, int], ...] = ()
    frames: int = 0
    samples: int = 0
    groups: Sequence[int] = ()

    is_own: bool = True  # the tag comes from the file

    @property
    def length(self) -> int | None:
        return None if self.tag else self.frames * self.samples

    def near(self, reader: Reader, sample: int) -> tuple[list[Piece], int | None] | None:
        # Two frames overlap; the encoder's delay is less than three.
        group = min(sample // self.samples - 3, self.frames - 1) // GROUP
        if group < 1 or not self.groups:
            return list(self.pieces), 0
        first = group * GROUP * self.samples - (PHASES if self.is_own else 0)
        return self.from_group(group, self._before(reader, group)), first

    def from_group(self, group: int, before: bytes = b"") -> list[Piece]:
        """Returns the frames from a group on. before: frames of PHASES samples that precede them"""
        spans, place = [], self.groups[group]
        for first, last in self.spans:
            if place < last - first:
                spans.append((first + place, last))
            place = max(place - (last - first), 0)
        tag = bytearray(self.tag)
        if tag:
            field = _tag_place(self.tag)
            frames = self.frames - GROUP * group + (PHASES // self.samples if before else 0)
            tag[field + 8 : field + 12] = struct.pack(">I", frames)
            if tag[field + 7] & 2:
                size = len(tag) + len(before) + sum(last - first for first, last in spans)
                tag[field + 12 : field + 16] = struct.pack(">I", min(size, UNKNOWN))
            if self.is_own and self.frames != int.from_bytes(self.tag[field + 8 : field + 12], "big"):
                _forget_padding(tag, field)
        return [EMPTY_ID3, bytes(tag) + before, *spans]

    def _before(self, reader: Reader, group: int) -> bytes:
        """Returns PHASES silent samples; their last frame holds the bits that the next frames take from before."""
        head = bytearray(reader.take(self.spans[0][0], 4))
        head[1], head[2] = head[1] | 1, 0xE0 | head[2] & 0x0C  # no checksum; the largest frame
        silent = bytes(head) + bytes(mpeg_frame(head)[0] - 4)
        count = PHASES // self.samples
        if not self.tag:
            return silent * count
        side, kept = _side_size(head), b""
        wanted = 511 if head[1] & 0x08 else 255
        joined = Reader(Pieces(reader, list(self.spans)))
        for earlier in range(group - 1, -1, -1):
            place, content = self.groups[earlier], b""
            while place < self.groups[earlier + 1]:
                head = joined.take(place, 4)
                size, skipped = mpeg_frame(head)[0], 4 + side + (0 if head[1] & 1 else 2)
                content += joined.take(place + skipped, size - skipped)
                place += size
            kept = content + kept
            if len(kept) >= wanted:
                break
        kept = kept[-wanted:]
        return silent * (count - 1) + silent[: len(silent) - len(kept)] + kept


class _Run:
    """Collects frames of one kind that follow each other in a file."""

    def __init__(self, kind: tuple, tag: bytes, claimed: int | None, is_free: bool):
        self.kind, self.tag, self.claimed, self.is_free = kind, tag, claimed, is_free
        self.frames, self.length, self.groups, self.spans = 0, 0, [], []

    def add(self, place: int, size: int):
        if self.frames % GROUP == 0:
            self.groups.append(self.length)
        if self.spans and self.spans[-1][1] == place:
            self.spans[-1][1] = place + size
        else:
            self.spans.append([place, place + size])
        self.frames += 1
        self.length += size

    def link(self, reader: Reader) -> MpegLink:
        spans, tag = tuple(map(tuple, self.spans)), self.tag
        needs_tag = not tag and self.kind[0] & 6 == 2 and not self.is_free  # layer III
        if needs_tag:
            head = bytearray(reader.take(spans[0][0], 4))
            head[1], head[2] = head[1] | 1, 0xE0 | head[2] & 0x0C
            tag = (bytes(head) + bytes(_side_size(head)) + MADE_TAG).ljust(mpeg_frame(head)[0], b"\0")
        groups = array("q", () if self.is_free else self.groups)
        link = MpegLink((), tag, spans, self.frames, samples_of(self.kind), groups, not needs_tag)
        if self.is_free:
            pieces = [EMPTY_ID3, *spans]
        else:
            pieces = link.from_group(0, link._before(reader, 0) if needs_tag else b"")
        return dataclasses.replace(link, pieces=tuple(pieces))


def look_at_mpeg(reader: Reader, start: int, is_sure: bool = True) -> Survey | None:
    """is_sure: the first bytes announce MPEG audio; else four frames must follow each other"""
    runs = [run for run in _mpeg_runs(reader, start, is_sure) if run.frames]
    if not runs:
        return None
    links = tuple(run.link(reader) for run in runs)
    total = sum(run.frames * samples_of(run.kind) for run in runs)
    claimed = runs[0].claimed and runs[0].claimed * samples_of(runs[0].kind) / total
    return Survey(links, claimed)


def _mpeg_runs(reader: Reader, start: int, is_sure: bool) -> list[_Run]:
    runs, place, end, stop, free = [], start, -1, reader.size, 0
    while place + 4 <= stop:
        head = reader.take(place, 4)
        frame = mpeg_frame(head, free)
        if frame is not None and not frame[0] and not free:
            free = _free_size(reader, place, head)
            frame = mpeg_frame(head, free)
        is_new = not runs or frame is None or frame[1] != runs[-1].kind
        is_torn = is_new or place != end
        if is_torn and (frame is None or not frame[0] or not _is_followed(reader, place, frame, free, is_sure)):
            place = _after_id3(reader, place) if head[:3] == b"ID3" else place
            place = reader.find(b"\xff", place + (head[:3] != b"ID3"), stop)
            if place < 0 or (not runs and place - start > SEARCHED):
                break
            continue
        size, kind = frame
        if place + size > stop:
            break
        tag, claimed, is_silent = _tag(reader.take(place, size)) if place != end else (b"", None, False)
        if is_new:
            # Decoders, and this one, drop the encoder's delay at the very beginning only.
            runs.append(_Run(kind, tag if place == start else b"", claimed, is_free=head[2] < 0x10))
        if not is_silent:
            runs[-1].add(place, size)
        place = end = place + size
    return runs


def _tag(frame: bytes) -> tuple[bytes, int | None, bool]:
    """Returns a frame if it gives the number of frames as Xing or Info, that number, and whether it has no sound."""
    field = _tag_place(frame)
    if field >= 0:
        has_number = bool(frame[field + 7] & 1)
        number = int.from_bytes(frame[field + 8 : field + 12], "big") if has_number else None
        return (frame if has_number else b""), number, True
    is_vbri = frame[36:40] == b"VBRI"
    return b"", int.from_bytes(frame[50:54], "big") if is_vbri else None, is_vbri


def _is_followed(reader: Reader, place: int, frame: tuple, free: int, is_sure: bool) -> bool:
    """Returns whether a frame is followed by another of its kind (or the end), and not a chance pair of bytes."""
    size, kind = frame
    for _ in range(1 if is_sure else 3):
        place += size
        if is_sure and (place == reader.size or reader.take(place, 3) in (b"TAG", b"ID3", b"APE")):
            return True
        frame = mpeg_frame(reader.take(place, 4), free)
        if frame is None or frame[1] != kind:
            return False
        size = frame[0]
    return True


def mpeg_frame(head: bytes, free: int = 0) -> tuple[int, tuple] | None:
    """
    Returns the size in bytes and the kind of an MPEG frame by its first four bytes; `None`: this is no frame.

    Args:
        free: size of a frame of free bit rate without padding
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate, sampling = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or not layer or rate == 15 or sampling == 3:
        return None
    kind = (head[1] & 0x1E, head[2] & 0x0C, head[3] >= 0xC0)
    padding = (head[2] >> 1 & 1) * (4 if layer == 3 else 1)
    if not rate:
        return (free + padding if free else 0), kind
    bits = BIT_RATES[version == 3, layer][rate] * 1000
    hertz = (44100, 48000, 32000)[sampling] >> (2, 0, 1, 0)[version]
    if layer == 3:
        return 12 * bits // hertz * 4 + padding, kind
    return (72 if layer == 1 and version != 3 else 144) * bits // hertz + padding, kind


def samples_of(kind: tuple) -> int:
    """Returns the number of samples of a frame."""
    layer = kind[0] >> 1 & 3
    return 384 if layer == 3 else 576 if layer == 1 and kind[0] & 0x18 != 0x18 else 1152


def _free_size(reader: Reader, place: int, head: bytes) -> int:
    """Returns the size of frames of free bit rate, by the distance of three of them; 0: not found"""
    other, padding = place + 24, (head[2] >> 1 & 1) * (4 if head[1] & 6 == 6 else 1)
    while (other := reader.find(b"\xff", other, min(place + 8192, reader.size))) >= 0:
        frame = mpeg_frame(reader.take(other, 4))
        if frame is not None and not frame[0] and frame[1] == mpeg_frame(head)[1]:
            size = other - place - padding
            third = mpeg_frame(reader.take(other + mpeg_frame(reader.take(other, 4), size)[0], 4))
            if third is not None and third[1] == frame[1]:
                return size
        other += 1
    return 0


def _side_size(head: bytes) -> int:
    """Returns the bytes of the side information of a frame of layer III."""
    is_mono = head[3] >= 0xC0
    return (17 if is_mono else 32) if head[1] & 0x18 == 0x18 else (9 if is_mono else 17)


def _tag_place(frame: bytes) -> int:
    """Returns the place of Xing or Info in a first frame without sound; -1: it has none."""
    place = 4 + _side_size(frame)
    return next((p for p in (place, place + 2) if frame[p : p + 4] in (b"Xing", b"Info")), -1)


def _forget_padding(tag: bytearray, field: int):
    """Sets the number of samples that LAME added at the end to 0: the end is another."""
    flags = tag[field + 7]
    place = field + 8 + 4 * (flags & 1) + 2 * (flags & 2) + 25 * (flags & 4) + (flags & 8) // 2 + 22
    if place + 1 < len(tag):
        tag[place], tag[place + 1] = tag[place] & 0xF0, 0


# A count of frames, and a delay and padding as LAME gives them: mpg123 takes PHASES samples off the beginning (4079,
# and 529 of its own) and none off the end.
MADE_TAG = b"Info\0\0\0\1" + bytes(4) + b"LAME3.100" + bytes(12) + b"\xfe\xf2\x11" + bytes(12)
EMPTY_ID3 = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10)
BIT_RATES = {  # (is MPEG-1, layer: 3 is I) -> kbit/s
    (True, 3): range(0, 449, 32),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}

LOOKS = {
    b"RIFF": look_at_riff,
    b"RIFX": look_at_riff,
    b"RF64": look_at_riff,
    b"BW64": look_at_riff,
    b"FORM": look_at_aiff,
    b"caff": look_at_caf,
    b"riff": look_at_w64,
    b".snd": look_at_au,
    b"dns.": look_at_au,
    b"fLaC": look_at_flac,
    b"OggS": look_at_ogg,
}
