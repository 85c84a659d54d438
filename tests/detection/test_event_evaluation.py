"""Tests the task event_evaluation: which recordings and labels are scored, what is said about others, and errors."""

import json
import logging
import unicodedata

import pytest
from audio_files import write_tone

import train_hf
from training import tasks
from training.data.events import Event, write_events

ANNOTATED = {
    "a/one.wav": [Event(1.0, 2.0, "dog"), Event(4.0, 4.5, "bird")],
    "a/two.wav": [Event(0.0, 3.0, "dog")],
    "b/one.wav": [],
}


def evaluate(tmp_path, found, annotated=None, endings=("tsv", "csv"), **keys) -> dict:
    """Runs the program on two tables, and returns its results.json."""
    tables = [tmp_path / f"{name}.{ending}" for name, ending in zip(("found", "annotated"), endings)]
    for path, events in zip(tables, (found, ANNOTATED if annotated is None else annotated)):
        write_events(path, events)
    recipe = {"task": "evaluation", "events": str(tables[0]), "annotations": str(tables[1])}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe | {"output_dir": str(tmp_path / "out")} | keys))
    status = train_hf.main([str(path)])
    return json.loads((tmp_path / "out" / "results.json").read_text()) if status == 0 else {}


def recordings(tmp_path, *names: str) -> str:
    for name in names:
        write_tone(tmp_path / "audio" / name, seconds=6.0, rate=8000)
    return str(tmp_path / "audio")


def test_a_table_is_scored_and_its_run_repeated(tmp_path, capsys):
    results = evaluate(tmp_path, {"a/one.wav": ANNOTATED["a/one.wav"], "a/two.wav": [Event(0.5, 3.0, "dog")]})
    assert results["metrics"]["test"]["event_recall_micro"] == pytest.approx(2 / 3)
    assert results["metrics"]["test"]["intersection_f1_micro"] == 1.0
    assert results["per_class"]["dog"] | {"annotated_events": 2, "predicted_events": 2} == results["per_class"]["dog"]
    assert results["recordings"] == {"test": 3} and results["hours"] is None and results["remarks"] == []
    assert results["confidence_intervals"]["resampled"] == "recordings"
    printed = capsys.readouterr().out
    assert "F1, mean of the labels" in printed and "dog" in printed
    again = tmp_path / "again"
    assert not train_hf.main([str(tmp_path / "out" / "results.json"), "--output_dir", str(again)])
    repeated = json.loads((again / "results.json").read_text())
    assert {key: value for key, value in repeated.items() if key != "recipe"} == {
        key: value for key, value in results.items() if key != "recipe"
    }


@pytest.mark.parametrize("words", [["--events", "x"], ["--events=x"], ["--task", "event_evaluation"]])
def test_an_evaluation_of_events_is_a_task_of_its_own(tmp_path, words):
    path = tmp_path / "recipe.json"
    keys = {"task": "evaluation", "events": "y", "annotations": "z", "output_dir": "out"}
    path.write_text(json.dumps(keys))
    assert tasks.parse([str(path), *words])[0] == "event_evaluation"


# ---- Recordings ----


@pytest.mark.parametrize(
    "names",
    [
        {"a/one": "a/one.wav", "a/two": "a/two.wav"},
        {"a\\one.WAV": "a/one.wav", "a\\two.flac": "a/two.wav"},
        {"/data/set/a/one.mp3": "a/one.wav", "/data/set/a/two.mp3": "a/two.wav"},
        {"a/one.wav": "a/one.wav", "two": "a/two.wav"},
    ],
)
def test_names_are_compared_from_their_ends_without_endings(tmp_path, names):
    results = evaluate(tmp_path, {name: ANNOTATED[other] for name, other in names.items()})
    assert results["metrics"]["test"]["event_f1_micro"] == 1.0 and results["remarks"] == []


def test_folders_that_all_share_are_left_out(tmp_path):
    """Each tool writes the paths of its own machine; a point in a name is no ending."""
    found = {"/mnt/me/x/a/day.1": [Event(0, 1, "dog")], "/mnt/me/x/b/day.2": []}
    annotated = {"C:\\set\\a\\day.1.wav": [Event(0, 1, "dog")], "C:\\set\\b\\day.2.wav": [Event(0, 1, "dog")]}
    results = evaluate(tmp_path, found, annotated)
    assert results["metrics"]["test"]["event_recall_micro"] == 0.5 and results["remarks"] == []


def test_a_table_of_one_recording_needs_no_name(tmp_path):
    events = [Event(1.0, 2.0, "dog")]
    for found, annotated in (
        ({None: events}, {None: events}),
        ({"x.wav": events}, {None: events}),
        ({None: events}, {"y": events}),
    ):
        results = evaluate(tmp_path, found, annotated, overwrite=True)
        assert results["metrics"]["test"]["event_f1_micro"] == 1.0 and results["confidence_intervals"] is None


def test_what_is_not_scored_is_said(tmp_path, caplog):
    found = {"a/one.wav": [Event(1.0, 2.0, "dog"), Event(3.0, 4.0, "car")], "c/x.wav": [Event(0, 1, "dog")]}
    with caplog.at_level(logging.WARNING):
        results = evaluate(tmp_path, found)
    remarks = "\n".join(results["remarks"])
    assert len(results["remarks"]) == 4
    assert "annotated.csv: 1 recordings have events and no annotations and are left out: c/x.wav" in remarks
    assert "1 annotated recordings have no events here; all 1 annotated ones are missed: a/two.wav" in remarks
    assert "found.tsv: 1 events have labels that are not annotated and are left out: car" in remarks
    assert "1 annotated events are missed, because no event here has their labels: bird" in remarks
    assert [record.getMessage() for record in caplog.records if ": 1 " in record.getMessage()] == results["remarks"]
    assert (
        results["per_class"]["dog"]["predicted_events"] == 1
        and results["metrics"]["test"]["event_recall_micro"] == 1 / 3
    )


def test_recordings_without_annotations_can_count_as_empty(tmp_path):
    found = {"a/one.wav": ANNOTATED["a/one.wav"], "c/x.wav": [Event(0, 1, "dog")]}
    results = evaluate(tmp_path, found, unannotated="empty")
    assert results["recordings"] == {"test": 4} and results["metrics"]["test"]["event_precision_micro"] == 2 / 3
    assert "1 recordings have events and no annotations and count as empty: c/x.wav" in results["remarks"][0]


@pytest.mark.parametrize("unannotated, number, alarms", [("unlabelled", 2, 0), ("empty", 3, 1)])
def test_a_folder_says_which_recordings_are_scored(tmp_path, unannotated, number, alarms):
    folder = recordings(tmp_path, "a/one.wav", "a/two.wav", "c/x.wav")
    found = {"one.wav": ANNOTATED["a/one.wav"], "two.wav": [], "x.wav": [Event(7.0, 8.0, "dog")], "d/y.wav": []}
    results = evaluate(tmp_path, found, recordings=folder, unannotated=unannotated)
    assert results["recordings"] == {"test": number} and results["hours"] == pytest.approx(number * 6 / 3600)
    expected = alarms / results["hours"]
    assert results["metrics"]["test"]["false_alarms_per_hour"] == pytest.approx(expected)
    remarks = "\n".join(results["remarks"])
    assert "1 annotated recordings are not in" in remarks and "b/one.wav" in remarks
    assert "1 recordings with events are not in" in remarks and "d/y.wav" in remarks
    assert "1 recordings have no annotations and" in remarks and "c/x.wav" in remarks
    assert ("1 events begin after the end of their recordings: c/x.wav" in remarks) == (unannotated == "empty")


# ---- Labels and scores ----


def test_a_label_map_renames_both_sides(tmp_path):
    found = {"a/one.wav": [Event(1.0, 2.0, "Canis"), Event(4.0, 4.5, "noise")], "a/two.wav": [Event(0.0, 3.0, "dog")]}
    path = tmp_path / "map.yaml"
    path.write_text("Canis: dog\nnoise: null\nbird: null\ncat: dog\n")
    results = evaluate(tmp_path, found, label_map=str(path))
    assert results["labels"] == ["dog"] and results["metrics"]["test"]["event_f1_micro"] == 1.0
    assert [line.partition(": ")[2] for line in results["remarks"]] == [
        "1 labels are on neither side: cat",
        "1 events have labels that label_map leaves out: noise",
        "1 events have labels that label_map leaves out: bird",
    ]


def test_a_star_stands_for_all_other_labels(tmp_path):
    found = {"a/one.wav": [Event(1.0, 2.0, "wolf"), Event(4.0, 4.5, "jay")], "a/two.wav": [Event(0.0, 3.0, "dog")]}
    results = evaluate(tmp_path, found, label_map={"*": "animal"})
    assert results["labels"] == ["animal"] and results["metrics"]["test"]["event_f1_micro"] == 1.0


def test_labels_can_be_chosen(tmp_path):
    results = evaluate(tmp_path, {"a/one.wav": ANNOTATED["a/one.wav"]}, labels=["bird"])
    assert results["labels"] == ["bird"] and results["metrics"]["test"]["event_f1_micro"] == 1.0
    assert (
        "annotated.csv: 2 events have labels that are not among labels and are left out: dog (2)"
        in results["remarks"][-1]
    )


def test_background_stands_for_no_event_unless_it_is_named(tmp_path):
    nothing = Event(5.0, 6.0, "background")
    annotated = {name: [*events, nothing] for name, events in ANNOTATED.items()}
    found = {name: [*events, nothing] for name, events in ANNOTATED.items()}
    results = evaluate(tmp_path, found, annotated)
    assert results["labels"] == ["bird", "dog"] and results["metrics"]["test"]["event_f1_micro"] == 1.0
    assert [line.partition(": ")[2] for line in results["remarks"]] == [
        "3 events stand for no event and are left out, as labels does not name them: background (3)"
    ] * 2
    named = evaluate(tmp_path, found, annotated, labels=["background", "dog"], overwrite=True)
    assert named["labels"] == ["background", "dog"] and named["per_class"]["background"]["predicted_events"] == 3
    silent = evaluate(tmp_path, {name: [nothing] for name in ANNOTATED}, annotated, overwrite=True)
    assert silent["metrics"]["test"]["event_recall_micro"] == 0


def test_events_below_a_score_are_left_out(tmp_path):
    found = {"a/one.wav": [Event(1, 2, "dog", score=0.5), Event(3, 4, "dog", score=0.49)], "a/two.wav": []}
    results = evaluate(tmp_path, found, endings=("csv", "csv"), min_score=0.5)
    assert results["per_class"]["dog"]["predicted_events"] == 1
    assert "1 events have scores below 0.5 and are left out: dog" in results["remarks"][0]


# ---- Errors ----


@pytest.mark.parametrize(
    "found, keys, message",
    [
        ({"q.wav": [Event(0, 1, "dog")]}, {}, "found.tsv: has none of the recordings of"),
        ({"one.wav": []}, {}, "one.wav may be a/one.wav or b/one.wav; write its path"),
        ({"a/one.wav": [], "a/one.flac": []}, {}, "another name are a/one.wav; write one name"),
        ({None: [Event(0, 1, "dog")]}, {}, "does not say which of 3 recordings it describes; name them in the table"),
        ({"a/one.wav": [Event(0, 1, "Hund")]}, {}, "has none of the labels that are scored, such as Hund, bird; set"),
        ({"a/one.wav": []}, {"labels": ["dig"]}, "labels: no event is called dig; did you mean dog?"),
        ({"a/one.wav": [Event(0, 1, "dog")]}, {"min_score": 0.5}, "min_score: 1 events of"),
        ({"a/one.wav": []}, {"label_map": "map.yaml"}, "map.yaml: no such file"),
        ({"a/one.wav": []}, {"label_map": '{"dog": true}'}, "label_map: True is no label; write it in quotes"),
        ({"a/one.wav": []}, {"annotations": None}, "annotations: is not set; name the table of the annotations"),
        ({"a/one.wav": []}, {"model_name_or_path": "x"}, "model_name_or_path: is no option of task event_evaluation"),
        ({"a/one.wav": []}, {"unannotated": "full"}, "unannotated: must be unlabelled or empty"),
        ({"a/one.wav": []}, {"segment_s": 0}, "segment_s: must be"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path, capsys, found, keys, message):
    assert evaluate(tmp_path, found, **keys) == {}
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_results_are_not_overwritten_unasked(tmp_path, capsys):
    found = {"a/one.wav": ANNOTATED["a/one.wav"]}
    assert evaluate(tmp_path, found)
    assert evaluate(tmp_path, found) == {}
    assert "add --overwrite true" in capsys.readouterr().err
    assert evaluate(tmp_path, found, overwrite=True)


@pytest.mark.parametrize("has_recordings", [False, True])
def test_outside_annotated_clips_no_event_is_wrong(tmp_path, has_recordings):
    """As in a training's own test: nobody knows what is there."""
    place = {"recordings": recordings(tmp_path, *ANNOTATED)} if has_recordings else {}
    found = ANNOTATED | {"a/one.wav": [*ANNOTATED["a/one.wav"], Event(5.2, 5.9, "dog"), Event(2.5, 2.9, "dog")]}
    assert evaluate(tmp_path, found, **place)["per_class"]["dog"]["predicted_events"] == 4
    write_events(tmp_path / "part.json", ANNOTATED, "soundevent")
    value = json.loads((tmp_path / "part.json").read_text())
    named = {recording["uuid"]: recording["path"] for recording in value["data"]["recordings"]}
    for clip in value["data"]["clips"]:
        clip["end_time"] = 5.0 if named[clip["recording"]].endswith("a/one.wav") else 6.0
    for recording in value["data"]["recordings"]:
        recording["duration"] = 6.0
    (tmp_path / "part.json").write_text(json.dumps(value))
    results = evaluate(tmp_path, found, annotations=str(tmp_path / "part.json"), overwrite=True, **place)
    assert results["per_class"]["dog"]["predicted_events"] == 3  # that at 2.5 s is wrong
    assert any("1 events lie outside the annotated clips of" in line for line in results["remarks"])


@pytest.mark.parametrize(
    ("label", "keys"),
    [
        ("unsure", {}),
        ("faint dog", {"exclude_labels": ["faint dog"]}),
        ("faint dog", {"exclude_labels": ["faint dog"], "label_map": {"*": "bird"}, "labels": ["dog", "bird"]}),
        ("x", {"label_map": {"x": "unsure"}}),
    ],
)
def test_time_with_excluded_labels_is_unsure(tmp_path, label, keys):
    """As in a training's own test; `merge` of training.review writes unsure stretches."""
    annotated = ANNOTATED | {
        "a/one.wav": [*ANNOTATED["a/one.wav"], Event(5.0, 6.0, label)],
        "c/x.wav": [Event(0.0, 6.0, label)],
    }
    found = ANNOTATED | {"a/one.wav": [*ANNOTATED["a/one.wav"], Event(5.2, 5.9, "dog"), Event(3.0, 3.2, label)]}
    found |= {"c/x.wav": []} if label == "x" else {}  # without events, a recording is missed before the map
    results = evaluate(tmp_path, found, annotated, recordings=recordings(tmp_path, *annotated), **keys)
    assert set(results["per_class"]) == {"dog", "bird"} and results["metrics"]["test"]["event_f1_micro"] == 1.0
    remarks = [line.partition(".csv: ")[2] or line.partition(".tsv: ")[2] for line in results["remarks"]]
    assert remarks[0].startswith("2 events have excluded labels, and their time is unsure: ")
    assert remarks[1].startswith("1 events have labels that are not a")
    assert remarks[2].startswith("1 events lie in time with excluded labels of ") and len(remarks) == 3


def test_unsure_is_a_label_where_it_is_to_be_scored_or_nothing_is_excluded(tmp_path, caplog):
    annotated = {"x.wav": [Event(0.0, 1.0, "dog"), Event(2.0, 3.0, "unsure")]}
    for keys in ({"labels": ["dog", "unsure"]}, {"exclude_labels": None}):
        results = evaluate(tmp_path, annotated, annotated, overwrite=True, **keys)
        assert set(results["per_class"]) == {"dog", "unsure"} and results["remarks"] == []
    results = evaluate(tmp_path, annotated, annotated, overwrite=True, exclude_labels=["unsrue"])
    assert results["remarks"] == ["exclude_labels: 1 labels are those of no event: unsrue"]


def test_unreadable_recordings_without_annotations_are_left_out(tmp_path, capsys):
    place = recordings(tmp_path, *ANNOTATED)
    (tmp_path / "audio" / "bad.wav").write_text("no sound")
    results = evaluate(tmp_path, ANNOTATED, recordings=place, unannotated="empty")
    assert results["recordings"] == {"test": 3}
    assert results["remarks"] == [
        f"{place}: 1 recordings cannot be read, have no annotations and are left out: bad.wav"
    ]
    assert evaluate(tmp_path, ANNOTATED, ANNOTATED | {"bad.wav": []}, recordings=place, overwrite=True) == {}
    assert "bad.wav: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("has_recordings", [False, True])
def test_names_are_compared_with_composed_accents(tmp_path, has_recordings):
    """Names from macOS are decomposed."""
    composed, decomposed = (unicodedata.normalize(form, "Bäche.wav") for form in ("NFC", "NFD"))
    place = {"recordings": recordings(tmp_path, decomposed, "other.wav")} if has_recordings else {}
    annotated = {composed: [Event(1.0, 2.0, "dog")], "other.wav": []}
    results = evaluate(tmp_path, {decomposed: [Event(1.0, 2.0, "dog")]}, annotated, **place)
    assert results["metrics"]["test"]["event_f1_micro"] == 1.0 and results["remarks"] == []


def test_what_is_read_is_not_replaced_or_removed(tmp_path, capsys):
    """Detectors write events.csv, so an evaluation in the same folder removed the table that it had scored."""
    folder, events = tmp_path / "out", ANNOTATED
    folder.mkdir()
    for name in ("events.csv", "predictions.csv", "mine.csv"):
        write_events(folder / name, events)
    for keys in (
        {"events": str(folder / "events.csv")},
        {"annotations": str(folder / "sub" / ".." / "predictions.csv")},
        {"events": str(folder)},
    ):
        (folder / "sub").mkdir(exist_ok=True)
        assert evaluate(tmp_path, events, **keys) == {}
        error = capsys.readouterr().err
        assert f"{next(iter(keys))}: the run would replace {folder}/" in error and error.count("\n") == 1
        assert "choose another output_dir" in error
    # Files of such names that no run has written stay, too.
    assert evaluate(tmp_path, events, events=str(folder / "mine.csv"))["recordings"] == {"test": 3}
    assert {"events.csv", "predictions.csv", "mine.csv", "results.json"} <= {path.name for path in folder.iterdir()}
    assert evaluate(tmp_path, events, overwrite=True)["recordings"] == {"test": 3}  # those of an earlier run do not
    assert not (folder / "events.csv").exists() and (folder / "mine.csv").exists()


def test_tables_without_any_event_are_scored(tmp_path):
    """Everything is missed; a table of a recorder that found nothing may be empty altogether."""
    (tmp_path / "found.txt").write_text("")
    results = evaluate(tmp_path, {"a/one.wav": []}, events=str(tmp_path / "found.txt"))
    assert (
        results["metrics"]["test"]["event_recall_micro"] == 0
        and results["metrics"]["test"]["event_precision_micro"] is None
    )
