"""Tests which candidates are found, in what order, and that answers come back from every format and are merged."""

import csv
import dataclasses
import importlib
import io
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from audio_files import write_tone
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_detectors import long_tones, save_tiny_detector
from tiny_models import save_tiny_classifier

import predict_hf
from training.data.annotations import AnnotatedRecording
from training.data.events import Event, Recordings, in_order, read_events, write_events
from training.data.labels import LabelSet
from training.errors import InputError
from training.review import __main__ as program
from training.review import merging
from training.review.candidates import FEW, NEAR, Candidate, Stretches, Suggester, certainty, choose, worth_of
from training.review.merging import merge
from training.review.tables import key_of, read_answers, write_candidates

RATE = 16000
DURATION_S = 6.0
NAMES = ("night/x.wav", "y.wav", "z.wav")  # the last one is not annotated
LABELS = ("owl", "Strix aluco", 'a "#1"; 2,5', "größe", "unsure")
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


CAT, DOG = Event(1.0, 2.0, "cat"), Event(1.0, 2.0, "dog")


@pytest.mark.parametrize(
    ("annotated", "found", "near", "wanted"),
    [
        ([(CAT, 0.9)], [Event(1.1, 1.9, "cat", score=0.9)], [], []),  # they agree, whatever the times
        ([(CAT, 0.1)], [], [], [("not found", "cat", CAT)]),
        ([(CAT, 0.1)], [Event(1.2, 2.2, "dog", score=0.9)], [], [("other label", "dog", CAT)]),
        ([(CAT, 0.1)], [Event(1.8, 5.0, "dog", score=0.9)], [], [("missing annotation", "dog", None), ("not found", "cat", CAT)]),
        ([(CAT, 0.1), (DOG, 0.9)], [DOG._replace(score=0.9)], [], [("not found", "cat", CAT)]),  # the dog is another
        ([(CAT, 0.6)], [], [], [("uncertain", "cat", CAT)]),
        ([(CAT, 0.4)], [Event(1, 2, "dog", score=0.9)], [], [("missing annotation", "dog", None), ("uncertain", "cat", CAT)]),
        ([(CAT, 0.9)], [Event(4, 5, "cat", score=0.9)], [], [("missing annotation", "cat", None)]),
        ([(CAT, 0.9)], [Event(4, 5, "cat", score=0.6)], [], [("uncertain", "cat", None)]),
        ([(CAT, 0.9)], [], [Event(4, 5, "cat", score=0.4), Event(1.5, 3, "cat", score=0.4)], [("uncertain", "cat", None)]),
        ([(CAT, 0.9)], [Event(4, 5, "dog", score=0.9)], [Event(3, 6, "dog", score=0.9)], [("missing annotation", "dog", None)]),
        ([(CAT, 0.9)], [Event(10.2, 11, "cat", score=0.9)], [], []),  # unsure from 10 s on
        ([(Event(1.0, 1.0, "cat"), 0.1)], [Event(0, 3, "dog", score=0.9)], [], [("other label", "dog", Event(1.0, 1.0, "cat"))]),
        (None, [Event(4, 5, "cat", score=0.9), Event(6, 7, "cat", score=0.6)], [], [("rare", "cat", None), ("uncertain", "cat", None)]),
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
        answer = draw(st.sampled_from(["", "", "no", "Nothing", "kiwi", *LABELS, one.event.label, one.event.label]))
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
