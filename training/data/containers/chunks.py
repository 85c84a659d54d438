"""
Finds the samples of WAV, AIFF, CAF, W64 and AU: they lie in a chunk.

The headers of these files are written last, and so are wrong where a recorder stopped, a download broke off, or the
file is longer than 4 GiB.
"""

import struct

from .common import BLOCK, UNKNOWN, Link, Reader, Survey, without_tags
from .mpeg import look_at_mpeg

MOST_BYTES = 1 << 62  # a greater size of 64 bits is damaged, or was not known yet


def look_at_riff(reader: Reader, start: int) -> Survey | None:
    joined, place = [], start
    while (found := _one_riff(reader, place)) is not None and found.is_joined:
        joined += found.links
        place = found.links[0].pieces[0][1]
    if not joined:
        return found
    last = [link if link.pieces else Link(((place, reader.size),)) for link in (found or Survey()).links]
    return Survey((*joined, *last), is_joined=True)


def _one_riff(reader: Reader, start: int) -> Survey | None:
    """Returns a survey of the recording at `start`; with `is_joined`, of nothing but that one: others follow."""
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
            return Survey((Link(((start, after),)),), is_joined=True)
        stop, is_readable = without_tags(reader, first), False
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
        begin, end = chunks[b"fmt "]
        head = _riff_head(reader.take(begin, end - begin), size, size_format[0])
    else:
        head = reader.take(start, place + 4 - start) + struct.pack(size_format, min(size, 256 ** (head_size - 4) - 1))
        head += reader.take(place + head_size, inside)
    return Survey((Link((head, (first, stop))),), claimed)


def _riff_head(about: bytes, size: int, order: str) -> bytes:
    """Returns the header of a WAV file up to its samples. about: its fmt chunk; size: bytes of samples"""
    if size < UNKNOWN:
        form = b"RIFX" if order == ">" else b"RIFF"
        riff_size, data_size = (struct.pack(order + "I", count) for count in (12 + len(about) + size, size))
        return form + riff_size + b"WAVE" + about + b"data" + data_size
    sizes = struct.pack("<IQQQI", 28, 48 + len(about) + size, size, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVEds64" + sizes + about + b"data\xff\xff\xff\xff"


def _after_chunk(reader: Reader, content: int, size: int, form: bytes) -> tuple[int, bool]:
    """Returns the place of the next chunk, and whether a byte of padding stands before it where it must."""
    end = content + size
    if size % 2 == 0 or form == b"caff":
        return end, True
    return (end, False) if _is_chunk_name(reader.take(end, 4)) else (end + 1, True)


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= letter < 127 for letter in name) and name[:3] not in (b"TAG", b"APE")
