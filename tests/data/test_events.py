"""Tests that events come back from every format, that others' readers open them, and what is said about bad tables."""

import importlib
import itertools
import json
import math
import os
import sys

import pandas
import pytest
from audio_files import write_tone
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from training.data import events as module
from training.data.columns import Columns
from training.data.events import FORMATS, Event, check_events_file, read_events, write_events
from training.data.labels import class_name
from training.data.tables import load_table
from training.errors import UNPRINTABLE, InputError

ENDINGS = [(name, f"a{kind.suffix}") for name, kind in FORMATS.items()]
HOLDS_SCORES = {"raven", "csv", "json", "jsonl", "soundevent"}
HOLDS_FREQUENCIES = {"raven", "audacity", "csv", "json", "jsonl", "soundevent"}


def _write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


# ---- round trips ----

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
LABELS = TEXTS.map(class_name).filter(lambda text: text and not UNPRINTABLE.search(text) and text[0] != '"')
NAMES = TEXTS.filter(lambda text: class_name(text)[:1] not in ("", '"') and not UNPRINTABLE.search(text))
SECONDS = st.floats(0, 1e5)
HERTZ = st.floats(0, 1e5)


@st.composite
def _events(draw):
    onset_s, offset_s = sorted((draw(SECONDS), draw(SECONDS)))
    low_hz, high_hz = sorted((draw(HERTZ), draw(HERTZ)))
    low_hz, high_hz = (value if draw(st.booleans()) else None for value in (low_hz, high_hz))
    score = draw(st.none() | st.floats(-1e3, 1e3))
    return Event(onset_s, offset_s, draw(LABELS), low_hz, high_hz, score)


RECORDINGS = st.one_of(
    st.dictionaries(NAMES, st.lists(_events(), max_size=4), max_size=3),
    st.fixed_dictionaries({None: st.lists(_events(), max_size=4)}),
)


def _as_held(name: str, event: Event) -> Event:
    """What a format keeps of an event: 6 decimals, and not every field."""
    onset_s, offset_s, low_hz, high_hz, score = (
        None if value is None else round(value, 6) + 0.0  # -0.0 becomes 0.0: equal, but sorted elsewhere
        for value in (*event[:2], *event[3:])
    )
    if name == "raven":  # a box always has a bottom and a top
        low_hz = low_hz or 0.0
        high_hz = max(low_hz, 8000.0) if high_hz is None else high_hz
    if name == "soundevent" and high_hz is not None:  # so has a box there, but not always a top
        low_hz = low_hz or 0.0
    if name not in HOLDS_FREQUENCIES:
        low_hz = high_hz = None
    return Event(onset_s, offset_s, event.label, low_hz, high_hz, score if name in HOLDS_SCORES else None)


def _ordered(events) -> list:
    return sorted(events, key=repr)


@pytest.mark.parametrize(("name", "file"), ENDINGS)
@given(recordings=RECORDINGS)
@example(recordings={"#a, b.wav": [Event(0.0, 1e-7, '5" gun, \u00e9 "x"', 1.0, None, 1e-9)], " ;b|": []})
@example(recordings={"a": [Event(0.1, 0.1, ", x"), Event(0.1, 99999.9999994, "1.5")], "-": [], "1,5": []})
@example(recordings={None: [Event(0.0, 0.0, "0"), *(Event(0.0, 0.0, "0", 0.0, None, score) for score in (-0.0, -1.0))]})
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_come_back(tmp_path, name, file, recordings):
    if name == "audacity" and None not in recordings:
        recordings = dict(itertools.islice(recordings.items(), 1))
    path = tmp_path / file
    write_events(path, recordings, name)
    found = read_events(path)
    wanted = {key: [_as_held(name, event) for event in events] for key, events in recordings.items()}
    if name == "audacity":
        wanted = {None: next(iter(wanted.values()), [])}
    if name == "raven" and None not in wanted:
        wanted = {key: events for key, events in wanted.items() if events}
    assert {key: _ordered(events) for key, events in found.items()} == {
        key: _ordered(events) for key, events in wanted.items()
    }
    assert all(list(events) == sorted(events, key=lambda event: event.onset_s) for events in found.values())
    assert not [other for other in os.listdir(tmp_path) if "unfinished" in other]
    write_events(path, found, name)  # a second trip changes nothing
    assert read_events(path) == found


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_gets_a_table_per_recording(tmp_path, name):
    events = {"field/1/x.wav": [Event(0.5, 1.0, "owl", 100.0, 200.0)], "field/2/x.wav": [], "field/y.wav": []}
    write_events(tmp_path / "out", events, name)
    tables = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert tables == {f"{stem}{FORMATS[name].own_suffix}" for stem in ("1/x", "2/x", "y")}
    found = read_events(tmp_path / "out")
    if name in ("raven", "audacity"):
        found = {f"field/{key}.wav" if name == "audacity" else key: value for key, value in found.items()}
    wanted = {key: [_as_held(name, event) for event in value] for key, value in events.items()}
    assert found == ({key: value for key, value in wanted.items() if value} if name == "raven" else wanted)
    # Stems that are the same, also where a file system does not tell cases apart.
    write_events(tmp_path / "again", {"x.wav": [], "X.flac": []}, name)
    own = FORMATS[name].own_suffix
    assert sorted(os.listdir(tmp_path / "again")) == [f"X.flac{own}", f"x.wav{own}"]


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"\xff.wav")
    for file in ("a.csv", "a.tsv", "a.txt", "a.json", "a.jsonl"):
        write_events(tmp_path / file, {name: [Event(0.0, 1.0, "x")]})
        assert list(read_events(tmp_path / file)) == [name if "json" in file else "\\udcff.wav"], file


def test_numbers_have_no_exponent(tmp_path):
    event = Event(0.00001, 1234567.1234567, "x", 1e-5, 1e17, 1e-7)
    for name, file in ENDINGS[:4]:
        write_events(tmp_path / file, {"a.wav": [event]}, name)
        text = (tmp_path / file).read_text()
        assert "0.00001" in text and "1234567.123457" in text and "e-" not in text and "e+" not in text, text


def test_raven_counts_through_recordings_that_are_opened_together(tmp_path):
    events = {"a/x.wav": [Event(1.0, 2.5, "owl")], "quiet.wav": [], "b/y.wav": [Event(0.25, 0.5, "jay", score=0.75)]}
    durations_s = {"a/x.wav": 10.0, "quiet.wav": 5.0000001, "b/y.wav": 7.0}
    path = tmp_path / "a.txt"
    write_events(path, events, durations_s=durations_s, highest_hz=16000.0)
    assert path.read_text().split("\n") == [
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin Path\t"
        "Begin File\tFile Offset (s)\tScore\tAnnotation",
        "1\tSpectrogram 1\t1\t1.0\t2.5\t0.0\t16000.0\ta/x.wav\tx.wav\t1.0\t\towl",
        "2\tSpectrogram 1\t1\t15.25\t15.5\t0.0\t16000.0\tb/y.wav\ty.wav\t0.25\t0.75\tjay",
        "",
    ]
    found = read_events(path)
    assert [event[:3] for events in found.values() for event in events] == [(1.0, 2.5, "owl"), (0.25, 0.5, "jay")]
    # As a table of clips.
    for name in events:
        write_tone(tmp_path / name, seconds=3.0)
    data = load_table(path, Columns())
    assert [list(row.values()) for row in data] == [
        [str(tmp_path / "a/x.wav"), "owl", 1.0, 2.5],
        [str(tmp_path / "b/y.wav"), "jay", 0.25, 0.5],
    ]


# ---- other people's readers ----

CALLS = [Event(0.5, 1.25, "owl, long", 200.0, 900.5, 0.75), Event(2.0, 3.0, "jay", 1000.0, 4000.0, 0.9)]


def _crowsetta():
    if sys.version_info < (3, 11):
        pytest.skip("crowsetta needs Python 3.11")
    return importlib.import_module("crowsetta")


def test_crowsetta_opens_raven_tables(tmp_path):
    formats = _crowsetta().formats
    for recordings in ({None: CALLS}, {"x.wav": CALLS}, {"x.wav": [event._replace(low_hz=None) for event in CALLS]}):
        write_events(tmp_path / "a.txt", recordings)
        boxes = formats.by_name("raven").from_file(tmp_path / "a.txt").to_bbox()
        wanted = next(iter(read_events(tmp_path / "a.txt").values()))
        assert [(box.onset, box.offset, box.label, box.low_freq, box.high_freq) for box in boxes] == [
            event[:5] for event in wanted
        ]


def test_crowsetta_opens_label_tracks(tmp_path):
    formats = _crowsetta().formats
    write_events(tmp_path / "a.txt", {None: CALLS}, "audacity")
    boxes = formats.by_name("aud-bbox").from_file(tmp_path / "a.txt").to_bbox()
    assert [(box.onset, box.offset, box.label, box.low_freq, box.high_freq) for box in boxes] == [
        event[:5] for event in CALLS
    ]
    write_events(tmp_path / "a.txt", {None: [event._replace(low_hz=None, high_hz=None) for event in CALLS]}, "audacity")
    track = formats.by_name("aud-seq").from_file(tmp_path / "a.txt")
    found = zip(track.start_times, track.end_times, track.labels)
    assert [tuple(values) for values in found] == [event[:3] for event in CALLS]


@pytest.mark.parametrize("name", ["raven", "aud-bbox"])
def test_what_crowsetta_writes_is_read(tmp_path, name):
    formats = _crowsetta().formats
    write_events(tmp_path / "a.txt", {None: CALLS}, "raven" if name == "raven" else "audacity")
    formats.by_name(name).from_file(tmp_path / "a.txt").to_file(tmp_path / "b.txt")
    assert [event[:5] for event in read_events(tmp_path / "b.txt")[None]] == [event[:5] for event in CALLS]


def test_pandas_opens_dcase_and_csv(tmp_path):
    write_events(tmp_path / "a.tsv", {"x.wav": CALLS, "y.wav": []})
    table = pandas.read_csv(tmp_path / "a.tsv", sep="\t")
    assert list(table) == ["filename", "onset", "offset", "event_label"]
    assert table.iloc[:2].values.tolist() == [["x.wav", *event[:3]] for event in CALLS]
    assert table.iloc[2].isna().tolist() == [False, True, True, True]
    write_events(tmp_path / "a.csv", {"x.wav": CALLS})
    assert pandas.read_csv(tmp_path / "a.csv").values.tolist() == [["x.wav", *event] for event in CALLS]


# ---- tables of other programs ----

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
ROWS = "1\tWaveform 1\t1\t0.5\t1,5\t0\t9\towl\n1\tSpectrogram 1\t1\t0.5\t1,5\t100,5\t9e3\towl\n"
OWL = Event(0.5, 1.5, "owl")


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("a.txt", RAVEN + ROWS, {None: [Event(0.5, 1.5, "owl", 100.5, 9000.0)]}),
        ("a.csv", (RAVEN + ROWS).replace("\t", ";"), {None: [Event(0.5, 1.5, "owl", 100.5, 9000.0)]}),
        ("a.txt", RAVEN, {None: []}),
        ("a.txt", "", {None: []}),
        ("a.txt", "0.5\t1.5\towl\n", {None: [OWL]}),
        (
            "a.txt",
            "2\t3\tjay\n0,5\t1,5\towl\n\\\t-1\t900\n",
            {None: [OWL._replace(high_hz=900.0), (2, 3, "jay", *[None] * 3)]},
        ),
        ("a.txt", "0.5\towl\n", {None: [Event(0.5, 0.5, "owl")]}),
        ("a.txt", "0.5\t1.5\tan\towl\n", {None: [Event(0.5, 1.5, "an\towl")]}),
        (
            "a.tsv",
            "filename\tonset\toffset\tevent_label\nx.wav\t0.5\t1.5\towl\ny.wav\t\t\t\n",
            {"x.wav": [OWL], "y.wav": []},
        ),
        ("a.tsv", "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\nx\t0.5\t1.5\towl\n", {"x": [OWL]}),
        ("a.txt", "onset\toffset\tevent_label\n0.5\t1.5\towl\n", {None: [OWL]}),
        ("a.csv", "Start;End;Class\n0,5;1,5;owl\n", {None: [OWL]}),
        ("a.csv", "file,start,end,label,Confidence\nx,0.5,1.5,owl,0.25\n", {"x": [OWL._replace(score=0.25)]}),
        # BirdNET-Analyzer's and opensoundscape's
        (
            "a.csv",
            "Start (s),End (s),Common name,Confidence,File\n0.5,1.5,owl,0.25,x\n",
            {"x": [OWL._replace(score=0.25)]},
        ),
        ("a.csv", "audio_file,annotation,start_time,end_time,low_f,high_f\nx,owl,0.5,1.5,,\n", {"x": [OWL]}),
        (
            "a.txt",
            "audio_file\tannotation\tBegin Time (s)\tEnd Time (s)\tBegin File\tView\nx.wav\towl\t0.5\t1.5\tx.wav\t1\n",
            {"x.wav": [OWL]},
        ),
        ("a.json", '[{"onset": 0.5, "offset": "1.5", "label": "owl"}]', {None: [OWL]}),
        ("a.json", '[{"file": "x", "onset": 0.5, "offset": 1.5, "label": 7}]', {"x": [Event(0.5, 1.5, "7")]}),
        ("a.jsonl", '\n{"onset": 0.5, "offset": 1.5, "label": "owl"}\n\n', {None: [OWL]}),
        ("a.json", "[]", {}),
    ],
)
@pytest.mark.parametrize("change", ["", "marks", "windows", "utf-16"])
def test_tables_of_other_programs(tmp_path, warnings, file, text, wanted, change):
    encoding = {"marks": "utf-8-sig", "utf-16": "utf-16"}.get(change, "utf-8")
    path = _write(tmp_path / file, text.replace("\n", "\r\n") if change == "windows" else text, encoding)
    assert read_events(path) == wanted
    assert [warning for warning in warnings if "views" not in warning] == []


def test_a_raven_table_names_the_recording_that_is_there(tmp_path):
    table = "Begin Time (s)\tEnd Time (s)\tBegin Path\tBegin File\tAnnotation\n0.5\t1.5\tD:\\x.wav\tx.wav\towl\n"
    path = _write(tmp_path / "a.txt", table)
    assert read_events(path) == {"D:\\x.wav": [OWL]}
    write_tone(tmp_path / "x.wav", seconds=0.1)
    assert read_events(path) == {"x.wav": [OWL]}
    assert read_events(path, audio_column="Begin Path") == {"D:\\x.wav": [OWL]}
    assert read_events(path, label_column="Begin File") == {"x.wav": [Event(0.5, 1.5, "x.wav")]}


def test_folders_that_pair_tables_with_recordings(tmp_path):
    (tmp_path / "night").mkdir()
    _write(tmp_path / "night" / "x.Table.1.selections.txt", RAVEN + ROWS.replace("Waveform", "Spectrogram"))
    _write(
        tmp_path / "night" / "x.Table.2.selections.txt", RAVEN.replace("Species", "Tag") + ROWS.replace("0.5", "0.1")
    )
    _write(tmp_path / "y.txt", "0.5\t1.5\towl\n")
    _write(tmp_path / ".z.txt", "damaged")
    found = read_events(tmp_path)
    assert {name: [event.onset_s for event in events] for name, events in found.items()} == {
        "night/x": [0.1, 0.5, 0.5],
        "y": [0.5],
    }
    with pytest.raises(InputError, match=r"night: holds no tables of events \(\.csv, .*\); name another folder"):
        read_events(_emptied(tmp_path / "night"))


@pytest.mark.parametrize(
    "folder", [".ipynb_checkpoints", ".git/annex/objects/k", ".Trash-1000/files", "__MACOSX", "day/@eaDir"]
)
def test_tables_of_hidden_and_service_folders_are_none(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    for place in (f"{folder}/old.csv", "day.csv", "._day.csv"):
        _write(tmp_path / place, f"file,onset,offset,label\nx.wav,0,1,{place}\n")
    assert [event.label for event in read_events(tmp_path)["x.wav"]] == ["day.csv"]


def test_links_to_tables_and_their_folders_are_followed(tmp_path, warnings):
    for place in ("here", "away"):
        (tmp_path / place).mkdir()
        _write(tmp_path / place / "x.csv", f"file,onset,offset,label\nx.wav,0,1,{place}\n")
    (tmp_path / "away" / "circle").symlink_to(tmp_path / "away")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "away")
    (tmp_path / "here" / "y.csv").symlink_to(".git/annex/objects/k/y.csv")
    (tmp_path / "here" / "y.wav").symlink_to("nothing")
    assert [event.label for event in read_events(tmp_path / "here")["x.wav"]] == ["away", "here"]
    assert warnings == [
        f"{tmp_path}/here: 1 folder (linked/circle) is a link in a circle: remove it",
        f"{tmp_path}/here: 1 .csv file in here is a link to nothing (git-annex: datalad get)",
    ]


def _emptied(folder):
    for path in folder.iterdir():
        path.unlink()
    return folder


# ---- what is refused, in one line ----

TSV = "filename\tonset\toffset\tevent_label\nx.wav\t0.5\t1.5\towl\ny.wav\t{}\t{}\t{}\n"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.tsv", TSV.format(2, 1, "owl"), r"a.tsv: row 2 \(line 3\) ends at 1 s and begins at 2 s; exchange"),
        ("a.tsv", TSV.format(-1, 1, "owl"), r"row 2 \(line 3\) begins at -1 s, before the recording; correct it"),
        ("a.tsv", TSV.format("nan", 1, "owl"), r"row 2 \(line 3\) has 'nan' in onset, not a number of seconds"),
        ("a.tsv", TSV.format(1, "1e999", "owl"), r"row 2 \(line 3\) has '1e999' in offset, not a number"),
        ("a.tsv", TSV.format("1.234,5", 2, "owl"), r"row 2 \(line 3\) has '1.234,5' in onset, not a number"),
        ("a.tsv", TSV.format("1_0", 20, "owl"), r"row 2 \(line 3\) has '1_0' in onset, not a number"),
        ("a.tsv", TSV.format("", 1, "owl"), r"row 2 \(line 3\) has no onset; fill it in or remove it"),
        ("a.tsv", TSV.format(0, "", "owl"), r"row 2 \(line 3\) has no offset; fill it in or remove it"),
        ("a.tsv", TSV.format(0, 1, ""), r"row 2 \(line 3\) has no label; fill it in, or remove the event"),
        ("a.tsv", TSV.replace("y.wav", "").format(0, 1, "x"), r"row 2 \(line 3\) has no filename; fill it in"),
        (
            "a.tsv",
            TSV.replace("onset", "o").format(0, 1, "x"),
            "no column is called onset_s, onset, .* name one onset_s: ",
        ),
        (
            "a.tsv",
            TSV.replace("event_", "e").format(0, 1, "x"),
            "no column is called label.* set label_column: filename",
        ),
        ("a.tsv", TSV.replace("offset", "onset").format(0, 1, "x"), "2 columns are called onset; rename all but one"),
        ("a.csv", "onset,offset,LABEL,Label\n0,1,x,y\n", "2 columns are called label; rename all but one"),
        ("a.csv", "onset,offset,label,low_hz,high_hz\n0,1,x,9,3\n", "has frequencies from 9.0 to 3.0 Hz; exchange"),
        ("a.csv", "onset,offset,label,low_hz\n0,1,x,-9\n", "has frequencies from -9.0 to None Hz; exchange"),
        ("a.csv", "onset,offset,label,score\n0,1,x,high\n", r"row 1 \(line 2\) has 'high' in score, not a number"),
        ("a.txt", "0.5\t1\towl\n2\t1\towl\n", "a.txt: line 2 ends at 1 s and begins at 2 s"),
        ("a.txt", "0.5\t1\towl\nx\t1\towl\n", "a.txt: line 2 has 'x' in its first cell, not a number of seconds"),
        ("a.txt", "0.5\t1\towl\n1\n", "a.txt: line 2 has no offset; fill it in"),
        ("a.txt", "0.5\t1\towl\n\\\tlow\t1\n", "a.txt: line 1 has 'low' in its low frequency, not a number of Hz"),
        ("a.txt", "0.5\t1\towl\n\\\t1\t2\n\\\t1\t2\n", "a.txt: line 3 has frequencies without a label"),
        ("a.txt", "0.5\t1\towl\n\\\n", "a.txt: line 2 has frequencies without a label or without a number; correct it"),
        ("a.txt", "0.5\t1\t \n", "a.txt: line 1 has no label; fill it in"),
        ("a.txt", "hello\n", "no column is called label"),
        ("a.txt", RAVEN + "1\tSpectrogram 1\t1\t0.5\t\t0\t9\towl\n", "a selection has no time; fill in Begin Time"),
        ("a.xlsx", "PK", "a.xlsx: files of this kind are not read as events, but .csv, .json, .*; export it as .csv"),
        (
            "a.Parquet",
            "PAR1",
            "a.Parquet: files of this kind are not read as events, but .csv, .json, .jsonl, .tsv, .txt",
        ),
        ("a.json", "{}", "a.json: holds no events; write"),
        ("a.json", "[1]", "a.json: holds no events; write"),
        ("a.json", "[", "a.json: is not JSON"),
        ("a.json", "[" * 100000, "a.json: is not JSON"),
        ("a.json", '[{"onset": 1, "offset": 0, "label": "x"}]', "a.json: event 1 ends at 0 s and begins at 1 s"),
        (
            "a.json",
            '[{"onset": 0, "offset": 1, "label": ["x"]}]',
            r"event 1 has the label \['x'\], not a text; write a row",
        ),
        ("a.json", '[{"onset": [], "offset": 1, "label": "x"}]', r"event 1 has \[\] in onset, not a number of seconds"),
        (
            "a.json",
            f'[{{"onset": 1{"0" * 400}, "offset": 1, "label": "x"}}]',
            "event 1 has 1000.* in onset, not a number",
        ),
        ("a.jsonl", '{"onset": 0}\n{"onset"\n', "a.jsonl: line 2 is not JSON"),
        ("a.jsonl", '\n{"onset": 2, "offset": 1, "label": "x"}\n', "a.jsonl: line 2 ends at 1 s and begins at 2 s"),
    ],
)
def test_bad_tables(tmp_path, file, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_events(_write(tmp_path / file, text))
    assert "\n" not in str(caught.value) and str(tmp_path / file) in str(caught.value)


def test_columns_that_are_wanted_and_absent(tmp_path):
    path = _write(tmp_path / "a.tsv", TSV.format(0, 1, "x"))
    with pytest.raises(InputError, match=r"a.tsv: no column 'Species'; it has filename, onset, offset, event_label"):
        read_events(path, label_column="Species")
    with pytest.raises(InputError, match=r"missing.csv: no such file; correct the path"):
        read_events(tmp_path / "missing.csv")


DAMAGE = st.lists(
    st.sampled_from([*"\t\n\r,;|\"'\\0.5-x \ufeff\0", "1.5", "label", "\udcff", "nan", "{", "["]), max_size=6
)


@given(st.sampled_from(ENDINGS), DAMAGE, st.integers(0, 400))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_tables_give_events_or_one_line(tmp_path, warnings, ending, damage, place):
    path = tmp_path / ending[1]
    write_events(path, {"x.wav": CALLS}, ending[0])
    data = path.read_bytes()
    path.write_bytes(data[:place] + "".join(damage).encode(errors="surrogateescape") + data[place + len(damage) :])
    try:
        found = read_events(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        for event in itertools.chain.from_iterable(found.values()):
            assert 0 <= event.onset_s <= event.offset_s < math.inf and event.label


@pytest.mark.parametrize(
    ("file", "name", "label", "recording", "message"),
    [
        ("a.txt", None, "a\tb", "x", r"the label 'a\\tb' has the character \\t; rename it, or write .json"),
        ("a.csv", None, "a\nb", "x", r"the label 'a\\nb' has the character \\n; rename it, or write .json"),
        ("a.tsv", None, "\udcff", "x", r"the label '\\udcff' has the character \\udcff; rename it, or write .json"),
        ("a.tsv", None, '"a', "x", "the label '\"a' has a quote at its beginning; rename it, or write .json"),
        ("a.json", None, " ", "x", "has nothing but blanks; rename it"),
        ("a.tsv", None, "a", "x\n.wav", r"the recording 'x\\n.wav' has the character \\n; rename it, or write .json"),
        ("a.txt", None, "a", '"x', "the recording '\"x' has a quote at its beginning"),
        (
            "a.parquet",
            None,
            "a",
            "x",
            "no known ending for events; name a file .txt, .tsv, .csv, .json, .jsonl, or set",
        ),
        ("a.csv", "raven", "a", "x", "event_format raven has the ending .txt; rename the file"),
        ("a.txt", "ravn", "a", "x", "event_format: there is no ravn; did you mean raven?"),
        ("absent/a.csv", None, "a", "x", "absent does not exist; make it or name another file"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(tmp_path, file, name, label, recording, message):
    with pytest.raises(InputError, match=message) as caught:
        check_events_file(tmp_path / file, name, [label], [recording])
    assert "\n" not in str(caught.value)
    if "absent" not in file:
        with pytest.raises(InputError, match=message):
            write_events(tmp_path / file, {recording: [Event(0.0, 1.0, label)]}, name)
    assert os.listdir(tmp_path) == []


def test_a_label_track_describes_one_recording(tmp_path):
    message = (
        r"a.txt: a label track of Audacity describes one recording, and there are 2; name a folder \(such as .*a\)"
    )
    with pytest.raises(InputError, match=message):
        check_events_file(tmp_path / "a.txt", "audacity", ["x"], ["a", "b"])
    with pytest.raises(InputError, match=message):
        write_events(tmp_path / "a.txt", {"a": [], "b": []}, "audacity")
    check_events_file(tmp_path / "a", "audacity", ["x"], ["a", "b"])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event(1.0, 0.5, "x"), "a.csv: r.wav: an event ends at 0.5 s and begins at 1 s"),
        (Event(-1.0, 0.5, "x"), "an event begins at -1 s"),
        (Event(0.0, math.nan, "x"), "an event holds a number that is not finite"),
        (Event(0.0, 1.0, "x", score=math.inf), "an event holds a number that is not finite"),
        (Event(0.0, 1.0, "x", 5.0, 4.0), "an event has frequencies from 5.0 to 4.0 Hz"),
    ],
)
def test_impossible_events_are_not_written(tmp_path, event, message):
    with pytest.raises(InputError, match=message):
        write_events(tmp_path / "a.csv", {"r.wav": [event]})
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_the_earlier_table(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    write_events(path, {"x": CALLS})
    before = path.read_bytes()
    monkeypatch.setattr(module, "_decimal", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_events(path, {"x": CALLS})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.csv"]


def test_json_is_a_list_of_objects(tmp_path):
    write_events(tmp_path / "a.json", {"x": CALLS[:1], "y": []})
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["file"] for row in rows] == ["x", "y"]
    assert list(rows[0]) == ["file", *Event._fields] and set(list(rows[1].values())[1:]) == {None}
