"""
Finds the frames of MPEG audio (mp3, mp2), each with its own length. A first frame without sound may give their number.
"""

import dataclasses
import struct
from array import array
from collections.abc import Sequence

from .common import SEARCHED, UNKNOWN, Link, Piece, Pieces, Reader, Survey, after_id3

GROUP = 64  # frames: as many have one place in memory
PHASES = 4608  # samples, whole frames of each layer: the synthesis filter of mpg123 is in the same phase again, and so
# rounds in the same way
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


@dataclasses.dataclass(frozen=True)
class MpegLink(Link):
    """
    Holds the frames of one kind (`spans`, without what stands between them) behind a frame with their true number, and
    an empty ID3 tag, without which libsndfile knows MP3 by the file's name only.

    Args:
        tag: a frame without sound that gives the number of frames (Xing or Info); empty for layers I and II
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
        head = _largest(reader.take(self.spans[0][0], 4))
        silent = head.ljust(mpeg_frame(head)[0], b"\0")
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
    """
    Collects frames of one kind that follow each other in a file.

    Args:
        kind: as `mpeg_frame` returns it
        tag: as in `MpegLink`
        claimed: number of frames that the file gives; `None`: none
        is_free: frames of free bit rate
    """

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
            head = _largest(reader.take(spans[0][0], 4))
            tag = (head + bytes(_side_size(head)) + MADE_TAG).ljust(mpeg_frame(head)[0], b"\0")
        groups = array("q", () if self.is_free else self.groups)
        link = MpegLink(
            tag=tag, spans=spans, frames=self.frames, samples=samples_of(self.kind), groups=groups, is_own=not needs_tag
        )
        if self.is_free:
            pieces = [EMPTY_ID3, *spans]
        else:
            pieces = link.from_group(0, link._before(reader, 0) if needs_tag else b"")
        return dataclasses.replace(link, pieces=tuple(pieces))


def look_at_mpeg(reader: Reader, start: int, is_sure: bool = True) -> Survey | None:
    """
    Finds the frames from `start` on.

    Args:
        is_sure: the first bytes announce MPEG audio; else four frames must follow each other
    """
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
            place = after_id3(reader, place) if head[:3] == b"ID3" else place
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
    kind = (head[1] & 0x1E, head[2] & 0x0C, head[3] >= 0xC0)  # version and layer, sampling rate, is it mono
    padding = _padding(head)
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
    other, padding = place + 24, _padding(head)
    while (other := reader.find(b"\xff", other, min(place + 8192, reader.size))) >= 0:
        frame = mpeg_frame(reader.take(other, 4))
        if frame is not None and not frame[0] and frame[1] == mpeg_frame(head)[1]:
            size = other - place - padding
            third = mpeg_frame(reader.take(other + mpeg_frame(reader.take(other, 4), size)[0], 4))
            if third is not None and third[1] == frame[1]:
                return size
        other += 1
    return 0


def _padding(head: bytes) -> int:
    """Returns the bytes by which a frame is longer than its bit rate says."""
    return (head[2] >> 1 & 1) * (4 if head[1] & 6 == 6 else 1)


def _largest(head: bytes) -> bytes:
    """Returns the header of a frame of the same kind, without a checksum and of the highest bit rate."""
    return bytes((head[0], head[1] | 1, 0xE0 | head[2] & 0x0C, head[3]))


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
