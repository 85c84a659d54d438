"""Tests the events of predict_hf.py: those of the windows, in every format, after a stop, and beside earlier tables."""

import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import tone, write_tone
from tiny_models import save_tiny_classifier

import predict_hf
from modeling_dual_ssast import DualSSASTForAudioClassification
from training.base.event_detection import find_events
from training.base.inference import load_classifier
from training.data.columns import Columns, audio_of
from training.data.events import Recordings, read_events
from training.data.tables import load_table
from training.inference import plan
from training.prepare.background import background_clips

NAMES = ("high", "low", "mid")
RATE = 16000
WINDOWS = ["--window_s", "0.4", "--hop_s", "0.1"]


@pytest.fixture(scope="module", params=["single_label_classification", "multi_label_classification"])
def model_folder(request, tmp_path_factory):
    thresholds = [0.5, 0.6, 0.4] if request.param.startswith("multi") else None
    folder = tmp_path_factory.mktemp("model")
    save_tiny_classifier(folder, NAMES, problem_type=request.param, decision_thresholds=thresholds)
    model, extractor = load_classifier(str(folder))
    with torch.no_grad():  # no class is above the others all the time
        model.classifier.dense.bias -= model.classify_windows(long(), extractor, sampling_rate=RATE).logits
    model.save_pretrained(folder)
    return folder


def long() -> np.ndarray:
    """A recording in which something happens: float32 (samples,)."""
    return np.concatenate([tone(1.0, hz=150 * 3**index, seed=index) * 0.1**index for index in range(4)])


@pytest.fixture
def clips(tmp_path):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "long.wav", long(), RATE)
    write_tone(tmp_path / "clips" / "short.wav", seconds=0.2)
    return tmp_path / "clips"


def predict(*words) -> int:
    return predict_hf.main(list(map(str, words)))


def expected(model_folder, clips, **settings) -> dict:
    """Events by the model's own windows, without the engine."""
    model, extractor = load_classifier(str(model_folder))
    found = {}
    for path in sorted(clips.glob("*.wav")):
        windows = model.classify_windows(
            soundfile.read(path, dtype="float32")[0], extractor, window_s=0.4, hop_s=0.1, average=False
        )
        scores = model.probabilities(windows.logits).numpy()
        if model.config.problem_type.startswith("single"):
            scores = scores * (scores == scores.max(axis=1, keepdims=True))
        times = windows.start_s.numpy(), windows.end_s.numpy()
        found[str(path)] = find_events(scores, NAMES, *times, **settings)
    return found


def assert_same(found: dict, wanted: dict):
    assert found.keys() == wanted.keys()
    for file in wanted:
        assert [event.label for event in found[file]] == [event.label for event in wanted[file]]
        times = [np.array([event[:2] for event in events[file]]) for events in (found, wanted)]
        np.testing.assert_allclose(*times, atol=1.1e-6)


@pytest.mark.parametrize("seconds_per_part", [plan.PART_S, 1])
def test_events_are_those_of_the_windows(model_folder, clips, tmp_path, monkeypatch, capsys, seconds_per_part):
    """Also with a recording in several parts, and thresholds of the model's own or given."""
    monkeypatch.setattr(plan, "PART_S", seconds_per_part)
    table = tmp_path / "events.json"
    own = load_classifier(str(model_folder))[0].config.decision_thresholds or 0.5
    options = ["--low_threshold", 0.5, "--min_duration_s", 0.15, "--max_gap_s", 0.1]
    settings = {"low": 0.5, "min_duration_s": 0.15, "max_gap_s": 0.1}
    for words, wanted in (
        ([], expected(model_folder, clips, high=own)),
        (["--threshold", 0.7, *options], expected(model_folder, clips, high=0.7, **settings)),
    ):
        assert predict(model_folder, clips, "--events", table, *WINDOWS, *words, "--overwrite") == 0
        assert_same(read_events(table), wanted)
        count = sum(map(len, wanted.values()))
        assert count > 2
        without = sum(not events for events in wanted.values())
        assert f"{table}: {count} events; {without} of 2 files have none" in capsys.readouterr().err
    assert not table.with_name("events.json.shards").exists()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("e.txt", []),
        ("e.csv", []),
        ("e.tsv", []),
        ("e.jsonl", ["--event_format", "jsonl"]),
        ("tables", []),
        ("tables", ["--event_format", "audacity"]),
    ],
)
def test_every_format_is_read_as_annotations_and_as_clips(model_folder, clips, tmp_path, place, words):
    table, settings = clips / place, ["--threshold", "0.8", *WINDOWS]
    assert predict(model_folder, clips, "--events", table, *words, *settings) == 0
    assert predict(model_folder, clips, "--events", tmp_path / "all.json", *settings) == 0
    found, wanted = read_events(table), read_events(tmp_path / "all.json")
    places = Recordings(clips)
    found = {str(places.find(table, name)): events for name, events in found.items()}
    if place == "e.txt" or (place == "tables" and not words):  # Raven's table has no row for a recording without events
        wanted = {file: events for file, events in wanted.items() if events}
    assert_same(found, wanted)
    # Annotations for a background class, beside a recording without events.
    quiet = write_tone(tmp_path / "quiet.wav", seconds=0.2)
    events = {path: found[str(path)] for path in map(Path, found)} | {quiet: []}
    made = background_clips(events, clip_s=0.1, margin_s=0.0)
    assert {clip.label for clip in made if clip.label != "background"} == {
        e.label for own in wanted.values() for e in own
    }
    if place == "e.txt":  # also a table of labelled clips
        data = load_table(table, Columns())
        starts = [audio_of(row)["start"] for row in data]
        assert starts == pytest.approx([e.onset_s for own in wanted.values() for e in own], abs=1.1e-6)


@pytest.mark.parametrize("place", ["e.txt", "tables"])
def test_a_stopped_run_gives_the_same_events(model_folder, clips, tmp_path, monkeypatch, capsys, place):
    monkeypatch.setattr(plan, "PART_S", 1)
    words = [model_folder, clips, *WINDOWS, "--threshold", "0.35", "--max_gap_s", "0.1"]
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    assert predict(*words, "--events", tmp_path / "whole" / place) == 0
    calls, original = [], DualSSASTForAudioClassification.forward

    def stops(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DualSSASTForAudioClassification, "forward", stops)
        assert predict(*words, "--events", tmp_path / "stopped" / place) != 0
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == [f"{place}.shards"]
    assert predict(*words, "--events", tmp_path / "stopped" / place) == 0
    assert "goes on: " in capsys.readouterr().err
    whole, stopped = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.txt")}
        for folder in ("whole", "stopped")
    )
    assert whole == stopped and len(whole) == (2 if place == "tables" else 1)
    assert all(path.name == place for path in (tmp_path / "stopped").iterdir())


@pytest.mark.parametrize("place", ["e.csv", "tables", "clips"])
def test_earlier_tables_stay(model_folder, clips, tmp_path, capsys, place):
    """Annotations by hand beside the recordings too."""
    table = tmp_path / place
    written = table if place == "e.csv" else table / "long.Table.1.selections.txt"
    written.parent.mkdir(exist_ok=True)
    written.write_text("by hand")
    kept = tmp_path / ("e.previous.csv" if place == "e.csv" else f"{place}.previous/{written.name}")
    assert predict(model_folder, clips, "--events", table) == 0
    assert kept.read_text() == "by hand" != written.read_text()
    earlier = capsys.readouterr().err.split("the earlier ")[1:]
    assert len(earlier) == 1 and earlier[0].startswith(f"{table} is kept as {tmp_path / place.split('.')[0]}.previous")
    if place != "clips":
        assert not any("previous" in str(name) for name in read_events(table))


def test_this_folder_has_a_name(model_folder, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "clips")
    assert predict(model_folder, "long.wav", "--events", ".") == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "clips", "long.Table.1.selections.txt", "long.wav", "short.wav",
    ]  # fmt: skip


def test_unreadable_files_have_no_events(model_folder, clips, tmp_path, capsys):
    (clips / "broken.wav").write_bytes(b"RIFFrubbish")
    assert predict(model_folder, clips, "--events", tmp_path / "e.csv", "--threshold", "1") == 1
    assert read_events(tmp_path / "e.csv") == {str(clips / "long.wav"): [], str(clips / "short.wav"): []}
    error = capsys.readouterr().err
    assert "e.csv: 0 events; 2 of 2 files have none" in error and "e.csv.unreadable.csv lists them" in error


def test_background_is_no_event(clips, tmp_path):
    folder = save_tiny_classifier(tmp_path / "model", ("background", "low", "mid"))
    model = DualSSASTForAudioClassification.from_pretrained(folder)
    torch.nn.init.zeros_(model.classifier.dense.weight)
    for bias, count in (([9.0, 0.0, 0.0], 0), ([0.0, 9.0, 0.0], 2)):
        with torch.no_grad():
            model.classifier.dense.bias.copy_(torch.tensor(bias))
        model.save_pretrained(folder)
        assert predict(folder, clips, "--events", tmp_path / "e.csv", "--overwrite") == 0
        assert [e.label for own in read_events(tmp_path / "e.csv").values() for e in own] == ["low"] * count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "0.5"], "threshold: needs --events"),
        (["--event_format", "raven", "--output", "PLACE/a.csv"], "event_format: needs --events"),
        (["--events", "PLACE/e.xls"], "no known ending for events"),
        (["--events", "PLACE/no/e.txt"], "does not exist"),
        (["--events", "PLACE/e.csv", "--event_format", "raven"], "event_format raven has the ending .txt"),
        (["--events", "PLACE/e.csv", "--event_format", "ravn"], "there is no ravn; did you mean raven?"),
        (["--events", "PLACE/e.txt", "--event_format", "audacity"], "describes one recording, and there are 2"),
        (["--events", "PLACE/e.csv", "--threshold", "1.5"], "threshold: must be from 0 to 1, got 1.5"),
        (["--events", "PLACE/e.csv", "--max_gap_s", "-1"], "max_gap_s: must be 0 or more, got -1.0"),
        (["--events", "PLACE/e.csv", "--threshold", "0.3", "--low_threshold", "0.4"],
         "low_threshold 0.4: the threshold of high is 0.3; give at most that"),
        (["--events", "PLACE/e.csv", "PLACE/clips/long.wav"], "long.wav, and nothing would tell their events apart"),
        (["--events", "PLACE/e.tsv", "PLACE/odd"], "has the character"),
    ],
)  # fmt: skip
def test_impossible_events_are_told_before_the_work(clips, tmp_path, monkeypatch, capsys, words, message):
    folder = save_tiny_classifier(tmp_path / "model")
    (tmp_path / "odd").mkdir()
    shutil.copy(clips / "short.wav", tmp_path / "odd" / "a\tb.wav")
    monkeypatch.setattr("training.inference.engine.Engine.run", lambda *arguments, **more: 1 / 0)
    words = [word.replace("PLACE", str(tmp_path)) for word in words]
    inputs = [word for word in words if word.endswith(("wav", "odd"))]
    options = [word for word in words if word not in inputs]
    assert predict(folder, clips, *inputs, *options) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_streamed_clips_of_one_name_are_refused(model_folder, clips, tmp_path, capsys, monkeypatch):
    """Nothing would tell their events apart; what is computed stays."""
    monkeypatch.setattr("training.inference.engine.Engine._compute", lambda *arguments: 1 / 0)  # not after hours
    stored, output = tmp_path / "stored", tmp_path / "e.csv"
    stored.mkdir()
    rows = [{"bytes": next(clips.glob("*.wav")).read_bytes(), "path": "a.wav"}] * 2
    pandas.DataFrame({"audio": rows}).to_parquet(stored / "train.parquet")
    assert predict(model_folder, stored, "--streaming", "--events", output) == 1
    message = f"{output}: several inputs are called a.wav, and nothing would tell their events apart; name each once"
    error = capsys.readouterr().err
    assert message in error and "once, or leave --events out: --windows has the scores of each clip" in error
    assert not output.exists() and output.with_name("e.csv.shards").exists()


def test_a_number_has_no_events(clips, tmp_path, capsys):
    folder = save_tiny_classifier(tmp_path / "model", ("value",), problem_type="regression")
    assert predict(folder, clips, "--events", tmp_path / "e.csv") == 1
    assert "has no events; use a classifier" in capsys.readouterr().err
