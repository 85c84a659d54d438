"""Encodes recordings in every format that soundfile and PyAV write, and decodes them a second time with PyAV."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
from audio_files import encoded

from training.data.audio import audio_seconds, decode_audio
from training.data.containers.ogg import ogg_checksum

# Longest block of a codec at usual rates, in seconds, with the encoder's delay that one decoder may keep: AMR, Opus,
# AAC and WMA.
BLOCK_S = 0.15
# libsndfile cannot write these, or not to memory.
# DWVW: soundfile cannot read what it writes.
NOT_WRITTEN = {
    *(("AIFF", f"DWVW_{bits}") for bits in (12, 16, 24)),
    *(("MP3", f"MPEG_LAYER_{layer}") for layer in ("I", "II")),
    ("WAV", "MPEG_LAYER_III"),
}
EXTENSIONS = {
    "MPC2K": "mpc",
    "IRCAM": "sf",
    "WAVEX": "wav",
    "RF64": "rf64",
    "NIST": "sph",
    "MAT4": "mat",
    "MAT5": "mat",
}
# libsndfile's formats that lack a length in samples or seconds to compare with, or round it.
WITHOUT_LENGTH = {
    "XI",
    "SDS",
    "WVE",
    "HTK",
    "SVX",
    "MPC2K",
    "PVF",
    "PAF",
    "IRCAM",
    "AVR",
    "MAT4",
    "MAT5",
    "VOC",
    "NIST",
}

DECLARING = ("AIFF", "AU", "CAF", "FLAC", "RF64", "W64", "WAV", "WAVEX", "ipod", "mp4", "mov")


class Encoding(NamedTuple):
    """Names a container and a codec; `rate` and `channels` limit what they take (`None`: any)."""

    container: str
    codec: str
    extension: str
    writer: str  # soundfile or av
    rate: int | None = None
    channels: int | None = None
    options: dict | None = None  # of PyAV's container

    @property
    def declares(self) -> bool:
        """Returns whether the file says how long it is, so that a reader can notice that its end is missing."""
        return self.container in DECLARING or self[:2] == ("MP3", "MPEG_LAYER_III")


def _of_soundfile() -> list[Encoding]:
    found = []
    for container in soundfile.available_formats():
        if container in ("RAW", "SD2"):  # no header; a second file
            continue
        for codec in soundfile.available_subtypes(container):
            if (container, codec) in NOT_WRITTEN:
                continue
            extension = EXTENSIONS.get(container, container.lower())
            rate = 16000 if codec == "OPUS" else None
            is_mono = container in ("HTK", "SVX", "SDS", "WVE", "XI") or codec.startswith(
                ("DWVW", "G72", "GSM", "NMS", "VOX")
            )
            found.append(Encoding(container, codec, extension, "soundfile", rate, 1 if is_mono else None))
    return found


ENCODINGS = (
    *_of_soundfile(),
    Encoding("ipod", "aac", "m4a", "av"),
    Encoding("mp4", "alac", "mp4", "av"),
    Encoding("mov", "pcm_s16le", "mov", "av"),
    Encoding("adts", "aac", "aac", "av"),
    Encoding("webm", "libopus", "webm", "av", rate=48000),
    Encoding("matroska", "libopus", "mka", "av", rate=48000),
    Encoding("asf", "wmav2", "wma", "av", rate=44100),
    Encoding("amr", "libopencore_amrnb", "amr", "av", rate=8000, channels=1),
    Encoding("3gp", "libopencore_amrnb", "3gp", "av", rate=8000, channels=1),
    Encoding("mp3", "libmp3lame", "mp3", "av", options={"write_xing": "0"}),
    Encoding("ogg", "libopus", "opus", "av", rate=48000),
    Encoding("wv", "wavpack", "wv", "av"),
)


def encode(samples: np.ndarray, rate: int, encoding: Encoding) -> bytes:
    """Encodes float32 (samples, channels); the same input gives the same bytes, but for the time that some store."""
    if encoding.writer == "av":
        return encoded_by_pyav(samples, rate, encoding.codec, encoding.container, **(encoding.options or {}))
    content = encoded(samples, rate, encoding.container, encoding.codec)
    return _with_fixed_serial(content) if encoding.container == "OGG" else content


def encoded_by_pyav(samples: np.ndarray, rate: int, codec: str, format: str, **options) -> bytes:
    """Returns a file of PyAV as bytes. samples: float32 (samples,) or (samples, channels); options: of the container"""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options={"fflags": "+bitexact", **options}) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo" if samples.shape[1:] == (2,) else "mono")
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.bit_rate = 12200 if "amr" in codec else 64000
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1).copy(), format="flt", layout=stream.layout)
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


def _with_fixed_serial(content: bytes) -> bytes:
    """Numbers the stream of an Ogg file 1: libsndfile numbers it by the clock."""
    fixed, place = bytearray(content), 0
    while place < len(fixed):
        num_segments = fixed[place + 26]
        end = place + 27 + num_segments + sum(fixed[place + 27 : place + 27 + num_segments])
        fixed[place + 14 : place + 18] = (1).to_bytes(4, "little")
        fixed[place + 22 : place + 26] = ogg_checksum(bytes(fixed[place:end]))
        place = end
    return bytes(fixed)


def _frames_by_pyav(content: bytes, format: str | None) -> Iterator[av.AudioFrame]:
    """Yields what a second decoder finds; it goes on after damaged packets."""
    with av.open(io.BytesIO(content), format=format) as container:
        for packet in container.demux(audio=0):
            with contextlib.suppress(av.error.InvalidDataError):
                yield from packet.decode()


def length_by_pyav(content: bytes, format: str | None = None) -> int:
    """Returns the number of samples that PyAV decodes."""
    return sum(frame.samples for frame in _frames_by_pyav(content, format))


def seconds_by_pyav(content: bytes) -> float | None:
    """Returns the seconds that PyAV decodes before it stops; `None` where it can decode nothing."""
    seconds = 0.0
    with contextlib.suppress(av.error.FFmpegError, IndexError, ValueError):
        for frame in _frames_by_pyav(content, None):
            seconds += frame.samples / frame.sample_rate
    return seconds or None


def check_reading(path: str, seconds: float | None, cut: bool, warnings: list):
    """
    Checks that a recording's length and parts are those of what is in the file, or that a warning says otherwise.

    Args:
        seconds: length before any damage; `None`: unknown
        cut: the end of the file is missing, and its header tells so
        warnings: of the reading; they may come while it runs

    Raises:
        AssertionError: something else was read without a warning.
        InputError: the file cannot be read.
    """
    whole, rate = decode_audio(path)
    decoded = len(whole) / rate
    claimed = audio_seconds(path)
    assert abs(claimed - decoded) <= BLOCK_S, f"audio_seconds gives {claimed:g} s, but {decoded:g} s are decoded"
    start, end = decoded / 4, decoded * 3 / 4
    part, _ = decode_audio({"path": path, "start": start, "end": end})
    first = round(start * rate)
    same = np.array_equal(part, whole[first : first + max(round(end * rate) - first, 1)], equal_nan=True)
    assert same, f"the part from {start:g} to {end:g} s differs from the whole"
    if warnings or seconds is None or abs(decoded - seconds) <= BLOCK_S:
        return
    lost = cut and decoded < seconds  # one sample fills a block of its codec: more than was written loses nothing
    assert not lost, f"{decoded:g} s of {seconds:g} s are decoded without a warning"
    # Damage can make another valid recording. A second decoder tells that from a recording that was cut.
    second = seconds_by_pyav(Path(path).read_bytes())
    assert second is None or abs(decoded - second) <= BLOCK_S, f"{decoded:g} s are decoded, {second:g} s by PyAV"
