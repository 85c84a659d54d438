# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
Classifies recordings in an Inference Endpoint of Hugging Face: its container makes an `EndpointHandler` of the model's
folder and calls it with each request. A `RequestError` becomes the answer {"error": message} with status 400.

It goes with every pushed classifier and imports nothing of the project: the folder's own code holds the model.
`serve_hf.py` reads its requests by the functions here.
"""

import base64
import binascii
import contextlib
import difflib
import io
import math
import os

import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

DEFAULT_TOP_K = 5  # as in Transformers' pipeline
MOST_CLIPS, MOST_WINDOWS, MOST_CHANNELS = 1000, 10_000, 64
MOST_SCORES = 1_000_000  # in an answer
MOST_SAMPLES = 60_000_000  # decoded samples of all channels: 240 MB
LOWEST_RATE, HIGHEST_RATE = 500, 20_000_000  # Hz
HIGHEST = 2.0**31  # of 32-bit samples that were stored as numbers; usual ones are within -1 and 1
# Name -> type, lowest and highest value, meaning. Query strings and forms send them as text.
PARAMETERS = {
    "top_k": (int, 1, 1_000_000, f"Classes of the answer; unset: {DEFAULT_TOP_K}."),
    "threshold": (float, 0, 1, "Score that a class must exceed to be in the answer."),
    "window_s": (float, 0.001, 1e6, "Seconds per window; unset: the model's longest input."),
    "hop_s": (float, 0.001, 1e6, "Seconds from window to window; unset: half a window."),
    "low_threshold": (float, 0, 1, "Score above which an event that has begun goes on; unset: the model's own."),
    "min_duration_s": (float, 0, 1e6, "Seconds; shorter events are left out; unset: the model's own."),
    "max_gap_s": (float, 0, 1e6, "Seconds; events of a class that are closer become one; unset: the model's own."),
    "median_steps": (
        int,
        1,
        1001,
        "Odd number of windows or frames of a median filter; unset: the model's own.",
    ),
    "windows": (bool, None, None, "Whether the answer has the scores of every window or time frame, with its times."),
    "sampling_rate": (
        int,
        LOWEST_RATE,
        HIGHEST_RATE,
        "Sampling rate in Hz of inputs that are a list of samples.",
    ),
}
OF_EVENTS = ("low_threshold", "min_duration_s", "max_gap_s", "median_steps")
OF_CLIPS = tuple(name for name in PARAMETERS if name not in OF_EVENTS)
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
# (place, first bytes, demuxer) of what libsndfile does not read and PyAV does. It is named, not guessed: some demuxers
# open other files or addresses.
PYAV = (
    (4, b"ftyp", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"#!AMR", "amr"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
)
FORMS = 'bytes of an audio file, the same in base64, or {"array": [samples], "sampling_rate": Hz}'
# What decoders raise for damaged files; soundfile's error is a RuntimeError.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class RequestError(ValueError):
    """A request that cannot be answered. The message is one line: what is wrong, and the remedy."""


class TooLong(RequestError):
    """A request whose clips are too many or too long."""


class EndpointHandler:
    """
    Classifies the clips of requests.

    Args:
        path: folder of a classifier

    Raises:
        ValueError: the folder has no trained classifier.
    """

    def __init__(self, path: str = ""):
        # Clips of many lengths: oneDNN would keep code and buffers of the last 1024 shapes.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        self.extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=True)
        self.model, loading = AutoModelForAudioClassification.from_pretrained(
            path, trust_remote_code=True, output_loading_info=True
        )
        if loading["missing_keys"]:
            raise ValueError(f"{path}: has no trained classifier, {min(loading['missing_keys'])} is missing")
        self.model.eval()
        if torch.cuda.is_available():
            self.model.to("cuda")
        else:
            self.model.float()  # CPUs are slow in float16

    def __call__(self, data: dict) -> list:
        """
        Returns the answer to a request.

        Args:
            data: `inputs`, a clip in one of the `FORMS` or a list of clips; `parameters`, some of `OF_CLIPS`

        Returns:
            the likeliest classes, a list of `{"label", "score"}`; with `windows` a dict of these `scores` and of the
            `windows`, each with `start_s`, `end_s` and `scores`; for a list of clips a list of such answers

        Raises:
            RequestError: the request cannot be answered.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise RequestError(f'expected {{"inputs": ..., "parameters": {{...}}}}; inputs: {FORMS}')
        parameters = read_parameters(data.get("parameters"))
        clips, is_list = read_inputs(data["inputs"], parameters.get("sampling_rate"))
        answers = [self._classify(name, clip, parameters) for name, clip in clips]
        return answers if is_list else answers[0]

    def _classify(self, name: str, clip, parameters: dict):
        rate = self.extractor.sampling_rate
        waveform = as_waveform(name, *(decode(name, clip, rate) if isinstance(clip, bytes) else clip), rate)
        check_windows(len(waveform) / rate, parameters)
        try:
            windows = self.model.classify_windows(
                waveform,
                self.extractor,
                sampling_rate=rate,
                window_s=parameters.get("window_s"),
                hop_s=parameters.get("hop_s"),
                average=False,
            )
        except ValueError as error:  # a window or hop that the model does not accept
            raise RequestError(" ".join(str(error).split())) from None
        logits = windows.logits.float().cpu()  # (windows, labels)
        if not torch.isfinite(logits).all():
            raise RequestError(f"{name}: the model's numbers overflow on this recording; send samples from -1 to 1")
        names = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        scores = ranked(self.model.probabilities(logits.mean(dim=0)).tolist(), names, parameters)
        if not parameters.get("windows"):
            return scores
        rows = zip(windows.start_s.tolist(), windows.end_s.tolist(), self.model.probabilities(logits).tolist())
        return {"scores": scores, "windows": [as_window(*row, names, parameters) for row in rows]}


def read_parameters(given, known=OF_CLIPS) -> dict:
    """
    Returns the parameters that are set, name -> value.

    Args:
        given: values as JSON, a query string or a form has them
        known: names of those that may be set

    Raises:
        RequestError: an unknown name, or a value of the wrong type or out of range.
    """
    if not isinstance(given, (dict, type(None))):
        raise RequestError(f"parameters: expected an object of names and values, got {_kind(given)}")
    values = {}
    for name, value in (given or {}).items():
        if name not in known:
            similar = difflib.get_close_matches(str(name)[:50], known, n=1, cutoff=0.5)
            hint = f"did you mean {similar[0]}?" if similar else f"known are {', '.join(known)}"
            raise RequestError(f"parameters: unknown name {_shown(name)}; {hint}")
        if value is not None and value != "":
            values[name] = _read_value(name, value)
    return values


def _read_value(name: str, value):
    kind, lowest, highest, _ = PARAMETERS[name]
    if kind is bool:
        found = value if isinstance(value, bool) else TRUTH.get(str(value).lower())
        if found is None:
            raise RequestError(f"{name}: must be true or false, got {_shown(value)}")
        return found
    number = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not lowest <= number <= highest or (kind is int and number != int(number)):
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name}: must be {what} from {lowest:g} to {highest:g}, got {_shown(value)}")
    return kind(number)


def read_inputs(inputs, sampling_rate=None) -> tuple:
    """
    Returns the clips of a request, a list of (name for messages, clip), and whether the request was a list. A clip is
    bytes, or float32 (samples, channels) and the sampling rate in Hz.

    Args:
        inputs: a clip in one of the `FORMS`, or a list of those
        sampling_rate: of inputs that are a plain list of samples

    Raises:
        RequestError: no clip, or one of another form; names it.
    """
    is_list = isinstance(inputs, (list, tuple)) and not (len(inputs) and isinstance(inputs[0], (int, float, np.number)))
    if not is_list:
        return [("inputs", _read_clip("inputs", inputs, sampling_rate))], False
    if not len(inputs):
        raise RequestError("inputs: the list is empty; send at least one clip")
    if len(inputs) > MOST_CLIPS:
        raise TooLong(f"inputs: {len(inputs)} clips, more than {MOST_CLIPS}; send several requests")
    names = [f"inputs[{index}]" for index in range(len(inputs))]
    return [(name, _read_clip(name, clip, sampling_rate)) for name, clip in zip(names, inputs)], True


def _read_clip(name: str, clip, sampling_rate):
    if isinstance(clip, str):
        clip = _from_base64(name, clip)
    if isinstance(clip, (bytes, bytearray, memoryview)):
        if not len(clip):
            raise RequestError(f"{name}: holds no bytes; send {FORMS}")
        return bytes(clip)
    if isinstance(clip, dict):
        key = "raw" if "raw" in clip else "array"
        if set(clip) != {key, "sampling_rate"}:
            raise RequestError(f"{name}: has the keys {_shown(sorted(map(str, clip)))}; send {FORMS}")
        values = {"sampling_rate": clip["sampling_rate"]}
        try:
            sampling_rate = read_parameters(values).get("sampling_rate")
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from None
        clip = clip[key]
    elif not isinstance(clip, (list, tuple, np.ndarray)):
        raise RequestError(f"{name}: is {_kind(clip)}; send {FORMS}")
    if sampling_rate is None:
        raise RequestError(f"{name}: samples without their sampling_rate; send {FORMS}")
    return _as_samples(name, clip), sampling_rate


def _from_base64(name: str, text: str) -> bytes:
    text = text.partition(",")[2] if text.startswith("data:") else text  # as browsers write it
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{name}: a text that is not base64 ({error}); send {FORMS}") from None


def _as_samples(name: str, array) -> np.ndarray:
    """Returns samples, with channels in either order, as float32 (samples, channels)."""
    try:
        samples = np.asarray(array)
    except (ValueError, OverflowError, RecursionError, MemoryError):
        samples = np.empty(0, dtype=object)
    if samples.dtype.kind not in "fiu" or samples.ndim not in (1, 2):
        raise RequestError(f"{name}: is no list of numbers, nor a list of channels of equal length; send {FORMS}")
    if not samples.size:
        raise RequestError(f"{name}: holds no samples; leave it out")
    samples = samples[:, None] if samples.ndim == 1 else samples
    samples = samples.T if samples.shape[0] < samples.shape[1] else samples
    if samples.shape[1] > MOST_CHANNELS:
        raise RequestError(f"{name}: has {samples.shape[1]} channels, more than {MOST_CHANNELS}; average them first")
    if not np.isfinite(samples).all():
        raise RequestError(f"{name}: holds NaN or infinite samples; repair the recording or leave it out")
    highest = max(float(samples.max()), -float(samples.min()))
    if highest > (1 if samples.dtype.kind in "iu" else HIGHEST):
        raise RequestError(
            f"{name}: holds samples up to {highest:g}, expected floats from -1 to 1; divide 16-bit samples by 32768"
        )
    return samples.astype(np.float32)


def decode(name: str, content: bytes, sampling_rate: int) -> tuple:
    """
    Decodes an audio file: float32 (samples, channels) and its sampling rate in Hz.

    Args:
        sampling_rate: the rate in Hz that it will be resampled to

    Raises:
        RequestError: it is not readable as audio, or too long.
    """
    demuxer = next((demuxer for place, magic, demuxer in PYAV if content.startswith(magic, place)), None)
    try:
        if demuxer is not None:
            return _decode_by_pyav(name, content, demuxer, sampling_rate)
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            check_length(name, file.frames, file.channels, file.samplerate, sampling_rate)
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except RequestError:
        raise
    except (*FAULTS, ImportError) as error:
        reason = " ".join(str(getattr(error, "error_string", None) or error).split())
        raise RequestError(f"{name}: not readable as audio ({reason:.200}); send wav, flac, ogg, opus or mp3") from None


def _decode_by_pyav(name: str, content: bytes, demuxer: str, sampling_rate: int) -> tuple:
    import av  # here: soundfile reads most files

    parts, rate, total = [], 0, 0
    with av.open(io.BytesIO(content), format=demuxer, metadata_errors="ignore") as file:
        resampler = None
        for frame in file.decode(audio=0):
            if resampler is None:
                rate = frame.sample_rate
                resampler = av.AudioResampler(format="flt", layout=frame.layout.name, rate=rate)
            frame.pts = None
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray().reshape(-1, len(part.layout.channels)))
                total += len(parts[-1])
                check_length(name, total, parts[-1].shape[1], rate, sampling_rate)
    return np.concatenate(parts), rate


def check_length(name: str, frames: int, channels: int, rate: int, sampling_rate: int):
    """Raises `TooLong` if samples take too much memory, also after they are resampled to `sampling_rate` Hz."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise RequestError(f"{name}: a sampling rate of {rate} Hz, not {LOWEST_RATE} to {HIGHEST_RATE} Hz; convert it")
    if max(frames * channels, frames / rate * sampling_rate) > MOST_SAMPLES:
        raise TooLong(
            f"{name}: {frames / rate:.0f} s, {channels} channels at {rate} Hz are too long; cut the recording"
        )


def as_waveform(name: str, samples: np.ndarray, rate: int, sampling_rate: int) -> np.ndarray:
    """Averages channels and resamples: float32 (samples, channels) -> (samples,), at least one sample."""
    check_length(name, len(samples), samples.shape[1] if samples.ndim == 2 else 1, rate, sampling_rate)
    if not len(samples) or not np.isfinite(samples).all():
        what = "NaN or infinite samples" if len(samples) else "no samples"
        raise RequestError(f"{name}: holds {what}; repair the recording or leave it out")
    samples = samples.mean(axis=1)
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
    return samples if len(samples) else np.zeros(1, dtype=np.float32)


def check_windows(seconds: float, parameters: dict):
    """Raises `TooLong` if the parameters cut a clip of so many seconds into too many windows."""
    step_s = parameters.get("hop_s", parameters.get("window_s", math.inf) / 2)
    if seconds / step_s > MOST_WINDOWS:
        raise TooLong(
            f"hop_s: {seconds / step_s:.0f} windows, more than {MOST_WINDOWS}; take a longer hop_s or window_s"
        )


def check_scores(num_windows: int, names: list, parameters: dict):
    """Raises `TooLong` if an answer with the scores of so many windows or time frames would hold too many."""
    count = num_windows * min(parameters.get("top_k", DEFAULT_TOP_K), len(names))
    if parameters.get("windows") and count > MOST_SCORES:
        raise TooLong(f"windows: {count} scores, more than {MOST_SCORES}; take a smaller top_k, or cut the recording")


def ranked(scores: list, names: list, parameters: dict) -> list:
    """Returns the likeliest classes, a list of {"label", "score"}, as `top_k` and `threshold` choose them."""
    above = parameters.get("threshold", -math.inf)
    best = sorted(range(len(names)), key=lambda index: -scores[index])[: parameters.get("top_k", DEFAULT_TOP_K)]
    return [{"label": names[index], "score": scores[index]} for index in best if scores[index] > above]


def as_window(start_s: float, end_s: float, scores: list, names: list, parameters: dict) -> dict:
    """Returns the part of an answer about one window."""
    times = {"start_s": round(start_s, 6), "end_s": round(end_s, 6)}
    return {**times, "scores": ranked(scores, names, parameters)}


def _kind(value) -> str:
    kinds = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "null", "bool": "true or false"}
    return kinds.get(type(value).__name__, f"of type {type(value).__name__}")


def _shown(value) -> str:
    try:
        text = ascii(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
