"""Tests that clips of background are cut where no event is, and that annotations find their recordings."""

import json
import os

import numpy as np
import pytest
import soundfile
from audio_files import write_tone
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.audio import read_audio
from training.data.columns import Columns, audio_of
from training.data.events import Event, Recordings, write_events
from training.data.tables import load_table
from training.errors import InputError
from training.prepare import background
from training.prepare.background import background_clips, main, program

TIMES = st.tuples(st.floats(0, 29), st.floats(0, 40)).map(sorted)


@given(
    st.lists(TIMES.filter(lambda times: times[0] < 30), max_size=6),
    st.sampled_from([0.3, 1.0, 4.0]),
    st.sampled_from([0.0, 0.5, 3.0]),
)
@settings(max_examples=100, deadline=None)
def test_background_is_free_of_events(times, clip_s, margin_s):
    """Also that the rest is used: what remains between clips is too short for another."""
    events = [Event(onset, offset, "x") for onset, offset in times]
    starts = background._free(events, 30.0, clip_s, margin_s)
    taken = sorted([(start, start + clip_s) for start in starts])
    assert all(begin >= 0 and end <= 30.0 + 1e-6 for begin, end in taken)
    blocked = [(event.onset_s - margin_s, event.offset_s + margin_s) for event in events]
    for begin, end in taken:
        assert all(end <= first + 1e-6 or begin >= last - 1e-6 for first, last in blocked)
    free_s = 0.0
    for begin, end in sorted([*taken, *blocked, (30.0, 30.0)]):
        assert min(begin, 30.0) - free_s < clip_s + 1e-6
        free_s = max(free_s, end)


def test_clips_of_events_and_background(tmp_path):
    paths = {name: tmp_path / f"{name}.wav" for name in ("x", "quiet")}
    for path in paths.values():
        write_tone(path, seconds=10.0)
    events = [Event(0.1, 0.2, "owl"), Event(4.0, 7.0, "owl"), Event(9.9, 12.0, "jay")]
    found = background_clips({paths["x"]: events, paths["quiet"]: []}, clip_s=1.0, margin_s=0.5)
    calls = [(clip.label, clip.start, clip.end) for clip in found if clip.label != "background"]
    assert calls == [("owl", 0.0, 1.0), ("owl", 4.0, 7.0), ("jay", 9.0, 10.0)]
    noise = [clip for clip in found if clip.label == "background"]
    assert len(noise) == 2 * len(events) and all(
        clip.end - clip.start == 1.0 and clip.group == str(clip.path) for clip in noise
    )
    every = background_clips({paths["x"]: events, paths["quiet"]: []}, 1.0, 0.5, num_clips=99, label="none")
    starts = [clip.start for clip in every if clip.label == "none" and clip.path == paths["x"]]
    assert starts == [0.7, 1.7, 7.5]
    assert sum(clip.label == "none" for clip in every) == 13
    again = background_clips({paths["x"]: events, paths["quiet"]: []}, 1.0, 0.5)
    assert found == again != background_clips({paths["x"]: events, paths["quiet"]: []}, 1.0, 0.5, seed=3)
    with pytest.raises(InputError, match="x.wav: ends at 10 s, and an event begins at 10 s; remove it"):
        background_clips({paths["x"]: [Event(10.0, 11.0, "owl")]})
    with pytest.raises(InputError, match="no recording has 2 s without events; give a smaller --clip_s or --margin_s"):
        background_clips({paths["x"]: [Event(0.0, 9.0, "owl")]})


def test_the_table_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("night/x.wav", "y.wav"):
        os.makedirs(os.path.dirname(f"field/{name}") or ".", exist_ok=True)
        soundfile.write(f"field/{name}", rng.uniform(-0.1, 0.1, 80000), 16000)
    write_events("tables", {"field/night/x.wav": [Event(1.0, 1.5, "owl")], "field/y.wav": []}, "audacity")
    program(["tables", "field", "--clip_s", "1"])
    assert capsys.readouterr().out == "clips.csv: 1 clips of events, 2 of background\n"
    data = load_table(tmp_path / "clips.csv", Columns(start="start", end="end", group="group"))
    assert sorted(data["label"]) == ["background", "background", "owl"]
    assert [len(read_audio(audio_of(row), 16000)) for row in data] == [16000] * 3
    with pytest.raises(InputError, match="clips.csv: lies in tables, where all tables are read as annotations; name"):
        program(["tables", "field", "--output", "tables/clips.csv"])
    for words in (["--clip_s", "nan"], ["--margin_s", "-1"], ["--clips", "-1"]):
        with pytest.raises(InputError, match=f"{words[0]}: must be "):
            program(["tables", "field", *words])
    program(["tables", "field", "--clip_s", "1"])  # replaces its own table
    (tmp_path / "clips.csv").write_text("file_name,label\nx.wav,owl\n")
    with pytest.raises(InputError, match="clips.csv: is no manifest of this program and would be replaced; name"):
        program(["tables", "field", "--clip_s", "1"])
    monkeypatch.setattr("sys.argv", ["background", "absent.txt", "field"])
    assert main() == 1


def test_what_is_unsure_is_neither_event_nor_background(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("field/x.wav", "field/y.wav"):
        write_tone(tmp_path / name, seconds=8.0)
    events = {"field/x.wav": [Event(0.0, 2.0, "owl"), Event(2.0, 8.0, "unsure")], "field/y.wav": [Event(0, 1, "owl")]}
    write_events("tables", events, "audacity")
    program(["tables", "field", "--clip_s", "1", "--clips", "99"])
    assert capsys.readouterr().out == "clips.csv: 2 clips of events, 6 of background\n"  # all of y.wav
    program(["tables", "field", "--clip_s", "1", "--clips", "99", "--exclude_labels"])
    assert capsys.readouterr().out == "clips.csv: 3 clips of events, 6 of background\n"
    write_events("clips.json", {"field/x.wav": events["field/x.wav"][:1]}, "soundevent", {"field/x.wav": 8.0})
    value = json.loads((tmp_path / "clips.json").read_text())
    value["data"]["clips"][0]["end_time"] = 4.5  # of 8 s, which are the recording's length
    (tmp_path / "clips.json").write_text(json.dumps(value))
    program(["clips.json", "field", "--clip_s", "1", "--clips", "99", "--margin_s", "0"])
    assert capsys.readouterr().out == "clips.csv: 1 clips of events, 2 of background\n"  # from 2 to 4 s


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a/x.wav", "a/x.wav"),
        ("b\\x.wav", "b/x.wav"),
        ("a/x", "a/x.wav"),
        ("y", "y.flac"),
        ("D:\\field\\y.flac", "y.flac"),
        ("x.wav", "2 recordings of .* is called x.wav; name the folder of its recordings"),
        ("z", "no recording of .* is called z; name the folder"),
        (None, "3 recordings of .* is the only recording"),
    ],
)
def test_recordings_of_a_table(tmp_path, name, wanted):
    for file in ("a/x.wav", "b/x.wav", "y.flac"):
        write_tone(tmp_path / file, seconds=0.1)
    if " " in wanted:
        with pytest.raises(InputError, match=wanted):
            Recordings(tmp_path).find("t.txt", name)
    else:
        assert Recordings(tmp_path).find("t.txt", name) == tmp_path / wanted
        assert Recordings(tmp_path / "y.flac").find("t.txt", None) == tmp_path / "y.flac"
