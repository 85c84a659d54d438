"""Decodes m4a, aac, webm, amr, wma and other formats of phones and browsers with PyAV: the extra `[formats]`."""

import collections
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..errors import InputError

# (place, first bytes, demuxer, what it is). It is named, not guessed: some demuxers open other files or addresses.
MAGIC = (
    (4, (b"ftyp", b"moov", b"mdat", b"wide"), "mov", "MPEG-4 file"),
    (0, b"\x1a\x45\xdf\xa3", "matroska", "WebM or Matroska file"),
    (0, b"#!AMR", "amr", "AMR file"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "WMA file"),
    (0, (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9"), "aac", "AAC file"),
    (0, b"FLV\x01", "flv", "Flash file"),
    (8, b"AVI ", "avi", "AVI file"),
    (0, b"wvpk", "wv", "WavPack file"),
    (0, b"MAC ", "ape", "Monkey's Audio file"),
    (0, b"TTA1", "tta", "TTA file"),
    (0, b"\x0b\x77", "ac3", "AC-3 file"),
    (0, b".RMF", "rm", "RealAudio file"),
    (0, b"MPCK", "mpc8", "Musepack file"),
    (0, b"\x00\x00\x01\xba", "mpeg", "MPEG video"),
    (0, b"G", "mpegts", "MPEG transport stream"),  # and again after 188 bytes
    # Codecs that libsndfile does not know, in its containers.
    (0, b"RIFF", "wav", "WAV file"),
    (0, b"OggS", "ogg", "Ogg file"),
    (0, b"caff", "caf", "CAF file"),
    (0, b"FORM", "aiff", "AIFF file"),
)
NATIVE = ("wav", "ogg", "caf", "aiff")  # of libsndfile; PyAV reads more codecs in them
KEPT_S = 40  # seconds before a stretch that stay decoded: the next one begins in the overlap of their windows


def find_format(head: bytes) -> tuple[str, str] | None:
    """Returns PyAV's name of a file's format by its first 200 bytes, and what to call it."""
    for place, magic, name, kind in MAGIC:
        if head.startswith(magic, place) and (name != "mpegts" or head[188:189] == b"G"):
            return name, kind
    return None


class Decoder:
    """
    Decodes the first audio stream of a file, from its beginning: frames depend on those before them.

    Raises:
        InputError: PyAV is not installed.
        ValueError: PyAV cannot open the file, or it has no sound.
    """

    def __init__(self, file: BinaryIO, name: str, kind: str):
        try:
            import av  # here: an extra
        except ImportError:
            raise InputError(
                f'{kind}, which needs PyAV: pip install "modeling-dual-ssast[formats]", or convert it to wav or flac'
            ) from None
        file.seek(0)
        self.av, self.name = av, name
        # Of `read`: what is decoded next, what is kept, and which samples that is.
        self.waiting, self.kept, self.first, self.end = None, collections.deque(), 0, 0
        try:
            self.container = av.open(file, mode="r", format=name, metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{kind}: {getattr(error, 'strerror', None) or error}") from None
        if not self.container.streams.audio or not self.container.streams.audio[0].codec_context:
            self.container.close()
            raise ValueError(f"{kind} without a sound track that can be decoded")
        if self.container.streams.audio[0].codec_context.name.startswith("pcm_") and name in NATIVE:
            self.container.close()  # a damaged header: libsndfile reads those in order
            raise ValueError(f"{kind} with a damaged header")

    def close(self):
        self.container.close()

    def blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        """
        Yields float32 (samples, channels) and the sampling rate in Hz, always those of the first block. What is damaged
        is left out.
        """
        stream = self.container.streams.audio[0]
        rate = layout = resampler = own = None
        for frame in self._frames(stream):
            if rate is None:
                rate, layout = frame.sample_rate, frame.layout.name
            if own != (frame.format.name, frame.layout.name, frame.sample_rate):
                own = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = self.av.AudioResampler(format="flt", layout=layout, rate=rate)
            frame.pts = None
            for part in resampler.resample(frame):
                yield part.to_ndarray().reshape(-1, len(part.layout.channels)), rate

    def _frames(self, stream) -> Iterator:
        packets = self.container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except self.av.error.EOFError:
                return
            except self.av.error.InvalidDataError:
                continue
            except self.av.FFmpegError:  # the end of what can be read
                return

    def claimed_s(self) -> float | None:
        """Returns the length in seconds in the header of an MPEG-4 file; other headers guess."""
        stream = self.container.streams.audio[0]
        if not stream.duration or self.name != "mov":
            return None
        return float(stream.duration * stream.time_base)

    def count(self) -> tuple[int, int, int]:
        """Returns the sampling rate in Hz, the channels and the number of samples, by decoding the whole file."""
        block, rate, total = np.zeros((0, 0)), 0, 0
        for block, rate in self.blocks():  # noqa: B007
            total += len(block)
        return rate, block.shape[1], total

    def read(self, start: int, stop: int) -> np.ndarray:
        """
        Returns samples `start` to `stop`: float32 (samples, channels). Later calls go on from there; they may begin a
        little earlier, but not before `first`.
        """
        self.waiting = self.waiting or self.blocks()
        while self.end < stop:
            block, rate = next(self.waiting, (None, 0))
            if block is None:
                break
            self.kept.append(block)
            self.end += len(block)
            while self.first + len(self.kept[0]) <= start - KEPT_S * rate:
                self.first += len(self.kept.popleft())
        if not self.kept:
            return np.zeros((0, 1), dtype=np.float32)
        return np.concatenate(self.kept)[start - self.first : stop - self.first]
