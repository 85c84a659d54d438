"""Reads what a file holds, at its own rate: by libsndfile where it can, by PyAV else, link by link."""

import contextlib
import functools
import io
import os
import stat
import threading
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from ..errors import InputError
from .containers import Link, Pieces, Reader, Survey, survey, survey_after_junk
from .formats import NATIVE, Decoder, find_format

LOWEST_RATE, HIGHEST_RATE = 500, 20_000_000  # Hz; a damaged header that says 3 Hz makes hours of seconds
UNKNOWN_FRAMES = 2**48  # libsndfile reports 2 ** 63 - 1 where a header lacks the length
# The most samples per channel that a byte can hold, where libsndfile may believe a header. ALAC: packets of 4096.
MOST_PER_BYTE, MOST_PER_ALAC_BYTE = 8, 4096
# What decoders raise for damaged files; soundfile's error is a RuntimeError.
FAULTS = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
NOT_RECOGNISED = 1  # libsndfile's number of that error
SAME_S = 0.05  # lengths in seconds that differ by less are the same: frames of MP3, delays of encoders
SAME_IN_VIDEOS_S = 0.5  # a sound track may begin later than the pictures
OPUS_S = 5.0  # seconds after which a decoder of Opus no longer depends on what came before
CUT = "the file is cut off before its first samples"
NO_FILES = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class Part(NamedTuple):
    """
    Says what libsndfile finds in a link.

    Args:
        rate: sampling rate in Hz
        frames: samples per channel
        can_seek: libsndfile finds samples without decoding those before
    """

    link: Link
    rate: int
    channels: int
    frames: int
    can_seek: bool

    def frames_at(self, rate: int) -> int:
        """Returns the number of samples per channel at another rate in Hz."""
        return self.frames if rate == self.rate else round(self.frames * rate / self.rate)


class Recording(NamedTuple):
    """
    Says what a file holds.

    Args:
        rate: sampling rate in Hz
        frames: samples per channel
        parts: links that libsndfile reads; none: PyAV reads the file
        pyav: PyAV's name of the format, and what to call it
        remark: how header and content disagree; empty: they agree
    """

    rate: int
    channels: int
    frames: int
    parts: tuple[Part, ...] = ()
    pyav: tuple[str, str] = ("", "")
    remark: str = ""


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """
    Opens a file to be read.

    Raises:
        InputError: a missing or empty file, one without permission, or what is no file.
    """
    try:
        mode = os.stat(path).st_mode
        for is_kind, kind in NO_FILES:
            if is_kind(mode):  # a pipe would wait for its writer
                raise InputError(f"{path}: not readable as audio (it is a {kind}, not a file); name an audio file")
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except PermissionError:
        raise InputError(f"{path}: permission denied; change the file's permissions or remove the entry") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; correct the path or remove the entry") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not readable as audio ({reason}); correct the path or remove the entry") from None
    with file:
        yield file


def examine(file: BinaryIO, path: str | None = None) -> Recording:
    """
    Finds what a file holds: its length is that of what can be decoded. What was found of a file at `path` is kept as
    long as the file is the same.

    Raises:
        InputError: PyAV is needed and not installed.
        ValueError, soundfile.LibsndfileError: the file cannot be read, or its header claims what it cannot hold.
    """
    if path is None:
        return _examine(file)
    about = os.fstat(file.fileno())
    return _examine_once(_Handle(file), path, about.st_size, about.st_mtime_ns, about.st_ino)


class _Handle:
    """Wraps an open file, so that it is no part of what identifies the file in the cache."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def __eq__(self, other):
        return isinstance(other, _Handle)

    def __hash__(self):
        return 0


@functools.lru_cache(maxsize=4096)
def _examine_once(handle: _Handle, path: str, size: int, time: int, node: int) -> Recording:
    file, handle.file = handle.file, None  # the cache keeps the handle
    return _examine(file)


def can_open(file: BinaryIO) -> bool:
    """Returns whether libsndfile or PyAV can open a file."""
    try:
        opened = _open(Reader(file))
        if opened.pyav is None:
            return any(part.frames for part in opened.parts)
        with _pyav(file, opened.pyav):
            return True
    except (*FAULTS, InputError):
        return False


class _Opened(NamedTuple):
    """Holds what libsndfile can read of a file; else what PyAV may read, and why libsndfile cannot."""

    survey: Survey
    parts: list[Part]
    pyav: tuple[str, str] | None = None
    reason: str = ""


def _open(reader: Reader) -> _Opened:
    found = survey(reader)
    try:
        return _Opened(found, _parts(reader, found.links))
    except RuntimeError as error:
        pyav = find_format(reader.take(0, 200))
        if pyav is not None:
            return _Opened(found, [], pyav, reason_of(error))
        found = survey_after_junk(reader)
        if found is None:
            raise
        return _Opened(found, _parts(reader, found.links))


def _examine(file: BinaryIO) -> Recording:
    reader = Reader(file)
    found, parts, pyav, reason = _open(reader)
    if pyav is not None:
        try:
            recording = _examine_by_pyav(file, pyav)
            rate, length_s = recording.rate, recording.frames / recording.rate
            # A header that libsndfile refuses may still say how much is missing.
            return recording._replace(remark=recording.remark or _remark_on_length(found, None, length_s, rate))
        except (InputError, ValueError) as other:
            if pyav[0] not in NATIVE:
                raise
            missing = f"; {other}" if isinstance(other, InputError) else ""
            raise ValueError(CUT if found.is_cut else reason + missing) from None
    rate, channels = parts[0].rate, parts[0].channels
    total = sum(part.frames_at(rate) for part in parts)
    if not total and found.is_cut:
        raise ValueError(CUT)
    if total >= UNKNOWN_FRAMES:
        raise ValueError("its header gives no length, and no sample follows")
    most = found.most_frames
    if most is None and not found.links[0].pieces:
        most = reader.size * (MOST_PER_ALAC_BYTE if reader.take(0, 4) == b"caff" else MOST_PER_BYTE)
    if most is not None and total > most:
        raise ValueError(f"its header gives {total / rate:.0f} s, which its {reader.size} bytes cannot hold")
    _check_rate(rate)
    return Recording(rate, channels, total, tuple(parts), remark="; ".join(_remarks(found, parts, total)))


def _remarks(found: Survey, parts: list[Part], total: int) -> list[str]:
    """Returns how header and content disagree. total: samples of all parts at the rate of the first"""
    rate = parts[0].rate
    first_s, total_s = parts[0].frames / rate, total / rate
    claimed_s = first_s if found.is_joined else None if found.claimed is None else found.claimed * total_s
    remarks = [remark] if (remark := _remark_on_length(found, claimed_s, total_s, rate)) else []
    lost = len(found.links) - len(parts)
    if lost and total:
        remarks.append(f"{lost} of its {len(found.links)} parts cannot be read")
    if any(part.link.has_gaps for part in parts):
        remarks.append(f"some of its pages are damaged, {total_s:.2f} s are left")
    if len({(part.rate, part.channels) for part in parts}) > 1:
        kinds = dict.fromkeys(f"{part.rate} Hz, {part.channels} channels" for part in parts)
        remarks.append(f"its parts differ ({'; '.join(kinds)}), all are converted to the first")
    return remarks


def _remark_on_length(found: Survey, claimed_s: float | None, total_s: float, rate: int) -> str:
    claimed_s = claimed_s if found.claimed_frames is None else found.claimed_frames / rate
    if claimed_s is not None and abs(claimed_s - total_s) > SAME_S:
        return disagreement(claimed_s, total_s)
    return f"the file is cut off after {total_s:.2f} s" if found.is_cut else ""


def disagreement(claimed_s: float, found_s: float) -> str:
    """Returns the remark on a length in the header and another in the file, in seconds."""
    return f"the header gives {claimed_s:.2f} s, the file holds {found_s:.2f} s"


def _check_rate(rate: int):
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"its header gives a sampling rate of {rate} Hz, not {LOWEST_RATE} to {HIGHEST_RATE} Hz")


def reason_of(error: Exception) -> str:
    """Returns the message of a decoder's error, without the name of the file and the full stop."""
    return (getattr(error, "error_string", None) or str(error)).strip().rstrip(".")


def _parts(reader: Reader, links: tuple[Link, ...]) -> list[Part]:
    parts = []
    for link in links:
        try:
            with _open_link(reader, list(link.pieces)) as file:
                if file.format == "MP3" and not link.pieces:  # found in noise, where no two frames follow each other
                    raise soundfile.LibsndfileError(NOT_RECOGNISED)
                frames = file.frames if link.length is None else link.length
                is_alac = file.subtype.startswith("ALAC")  # damaged packets shift what follows them
                if link.has_gaps or is_alac:
                    frames = sum(map(len, file.blocks(2**16, dtype="float32")))
                parts.append(Part(link, file.samplerate, file.channels, frames, file.seekable() and not is_alac))
        except soundfile.LibsndfileError:
            if len(links) == 1 or (not parts and link is links[-1]):
                raise
    return [part for part in parts if part.frames] or parts[:1]


@contextlib.contextmanager
def _pyav(file: BinaryIO, pyav: tuple[str, str]) -> Iterator[Decoder]:
    with _named_faults(pyav), contextlib.closing(Decoder(file, *pyav)) as decoder:
        yield decoder


@contextlib.contextmanager
def _named_faults(pyav: tuple[str, str]) -> Iterator[None]:
    try:
        yield
    except (InputError, ValueError):
        raise
    except Exception as error:  # of many kinds, for damaged files
        raise ValueError(f"{pyav[1]}: {error}") from None


def _examine_by_pyav(file: BinaryIO, pyav: tuple[str, str]) -> Recording:
    with _pyav(file, pyav) as decoder:
        rate, channels, frames = decoder.count()
        claimed_s = decoder.claimed_s()
    if not frames:
        raise ValueError(f"{pyav[1]} without sound that can be decoded")
    _check_rate(rate)
    differ = claimed_s is not None and abs(claimed_s - frames / rate) > SAME_IN_VIDEOS_S
    remark = disagreement(claimed_s, frames / rate) if differ else ""
    return Recording(rate, channels, frames, pyav=pyav, remark=remark)


def _open_link(reader: Reader, pieces: list) -> soundfile.SoundFile:
    if pieces:
        return soundfile.SoundFile(Pieces(reader, pieces))
    reader.file.seek(0)
    if isinstance(reader.file, io.BytesIO):
        return soundfile.SoundFile(reader.file)
    if os.name == "nt":  # its libraries have descriptors of their own
        return soundfile.SoundFile(Pieces(reader, [(0, reader.size)]))
    return soundfile.SoundFile(reader.file.fileno(), closefd=False)  # without a name: no guess by the extension


def read(file: BinaryIO, recording: Recording, start: int, stop: int) -> np.ndarray:
    """Decodes samples `start` to `stop`: float32 (samples, channels), equal to that slice of the whole recording."""
    if not recording.parts:
        with _pyav(file, recording.pyav) as decoder:
            return decoder.read(start, stop)
    reader, found, place = Reader(file), [], 0
    for part in recording.parts:
        length = part.frames_at(recording.rate)
        first, last = max(start - place, 0), min(stop - place, length)
        place += length
        if first >= last:
            continue
        if part.rate == recording.rate:
            samples = _read_part(reader, part, first, last)
        else:
            samples = soxr.resample(_read_part(reader, part, 0, part.frames), part.rate, recording.rate)[first:last]
        if part.channels != recording.channels:
            samples = np.repeat(samples.mean(axis=1, keepdims=True), recording.channels, axis=1)
        found.append(samples)
    return found[0] if len(found) == 1 else np.concatenate(found or [np.zeros((0, 1), dtype=np.float32)])


class Following:
    """Reads as `read` does, one stretch of a file after the other; PyAV decodes the file once, and not each time."""

    def __init__(self):
        self.lock, self.decoder, self.file = threading.Lock(), None, None

    def __call__(self, file: BinaryIO, recording: Recording, start: int, stop: int) -> np.ndarray:
        if recording.parts:
            return read(file, recording, start, stop)
        with self.lock, _named_faults(recording.pyav):
            if self.decoder is None or start < self.decoder.first:
                self.close()
                is_buffer = isinstance(file, io.BytesIO)
                # The caller closes the file after each stretch.
                self.file = io.BytesIO(file.getbuffer()) if is_buffer else os.fdopen(os.dup(file.fileno()), "rb")
                self.decoder = Decoder(self.file, *recording.pyav)
            return self.decoder.read(start, stop)

    def close(self):
        for opened in filter(None, (self.decoder, self.file)):
            opened.close()
        self.decoder = self.file = None


def _read_part(reader: Reader, part: Part, start: int, stop: int) -> np.ndarray:
    near = part.link.near(reader, start) if start else None
    if near is not None:
        pieces, first = near
        with _open_link(reader, pieces) as file:
            first = part.frames - file.frames if first is None else first
            if first <= start:
                return file.read(stop - first, dtype="float32", always_2d=True)[start - first :]
    with _open_link(reader, list(part.link.pieces)) as file:
        first = start if part.can_seek and near is None else 0
        if first and file.subtype == "OPUS":
            first = max(start - round(OPUS_S * part.rate), 0)
        if first:
            file.seek(first)
        return file.read(stop - first, dtype="float32", always_2d=True)[start - first :]
