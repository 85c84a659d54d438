"""Tests that annotated recordings follow the written rules, and that each rule that acts is reported in one line."""

import json
import os
from pathlib import Path

import pytest
from audio_files import write_tone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data.annotations import (
    NOT_ANNOTATED,
    RULES,
    AnnotatedRecording,
    load_annotations,
    read_annotations,
    read_label_map,
)
from training.data.arguments import AnnotationArguments
from training.data.events import FORMATS, Event, write_events
from training.errors import InputError

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\n"


def _recordings(folder, *names, seconds=2.0):
    return [write_tone(folder / name, seconds=seconds, rate=1000) for name in names]


def _by_name(found: list[AnnotatedRecording], folder) -> dict:
    return {
        os.path.relpath(one.path, folder): None if one.events is None else [tuple(event)[:3] for event in one.events]
        for one in found
    }


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- which recordings a table is about ----


def test_folders_that_pair_tables_with_recordings(tmp_path, warnings):
    _recordings(tmp_path, "a/x.wav", "a/y.flac", "b/x.wav", "c.wav", "z.wav", "d.e.wav", "w.wav", "v.wav")
    _write(tmp_path / "a/x.Table.1.selections.txt", f"{RAVEN}1\tSpectrogram 1\t1\t0.1\t0.5\t0\t9\towl\n")
    _write(tmp_path / "a/x.Table.2.selections.txt", f"{RAVEN}1\tSpectrogram 1\t1\t0.0\t0.2\t0\t9\tjay\n")
    _write(tmp_path / "a/y.txt", "0.5\t1.5\towl\n")
    _write(tmp_path / "b/x.txt", "")  # a label track without labels
    header = RAVEN.replace("Annotation", "Begin File\tAnnotation")
    _write(tmp_path / "c.Table.1.selections.txt", header)  # a table without selections
    _write(tmp_path / "d.e.selections.txt", f"{RAVEN}1\tSpectrogram 1\t1\t0.1\t0.5\t0\t9\towl\n")
    _write(tmp_path / "w.BirdNET.selection.table.txt", f"{RAVEN}1\tSpectrogram 1\t1\t0.1\t0.5\t0\t9\towl\n")
    _write(tmp_path / "README.txt", "Recordings, made at night: in June\n")
    _write(tmp_path / "classes.csv", "label,colour\nowl,red\n")
    found = read_annotations(tmp_path)
    assert _by_name(found, tmp_path) == {
        "a/x.wav": [(0.0, 0.2, "jay"), (0.1, 0.5, "owl")],
        "a/y.flac": [(0.5, 1.5, "owl")],
        "b/x.wav": [],
        "c.wav": [],
        "d.e.wav": [(0.1, 0.5, "owl")],
        "v.wav": None,
        "w.wav": [(0.1, 0.5, "owl")],
        "z.wav": None,
    }
    assert {one.duration_s for one in found} == {2.0}
    assert warnings == [
        f"{tmp_path}: 2 {RULES['unlabelled']}: {tmp_path}/v.wav",
        f"{tmp_path}: 2 {RULES['no_table']}: {tmp_path}/README.txt",
    ]


def test_a_damaged_table_of_a_recording_is_no_other_file(tmp_path):
    _recordings(tmp_path, "x.wav")
    _write(tmp_path / "y.txt", "0.5\t1.5\towl\n")
    with pytest.raises(InputError, match=r"y.txt: no recording of .* is called y; name the folder"):
        read_annotations(tmp_path, _recordings(tmp_path / "a", "x.wav", "z.wav")[0].parent)
    _write(tmp_path / "x.txt", "notes\n")
    with pytest.raises(InputError, match=r"x.txt: no column is called label"):
        read_annotations(tmp_path)
    os.remove(tmp_path / "x.txt")
    _write(tmp_path / "y.txt", "onset,offset,label\n0.5,0.2,owl\n")
    with pytest.raises(InputError, match=r"y.txt: row 1 \(line 2\) ends at 0.2 s and begins at 0.5 s"):
        read_annotations(tmp_path)
    _write(tmp_path / "y.txt", "notes\n")
    with pytest.raises(InputError, match="holds no tables of events; name another folder"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("C:\\field\\one\\b.wav", "audio/one/b.wav"),
        ("/mnt/two/b.wav", "audio/two/b.wav"),
        ("two/b", "audio/two/b.wav"),
        ("three/b.wav", "no recording of .* is called three/b.wav"),
        ("b", "2 recordings of .* is called b;"),
        ("e\u0301.wav", "audio/\u00e9.wav"),
        ("c.wav", "no recording of .* is called c.wav"),
    ],
)
def test_of_several_recordings_with_a_name_the_last_folders_decide(tmp_path, name, wanted):
    _recordings(tmp_path, "audio/one/b.wav", "audio/two/b.wav", "audio/\u00e9.wav")
    table = _write(tmp_path / "tables/events.csv", f"file,onset,offset,label\n{name},0,1,owl\n")
    if " " in wanted:
        with pytest.raises(InputError, match=wanted):
            read_annotations(table, tmp_path / "audio")
        return
    found = _by_name(read_annotations(table, tmp_path / "audio"), tmp_path)
    assert [path for path, events in found.items() if events] == [wanted]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        # Recorders number their files anew, and one is missing.
        (["one/2.txt", "two/1.txt"], r"one/2.txt: no recording of .* is called 2; name the folder"),
        (["two/2.txt", "one/2.txt"], r"one/2.txt: no recording of .* is called 2; name the folder"),
        (["one/1.txt", "two/1.txt", "two/2.txt"], None),
        (["three/1.txt"], r"three/1.txt: no recording of .* is called 1"),
    ],
)
def test_numbers_of_recorders_are_no_names(tmp_path, tables, message):
    _recordings(tmp_path, "one/1.wav", "two/1.wav", "two/2.wav")
    for table in tables:
        _write(tmp_path / table, f"0\t1\t{table}\n")
    if message is None:
        found = _by_name(read_annotations(tmp_path), tmp_path)
        assert {path: events[0][2] for path, events in found.items()} == {
            table.replace("txt", "wav"): table for table in tables
        }
        return
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path)


def test_two_tables_are_not_taken_for_one_recording(tmp_path):
    _recordings(tmp_path, "two/1.wav", "one/3.wav")
    for table in ("one/1.txt", "two/1.txt"):
        _write(tmp_path / table, "0\t1\towl\n")
    with pytest.raises(InputError, match="1 and 1 would be one recording, .*two/1.wav; write one name"):
        read_annotations(tmp_path)


def test_one_recording_by_two_paths(tmp_path, monkeypatch):
    _recordings(tmp_path, "audio/x.wav", "audio/y.wav")
    monkeypatch.chdir(tmp_path)
    table = _write(tmp_path / "e.csv", f"file,onset,offset,label\n{tmp_path}/audio/x.wav,0,1,owl\naudio/x,1.5,2,owl\n")
    found = read_annotations(table, Path("audio"))
    assert [(str(one.path), one.events and len(one.events)) for one in found] == [
        ("audio/x.wav", 2),
        ("audio/y.wav", None),
    ]


def test_mirrored_folders_of_tables_and_recordings(tmp_path):
    _recordings(tmp_path, "audio/one/b.wav", "audio/two/b.wav")
    for folder in ("one", "two"):
        _write(tmp_path / "tables" / folder / "b.txt", f"0\t1\t{folder}\n")
    for source, recordings in (("tables", "audio"), (".", "."), ("tables", ".")):
        found = _by_name(read_annotations(tmp_path / source, tmp_path / recordings), tmp_path)
        assert found == {f"audio/{name}/b.wav": [(0.0, 1.0, name)] for name in ("one", "two")}


@pytest.mark.parametrize("name", ["b.wav", "sub/b.wav", "sub\\b", "../other/a.wav"])
def test_names_are_looked_for_beside_their_table_first(tmp_path, name):
    _recordings(tmp_path, "one/b.wav", "two/b.wav", "one/sub/b.wav", "two/sub/b.wav", "other/a.wav")
    for folder in ("one", "two"):
        table = f"file,onset,offset,label\n{name},0,1,{folder}\n"
        _write(tmp_path / folder / "events.csv", table)
        place = os.path.normpath(f"{folder}/{name}".replace("\\", "/"))
        place = place if place.endswith(".wav") else f"{place}.wav"
        alone = read_annotations(tmp_path / folder / "events.csv")
        assert [(one.path.resolve(), one.events[0].label) for one in alone if one.events] == [
            (tmp_path / place, folder)
        ]
    if "other" not in name:
        found = _by_name(read_annotations(tmp_path), tmp_path)
        assert {place: events[0][2] for place, events in found.items() if events} == {
            os.path.normpath(f"{folder}/{name}".replace("\\", "/")).removesuffix(".wav") + ".wav": folder
            for folder in ("one", "two")
        }


def test_one_table_and_its_only_recording(tmp_path):
    (path,) = _recordings(tmp_path, "x.wav")
    table = _write(tmp_path / "tables/labels.txt", "0.5\t1.5\towl\n")
    for recordings in (path, tmp_path):
        assert _by_name(read_annotations(table, recordings), tmp_path) == {"x.wav": [(0.5, 1.5, "owl")]}
    _recordings(tmp_path, "y.wav")
    with pytest.raises(InputError, match="no recording of .* is called labels;"):
        read_annotations(table, tmp_path)
    os.rename(table, tmp_path / "tables/y.txt")
    assert _by_name(read_annotations(tmp_path / "tables/y.txt", tmp_path), tmp_path)["y.wav"] == [(0.5, 1.5, "owl")]


def test_files_of_one_raven_table(tmp_path):
    paths = _recordings(tmp_path, "x.wav", "y.wav")
    header = RAVEN.replace("Annotation", "Begin File\tFile Offset (s)\tSpecies\tTag")
    rows = "1\tSpectrogram 1\t1\t0.5\t1.0\t0\t9\tx.wav\t0.5\towl\ta\n"
    rows += "2\tSpectrogram 1\t2\t2.5\t2.75\t0\t9\ty.wav\t0.5\tjay\tb\n"
    table = _write(tmp_path / "all.txt", header + rows)
    for column, labels in ((None, ("owl", "jay")), ("Tag", ("a", "b"))):
        found = read_annotations(table, label_column=column)
        assert [(one.path, one.events[0][:3]) for one in found] == [
            (paths[0], (0.5, 1.0, labels[0])),
            (paths[1], (0.5, 0.75, labels[1])),
        ]


# ---- the rules ----

COLUMNS = "file,onset,offset,label,low_hz,high_hz,score\n"


def _read(folder, rows, **kwargs):
    if not (folder / "x.wav").exists():
        _recordings(folder, "x.wav", "y.wav")
    acts = {}
    table = _write(folder / "events.csv", COLUMNS + rows)
    found = read_annotations(table, report=lambda _, own: acts.update(own), **kwargs)
    assert list(acts) == list(RULES)
    return found, {kind: items for kind, items in acts.items() if items and kind != "unlabelled"}


@pytest.mark.parametrize(
    ("rows", "options", "wanted", "kind"),
    [
        ("x.wav,0,1,owl,,,\nx.wav,1.5,2,owl,,,\n", {}, [(0, 1, "owl"), (1.5, 2, "owl")], None),
        # the end
        ("x.wav,1,2.005,owl,,,\n", {}, [(1, 2, "owl")], None),
        ("x.wav,1,3,owl,,,\n", {}, [(1, 2, "owl")], "cut_at_end"),
        ("x.wav,2,3,owl,,,\n", {}, [], "begins_after_end"),
        ("x.wav,2,2,owl,,,\n", {}, [(2, 2, "owl")], "without_duration"),
        ("x.wav,2.5,2.5,owl,,,\n", {}, [], "begins_after_end"),
        # no duration
        ("x.wav,1,1,owl,,,\n", {}, [(1, 1, "owl")], "without_duration"),
        ("x.wav,1,1,owl,,,\n", {"point_s": 0.5}, [(0.75, 1.25, "owl")], "without_duration"),
        ("x.wav,0.125,0.125,owl,,,\n", {"point_s": 0.5}, [(0, 0.375, "owl")], "without_duration"),
        ("x.wav,2,2,owl,,,\n", {"point_s": 0.5}, [(1.75, 2, "owl")], "without_duration"),
        # overlapping, touching, repeated
        ("x.wav,0,1,owl,,,\nx.wav,0.5,1.5,owl,,,\n", {}, [(0, 1.5, "owl")], "joined"),
        ("x.wav,0,1,owl,,,\nx.wav,1,1.5,owl,,,\n", {}, [(0, 1.5, "owl")], "joined"),
        ("x.wav,0,1.5,owl,,,\nx.wav,0.5,1,owl,,,\n", {}, [(0, 1.5, "owl")], "joined"),
        ("x.wav,0,1,owl,,,\nx.wav,0,1,owl,,,\n", {}, [(0, 1, "owl")], "joined"),
        ("x.wav,1,1,owl,,,\nx.wav,1,1,owl,,,\n", {"point_s": 0.5}, [(0.75, 1.25, "owl")], "joined"),
        ("x.wav,0,1,owl,,,\nx.wav,0.5,1.5,jay,,,\n", {}, [(0, 1, "owl"), (0.5, 1.5, "jay")], None),
        ("x.wav,0,1,owl,,,\nx.wav,1,1.5,owl,,,\n", {"overlaps": "keep"}, [(0, 1, "owl"), (1, 1.5, "owl")], None),
        # labels
        ("x.wav,0,1,Owl,,,\n", {"label_map": {"Owl": "owl"}}, [(0, 1, "owl")], None),
        ("x.wav,0,1,O\u0308,,,\n", {"label_map": {" \u00d6": "owl"}}, [(0, 1, "owl")], None),
        ("x.wav,0,1,jay,,,\n", {"label_map": {"Owl": "owl"}}, [(0, 1, "jay")], None),
        ("x.wav,0,1,jay,,,\n", {"label_map": {"owl": "owl", "*": "bird"}}, [(0, 1, "bird")], None),
        ("x.wav,0,1,jay,,,\n", {"label_map": {"owl": "owl", "*": None}}, [], "left_out"),
        ("x.wav,0,1,jay,,,\n", {"label_map": {"*": None}, "labels": ["owl", "jay"]}, [(0, 1, "jay")], None),
        ("x.wav,0,1,wind,,,\n", {"label_map": {"*": None}, "labels": ["owl", "jay"]}, [], "left_out"),
        ("x.wav,0,1,a,,,\nx.wav,1,2,b,,,\n", {"label_map": {"a": "b"}}, [(0, 2, "b")], "joined"),
        ("x.wav,0,1,unsure,,,\n", {"exclude": ["unsure"]}, [], "excluded"),
        ("x.wav,0,1,jay?,,,\n", {"exclude": ["jay?"], "label_map": {"*": "bird"}}, [], "excluded"),
        ("x.wav,0,1,jay,,,\n", {"exclude": ["bird"], "label_map": {"*": "bird"}}, [], "excluded"),
        ("x.wav,0,1,wind,,,\n", {"exclude": ["wind"], "labels": ["owl"]}, [], "excluded"),
    ],
)
def test_rules(tmp_path, rows, options, wanted, kind):
    (x, y), acts = _read(tmp_path, rows, **options)
    assert [event[:3] for event in x.events] == wanted and y.events is None
    assert {kind} - {None} <= set(acts) <= {kind, "without_duration"}
    if kind:
        assert len(acts[kind]) == 1 and acts[kind][0]["recording"] == str(tmp_path / "x.wav")
    assert [event[:2] for event in x.unsure] == ([(0, 1)] if kind == "excluded" else [])


def test_joined_events_keep_the_frequencies_and_scores_of_all(tmp_path):
    rows = "x.wav,0,1,owl,5,7,0.5\nx.wav,0.5,1.5,owl,3,6,0.75\nx.wav,0,1,jay,5,7,\nx.wav,0.5,1,jay,,9,-1\n"
    ((x, _), _) = _read(tmp_path, rows)
    assert x.events == (Event(0.0, 1.0, "jay", None, 9.0, -1.0), Event(0.0, 1.5, "owl", 3.0, 7.0, 0.75))


def test_rules_are_one_line_each(tmp_path, warnings):
    _recordings(tmp_path, "x.wav")
    rows = "x.wav,0,3,owl,,,\nx.wav,1,3,owl,,,\nx.wav,0,1,unsure,,,\nx.wav,1,1,unsure,,,\n"
    read_annotations(_write(tmp_path / "t.csv", COLUMNS + rows), exclude=["unsure"])
    place = f"of {tmp_path}/x.wav"
    assert warnings == [
        f"{tmp_path}/t.csv: 2 {RULES['cut_at_end']}: owl at 0 s {place}",
        f"{tmp_path}/t.csv: 1 {RULES['without_duration']}: unsure at 1 s {place}",
        f"{tmp_path}/t.csv: 2 {RULES['excluded']}: unsure at 0 s {place}",
        f"{tmp_path}/t.csv: 1 {RULES['joined']}: owl at 1 s {place}",
    ]


def test_unknown_labels_are_named(tmp_path):
    with pytest.raises(InputError) as caught:
        _read(tmp_path, "x.wav,0.5,1,olw,,,\n", labels=["owl", "jay"])
    assert str(caught.value) == (
        f"{tmp_path}/events.csv: {tmp_path}/x.wav has an event olw at 0.5 s, which is not in the label set; set "
        "label_map or exclude_labels; did you mean owl?"
    )


@pytest.mark.parametrize(("unannotated", "wanted"), [("unlabelled", None), ("empty", ())])
def test_recordings_without_a_table(tmp_path, unannotated, wanted):
    acts = {}
    _recordings(tmp_path, "x.wav", "y.wav")
    table = _write(tmp_path / "e.csv", "file,onset,offset,label\nx.wav,0,1,owl\n")
    _, y = read_annotations(table, unannotated=unannotated, report=lambda _, own: acts.update(own))
    assert y.events == wanted
    assert acts[unannotated] == [{"recording": str(tmp_path / "y.wav")}]


def test_unreadable_recordings(tmp_path):
    _recordings(tmp_path, "x.wav")
    (tmp_path / "y.wav").write_bytes(b"notes" * 100)
    table, acts = _write(tmp_path / "e.csv", "file,onset,offset,label\nx.wav,0,1,owl\ny.wav,0,1,owl\n"), {}
    with pytest.raises(InputError, match=r"y.wav: "):
        read_annotations(table)
    table.write_text(table.read_text() + "z.wav,0,1,owl\n")
    with pytest.raises(InputError, match="no recording of .* is called z.wav"):
        read_annotations(table)
    (x,) = read_annotations(table, on_bad_audio="skip", report=lambda _, own: acts.update(own))
    assert x.path.name == "x.wav"
    assert acts["missing"] == [{"recording": "z.wav"}]
    (item,) = acts["unreadable"]
    assert item["recording"] == str(tmp_path / "y.wav") and item["reason"]


# ---- sites ----


@pytest.mark.parametrize(
    ("site", "wanted"),
    [
        (None, [None, None, None]),
        ("Site", ["pond", "pond", None]),  # a column
        ("^[^/]+", ["A", "B", "B"]),
        (r"(\w)/.*(\d)", ["A", "B", None]),
        ("nowhere", [None, None, None]),
    ],
)
def test_sites(tmp_path, site, wanted):
    _recordings(tmp_path, "A/x1.wav", "B/y2.wav", "B/z.wav")
    rows = "A/x1.wav,0,1,owl,pond\nA/x1.wav,1,2,jay,\nB/y2.wav,0,1,owl, pond \n"
    table = _write(tmp_path / "e.csv", f"file,onset,offset,label,Site\n{rows}")
    assert [one.site for one in read_annotations(table, site=site)] == wanted


def test_sites_that_are_impossible(tmp_path):
    _recordings(tmp_path, "x.wav")
    table = _write(tmp_path / "e.csv", "file,onset,offset,label,Site\nx.wav,0,1,owl,pond\nx.wav,1,2,owl,lake\n")
    with pytest.raises(InputError, match="x.wav has several values in Site, lake and pond; correct them"):
        read_annotations(table, site="Site")
    with pytest.raises(InputError, match=r"site: no table has a column '\(', nor is it a regular expression"):
        read_annotations(table, site="(")


@pytest.mark.parametrize("site", ["nowhere", "site", "(q)?", "x*"])
def test_sites_of_no_annotated_recording_are_an_error(tmp_path, site):
    """A misspelt column is a regular expression that matches nothing; a split by sites would divide them."""
    _recordings(tmp_path, "A/x.wav", "B/nowhere.wav")  # the second one is not annotated
    table = _write(tmp_path / "e.csv", "file,onset,offset,label,Site\nA/x.wav,0,1,owl,pond\n")
    with pytest.raises(InputError, match=r"^site: no table has a column .* such as .*A/x.wav; correct it$"):
        load_annotations(AnnotationArguments(train_annotations=str(table), site=site))


def test_recordings_without_a_site_are_counted(tmp_path, warnings):
    """Of all splits, of which one may have the column; unlabelled ones need none."""
    _recordings(tmp_path, "x.wav", "y.wav", "z.wav")
    _write(tmp_path / "train.csv", "file,onset,offset,label,Site\nx.wav,0,1,owl,pond\n")
    _write(tmp_path / "test.csv", "file,onset,offset,label\ny.wav,0,1,owl\n")
    tables = {f"{split}_annotations": str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    splits = load_annotations(AnnotationArguments(**tables, site="Site"))
    assert {one.path.name: one.site for own in splits.values() for one in own if one.site} == {"x.wav": "pond"}
    assert warnings == [
        f"{tmp_path}/train.csv: 1 recordings have no annotations and are unlabelled: {tmp_path}/z.wav",
        f"{tmp_path}/test.csv: 1 annotated recordings have no site: {tmp_path}/y.wav",
    ]


# ---- splits and label maps ----


def test_splits_share_a_folder_of_recordings(tmp_path, warnings):
    _recordings(tmp_path, "x.wav", "y.wav", "z.wav")
    files = {}
    for split, name in (("train", "x"), ("test", "y")):
        files[f"{split}_annotations"] = str(
            _write(tmp_path / f"{split}.csv", f"file,onset,offset,label\n{name}.wav,0,1,owl\n")
        )
    for unannotated, wanted in (("unlabelled", None), ("empty", [])):
        splits = load_annotations(AnnotationArguments(**files, unannotated=unannotated))
        assert {split: _by_name(own, tmp_path) for split, own in splits.items()} == {
            "train": {"x.wav": [(0.0, 1.0, "owl")], "z.wav": wanted},
            "test": {"y.wav": [(0.0, 1.0, "owl")]},
        }
        assert warnings.pop() == f"{tmp_path}/train.csv: 1 {RULES[unannotated]}: {tmp_path}/z.wav" and not warnings
    with pytest.raises(InputError, match="data: set train_annotations"):
        load_annotations(AnnotationArguments())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (None, '{"owl": "Strix", "7": 8, "wind": null}'),
        (None, "{owl: Strix, 7: 8, wind: null}"),
        ("m.yaml", "owl: Strix\n7: 8\nwind:\n"),
        ("m.json", '{"owl": "Strix", "7": 8, "wind": null}'),
        ("m.csv", "from,to\nowl,Strix\n7,8\nwind,\n"),
        ("m.tsv", "to\tfrom\nStrix\towl\n8\t7\n\twind\n"),
        ("m.tsv", "owl\tStrix\n7\t8\nwind\t\n"),
        ("m.csv", "index,mid,display_name\n0,owl,Strix\n1,7,8\n2,wind,\n"),
    ],
)
def test_label_maps(tmp_path, file, text):
    given = text if file is None else str(_write(tmp_path / file, text))
    assert read_label_map(given) == {"owl": "Strix", "7": "8", "wind": None}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (None, '{010: 1.10, 12:30: 0x1F, 2024-01-01: ""}'),
        ("m.yaml", "010: 1.10\n12:30: 0x1F\n2024-01-01: ~\n"),
        ("m.csv", "from,to\n010 ,1.10\n12:30,0x1F\n12:30,0x1F\n2024-01-01,  \n"),
    ],
)
def test_numbers_of_label_maps_stay_as_they_are_written(tmp_path, file, text):
    given = text if file is None else str(_write(tmp_path / file, text))
    assert read_label_map(given) == {"010": "1.10", "12:30": "0x1F", "2024-01-01": None}


def test_labels_of_the_map_that_no_event_has_are_told(tmp_path, warnings):
    """Once for all splits, of which any may have the label."""
    for split, label in (("train", "owl"), ("test", "jay")):
        _recordings(tmp_path, f"{split}.wav")
        _write(tmp_path / f"{split}.csv", f"file,onset,offset,label\n{split}.wav,0,1,{label}\n")
    options = {"label_map": '{jay: bird, "Owl ": bird, wind: null, "*": animal}', "exclude_labels": ["unsure", "brid"]}
    tables = {f"{split}_annotations": str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    load_annotations(AnnotationArguments(**tables, **options))
    told = [
        "label_map: 2 labels are those of no event: Owl; did you mean owl?",
        "exclude_labels: 1 labels are those of no event: brid; did you mean bird?",
    ]
    assert warnings == told
    read_annotations(tmp_path / "test.csv", tmp_path / "test.wav", exclude=["wind"])
    assert warnings[2:] == ["exclude_labels: 1 labels are those of no event: wind; are they misspelt?"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("m.csv", "from,to\nowl,a\nowl ,b\n", "m.csv: 'owl' becomes 'a' and 'b'; keep one of the two"),
        ("m.yaml", "owl: a\nowl:\n", "m.yaml: 'owl' becomes 'a' and None; keep one of the two"),
        (None, '{"owl": "a", "owl": "b"}', "label_map: 'owl' becomes 'a' and 'b'; keep one of the two"),
        (None, "{~: owl}", "label_map: None is no label; write it in quotes"),
        ("m.yaml", "yes: owl\n", "m.yaml: True is no label; write it in quotes"),
        ("m.yaml", "- owl\n", "m.yaml: expected lines label: label, got list"),
        ("m.yaml", "{", "m.yaml: not readable as YAML or JSON"),
        ("m.csv", "a,b,c\n1,2,3\n", "m.csv: has no columns from and to; name them so: a, b, c"),
        ("m.csv", "a\n1\n", "m.csv: has no columns from and to; name them so: a"),
        (None, "absent.yaml", "absent.yaml: no such file"),
        (None, "{owl: [a]}", r"label_map: \['a'\] is no label; write it in quotes"),
    ],
)
def test_label_maps_that_are_refused(tmp_path, file, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_label_map(text if file is None else str(_write(tmp_path / file, text)))
    assert "\n" not in str(caught.value)


# ---- clips of a collection of soundevent ----


def test_outside_annotated_clips_nothing_is_known(tmp_path, warnings):
    _recordings(tmp_path, "x.wav", "y.wav", "z.wav")
    write_events(tmp_path / "e.json", {"x.wav": [Event(0.25, 0.5, "owl")], "y.wav": [], "z.wav": []}, "soundevent")
    warnings.clear()  # the names do not lead to the recordings from here
    value = json.loads((tmp_path / "e.json").read_text())
    clips = value["data"]["clips"]
    for recording in value["data"]["recordings"]:
        recording["duration"] = 2.0
    for clip, times in zip(clips, ((0.0, 1.0), (0.5, 2.0), (0.0, 2.0))):
        clip["start_time"], clip["end_time"] = times
    badges = [[{"state": "completed"}], [{"state": "verified"}], [{"state": "completed"}, {"state": "rejected"}]]
    value["data"]["tasks"] = [{"clip": clip["uuid"], "status_badges": own} for clip, own in zip(clips, badges)]
    (tmp_path / "e.json").write_text(json.dumps(value))
    x, y, z = read_annotations(tmp_path / "e.json", unannotated="empty")
    assert x.events == (Event(0.25, 0.5, "owl"),) and x.unsure == (Event(1.0, 2.0, NOT_ANNOTATED),)
    assert y.events == () and y.unsure == (Event(0.0, 0.5, NOT_ANNOTATED),)
    assert z.events is None and z.unsure == ()
    assert [line.split(": ")[1] for line in warnings] == [f"2 {RULES['not_annotated']}", f"1 {RULES['unlabelled']}"]


# ---- round trips ----

MILLISECONDS = st.integers(0, 2000)


@st.composite
def _apart(draw):
    """Events of two labels that neither overlap nor touch others of their own."""
    found = []
    for label in ("owl", "jay"):
        times = sorted(draw(st.sets(MILLISECONDS, max_size=6)))
        found += [Event(a / 1000, b / 1000, label, 100.0, 400.0) for a, b in zip(times[::2], times[1::2])]
    return sorted(found)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_folder", [False, True])
@given(one=_apart(), two=_apart())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_come_back_from_every_format_and_pairing(tmp_path, name, is_folder, one, two):
    place = tmp_path / name
    if not place.exists():
        _recordings(place, "field/x.wav", "field/y.wav")
    files = [str(place / "field" / file) for file in ("x.wav", "y.wav")]
    table = place / "field" if is_folder else place / f"all{FORMATS[name].suffix}"
    if name == "audacity" and not is_folder:  # holds one recording
        files = files[:1]
    write_events(table, dict(zip(files, (one, two))), name)
    found = read_annotations(table, files[0] if len(files) == 1 else place / "field", unannotated="empty")
    assert [str(recording.path) for recording in found] == files
    for recording, events in zip(found, (one, two)):
        wanted = [event._replace(low_hz=None, high_hz=None) if name == "dcase" else event for event in events]
        assert sorted(recording.events) == wanted and recording.unsure == ()
