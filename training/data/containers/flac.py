"""Finds the length of FLAC files: every frame has its number, so the last one says the length."""

import struct

from .common import BLOCK, Link, Reader, Survey, after_id3, without_tags

START = b"fLaC\0\0\0\x22"
MOST_SEARCHED = 1 << 24  # bytes, where a search costs more than it is worth
SMALLEST_FRAME = 10  # bytes: header, one constant subframe, checksum


def look_at_flac(reader: Reader, start: int) -> Survey | None:
    is_first = start == 0 or after_id3(reader, 0) == start  # libsndfile skips ID3 tags by itself
    stop = without_tags(reader, start)
    found = _one_flac(reader, start, stop)
    if found is None:
        return None
    link, frames, total, most_frames = found
    # Two of equal length, joined, end with the number that the first one claims.
    is_alone = stop - start > MOST_SEARCHED or reader.find(START, start + 4, stop) < 0
    if is_first and frames in (None, total) and is_alone:
        return Survey(most_frames=most_frames)
    starts = [start]
    while (another := reader.find(START, starts[-1] + 4, stop)) >= 0:
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
    most_frames = max(stop - first, 0) / SMALLEST_FRAME * max(largest, 16)
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
    size = 1 + int.from_bytes(head[4 + length : place], "big") if code in (6, 7) else BLOCK_SIZES[code]
    place += {12: 1, 13: 2, 14: 2}.get(head[2] & 0xF, 0)
    if not size or place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    return (number if head[1] & 1 else number * smallest), size


BLOCK_SIZES = (0, 192, *(576 << n for n in range(4)), 0, 0, *(256 << n for n in range(8)))


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
