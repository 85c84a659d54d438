"""Tests the demo page: results, refused clips, the pushed Space, and all of it in a browser."""

import base64
import contextlib
import html
import json
import os
import re
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import gradio
import gradio_client
import httpx
import numpy as np
import pytest
import soundfile
import torch
import yaml
from audio_files import ROOT, free_port, write_tone
from huggingface_hub import snapshot_download
from packaging.requirements import Requirement
from tiny_detectors import long_tones, save_tiny_detector
from tiny_models import save_tiny_classifier, save_tiny_cnn

import app
import predict_hf
from hub import __main__ as hub_command
from hub import space
from hub.push import PushError
from training.data import uploads
from training.data.events import read_events
from training.errors import InputError
from training.inference import precision

FLOAT32 = precision.choose_hardware(precision.HardwareArguments(dtype="float32"))
ODD_LABELS = ('<b>&"low"</b>', "{{x}}", "${1+1}$")
# Runs app.py as its own program, and reports every connection that leaves this machine.
WATCHED = """
import runpy, sys
LOCAL = {"127.0.0.1", "::1", "localhost", "0.0.0.0", None}
def watch(event, values):
    if event == "socket.getaddrinfo" and values[0] not in LOCAL:
        print("ASKED FOR", values[0], flush=True)
    if event == "socket.connect" and isinstance(values[1], tuple) and values[1][0] not in LOCAL:
        print("CONNECTED TO", values[1], flush=True)
sys.addaudithook(watch)
sys.argv = ["app.py", *sys.argv[1:]]
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Returns a function that saves a classifier with settings and loads it like the page."""

    def load(save=save_tiny_classifier, **settings):
        folder = save(tmp_path_factory.mktemp("model") / "tiny", **settings)
        return app.load(str(folder), "tiny", FLOAT32)

    return load


@pytest.fixture
def clip(tmp_path):
    return str(write_tone(tmp_path / "clip.wav", seconds=0.5))


def logits_of(classifier, path) -> torch.Tensor:
    """(windows, labels)"""
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == classifier.extractor.sampling_rate
    return classifier.model.classify_windows(audio, classifier.extractor, average=False).logits


def answer_of(page: str) -> str:
    return html.unescape(re.search(r'class="answer" role="status">(.*?)</p>', page)[1])


def bars_of(page: str) -> dict[str, float]:
    """Name -> per cent"""
    rows = re.findall(r"<th class=name scope=row>([^<]*)</th><td class=meter.*?<td>([\d.]+) %</td>", page)
    return {html.unescape(name): float(share) for name, share in rows}


def maps_of(page: str) -> list[str]:
    """The pixels of all pictures."""
    return re.findall(r"data:image/png;base64,[^\"]*", page)


def captions_of(page: str) -> list[str]:
    return [html.unescape(caption) for caption in re.findall("<figcaption>(.*?)</figcaption>", page)]


@pytest.mark.figures
def test_bars_are_calibrated_probabilities(classifier, clip):
    tiny = classifier(calibration_temperature=2.5)
    page, logits = app.results(clip, [tiny]), logits_of(tiny, clip)
    expected = (logits[0] / 2.5).softmax(0)
    names = [tiny.model.config.id2label[int(index)] for index in expected.argsort(descending=True)]
    assert list(bars_of(page)) == names and answer_of(page) == names[0]
    np.testing.assert_allclose(list(bars_of(page).values()), 100 * expected.sort(descending=True)[0], atol=0.051)
    assert page.count("class=chosen") == 1 and "0.50 s were analysed." in page and "Over time" not in page


def test_no_more_than_the_top_classes(classifier, clip):
    assert len(bars_of(app.results(clip, [classifier(labels=tuple("abcdefgh"))]))) == app.TOP == 5


def test_several_labels_have_their_thresholds(classifier, clip):
    tiny = classifier(problem_type="multi_label_classification", decision_thresholds=[0.999, 0.001, 0.999])
    page, scores = app.results(clip, [tiny]), logits_of(tiny, clip)[0].sigmoid()
    assert bars_of(page) == pytest.approx(dict(zip(("high", "low", "mid"), (100 * scores).tolist())), abs=0.051)
    assert answer_of(page) == "low" and page.count("class=chosen") == 1
    assert sorted(re.findall(r"left: ([\d.]+)%", page)) == ["0.1", "99.9", "99.9"]
    tiny.model.config.decision_thresholds = [1.0, 1.0, 1.0]
    assert answer_of(app.results(clip, [tiny])) == "none of the classes"


def test_numbers_have_no_bars(classifier, clip):
    one = classifier(labels=("pitch",), problem_type="regression")
    page = app.results(clip, [one])
    assert answer_of(page) == f"{float(logits_of(one, clip)):.4g}" and "Relevance for pitch in layer 2" in page
    two = classifier(labels=("x", "y"), problem_type="regression")
    page, logits = app.results(clip, [two]), logits_of(two, clip)[0].tolist()
    assert answer_of(page) == ", ".join(f"{number:.4g}" for number in logits) and not bars_of(page)


def shown(classifier, path, chosen=("tiny",)) -> str:
    """Returns what the page shows for a file."""
    page = app.build([classifier], {})
    return next(function.fn for function in page.fns.values() if function.api_name == "classify")(str(path), chosen)


def test_a_model_that_is_named_twice_answers_once(classifier, clip):
    assert shown(classifier(), clip, ["tiny"] * 50).count("<section>") == 1


@pytest.fixture
def long_clip(tmp_path):
    """3 s: 8 windows of 0.655 s, and a last one that ends with the clip."""
    return str(write_tone(tmp_path / "a & b's.wav", seconds=3.0))


def with_calls(tiny, **calls: list[float]):
    """Lets a model give the logits 0, 3, 0 for each window, but others, such as w5=[6, 0, 0], for some."""
    windows_of = tiny.model.classify_windows

    def classify_windows(*args, **settings):
        output = windows_of(*args, **settings)
        output.logits[:] = torch.tensor([0.0, 3.0, 0.0])
        for name, logits in calls.items():
            output.logits[int(name[1:])] = torch.tensor(logits)
        return output

    tiny.model.classify_windows = classify_windows
    return tiny


@pytest.mark.figures
@pytest.mark.parametrize("call", [[6.0, 0.0, 0.0], [2.5, 0.0, 0.0]])
def test_a_rare_call_does_not_drown_in_the_mean(classifier, long_clip, call):
    tiny = with_calls(classifier(), w5=call)
    page, scores = app.results(long_clip, [tiny]), torch.tensor([[0.0, 3.0, 0.0], call]).softmax(1).numpy()
    highest, mean = (
        scores.max(axis=0),
        ((8 * torch.tensor([0.0, 3.0, 0.0]) + torch.tensor(call)) / 9).softmax(0).numpy(),
    )
    order = np.argsort(-highest)
    names = [("high", "low", "mid")[index] for index in order]
    assert answer_of(page) == f"{names[0]}, {names[1]}" and {*names[:2]} == {"high", "low"}
    assert list(bars_of(page)) == names and mean.argmax() == 1
    np.testing.assert_allclose([*bars_of(page).values()], 100 * highest[order], atol=0.051)
    means = np.array(re.findall(r"<td>[\d.]+ %</td><td>([\d.]+) %</td></tr>", page)[:3], dtype=float)
    np.testing.assert_allclose(means, 100 * mean[order], atol=0.051)
    start = 5 * 0.3275 if names[0] == "high" else 0.0
    times = re.search(
        rf"Strongest window: <b>{names[0]}</b>, {100 * highest.max():.1f} % at ([\d.]+) to ([\d.]+) s. "
        rf"Mean of 9 windows: <b>low</b>, {100 * mean.max():.1f} %.", page
    )  # fmt: skip
    assert float(times[1]) == pytest.approx(start, abs=0.06) and float(times[2]) == pytest.approx(
        start + 0.655, abs=0.06
    )
    assert "in 9 windows of 0.7 s." in page and f"Spectrogram, {times[1]} to {times[2]} s" in captions_of(page)
    assert all(re.search(rf"<text[^>]*>{name}</text>", page) for name in names)


def test_the_strongest_window_has_the_highest_score_not_the_highest_logit(classifier, long_clip):
    page = app.results(long_clip, [with_calls(classifier(), w2=[10.0, 9.5, 0.0], w5=[5.0, -5.0, -5.0])])
    start = re.search(r"Strongest window: <b>high</b>, 100.0 % at ([\d.]+) to", page)[1]
    assert float(start) == pytest.approx(5 * 0.3275, abs=0.06) and f"Spectrogram, {start} to" in page


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"calibration_temperature": 100.0}, "high"),  # no window above 0.5: the class of the strongest window
        ({"problem_type": "multi_label_classification", "decision_thresholds": [0.999999] * 3}, "none of the classes"),
    ],
)
def test_long_clips_without_events(classifier, long_clip, settings, answer):
    page = app.results(long_clip, [with_calls(classifier(**settings), w5=[6.0, 0.0, 0.0])])
    assert answer_of(page) == answer
    assert "No class is above its threshold in any window." in page and "download" not in page


def downloads_of(page: str, folder: Path) -> list[Path]:
    """Writes the files that a visitor can download."""
    folder.mkdir()
    paths = []
    for name, content in re.findall(r'<a download="(.*?)" href="data:text/plain;base64,(.*?)">', page):
        paths.append(folder / html.unescape(name))
        paths[-1].write_bytes(base64.b64decode(content))
    return paths


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("single_label_classification", [("low", 0.0), ("high", 1.8), ("low", 2.1)]),
        ("multi_label_classification", [("low", 0.0), ("high", 1.8), ("mid", 1.8), ("low", 2.1)]),
    ],
)
def test_events_can_be_downloaded(classifier, long_clip, tmp_path, kind, expected):
    page = app.results(long_clip, [with_calls(classifier(problem_type=kind), w5=[6.0, -1.0, 5.0])])
    rows = re.findall(r"<tr><th class=name scope=row>([^<]*)</th><td>([\d.]*) s</td><td>([\d.]*) s</td>", page)
    assert [(label, pytest.approx(float(start), abs=0.06)) for label, start, _ in rows] == expected
    paths = downloads_of(page, tmp_path / "downloads")
    endings = [".Table.1.selections.txt", ".txt", ".csv", ".json"]
    assert [path.name for path in paths] == [f"a & b's{ending}" for ending in endings]
    for path in paths:
        ((file, found),) = read_events(path).items()
        assert file == (None if path == paths[1] else "a & b's.wav")
        assert [(e.label, f"{e.onset_s:.2f}", f"{e.offset_s:.2f}") for e in found] == rows
    assert {(e.low_hz, e.high_hz) for e in read_events(paths[0])["a & b's.wav"]} == {(0.0, 8000.0)}


@pytest.mark.parametrize("seconds", [0.05, 5.2])
@pytest.mark.parametrize("family", ["dual_ssast", "vggish"])
def test_time_frames_have_the_events_of_predict_hf(classifier, tmp_path, family, seconds):
    """Of a page with their timeline and downloads, by the settings that the model has stored."""
    tiny = classifier(lambda folder: save_tiny_detector(folder / family, family))
    path, folder = tmp_path / "a b.wav", Path(tiny.model.name_or_path)
    soundfile.write(path, long_tones()[-round(seconds * 16000) :], 16000)
    assert predict_hf.main([str(folder), str(path), "--events", str(tmp_path / "e.csv")]) == 0
    (expected,) = read_events(tmp_path / "e.csv").values()
    page = app.results(str(path), [tiny])
    rows = re.findall(r"<tr><th class=name scope=row>([^<]*)</th><td>([\d.]*) s</td><td>([\d.]*) s</td>", page)
    assert rows == [(event.label, f"{event.onset_s:.2f}", f"{event.offset_s:.2f}") for event in expected]
    frame_ms = {"dual_ssast": 40, "vggish": 160}[family] if seconds > 1 else 50
    assert f"time frames of {frame_ms} ms" in page and "classifies" not in page
    if not expected:
        assert "Nothing is an event by the model's own settings." in page
        return
    assert len(rows) > 2 and "By the model's own settings: median filter" in page
    csv = next(path for path in downloads_of(page, tmp_path / "downloads") if path.suffix == ".csv")
    (found,) = read_events(csv).values()
    for one, other in zip(found, expected, strict=True):
        assert one.label == other.label
        assert [*one[:2], one.score] == pytest.approx([*other[:2], other.score], abs=1e-5)
    assert set(answer_of(page).split(", ")) == {event.label for event in expected}
    assert captions_of(page)[0] == "Output of each time frame; a bar above is an event"
    assert re.match(r"Spectrogram, [\d.]+ to [\d.]+ s", captions_of(page)[1]) and len(captions_of(page)) == 2


def test_windows_obey_the_models_own_settings_of_events(classifier, long_clip):
    own = {"high": 0.9, "low": 0.3, "min_duration_s": 0.4, "max_gap_s": 0.5}
    calls = {"w3": [3.0, -3.0, 0.0], "w5": [3.0, -9.0, 0.0], "w7": [-9.0, -9.0, 0.9]}
    settings = {"problem_type": "multi_label_classification"}
    page = app.results(long_clip, [with_calls(classifier(**settings), **calls)])
    assert page.count("<tr><th class=name scope=row>high</th><td>") == 2
    page = app.results(long_clip, [with_calls(classifier(**settings, event_detection=own), **calls)])
    assert page.count("<tr><th class=name scope=row>high</th><td>") == 1


@pytest.mark.figures
def test_names_that_only_json_can_hold(classifier, long_clip, tmp_path):
    tiny = classifier(labels=("a\tb", "c\td", "e\tf"))
    paths = downloads_of(app.results(long_clip, [with_calls(tiny)]), tmp_path / "downloads")
    assert [path.suffix for path in paths] == [".json"]


def test_long_clips_of_a_number_have_neither_events_nor_classes(classifier, long_clip):
    one = classifier(labels=("pitch",), problem_type="regression")
    page = app.results(long_clip, [one])
    assert "Events" not in page and "Strongest" not in page and "Over time" in page and not bars_of(page)


@pytest.mark.figures
def test_frequencies_are_in_khz(classifier, clip):
    found = drawings(app.results(clip, [classifier()]))
    assert found and all({"frequency (kHz)", "4", "1", "time (s)"} <= {*drawing.itertext()} for drawing in found)


@pytest.mark.figures
def test_a_picture_for_relevance_and_attention_of_each_fused_layer(classifier, clip):
    page = app.results(clip, [classifier(fusion_layers=[0, 2], initializer_range=0.3)])
    answer = answer_of(page)
    assert captions_of(page) == [
        "Spectrogram",
        f"Relevance for {answer} in the patch embedding",
        f"Relevance for {answer} in layer 2",
        "Attention of layer 2",
    ]
    assert all(len(list(drawing.iter("{http://www.w3.org/2000/svg}image"))) == 1 for drawing in drawings(page))


def drawings(page: str) -> list[ElementTree.Element]:
    """Each has to be well-formed."""
    return [ElementTree.fromstring(text) for text in re.findall("<svg.*?</svg>", page, re.DOTALL)]


@pytest.mark.figures
def test_drawings_take_their_colours_from_the_page(classifier, tmp_path):
    page = app.results(str(write_tone(tmp_path / "long.wav", seconds=2.0)), [classifier()])
    assert len(drawings(page)) == 6 and all(drawing.get("role") == "img" for drawing in drawings(page))
    assert app.TEXT not in page and app.ACCENT not in page
    assert "currentColor" in page and "var(--color-accent)" in page
    assert "<g id=" not in page  # names would be there several times


@pytest.mark.parametrize("family", ["vggish", "panns_cnn14"])
def test_convolutional_networks_have_no_map_and_say_so(classifier, clip, family):
    page = app.results(clip, [classifier(lambda folder: save_tiny_cnn(folder, family, num_labels=3))])
    assert len(bars_of(page)) == 3 and captions_of(page) == ["Spectrogram"] and "has no patches" in page


@pytest.mark.figures
def test_labels_and_names_are_text(classifier, tmp_path):
    tiny = classifier(labels=ODD_LABELS)
    tiny.title = "<i>model</i>"
    page = app.results(str(write_tone(tmp_path / "long.wav", seconds=1.0)), [tiny])
    assert set(bars_of(page)) == set(ODD_LABELS) and set(answer_of(page).split(", ")) <= set(ODD_LABELS)
    assert "<i>model" not in page and ODD_LABELS[0] not in page
    texts = {text for drawing in drawings(page) for text in drawing.itertext()}
    assert set(ODD_LABELS) <= texts


def test_models_side_by_side(classifier, clip):
    pair = [classifier(), classifier(lambda folder: save_tiny_cnn(folder, "vggish", num_labels=2))]
    page = app.results(clip, pair)
    assert page.count("<section>") == 2 and [answer_of(part) for part in page.split("<section>")[1:]] == [
        one.model.predict_labels(logits_of(one, clip))[0] for one in pair
    ]
    assert app.results(None, pair) == ""
    with pytest.raises(InputError, match="at least one"):
        app.results(clip, [])


def write_broken(folder: Path) -> dict[str, Path]:
    """Writes unusable files; returns them by part of their error message."""
    (folder / "broken.wav").write_bytes(b"RIFFrubbish" * 30)
    (folder / "<img src=x>.wav").write_bytes(b"RIFFrubbish" * 30)
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_text("hello")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "nan.wav", np.full(1000, np.nan), 16000, subtype="FLOAT")
    names = {
        "broken.wav: not readable as audio": "broken.wav",
        "<img src=x>.wav: not readable as audio": "<img src=x>.wav",
        "empty.wav: the file is empty": "empty.wav",
        "text.mp3: not readable as audio": "text.mp3",
        "none.wav: holds no samples": "none.wav",
        "silent.wav: holds only silence": "silent.wav",
        "nan.wav: holds 1000 NaN or infinite samples": "nan.wav",
    }
    return {message: folder / name for message, name in names.items()}


def test_what_cannot_be_heard_is_told(classifier, tmp_path):
    tiny = classifier()
    for message, path in write_broken(tmp_path).items():
        with pytest.raises(InputError) as error:
            app.results(str(path), [tiny])
        assert str(error.value).startswith(message) and str(tmp_path) not in str(error.value), path


@pytest.mark.parametrize("rate", [1, 499, 20_000_001, 2**31 - 1])
def test_rates_that_no_recording_has_are_told(classifier, tmp_path, rate):
    path = write_tone(tmp_path / "clip.wav")
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"clip.wav: .*a sampling rate of {rate} Hz, not 500 to"):
        app.results(str(path), [classifier()])


def test_what_cannot_be_heard_is_a_line_of_the_page(classifier, tmp_path):
    (tmp_path / "<img src=x>.wav").write_bytes(b"RIFFrubbish" * 30)
    line = shown(classifier(), tmp_path / "<img src=x>.wav")
    assert re.fullmatch(
        r'<div class="results"><p class="note" role="alert">&lt;img src=x&gt;.wav: not [^<\n]*</p></div>', line
    )


def test_uploads_have_a_size(classifier, clip, monkeypatch):
    assert app.launch_settings()["max_file_size"] == "100mb"
    monkeypatch.setattr(app, "MAX_MB", 0.001)
    with pytest.raises(InputError, match="clip.wav: has 0.0 MB, more than 0.001; cut it"):
        app.results(clip, [classifier()])


def test_what_nobody_expected_is_told_too(classifier, clip, monkeypatch):
    monkeypatch.setattr(app, "section", lambda *_: 1 / 0)
    with pytest.raises(InputError, match=r"clip.wav: could not be analysed \(ZeroDivisionError\); convert it"):
        app.results(clip, [classifier()])


@pytest.mark.parametrize(
    ("seconds", "rate", "channels"), [(0.01, 16000, 1), (1 / 8000, 8000, 1), (0.5, 192000, 8), (0.3, 44100, 2)]
)
def test_any_rate_length_and_channels_are_heard(classifier, tmp_path, seconds, rate, channels):
    path = write_tone(tmp_path / "clip.wav", seconds=seconds, rate=rate, channels=channels)
    assert f"{seconds:.2f} s were analysed." in app.results(str(path), [classifier()])


def test_of_long_recordings_the_beginning_is_decoded(classifier, tmp_path, monkeypatch):
    path = str(write_tone(tmp_path / "clip.wav", seconds=3.0, channels=2))
    monkeypatch.setattr(app, "MAX_S", 0.5)
    waveform, seconds = app.read_clip(path, 16000)
    assert len(waveform) == 8000 and seconds == 3.0
    np.testing.assert_allclose(waveform, soundfile.read(path, dtype="float32")[0].mean(axis=1)[:8000], atol=1e-6)
    page = app.results(path, [classifier()])
    assert (
        "<p class=note>This recording is too long for the page: of 3.0 s only the first 0.50 s were analysed." in page
    )
    monkeypatch.setattr(uploads, "MAX_SAMPLES", 8000)
    assert len(app.read_clip(path, 16000)[0]) == 4000


def test_models_come_from_words_or_variable_or_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(app, "SETTINGS", tmp_path / "app.yaml")
    monkeypatch.setattr(app, "load_classifier", lambda name, **_: pytest.fail(name))
    monkeypatch.delenv("MODELS", raising=False)
    assert app.main([]) == 1 and "error: no model: name folders" in capsys.readouterr().err
    (tmp_path / "app.yaml").write_text("models: [user/file]")
    with pytest.raises(pytest.fail.Exception, match="user/file"):
        app.main([])
    monkeypatch.setenv("MODELS", "user/variable user/two")
    with pytest.raises(pytest.fail.Exception, match="user/variable"):
        app.main([])
    with pytest.raises(pytest.fail.Exception, match="user/word"):
        app.main(["user/word"])


@pytest.mark.figures
@pytest.mark.parametrize("dtype", ["unset", "auto"])
def test_hardware_is_chosen_and_float32_is_the_default(tmp_path, clip, monkeypatch, capsys, dtype):
    """Where other programs would take bfloat16 by themselves. The maps are the same to the last digit."""
    shown, words = [], [] if dtype == "unset" else ["--dtype", dtype]
    monkeypatch.setattr("training.inference.precision.has_bfloat16", lambda: True)
    monkeypatch.setattr(app, "build", lambda classifiers, examples: shown.extend(classifiers) or 1 / 0)
    folder = str(save_tiny_classifier(tmp_path / "model"))
    with pytest.raises(ZeroDivisionError):
        app.main([folder, "--device", "cpu", "--threads", "1", *words])
    parameter = next(shown[0].model.parameters())
    wanted = {"unset": torch.float32, "auto": torch.bfloat16}[dtype]
    assert (parameter.dtype, parameter.device.type, torch.get_num_threads()) == (wanted, "cpu", 1)
    plain = app.Classifier(shown[0].title, *app.load_classifier(folder, attn_implementation="eager"))
    pages = [app.results(clip, [one]) for one in (shown[0], plain)]
    assert bars_of(pages[0]) == pytest.approx(bars_of(pages[1]), abs=2)
    assert maps_of(pages[0]) == maps_of(pages[1]) and len(maps_of(pages[0])) > 2
    if dtype != "unset":
        monkeypatch.setattr(shown[0], "explained", None)
        assert maps_of(app.results(clip, [shown[0]])) != maps_of(pages[1])
    for words, message in (
        (["--device", "cuda:77"], "device cuda:77: cannot be used"),
        (["--threads", "0"], "threads: "),
        (["--dtype", "int8"], "dtype: must be auto, float32, "),
    ):
        assert app.main([folder, *words]) == 1
        assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["models: user/a", "model: [a]", "examples: [1]", "[a]", "a: [", "text"])
def test_settings_that_cannot_be_read(tmp_path, text):
    (tmp_path / "app.yaml").write_text(text)
    with pytest.raises(InputError, match="app.yaml: "):
        app.read_settings(tmp_path / "app.yaml")


def test_a_model_that_cannot_be_loaded_is_one_line(capsys):
    assert app.main(["nobody/nothing"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: nobody/nothing: not a classifier that can be loaded")
    assert len([line for line in lines if line.startswith("error: ")]) == 1


def test_folders_are_called_by_their_names(tmp_path):
    for name in ("a/run", "b/run", "c/other"):
        (tmp_path / name).mkdir(parents=True)
    names = [str(tmp_path / "a/run"), str(tmp_path / "b/run"), str(tmp_path / "c/other"), "user/model"]
    assert [title for _, title in app.titles(names)] == [*names[:2], "other", "user/model"]


def write_run(folder: Path, rows: list[tuple], header: str = "file,label,prediction") -> Path:
    """Writes the predictions of a run."""
    folder.mkdir()
    (folder / "predictions.csv").write_text("\n".join([header, *(f'"{file}","{label}",x' for file, label in rows)]))
    return folder


def test_examples_are_clips_of_the_test_split(tmp_path):
    """One of each class first; only what is there, can be read and is no segment."""
    clips = {name: write_tone(tmp_path / f"{name}.wav") for name in ("a1", "a2", "a3", "b1", "c1")}
    (tmp_path / "text.wav").write_text("no audio")
    rows = [*((clips[name], name[0]) for name in clips), (tmp_path / "gone.wav", "d"), (tmp_path / "text.wav", "e")]
    run = write_run(tmp_path / "run", [*rows, (f"{clips['a1']}#t=0,0.1", "f"), (tmp_path, "g"), ("", "h")])
    found = app.test_clips([str(run), "user/model", str(tmp_path)])
    order = ("a1", "b1", "c1", "a2", "a3")
    assert found == {clips[name]: f"{name} ({name[0]})" for name in order}
    many = write_run(tmp_path / "many", [(write_tone(tmp_path / f"x{number}.wav"), "x") for number in range(12)])
    assert len(app.test_clips([str(many)])) == app.MOST_EXAMPLES


@pytest.mark.parametrize("header", ["name,label,prediction", "file,prediction,x", "file", "", "\0"])
def test_runs_whose_clips_are_not_named_have_no_examples(tmp_path, header):
    run = write_run(tmp_path / "run", [(write_tone(tmp_path / "a.wav"), "a")], header)
    assert app.test_clips([str(run)]) == {}


@pytest.mark.parametrize(
    ("words", "variable", "expected"),
    [
        ((), "", ("127.0.0.1", None, False, True)),
        (("--port", "8000", "--host", "localhost"), "0.0.0.0", ("localhost", 8000, False, True)),
        ((), "0.0.0.0", ("0.0.0.0", None, False, False)),
        (("--host", "0.0.0.0"), "", ("0.0.0.0", None, False, False)),
        (("--share",), "", ("127.0.0.1", None, True, False)),
    ],
)
def test_clips_of_the_run_are_shown_to_this_machine_only(tmp_path, monkeypatch, words, variable, expected):
    monkeypatch.setenv("GRADIO_SERVER_NAME", variable)
    monkeypatch.setattr(app, "load_classifier", lambda *_, **__: (torch.nn.Identity(), None))
    monkeypatch.setattr(app.socket, "create_server", lambda *_, **__: socket.socket())
    own, seen = write_tone(tmp_path / "own.wav"), []

    class Page:
        def launch(self, server_name, server_port, share, **_):
            seen.append((server_name, server_port, share))
            raise KeyboardInterrupt

    monkeypatch.setattr(app, "build", lambda _, examples: seen.append([*examples]) or Page())
    assert app.main([str(write_run(tmp_path / "run", [(own, "a")])), *words]) == 130
    assert seen[1] == expected[:3] and (seen[0] == [own]) == expected[3] and seen[0]


@pytest.mark.parametrize("words", [("--port", "0"), ("--port", "65536"), ("--port", "x"), ("--prot", "8000")])
def test_options_that_are_impossible_are_one_line(words, capsys):
    assert app.main(["user/model", *words]) == 1
    assert re.fullmatch(r"error: .*port.*\n", capsys.readouterr().err)


def test_a_port_in_use_is_one_line_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(app, "load_classifier", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert app.main(["user/model", "--port", str(taken.getsockname()[1])]) == 1
    assert app.main(["user/model", "--host", "203.0.113.7"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.endswith("; name another --host or --port") for line in lines)


def test_the_examples_are_there_and_short():
    examples = app.read_settings(app.SETTINGS)["examples"]
    assert len(examples) == 5 and all(soundfile.info(ROOT / name).duration <= 5 for name in examples)
    assert {name.split("/")[1] for name in examples} == {"instruments"}  # those in the public domain


@pytest.mark.slow
def test_recordings_are_deleted_and_examples_stay(classifier, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(app, "KEPT_S", 2)
    names = app.read_settings(app.SETTINGS)["examples"]
    page = app.build([classifier()], {ROOT / name: Path(name).stem for name in names})
    address = page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_settings())[1]
    client = gradio_client.Client(address, verbose=False)
    client.submit(gradio_client.handle_file(clip), ["tiny"], api_name="/classify")
    uploaded = wait_for(lambda: list((tmp_path / "uploads").rglob("*.wav")))
    wait_for(lambda: not uploaded[0].exists())
    time.sleep(3)  # as long as a copy of the examples would live
    example = client.predict(4, api_name="/load_example")["value"]
    assert Path(example).read_bytes() == (ROOT / "data/instruments/audio/tabla_tun2.flac").read_bytes()
    page.close()


# The Space.


@pytest.mark.slow
def test_a_space_holds_all_modules_that_the_page_loads_and_no_other():
    """Against what Python itself loads, where nothing of this checkout is installed."""
    program = "import sys, app; print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)))"
    process = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, env=bare_environment(), capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:]
    loaded = {Path(name) for name in process.stdout.split() if Path(name).is_relative_to(ROOT)}
    files, packages = space.imported(space.APP, ROOT)
    assert files == {path for path in loaded if "site-packages" not in path.parts}
    assert {"torch", "transformers", "soundfile", "soxr", "yaml", "gradio"} <= packages
    assert not packages & {"datasets", "accelerate", "torchaudio", "torchcodec"}


def bare_environment(**values: str) -> dict[str, str]:
    """Returns an environment with this Python's packages, without editable installs, which need what -S leaves out."""
    defaults = {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {"PATH": os.environ["PATH"], **defaults, **values}


def test_imports_of_all_kinds_are_found(tmp_path):
    files = {
        "main.py": "import json, numpy.fft\nfrom a import b\nimport d.e\ndef f():\n  from a import g\n  import late",
        "a/__init__.py": "",
        "a/b.py": "from .c import name\nfrom . import h",
        "a/c.py": "class A:\n    import soxr",
        "a/g.py": "", "a/h.py": "", "a/unused.py": "", "d/__init__.py": "", "d/e.py": "", "unused.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found, packages = space.imported(tmp_path / "main.py", tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in found} == {name for name in files if "unused" not in name}
    assert packages == {"numpy", "soxr"}


def test_requirements_name_the_oldest_version():
    lines = space.requirements({"torch", "transformers", "yaml", "gradio"})
    assert lines == ["torch>=2.6", "transformers>=5.5", "PyYAML>=6.0"]
    with pytest.raises(PushError, match="names no version of nonsense"):
        space.requirements({"nonsense"})


def test_the_space_asks_for_the_gradio_that_is_tested():
    assert gradio.__version__ == space.GRADIO_VERSION
    assert f"gradio=={gradio.__version__}\n" in (ROOT / "constraints.txt").read_text()


def push_space(*words) -> int:
    return hub_command.main(["push-space", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "FOLDER"], "is a folder of this machine, and a Space cannot read it; push it first: python -m"),
        (["--models", "user/a", "name"], "name: is not the name of a model on the Hub; give it as user/name"),
        (["--models", "runs/anser"], "runs/anser: no such folder in runs; correct the name (for a model of the Hub,"),
        (["--static", "--models", "runs/anser"], "runs/anser: no such folder in runs; correct the name"),
        (["--models", "user/a", "--dry-run", "FOLDER"], "is not empty; name a new folder"),
        (["--models", "user/a", "--examples", "no.wav"], "no.wav: no such file; correct --examples"),
    ],
)
def test_what_no_space_is_made_of(tmp_path, capsys, monkeypatch, words, message):
    (tmp_path / "config.json").touch()
    (tmp_path / "runs" / "answer").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert push_space("user/page", *[word.replace("FOLDER", str(tmp_path)) for word in words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_space_is_one_commit_and_can_be_pushed_again(hub, tmp_path):
    clip = write_tone(tmp_path / "own.wav")
    assert push_space("user/page", "--models", "user/a", "user/b") == 0
    repository = hub.repository("user/page", "spaces")
    assert repository.sdk == "gradio" and len(repository.commits) == 2
    files = hub.files("user/page", "spaces")
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert header["sdk"] == "gradio" and header["sdk_version"] == gradio.__version__
    assert header["app_file"] == "app.py" and header["models"] == ["user/a", "user/b"]
    settings = yaml.safe_load(files["app.yaml"])
    assert settings["models"] == ["user/a", "user/b"] and set(settings["examples"]) <= set(files)
    assert files["app.py"] == (ROOT / "app.py").read_bytes() and str(ROOT) not in files["README.md"].decode()
    assert push_space("user/page", "--models", "user/a", "--examples", clip) == 0
    files = hub.files("user/page", "spaces")
    assert [name for name in files if name.startswith("examples/")] == ["examples/own.wav"]
    assert b"Sonic Pi" not in files["README.md"]


def link_packages(requirements: list[str], folder: Path) -> str:
    """A folder with what pip would install for these requirements, out of what is installed here, and nothing else."""
    waiting, seen = [Requirement(line) for line in requirements], set()
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        with contextlib.suppress(metadata.PackageNotFoundError):  # such as CUDA's, which this torch has no use for
            found = metadata.distribution(requirement.name)
            if found.name in seen:
                continue
            seen.add(found.name)
            for name in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
                if not (folder / name).exists():
                    (folder / name).symlink_to(found.locate_file(name))
            waiting += map(Requirement, found.requires or ())
    assert "gradio" in seen and not seen & {"datasets", "scikit-learn", "modeling-dual-ssast"}
    return str(folder)


@contextlib.contextmanager
def serving(folder: Path, models: list[str], log: Path, **environment: str):
    """The address of app.py in `folder`, run in a fresh process; afterwards nothing may have asked for another host."""
    port = free_port()
    environment = bare_environment(GRADIO_SERVER_PORT=str(port), HOME=str(log.parent), **environment)
    environment["GRADIO_TEMP_DIR"] = str(log.parent / "uploads")
    with log.open("w") as output:
        words = [sys.executable, "-S", "-c", WATCHED, *models]
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
    text = log.read_text()
    assert "ASKED FOR" not in text and "CONNECTED TO" not in text and "Traceback" not in text, text[-3000:]


@pytest.mark.slow
def test_a_space_runs_as_it_was_pushed(hub, tmp_path, capfd):
    """
    From the Hub into an empty folder, with a model of the Hub, and with no packages but Gradio and the requirements;
    nothing else of this project can be imported.
    """
    model = save_tiny_classifier(tmp_path / "model", calibration_temperature=2.0)
    hub.create("user/tiny", {path.name: path.read_bytes() for path in model.iterdir()})
    assert push_space("user/page", "--models", "user/tiny") == 0
    folder = Path(snapshot_download("user/page", repo_type="space", local_dir=tmp_path / "space"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "site").mkdir()
    lines = [f"gradio=={space.GRADIO_VERSION}", *(folder / "requirements.txt").read_text().splitlines()]
    site = link_packages(lines, tmp_path / "site")
    missing = subprocess.run(
        [sys.executable, "-S", "-c", "import modeling_dual_ssast"],
        cwd=tmp_path / "elsewhere", env=bare_environment(PYTHONPATH=site), capture_output=True, text=True,
    )  # fmt: skip
    assert "No module named 'modeling_dual_ssast'" in missing.stderr
    environment = {k: v for k, v in hub.environment(tmp_path / "cache").items() if k.startswith("HF_")}
    environment |= {"HF_HUB_OFFLINE": "0", "PYTHONPATH": site}
    example = "examples/tabla_tun2.flac"
    with serving(folder, [], tmp_path / "server.log", **environment) as address:
        client = gradio_client.Client(address, verbose=False)
        page = client.predict(gradio_client.handle_file(folder / example), ["user/tiny"], api_name="/classify")
    tiny = app.Classifier("tiny", *app.load_classifier(str(model), attn_implementation="eager"))
    expected = app.results(str(folder / example), [tiny])
    assert bars_of(page) == bars_of(expected) and answer_of(page) == answer_of(expected)
    assert captions_of(page) == captions_of(expected)


# The page in a browser.


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page with three models: one for classes with odd names, a convolutional one, and one for a number."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_classifier(folder / "odd", labels=ODD_LABELS)
    save_tiny_cnn(folder / "cnn", "panns_cnn14", id2label={0: "loud", 1: "soft"}, label2id={"loud": 0, "soft": 1})
    save_tiny_classifier(folder / "pitch", labels=("value",), problem_type="regression")
    models = [str(folder / name) for name in ("odd", "cnn", "pitch")]
    with serving(ROOT, models, tmp_path_factory.mktemp("log") / "server.log") as address:
        yield address


def wait_for(found, seconds: float = 30.0):
    """Waits until `found` returns a true value, and returns it."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(StaleElementReferenceException):
            if value := found():
                return value
        time.sleep(0.1)
    raise AssertionError("not there in time")


def open_page(browser, address: str, theme: str = "light", width: int = 1280):
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(address)
    wait_for(lambda: all_of(browser, "input[type=file]"))


def all_of(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def upload(browser, path):
    wait_for(lambda: all_of(browser, "input[type=file]"))[0].send_keys(str(path))


def press(browser, text: str):
    """By what a screen reader says."""
    buttons = (b for b in all_of(browser, "button") if text in (b.text.strip(), b.get_attribute("aria-label")))
    wait_for(lambda: next(buttons, None)).click()


def answers(browser, number: int = 3) -> list[str]:
    """Waits for `number` answers of models, and returns them."""
    return wait_for(
        lambda: (found := [a.text for a in all_of(browser, ".results .answer")]) and len(found) == number and found
    )


def check_requests(browser, address: str):
    """Nothing was asked of any other machine, and nothing complained of."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(address) for url in urls)
    assert [u for u in urls if not u.startswith((address, "data:", "blob:", "chrome:", "chrome-untrusted:"))] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_uploaded_clip_is_classified(browser, address, tmp_path, theme, width):
    from matplotlib import image

    open_page(browser, address, theme, width)
    upload(browser, write_tone(tmp_path / "clip.wav", seconds=2.0, rate=44100, channels=2))
    said = answers(browser)
    assert {*said[0].split(", ")} <= {*ODD_LABELS} and said[1] in ("loud", "soft") and float(said[2])
    assert len(all_of(browser, ".results svg")) == 13
    assert "has no patches" in all_of(browser, ".results section")[1].text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    tops = [section.rect["y"] for section in all_of(browser, ".results section")]
    assert (tops[0] == tops[1] == tops[2]) if width == 1280 else tops[0] < tops[1] < tops[2]
    check_requests(browser, address)
    browser.get_screenshot_as_file(str(tmp_path / "page.png"))
    shown = image.imread(tmp_path / "page.png")[..., :3]
    assert (shown.mean() > 0.5) == (theme == "light") and shown.std() > 0.03
    colour = browser.execute_script("return getComputedStyle(document.querySelector('.results svg text')).fill")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 380) == (theme == "light")


@pytest.mark.slow
def test_examples_models_and_clearing(browser, address):
    open_page(browser, address)
    press(browser, "tabla tun2")
    before = answers(browser)
    all_of(browser, "input[type=checkbox]")[1].click()
    assert answers(browser, 2) == [before[0], before[2]]
    press(browser, "Clear")
    wait_for(lambda: not all_of(browser, ".results .answer"))
    check_requests(browser, address)


@pytest.mark.slow
def test_a_recording_is_classified(browser, address):
    """Chromium's microphone beeps. What it records has to be a wav file, or nothing here could read it."""
    open_page(browser, address)
    press(browser, "Record audio")
    press(browser, "Record")
    time.sleep(1.5)
    press(browser, "Stop")
    assert answers(browser)
    check_requests(browser, address)


@pytest.mark.slow
def test_files_that_cannot_be_heard_are_told_in_the_page(browser, address, tmp_path):
    """As a line that stays, also what is too large to be sent."""
    wanted = {message.split(": ")[1]: path for message, path in write_broken(tmp_path).items()}
    wanted["has 101.0 MB, more than 100; cut it or convert it to FLAC"] = tmp_path / "large.wav"
    (tmp_path / "large.wav").touch()
    os.truncate(tmp_path / "large.wav", 101 * 2**20)
    for message, path in wanted.items():
        open_page(browser, address)
        upload(browser, path)
        said = wait_for(lambda: [part.text for part in all_of(browser, "[role=alert]") if part.text])
        assert len(said) == 1 and message in said[0] and "\n" not in said[0]
        assert not all_of(browser, ".results .answer")
    upload(browser, write_tone(tmp_path / "clip.wav"))
    assert answers(browser) and not [part.text for part in all_of(browser, "[role=alert]") if part.text]
    (tmp_path / "notes.txt").write_text("no audio")
    open_page(browser, address)
    upload(browser, tmp_path / "notes.txt")
    assert wait_for(lambda: "Invalid file type" in "".join(part.text for part in all_of(browser, ".toast-body")))


@pytest.mark.slow
def test_the_page_works_with_the_keyboard(browser, address):
    """From the top, Tab reaches an example, and Enter chooses it."""
    from selenium.webdriver.common.keys import Keys

    open_page(browser, address)
    for _ in range(15):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.text == "ambi piano":
            break
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert answers(browser)


def test_examples_of_one_name_are_told(tmp_path):
    paths = [write_tone(tmp_path / folder / "x.wav") for folder in "ab"]
    with pytest.raises(PushError, match="another example has the same name"):
        space.space_files(["user/a"], paths)
