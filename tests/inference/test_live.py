"""Tests predict_hf.py --listen without a microphone: the windows of files, lost sound as gaps, and all ends."""

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import ROOT, run_program, tone
from tiny_detectors import long_tones, save_tiny_detector
from tiny_models import save_tiny_classifier

import predict_hf
from modeling_dual_ssast.embedding_dual_ssast import window_starts
from training.base.event_detection import EventFinder, event_settings, find_events
from training.base.inference import labels_of, load_classifier
from training.base.open_set import NUM_QUANTILES, SCORES, OpenSet, Rejection, energies
from training.data.events import read_events
from training.errors import InputError
from training.inference import live
from training.inference.frames import FrameClassifier
from training.inference.live import Block, Intake, LiveArguments, RingBuffer, cut_windows
from training.inference.scores import Classifier
from training.recipe import parse_words

RATE = 16000
WINDOWS = ("--window_s", "0.5", "--hop_s", "0.2")
# soxr computes with 24 bits, and a stream of any blocks gives what one call gives. Files of more than two minutes are
# resampled in stretches, which differ by rounding.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), problem_type="multi_label_classification")


def predict(*words) -> int:
    return predict_hf.main(list(map(str, words)))


@pytest.fixture
def pipe(monkeypatch):
    """Puts bytes into standard input, in pieces of awkward sizes."""
    threads = []

    def put(content: bytes, sizes=(1, 7, 4096, 65536, 3)):
        reading, writing = os.pipe()

        def write():
            place = 0
            with open(writing, "wb", buffering=0) as file:
                for size in itertools.cycle(sizes):
                    if place >= len(content):
                        return
                    place += file.write(content[place : place + size])

        threads.append(threading.Thread(target=write))
        threads[-1].start()
        monkeypatch.setattr(sys, "stdin", open(reading, "rb"))  # noqa: SIM115

    yield put
    for thread in threads:
        thread.join(10)
        sys.stdin.close()


def raw(samples: np.ndarray, encoding: str) -> bytes:
    kind, one = live.ENCODINGS[encoding]
    if kind == "<f4":
        return samples.astype(kind).tobytes()
    return np.clip(np.rint(samples.astype(np.float64) * one), -one, one - 1).astype(kind).tobytes()


def same_tables(found, expected, rtol=0.0):
    found, expected = map(pandas.read_csv, (found, expected))
    assert list(found) == list(expected) and len(found) == len(expected)
    assert found["prediction"].fillna("").tolist() == expected["prediction"].fillna("").tolist()
    numbers = [name for name in found if name not in ("file", "prediction")]
    np.testing.assert_allclose(found[numbers], expected[numbers], rtol=rtol, atol=TOLERANCE)


CASES = [
    (16000, 1, "s16le", 2.0), (44100, 2, "s16le", 3.01), (48000, 3, "f32le", 1.3), (8000, 1, "s32le", 0.9),
    (11025, 2, "f32le", 0.3), (22050, 1, "s16le", 0.5), (16000, 1, "f32le", 0.7), (96000, 1, "s16le", 12.2),
]  # fmt: skip


@pytest.mark.parametrize("rate, channels, encoding, seconds", CASES)
def test_standard_input_gives_the_windows_of_the_file(
    folder, tmp_path, pipe, capsys, rate, channels, encoding, seconds
):
    """Shorter than a window, as long as one, and longer than the buffer; sums of hops that meet the end or do not."""
    samples = tone(seconds, rate, channels=channels).reshape(-1, channels)
    subtype = {"s16le": "PCM_16", "s32le": "PCM_32", "f32le": "FLOAT"}[encoding]
    soundfile.write(tmp_path / "clip.wav", samples, rate, subtype=subtype)
    samples, _ = soundfile.read(tmp_path / "clip.wav", always_2d=True)
    expected, found = tmp_path / "expected.csv", tmp_path / "found.csv"
    assert predict(folder, tmp_path / "clip.wav", "--windows", expected, *WINDOWS) == 0
    pipe(raw(samples, encoding), (1, 7, 4096, 65536, 3) if seconds < 10 else (65536,))
    words = ["--rate", rate, "--channels", channels, "--encoding", encoding]
    assert predict(folder, "--listen", "-", "--windows", found, *words, *WINDOWS) == 0
    same_tables(found, expected)
    count = len(pandas.read_csv(expected))
    told = capsys.readouterr()
    assert f"{count} windows" in told.err and " 0 of " in told.err and "latency median" in told.err
    assert len(re.findall(r"^\d+\.\d\d-\d+\.\d\d s\t", told.out, re.MULTILINE)) == count


@pytest.mark.slow
def test_a_program_reads_standard_input(folder, tmp_path):
    samples = tone(1.2)
    soundfile.write(tmp_path / "clip.wav", samples, RATE)
    assert predict(folder, tmp_path / "clip.wav", "--windows", tmp_path / "expected.csv", *WINDOWS) == 0
    soundfile.write(tmp_path / "clip.raw", samples, RATE, subtype="PCM_16", format="RAW")
    script = 'cat "$1" | "$2" predict_hf.py "$3" --listen - --windows "$4" --dtype float32 --window_s 0.5 --hop_s 0.2'
    process = run_program(
        "-c",
        f"import subprocess, sys; sys.exit(subprocess.call(['bash', '-c', {script!r}, 'bash', *sys.argv[1:]]))",
        *(tmp_path / "clip.raw", sys.executable, folder, tmp_path / "found.csv"),
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    same_tables(tmp_path / "found.csv", tmp_path / "expected.csv")


# ---- The ring buffer ----


def block(start_s: float, seconds: float = 0.1) -> Block:
    start = round(start_s * RATE)
    return Block(start, np.arange(start, start + round(seconds * RATE), dtype=np.float32), time.monotonic())


@pytest.mark.parametrize("blocks", [1, 5, 100])
def test_a_slow_model_loses_the_oldest_blocks(blocks):
    buffer = RingBuffer(RATE // 2, RATE)
    for number in range(blocks):
        assert buffer.put(block(number / 10))
    assert buffer.num_dropped == max(blocks - 5, 0) and buffer.num_blocks == blocks
    buffer.end()
    taken = buffer.take(10 * RATE, RATE, 1)
    assert [one.start for one in taken] == [round(n / 10 * RATE) for n in range(max(blocks - 5, 0), blocks)]
    assert not buffer.take(1, 1, 1) and not buffer.put(block(0))


def test_what_comes_faster_than_sound_waits_and_nothing_is_lost():
    buffer = RingBuffer(RATE // 2, RATE, can_wait=None)
    thread = threading.Thread(target=lambda: [buffer.put(block(number / 10)) for number in range(40)] and buffer.end())
    thread.start()
    starts = []
    while taken := buffer.take(RATE // 10, RATE // 10, 1):
        time.sleep(0.002)  # slower than the source
        starts += [one.start for one in taken]
    thread.join(10)
    assert starts == [round(number / 10 * RATE) for number in range(40)] and buffer.num_dropped == 0


def test_what_comes_in_its_own_time_does_not_wait(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock.now))
    buffer = RingBuffer(RATE // 2, RATE, can_wait=None)
    for number in range(20):
        buffer.put(Block(number * 1600, np.zeros(1600, np.float32), clock.now))
        clock.now += 0.1
    assert buffer.num_dropped == 15


@pytest.mark.parametrize("seconds", [0.05, 0.5, 0.7, 0.71, 3.3])
@pytest.mark.parametrize("hop_s", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("most", [1, 8])
def test_windows_are_those_of_a_file(seconds, hop_s, most):
    samples = np.arange(round(seconds * RATE), dtype=np.float32)
    buffer, window, hop = RingBuffer(10 * RATE, RATE), RATE // 2, round(hop_s * RATE)
    intake = Intake(buffer, "test", RATE)
    for first in range(0, len(samples), 1600):
        intake.add(samples[first : first + 1600, None])
    intake.end()
    found = list(cut_windows(buffer, window, hop, most))
    assert max(len(windows.waveforms) for windows in found) <= most
    starts = [start for windows in found for start in windows.starts]
    assert starts == window_starts(len(samples), window, hop)
    for windows in found:
        for start, waveform in zip(windows.starts, windows.waveforms):
            np.testing.assert_array_equal(waveform, samples[start : start + window])


@pytest.mark.parametrize("rate", [16000, 44100])
def test_lost_sound_is_a_gap_and_never_a_shift(rate):
    """The samples hold their own times, so that each window can be checked."""
    buffer, window, hop = RingBuffer(100 * RATE, RATE), RATE // 2, RATE // 4
    intake, size = Intake(buffer, "test", rate), rate // 10
    ramp = np.arange(60 * size, dtype=np.float32)[:, None] / rate / 10  # tenths of seconds, within -1 and 1
    for number in range(60):
        if number in (3, 23, 24, 57):
            intake.skip(size)
        else:
            intake.add(ramp[number * size :][:size])
    intake.end()
    windows = [
        (start, waveform)
        for some in cut_windows(buffer, window, hop, 3)
        for start, waveform in zip(some.starts, some.waveforms)
    ]
    for start, waveform in windows:
        middle = len(waveform) // 2  # the resampler rings at the edges of a stretch
        assert waveform[middle] == pytest.approx((start + middle) / RATE / 10, abs=1e-4)
        for gap in (3, 23, 24, 57):
            assert start + len(waveform) <= gap * 1600 or start >= (gap + 1) * 1600
    starts = [start for start, _ in windows]
    assert starts[0] == 4 * 1600 and 25 * 1600 in starts and starts[-1] == 58 * 1600
    assert starts == sorted(starts)


# ---- A microphone ----


class Microphones:
    """Stands for sounddevice: a stream plays samples to its callback, a block every `pace_s` seconds."""

    class PortAudioError(Exception):
        pass

    class CallbackStop(Exception):
        pass

    def __init__(self, samples=None, rate=48000, lost=(), at_end=None, pace_s=0.0):
        self.samples, self.rate, self.lost, self.at_end, self.pace_s = samples, rate, lost, at_end, pace_s
        self.asked, self.streams = [], []

    def query_devices(self, device, kind):
        if device not in (None, 1, "USB"):
            raise ValueError(f"No input device matching {device!r}")
        return {"name": "USB \x1b[31m mic", "default_samplerate": float(self.rate)}

    def InputStream(self, *, samplerate, blocksize, device, channels, dtype, callback, finished_callback):
        self.asked.append((device, channels, samplerate))
        if channels > 2:
            raise self.PortAudioError("Invalid number of channels [PaErrorCode -9998]")

        def play():
            try:
                for number, first in enumerate(range(0, len(self.samples), blocksize)):
                    time.sleep(self.pace_s)
                    samples = self.samples[first : first + blocksize]
                    if number in self.lost:
                        continue
                    status = SimpleNamespace(input_overflow=number - 1 in self.lost)
                    times = SimpleNamespace(inputBufferAdcTime=100 + first / samplerate)
                    callback(samples, len(samples), times, status)
            except self.CallbackStop:
                finished_callback()
            else:
                self.at_end() if self.at_end else finished_callback()

        self.streams.append(Stream(threading.Thread(target=play)))
        return self.streams[-1]

    def _exit_handler(self):
        pass


class Stream:
    is_closed = False

    def __init__(self, thread):
        self.thread = thread

    def start(self):
        self.thread.start()

    def stop(self):
        self.thread.join(10)

    def close(self):
        self.is_closed = not self.thread.is_alive()


@pytest.fixture
def microphones(monkeypatch):
    def put(*args, **settings) -> Microphones:
        monkeypatch.setitem(sys.modules, "sounddevice", Microphones(*args, **settings))
        return sys.modules["sounddevice"]

    return put


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("words, asked", [([], None), (["1"], 1), (["USB"], "USB")])
def test_a_microphone_until_ctrl_c(folder, tmp_path, microphones, capsys, words, asked):
    samples = tone(1.5, 48000, channels=2)
    soundfile.write(tmp_path / "clip.wav", samples, 48000, subtype="FLOAT")
    assert predict(folder, tmp_path / "clip.wav", "--windows", tmp_path / "expected.csv", *WINDOWS) == 0
    fake = microphones(samples, at_end=interrupt)
    (tmp_path / "found.csv").write_text("precious")
    before = signal.getsignal(signal.SIGINT)
    found = predict(folder, "--channels", 2, "--windows", tmp_path / "found.csv", *WINDOWS, "--listen", *words)
    assert found == 0 and signal.getsignal(signal.SIGINT) is before
    assert fake.asked == [(asked, 2, 48000)] and fake.streams[0].is_closed
    # The resampler still held the last samples: all windows that were complete are there.
    found, expected = map(pandas.read_csv, (tmp_path / "found.csv", tmp_path / "expected.csv"))
    count = len(found) - 1
    assert count >= 5
    numbers = [name for name in found if name.startswith("prob")]
    np.testing.assert_allclose(found[numbers][:count], expected[numbers][:count], rtol=0, atol=TOLERANCE)
    assert (tmp_path / "found.previous.csv").read_text() == "precious"
    error = capsys.readouterr().err
    assert "listening to USB \\x1b[31m mic at 48000 Hz" in error and " blocks dropped; gaps: 0 (" in error


def test_a_card_that_loses_sound_leaves_a_gap(folder, microphones, capsys):
    microphones(tone(3.0, 16000)[:, None], rate=16000, lost=(12, 13), at_end=interrupt)
    assert predict(folder, "--listen", *WINDOWS) == 0
    told = capsys.readouterr()
    ends = [tuple(map(float, pair)) for pair in re.findall(r"^([\d.]+)-([\d.]+) s", told.out, re.MULTILINE)]
    assert all(end <= 1.2 or start >= 1.4 for start, end in ends) and (1.4, 1.9) in ends and ends[-1][1] == 3.0
    assert "gap 1.10-1.40 s: the sound card has lost sound" in told.err
    assert "; gaps: 1 (0.3 s)" in told.err


def test_a_microphone_that_is_pulled_out_ends_the_run(folder, tmp_path, microphones, capsys):
    microphones(tone(0.6, 16000)[:, None], rate=16000, at_end=None)
    assert predict(folder, "--listen", *WINDOWS, "--windows", tmp_path / "windows.jsonl") == 1
    assert re.search(r"^error: USB .* has stopped; connect it again", capsys.readouterr().err, re.MULTILINE)
    assert len((tmp_path / "windows.jsonl").read_text().splitlines()) == 2


def test_a_driver_that_does_not_stop_is_left_behind(folder, tmp_path, microphones, monkeypatch, capsys):
    released, unregistered = threading.Event(), []
    monkeypatch.setattr(Stream, "stop", lambda stream: released.wait(60))
    monkeypatch.setattr(live, "atexit", SimpleNamespace(unregister=unregistered.append))
    monkeypatch.setattr(live, "STOP_S", 0.1)
    fake = microphones(tone(0.6, 16000)[:, None], rate=16000, at_end=interrupt)
    try:
        assert predict(folder, "--listen", *WINDOWS, "--windows", tmp_path / "windows.jsonl") == 0
        assert not fake.streams[0].is_closed and unregistered == [fake._exit_handler]
    finally:
        released.set()
    assert "listen default: the sound driver does not stop, and is left behind" in capsys.readouterr().err
    assert len((tmp_path / "windows.jsonl").read_text().splitlines()) == 2


class WithoutPortAudio:
    """Stands in the path of imports, as sounddevice behaves without its library."""

    def find_spec(self, name, path=None, target=None):
        if name == "sounddevice":
            raise OSError("PortAudio library not found")


def test_what_is_missing_is_named_with_the_remedy(folder, microphones, monkeypatch, capsys):
    def told(*words) -> str:
        assert predict(folder, "--listen", *words) == 1
        return capsys.readouterr().err.splitlines()[-1]

    microphones()
    assert told("mic 7") == (
        "error: listen mic 7: cannot be opened (No input device matching 'mic 7'); python -m sounddevice lists them, "
        "and --rate and --channels ask for others"
    )
    assert "Invalid number of channels" in told("1", "--channels", "3")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert re.match(r'error: listen: needs sounddevice \(.*\); pip install "modeling-dual-ssast\[live\]"$', told())
    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [WithoutPortAudio(), *sys.meta_path])
    assert told().startswith("error: listen: needs PortAudio (PortAudio library not found); install it")


def test_a_model_that_is_slower_than_the_sound(folder, tmp_path, microphones, monkeypatch, capsys):
    """The samples hold their own times, and no window shows others."""
    monkeypatch.setattr(live, "BUFFER_S", 1)
    monkeypatch.setattr(live, "run_windows", compute := SlowModel(live.run_windows))
    microphones(np.arange(40 * RATE, dtype=np.float32)[:, None] / 1000, rate=RATE, at_end=interrupt, pace_s=0.002)
    assert predict(folder, "--listen", "--windows", tmp_path / "windows.csv", *WINDOWS) == 0
    table, told = pandas.read_csv(tmp_path / "windows.csv"), capsys.readouterr().err
    starts = [round(float(waveform[0]) * 1000) for waveform in compute.waveforms[1:]]  # the first one warms up
    assert (table["start_s"] * RATE).round().tolist() == starts and table["end_s"].iloc[-1] == 40.0
    dropped, total = map(int, re.search(r"(\d+) of (\d+) blocks dropped", told).groups())
    gaps = [
        tuple(map(float, gap))
        for gap in re.findall(r"^gap (.+)-(.+) s: the model is slower than the sound, (\d+)", told, re.MULTILINE)
    ]
    ends = np.maximum.accumulate(table["end_s"])[:-1].to_numpy()
    missing = [(end, start) for end, start in zip([0.0, *ends], table["start_s"]) if start > end + 1e-9]
    assert np.array(gaps)[:, :2] == pytest.approx(np.array(missing), abs=0.006) and total == 400
    lost_s = sum(end - start for start, end in missing)
    assert sum(count for *_, count in gaps) == dropped > 0
    assert dropped / 10 <= lost_s <= dropped / 10 + 0.5 * len(gaps)


class SlowModel:
    def __init__(self, run):
        self.run, self.waveforms = run, []

    def __call__(self, network, waveforms, batch_size):
        self.waveforms += waveforms
        time.sleep(0.05)
        return self.run(network, waveforms, batch_size)


# ---- Events ----


def listen_for_events(folder, path, *words, **settings):
    """Listens to standard input with thresholds, as predict_hf.py does."""
    words = ["--model", folder, "--listen", "-", "--windows", path.with_name("windows.csv"), *WINDOWS, *words]
    (arguments,) = parse_words((predict_hf.PredictArguments,), list(map(str, words)), "", "")
    model, extractor = load_classifier(str(folder))
    network = Classifier(model, extractor, labels_of(str(folder), model.config), 0.5, 0.2)
    return live.listen(arguments, network, {}, events=path, **settings)


def changing() -> np.ndarray:
    """A sound that changes its character, so that a model with random weights changes its mind."""
    return np.concatenate([tone(0.9, hz=hz, seed=index) for index, hz in enumerate((200, 3000, 200, 6000, 200))])


SETTINGS = {"threshold": 0.6, "low_threshold": 0.5, "min_duration_s": 0.3, "max_gap_s": 0.25}


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl", "e.json", "e.txt", "e.tsv", "folder"])
def test_events_are_those_of_the_windows(folder, tmp_path, pipe, capsys, name):
    pipe(raw(changing(), "s16le"))
    assert listen_for_events(folder, tmp_path / name, **SETTINGS) == 0
    windows = pandas.read_csv(tmp_path / "windows.csv")
    names = ["high", "low", "mid"]
    settings = {"low": 0.5, "min_duration_s": 0.3, "max_gap_s": 0.25}
    scores = windows[[f"probability_{label}" for label in names]].to_numpy()
    expected = find_events(scores, names, windows["start_s"], windows["end_s"], 0.6, **settings)
    ((recording, found),) = read_events(tmp_path / name).items()
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected):
        assert one.label == other.label
        assert one[:2] == pytest.approx(other[:2], abs=1e-5)
    assert name == "folder" or (recording == windows["file"][0] and re.match(r"stdin_\d{8}_\d{6}Z$", recording))
    told = capsys.readouterr()
    assert told.out.count("\nevent ") == len(found) and f"{len(found)} events" in told.err


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
def test_no_events_are_a_table_too(folder, tmp_path, pipe, name):
    pipe(raw(tone(0.7), "s16le"))
    assert listen_for_events(folder, tmp_path / name, threshold=1.0) == 0
    assert list(read_events(tmp_path / name).values()) == [[]]


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
def test_events_and_windows_are_in_the_tables_while_the_sound_goes_on(folder, tmp_path, monkeypatch, name):
    """The rest of the sound comes only when events can be read."""
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", open(reading, "rb"))  # noqa: SIM115
    content, seen = raw(changing(), "s16le"), []

    def write():
        with open(writing, "wb", buffering=0) as file:
            file.write(content)
            for _ in range(500):
                time.sleep(0.01)
                events = read_events(tmp_path / name) if (tmp_path / name).exists() else {}
                if any(events.values()):
                    seen.append((sum(map(len, events.values())), len(pandas.read_csv(tmp_path / "windows.csv"))))
                    break
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    assert listen_for_events(folder, tmp_path / name, **SETTINGS) == 0
    thread.join(10)
    sys.stdin.close()
    ((events, windows),) = seen
    assert 0 < events < len(*read_events(tmp_path / name).values()) and windows > 0
    assert windows < len(pandas.read_csv(tmp_path / "windows.csv"))


def test_a_second_threshold_above_the_first_is_refused(folder, pipe, capsys):
    pipe(raw(tone(0.7), "s16le"))
    assert predict(folder, "--listen", "-", "--threshold", 0.4, "--low_threshold", 0.6) == 1
    error = capsys.readouterr().err
    assert "error: low_threshold 0.6: the threshold of high is 0.4; give at most that" in error


def test_a_number_per_clip_is_no_event(tmp_path, pipe, capsys):
    folder = save_tiny_classifier(tmp_path / "model", labels=("loudness",), problem_type="regression")
    pipe(raw(tone(0.7), "s16le"))
    assert predict(folder, "--listen", "-", *WINDOWS) == 0
    assert "event" not in capsys.readouterr().out
    with pytest.raises(InputError, match="a number per clip, so it has no events"):
        listen_for_events(folder, tmp_path / "e.csv")


# ---- Unknown sounds ----


@pytest.fixture(scope="module")
def rejecting(tmp_path_factory):
    """A classifier with thresholds amid the scores of the windows of `changing`."""
    folder = save_tiny_classifier(tmp_path_factory.mktemp("rejecting"))
    model, extractor = load_classifier(str(folder))
    size = model.classifier.dense.in_features
    means, directions = torch.randn(3, size, generator=torch.Generator().manual_seed(0)), torch.eye(size)[:2]
    found = OpenSet(means, directions, torch.ones(3), {name: torch.zeros(NUM_QUANTILES) for name in SCORES})
    labels = labels_of(str(folder), model.config)
    network = Classifier(model, extractor, labels, 0.5, 0.2, Rejection(found, "distance", 0.5))
    sound = changing()
    rows = live.run_windows(network, [sound[start:][:8000] for start in window_starts(len(sound), 8000, 3200)], 8)
    distances, logits = (np.concatenate([row[name] for row in rows]) for name in ("distance", "logits"))
    for name, scores in zip(SCORES, (distances, energies(torch.from_numpy(logits)).numpy())):
        found.quantiles[name] = torch.from_numpy(np.quantile(scores, np.linspace(0, 1, NUM_QUANTILES)))
    found.save(model, folder)
    return folder


@pytest.mark.parametrize("score", SCORES)
def test_unknown_sounds_are_those_of_the_file(rejecting, tmp_path, pipe, capsys, score):
    soundfile.write(tmp_path / "clip.wav", changing(), RATE, subtype="PCM_16")
    samples, _ = soundfile.read(tmp_path / "clip.wav")
    words = ["--reject", 0.7, "--reject_by", score, *WINDOWS]
    expected, found = tmp_path / "expected.csv", tmp_path / "found.csv"
    assert predict(rejecting, tmp_path / "clip.wav", "--windows", expected, *words) == 0
    capsys.readouterr()
    pipe(raw(samples, "s16le"))
    assert predict(rejecting, "--listen", "-", "--windows", found, *words) == 0
    same_tables(found, expected, rtol=TOLERANCE)
    table = pandas.read_csv(found)
    num_unknown = (table["prediction"] == "unknown").sum()
    assert list(table)[3:5] == ["prediction", score] and 1 < num_unknown < len(table) / 2
    assert capsys.readouterr().out.count("\tunknown (") == num_unknown
    one, other = (json.loads(path.with_name(f"{path.name}.about.json").read_text()) for path in (expected, found))
    assert one["settings"] == other["settings"] and one["settings"]["reject"] == 0.7


def test_a_model_that_cannot_reject_is_refused(folder, pipe, capsys):
    pipe(raw(tone(0.7), "s16le"))
    assert predict(folder, "--listen", "-", "--reject", 0.9) == 1
    assert "a softmax alone needs it; leave it out" in capsys.readouterr().err


# ---- Ends and errors ----


@pytest.mark.parametrize(
    "content, words, message",
    [
        (b"", [], "error: standard input: no samples came; check what writes them"),
        (raw(np.full(9000, np.nan), "f32le"), ["--encoding", "f32le"],
         "error: standard input: holds 1600 NaN or infinite samples; repair or remove it; if there are none,"),
    ],
)  # fmt: skip
def test_standard_input_without_sound(folder, pipe, capsys, content, words, message):
    pipe(content, (4096,))
    assert predict(folder, "--listen", "-", *words, *WINDOWS) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rate", "8000"], "rate: has no effect without --listen"),
        (["--listen", "1", "--encoding", "f32le"], "encoding: has no effect for a microphone"),
        (["--listen", "-", "--output", "a.csv"], "output: has no effect with --listen"),
        (["--listen=-", "--inputs", "a.wav"], "inputs: has no effect with --listen"),
        (["--listen", "-", "--encoding", "mp3"], "encoding: must be s16le, s32le or f32le, got 'mp3'"),
    ],
)
def test_options_without_effect_are_refused(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        inputs = [] if "--listen" in words[0] else ["--inputs", "a.wav"]
        parse_words((predict_hf.PredictArguments,), ["--model", "m", *inputs, *words], "", "command line")


@pytest.mark.parametrize(
    "words, device",
    [(["--listen"], "default"), (["--listen", "--top_k", "3"], "default"), (["--listen", "-"], "-"),
     (["--listen", "2"], "2"), (["--listen=USB mic"], "USB mic"), (["m", "--listen"], "default"), ([], None)],
)  # fmt: skip
def test_the_word_after_listen_is_the_device(words, device):
    words = [word for word in live.with_device(words) if word.startswith("--listen") or word in ("-", "2")]
    (arguments,) = parse_words((LiveArguments,), words, "", "command line")
    assert arguments.listen == device


def test_standard_input_is_no_keyboard(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert predict(folder, "--listen", "-") == 1
    assert "standard input: holds no samples; pipe some into it, as in ffmpeg" in capsys.readouterr().err


# ---- Time frames ----


@pytest.fixture(scope="module", params=["dual_ssast", "vggish"])
def detector(request, tmp_path_factory):
    return save_tiny_detector(tmp_path_factory.mktemp("detector") / request.param, request.param)


def words_of(detector) -> tuple:
    return ("--window_s", 2.1, "--hop_s", 1.0) if detector.name == "vggish" else ("--hop_s", 0.12)


def file_tables(detector, samples: np.ndarray, folder) -> tuple:
    """The frames, as a table, and the events that predict_hf.py finds in a file of these samples."""
    soundfile.write(folder / "clip.wav", samples, RATE, subtype="FLOAT")
    words = [folder / "clip.wav", "--windows", folder / "w.csv", "--events", folder / "e.json", "--overwrite"]
    assert predict(detector, *words, *words_of(detector)) == 0
    (events,) = read_events(folder / "e.json").values()
    return folder / "w.csv", events


def same_events(found: list, expected: list, start_s: float = 0.0):
    assert [event.label for event in found] == [event.label for event in expected]
    times = [[event.onset_s - start_s, event.offset_s - start_s, event.score] for event in found]
    assert times == [pytest.approx([*event[:2], event.score], abs=1e-5) for event in expected]


@pytest.mark.parametrize("seconds", [0.02, 0.66, 2.11, 3.27, 5.2])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_frames_and_events_are_those_of_the_file(detector, tmp_path, pipe, capsys, seconds, rate):
    """Less than a window, and many; the model's own filter and thresholds; the last window ends with the sound."""
    samples = long_tones()[-round(seconds * RATE) :].astype(np.float32)
    if rate != RATE:
        samples = tone(seconds, rate, hz=900) * np.linspace(0, 1, round(seconds * rate), dtype=np.float32)
        soundfile.write(tmp_path / "other.wav", samples, rate, subtype="FLOAT")
        words = ["--windows", tmp_path / "w.csv", "--events", tmp_path / "e.json", *words_of(detector)]
        assert predict(detector, tmp_path / "other.wav", *words) == 0
        table, (events,) = tmp_path / "w.csv", read_events(tmp_path / "e.json").values()
    else:
        table, events = file_tables(detector, samples, tmp_path)
    pipe(raw(samples, "f32le"), (65536,))
    words = ["--windows", tmp_path / "found.csv", "--events", tmp_path / "found.json", "--encoding", "f32le"]
    capsys.readouterr()
    assert predict(detector, "--listen", "-", "--rate", rate, *words, *words_of(detector)) == 0
    same_tables(tmp_path / "found.csv", table)
    (found,) = read_events(tmp_path / "found.json").values()
    same_events(found, events)
    told = capsys.readouterr()
    assert told.out.count("event ") == len(found) and "latency median" in told.err
    assert seconds < 5 or len(found) > 1


def test_predictions_obey_the_thresholds_of_the_events(tmp_path, pipe):
    folder = save_tiny_detector(tmp_path / "model", event_detection={"high": [1.0, 0.0]})
    pipe(raw(long_tones()[:RATE].astype(np.float32), "f32le"), (65536,))
    words = ["--listen", "-", "--rate", RATE, "--encoding", "f32le", "--windows", tmp_path / "w.csv"]
    assert predict(folder, *words) == 0
    assert set(pandas.read_csv(tmp_path / "w.csv")["prediction"]) == {"wren"}


@pytest.mark.parametrize("lost", [(23, 24), (31,), (2, 40)])
def test_each_stretch_between_gaps_has_the_frames_of_a_file(detector, tmp_path, microphones, lost):
    """Blocks of 0.1 s are lost; what fills no window before a gap is left out, and no event spans one."""
    microphones(long_tones()[:, None].astype(np.float32), rate=RATE, lost=lost, at_end=interrupt)
    words = ["--windows", tmp_path / "found.csv", "--events", tmp_path / "found.json", *words_of(detector)]
    assert predict(detector, "--listen", *words) == 0
    table = pandas.read_csv(tmp_path / "found.csv")
    (found,) = read_events(tmp_path / "found.json").values()
    edges = [-1, *lost, 52]
    stretches = [(first + 1, last) for first, last in itertools.pairwise(edges) if last > first + 1]
    num_rows = num_events = 0
    for begin, end in stretches:
        own = table[(table["start_s"] >= begin / 10 - 1e-6) & (table["end_s"] <= end / 10 + 1e-6)]
        num_rows += len(own)
        if own.empty:
            assert end < 52
            continue
        until = round((own["end_s"].iloc[-1]) * RATE)
        samples = long_tones()[begin * 1600 : until].astype(np.float32)
        expected, events = file_tables(detector, samples, tmp_path)
        own = own.assign(start_s=own["start_s"] - begin / 10, end_s=own["end_s"] - begin / 10)
        own.to_csv(tmp_path / "own.csv", index=False)
        same_tables(tmp_path / "own.csv", expected)
        inside = [event for event in found if begin / 10 - 1e-6 <= event.onset_s < end / 10]
        same_events(inside, events, begin / 10)
        num_events += len(inside)
    assert num_rows == len(table) and num_events == len(found)


def test_events_come_while_the_sound_goes_on_and_latency_counts_the_wait(tmp_path, monkeypatch):
    """A frame waits for a window that begins after it: here 0.66 s and a hop at most, by the clock of the sound."""
    detector = save_tiny_detector(tmp_path / "dual_ssast")
    model, extractor = load_classifier(str(detector), of_frames=True)
    network = FrameClassifier(model, extractor, labels_of(str(detector), model.config), hop_s=0.12)
    samples, rate = long_tones().astype(np.float32), network.extractor.sampling_rate
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock.now))
    settings = event_settings(model.config)
    listener = live.Listener(network, "a", lambda: EventFinder(network.labels.names, **settings), 1)
    buffer = RingBuffer(100 * rate, rate)
    for first in range(0, len(samples), 800):
        stop = min(first + 800, len(samples))
        buffer.put(Block(first, samples[first:stop], stop / rate))
    buffer.end()
    counts = []
    for windows in cut_windows(buffer, network.window, network.hop, 1, network.layout):
        clock.now = windows.stops[-1] / rate
        listener.add(windows, live.run_windows(network, windows.waveforms, 1))
        counts.append(listener.num_events)
    waits = np.array(listener.latencies_s)
    assert waits.min() > (network.window - network.hop) / rate - network.grid.hop_s
    assert waits.max() < (network.window + network.hop) / rate
    assert len(set(counts[: len(counts) // 2])) > 3
