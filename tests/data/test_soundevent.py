"""Tests the JSON of soundevent: what it and its own reader make of each other, and what is said about damaged ones."""

import copy
import importlib
import json
from pathlib import Path

import pytest
from audio_files import write_tone

from training.data import aoef
from training.data.events import Event, read_event_table, read_events, write_events
from training.errors import InputError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "soundevent.json"
CALLS = [Event(0.5, 1.25, "owl, long", 200.0, 900.5), Event(2.0, 3.0, "jay"), Event(2.5, 2.5, "jay", None, 4000.0)]


def _soundevent():
    pytest.importorskip("soundevent.io", reason="soundevent is not installed")
    return importlib.import_module("soundevent")


def _box(event) -> tuple:
    """Times and frequencies as soundevent's geometry gives them."""
    low_hz, high_hz = (None, None) if event.high_hz is None else (event.low_hz or 0.0, event.high_hz)
    return event.onset_s, event.offset_s, event.label, low_hz, high_hz


@pytest.mark.parametrize("scores", [None, (0.5, 1.0, 0.0), (0.5, None, 7.0)])
def test_soundevent_opens_what_is_written(tmp_path, monkeypatch, warnings, scores):
    soundevent = _soundevent()
    monkeypatch.chdir(tmp_path)
    write_tone(Path("x.wav"), seconds=4.0, rate=8000, channels=2)
    calls = CALLS if scores is None else [event._replace(score=score) for event, score in zip(CALLS, scores)]
    write_events(tmp_path / "e.json", {"x.wav": calls, "gone.wav": []}, "soundevent")
    assert len(warnings) == 1 and warnings[0].startswith("1 recordings are not there, such as gone.wav: their rate")
    found = soundevent.io.load(tmp_path / "e.json", audio_dir="audio")
    is_predicted = scores is not None and None not in scores
    x, gone = found.clip_predictions if is_predicted else found.clip_annotations
    recording = x.clip.recording
    assert (recording.path, recording.duration, recording.samplerate, recording.channels) == (
        Path("audio/x.wav"), 4.0, 8000, 2,
    )  # fmt: skip
    assert (x.clip.start_time, x.clip.end_time) == (0.0, 4.0)
    assert gone.clip.recording.path == Path("audio/gone.wav") and gone.sound_events == []
    boxes = []
    for own in x.sound_events:
        times = own.sound_event.geometry.coordinates
        times = (times[0], times[-2], times[1], times[-1]) if len(times) == 4 else (*times, None, None)
        (tag,) = own.tags
        if is_predicted:
            assert tag.score == own.score
            tag = tag.tag
        boxes.append((times[0], times[1], tag.value, *times[2:]))
    assert boxes == [_box(event) for event in calls]
    # What soundevent writes from that is read.
    soundevent.io.save(found, tmp_path / "again.json", audio_dir="audio")
    assert read_events(tmp_path / "again.json") == read_events(tmp_path / "e.json")
    assert [event.score for event in read_events(tmp_path / "e.json")["x.wav"]] == list(scores or [None] * 3)


def test_the_same_events_give_the_same_file(tmp_path):
    for name in ("a.json", "b.json"):
        write_events(tmp_path / name, {"x.wav": CALLS, "y.wav": CALLS}, "soundevent")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    data = json.loads((tmp_path / "a.json").read_text())["data"]
    identifiers = [own["uuid"] for kind in data.values() if isinstance(kind, list) for own in kind if "uuid" in own]
    assert len(set(identifiers)) == len(identifiers) == 2 * (3 + 2 * 3)


def test_what_soundevent_wrote_is_read():
    """All types of geometry, tags of several keys, a slowed-down recording, and an event with two species."""
    found = read_events(FIXTURE)
    assert list(found) == ["pond/a.wav", "bats/b.wav", "pond/quiet.wav"]
    assert found["pond/a.wav"] == [
        Event(0.5, 0.5, "Strix aluco"),
        Event(1.0, 2.0, "Strix aluco"),
        Event(1.5, 1.5, "Strix aluco", 700.0, 700.0),
        Event(2.0, 3.0, "Strix aluco", 500.0, 900.0),
        Event(2.5, 4.0, "Asio otus", 300.0, 800.0),
        Event(2.5, 4.0, "Strix aluco", 300.0, 800.0),
        Event(5.0, 6.0, "Strix aluco", 100.0),
        *(Event(7.0, 8.0 + index, "Strix aluco", 200.0, 600.0) for index in range(4)),
    ]
    assert found["bats/b.wav"] == [Event(5.0, 6.0, "Myotis myotis", 3000.0, 4500.0)]  # in the time of the file
    assert found["pond/quiet.wav"] == []
    assert {event.label for event in read_events(FIXTURE, "call_type")["bats/b.wav"]} == {"feeding"}
    sites = read_event_table(FIXTURE, "call_type", other_column="site").cells
    assert sites == {"pond/a.wav": {"pond"}, "pond/quiet.wav": {"pond"}, "bats/b.wav": {"cave"}}
    with pytest.raises(InputError, match="soundevent.json: no tag has the key 'sex'; they have call_type, dwc:scient"):
        read_events(FIXTURE, "sex")


def _collection(keys=("species",), score=None) -> dict:
    """A collection with an event that has a tag of each key."""
    tags = [{"id": index, "key": key, "value": key.upper()} for index, key in enumerate(keys)]
    sounds = [{"uuid": "s", "recording": "r", "geometry": {"type": "TimeInterval", "coordinates": [1, 2.5]}}]
    annotations = [{"uuid": "a", "sound_event": "s", "tags": [tag["id"] for tag in tags]}]
    recordings = [{"uuid": "r", "path": "x.wav", "duration": 4, "channels": 1, "samplerate": 8000}]
    data = {"collection_type": "annotation_set", "tags": tags, "recordings": recordings, "sound_events": sounds}
    return {"version": "1.1.0", "data": data | {"sound_event_annotations": annotations}}


@pytest.mark.parametrize(
    ("keys", "wanted", "label"),
    [
        (("anything",), None, "ANYTHING"),
        (("sex", "species"), None, "SPECIES"),
        (("species", "label", "sex"), None, "LABEL"),
        (("species", "sex"), "sex", "SEX"),
        (("sex", "quality"), None, "its tags have several keys; set label_column to one of quality, sex"),
        (("sex",), "age", "no tag has the key 'age'; they have sex"),
        ((), None, "the sound event s has no label; fill it in"),
    ],
)
def test_keys_of_labels(tmp_path, keys, wanted, label):
    (tmp_path / "e.json").write_text(json.dumps(_collection(keys)))
    if " " in label:
        with pytest.raises(InputError, match=label):
            read_events(tmp_path / "e.json", wanted)
    else:
        assert read_events(tmp_path / "e.json", wanted) == {"x.wav": [Event(1.0, 2.5, label)]}


def _paths(value, place=()):
    """The places of all values in nested lists and objects."""
    yield place
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(child, (*place, key))


def _changed(value, place, change):
    value = copy.deepcopy(value)
    *above, last = place
    parent = value
    for key in above:
        parent = parent[key]
    if change == "gone":
        del parent[last]
    else:
        parent[last] = change
    return value


@pytest.mark.parametrize("change", ["gone", None, 7, -1.5, "text", [], {}, [[]], float("nan")])
def test_damaged_collections_give_events_or_one_line(tmp_path, change):
    path, whole = tmp_path / "e.json", json.loads(FIXTURE.read_text())
    places = [place for place in _paths(whole) if place]
    refused = 0
    for place in places[:: max(1, len(places) // 100)]:
        path.write_text(json.dumps(_changed(whole, place, change)))
        try:
            read_events(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refused


def test_names_and_numbers_are_those_of_soundevent():
    soundevent = _soundevent()
    assert soundevent.io.aoef.AOEF_VERSION == aoef.VERSION
    assert soundevent.MAX_FREQUENCY == aoef.HIGHEST_HZ
    assert {soundevent.data.AnnotationState(state) for state in (*aoef.DONE, "rejected")}
