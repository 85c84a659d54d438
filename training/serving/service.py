"""The service's web application: reads requests, holds them to the limits, answers with scores, vectors or events."""

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import PurePath

import anyio
import numpy as np
import prometheus_client
import torch
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic_core import from_json
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from hub.endpoint import handler
from hub.endpoint.handler import RequestError
from modeling_dual_ssast import __version__ as version
from modeling_dual_ssast.classifier_dual_ssast import labels_of_probabilities
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop, window_starts

from ..base.event_detection import event_scores, event_settings, event_thresholds, find_events
from ..base.finite import OVERFLOW
from ..base.label_frames import frame_grid
from ..base.open_set import UNKNOWN, EmbeddingHook, Rejection
from ..data.audio import audio_seconds, read_audio
from ..data.labels import LabelSet
from ..data.uploads import TooLarge, check_seconds, check_size
from ..errors import InputError, one_line, printable, short
from ..inference.overlaps import FrameSequence, concatenated, run_frames
from .arguments import ServingArguments
from .batching import Batcher

logger = logging.getLogger("uvicorn.error")

WINDOWING = ("window_s", "hop_s", "sampling_rate")
ABOUT = {"file": "clip.wav", "seconds": 2.5}
# Path -> the parameters that it takes, what it does, and an answer.
KINDS = {
    "classify": (
        (*WINDOWING, "top_k", "threshold", "windows"),
        "Names what a recording holds, like predict_hf.py.",
        {**ABOUT, "prediction": "dog", "scores": [{"label": "dog", "score": 0.9}, {"label": "owl", "score": 0.1}]},
    ),
    "embed": (WINDOWING, "Turns a recording into a vector, like embed_hf.py.", {**ABOUT, "embedding": [0.1, -0.2]}),
    "events": (
        (*WINDOWING, "threshold", *handler.OF_EVENTS),
        "Finds when a class is above its threshold, or above `threshold`, like predict_hf.py --events.",
        {**ABOUT, "events": [{"label": "dog", "start_s": 0.5, "end_s": 1.5, "score": 0.9}]},
    ),
}
MOST_HELD = 8  # largest uploads, and longest recordings, that all requests in flight may hold together
DECODERS = 2  # threads; each holds one decoded recording
RETRY_S = 1  # after which a client may try again
MOST_LOGITS = 100_000_000  # of the windows of a request, 400 MB: a short hop reads each frame many times
GONE = 499  # status of a request whose client has gone, which nobody reads; nginx' number
DESCRIPTION = (
    "Send a recording as a file, as base64 or as samples; parameters stand in the query, the form or the JSON. What "
    'cannot be answered is one line: `{"error": ...}`.'
)
FORMS = 'multipart/form-data with a field file, application/json with {"inputs": ...}, or audio/*'
NO_FILE = "expected one file or several in the field file, as in curl -F file=@clip.wav"
JSON = "application/json"
MESSAGE = {JSON: {"example": {"error": "one line: what is wrong, and the remedy"}}}
ERRORS = {
    status: {"description": text, "content": MESSAGE}
    for status, text in {
        408: "The request has not arrived in time.",
        413: "The request is too large, or its recordings are too long.",
        415: "The content type is none of those above.",
        422: "The recording or a parameter cannot be used.",
        503: "The service is busy; try again.",
    }.items()
}


class Busy(Exception):
    """More requests than the service can hold."""

    def __init__(self):
        super().__init__(f"the service is busy; try again in {RETRY_S} s")


class UnknownForm(Exception):
    """A request in no form that is read."""


class Metrics:
    """Counts what Prometheus collects."""

    def __init__(self, held: dict[str, float]):
        self.registry = registry = CollectorRegistry()
        labels = ("path", "status")
        self.requests = Counter("requests", "Answered requests.", labels, namespace="dual_ssast", registry=registry)
        self.seconds = Histogram(
            "request_seconds", "Seconds from a request's first byte to its answer.", ("path",), namespace="dual_ssast",
            registry=registry, buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )  # fmt: skip
        self.batches = Histogram(
            "batch_size", "Clips or windows of a forward pass.", namespace="dual_ssast", registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )  # fmt: skip
        self.audio = Counter("audio_seconds", "Seconds of audio.", namespace="dual_ssast", registry=registry)
        for what, text in (("requests", "Requests in the queue."), ("bytes", "Bytes of uploads in flight.")):
            gauge = Gauge(f"held_{what}", text, namespace="dual_ssast", registry=registry)
            gauge.set_function(lambda what=what: held[what])


class Service:
    """
    Answers requests about recordings with one classifier.

    Args:
        name: of the model, for /health
        model: a classifier, ready for inference
        extractor: its feature extractor
        labels: its classes
        rejection: rejects clips that are like no class; `None`: all have a class
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        extractor,
        labels: LabelSet,
        limits: ServingArguments,
        rejection: Rejection | None = None,
    ):
        self.name, self.model, self.extractor, self.labels, self.limits = name, model, extractor, labels, limits
        self.of_frames = "FrameClassification" in type(model).__name__
        self.rejection = rejection
        self._hook = EmbeddingHook(model) if rejection is not None else None
        self.most = {
            "requests": limits.max_queue,
            "bytes": MOST_HELD * limits.max_mb * 2**20,
            "seconds": MOST_HELD * limits.max_s,
        }
        self.held = dict.fromkeys(self.most, 0.0)
        self.metrics = Metrics(self.held)
        self.batcher = Batcher(self.compute, limits.max_batch, limits.max_wait_ms / 1000, self.metrics.batches.observe)
        self.decoders = anyio.CapacityLimiter(DECODERS)

    @torch.inference_mode()
    def compute(self, kind: str, clips: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """
        Returns a row per clip (samples,), which fits into the model: its vector (size,) or logits (labels,), the latter
        with one more number where clips may be rejected, the distance to the training clips. A classifier of time
        frames has logits (frames, labels) per clip.
        """
        features = self.extractor(
            clips,
            sampling_rate=self.extractor.sampling_rate,
            padding="longest",
            return_attention_mask=True,  # a clip's row must not depend on the clips beside it
            return_tensors="pt",
        ).to(self.model.device)
        if kind == "embed":
            rows = self.model.base_model(**features, return_dict=True).pooler_output
        elif self.of_frames:
            rows, counts = run_frames(self.model, features)
            return [row[:count] for row, count in zip(rows.float().cpu().numpy(), counts.tolist())]
        else:
            rows = self.model(**features, return_dict=True).logits.float()
            if self.rejection is not None:
                embeddings = self._hook.take()[-len(rows) :]  # a pass that failed may have left others
                rows = torch.cat([rows, self.rejection.open_set.distances(embeddings)[:, None]], dim=1)
        return rows.float().cpu().numpy()

    async def answer(self, request: Request, kind: str) -> Response:
        """Answers a request; what is wrong with it is one line of JSON."""
        started_s, headers, response, content, status = time.monotonic(), {}, None, None, 200
        try:
            response = await self._answer(request, kind)
        except (RequestError, InputError) as error:
            content = {"error": one_line(error)}
            status = 413 if isinstance(error, (TooLarge, handler.TooLong)) else 422
        except Busy as error:
            content, status, headers = {"error": str(error)}, 503, {"Retry-After": str(RETRY_S)}
        except UnknownForm as error:
            content, status = {"error": str(error)}, 415
        except TimeoutError:
            content, status = {"error": f"the request has not arrived within {self.limits.upload_s:g} s"}, 408
        except ClientDisconnect:
            content, status = {"error": "the client has gone"}, GONE
        except StarletteHTTPException as error:  # of the parser of forms
            content, status = {"error": one_line(str(error.detail))}, error.status_code
        except Exception:
            logger.exception("a request failed")
            content, status = {"error": "the service has an internal error; its log says which"}, 500
        self.metrics.requests.labels(kind, status).inc()
        self.metrics.seconds.labels(kind).observe(time.monotonic() - started_s)
        return as_json(content, status, headers) if response is None else response

    async def _answer(self, request: Request, kind: str) -> Response:
        with self._holding() as take:
            if self.held["requests"] >= self.most["requests"]:  # before the upload
                raise Busy
            size = request.headers.get("content-length", "")
            check_size("the request", int(size) if size.isascii() and size.isdigit() else 0, self.limits.max_mb)
            request = Request(request.scope, self._counted(request.receive, take))
            with anyio.fail_after(self.limits.upload_s):
                upload = await self._read(request)
            take("requests", 1)
            in_thread = functools.partial(anyio.to_thread.run_sync, limiter=self.decoders)
            clips, parameters, is_list = await in_thread(_parse, *upload, KINDS[kind][0])
            if kind == "events" and self.labels.is_regression:
                raise RequestError("the model gives numbers, not classes: it has no events; use /classify")
            waveforms = await in_thread(self._decode, clips)
            seconds = [len(waveform) / self.extractor.sampling_rate for waveform in waveforms]
            take("seconds", sum(seconds))
            self.metrics.audio.inc(sum(seconds))
            rows = await self._rows(request, kind, waveforms, parameters)
            handler.check_scores(sum(len(values) for values, *_ in rows), self.labels.names, parameters)
            names = [name for name, _ in clips]
            answers = await in_thread(self._answers, kind, list(zip(names, seconds, rows)), parameters)
            return await in_thread(as_json, answers if is_list else answers[0])

    def _answers(self, kind: str, clips: list[tuple], parameters: dict) -> list[dict]:
        """Returns the answer about each clip: name, seconds, and what `_rows` returns."""
        answers = []
        for name, length_s, (values, start_s, end_s) in clips:
            if not torch.isfinite(values).all():
                raise InputError(f"{name}: {OVERFLOW}")
            about = {"file": name, "seconds": round(length_s, 6)}
            answers.append({**about, **getattr(self, f"_{kind}")(values, start_s, end_s, parameters)})
        return answers

    @contextlib.contextmanager
    def _holding(self) -> Iterator[Callable[[str, float], None]]:
        """Yields the function by which a request takes a part of what all may hold, until its end."""
        mine = dict.fromkeys(self.most, 0.0)

        def take(what: str, amount: float):
            if self.held[what] + amount > self.most[what]:
                raise Busy
            self.held[what] += amount
            mine[what] += amount

        try:
            yield take
        finally:
            for what, amount in mine.items():
                self.held[what] -= amount

    def _counted(self, receive: Callable, take: Callable[[str, float], None]) -> Callable:
        """Returns a function like `receive` that refuses an upload as soon as it is too large."""
        total = 0

        async def counting() -> dict:
            nonlocal total
            message = await receive()
            size = len(message.get("body", b""))
            total += size
            check_size("the request", total, self.limits.max_mb)
            take("bytes", size)
            return message

        return counting

    async def _read(self, request: Request) -> tuple[list[tuple[str, bytes]] | bytes, dict]:
        """Returns the files of a request by their names, or its JSON, and the parameters in query and form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        given = dict(request.query_params)
        if kind == "multipart/form-data":
            async with request.form(max_files=handler.MOST_CLIPS, max_fields=len(handler.PARAMETERS)) as form:
                files = [value for name, value in form.multi_items() if name == "file" and not isinstance(value, str)]
                others = {name: value for name, value in form.multi_items() if value not in files}
                wrong = [name for name, value in others.items() if name == "file" or not isinstance(value, str)]
                if wrong or not files:
                    raise RequestError(f"{_plain(wrong[0]) if wrong else 'file'}: {NO_FILE}")
                clips = [(_plain(PurePath(file.filename or "").name or "file"), await file.read()) for file in files]
            return clips, given | others
        if kind == JSON:
            return await request.body(), given
        if kind.startswith(("audio/", "video/")) or kind in ("application/octet-stream", "application/ogg"):
            return [("the upload", await request.body())], given
        raise UnknownForm(f"content-type {_plain(kind) or '(none)'}: send {FORMS}")

    def _decode(self, clips: list[tuple]) -> list[np.ndarray]:
        """Returns the clips at the model's rate, float32 (samples,) each."""
        rate, left_s = self.extractor.sampling_rate, self.limits.max_s
        waveforms = []
        for name, clip in clips:
            if isinstance(clip, bytes):
                source = {"bytes": clip, "path": name}
                check_seconds(source, audio_seconds(source), left_s)
                waveforms.append(read_audio(source, rate))
            else:
                samples, own_rate = clip
                if len(samples) / own_rate > left_s:
                    raise TooLarge(f"{name}: has {len(samples) / own_rate:.1f} s, more than {left_s:g}; cut it")
                waveforms.append(handler.as_waveform(name, samples, own_rate, rate))
            left_s -= len(waveforms[-1]) / rate
        return waveforms

    async def _rows(self, request: Request, kind: str, waveforms: list[np.ndarray], parameters: dict) -> list[tuple]:
        """Returns per clip the rows of its windows or frames (rows, size), their starts and their ends in seconds."""
        rate, of_frames = self.extractor.sampling_rate, self.of_frames and kind != "embed"
        sizes = (parameters.get("window_s"), parameters.get("hop_s"))
        try:
            if of_frames:
                grid = frame_grid(self.model, self.extractor, *sizes)
                window = grid.length
            else:
                window, hop = window_and_hop(self.model.base_model, self.extractor, *sizes)
        except ValueError as error:
            raise RequestError(one_line(error)) from None
        for waveform in waveforms:
            handler.check_windows(len(waveform) / rate, parameters)
        if of_frames:
            starts = [[first * grid.step for first in grid.windows(len(waveform))] for waveform in waveforms]
        else:
            starts = [window_starts(len(waveform), window, hop) for waveform in waveforms]
        if of_frames and sum(map(len, starts)) * grid.frames * len(self.labels.names) > MOST_LOGITS:
            raise TooLarge(f"hop_s: {sum(map(len, starts))} windows of {grid.frames} frames; take a longer hop_s")
        pieces = [waveform[start : start + window] for waveform, own in zip(waveforms, starts) for start in own]
        what, rows = "embed" if kind == "embed" else "classify", []
        # A long recording has a batch of windows in the queue at a time, so that short ones pass it.
        for first in range(0, len(pieces), self.limits.max_batch):
            if await request.is_disconnected():
                raise ClientDisconnect
            futures = [self.batcher.submit(what, piece) for piece in pieces[first : first + self.limits.max_batch]]
            rows += await asyncio.gather(*map(asyncio.wrap_future, futures))
        found = []
        for waveform, own in zip(waveforms, starts):
            if of_frames:
                sequence = FrameSequence(grid)
                frames = sequence.add_windows(own, [{"logits": row} for row in rows[: len(own)]])
                joined = concatenated(frames + sequence.end(len(waveform)))
                values, start_s, end_s = joined["logits"], joined["start"] / rate, joined["stop"] / rate
            else:
                values, start_s = np.stack(rows[: len(own)]), np.array(own) / rate
                end_s = np.minimum(start_s + window / rate, len(waveform) / rate)
            found.append((torch.from_numpy(values), start_s, end_s))
            rows = rows[len(own) :]
        return found

    def _classify(self, rows: torch.Tensor, start_s: np.ndarray, end_s: np.ndarray, parameters: dict) -> dict:
        names, labels = self.labels.names, self.labels
        # A clip has the mean of its windows, or the highest of its frames.
        whole = rows.amax(dim=0, keepdim=True) if self.of_frames else rows.mean(dim=0, keepdim=True)
        logits = rows[:, : len(names)]
        (scores,) = self.model.probabilities(whole[:, : len(names)])
        config = self.model.config
        thresholds = event_thresholds(config) if self.of_frames else config.decision_thresholds
        (prediction,) = labels_of_probabilities(scores[None], names, labels.problem_type, thresholds)
        answer = {"prediction": prediction, "scores": handler.ranked(scores.tolist(), names, parameters)}
        if self.rejection is not None:
            (value,) = self.unlikeness(whole)
            answer |= {"prediction": UNKNOWN} if value > self.rejection.threshold else {}
            answer[self.rejection.score] = value
        if parameters.get("windows"):
            windows = zip(start_s.tolist(), end_s.tolist(), self.model.probabilities(logits).tolist())
            answer["windows"] = [handler.as_window(*window, names, parameters) for window in windows]
            for window, value in zip(answer["windows"], self.unlikeness(rows)):
                window[self.rejection.score] = value
        return answer

    def unlikeness(self, rows: torch.Tensor) -> list[float]:
        """Returns how unlike the training clips each row of `compute` is; nothing where no clip is rejected."""
        if self.rejection is None:
            return []
        rows = rows.numpy()
        return self.rejection.scores(rows[:, :-1], rows[:, -1]).tolist()

    def _embed(self, vectors: torch.Tensor, start_s: np.ndarray, end_s: np.ndarray, parameters: dict) -> dict:
        return {"embedding": vectors.mean(dim=0).tolist()}

    def _events(self, rows: torch.Tensor, start_s: np.ndarray, end_s: np.ndarray, parameters: dict) -> dict:
        logits = rows[:, : len(self.labels.names)]
        scores = event_scores(self.model.probabilities(logits).numpy(), self.labels)
        given = {name: parameters.get(name) for name in ("threshold", *handler.OF_EVENTS)}
        settings = event_settings(self.model.config, **given)
        events = find_events(scores, self.labels.names, start_s, end_s, **settings)
        return {
            "events": [
                {"label": e.label, "start_s": round(e.onset_s, 6), "end_s": round(e.offset_s, 6), "score": e.score}
                for e in events
            ]
        }


def _parse(upload: list[tuple] | bytes, given: dict, known: tuple[str, ...]) -> tuple[list[tuple], dict, bool]:
    """Returns (name, bytes or samples and rate) of each clip, the parameters, and whether the answer is a list."""
    if isinstance(upload, list):
        return upload, handler.read_parameters(given, known), len(upload) > 1
    try:
        data = from_json(upload, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the body is not JSON ({short(one_line(error))}); send {FORMS}") from None
    if not isinstance(data, dict) or not {"inputs"} <= set(data) <= {"inputs", "parameters"}:
        raise RequestError(f'expected {{"inputs": ..., "parameters": {{...}}}}; inputs: {handler.FORMS}')
    own = data.get("parameters")
    parameters = handler.read_parameters(given | own if isinstance(own, dict) else given if own is None else own, known)
    clips, is_list = handler.read_inputs(data["inputs"], parameters.get("sampling_rate"))
    return clips, parameters, is_list


def _plain(text: str) -> str:
    """Returns a client's text as a message can show it."""
    return short(printable(text), 80)


def as_json(content, status: int = 200, headers: dict | None = None) -> Response:
    """Returns an answer; what no encoding has, such as half of a surrogate pair in a name, is an escape."""
    return Response(json.dumps(content, allow_nan=False), status, headers, JSON)


def build(service: Service) -> FastAPI:
    """Builds the web application. Its page /docs fetches nothing from other hosts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        service.batcher.close()

    app = FastAPIOffline(
        title="Audio classification", description=DESCRIPTION, version=version, redoc_url=None, lifespan=lifespan
    )
    for kind, (known, summary, example) in KINDS.items():
        responses = {200: {"description": "One recording's answer.", "content": {JSON: {"example": example}}}, **ERRORS}
        route = app.post(f"/{kind}", summary=summary, openapi_extra=_described(known), responses=responses)
        route(_route(service, kind))

    @app.get("/health", summary="Whether the service can answer.")
    async def health() -> Response:
        is_alive = service.batcher.is_alive()
        content = {"status": "ok" if is_alive else "the model's thread has ended", "model": service.name}
        return as_json(content, 200 if is_alive else 503)

    @app.get("/metrics", summary="Counts and times, in Prometheus' form.")
    async def metrics() -> Response:
        content = prometheus_client.generate_latest(service.metrics.registry)
        return Response(content, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    @app.exception_handler(StarletteHTTPException)
    async def refuse(request: Request, error: StarletteHTTPException) -> Response:
        return as_json({"error": error.detail}, error.status_code, error.headers)

    return app


def _route(service: Service, kind: str) -> Callable:
    async def route(request: Request) -> Response:
        return await service.answer(request, kind)

    route.__name__ = kind
    return route


def _described(known: tuple[str, ...]) -> dict:
    """Returns what OpenAPI says of a request: FastAPI does not read it, because the limits hold while it arrives."""
    kinds = {int: "integer", float: "number", bool: "boolean"}
    about = {name: (handler.PARAMETERS[name][3], {"type": kinds[handler.PARAMETERS[name][0]]}) for name in known}
    parameters = {name: {**schema, "description": text} for name, (text, schema) in about.items()}
    file = {"type": "string", "format": "binary", "description": "wav, flac, ogg, opus, mp3 ..."}
    form = {"type": "object", "required": ["file"], "properties": {"file": file}}
    inputs = {"description": handler.FORMS + ", or a list of those"}
    data = {"type": "object", "required": ["inputs"], "properties": {"inputs": inputs, "parameters": {
        "type": "object", "properties": parameters}}}  # fmt: skip
    content = {"multipart/form-data": form, JSON: data, "audio/*": {"type": "string", "format": "binary"}}
    body = {"required": True, "content": {name: {"schema": schema} for name, schema in content.items()}}
    query = [{"name": n, "in": "query", "schema": schema, "description": text} for n, (text, schema) in about.items()]
    return {"requestBody": body, "parameters": query}
