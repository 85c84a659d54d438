"""Tests frame classifiers in predict_hf.py: scores per frame and events, in parts of any size; published numbers."""

import numpy as np
import pandas
import pytest
import scipy.ndimage
import soundfile
import torch
from audio_files import run_program
from golden import arrays, convert, settings
from tiny_detectors import DETECTION, long_tones, save_tiny_detector

import predict_hf
from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioFrameClassification,
    VGGishFeatureExtractor,
    VGGishForAudioFrameClassification,
)
from training.base.event_detection import find_events
from training.base.label_frames import frame_grid
from training.data.events import read_events
from training.inference import plan

RATE = 16000


@pytest.fixture
def recording(tmp_path):
    soundfile.write(tmp_path / "long.wav", long_tones(), RATE)
    return tmp_path / "long.wav"


def predict(*words) -> int:
    return predict_hf.main(list(map(str, words)))


@torch.no_grad()
def plain_scores(folder, samples: np.ndarray, **windows) -> tuple[np.ndarray, np.ndarray]:
    """Scores (frames, labels) and edges in seconds by one window after the other, and a sum per frame."""
    family = VGGishForAudioFrameClassification if "vggish" in folder.name else DualSSASTForAudioFrameClassification
    extractor = VGGishFeatureExtractor if "vggish" in folder.name else DualSSASTFeatureExtractor
    model, extractor = family.from_pretrained(folder).eval(), extractor.from_pretrained(folder)
    grid, rows = frame_grid(model, extractor, **windows), {}
    for first in grid.windows(len(samples)):
        part = torch.from_numpy(samples[first * grid.step :][: grid.length].astype(np.float32))
        features = extractor([part], RATE, return_attention_mask=True, return_tensors="pt")
        for place, row in enumerate(model(**features).logits[0]):
            rows.setdefault(first + place, []).append(row.numpy())
    logits = np.stack([np.mean(rows[frame], axis=0) for frame in range(len(rows))])
    return 1 / (1 + np.exp(-logits)), grid.edges_s(len(logits), len(samples))


@pytest.mark.parametrize("family", ["dual_ssast", "vggish"])
@pytest.mark.parametrize("part_s", [plan.PART_S, 1.5])
def test_scores_and_events_are_those_of_the_joined_windows(tmp_path, recording, monkeypatch, family, part_s):
    """Also of a recording in several parts; the model's own thresholds, filter and shortest events hold."""
    monkeypatch.setattr(plan, "PART_S", part_s)
    monkeypatch.setattr(plan, "STRETCH_S", 1)
    folder, windows = save_tiny_detector(tmp_path / family, family), {}
    if family == "vggish":
        windows = {"window_s": 2.1, "hop_s": 1.0}
    words = [word for name, value in windows.items() for word in (f"--{name}", value)]
    events, frames, table = (tmp_path / name for name in ("events.json", "frames.csv", "scores.csv"))
    assert predict(folder, recording, "--events", events, "--windows", frames, "--output", table, *words) == 0
    scores, edges = plain_scores(folder, soundfile.read(recording)[0], **windows)
    found = pandas.read_csv(frames)
    np.testing.assert_allclose(found[["probability_owl", "probability_wren"]], scores, atol=2e-6)
    np.testing.assert_allclose(found["start_s"], edges[:-1], atol=1e-6)
    np.testing.assert_allclose(found["end_s"], edges[1:], atol=1e-6)
    wanted = find_events(scores, ["owl", "wren"], edges[:-1], edges[1:], **DETECTION)
    (own,) = read_events(events).values()
    assert [event.label for event in own] == [event.label for event in wanted] and len(own) > 2
    np.testing.assert_allclose([event[:2] for event in own], [event[:2] for event in wanted], atol=1e-6)
    row, share = pandas.read_csv(table).iloc[0], (scores > DETECTION["high"]).mean(axis=0)
    for label, highest, own_share in zip(("owl", "wren"), scores.max(axis=0), share):
        assert row[f"probability_{label}"] == pytest.approx(highest, abs=2e-6)
        assert row[f"share_{label}"] == pytest.approx(own_share, abs=1e-6)


def test_predictions_obey_the_thresholds_of_the_events(tmp_path, recording):
    folder = save_tiny_detector(tmp_path / "model", event_detection={"high": [1.0, 0.0]})
    words = ["--output", tmp_path / "scores.csv", "--windows", tmp_path / "frames.csv"]
    assert predict(folder, recording, *words, "--events", tmp_path / "events.json") == 0
    (row,) = pandas.read_csv(tmp_path / "scores.csv").to_dict("records")
    assert (row["prediction"], row["share_owl"], row["share_wren"]) == ("wren", 0, 1) and row["max_owl"] > 0.5
    assert set(pandas.read_csv(tmp_path / "frames.csv")["prediction"]) == {"wren"}
    assert {event.label for event in next(iter(read_events(tmp_path / "events.json").values()))} == {"wren"}


def test_given_thresholds_replace_the_models_own(tmp_path, recording):
    folder = save_tiny_detector(tmp_path / "dual_ssast")
    scores, edges = plain_scores(folder, soundfile.read(recording)[0])
    assert predict(folder, recording, "--events", tmp_path / "e.csv", "--threshold", 0.6) == 0
    wanted = find_events(
        scores, ["owl", "wren"], edges[:-1], edges[1:], 0.6, median_steps=[1, 3], min_duration_s=[0.0, 0.1]
    )
    (own,) = read_events(tmp_path / "e.csv").values()
    np.testing.assert_allclose([event[:2] for event in own], [event[:2] for event in wanted], atol=1e-6)


@pytest.mark.parametrize("steps", [1, 7, 41])
def test_a_given_median_filter_replaces_the_models_own(tmp_path, recording, capsys, steps):
    folder = save_tiny_detector(tmp_path / "dual_ssast")
    scores, edges = plain_scores(folder, soundfile.read(recording)[0])
    assert predict(folder, recording, "--events", tmp_path / "e.csv", "--median_steps", steps) == 0
    settings = DETECTION | {"median_steps": steps}
    wanted = find_events(scores, ["owl", "wren"], edges[:-1], edges[1:], **settings)
    (own,) = read_events(tmp_path / "e.csv").values()
    np.testing.assert_allclose([event[:2] for event in own], [event[:2] for event in wanted], atol=1e-6)
    assert predict(folder, recording, "--events", tmp_path / "e.csv", "--median_steps", 4) == 1
    assert "median_steps 4: " in capsys.readouterr().err.splitlines()[-1]


def test_a_damaged_recording_costs_the_others_nothing(tmp_path, recording):
    folder = save_tiny_detector(tmp_path / "dual_ssast")
    (tmp_path / "bad.wav").write_bytes(b"RIFF0000WAVE")
    words = [tmp_path / "bad.wav", recording, "--events", tmp_path / "e.csv"]
    assert predict(folder, *words) == 1
    assert list(read_events(tmp_path / "e.csv")) == [str(recording)]


@pytest.mark.golden
def test_the_published_events_of_asit(tmp_path):
    """PretrainedSED's: sigmoid, a median filter of 9 frames, which the conversion stores, and three thresholds."""
    data = arrays("asit_psed")
    folder = convert("asit", settings("asit_psed")["recipes"]["strong"], tmp_path)
    waveforms = data["waveform_int16"]
    for index, waveform in enumerate(waveforms):
        soundfile.write(tmp_path / f"{index}.wav", waveform, RATE, subtype="PCM_16")
    paths = [tmp_path / f"{index}.wav" for index in range(2)]
    scores = 1 / (1 + np.exp(-data["strong_logits"].astype(np.float64)))  # (items, labels, frames)
    scores = scipy.ndimage.median_filter(scores, size=(1, 1, 9), mode="reflect")
    labels = {name: index for index, name in DualSSASTConfig.from_pretrained(folder).id2label.items()}
    for number, threshold in enumerate((0.1, 0.2, 0.5)):
        place = tmp_path / f"{number}.csv"
        assert predict(folder, *paths, "--events", place, "--threshold", threshold, "--overwrite") == 0
        events = read_events(place)
        found = [(item, labels[one.label], *one[:2]) for item, path in enumerate(paths) for one in events[str(path)]]
        rows = data["events"][data["events"][:, 1] == number]
        wanted = [(int(item), int(label), onset_s, offset_s) for item, _, label, onset_s, offset_s in rows]
        differ = active_frames(found, scores.shape) != active_frames(wanted, scores.shape)
        # The stored scores come from features that were rounded to float16.
        assert (abs(scores[differ] - threshold) < 1e-4).all() and differ.sum() < 20
        assert len(set(found) & set(wanted)) > 0.99 * len(wanted)


def active_frames(events: list[tuple], shape: tuple) -> np.ndarray:
    """Returns which frames of 40 ms hold events (item, label, onset, offset): boolean (items, labels, frames)"""
    active = np.zeros(shape, dtype=bool)
    for item, label, onset_s, offset_s in events:
        active[item, label, round(onset_s * 25) : round(offset_s * 25)] = True
    return active


@pytest.mark.slow
def test_memory_does_not_depend_on_the_length_of_a_recording(tmp_path):
    folder, peaks = save_tiny_detector(tmp_path / "dual_ssast"), []
    script = """
import resource, sys, predict_hf
assert predict_hf.main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    for hours in (0.25, 10):
        path = tmp_path / f"{hours}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for _ in range(round(hours * 60)):
                file.write(np.tile(long_tones()[: 5 * RATE], 12))
        process = run_program("-c", script, folder, path, "--events", tmp_path / f"{hours}.csv", timeout=3000)
        assert process.returncode == 0, process.stderr[-2000:]
        peaks.append(int(process.stdout.split()[-1]) / 1024)  # MiB
    assert peaks[1] - peaks[0] < 150, peaks
