"""Decodes wav, flac, ogg, opus and mp3 with soundfile and resamples with soxr, without torchcodec or ffmpeg."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import fsspec
import numpy as np
import soundfile
import soxr
from transformers.utils import logging

from ..errors import InputError
from . import recordings
from .recordings import FAULTS, Recording

logger = logging.get_logger(__name__)

NAMELESS = "(bytes without a name)"
HIGHEST = 2.0**31  # of 32-bit samples that were stored as numbers; usual ones are within -1 and 1

# A clip in a table: a path, or the {"path": ..., "bytes": ...} that `datasets` stores. A segment of a recording has
# `start` or `end` too, in seconds; `None`: the recording's own.
AudioSource = str | Mapping


def audio_name(source: AudioSource) -> str:
    """Returns the name of a clip for messages and tables; a segment's has its times in seconds: clip.wav#t=1.5,3"""
    if isinstance(source, str):
        return source
    return segment_name(source.get("path") or NAMELESS, source.get("start"), source.get("end"))


def _file_name(source: AudioSource) -> str:
    """Returns the name of the whole recording."""
    return source if isinstance(source, str) else audio_name({"path": source.get("path")})


def segment_name(name: str, start: float | None, end: float | None) -> str:
    """Returns the name of a recording, with the times of a segment (seconds) as a media fragment: clip.wav#t=1.5,3"""
    if start is None and end is None:
        return name
    return f"{name}#t={time_text(start or 0.0)}" + ("" if end is None else f",{time_text(end)}")


def time_text(time_s: float) -> str:
    """Returns a time in seconds as a text, to the microsecond: 12345.1 and 12345.14 are two times."""
    return f"{time_s:.6f}".rstrip("0").rstrip(".")


def read_audio(source: AudioSource, sampling_rate: int) -> np.ndarray:
    """
    Decodes a clip, or only its segment of a recording, averages the channels and resamples.

    Returns:
        float32 (samples,) at `sampling_rate` Hz, at least one sample

    Raises:
        InputError: a missing, unreadable or empty file, a segment outside it, or samples that are none.
    """
    samples, rate = decode_audio(source)
    samples = mix_down(source, samples)
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
        _check_range(source, samples, "after resampling")
    # A single sample at a high rate can resample to nothing.
    return samples if len(samples) else np.zeros(1, dtype=np.float32)


def num_samples(source: AudioSource, sampling_rate: int) -> int:
    """Returns the number of samples that `read_audio` gives, mostly without decoding them; raises as it does."""
    with _opened(source) as (_, recording):
        start, stop = _segment(source, recording)
        return max(int((stop - start) * sampling_rate / recording.rate + 0.5), 1)


def read_stretch(
    source: AudioSource, sampling_rate: int, start: int, stop: int, read: Callable = recordings.read
) -> np.ndarray:
    """
    Reads samples `start` to `stop` of a clip, and decodes little more than these. They equal those of `read_audio` but
    for rounding in the resampler.

    Args:
        read: a `Following`, for stretches that follow each other

    Returns:
        float32 (samples,) at `sampling_rate` Hz: fewer, or none, where the file holds less than its header says

    Raises:
        InputError: as `read_audio`
    """
    with _opened(source) as (file, recording):
        begin, end = _segment(source, recording)
        rate = recording.rate
        first_s, last_s = 0, 0
        if rate == sampling_rate:
            first, last = begin + start, min(begin + stop, end)
        else:
            # Whole seconds, at which samples of both rates meet; what the resampler looks at is much shorter than one.
            first_s, last_s = max(start // sampling_rate - 1, 0), -(-stop // sampling_rate) + 1
            first, last = begin + first_s * rate, min(begin + last_s * rate, end)
        samples = read(file, recording, first, last)
    remark = _shortfall(last - first, len(samples), rate)
    if remark:
        _warn(_file_name(source), f"{remark}, from second {time_text(first / rate)} on")
    samples = mix_down(source, samples)
    if rate != sampling_rate and len(samples):
        samples = soxr.resample(samples, rate, sampling_rate)
        _check_range(source, samples, "after resampling")
        samples = samples[start - first_s * sampling_rate :]
    return samples[: stop - start]


def fetched(source: AudioSource) -> AudioSource:
    """Returns a clip that has an address with its content, so that reading it in stretches fetches it once."""
    if isinstance(source, str) or source.get("bytes") is not None or "://" not in (source.get("path") or ""):
        return source
    with _opened(source) as (file, _):
        return {**source, "bytes": file.getvalue()}


def decode_audio(source: AudioSource) -> tuple[np.ndarray, int]:
    """
    Decodes a clip at its own sampling rate, with all its channels.

    Returns:
        float32 (samples, channels), at least one sample, and the sampling rate in Hz

    Raises:
        InputError: a missing, unreadable or empty file, or a segment outside it.
    """
    with _opened(source) as (file, recording):
        start, stop = _segment(source, recording)
        samples = recordings.read(file, recording, start, stop)
    if not len(samples):
        raise InputError(f"{audio_name(source)}: holds no samples; remove it or record it again")
    remark = _shortfall(stop - start, len(samples), recording.rate)
    if remark:
        _warn(_file_name(source), remark)
    return samples, recording.rate


def mix_down(source: AudioSource, samples: np.ndarray) -> np.ndarray:
    """
    Averages the channels: (samples, channels) -> (samples,)

    Raises:
        InputError: NaN or infinite samples, or samples beyond those of any recording; names `source`.
    """
    _check_range(source, samples)
    return samples.mean(axis=1)


def _check_range(source: AudioSource, samples: np.ndarray, when: str = ""):
    """Raises `InputError` unless samples of any shape are numbers within the range of 32-bit integers."""
    highest = max(samples.max(initial=0.0), -samples.min(initial=0.0))
    if highest <= HIGHEST * (2 if when else 1):  # an edge overshoots
        return
    when = when and f" {when}"
    if not np.isfinite(highest):
        frames = samples.reshape(len(samples), -1)
        count = int((~np.isfinite(frames).all(axis=1)).sum())
        raise InputError(f"{audio_name(source)}: holds {count} NaN or infinite samples{when}; repair or remove it")
    raise InputError(
        f"{audio_name(source)}: holds samples of {highest:.3g}{when}, beyond the range of recordings (at most "
        f"{HIGHEST:.3g} of 32 bits); repair or remove it"
    )


def is_audio(path: str | os.PathLike) -> bool:
    """
    Returns whether a file can be opened as a recording, by its content: with soundfile, or with PyAV if it is
    installed. Files without a header (.raw), text, folders and pipes are none.
    """
    path = os.fspath(path)
    if os.path.splitext(path)[1].lower() == ".raw":
        return False
    try:
        with recordings.open_file(path) as file:
            return recordings.can_open(file)
    except InputError:
        return False


def check_audio(source: AudioSource):
    """Checks a clip by its header, without decoding it; raises `InputError` for most damaged files."""
    audio_seconds(source)


def audio_seconds(source: AudioSource) -> float:
    """
    Returns the length of a clip in seconds, as `decode_audio` gives it, mostly without decoding it.

    Raises:
        InputError: a missing, unreadable or empty file, or a segment outside it.
    """
    with _opened(source) as (_, recording):
        start, stop = _segment(source, recording)
        return (stop - start) / recording.rate


def audio_format(source: AudioSource) -> tuple[int, int]:
    """Returns the sampling rate in Hz and the number of channels of a recording; raises `InputError` as above."""
    with _opened(source) as (_, recording):
        return recording.rate, recording.channels


def header_remark(source: AudioSource, num_samples: int | None = None) -> str:
    """
    Returns in which way header and content of a recording disagree; empty: they agree, or it is unreadable.

    Args:
        num_samples: samples per channel of the decoded clip: what some headers claim is missed by decoding only
    """
    try:
        with _opened(source) as (_, recording):
            start, stop = _segment(source, recording)
            decoded = stop - start if num_samples is None else num_samples
            return recording.remark or _shortfall(stop - start, decoded, recording.rate)
    except InputError:
        return ""


def _shortfall(claimed: int, decoded: int, rate: int) -> str:
    """Returns the remark on fewer decoded samples than claimed ones; empty: they are all there."""
    return recordings.disagreement(claimed / rate, decoded / rate) if decoded < claimed else ""


def _segment(source: AudioSource, recording: Recording) -> tuple[int, int]:
    """Returns the first sample of a clip in its recording, and the one after its last."""
    name, rate, frames = audio_name(source), recording.rate, recording.frames
    start, end = (None, None) if isinstance(source, str) else (source.get("start"), source.get("end"))
    start_s = start or 0.0
    if start_s < 0 or (end is not None and end <= start_s):
        until = "s to the end" if end is None else f"to {time_text(end)} s"
        raise InputError(
            f"{name}: a part from {time_text(start_s)} {until} holds nothing; correct its times (in seconds)"
        )
    first, last = (frames if time is None else round(min(time * rate, frames)) for time in (start_s, end))
    if first >= frames:
        raise InputError(
            f"{name}: begins after the recording's end at {time_text(frames / rate)} s; correct its times (in seconds)"
        )
    return first, max(last, first + 1)


@contextlib.contextmanager
def _opened(source: AudioSource) -> Iterator[tuple[BinaryIO, Recording]]:
    """Opens the recording of a clip; warns once if its header disagrees with what it holds."""
    name = _file_name(source)
    source = {"path": source} if isinstance(source, str) else source
    with contextlib.ExitStack() as stack:
        path = None
        try:
            if not source.get("bytes") and (source.get("bytes") is not None or not source.get("path")):
                raise InputError(f"{name}: holds no audio; record it again or leave it out")
            if source.get("bytes") is not None:
                file = io.BytesIO(source["bytes"])
            elif "://" in (source.get("path") or ""):  # a file of a streamed data set has an address
                with fsspec.open(source["path"], "rb") as remote:
                    file = io.BytesIO(remote.read())
            else:
                path = os.fspath(source["path"])
                file = stack.enter_context(recordings.open_file(path))
            if not file.seek(0, io.SEEK_END):
                raise InputError(f"{name}: the file is empty; remove it or copy it again")
            recording = recordings.examine(file, path)
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
        except FAULTS as error:
            raise _unreadable(name, error) from None
        if not recording.frames:
            raise InputError(f"{name}: holds no samples; remove it or record it again")
        if recording.remark:
            _warn(name, recording.remark)
        try:
            yield file, recording
        except FAULTS as error:
            raise _unreadable(name, error) from None


_warned = set()  # names of recordings, in this process
MOST_WARNED = 10_000  # a service reads recordings without end


def _warn(name: str, remark: str):
    if name not in _warned and len(_warned) < MOST_WARNED:
        _warned.add(name)
        logger.warning(f"{name}: {remark}; what it holds is read")


def _unreadable(name: str, error: Exception) -> InputError:
    reason = recordings.reason_of(error)
    if "resource fork" in reason:  # libsndfile's last guess at any file without a known header
        reason = "Format not recognised"
    return InputError(f"{name}: not readable as audio ({reason}); convert or remove it")


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
