"""Tests handler.py, which an Inference Endpoint runs: alone in a pushed folder, every form of input, and wrong ones."""

import base64
import configparser
import json
import math

import av
import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import ROOT, encoded, tone, write_tone
from fresh_process import run
from tiny_models import save_tiny_classifier, save_tiny_cnn

import predict_hf
from hub.endpoint import handler
from hub.push import choose_files
from modeling_dual_ssast import DualSSASTFeatureExtractor, DualSSASTForAudioClassification, DualSSASTModel
from training.data import audio, recordings, uploads

# As the container's toolkit loads it; the folder is the only one on the path.
NAMES = ("high", "low", "mid")
PROGRAM = """
import base64, importlib.util, json, pathlib
folder, clips = sys.argv[1], sorted(pathlib.Path(sys.argv[2]).iterdir())
assert not importlib.util.find_spec("training") and not importlib.util.find_spec("hub")
sys.path.insert(0, folder)
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
endpoint = module.EndpointHandler(folder)
parameters = json.loads(sys.argv[3])
one_by_one = [endpoint({"inputs": clip.read_bytes(), "parameters": dict(parameters)}) for clip in clips]
texts = [base64.b64encode(clip.read_bytes()).decode() for clip in clips]
together = endpoint(json.loads(json.dumps({"inputs": texts, "parameters": parameters})))
assert json.dumps(one_by_one) == json.dumps(together)
print("answer:" + json.dumps(together))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def endpoint(folder):
    return handler.EndpointHandler(str(folder))


@pytest.mark.skipif("torch.cuda.is_available()")
def test_a_folder_in_float16_is_read_in_float32_on_a_cpu(folder, tmp_path):
    DualSSASTForAudioClassification.from_pretrained(folder, dtype=torch.float16).save_pretrained(tmp_path)
    DualSSASTFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path)
    weights = handler.EndpointHandler(str(tmp_path)).model.parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    for name, seconds, rate, channels in (
        ("a.wav", 0.5, 44100, 2), ("b.flac", 3.0, 16000, 1), ("c.ogg", 0.3, 48000, 1), ("d.mp3", 0.6, 22050, 2),
    ):  # fmt: skip
        write_tone(folder / name, seconds=seconds, rate=rate, channels=channels, hz=200 + 50 * len(name) * rate / 16000)
    with av.open(str(folder / "e.m4a"), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    return folder


def predicted(folder, clips, tmp_path, *options) -> tuple[np.ndarray, pandas.DataFrame | None]:
    """What predict_hf.py writes: (files, labels), and the table of the windows."""
    words = [str(folder), str(clips), "--output", str(tmp_path / "scores.csv"), "--windows", str(tmp_path / "w.csv")]
    assert predict_hf.main([*words[: None if options else 4], *options]) == 0
    scores = pandas.read_csv(tmp_path / "scores.csv")[[f"probability_{name}" for name in NAMES]].to_numpy()
    return scores, pandas.read_csv(tmp_path / "w.csv") if options else None


def scores_of(answer: list[dict], names=NAMES) -> list[float]:
    return [next(entry["score"] for entry in answer if entry["label"] == name) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [{}, {"windows": True, "window_s": "0.5", "hop_s": 0.2}])
def test_a_pushed_folder_alone_gives_the_scores_of_predict_hf(folder, clips, tmp_path, parameters):
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for name, content in choose_files(folder, "user/name")[0].items():
        (pushed / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    printed = run(PROGRAM, tmp_path, pushed, clips, json.dumps(parameters))
    answers = json.loads(printed.split("answer:")[1].splitlines()[0])
    options = ["--window_s", "0.5", "--hop_s", "0.2"] if parameters else []
    expected, windows = predicted(folder, clips, tmp_path, *options)
    found = [scores_of(answer["scores"] if parameters else answer) for answer in answers]
    np.testing.assert_allclose(found, expected, atol=1e-5)  # other batches: last bits of float32
    if parameters:
        rows = [window for answer in answers for window in answer["windows"]]
        np.testing.assert_allclose([row["start_s"] for row in rows], windows["start_s"], atol=1e-6)
        np.testing.assert_allclose([row["end_s"] for row in rows], windows["end_s"], atol=1e-6)
        np.testing.assert_allclose([scores_of(row["scores"]) for row in rows], windows.iloc[:, 4:], atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        lambda samples: {"array": samples.tolist(), "sampling_rate": 48000},
        lambda samples: {"raw": samples, "sampling_rate": 48000.0},
        lambda samples: {"array": samples.T.tolist(), "sampling_rate": "48000"},
        lambda samples: encoded(samples, 48000, "WAV", "FLOAT"),
        lambda samples: bytearray(encoded(samples, 48000, "WAV", "FLOAT")),
        lambda samples: base64.encodebytes(encoded(samples, 48000, "WAV", "FLOAT")).decode(),
        lambda samples: "data:audio/wav;base64," + base64.b64encode(encoded(samples, 48000, "WAV", "FLOAT")).decode(),
    ],
)
def test_every_form_of_a_clip_has_the_same_scores(endpoint, form):
    samples = tone(0.5, 48000, channels=2)
    reference = scores_of(endpoint({"inputs": encoded(samples, 48000, "WAV", "FLOAT")}))
    np.testing.assert_allclose(scores_of(endpoint({"inputs": form(samples)})), reference, atol=1e-6)


def test_a_plain_list_of_samples_needs_its_rate(endpoint):
    samples = tone(0.4).astype(float).tolist()
    answer = endpoint({"inputs": samples, "parameters": {"sampling_rate": 16000}})
    assert answer == endpoint({"inputs": {"array": samples, "sampling_rate": 16000}})
    assert [answer] == endpoint({"inputs": [samples], "parameters": {"sampling_rate": 16000}})
    with pytest.raises(handler.RequestError, match="inputs: samples without their sampling_rate"):
        endpoint({"inputs": samples})


def test_parameters_choose_what_the_answer_has(endpoint):
    content = encoded(tone(2.0), 16000, "WAV")
    whole = endpoint({"inputs": content})
    assert [entry["score"] for entry in whole] == sorted((entry["score"] for entry in whole), reverse=True)
    assert endpoint({"inputs": content, "parameters": {"top_k": 2}}) == whole[:2]
    above = endpoint({"inputs": content, "parameters": {"threshold": whole[0]["score"]}})
    assert above == []  # a score at the threshold is not above it
    assert endpoint({"inputs": content, "parameters": {"threshold": whole[1]["score"]}}) == whole[:1]
    assert endpoint({"inputs": content, "parameters": {"top_k": None, "window_s": ""}}) == whole


@pytest.mark.parametrize("family", ["vggish", "cnn14"])
def test_other_families_answer_too(tmp_path, family):
    folder = save_tiny_cnn(tmp_path, family)
    answer = handler.EndpointHandler(str(folder))({"inputs": encoded(tone(1.5, 8000), 8000, "FLAC")})
    assert [entry["label"] for entry in answer] and sum(entry["score"] for entry in answer) == pytest.approx(1)


def test_an_encoder_is_refused(tmp_path, folder):
    DualSSASTModel.from_pretrained(folder).save_pretrained(tmp_path)
    DualSSASTFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no trained classifier, classifier.dense.bias is missing"):
        handler.EndpointHandler(str(tmp_path))


WAV = encoded(tone(0.3), 16000, "WAV")
WRONG = {
    "nothing": None,
    "no inputs": {"parameters": {}},
    "null": {"inputs": None},
    "empty list": {"inputs": []},
    "empty text": {"inputs": ""},
    "empty bytes": {"inputs": b""},
    "a number": {"inputs": 5},
    "a path": {"inputs": "/etc/hostname"},
    "an address": {"inputs": "https://example.org/a.wav"},
    "not base64": {"inputs": "é"},
    "base64 of a text": {"inputs": base64.b64encode(b"hello, this is no recording").decode()},
    "rubbish": {"inputs": b"RIFFrubbish"},
    "cut": {"inputs": WAV[:30]},
    "a broken m4a": {"inputs": b"\0\0\0\x20ftypM4A " + b"x" * 200},
    "a broken webm": {"inputs": b"\x1a\x45\xdf\xa3" + b"x" * 200},
    "a playlist": {"inputs": b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"},
    "ragged": {"inputs": {"array": [[0.1, 0.2], [0.3]], "sampling_rate": 16000}},
    "texts": {"inputs": {"array": ["0.1"], "sampling_rate": 16000}},
    "flags": {"inputs": {"array": [True, False], "sampling_rate": 16000}},
    "three axes": {"inputs": {"array": [[[0.1]]], "sampling_rate": 16000}},
    "no samples": {"inputs": {"array": [], "sampling_rate": 16000}},
    "PCM": {"inputs": {"array": [0, 12000, -12000], "sampling_rate": 16000}},
    "not a number": {"inputs": {"array": [0.1, math.nan], "sampling_rate": 16000}},
    "infinite": {"inputs": {"array": [0.1, math.inf], "sampling_rate": 16000}},
    "huge": {"inputs": {"array": [0.1, 1e300], "sampling_rate": 16000}},
    "a huge integer": {"inputs": {"array": [10**400], "sampling_rate": 16000}},
    "no rate": {"inputs": {"array": [0.1]}},
    "rate 0": {"inputs": {"array": [0.1], "sampling_rate": 0}},
    "rate 0.5": {"inputs": {"array": [0.1], "sampling_rate": 16000.5}},
    "rate of many digits": {"inputs": {"array": [0.1], "sampling_rate": 10**5000}},
    "other keys": {"inputs": {"samples": [0.1], "rate": 16000}},
    "many channels": {"inputs": {"array": [[0.1] * 100] * 100, "sampling_rate": 16000}},
    "second of a list": {"inputs": [WAV, None]},
    "many clips": {"inputs": [b"x"] * 1001},
    "parameters of a list": {"inputs": WAV, "parameters": [1]},
    "unknown parameter": {"inputs": WAV, "parameters": {"topk": 1}},
    "a name of megabytes": {"inputs": WAV, "parameters": {"x" * 10**6: 1}},
    "top_k 0": {"inputs": WAV, "parameters": {"top_k": 0}},
    "top_k 1.5": {"inputs": WAV, "parameters": {"top_k": 1.5}},
    "top_k true": {"inputs": WAV, "parameters": {"top_k": True}},
    "top_k of an object": {"inputs": WAV, "parameters": {"top_k": {}}},
    "threshold 2": {"inputs": WAV, "parameters": {"threshold": 2}},
    "threshold NaN": {"inputs": WAV, "parameters": {"threshold": "nan"}},
    "windows maybe": {"inputs": WAV, "parameters": {"windows": "maybe"}},
    "a window of an hour": {"inputs": WAV, "parameters": {"window_s": 3600}},
    "a hop that skips audio": {"inputs": WAV, "parameters": {"window_s": 0.1, "hop_s": 0.2}},
    "a million windows": {"inputs": encoded(tone(30), 16000, "WAV"), "parameters": {"hop_s": 0.001}},
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_one_line(endpoint, data):
    with pytest.raises(handler.RequestError) as caught:
        endpoint(data)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 500 and "Traceback" not in message
    assert "/etc/hostname" not in message


def test_recordings_that_would_fill_the_memory_are_refused_by_their_header(endpoint, monkeypatch):
    content = encoded(np.zeros((48000 * 20, 2), dtype=np.float32), 48000, "FLAC")  # a few kB
    monkeypatch.setattr(handler, "MOST_SAMPLES", 48000 * 20)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("was decoded"))
    with pytest.raises(handler.TooLong, match="20 s, 2 channels at 48000 Hz are too long"):
        endpoint({"inputs": content})
    slow = {"array": [0.1] * 31000, "sampling_rate": 500}  # resampled it is 32 times as long
    with pytest.raises(handler.TooLong, match="62 s, 1 channels at 500 Hz are too long"):
        endpoint({"inputs": slow})


def test_the_limits_are_those_of_the_page_and_the_service():
    assert handler.MOST_SAMPLES == uploads.MAX_SAMPLES and audio.HIGHEST == handler.HIGHEST
    assert (handler.LOWEST_RATE, handler.HIGHEST_RATE) == (recordings.LOWEST_RATE, recordings.HIGHEST_RATE)


def test_the_requirements_are_those_of_setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    known = {line for text in settings["options.extras_require"].values() for line in text.split("\n")}
    assert set((ROOT / "hub" / "endpoint" / "requirements.txt").read_text().split()) <= known


def test_a_folder_may_have_its_own_handler_and_an_encoder_has_none(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "handler.py").write_text("class EndpointHandler: pass\n")
    files, _ = choose_files(tmp_path, "user/name")
    assert files["handler.py"] == tmp_path / "handler.py" and "requirements.txt" not in files
    (tmp_path / "handler.py").unlink()
    settings = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["DualSSASTModel"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert not {"handler.py", "requirements.txt"} & set(choose_files(tmp_path, "user/name")[0])
