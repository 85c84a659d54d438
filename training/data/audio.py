"""Decodes wav, flac, ogg, opus and mp3 with soundfile and resamples with soxr, without torchcodec or ffmpeg."""

import contextlib
import io
import os
from collections.abc import Mapping

import fsspec
import numpy as np
import soundfile
import soxr

from ..errors import InputError

NAMELESS = "(bytes without a name)"
UNKNOWN_FRAMES = 2**48  # libsndfile reports 2 ** 63 - 1 where a header lacks the length

# A clip in a table: a path, or the {"path": ..., "bytes": ...} that `datasets` stores. A segment of a recording has
# `start` or `end` too, in seconds; `None`: the recording's own.
AudioSource = str | Mapping


def audio_name(source: AudioSource) -> str:
    """Returns the name of a clip for messages and tables; a segment's has its times in seconds: clip.wav#t=1.5,3"""
    if isinstance(source, str):
        return source
    return segment_name(source.get("path") or NAMELESS, source.get("start"), source.get("end"))


def segment_name(name: str, start: float | None, end: float | None) -> str:
    """Returns the name of a recording, with the times of a segment (seconds) as a media fragment: clip.wav#t=1.5,3"""
    if start is None and end is None:
        return name
    return f"{name}#t={start or 0.0:g}" + ("" if end is None else f",{end:g}")


def read_audio(source: AudioSource, sampling_rate: int) -> np.ndarray:
    """
    Decodes a clip, or only its segment of a recording, averages the channels and resamples.

    Returns:
        float32 (samples,) at `sampling_rate` Hz, at least one sample

    Raises:
        InputError: a missing, unreadable or empty file, a segment outside it, or NaN or infinite samples.
    """
    samples, rate = decode_audio(source)
    samples = mix_down(source, samples)
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
    # A single sample at a high rate can resample to nothing.
    return samples if len(samples) else np.zeros(1, dtype=np.float32)


def decode_audio(source: AudioSource) -> tuple[np.ndarray, int]:
    """
    Decodes a clip at its own sampling rate, with all its channels.

    Returns:
        float32 (samples, channels), at least one sample, and the sampling rate in Hz

    Raises:
        InputError: a missing, unreadable or empty file, or a segment outside it.
    """
    name = audio_name(source)
    with _explained(source), soundfile.SoundFile(_open(source)) as file:
        rate = file.samplerate
        start, length = _segment(source, name, rate, file.frames)
        if start:
            file.seek(start)
        samples = file.read(length, dtype="float32", always_2d=True)  # (samples, channels)
    if not len(samples):
        raise InputError(f"{name}: holds no samples; remove it or record it again")
    return samples, rate


def mix_down(source: AudioSource, samples: np.ndarray) -> np.ndarray:
    """
    Averages the channels: (samples, channels) -> (samples,)

    Raises:
        InputError: NaN or infinite samples; names `source`.
    """
    samples = samples.mean(axis=1)
    if not np.isfinite(samples).all():
        count = int((~np.isfinite(samples)).sum())
        raise InputError(f"{audio_name(source)}: holds {count} NaN or infinite samples; repair or remove it")
    return samples


def check_audio(source: AudioSource):
    """Checks a clip by its header, without decoding it; raises `InputError` for most damaged files."""
    audio_seconds(source)


def audio_seconds(source: AudioSource) -> float:
    """
    Returns the length of a clip in seconds, from its header.

    Raises:
        InputError: a missing, unreadable or empty file, or a segment outside it.
    """
    name = audio_name(source)
    with _explained(source):
        info = soundfile.info(_open(source))
    if not info.frames:
        raise InputError(f"{name}: holds no samples; remove it or record it again")
    start, length = _segment(source, name, info.samplerate, info.frames)
    rest = info.frames - start
    return (rest if length < 0 else min(length, rest)) / info.samplerate


def _segment(source: AudioSource, name: str, rate: int, num_samples: int) -> tuple[int, int]:
    """Returns the first sample of a clip in its recording, and its number of samples (-1: to the end)."""
    if num_samples >= UNKNOWN_FRAMES:  # libsndfile cannot read such a file
        raise InputError(f"{name}: does not tell its length, as if it was written to a pipe; write it to a file again")
    start, end = (None, None) if isinstance(source, str) else (source.get("start"), source.get("end"))
    start_s = start or 0.0
    if start_s < 0 or (end is not None and end <= start_s):
        raise InputError(f"{name}: a part from {start_s:g} to {end:g} s holds nothing; correct its times (in seconds)")
    if start_s * rate >= max(num_samples, 1):
        raise InputError(
            f"{name}: begins after the recording's end at {num_samples / rate:g} s; correct its times (in seconds)"
        )
    first = round(start_s * rate)
    return first, -1 if end is None else max(round(end * rate) - first, 1)


def _open(source: AudioSource):
    if isinstance(source, str):
        return source
    if not source.get("bytes") and (source.get("bytes") is not None or not source.get("path")):
        raise InputError(f"{audio_name(source)}: holds no audio; record it again or leave it out")
    if source.get("bytes") is not None:
        return io.BytesIO(source["bytes"])
    if "://" in (source["path"] or ""):  # a file of a streamed data set has an address
        with fsspec.open(source["path"], "rb") as file:
            return io.BytesIO(file.read())
    return source["path"]


@contextlib.contextmanager
def _explained(source: AudioSource):
    name = source if isinstance(source, str) else audio_name({"path": source.get("path")})
    try:
        yield
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        is_file = isinstance(source, str) or source.get("bytes") is None
        if is_file and not name.startswith("(") and not os.path.exists(name) and not isinstance(error, TypeError):
            raise InputError(f"{name}: no such file; correct the path or remove the entry") from None
        if os.path.isfile(name) and os.path.getsize(name) == 0:
            raise InputError(f"{name}: the file is empty; remove it or copy it again") from None
        reason = getattr(error, "error_string", None) or str(error)
        raise InputError(
            f"{name}: not readable as audio ({reason.strip().rstrip('.')}); convert or remove it"
        ) from None


@contextlib.contextmanager
def datasets_without_torchcodec():
    """
    Lets `datasets` build and stream data sets with audio although torchcodec is not installed.

    `datasets` 4 and 5 call torchcodec even where nothing is decoded. Within this context its `Audio` feature keeps
    paths and bytes as they are; `read_audio` decodes them.
    """
    import datasets  # here: decoding alone does not need it

    original = datasets.Audio.encode_example, datasets.Audio.decode_example
    datasets.Audio.encode_example = lambda self, value: as_stored(value)
    datasets.Audio.decode_example = lambda self, value, token_per_repo_id=None: value
    try:
        yield
    finally:
        datasets.Audio.encode_example, datasets.Audio.decode_example = original


def as_stored(value) -> dict:
    """
    Returns a clip in any form that data sets have as {"bytes", "path"}: a path, bytes, {"path", "bytes"}, or
    {"array", "sampling_rate"}. Both are `None` where there is no audio, or samples that are none.
    """
    if isinstance(value, (str, os.PathLike)):
        return {"bytes": None, "path": os.fspath(value) or None}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value), "path": None}
    if not isinstance(value, Mapping):
        return {"bytes": None, "path": None}
    path = value.get("path") or None
    if value.get("bytes") is not None or value.get("array") is None:
        return {"bytes": value.get("bytes"), "path": path}
    buffer = io.BytesIO()
    try:
        samples = _as_floats(np.asarray(value["array"]))
        soundfile.write(buffer, samples, int(value["sampling_rate"]), format="WAV", subtype="FLOAT")
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, soundfile.SoundFileError):
        return {"bytes": None if path and os.path.exists(path) else b"", "path": path}
    return {"bytes": buffer.getvalue(), "path": path}


def _as_floats(samples: np.ndarray) -> np.ndarray:
    """Returns samples with channels in either order as float32 (samples, channels); integers are PCM."""
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if samples.dtype.kind in "iu":
        if samples.dtype == np.uint8:
            return (samples.astype(np.float32) - 128) / 128
        bits = 32 if samples.dtype.itemsize == 4 or np.abs(samples).max(initial=0) > 2**15 else 16
        return (samples / 2 ** (bits - 1)).astype(np.float32)
    return samples.astype(np.float32)
