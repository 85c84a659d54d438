"""Tests the service: scores of predict_hf.py, batches, limits, and wrong requests, without a server."""

import base64
import configparser
import functools
import json
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import ROOT, encoded, tone, write_tone
from starlette.testclient import TestClient
from tiny_detectors import DETECTION, long_tones, save_tiny_detector
from tiny_models import save_tiny_classifier
from transformers import AutoModel

import predict_hf
import serve_hf
from hub.space import DISTRIBUTIONS, imported
from modeling_dual_ssast import DualSSASTModel
from training.base.inference import labels_of, load_classifier
from training.base.open_set import NUM_QUANTILES, SCORES, EmbeddingHook, OpenSet, energies
from training.data.events import read_events
from training.recipe import parse_words
from training.serving import service as serving
from training.serving.arguments import ServingArguments
from training.serving.batching import SIMILAR, Batcher
from training.serving.service import KINDS, Service, build

NAMES = ("high", "low", "mid")
RATE = 16000
WAV = encoded(tone(0.5), RATE, "WAV")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"))


def make(folder, **limits) -> Service:
    model, extractor = load_classifier(str(folder), of_frames=True)
    return Service("tiny", model, extractor, labels_of("tiny", model.config), ServingArguments(**limits))


@pytest.fixture
def serve(folder):
    """Returns a function that makes a service with limits, and a client of it."""
    opened = []

    def start(where=folder, **limits) -> tuple[Service, TestClient]:
        service = make(where, **limits)
        client = TestClient(build(service))
        opened.append(client.__enter__())
        return service, client

    yield start
    for client in opened:
        client.__exit__(None, None, None)


def post_file(client, content=WAV, name="clip.wav", path="classify", **parameters):
    return client.post(f"/{path}", files={"file": (name, content)}, data=parameters)


def post_json(client, inputs, path="classify", **parameters):
    return client.post(f"/{path}", json={"inputs": inputs, "parameters": parameters})


def scores_of(answer: dict) -> list[float]:
    return [next(entry["score"] for entry in answer["scores"] if entry["label"] == name) for name in NAMES]


def test_scores_are_those_of_predict_hf_whatever_waits_beside_a_clip(serve, folder, tmp_path):
    for index, seconds in enumerate((0.5, 0.1, 3.0, 0.3, 0.55, 0.45, 1.0, 0.66)):
        rate, channels = (44100, 2) if index % 2 else (RATE, 1)
        write_tone(
            tmp_path / "clips" / f"{index}.flac", seconds=seconds, hz=100 * 2**index, rate=rate, channels=channels
        )
    output = tmp_path / "scores.csv"
    assert predict_hf.main([str(folder), str(tmp_path / "clips"), "--output", str(output)]) == 0
    table = pandas.read_csv(output)
    service, client = serve(max_wait_ms=50.0)
    sizes = []
    service.batcher.observe = sizes.append
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: post_file(client, Path(path).read_bytes()).json(), table["file"]))
    np.testing.assert_allclose([scores_of(a) for a in answers], table[[f"probability_{n}" for n in NAMES]], atol=1e-5)
    assert [answer["prediction"] for answer in answers] == table["prediction"].tolist()
    assert max(sizes) > 1  # they were joined


@pytest.mark.parametrize("kind", ["classify", "embed"])
def test_a_row_does_not_depend_on_the_clips_beside_it(serve, kind):
    service, _ = serve()
    clips = [tone(seconds, hz=800 * seconds) for seconds in (0.5, 0.1, 0.4)]
    alone = np.concatenate([service.compute(kind, [clip]) for clip in clips])
    np.testing.assert_allclose(service.compute(kind, clips), alone, atol=1e-5)


def test_windows_have_the_times_and_scores_of_predict_hf(serve, folder, tmp_path):
    path = write_tone(tmp_path / "long.wav", seconds=3.3)
    words = [str(folder), str(path), "--windows", str(tmp_path / "w.csv"), "--window_s", "0.4", "--hop_s", "0.3"]
    assert predict_hf.main(words) == 0
    table = pandas.read_csv(tmp_path / "w.csv")
    _, client = serve(max_batch=3)
    answer = post_file(client, path.read_bytes(), windows="true", window_s="0.4", hop_s=0.3).json()
    rows = answer["windows"]
    np.testing.assert_allclose([[row["start_s"], row["end_s"]] for row in rows], table[["start_s", "end_s"]], atol=1e-6)
    np.testing.assert_allclose([scores_of(row) for row in rows], table[[f"probability_{n}" for n in NAMES]], atol=1e-5)
    assert answer["file"] == "clip.wav" and answer["seconds"] == 3.3


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory):
    """A classifier with statistics as a training leaves them, but made up, and clips that are known and unknown."""
    folder = save_tiny_classifier(tmp_path_factory.mktemp("open") / "model")
    model, extractor = load_classifier(str(folder))
    hook, clips = EmbeddingHook(model), folder.with_name("clips")
    files = [write_tone(clips / f"{index}.wav", seconds=(0.5, 2.0)[index % 2], hz=90 * 2**index) for index in range(6)]
    logits = [model.classify_windows(soundfile.read(file, dtype="float32")[0], extractor).logits for file in files]
    means = hook.take()[:3]
    found = OpenSet(means, torch.eye(*means.shape)[:2], torch.tensor([2.0, 1.0, 0.5]), {})
    values = torch.stack([energies(one.view(1, -1)) for one in logits])[:, 0]
    for name, scores in {"energy": values, "distance": torch.linspace(0, 3, 6)}.items():
        found.quantiles[name] = torch.quantile(scores, torch.linspace(0, 1, NUM_QUANTILES))
    found.save(model, folder)
    return folder


def rejecting(folder, *words) -> Service:
    (arguments,) = parse_words(
        (serve_hf.ServeArguments,), ["--model", str(folder), "--dtype", "float32", *words], "", ""
    )
    model, extractor, rejection = serve_hf.load(arguments)
    return Service("tiny", model, extractor, labels_of("tiny", model.config), arguments, rejection)


@pytest.mark.parametrize("score", SCORES)
def test_what_predict_hf_rejects_is_rejected(open_folder, tmp_path, score):
    words = ["--reject", "0.5", "--reject_by", score]
    tables = ["--output", str(tmp_path / "scores.csv"), "--windows", str(tmp_path / "windows.csv")]
    clips = [str(open_folder), str(open_folder.with_name("clips")), "--dtype", "float32"]
    assert predict_hf.main([*clips, *words, *tables]) == 0
    files, windows = (pandas.read_csv(tmp_path / f"{name}.csv") for name in ("scores", "windows"))
    assert 0 < (files["prediction"] == "unknown").sum() < len(files)
    with TestClient(build(rejecting(open_folder, *words))) as client:
        answers = [post_file(client, Path(file).read_bytes(), windows="true").json() for file in files["file"]]
        events = post_file(client, Path(files["file"][1]).read_bytes(), path="events", threshold="0.1").json()
    assert [answer["prediction"] for answer in answers] == files["prediction"].tolist()
    np.testing.assert_allclose([answer[score] for answer in answers], files[score], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([scores_of(a) for a in answers], files[[f"probability_{n}" for n in NAMES]], atol=1e-5)
    found = [window[score] for answer in answers for window in answer["windows"]]
    np.testing.assert_allclose(found, windows[score], rtol=1e-4, atol=1e-5)
    assert {event["label"] for event in events["events"]} <= {*NAMES}
    with TestClient(build(rejecting(open_folder))) as client:
        answer = post_file(client, Path(files["file"][0]).read_bytes(), windows="true").json()
    assert score not in answer and score not in answer["windows"][0] and answer["prediction"] in NAMES


def test_a_pass_that_failed_leaves_no_distances_behind(open_folder, monkeypatch):
    service = rejecting(open_folder, "--reject", "0.5")
    clips = [tone(0.5, hz=300), tone(0.5, hz=3000)]
    wanted = service.compute("classify", clips[:1])
    with monkeypatch.context() as patch:
        patch.setattr(service.model.classifier.dense, "forward", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            service.compute("classify", clips[::-1])
    np.testing.assert_array_equal(service.compute("classify", clips[:1]), wanted)


def test_rejection_without_statistics_is_one_line(folder, capsys):
    assert serve_hf.main([str(folder), "--port", "0", "--reject", "0.95"]) == 1
    assert "has no open_set.safetensors, which --reject needs" in capsys.readouterr().err


@pytest.mark.parametrize("path", KINDS)
def test_every_form_of_a_request_has_the_same_answer(serve, path):
    _, client = serve()
    samples = tone(0.5, 48000, channels=2)
    content = encoded(samples, 48000, "WAV", "FLOAT")
    text = base64.b64encode(content).decode()
    answers = [
        post_file(client, content, path=path).json(),
        post_json(client, text, path).json(),
        post_json(client, {"array": samples.tolist(), "sampling_rate": 48000}, path).json(),
        client.post(f"/{path}", content=content, headers={"content-type": "audio/wav"}).json(),
        post_json(client, [text, text], path).json()[1],
        client.post(f"/{path}", files=[("file", ("a", content)), ("file", ("b", content))]).json()[0],
    ]
    for answer in answers:
        assert answer.keys() == answers[0].keys() and len(flat(answer)) > 1
        assert flat(answer) == pytest.approx(flat(answers[0]), abs=1e-5)


def flat(value) -> list[float]:
    """All numbers of an answer, in order."""
    if isinstance(value, (dict, list)):
        return [number for item in (value.values() if isinstance(value, dict) else value) for number in flat(item)]
    return [value] if isinstance(value, (int, float)) else []


def test_vectors_are_those_of_embed(serve, folder):
    _, client = serve()
    model = DualSSASTModel.from_pretrained(folder).eval()
    for seconds in (0.2, 2.5):
        answer = post_file(client, encoded(tone(seconds), RATE, "WAV", "FLOAT"), path="embed").json()
        np.testing.assert_allclose(answer["embedding"], model.embed(tone(seconds), RATE)[0], atol=1e-5)


def test_events_are_windows_that_a_class_wins(serve):
    _, client = serve()
    audio = encoded(tone(3.0), RATE, "WAV", "FLOAT")
    windows = post_file(client, audio, windows=True, window_s=0.5, hop_s=0.5).json()["windows"]
    events = post_file(client, audio, path="events", window_s=0.5, hop_s=0.5, threshold=0.2).json()["events"]
    won = {(w["start_s"], w["scores"][0]["label"]) for w in windows if w["scores"][0]["score"] > 0.2}
    covered = set()
    for event in events:
        inside = [w["start_s"] for w in windows if event["start_s"] <= w["start_s"] and w["end_s"] <= event["end_s"]]
        covered |= {(start_s, event["label"]) for start_s in inside}
    assert events and won == covered
    assert post_file(client, audio, path="events", threshold=1).json()["events"] == []


def test_events_of_several_labels_have_the_models_thresholds(serve, tmp_path):
    _, client = serve(
        save_tiny_classifier(
            tmp_path, problem_type="multi_label_classification", decision_thresholds=[1e-9, 1 - 1e-9, 1e-9]
        )
    )
    audio = encoded(tone(3.0), RATE, "WAV", "FLOAT")
    for parameters, expected in (({}, ["high", "mid"]), ({"min_duration_s": 3.1}, []), ({"threshold": 1}, [])):
        events = post_file(client, audio, path="events", **parameters).json()["events"]
        assert sorted(event["label"] for event in events) == expected
        assert all((event["start_s"], event["end_s"]) == (0, 3) for event in events)


@pytest.fixture(scope="module", params=["dual_ssast", "vggish"])
def detector(request, tmp_path_factory):
    return save_tiny_detector(tmp_path_factory.mktemp("detector") / request.param, request.param)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"window_s": 2.1, "hop_s": 1.0}, {"threshold": 0.45}, {"threshold": 0.6, "low_threshold": 0.4},
     {"max_gap_s": 0.3, "min_duration_s": 0.2, "median_steps": 5}],
)  # fmt: skip
def test_time_frames_have_the_events_and_scores_of_predict_hf(serve, detector, tmp_path, parameters):
    """Of recordings of one window and of many, whatever waits beside their windows; the model's own settings hold."""
    if "window_s" in parameters and detector.name == "dual_ssast":
        parameters = {"window_s": 0.5, "hop_s": 0.12}
    files = []
    for index, seconds in enumerate((0.03, 0.4, 2.0, 5.2, 4.1)):
        files.append(tmp_path / f"{index}.wav")
        soundfile.write(files[-1], long_tones()[-round(seconds * RATE) :], RATE)
    words = [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
    tables = [word for name in ("events", "output", "windows") for word in (f"--{name}", str(tmp_path / f"{name}.csv"))]
    assert predict_hf.main([str(detector), *map(str, files), *tables, *words]) == 0
    expected, rows = read_events(tmp_path / "events.csv"), pandas.read_csv(tmp_path / "output.csv")
    _, client = serve(detector, max_batch=3, max_wait_ms=20.0)
    post = functools.partial(post_file, client)
    with ThreadPoolExecutor(len(files)) as pool:
        found = list(pool.map(lambda file: post(file.read_bytes(), path="events", **parameters).json(), files))
    for file, answer in zip(files, found, strict=True):
        own = expected[str(file)]
        assert [event["label"] for event in answer["events"]] == [event.label for event in own]
        times = [[event["start_s"], event["end_s"]] for event in answer["events"]]
        np.testing.assert_allclose(
            np.reshape(times, (-1, 2)), np.reshape([event[:2] for event in own], (-1, 2)), atol=1e-6
        )
        assert [event["score"] for event in answer["events"]] == pytest.approx([event.score for event in own], abs=1e-5)
    assert sum(map(len, expected.values())) > 1 or "threshold" in parameters
    names = ("owl", "wren")
    sizes = {name: value for name, value in parameters.items() if name in ("window_s", "hop_s")}
    frames = pandas.read_csv(tmp_path / "windows.csv").groupby("file")
    for file, (_, row) in zip(files, rows.iterrows(), strict=True):
        answer = post(file.read_bytes(), windows=True, **sizes).json()
        scores = [{entry["label"]: entry["score"] for entry in one["scores"]} for one in (answer, *answer["windows"])]
        own = frames.get_group(str(file))
        wanted = np.vstack([row[[f"probability_{n}" for n in names]], own[[f"probability_{n}" for n in names]]])
        np.testing.assert_allclose([[one[n] for n in names] for one in scores], wanted.astype(float), atol=1e-5)
        times = [[one["start_s"], one["end_s"]] for one in answer["windows"]]
        np.testing.assert_allclose(times, own[["start_s", "end_s"]], atol=1e-6)
        assert answer["prediction"] == ([] if pandas.isna(row["prediction"]) else row["prediction"].split(","))


def test_predictions_obey_the_thresholds_of_the_events(serve, tmp_path):
    folder = save_tiny_detector(tmp_path / "model", event_detection={"high": [1.0, 0.0]})
    _, client = serve(folder)
    soundfile.write(tmp_path / "a.wav", long_tones()[:RATE], RATE)
    assert post_file(client, (tmp_path / "a.wav").read_bytes()).json()["prediction"] == ["wren"]


def test_frames_of_a_clip_do_not_depend_on_the_clips_beside_it(serve, detector):
    service, client = serve(detector)
    clips = [tone(seconds, hz=800 * seconds) for seconds in (0.5, 0.11, 0.4)]
    for together, clip in zip(service.compute("classify", clips), clips, strict=True):
        (alone,) = service.compute("classify", [clip])
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    response = post_file(client, path="events", low_threshold=0.9)
    assert response.status_code == 422 and "low_threshold 0.9: the threshold of owl is 0.5" in response.json()["error"]
    assert DETECTION["high"][0] == 0.5
    vector = post_file(client, encoded(clips[0], RATE, "WAV", "FLOAT"), path="embed").json()["embedding"]
    expected = AutoModel.from_pretrained(detector).eval().embed(clips[0], RATE)[0]
    np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_the_size_of_an_answer_is_limited(serve, detector, monkeypatch):
    """Before it is built: a long recording of many labels would need gigabytes."""
    service, client = serve(detector)
    audio = encoded(tone(1.0), RATE, "WAV")
    frames = len(post_file(client, audio, windows=True).json()["windows"])
    labels = len(service.labels.names)
    monkeypatch.setattr(serving.handler, "MOST_SCORES", frames * labels - 1)
    response = post_file(client, audio, windows=True)
    assert response.status_code == 413
    assert f"windows: {frames * labels} scores, more than {frames * labels - 1}" in response.json()["error"]
    assert post_file(client, audio).status_code == post_file(client, audio, windows=True, top_k=1).status_code == 200
    monkeypatch.setattr(serving, "MOST_LOGITS", 1)
    response = post_file(client, audio, hop_s=0.1)
    assert response.status_code == 413 and "take a longer hop_s" in response.json()["error"]
    assert not any(service.held.values())


def test_the_windows_that_a_detector_has_stored_hold(serve, tmp_path):
    """In predict_hf.py and the service alike; those of a request replace them."""
    own = DETECTION | {"window_s": 0.4, "hop_s": 0.12}
    where = save_tiny_detector(tmp_path / "model", event_detection=own)
    soundfile.write(tmp_path / "a.wav", long_tones(), RATE)
    _, client = serve(where)
    scores = []
    for sizes in ({}, {"window_s": 0.5}):
        words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
        table = tmp_path / f"{len(sizes)}.csv"
        assert predict_hf.main([str(where), str(tmp_path / "a.wav"), "--windows", str(table), *words]) == 0
        answer = post_file(client, (tmp_path / "a.wav").read_bytes(), windows=True, **sizes).json()
        found = [{entry["label"]: entry["score"] for entry in one["scores"]}["owl"] for one in answer["windows"]]
        np.testing.assert_allclose(found, pandas.read_csv(table)["probability_owl"], atol=1e-5)
        scores.append(found)
    assert np.abs(np.subtract(*scores)).max() > 1e-3


def test_windows_of_a_clip_classifier_have_the_models_own_settings(serve, tmp_path):
    """Median filter, second threshold, shortest event and gap of the configuration, as predict_hf.py obeys them."""
    settings = {"high": 0.505, "low": 0.5, "median_steps": 3, "min_duration_s": 0.3, "max_gap_s": 0.2}
    where = save_tiny_classifier(
        tmp_path / "model", problem_type="multi_label_classification", event_detection=settings
    )
    soundfile.write(tmp_path / "a.wav", long_tones(), RATE)
    words = [str(where), str(tmp_path / "a.wav"), "--events", str(tmp_path / "e.csv"), "--hop_s", "0.1"]
    assert predict_hf.main(words) == 0
    (wanted,) = read_events(tmp_path / "e.csv").values()
    _, client = serve(where)
    found = post_file(client, (tmp_path / "a.wav").read_bytes(), path="events", hop_s=0.1).json()["events"]
    assert [(e["start_s"], e["end_s"], e["label"]) for e in found] == [(*map(float, e[:2]), e.label) for e in wanted]
    assert wanted


def test_several_labels_and_a_number(serve, tmp_path):
    multi = save_tiny_classifier(
        tmp_path / "multi", problem_type="multi_label_classification", decision_thresholds=[1e-9, 1 - 1e-9, 1e-9]
    )
    _, client = serve(multi)
    assert post_file(client).json()["prediction"] == ["high", "mid"]
    number = save_tiny_classifier(tmp_path / "number", labels=("x",), problem_type="regression", num_labels=1)
    _, client = serve(number)
    answer = post_file(client).json()
    assert answer["prediction"] == answer["scores"][0]["score"] and answer["scores"][0]["label"] == "value"
    response = post_file(client, path="events")
    assert response.status_code == 422 and "it has no events; use /classify" in response.json()["error"]


WRONG = {
    "no file": (lambda c: c.post("/classify", files={"other": ("a", WAV)}), 422, "other: expected one file"),
    "an empty form": (lambda c: c.post("/classify", files={}, data={}, headers=FORM), 400, "boundary"),
    "a text as file": (lambda c: c.post("/classify", files={"file": (None, "1")}), 422, "file: expected one file"),
    "an empty file": (lambda c: post_file(c, b""), 422, "clip.wav: "),
    "rubbish": (lambda c: post_file(c, b"rubbish", "x/../a\nb\0.wav"), 422, r"a%0Ab%00.wav: not readable as audio"),
    "a cut file": (lambda c: post_file(c, WAV[:40]), 422, "clip.wav: "),
    "NaN in a file": (lambda c: post_file(c, encoded(np.full(99, np.nan), RATE, "WAV", "FLOAT")), 422, "NaN"),
    "no content": (lambda c: c.post("/classify"), 415, "content-type (none): send multipart/form-data"),
    "text": (lambda c: c.post("/classify", content=b"x", headers={"content-type": "text/plain"}), 415, "text/plain"),
    "no JSON": (lambda c: c.post("/classify", content=b"{", headers=JSON), 422, "the body is not JSON"),
    "no UTF-8": (lambda c: c.post("/classify", content=b'{"\xff"', headers=JSON), 422, "the body is not JSON"),
    "deep JSON": (lambda c: c.post("/classify", content=b"[" * 10**6, headers=JSON), 422, "the body is not JSON"),
    "NaN in JSON": (lambda c: c.post("/classify", content=b'{"inputs": NaN}', headers=JSON), 422, "not JSON"),
    "a list": (lambda c: c.post("/classify", json=[1]), 422, "expected {"),
    "other keys": (lambda c: c.post("/classify", json={"inputs": "", "parameter": {}}), 422, "expected {"),
    "a path": (lambda c: post_json(c, "/etc/hostname"), 422, "inputs: "),
    "a number of 5000 digits": (lambda c: c.post("/classify", content=DIGITS, headers=JSON), 422, ""),
    "half a surrogate pair": (lambda c: c.post("/classify", content=SURROGATE, headers=JSON), 422, ""),
    "an unknown parameter": (lambda c: post_file(c, hop=1), 422, "unknown name 'hop'; did you mean hop_s?"),
    "in the query": (lambda c: c.post("/classify?windows=x", files={"file": WAV}), 422, "windows: must be true or"),
    "a parameter of another path": (lambda c: post_file(c, path="embed", top_k=1), 422, "unknown name 'top_k'"),
    "a long window": (lambda c: post_file(c, window_s=5), 422, "window_s must be positive and at most"),
    "a long filter": (lambda c: post_file(c, path="events", median_steps=40001), 422, "must be a whole number"),
    "a million windows": (lambda c: post_file(c, encoded(tone(30), RATE, "WAV"), hop_s=0.001), 413, "windows, more"),
    "samples without rate": (lambda c: post_json(c, [0.1, 0.2]), 422, "without their sampling_rate"),
    "many clips": (lambda c: post_json(c, ["AAAA"] * 1001), 413, "1001 clips"),
    "a wrong address": (lambda c: c.get("/nothing"), 404, "Not Found"),
    "a wrong method": (lambda c: c.get("/classify"), 405, "Method Not Allowed"),
}  # fmt: skip
JSON, FORM = {"content-type": "application/json"}, {"content-type": "multipart/form-data"}
DIGITS = b'{"inputs": {"array": [' + b"1" * 5000 + b'], "sampling_rate": ' + b"1" * 5000 + b"}}"
SURROGATE = b'{"inputs": {"\\ud800": 1}, "parameters": {"\\udfff": 1}}'


@pytest.mark.parametrize(("request_", "status", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_one_line(serve, request_, status, message):
    service, client = serve()
    response = request_(client)
    assert response.status_code == status
    (error,) = response.json().values()
    assert message in error and "\n" not in error and len(error) < 600
    assert not any(service.held.values())


def damaged(rng: random.Random) -> dict:
    """A request with something wrong, mostly."""
    values = [
        None,
        "",
        "x",
        -1,
        0,
        1e308,
        10**30,
        True,
        [],
        {},
        [[]],
        {"array": [0.1]},
        "AAAA",
        "é",
        [0.1],
        "1e3",
        "nan",
    ]
    content = bytearray(rng.choice([WAV, encoded(tone(0.2), RATE, "FLAC"), encoded(tone(0.2), RATE, "OGG", "VORBIS")]))
    for _ in range(rng.randrange(20)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    content = bytes(content[: rng.randrange(len(content) + 1)])
    parameters = {
        name: rng.choice(values) for name in rng.sample([*serving.handler.PARAMETERS, "x\ud800"], rng.randrange(4))
    }
    kind = rng.randrange(5)
    if kind == 0:
        inputs = rng.choice([*values, {"array": rng.choice(values), "sampling_rate": rng.choice(values)}])
        body = json.dumps(
            {rng.choice(["inputs", "inputs", "x"]): inputs, "parameters": rng.choice([parameters, *values])}
        )
        return {"content": body.encode(), "headers": JSON}
    if kind == 1:
        body = bytearray(json.dumps({"inputs": base64.b64encode(content).decode(), "parameters": parameters}).encode())
        for _ in range(rng.randrange(5)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        return {"content": bytes(body), "headers": JSON}
    if kind == 2:
        return {"content": content, "headers": {"content-type": rng.choice(["audio/wav", "video/mp4", "AUDIO/x; y"])}}
    if kind == 3:
        data = {name: str(value) for name, value in parameters.items() if name.isascii()}
        return {"files": {rng.choice(["file", "file", "x"]): ("a.wav", content)}, "data": data}
    boundary = rng.choice([b"x", b"", b'"', b"y" * 300])
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + content + b"\r\n--x--\r\n"
    form = bytearray(form[: rng.randrange(len(form) + 1)])
    return {"content": bytes(form), "headers": {"content-type": b"multipart/form-data; boundary=" + boundary}}


def check_damaged_requests(service, client, count: int, seed: int):
    rng = random.Random(seed)
    statuses = set()
    for number in range(count):
        words = damaged(rng)
        response = client.post(f"/{rng.choice(list(KINDS))}", **words)
        statuses.add(response.status_code)
        assert response.status_code in (200, 400, 413, 415, 422), (number, words, response.text)
        if response.status_code != 200:
            assert list(response.json()) == ["error"] and "\n" not in response.json()["error"]
    assert {200, 415, 422} - statuses <= {415}
    assert not any(service.held.values()) and post_file(client).status_code == 200


def test_damaged_requests_are_refused(serve):
    check_damaged_requests(*serve(), 100, 0)


@pytest.mark.slow
def test_a_thousand_damaged_requests_are_never_an_internal_error(serve):
    check_damaged_requests(*serve(), 1000, 1)


def test_requests_have_a_size(serve):
    service, client = serve(max_mb=0.01)
    large = encoded(tone(1.0), RATE, "WAV")
    response = post_file(client, large)
    assert response.status_code == 413 and "the request: has 0.0 MB, more than 0.01" in response.json()["error"]
    chunks = (large[first : first + 1000] for first in range(0, len(large), 1000))  # without Content-Length
    response = client.post("/classify", content=chunks, headers={"content-type": "audio/wav"})
    assert response.status_code == 413 and not any(service.held.values())


def test_recordings_have_a_length_alone_and_together(serve):
    _, client = serve(max_s=1.0)
    long = encoded(np.zeros(RATE * 2, dtype=np.float32), RATE, "FLAC")
    assert post_file(client, long).status_code == 413
    assert "clip.wav: has 2.0 s, more than 1; cut the recording" in post_file(client, long).json()["error"]
    assert post_json(client, {"array": [0.0] * 2 * RATE, "sampling_rate": RATE}).status_code == 413
    half = base64.b64encode(encoded(tone(0.4), RATE, "WAV")).decode()
    assert post_json(client, [half] * 2).status_code == 200
    response = post_json(client, [half] * 3)
    assert response.status_code == 413 and "inputs[2]: has 0.4 s, more than 0.2" in response.json()["error"]


def test_a_full_queue_is_told_and_empties(serve):
    service, client = serve(max_queue=2, max_batch=1)
    let_go, started = threading.Event(), threading.Semaphore(0)
    compute = service.batcher.compute

    def slow(*arguments):
        started.release()
        assert let_go.wait(30)
        return compute(*arguments)

    service.batcher.compute = slow
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(post_file, client) for _ in range(2)]
        started.acquire()
        while service.held["requests"] < 2:
            threading.Event().wait(0.01)
        refused = post_file(client)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json() == {"error": "the service is busy; try again in 1 s"}
        assert client.get("/health").status_code == 200
        let_go.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert post_file(client).status_code == 200 and not any(service.held.values())


def test_what_all_requests_hold_is_limited(serve, monkeypatch):
    service, client = serve()
    monkeypatch.setitem(service.most, "seconds", 0.4)
    assert post_file(client).status_code == 503
    monkeypatch.setitem(service.most, "seconds", 0.6)
    assert post_file(client).status_code == 200
    monkeypatch.setitem(service.most, "bytes", 1000)
    assert post_file(client).status_code == 503 and not any(service.held.values())


def test_an_internal_error_is_one_line_and_leaves_the_service_running(serve, monkeypatch):
    service, client = serve()
    with monkeypatch.context() as patch:
        patch.setattr(service.batcher, "compute", lambda *_: 1 / 0)
        response = post_file(client)
    assert response.status_code == 500
    assert response.json() == {"error": "the service has an internal error; its log says which"}
    assert post_file(client).status_code == 200


def test_scores_that_are_not_finite_are_refused(serve):
    service, client = serve()
    with torch.no_grad():
        service.model.classifier.dense.bias[0] = float("inf")
    response = post_file(client)
    assert response.status_code == 422 and "clip.wav: the model's numbers overflow" in response.json()["error"]


def rows(kind: str, clips: list[np.ndarray]) -> np.ndarray:
    return np.array([[len(clip)] for clip in clips])


def gather(batcher: Batcher, lengths: list[int], kind: str = "classify") -> list[list[int]]:
    """The lengths in the batches in which clips that wait together are computed."""
    batches, compute = [], batcher.compute
    first = threading.Event()

    def watched(kind, clips):
        first.wait(10)
        batches.append([len(clip) for clip in clips])
        return compute(kind, clips)

    batcher.compute = watched
    futures = [batcher.submit(kind, np.zeros(length)) for length in (10**6, *lengths)]
    first.set()
    assert [int(future.result(10)[0]) for future in futures] == [10**6, *lengths]
    batcher.close()
    return batches[1:]


def test_batches_hold_similar_lengths_and_the_oldest_comes_first():
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 1000, 200).tolist()
    batches = gather(Batcher(rows, 8, 0.0), lengths)
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    assert all(len(batch) <= 8 and max(batch) <= SIMILAR * min(batch) for batch in batches)
    assert len(batches) < 60 and batches[0][0] == lengths[0]
    assert gather(Batcher(rows, 1, 0.0), [5, 5, 5]) == [[5], [5], [5]]


def test_kinds_are_not_mixed():
    seen = []
    batcher = Batcher(lambda kind, clips: seen.append((kind, len(clips))) or rows(kind, clips), 8, 0.2)
    futures = [batcher.submit(kind, np.zeros(9)) for kind in ("a", "b", "a", "b", "a")]
    assert [int(future.result(10)[0]) for future in futures] == [9] * 5
    batcher.close()
    assert sorted(seen) == [("a", 3), ("b", 2)]


def test_one_clip_that_fails_does_not_fail_those_beside_it():
    def fails(kind, clips):
        if any(len(clip) == 101 for clip in clips):
            raise MemoryError
        return rows(kind, clips)

    batcher = Batcher(fails, 8, 0.2)
    futures = [batcher.submit("classify", np.zeros(length)) for length in (100, 101, 102)]
    assert isinstance(futures[1].exception(10), MemoryError)
    assert [int(future.result(10)[0]) for future in (futures[0], futures[2])] == [100, 102]
    assert batcher.is_alive()
    batcher.close()


def test_a_clip_that_nobody_waits_for_is_not_computed_and_the_rest_is_finished():
    sizes = []
    batcher = Batcher(rows, 8, 10.0, sizes.append)
    futures = [batcher.submit("classify", np.zeros(9)) for _ in range(3)]
    futures[1].cancel()
    batcher.close()  # does not wait for others
    assert sizes == [2] and not batcher.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("classify", np.zeros(9))


def test_health_says_when_the_model_is_gone(serve):
    service, client = serve()
    assert client.get("/health").json() == {"status": "ok", "model": "tiny"}
    service.batcher.close()
    assert client.get("/health").status_code == 503


def test_metrics_count_requests_batches_and_audio(serve):
    _, client = serve()
    post_file(client)
    post_file(client, b"rubbish")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    assert 'dual_ssast_requests_total{path="classify",status="200"} 1.0' in lines
    assert 'dual_ssast_requests_total{path="classify",status="422"} 1.0' in lines
    assert 'dual_ssast_batch_size_bucket{le="1.0"} 1.0' in lines and "dual_ssast_audio_seconds_total 0.5" in lines
    assert "dual_ssast_held_requests 0.0" in lines


def test_openapi_describes_every_parameter_and_its_page_fetches_nothing_from_elsewhere(serve):
    _, client = serve()
    paths = client.get("/openapi.json").json()["paths"]
    for kind, (known, _, example) in KINDS.items():
        body = paths[f"/{kind}"]["post"]["requestBody"]["content"]
        assert {item["name"] for item in paths[f"/{kind}"]["post"]["parameters"]} == set(known)
        assert set(body["multipart/form-data"]["schema"]["properties"]) == {"file"}
        assert set(body["application/json"]["schema"]["properties"]["parameters"]["properties"]) == set(known)
        assert post_file(client, path=kind).json().keys() == example.keys()
    page = client.get("/docs").text
    fetched = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(fetched) >= 2 and "//" not in "".join(fetched)
    for address in fetched:
        assert client.get(address).status_code == 200


def test_wrong_options_are_told_before_the_model_is_loaded(folder, capsys):
    assert serve_hf.main([]) == 1
    assert serve_hf.main([str(folder), "--max_batch", "0"]) == 1
    assert serve_hf.main([str(folder), "--host", "256.0.0.1"]) == 1
    with serve_hf.listening("127.0.0.1", 0) as taken:
        assert serve_hf.main([str(folder), "--port", str(taken.getsockname()[1])]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    assert "max_batch: must be 1 or more, got 0" in lines[1] and "name another --host or --port" in lines[3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision_and_device_are_those_of_predict_hf(folder, tmp_path, capsys, monkeypatch, dtype):
    monkeypatch.setattr("training.inference.precision.is_emulated", lambda dtype, device: False)
    write_tone(tmp_path / "clip.wav", seconds=0.5)
    words = [str(folder), "--dtype", dtype, "--device", "cpu"]
    assert predict_hf.main([*words, str(tmp_path / "clip.wav"), "--output", str(tmp_path / "scores.csv")]) == 0
    wanted = pandas.read_csv(tmp_path / "scores.csv")[[f"probability_{name}" for name in NAMES]].to_numpy()[0]
    capsys.readouterr()
    arguments = serve_hf.ServeArguments(model=str(folder), dtype=dtype, device="cpu", threads=1)
    model, extractor, _ = serve_hf.load(arguments)
    assert capsys.readouterr().err == f"weights: {dtype} on cpu\n" and torch.get_num_threads() == 1
    service = Service("tiny", model, extractor, labels_of("tiny", model.config), arguments)
    with TestClient(build(service)) as client:
        found = scores_of(post_file(client, (tmp_path / "clip.wav").read_bytes()).json())
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert next(model.parameters()).dtype == getattr(torch, dtype)
    assert serve_hf.main([str(folder), "--port", "0", "--device", "cuda:77"]) == 1
    assert "device cuda:77: cannot be used here" in capsys.readouterr().err


def test_a_missing_package_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve_hf.main([str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('; pip install "modeling-dual-ssast[serve]"') and "uvicorn" in line


DOCKER = ROOT / "docker" / "Dockerfile"


def extra(name: str) -> set[str]:
    """Names of the packages of an extra of setup.cfg, and of what every install has."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["options"]["install_requires"] + settings["options.extras_require"][name]
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines.split("\n") if line}


def test_the_image_has_what_the_program_imports_and_nothing_else_of_the_project():
    files, packages = imported(ROOT / "serve_hf.py", ROOT)
    with_torch = {"fsspec", "packaging", "safetensors", "starlette", "pydantic_core", "anyio"}  # come with the others
    needed = {DISTRIBUTIONS.get(name, name).lower() for name in packages - with_torch}
    assert {name.replace("_", "-") for name in needed} <= {name.replace("_", "-") for name in extra("serve")}
    text = DOCKER.read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    for path in files:
        assert path.relative_to(ROOT).parts[0] in copied, path
    allowed = DOCKER.with_name("Dockerfile.dockerignore").read_text().split()
    assert allowed[0] == "*" and {name.removeprefix("!") for name in allowed if name.startswith("!")} == set(copied)


def test_the_image_runs_as_a_user_with_the_tested_versions():
    text = DOCKER.read_text()
    assert re.search(r"^FROM python:3\.\d+-slim$", text, re.MULTILINE)
    # Without the argument packages come from pip's own index: no other address of packages is written down.
    assert "\nARG torch_index=\n" in text
    (command,) = re.findall(r"^RUN (pip .+ torch)$", text, re.MULTILINE)
    for url, words in (("", []), ("a b", ["--index-url", "a b"])):
        script = f"pip() {{ printf '%s|' \"$@\"; }}; {command}"
        found = subprocess.run(["sh", "-c", script], env={"torch_index": url}, capture_output=True, text=True).stdout
        assert found.split("|")[-len(words) - 2 :] == [*words, "torch", ""] and ("--index-url" in found) == bool(url)
        assert ("--no-deps" in found) == bool(url)  # that index lacks other packages in the tested versions
    assert set(re.findall(r"https?://[^/:\s]+", text)) == {"http://127.0.0.1"}
    assert all("--constraint constraints.txt" in line for line in re.findall(r"^RUN pip .+$", text, re.MULTILINE))
    assert text.index("\nUSER ") > text.rindex("\nRUN ") and "USER root" not in text
    assert '".[serve,formats]"' in text
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    assert json.loads(entry) == ["python", "serve_hf.py"]
    arguments = serve_hf.parse_program(json.loads(command), serve_hf.ServeArguments, "", "model")
    assert arguments.host == "0.0.0.0" and f"EXPOSE {arguments.port}\n" in text and f"{arguments.port}/health" in text
