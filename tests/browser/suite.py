"""Tests exports for Transformers.js in Node, and the static page in Chromium; `run.py` runs them."""

import functools
import http.server
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import ROOT
from conftest import CHROMEDRIVER, CHROMIUM, HEADLESS
from tiny_detectors import DETECTION, long_tones, save_tiny_detector
from tiny_models import save_tiny_classifier

from hub import space
from training.base.event_detection import event_scores, event_settings, event_thresholds, find_events
from training.base.inference import labels_of
from training.base.label_frames import FrameGrid
from training.data.audio import read_audio
from training.data.labels import LabelSet
from training.export import __main__ as export
from training.export.comparison import torch_runner
from training.export.javascript import frames_runner
from training.inference.overlaps import FrameSequence, classify_frames, concatenated

MODULES = Path(os.environ["NODE_MODULES"])
RATE, FRAMES = 16000, 128
WINDOW = (FRAMES - 1) * 160 + 400
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
ODD_LABELS = ("<img src=x onerror=document.title='run'>", 'a, "b"\tc', "&lt;b&gt;")


def save_export(folder: Path, save=save_tiny_classifier, **settings):
    """Saves a tiny classifier and its export; returns the export's folder, the model and its feature extractor."""
    save(folder / "model", max_length=FRAMES, **settings)
    clips = sorted((ROOT / "data" / "voice_prompts" / "audio").glob("*.flac"))[::100]
    words = [folder / "model", folder / "js", "--format", "transformers-js", "--verify-with", *clips]
    assert export.main(list(map(str, words))) == 0
    return folder / "js", *export.load(str(folder / "model"))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return save_export(tmp_path_factory.mktemp("single"), labels=ODD_LABELS, calibration_temperature=1.5)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    settings = {"problem_type": "multi_label_classification", "decision_thresholds": [0.6, 0.45, 0.3]}
    return save_export(tmp_path_factory.mktemp("several"), **settings)


SMALL = {"scale": 0.3}  # small logits: the formats are compared to 1e-4
OF_FRAMES = {
    "columns": SMALL,
    "overlapping": SMALL | {"time_stride": 10, "event_detection": {**DETECTION, "median_steps": 5, "max_gap_s": 0.3}},
    # ASiT's in PretrainedSED: frames without regard to patches, which attend to the padding
    "tokens": SMALL | {"time_stride": 16, "readout": "tokens", "frame_hop_s": 0.04, "attention_over_padding": True},
}


@pytest.fixture(scope="module", params=OF_FRAMES)
def frames(request, tmp_path_factory):
    return save_export(tmp_path_factory.mktemp("frames"), save_tiny_detector, **OF_FRAMES[request.param])


def probabilities(model, extractor, clips) -> np.ndarray:
    """The scores of predict_hf.py: (clips, labels)."""
    logits = np.concatenate([torch_runner(model, extractor)([clip]) for clip in clips])
    return model.probabilities(torch.from_numpy(logits)).numpy()


# Node.


def node(folder: Path, dtype: str, clips: list[np.ndarray], scratch: Path) -> list[dict]:
    files = [scratch / f"{index}.f32" for index in range(len(clips))]
    for file, clip in zip(files, clips):
        clip.astype("<f4").tofile(file)
    words = ["node", Path(__file__).with_name("classify.mjs"), MODULES, folder, dtype, *files]
    process = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["single", "several"])
def test_transformers_js_gives_pythons_scores(kind, request, tmp_path):
    folder, model, extractor = request.getfixturevalue(kind)
    prompts = sorted((ROOT / "data" / "voice_prompts" / "audio").glob("*.flac"))[::60]
    instruments = sorted((ROOT / "data" / "instruments" / "audio").glob("*.flac"))[::30]
    clips = [read_audio(str(file), RATE)[:WINDOW] for file in (*prompts, *instruments)]
    noise = np.random.default_rng(0).standard_normal(WINDOW).astype(np.float32)
    tone = np.sin(np.arange(9000, dtype=np.float32)) + 1e-2 * noise[:9000]
    # Silence, a tone, one frame, an offset, all frames but one, all, whisper
    clips += [np.zeros(8000, np.float32), tone, noise[:400], 0.1 * noise + 0.5]
    clips += [noise[:-160], noise[:-159], 1e-4 * noise]
    expected = probabilities(model, extractor, clips)
    assert np.ptp(expected, axis=0).max() > 0.05
    labels = [model.config.id2label[index] for index in range(3)]
    for found, row in zip(node(folder, "fp32", clips, tmp_path), expected, strict=True):
        logits = torch.tensor(found["logits"])
        assert np.abs((logits.sigmoid() if kind == "several" else logits.softmax(0)).numpy() - row).max() < 1e-4
        if kind == "single":
            assert np.abs(np.array([found["scores"][label] for label in labels]) - row).max() < 1e-4
    for dtype in ("q8", "fp16"):
        for found, row in zip(node(folder, dtype, clips, tmp_path), expected, strict=True):
            logits = torch.tensor(found["logits"])
            assert np.abs((logits.sigmoid() if kind == "several" else logits.softmax(0)).numpy() - row).max() < 0.05


def test_clips_are_cut_at_the_longest_input_and_refused_without_a_frame(single, tmp_path):
    folder, model, extractor = single
    noise = np.random.default_rng(1).standard_normal(2 * WINDOW).astype(np.float32)
    long, short = node(folder, "fp32", [noise, noise[:399]], tmp_path)
    expected = probabilities(model, extractor, [noise[:WINDOW]])[0]
    assert np.abs(torch.tensor(long["logits"]).softmax(0).numpy() - expected).max() < 1e-4
    assert "invalid index" in short["error"]


def test_time_frames_have_pythons_scores(frames, tmp_path):
    """As many as the clip has, which says where it ends."""
    folder, model, extractor = frames
    noise = np.random.default_rng(2).standard_normal(WINDOW).astype(np.float32)
    clips = [*(noise[:length] for length in (400, 1700, 9000, WINDOW - 160, WINDOW)), long_tones()[:WINDOW]]
    for dtype, tolerance in (("fp32", 1e-4), ("q8", 0.2), ("fp16", 0.05)):
        for found, clip in zip(node(folder, dtype, clips, tmp_path), clips, strict=True):
            (expected,) = frames_runner(model, extractor)([clip])
            scores = [torch.tensor(logits).sigmoid().numpy() for logits in (found["logits"], expected)]
            assert scores[0].shape == scores[1].shape and np.abs(scores[0] - scores[1]).max() < tolerance


# The page.


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a Space with the headers that it asks for, and the library's packages below npm/."""

    def translate_path(self, path):
        inside = path.split("?")[0].removeprefix("/npm/")
        return str(MODULES / inside) if path.startswith("/npm/") else super().translate_path(path)

    def end_headers(self):
        for name, value in space.ISOLATION.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_export(tmp_path_factory.mktemp("detector"), save_tiny_detector, **OF_FRAMES["overlapping"])


@pytest.fixture(scope="module")
def address(single, several, detector, tmp_path_factory):
    """The pushed page, with the library from this machine."""
    folder = tmp_path_factory.mktemp("space") / "page"
    files = space.static_files([str(single[0]), str(several[0]), str(detector[0])])
    settings = json.loads(files["space.json"])
    assert settings["library"].startswith("https://cdn.jsdelivr.net/npm/@huggingface/transformers@")
    settings["library"] = (
        settings["library"].replace("https://cdn.jsdelivr.net/", "").replace(f"@{space.TRANSFORMERS_JS}", "")
    )
    settings["runtime"] = "npm/onnxruntime-web/dist/"
    space.write_files(files | {"space.json": json.dumps(settings).encode()}, folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Chromium, whose microphone plays noise; its log of requests shows where the page connects to."""
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no Chromium with its driver on this machine")
    from selenium import webdriver

    sound = tmp_path_factory.mktemp("sound") / "noise.wav"
    soundfile.write(sound, 0.2 * np.random.default_rng(0).standard_normal(10 * 48000), 48000)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    for flag in (*HEADLESS, profile, f"--use-file-for-fake-audio-capture={sound}", NO_NETWORK):
        options.add_argument(flag)
    downloads = str(tmp_path_factory.mktemp("downloads"))
    several = "profile.default_content_setting_values.automatic_downloads"
    options.add_experimental_option("prefs", {"download.default_directory": downloads, several: 1})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, address):
    chromium.get(address)
    wait(lambda: chromium.execute_script("return document.body.dataset.ready"))
    yield chromium
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors, errors
    asked = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in asked if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls and not [url for url in urls if url.startswith("http") and not url.startswith(address)]


def wait(found, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def text(page, name: str) -> str:
    return page.execute_script("return document.getElementById(arguments[0]).textContent", name)


def choose(page, name: str, value: str):
    page.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('change')); e.dispatchEvent(new Event('input'));",
        name,
        value,
    )


def is_done(page) -> bool:
    return page.execute_script("return document.getElementById('stop').hidden")


def classify(page, file: Path) -> str:
    page.find_element("id", "file").send_keys(str(file))
    wait(lambda: is_done(page) and page.execute_script("return !results.hidden || !error.hidden"))
    return page.execute_script("return error.hidden ? '' : error.textContent")


def downloaded(page, name: str) -> Path:
    """Downloads what a link of the page offers, whole: Chromium can show an empty file of that name before its end."""
    link = page.find_element("id", name)
    file = Path(page.downloads) / link.get_attribute("download")
    file.unlink(missing_ok=True)
    size = page.execute_script(
        "const make = URL.createObjectURL; let size;"
        "URL.createObjectURL = (blob) => { size = blob.size; return make.call(URL, blob); };"
        "arguments[0].click(); URL.createObjectURL = make; return size;",
        link,
    )
    wait(lambda: file.exists() and file.stat().st_size == size)
    return file


def table(page, name: str) -> pandas.DataFrame:
    """Downloads a table of the page and reads it."""
    return pandas.read_csv(downloaded(page, name))


@pytest.mark.parametrize("dtype", ["fp32", "q8", "fp16"])
@pytest.mark.parametrize(("kind", "seconds"), [("single", 0.02), ("single", 1.0), ("several", 5.0)])
def test_the_page_gives_pythons_scores(kind, seconds, dtype, request, page, tmp_path):
    _, model, extractor = request.getfixturevalue(kind)
    prompts = sorted((ROOT / "data" / "voice_prompts" / "audio").glob("*.flac"))[::40]
    clip = np.concatenate([read_audio(str(file), RATE) for file in prompts])[2000:][: round(seconds * RATE)]
    soundfile.write(tmp_path / "clip.wav", clip, RATE, subtype="FLOAT")
    choose(page, "model", "models/1" if kind == "single" else "models/2")
    choose(page, "dtype", dtype)
    assert not classify(page, tmp_path / "clip.wav")
    output = model.classify_windows(clip, extractor, sampling_rate=RATE, average=False)
    expected = model.probabilities(output.logits).numpy()
    found = table(page, "windows")
    labels = [model.config.id2label[index] for index in range(3)]
    assert list(found.columns) == ["start_s", "end_s", *labels]
    assert np.abs(found[labels].to_numpy() - expected).max() < (1e-4 if dtype == "fp32" else 0.05)
    assert (
        np.abs(found[["start_s", "end_s"]].to_numpy() - torch.stack((output.start_s, output.end_s), 1).numpy()).max()
        < 1e-3
    )
    if dtype == "fp32":
        whole = model.probabilities(output.logits.mean(dim=0, keepdim=True))[0]
        cells = "[...classes.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent))"
        rows = {row[0]: float(row[1]) for row in page.execute_script(f"return {cells}")}
        assert rows == pytest.approx(dict(zip(labels, whole.tolist())), abs=6e-4)
        answers = model.predict_labels(output.logits.mean(dim=0, keepdim=True))[0]
        for name in [answers] if kind == "single" else answers:
            assert name in text(page, "answer")
    assert page.title == "What is in this recording?"  # no label has run as code
    assert page.execute_script("return crossOriginIsolated && !document.querySelector('main img')")


def python_events(scores, labels, starts_s, ends_s, high, rules) -> list[tuple]:
    """The events of predict_hf.py: (label, start, end, score), sorted; `rules` by the names of the page's inputs."""
    settings = {"low": rules.get("low"), "min_duration_s": rules.get("shortest", 0), "max_gap_s": rules.get("gap", 0)}
    settings["median_steps"] = rules.get("median", 1)
    events = find_events(event_scores(scores, labels), labels.names, starts_s, ends_s, high, **settings)
    return sorted((event.label, event.onset_s, event.offset_s, event.score) for event in events)


def same_events(found: list[tuple], expected: list[tuple], tolerance: float):
    assert [event[0] for event in found] == [event[0] for event in expected]
    assert [event[1:] for event in found] == [pytest.approx(event[1:], abs=tolerance) for event in expected]


def call(function: str, cases: list, scratch: Path) -> list:
    """Calls a function of the page's analysis.js in Node, with the arguments of each case."""
    (scratch / "cases.json").write_text(json.dumps(cases))
    (scratch / "analysis.mjs").write_bytes((space.STATIC / "analysis.js").read_bytes())
    script = (
        f'import {{ {function} }} from "./analysis.mjs"; import {{ readFileSync }} from "fs";'
        f'console.log(JSON.stringify(JSON.parse(readFileSync("cases.json")).map((words) => {function}(...words))));'
    )
    words = ["node", "--input-type=module", "--eval", script]
    process = subprocess.run(words, cwd=scratch, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_frames_lie_and_are_joined_as_in_python(tmp_path):
    """Any grid and length: windows of whole groups, overlaps of any size, frames after the recording's end."""
    generator, grids = np.random.default_rng(3), []
    for _ in range(60):
        group = int(generator.choice([1, 1, 3]))
        frames, step = group * int(generator.integers(1, 9)), int(generator.integers(10, 50))
        offset = int(generator.integers(0, 9))
        length = frames * step + int(generator.integers(0, 2 * offset + 1))
        hop = group * int(generator.integers(1, frames // group + 1))
        grids.append((FrameGrid(1000, 1, step, offset, frames, length, hop, group), int(generator.integers(1, 3000))))
    found = call("firstFrames", [(length, grid._asdict()) for grid, length in grids], tmp_path)
    cases, expected = [], []
    for (grid, length), firsts in zip(grids, found, strict=True):
        assert firsts == grid.windows(length)
        rows = [generator.standard_normal((grid.frames, 2)) for _ in firsts]
        if len(firsts) == 1:  # a short clip has fewer, or one too many
            rows[0] = rows[0][: max(min(-(-length // grid.step) + 1, grid.frames), 1)]
        cases.append(([{"first": f, "rows": row.tolist()} for f, row in zip(firsts, rows)], grid._asdict(), length))
        sequence = FrameSequence(grid)
        starts = [first * grid.step for first in firsts]
        wanted = sequence.add_windows(starts, [{"logits": row} for row in rows]) + sequence.end(length)
        expected.append(concatenated(wanted))
    for joined, wanted in zip(call("joinFrames", cases, tmp_path), expected, strict=True):
        assert [frame["start"] * 1000 for frame in joined] == pytest.approx(wanted["start"].tolist())
        assert [frame["end"] * 1000 for frame in joined] == pytest.approx(wanted["stop"].tolist())
        np.testing.assert_allclose([frame["logits"] for frame in joined], wanted["logits"], atol=1e-12)


def test_events_are_pythons_for_any_scores(tmp_path):
    """Windows that overlap, touch or leave gaps; few different scores, so that some equal a threshold."""
    generator, cases, expected = np.random.default_rng(0), [], []
    for number in range(300):
        steps, is_multi = int(generator.integers(1, 30)), bool(number % 2)
        starts = np.cumsum(generator.choice([0.25, 0.5, 0.5, 1.0], steps)) - 0.25
        ends = starts + generator.choice([0.25, 0.5, 1.0])
        starts[-1] -= 0.2 * (steps > 1)  # the recording's last window
        ends[-1] = max(ends[-1] - 0.2, ends[-2:].min())
        labels = LabelSet(("owl", "background", "rain"), f"{'multi' if is_multi else 'single'}_label_classification")
        scores = generator.integers(0, 6, (steps, 3)) / 5
        high, low = np.sort(generator.choice([0.2, 0.4, 0.6, 0.7], (2, 3)), axis=0)[::-1]
        rules = {"low": low, "median": generator.choice([1, 1, 3, 9, 61], 3)}
        rules |= {"shortest": generator.choice([0.0, 0.5, 1.25], 3), "gap": generator.choice([0.0, 0.5, 1.0], 3)}
        rules = {name: values.tolist() for name, values in rules.items()}
        windows = [{"start": a, "end": b, "scores": row.tolist()} for a, b, row in zip(starts, ends, scores)]
        model = {"labels": labels.names, "isMultiLabel": is_multi}
        cases.append((windows, model, {**rules, "high": high.tolist()}))
        expected.append(python_events(scores, labels, starts, ends, high, rules))
    for (_, model, _), events, own in zip(cases, call("findEvents", cases, tmp_path), expected, strict=True):
        found = sorted((model["labels"][e["index"]], e["start"], e["end"], e["score"]) for e in events)
        same_events(found, own, 1e-9)
    assert sum(map(len, expected)) > 500


@pytest.mark.parametrize("kind", ["single", "several"])
def test_the_page_finds_pythons_events(kind, request, page, tmp_path):
    folder, model, _ = request.getfixturevalue(kind)
    labels = labels_of(str(folder.parent / "model"), model.config)
    generator = np.random.default_rng(2)
    clip = np.concatenate([generator.standard_normal(RATE * 2) * level for level in (0.3, 1e-4, 0.3)]).astype(
        np.float32
    )
    soundfile.write(tmp_path / "clip.wav", clip, RATE, subtype="FLOAT")
    choose(page, "model", "models/1" if kind == "single" else "models/2")
    choose(page, "dtype", "fp32")
    choose(page, "window", "0.5")
    assert not classify(page, tmp_path / "clip.wav")
    windows = table(page, "windows")
    assert len(windows) == 23 and windows["end_s"].iloc[0] == 0.5
    scores = windows[list(labels.names)].to_numpy()
    low, middle = (round(float(np.quantile(event_scores(scores, labels).max(axis=1), q)), 4) for q in (0.3, 0.6))
    counts = []
    for rules in (
        {},
        {"threshold": middle},
        {"threshold": middle, "low": low},
        {"threshold": middle, "gap": 3},
        {"threshold": middle, "low": low, "shortest": 0.75, "gap": 0.5},
    ):
        for name in ("threshold", "low", "shortest", "gap"):
            choose(page, name, str(rules.get(name, "")))
        found = table(page, "csv")
        high = event_thresholds(model.config, rules.get("threshold"))
        expected = python_events(scores, labels, windows["start_s"], windows["end_s"], high, rules)
        rows = found[["label", "start_s", "end_s", "score"]].itertuples(index=False, name=None)
        same_events(sorted(rows), expected, 1.1e-3)
        counts.append(tuple(expected))
    assert len(set(counts)) > 3 and len(found)
    rows = [line.split("\t") for line in downloaded(page, "audacity").read_text().splitlines()]
    assert [float(row[0]) for row in rows] == pytest.approx(found["start_s"].tolist(), abs=1e-3)
    assert [row[2] for row in rows] == [" ".join(label.split()) for label in found["label"]]


@pytest.mark.parametrize("seconds", [0.03, 1.0, 5.2])
def test_the_page_finds_pythons_events_in_time_frames(page, detector, tmp_path, seconds):
    """By the settings that the model has stored, and by those that are typed in."""
    folder, model, extractor = detector
    labels = labels_of(str(folder.parent / "model"), model.config)
    clip = long_tones()[-round(seconds * RATE) :].astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", clip, RATE, subtype="FLOAT")
    choose(page, "model", "models/3")
    choose(page, "dtype", "fp32")
    assert not classify(page, tmp_path / "clip.wav")
    frames = classify_frames(model, extractor, clip)
    scores = model.probabilities(torch.from_numpy(frames["logits"])).numpy()
    found = table(page, "windows")
    assert np.abs(found[list(labels.names)].to_numpy() - scores).max() < 1e-4
    times = np.stack([frames["start"], frames["stop"]], axis=1) / RATE
    assert np.abs(found[["start_s", "end_s"]].to_numpy() - times).max() < 1e-3
    counts = []
    for typed in ({}, {"threshold": 0.6}, {"threshold": 0.6, "low": 0.2}, {"shortest": 0.5, "gap": 1}):
        for name in ("threshold", "low", "shortest", "gap"):
            choose(page, name, str(typed.get(name, "")))
        names = {"threshold": "threshold", "low": "low_threshold", "shortest": "min_duration_s", "gap": "max_gap_s"}
        settings = event_settings(model.config, **{names[name]: value for name, value in typed.items()})
        events = find_events(event_scores(scores, labels), labels.names, *times.T, **settings)
        rows = table(page, "csv")[["label", "start_s", "end_s", "score"]].itertuples(index=False, name=None)
        same_events(sorted(rows), sorted((e.label, e.onset_s, e.offset_s, e.score) for e in events), 1.1e-3)
        answer = text(page, "answer")
        assert all((name in answer) == any(event.label == name for event in events) for name in labels.names)
        counts.append(len(events))
    assert seconds < 5 or len(set(counts)) > 1
    assert page.execute_script("return document.getElementById('window').disabled")


def read_microphone(page) -> pandas.DataFrame:
    """Reads the microphone for two seconds; returns the page's table of windows."""
    page.find_element("id", "microphone").click()
    wait(lambda: page.execute_script("return !results.hidden && classes.tBodies[0].rows.length"))
    time.sleep(2)
    page.find_element("id", "stop").click()
    wait(lambda: is_done(page))
    return table(page, "windows")


def test_the_microphone_is_read_in_time_frames(page, detector):
    choose(page, "model", "models/3")
    found = read_microphone(page)
    hop_s = detector[1].config.frame_hop_s
    assert found["start_s"].diff().iloc[2:].to_numpy() == pytest.approx(hop_s, abs=2e-3)
    assert (found["start_s"].to_numpy()[1:] == found["end_s"].to_numpy()[:-1]).all()
    assert len(found) * hop_s == pytest.approx(found["end_s"].iloc[-1], abs=0.2) and not text(page, "error")


def test_the_microphone_is_read_in_windows(page):
    choose(page, "window", "0.5")
    found = read_microphone(page)
    assert len(found) > 4 and not text(page, "error")
    assert found["start_s"].diff().iloc[1:-1].to_numpy() == pytest.approx(0.25, abs=1e-3)
    assert found["end_s"].iloc[-1] - found["start_s"].iloc[-1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no audio", "cannot decode the file"), (b"", "cannot decode the file")],
)
def test_what_cannot_be_read_is_told(page, tmp_path, content, message):
    (tmp_path / "broken.wav").write_bytes(content)
    assert message in classify(page, tmp_path / "broken.wav")
    good = ROOT / "data" / "instruments" / "audio" / "tabla_tun2.flac"
    assert not classify(page, good) and text(page, "answer")
