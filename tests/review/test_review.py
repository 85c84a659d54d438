"""Tests which candidates are found, in what order, and that answers come back from every format and are merged."""

import csv
import importlib
import io
import itertools
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_detectors import long_tones, save_tiny_detector
from tiny_models import save_tiny_classifier

import predict_hf
from training.data.annotations import AnnotatedRecording, read_annotations
from training.data.events import Event, Recordings, in_order, read_events, write_events
from training.data.labels import LabelSet
from training.errors import InputError
from training.review import __main__ as program
from training.review import merging
from training.review.candidates import FEW, NEAR, Candidate, Stretches, Suggester, certainty, choose, worth_of
from training.review.merging import merge
from training.review.tables import Answer, key_of, read_answers, write_candidates, write_clip

RATE = 16000
DURATION_S = 6.0
NAMES = ("night/x.wav", "y.wav", "z.wav")  # the last one is not annotated
LABELS = ("owl", "Strix aluco?", 'a "#1"?; 2,5', "größe", "unsure")
TABLES = [("t.csv", "csv"), ("t.txt", "raven"), ("tables", "raven"), ("tracks", "audacity"), ("csvs", "csv")]


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Three recordings of six seconds."""
    folder = tmp_path_factory.mktemp("review") / "field"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(round(DURATION_S * 1000)), 1000)
    return folder


# ---- which candidates ----


def suggester(annotated=None, unsure=(), thresholds=(0.5, 0.5, 0.5)):
    names = ("cat", "dog", "owl")
    classifier = SimpleNamespace(labels=LabelSet(names, "multi_label_classification"))
    recording = AnnotatedRecording(Path("x.wav"), 60.0, annotated and tuple(annotated), unsure=tuple(unsure))
    return Suggester(classifier, {"high": thresholds}, {"x.wav": recording}), recording


CAT, DOG, POINT = Event(1.0, 2.0, "cat"), Event(1.0, 2.0, "dog"), Event(1.0, 1.0, "cat")
LATE, WEAK, NEAR_BY = (Event(4.0, 5.0, "cat", score=score) for score in (0.9, 0.6, 0.4))
OWL = Event(1.0, 1.5, "owl", score=0.9)
MISSING_DOG = ("missing annotation", "dog", None)


def dog(onset_s: float, offset_s: float, score: float = 0.9) -> Event:
    return Event(onset_s, offset_s, "dog", score=score)


@pytest.mark.parametrize(
    ("annotated", "found", "near", "wanted"),
    [
        ([(CAT, 0.9)], [Event(1.1, 1.9, "cat", score=0.9)], [], []),  # they agree, whatever the times
        ([(CAT, 0.1)], [], [], [("not found", "cat", CAT)]),
        ([(CAT, 0.1)], [dog(1.2, 2.2)], [], [("other label", "dog", CAT)]),
        ([(CAT, 0.1)], [dog(1.8, 5.0)], [], [MISSING_DOG, ("not found", "cat", CAT)]),
        ([(CAT, 0.1)], [dog(1, 1.2), dog(1.4, 2)], [], [("other label", "dog", CAT)]),  # in two parts
        ([(CAT, 0.1)], [dog(1, 1.9), OWL], [], [("missing annotation", "owl", None), ("other label", "dog", CAT)]),
        ([(CAT, 0.1), (DOG, 0.9)], [dog(1, 2)], [], [("not found", "cat", CAT)]),  # the dog is another one
        ([(CAT, 0.6)], [], [], [("uncertain", "cat", CAT)]),
        ([(CAT, 0.4)], [dog(1, 2)], [], [MISSING_DOG, ("uncertain", "cat", CAT)]),
        ([(CAT, 0.9)], [LATE], [], [("missing annotation", "cat", None)]),
        ([(CAT, 0.9)], [WEAK], [], [("uncertain", "cat", None)]),
        ([(CAT, 0.9)], [], [NEAR_BY, Event(1.5, 3, "cat", score=0.4)], [("uncertain", "cat", None)]),
        ([(CAT, 0.9)], [dog(4, 5)], [dog(3, 6), dog(4, 6, 0.4)], [MISSING_DOG]),
        ([(CAT, 0.9)], [], [dog(4, 5)], []),  # above the threshold, but too short for an event
        ([(CAT, 0.9)], [Event(10.2, 11, "cat", score=0.9)], [], []),  # unsure from 10 s on
        ([(Event(9.5, 11, "cat"), 0.1)], [], [], []),
        ([(Event(9.5, 11, "cat"), 0.4)], [], [], []),
        ([(Event(9.5, 11, "cat"), 0.1)], [dog(9, 10.5)], [], []),  # it still explains the dog
        ([(Event(9, 11, "cat"), 0.1)], [], [], [("not found", "cat", Event(9, 11, "cat"))]),  # half of it is known
        ([(POINT, 0.1)], [dog(0, 3)], [], [("other label", "dog", POINT)]),
        (None, [LATE, Event(6, 7, "cat", score=0.6)], [], [("rare", "cat", None), ("uncertain", "cat", None)]),
    ],
)  # fmt: skip
def test_reasons(annotated, found, near, wanted):
    one, recording = suggester(annotated and [event for event, _ in annotated], [Event(10.0, 20.0, "unsure")])
    candidates = list(one.judge("x.wav", found, near, annotated or [], recording))
    assert sorted(((own.reason, own.event.label, own.annotated) for own in candidates), key=str) == wanted
    assert all(0 <= own.worth <= 2 for own in candidates)


def test_a_label_with_many_annotations_is_not_rare():
    one, recording = suggester()
    one.counts["cat"] = FEW
    assert not list(one.judge("x.wav", [Event(4, 5, "cat", score=0.9)], [], [], recording))
    one, recording = suggester([CAT])
    one.counts["cat"] = 10**9
    (found,) = one.judge("x.wav", [dog(1, 2, 1.0)], [], [(CAT, 0.0)], recording)
    assert found.worth == 2  # that of the rarer label


def test_worth_follows_from_certainty_and_rarity():
    assert [certainty(score, 0.2) for score in (0.0, 0.1, 0.2, 0.6, 1.0)] == [-1, -0.5, 0, pytest.approx(0.5), 1]
    assert certainty(0.0, 0.0) == 0 and certainty(0.3, 0.0) == pytest.approx(0.3)
    assert worth_of("missing annotation", [1.0], 0) == 2 and worth_of("missing annotation", [1.0], FEW) == 1.5
    assert worth_of("other label", [-1.0, 0.5], 10**9) == 0.75
    assert worth_of("uncertain", [NEAR], 10**9) == 0 and worth_of("uncertain", [0.0], 10**9) == 0.5
    assert worth_of("rare", [1.0], 0) == 1


def test_the_best_come_first_and_are_not_all_alike():
    def some(count: int, recording: str, label: str, worth: float, step_s: float) -> list[Candidate]:
        events = [Event(step_s * index, step_s * index + 1, label) for index in range(count)]
        return [Candidate(recording, event, "uncertain", worth) for event in events]

    same_minute, same_label = some(30, "a", "owl", 1.0, 1.0), some(30, "b", "owl", 0.9, 60.0)
    others = some(30, "c", "jay", 0.1, 60.0)
    found = choose([*others, *same_label, *same_minute], 20)
    counts = {name: sum(one.recording == name for one in found) for name in "abc"}
    assert counts == {"a": 2, "b": 8, "c": 10}  # a tenth of a minute, a half of a label
    assert found == sorted(found, key=lambda one: one.order) and found[:2] == same_minute[:2]
    assert choose([*others, *same_label, *same_minute], 90) == [*same_minute, *same_label, *others]  # all of them
    assert len(choose(same_minute, 20)) == 20  # nothing else is left
    assert len(choose(same_minute, 1)) == 1


@given(
    st.lists(st.tuples(st.floats(0, 12), st.floats(0, 12)).map(sorted), max_size=5),
    st.integers(1, 40),
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from([(0.25, 0.25), (0.25, 1.0)]),
)
@example(times=[(1.2, 1.3)], num_steps=6, cuts=[3], step=(0.25, 1.0))  # in a step of the second part, near the first
@settings(max_examples=60, deadline=None)
def test_scores_of_stretches_equal_a_plain_loop_however_they_are_cut(times, num_steps, cuts, step):
    hop_s, window_s = step
    scores = np.random.default_rng(num_steps).random((num_steps, 2))
    starts_s = np.arange(num_steps) * hop_s
    ends_s, middles_s = starts_s + window_s, starts_s + window_s / 2
    found = Stretches(times, 2)
    for first, last in itertools.pairwise([0, *sorted(min(cut, num_steps) for cut in cuts), num_steps]):
        if last > first:
            found.add(scores[first:last], starts_s[first:last], ends_s[first:last])
    for place, (onset_s, offset_s) in enumerate(times):
        inside = [index for index in range(num_steps) if onset_s <= middles_s[index] <= offset_s]
        if not inside and onset_s <= ends_s[-1]:
            inside = [
                min(range(num_steps), key=lambda index: (abs(middles_s[index] - (onset_s + offset_s) / 2), index))
            ]
        assert found.count[place] == len(inside)
        if inside:
            np.testing.assert_allclose(found.highest[place], scores[inside].max(axis=0))
            np.testing.assert_allclose(found.mean[place], scores[inside].mean(axis=0))


# ---- tables and answers ----

GRID = st.integers(0, 118).map(lambda number: number * 0.05 + 0.0123456789)


@st.composite
def stories(draw):
    """Returns annotations, candidates, and for some of them an answer with its times."""
    annotated, candidates, answers = {}, [], {}
    for name in NAMES:
        spans = [sorted(pair) for pair in draw(st.lists(st.tuples(GRID, GRID), max_size=4))]
        labels = [draw(st.sampled_from(LABELS[:4])) for _ in spans]
        unique = {
            (round(span[0], 6), round(span[1], 6), label): Event(*span, label) for span, label in zip(spans, labels)
        }
        annotated[name] = list(unique.values()) if name != "z.wav" else None
        for event in annotated[name] or ():
            if draw(st.booleans()):
                label = draw(st.sampled_from([event.label, *LABELS[:4]]))
                candidates.append((name, event._replace(label=label, score=0.25), event))
        for span in draw(st.lists(st.tuples(GRID, GRID).map(sorted), max_size=2, unique_by=tuple)):
            candidates.append((name, Event(*span, draw(st.sampled_from(LABELS[:4])), score=0.5), None))
    made = {}
    for name, event, own in candidates:
        event = event._replace(onset_s=round(event.onset_s, 6), offset_s=round(event.offset_s, 6))
        made[name, key_of(event, own)] = Candidate(name, event, "uncertain", 0.5, own, 'x; "y", z')
    for place, one in made.items():
        answer = draw(st.sampled_from(["", "", "no", "Nothing", "kiwi", *LABELS, one.event.label, "yes", "Yes"]))
        times = (
            one.event[:2]
            if draw(st.booleans())
            else tuple(round(time, 3) for time in sorted(draw(st.tuples(GRID, GRID))))
        )
        if answer:
            answers[place] = answer, *times
    return annotated, list(made.values()), answers


def written(field, annotated) -> list[AnnotatedRecording]:
    return [
        AnnotatedRecording(field / name, DURATION_S, None if own is None else tuple(in_order(own)))
        for name, own in annotated.items()
    ]


ONSETS, OFFSETS = {"onset", "onset_s", "Begin Time (s)", "File Offset (s)"}, {"offset", "offset_s", "End Time (s)"}


def fill_in(path: Path, event_format: str, candidates: list, answers: dict, dropped: set, foreign: bool):
    """Writes answers into tables, as people do. foreign: with the decimal commas and line ends of a German Windows"""
    events = {(one.recording, key_of(one.event, one.annotated)): one.event for one in candidates}
    separator = "," if event_format == "csv" else "\t"
    quoting = csv.QUOTE_MINIMAL if event_format == "csv" else csv.QUOTE_NONE
    for table in [path] if path.is_file() else sorted(path.rglob("*.*")):
        rows = list(csv.reader(io.StringIO(table.read_text("utf-8")), delimiter=separator, quoting=quoting))
        header = ["onset", "offset", "text"] if event_format == "audacity" else rows.pop(0)
        kept = []
        for row in rows:
            cells = dict(zip(header, row))
            own = f"{table.relative_to(path).as_posix().split('.')[0]}.wav"  # of a table in a folder
            recording = cells.get("file") or cells.get("Begin Path") or own
            key = cells["text"][1:16] if "text" in cells else cells.get("candidate") or cells["Candidate"]
            if (recording, key) in dropped:
                continue
            if (recording, key) in answers:
                answer, *times = answers[recording, key]
                for names, time_s, old_s in zip((ONSETS, OFFSETS), times, events[recording, key]):
                    for name in names & set(cells):
                        cells[name] = str(round(float(cells[name]) + time_s - old_s, 6))
                if "text" in cells:
                    cells["text"] = f"{answer} {cells['text']}"
                else:
                    cells["review" if "review" in cells else "Review"] = answer
            if foreign:
                numbers = (ONSETS | OFFSETS | {"score", "Score", "worth", "Worth"}) & set(cells)
                cells |= {name: cells[name].replace(".", ",") for name in numbers}
            kept.append(list(cells.values()))
        rows = kept if event_format == "audacity" else [header, *kept]
        if event_format == "csv":
            output = io.StringIO(newline="")
            csv.writer(output, delimiter=";" if foreign else ",").writerows(rows)
            text = output.getvalue()
        else:
            text = "".join("\t".join(row) + ("\r\n" if foreign else "\n") for row in rows)
        table.write_bytes(text.encode("utf-16" if foreign else "utf-8"))


def plainly_merged(annotated: dict, candidates: list, answers: dict) -> dict:
    """The same without the program."""
    wanted = {name: None if own is None else list(own) for name, own in annotated.items()}
    for one in candidates:
        answer = answers.get((one.recording, key_of(one.event, one.annotated)))
        if answer is None:
            continue
        label, onset_s, offset_s = answer
        if wanted[one.recording] is None:
            wanted[one.recording] = []
        events = wanted[one.recording]
        if one.annotated is not None:
            events.remove(one.annotated)
        if label.casefold() not in ("no", "nothing"):
            label = one.event.label if label.casefold() == "yes" else label
            is_moved = one.annotated is None or (onset_s, offset_s) != one.event[:2]
            times = (onset_s, offset_s) if is_moved else one.annotated[:2]
            events.append(Event(*times, label))
    return wanted


def shape(events) -> set:
    return {(round(event.onset_s, 6), round(event.offset_s, 6), event.label) for event in events}


@pytest.mark.parametrize(("place", "event_format"), TABLES)
@given(story=stories(), drop=st.sets(st.integers(0, 9)), foreign=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_come_back_and_are_merged(tmp_path_factory, field, place, event_format, story, drop, foreign):
    annotated, candidates, answers = story
    path = tmp_path_factory.mktemp("tables") / place
    write_candidates(path, candidates, event_format, dict.fromkeys(sorted(NAMES), DURATION_S), 500.0)
    dropped = {(one.recording, key_of(one.event, one.annotated)) for n, one in enumerate(candidates) if n in drop}
    if not candidates:
        return
    fill_in(path, event_format, candidates, answers, dropped, foreign)
    answers = {place: answer for place, answer in answers.items() if place not in dropped}
    if len(dropped) == len(candidates) and event_format != "audacity":
        return
    found = read_answers(path, Recordings(field))
    assert {(one.recording.relative_to(field).as_posix(), one.key) for one in found} == {
        (one.recording, key_of(one.event, one.annotated)) for one in candidates
    } - dropped
    merged = merge(written(field, annotated), found)
    wanted = plainly_merged(annotated, candidates, answers)
    for one in merged.recordings:
        name = one.path.relative_to(field).as_posix()
        if wanted[name] is None:
            assert one.events is None
        elif annotated[name] is not None:
            assert shape(one.events) == shape(wanted[name])
        else:  # what no answer is about is unsure
            shown = [event for event in one.events if event.label != "unsure"]
            assert shape(shown) == {event for event in shape(wanted[name]) if event[2] != "unsure"}
            unsure = [event for event in one.events if event.label == "unsure"]
            spans = [(*times, answer) for (recording, _), (answer, *times) in answers.items() if recording == name]
            for middle_s in np.arange(0.026, DURATION_S, 0.05):  # beside the borders
                answered = [answer for onset_s, offset_s, answer in spans if onset_s < middle_s < offset_s]
                is_unsure = any(event.onset_s < middle_s < event.offset_s for event in unsure)
                near = [time for span in spans for time in span[:2] if abs(time - middle_s) < 0.02]
                assert near or is_unsure == (not answered or "unsure" in answered)
    assert sum(merged.counts.values()) == len(candidates) - len(dropped)
    assert merged.counts["not looked at"] == len(candidates) - len(dropped) - len(answers)
    assert set(merged.counts) <= set(merging.OUTCOMES)


CALLS = [Event(0.5, 1.0, "owl"), Event(2.0, 2.5, "jay"), Event(4.0, 4.5, "jay")]


@pytest.fixture
def desk(field, tmp_path):
    """A folder with annotations, a table of three candidates, and a function that merges the table after an edit."""
    write_events(tmp_path / "ann.csv", {"y.wav": CALLS, "night/x.wav": []})
    candidates = [
        Candidate("y.wav", CALLS[0]._replace(score=0.1), "not found", 1.5, CALLS[0], "owl: highest 0.10"),
        Candidate(
            "y.wav", CALLS[1]._replace(label="owl", score=0.9), "other label", 1.4, CALLS[1], "owl: highest 0.90"
        ),
        Candidate(
            "night/x.wav", Event(3.0, 3.5, "jay", score=0.8), "missing annotation", 1.3, None, "jay: highest 0.80"
        ),
    ]
    durations_s = dict.fromkeys(sorted(NAMES), DURATION_S)
    write_candidates(tmp_path / "t.csv", candidates, "csv", durations_s, 500.0)
    write_candidates(tmp_path / "t.txt", candidates, "raven", durations_s, 500.0)
    write_candidates(tmp_path / "tracks", candidates, "audacity", durations_s, 500.0)

    def merged(*answers: str, edit=lambda text: text, tables=("t.csv",), words=()) -> dict:
        lines = (tmp_path / "t.csv").read_text().splitlines()
        lines[1:] = [
            line.replace(f",,{reason},", f",{answer},{reason},")
            for line, answer, reason in itertools.zip_longest(lines[1:], answers, [one.reason for one in candidates])
        ]
        (tmp_path / "t.csv").write_text(edit("\n".join(lines).replace(",None,", ",,")))
        places = ["--annotations", tmp_path / "ann.csv", "--output", tmp_path / "merged.csv"]
        argv = list(map(str, ["merge", field, *(tmp_path / table for table in tables), *places, *words]))
        status = program.main(argv)
        output = [value for word, value in itertools.pairwise(argv) if word == "--output"][-1]
        return read_events(Path(output)) if status == 0 else {}

    merged.folder = tmp_path
    return merged


def test_answers_change_what_they_are_about(desk, capsys):
    found = desk("no", "owl", "jay", edit=lambda text: text.replace('2.0,2.5,"owl"', '2.1,2.5,"owl"'))
    assert shape(found["y.wav"]) == {(2.1, 2.5, "owl"), (4.0, 4.5, "jay")}
    assert shape(found["night/x.wav"]) == {(3.0, 3.5, "jay")}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 added, 1 removed, 1 renamed"
    assert lines[1].endswith("merged.csv: 3 events of 2 recordings")
    # Nothing is replaced unless it is asked for.
    assert desk() == {} and "is there already; name another output" in capsys.readouterr().err
    assert "owl" in {event.label for event in desk(words=["--overwrite", "true"])["y.wav"]}


def test_other_columns_of_a_recording_stay(desk, field, caplog):
    """The next training divides by the same sites."""
    text = 'name,onset,offset,label,place,"note, 2",empty,score\ny.wav,0.5,1,owl,"a ""pond"", 1",x,,\n'
    text += 'y.wav,2,2.5,jay,"a ""pond"", 1",y,,\ny.wav,4,4.5,jay,,,,\nnight/x.wav,,,,lake,,,\n'
    (desk.folder / "ann.csv").write_text(text)
    found = desk("no", "", "jay", words=["--audio_column", "name"])
    assert shape(found["y.wav"]) == {(2.0, 2.5, "jay"), (4.0, 4.5, "jay")} and len(found["night/x.wav"]) == 1
    recordings = read_annotations(desk.folder / "merged.csv", field, site="place")
    assert {one.path.name: one.site for one in recordings} == {"x.wav": "lake", "y.wav": 'a "pond", 1', "z.wav": None}
    assert (
        "merged.csv: 1 columns of the annotations are not kept: note, 2; a recording has several values" in caplog.text
    )
    desk(words=["--audio_column", "name", "--output", str(desk.folder / "merged.tsv")])
    assert "2 columns of the annotations are not kept: place, note, 2; name a .csv" in caplog.text


@pytest.mark.parametrize("annotations", [True, False])
def test_unreadable_recordings_that_nobody_annotated_are_left_out(desk, field, tmp_path, capsys, caplog, annotations):
    """As the search for candidates leaves them out; one with annotations or answers is an error."""
    own = tmp_path / "own"
    for name in ("night/x.wav", "y.wav"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(field / name)
    (own / "bad.wav").write_text("no sound")
    words = ["merge", own, tmp_path / "t.csv", "--output", tmp_path / "m.csv"]
    words += ["--annotations", tmp_path / "ann.csv"] if annotations else []
    assert program.main(list(map(str, words))) == 0 and "bad.wav" in caplog.text
    assert ("y.wav" in read_events(tmp_path / "m.csv")) == annotations
    (own / "y.wav").unlink()
    (own / "y.wav").write_text("no sound")
    assert program.main(list(map(str, [*words, "--overwrite", "true"]))) == 1
    assert "y.wav: " in capsys.readouterr().err.splitlines()[-1]


def test_what_is_not_looked_at_stays(desk, capsys):
    assert desk() == read_events(desk.folder / "ann.csv")
    assert capsys.readouterr().out.splitlines()[0] == "3 not looked at"


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (("owl",), "1 confirmed, 2 not looked at"),
        (("unsure", "unsure", "UNSURE"), "3 unsure"),
        (("", "", "nothing"), "1 no event, 2 not looked at"),
        (("", "kiwi", ""), "1 renamed, 2 not looked at"),
    ],
)
def test_every_answer_is_counted(desk, capsys, answers, wanted):
    found = desk(*answers)
    assert capsys.readouterr().out.splitlines()[0] == wanted
    labels = {event.label for events in found.values() for event in events}
    assert labels <= {"owl", "jay", "unsure", "kiwi"} and ("unsure" in labels) == ("unsure" in wanted)


def test_a_label_may_be_called_no(field):
    annotated = [AnnotatedRecording(field / "y.wav", DURATION_S, (Event(1.0, 2.0, "no"), Event(3.0, 4.0, "yes")))]
    events = Event(1.0, 2.0, "no"), Event(3.0, 4.0, "yes")
    for answers, wanted in (
        (("nothing", "no"), {(3.0, 4.0, "no")}),
        (("yes", ""), {(1.0, 2.0, "yes"), (3.0, 4.0, "yes")}),
    ):
        merged = merge(annotated, [answer_to(field, "y.wav", *row) for row in zip(events, answers)])
        assert shape(merged.recordings[0].events) == wanted


def test_yes_needs_a_label(field):
    one = answer_to(field, "y.wav", Event(3.0, 4.0, "owl"), "Yes")
    with pytest.raises(InputError, match="row says yes, but shows no label; write the label as its answer"):
        merge([AnnotatedRecording(field / "y.wav", DURATION_S, (Event(3.0, 4.0, "owl"),))], [one._replace(label=None)])


def answer_to(field, name: str, event: Event, answer: str) -> Answer:
    return Answer("row", field / name, key_of(event, event), answer, event.label, *event[:2])


def test_two_annotators(desk, field, capsys):
    other = desk.folder / "other.csv"
    other.write_text((desk.folder / "t.csv").read_text().replace(",,other label,", ",jay,other label,"))
    found = desk("", "", "no", tables=("t.csv", "other.csv"))
    assert capsys.readouterr().out.splitlines()[0] == "1 confirmed, 1 no event, 1 not looked at"
    assert found["y.wav"] == CALLS
    assert desk("", "owl", tables=("t.csv", "other.csv"), words=["--overwrite", "true"]) == {}
    error = capsys.readouterr().err.splitlines()[-1]
    assert "says jay, 2 to 2.5 s, and" in error and error.endswith("about the same candidate; agree on one answer")


def test_events_that_no_candidate_shows(desk, capsys, caplog):
    """A new row, and a new label of a track, which says so."""
    row = '"z.wav",1.0,2.0,"kiwi",,,,kiwi,,,,,,new'
    track = desk.folder / "tracks" / "night" / "x.txt"
    track.write_text(track.read_text().replace("#n", "no #n") + "5\t5.5\towl #new\n5.2\t5.4\t#new: perhaps\n")
    found = desk(edit=lambda text: f"{text}\n{row}", tables=("t.csv", "tracks"))
    assert shape(found["z.wav"]) == {(0.0, 1.0, "unsure"), (1.0, 2.0, "kiwi"), (2.0, 6.0, "unsure")}
    assert shape(found["night/x.wav"]) == {(5.0, 5.5, "owl")}
    assert capsys.readouterr().out.splitlines()[0] == "2 added, 1 no event, 3 not looked at"
    assert "what no answer is about is unsure there" in caplog.text


@pytest.mark.parametrize(
    ("answers", "edit", "message"),
    [
        (("no",), ("a", "b"), r"row 1 \(line 2\) has 'b\w+' as candidate; leave that column as it was"),
        (("no",), (",review,", ",notes,"), "has no columns candidate and review; name a table"),
        (("owl",), ("0.5,1.0,", "7.0,8.0,"), r"row 1 \(line 2\) begins at 7 s, after the end of its recording \(6 s\)"),
        (("owl",), ("0.5,1.0,", "0.5,8.0,"), r"row 1 \(line 2\) ends at 8 s, after the end of its recording \(6 s\)"),
        (("owl",), ("0.5,1.0,", "2.5,1.0,"), "ends at 1 s and begins at 2.5 s; exchange or correct them"),
        (("owl",), ("0.5,1.0,", "early,1.0,"), "has 'early' in onset_s, not a number of seconds"),
        (("owl",), ('"y.wav",0.5', '"q.wav",0.5'), "no recording of .* is called q.wav"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_tables_are_one_line(desk, capsys, answers, edit, message):
    """Nothing is written then."""
    old, new = edit
    if old == "a":  # of the key
        old, new = f",{key_of(CALLS[0], CALLS[0])}", f",b{key_of(CALLS[0], CALLS[0])[1:]}"
    found = desk(*answers, edit=lambda text: text.replace(old, new))
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: "), error
    assert re.search(message, error[0]), error[0]
    assert not found and not (desk.folder / "merged.csv").exists()


def test_an_answer_about_another_recording_is_not_lost(desk, field, capsys):
    """A table may name a recording that lies beside it."""
    shutil.copy(field / "y.wav", desk.folder / "q.wav")
    assert not desk("no", edit=lambda text: text.replace('"y.wav",0.5', '"q.wav",0.5'))
    error = capsys.readouterr().err
    assert re.search(r"t\.csv: row 1 \(line 2\) is about .*q\.wav, which is none of the recordings; name", error), error
    assert not (desk.folder / "merged.csv").exists()


@pytest.mark.parametrize("answer", ["no", "jay", ""])
def test_annotations_that_were_edited_in_between(desk, capsys, answer):
    write_events(desk.folder / "ann.csv", {"y.wav": [CALLS[0]._replace(onset_s=0.4), *CALLS[1:]], "night/x.wav": []})
    found = desk(answer)
    error = capsys.readouterr().err
    if answer:
        assert not found and "no longer have the event of candidate" in error and "suggest anew, or clear" in error
        assert "t.csv: row 1 (line 2): the annotations of" in error and error.count("\n") == 1
    else:  # nothing is to be done about it
        assert found == read_events(desk.folder / "ann.csv")


def test_an_event_that_was_added_by_hand_too(desk, capsys, caplog):
    write_events(desk.folder / "ann.csv", {"y.wav": CALLS, "night/x.wav": [Event(3.0, 3.5, "jay")]})
    assert len(desk("", "", "jay")["night/x.wav"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "1 already there, 2 not looked at"
    write_events(desk.folder / "ann.csv", {"y.wav": CALLS, "night/x.wav": [Event(2.9, 3.4, "jay")]})
    assert len(desk(words=["--overwrite", "true"])["night/x.wav"]) == 2
    assert "1 changed events overlap others of their label, the first is jay at 3 s of" in caplog.text


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (('1.0,"owl"', '1.0,"jay"'), "1 candidates have another label or other times, but no answer"),
        (("0.5,1.0", "0.5,1.2"), "1 candidates have another label or other times, but no answer"),
        (("3.0,3.5", "3.1,3.5"), "1 candidates have another label or other times, but no answer"),
        ((",,not found", ",owll,not found"), "1 answers are labels that neither annotations nor"),
        ((",,not found", ",owll,not found"), "did you mean owl?"),
    ],
    ids=str,
)  # fmt: skip
def test_what_may_be_a_mistake_is_one_line(desk, caplog, edit, message):
    assert desk(edit=lambda text: text.replace(*edit))
    assert message in caplog.text


def test_a_label_track_without_its_candidate(desk, capsys):
    track = desk.folder / "tracks" / "y.txt"
    track.write_text(track.read_text().replace("#", ""))
    assert not desk(tables=["tracks"])
    assert re.search(r"y.txt: line 1 names no candidate, such as #a\w+; leave that behind", capsys.readouterr().err)


def test_merges_go_where_they_can_be_read(desk, field, capsys):
    (desk.folder / "in").mkdir()
    (desk.folder / "ann.csv").rename(desk.folder / "in" / "ann.csv")
    inside = ["--annotations", desk.folder / "in", "--output", desk.folder / "in" / "merged.csv"]
    for words, message in (
        (inside, "where all tables are read as annotations; name a place outside"),
        ([*inside[:3], desk.folder / "m.txt"], "Raven's table cannot hold the 1 recordings without events, such as"),
        ([*inside[:3], desk.folder / "m", "--event_format", "midi"], "event_format: must be raven"),
    ):  # fmt: skip
        assert not desk(words=words)
        assert message in capsys.readouterr().err
    desk(words=[*inside[:3], desk.folder / "m"])
    found = {one.path.name: one.events for one in read_annotations(desk.folder / "m", field)}
    assert found["x.wav"] == () and found["z.wav"] is None and shape(found["y.wav"]) == shape(CALLS)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="crowsetta needs Python 3.11")
def test_other_readers_open_the_tables(desk):
    """The columns beside Raven's own disturb nobody."""
    raven = importlib.import_module("crowsetta").formats.by_name("raven")
    boxes = raven.from_file(desk.folder / "t.txt").to_bbox()
    assert [(box.onset, box.offset, box.label) for box in boxes] == [
        (6.5, 7.0, "owl"),
        (8.0, 8.5, "owl"),
        (3.0, 3.5, "jay"),
    ]
    wanted = {"y.wav": {(0.5, 1.0, "owl"), (2.0, 2.5, "owl")}, "night/x.wav": {(3.0, 3.5, "jay")}}
    for table in ("t.txt", "t.csv"):
        assert {name: shape(own) for name, own in read_events(desk.folder / table).items()} == wanted


# ---- the program ----


@pytest.mark.parametrize(("onset_s", "seconds"), [(0.0, 0.025), (1.0, 0.05), (DURATION_S, 0.025)])
def test_events_without_duration_have_clips(field, tmp_path, onset_s, seconds):
    recording = AnnotatedRecording(field / "y.wav", DURATION_S, ())
    write_clip(tmp_path / "clip.wav", recording, Event(onset_s, onset_s, "owl"), margin_s=0.0)
    assert soundfile.info(tmp_path / "clip.wav").frames == round(seconds * 1000)


@pytest.fixture(scope="module", params=["frames", "clips"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    if request.param == "frames":
        return save_tiny_detector(folder, scale=1.0)
    return save_tiny_classifier(folder, ("owl", "wren"), problem_type="multi_label_classification")


def test_candidates_are_the_same_in_every_format(model, tmp_path, capsys, caplog):
    """And those of rare labels are what predict_hf.py finds; clips hold what the links say."""
    for name, samples in (("a/x.wav", long_tones()), ("y.wav", long_tones()[::-1])):
        (tmp_path / "field" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "field" / name, samples, RATE)
    (tmp_path / "field" / "bad.wav").write_text("no sound")
    owls = [Event(place * 0.5, place * 0.5 + 0.2, "owl") for place in range(10)]
    write_events(tmp_path / "ann.csv", {"a/x.wav": [*owls, Event(1.0, 1.2, "robin")]})
    windows = ["--window_s", 0.4, "--hop_s", 0.1]

    def run(*words) -> int:
        places = [model, tmp_path / "field", "--annotations", tmp_path / "ann.csv", *windows]
        return program.main(list(map(str, [*places, *words])))

    assert run("--output", tmp_path / "t.csv", "--clips", tmp_path / "clips", "--margin_s", 0.25) == 0
    assert "1 events have labels that the model lacks, and are not judged, such as robin" in caplog.text
    assert "1 recordings cannot be read and are left out" in caplog.text
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert f"t.csv: {len(rows)} candidates" in capsys.readouterr().out and rows
    assert [float(row["worth"]) for row in rows] == sorted((float(row["worth"]) for row in rows), reverse=True)
    for row in rows:
        samples, _ = soundfile.read(tmp_path / row["clip"], dtype="float32")
        whole, _ = soundfile.read(tmp_path / "field" / row["file"], dtype="float32")
        start, stop = (round(float(row[name]) * RATE) for name in ("onset_s", "offset_s"))
        np.testing.assert_array_equal(samples, whole[max(start - RATE // 4, 0) : stop + RATE // 4])
        assert row["label"] in row["evidence"] and "threshold" in row["evidence"]
    keys = {(row["file"], row["candidate"]) for row in rows}
    places = Recordings(tmp_path / "field")
    for words in (["t.txt"], ["tables"], ["tracks", "--event_format", "audacity"]):
        assert run("--output", tmp_path / words[0], *words[1:]) == 0
        found = read_answers(tmp_path / words[0], places)
        assert {(one.recording.relative_to(tmp_path / "field").as_posix(), one.key) for one in found} == keys

    table, words = tmp_path / "e.csv", ["--events", tmp_path / "e.csv", *windows]
    assert predict_hf.main(list(map(str, [model, tmp_path / "field" / "y.wav", *words]))) == 0
    wrens = {event[:2] for event in next(iter(read_events(table).values())) if event.label == "wren"}
    seen = [row for row in rows if row["file"] == "y.wav" and row["label"] == "wren"]
    assert wrens
    rare = {(float(row["onset_s"]), float(row["offset_s"])) for row in seen if row["reason"] == "rare"}
    assert rare <= wrens <= {(float(row["onset_s"]), float(row["offset_s"])) for row in seen}

    # A table may hold somebody's work. One that is replaced leaves none of another recording.
    assert run("--output", tmp_path / "tables") == 1
    assert run("--output", tmp_path / "tables", "--overwrite", "true", "--limit", 1) == 0
    assert len(list((tmp_path / "tables").rglob("*.txt"))) == 1
    assert run("--output", tmp_path / "t.csv") == 1 and "is there already" in capsys.readouterr().err
    assert run("--output", tmp_path / "t.csv", "--overwrite", "true", "--limit", 1) == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 2
    assert not list(tmp_path.glob("*.shards"))


def test_mapped_labels_and_skipped_recordings(tmp_path, capsys):
    """The keys of candidates are those of the mapped labels, on both ways."""
    model, field = save_tiny_detector(tmp_path / "model", scale=1.0), tmp_path / "field"
    field.mkdir()
    for name in ("x.wav", "y.wav"):
        soundfile.write(field / name, long_tones(), RATE)
    wrens = [Event(place * 0.4, place * 0.4 + 0.1, "Troglodytes") for place in range(12)]
    write_events(tmp_path / "ann.csv", {"x.wav": [*wrens, Event(3.0, 3.1, "noise")]})
    words = [field, "--annotations", tmp_path / "ann.csv", "--label_map", '{"Troglodytes": "wren", "noise": null}']

    def run(*more) -> int:
        return program.main(list(map(str, more)))

    assert run(model, *words, "--output", tmp_path / "t.csv", "--unannotated", "skip", "--threshold", 0.99) == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert {row["file"] for row in rows} == {"x.wav"} and "wren" in {row["annotated"] for row in rows}
    for row in rows:
        row["review"] = "no" if row["annotated"] == "wren" else ""
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert run("merge", *words[:1], tmp_path / "t.csv", *words[1:], "--output", tmp_path / "m.csv") == 0
    wanted = shape(event._replace(label="wren") for event in wrens)
    wanted -= {(float(row["onset_s"]), float(row["offset_s"]), "wren") for row in rows if row["annotated"]}
    assert {name: shape(own) for name, own in read_events(tmp_path / "m.csv").items()} == {"x.wav": wanted}
    assert run("merge", *words[:1], tmp_path / "t.csv", *words[1:3], "--output", tmp_path / "n.csv") == 1
    assert "no longer have the event of candidate" in capsys.readouterr().err
    # Nobody's annotations are replaced by candidates.
    assert run(model, *words, "--output", tmp_path / "ann.csv", "--overwrite", "true") == 1
    assert "ann.csv: holds the annotations; name another output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: python -m training.review MODEL RECORDINGS"),
        (["merge", "x"], "usage: python -m training.review merge RECORDINGS TABLE"),
        (["m", "FIELD", "--output", "t.json"], "candidates are .csv or .txt, or a folder of tables; name another file"),
        (["m", "FIELD", "--limit", "0"], "limit: must be"),
        (["m", "FIELD", "--output", "OUT/t.csv", "--clips", "FIELD/clips"], "clips: its clips would be recordings of"),
        (["m", "FIELD", "--annotations", "OUT", "--output", "OUT/t.csv"], "holds no tables of events"),
        (["m", "FIELD", "--annotations", "none.csv"], "none.csv: no such file"),
        (["m", "FIELD/none", "--output", "OUT/t.csv"], "none"),
        (["m", "FIELD", "--output", "OUT/none/t.csv"], "does not exist; make it or name another file"),
        (["merge", "FIELD", "none.csv", "--output", "OUT/m.csv"], "none.csv: no such file"),
    ],
)
def test_bad_words_are_one_line(field, tmp_path, capsys, words, message):
    words = [word.replace("FIELD", str(field)).replace("OUT", str(tmp_path)) for word in words]
    assert program.main(words) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
