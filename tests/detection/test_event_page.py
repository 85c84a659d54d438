"""Tests the page about found events: its counts are those of the metrics, its sounds those of the recordings."""

import base64
import html.parser
import io
import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from annotated_tones import write_annotated_tones
from audio_files import tone, write_tone
from pages import check_page
from random_events import random_annotations
from tiny_runs import TINY_DETECTION

import train_hf
from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor
from training import tasks
from training.base import detection_scores
from training.base.detection_scores import event_metrics
from training.data.events import Event, write_events
from training.detection import html_report
from training.detection import report as reporting
from training.detection import train as detection
from training.detection.html_report import Findings, hardest_parts, write_report
from training.detection.metrics import find_all, score_events
from training.detection.plots import threshold_curve
from training.detection.recordings import Stretch
from training.detection.verdicts import ALARM, MISSED, NOTHING, RIGHT, UNSCORED, confusion_in_time, judge

pytestmark = pytest.mark.figures

RATE = 16000
ODD = ('<b>&"low"</b>', "it's 100% $x$", "nothing", "a\u202eb")


class Page(html.parser.HTMLParser):
    """Collects what a page shows: timelines, bars by class, errors by kind, sounds, and texts."""

    def __init__(self, text: str):
        super().__init__()
        self.timelines, self.bars, self.errors, self.sounds, self.texts, self.tags = 0, [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        self.tags.append(tag)
        self.timelines += "timeline" in classes
        if "bar" in classes and "title" in attributes:  # not those of the legend
            self.bars.append((*classes[1:], attributes["title"]))
        if "error" in classes and "data-kind" in attributes:
            self.errors.append(attributes["data-kind"])
        if tag == "audio":
            self.sounds.append(base64.b64decode(attributes["src"].split(",")[1]))

    def handle_data(self, data):
        self.texts.append(data)


def findings_of(tmp_path, annotated: dict, found: dict, seconds: float = 6.0, unsure: dict | None = None, **settings):
    """Recordings of noise, each with what is annotated and found."""
    stretches, rng = [], np.random.default_rng(0)
    for name in annotated:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * RATE)), RATE, "PCM_16", format="WAV")
        others = tuple((unsure or {}).get(name, ()))
        stretches.append(Stretch(str(path), str(path), seconds, tuple(annotated[name]), others))
    labels = sorted({event.label for side in (annotated, found) for own in side.values() for event in own})
    return Findings(stretches, labels or ["dog"], [found[name] for name in annotated], 0.2, **settings)


def page_of(tmp_path, findings: Findings | None, most_parts: int = 100) -> tuple[Page, dict]:
    results = {"metrics": {}, "recordings": {}, "labels": []}
    if findings is not None:
        scored = score_events(findings.found, findings.stretches, findings.labels, findings.collar_s)
        results = {
            "metrics": {"test": scored["metrics"]},
            "recordings": {"test": len(findings.stretches)},
            "labels": list(findings.labels),
            "confidence_intervals": None,
            "per_class": scored["per_class"],
        }
    write_report(tmp_path, "run", results, findings, most_parts)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8")), results


def random_findings(tmp_path, seed: int, labels=("bird", "dog"), **settings) -> Findings:
    rng, names = np.random.default_rng(seed), [f"{index}.wav" for index in range(4)]
    durations = dict.fromkeys(names, 6.0)
    annotated = random_annotations(rng, durations, labels)
    return findings_of(tmp_path, annotated, random_annotations(rng, durations, labels, near=annotated), **settings)


# ---- Verdicts ----


@pytest.mark.parametrize("seed", range(5))
def test_verdicts_are_counted_as_the_metrics_count(tmp_path, seed):
    findings = random_findings(tmp_path, seed)
    names = [one.name for one in findings.stretches]
    metrics = event_metrics(
        dict(zip(names, findings.found)),
        {one.name: one.events for one in findings.stretches},
        dict.fromkeys(names, 6.0),
        findings.labels,
        num_resamples=0,
    )
    for label, own in metrics["per_class"].items():
        verdicts = [
            (one.is_annotated, one.verdict) for judged in findings.judged for one in judged if one.event.label == label
        ]
        right = verdicts.count((True, RIGHT))
        assert right == verdicts.count((False, RIGHT))
        assert own["annotated_events"] == right + verdicts.count((True, MISSED))
        assert own["predicted_events"] == right + verdicts.count((False, ALARM))
        if own["annotated_events"]:
            assert own["event_recall"] == pytest.approx(right / own["annotated_events"])


def test_what_is_found_where_nobody_knows_is_not_scored():
    stretch = Stretch("x.wav", "x.wav", 9.0, (Event(1, 2, "dog"),), (Event(4, 6, "?"),))
    found = [Event(1.1, 2, "dog"), Event(4.5, 5, "dog"), Event(5.5, 8, "dog")]
    verdicts = [(one.event.onset_s, one.verdict) for one in judge(found, stretch, 0.2, 0.2)]
    assert verdicts == [(1, RIGHT), (1.1, RIGHT), (4.5, UNSCORED), (5.5, ALARM)]


@pytest.mark.parametrize(
    ("annotated", "found", "cells"),
    [
        ([Event(0, 4, "a")], [Event(1, 3, "a")], {("a", "a"): 2, ("a", NOTHING): 2}),
        ([Event(0, 4, "a")], [Event(1, 3, "b")], {("a", "b"): 2, ("a", NOTHING): 2}),
        ([], [Event(1, 3, "b")], {(NOTHING, "b"): 2}),
        ([Event(0, 4, "a")], [Event(0, 4, "a"), Event(0, 1, "b")], {("a", "a"): 4, (NOTHING, "b"): 1}),
        ([Event(0, 4, "a")], [Event(0, 4, "b"), Event(0, 4, "c")], {("a", "b"): 2, ("a", "c"): 2}),
        ([Event(0, 4, "a"), Event(0, 4, "b")], [Event(0, 4, "b")], {("b", "b"): 4, ("a", NOTHING): 4}),
        ([Event(0, 9, "a")], [], {("a", NOTHING): 7}),  # but for what is unsure
        ([Event(2, 2, "a")], [Event(3, 3, "b")], {}),
        ([], [], {}),
    ],
)
def test_confusion_in_time_by_hand(annotated, found, cells):
    stretch = Stretch("x", "x", 9.0, tuple(annotated), (Event(7, 9, "?"),))
    table = confusion_in_time([found], [stretch], ["a", "b", "c"])
    assert {pair: value for pair, value in table.stack().items() if value} == pytest.approx(cells)


@pytest.mark.parametrize("seed", range(3))
def test_a_row_of_the_confusion_has_the_seconds_of_its_label(tmp_path, seed):
    findings = random_findings(tmp_path, seed, labels=("x", "y", "z"))
    table = confusion_in_time(findings.found, findings.stretches, findings.labels)
    for label in findings.labels:
        events = [event for one in findings.stretches for event in one.events if event.label == label]
        assert table.loc[label].sum() == pytest.approx(sum(event.offset_s - event.onset_s for event in events))


def test_the_curves_hold_the_metrics_at_the_threshold(tmp_path):
    """With a filter and a second threshold; the chosen one is none of the usual ones."""
    findings = random_findings(tmp_path, 0)
    rng, settings = np.random.default_rng(1), {"high": [0.52, 0.61], "low": [0.3, 0.61], "median_steps": [3, 1]}
    settings |= {"max_gap_s": [0.1, 0.0], "min_duration_s": [0.0, 0.3]}
    edges = [np.linspace(0, 6, 121)] * 4
    scores = [np.apply_along_axis(np.convolve, 0, rng.random((120, 2)), np.ones(9) / 9, mode="same") for _ in range(4)]
    found = find_all(scores, edges, findings.labels, settings)
    own = score_events(found, findings.stretches, findings.labels, 0.2)["per_class"]
    for place, label in enumerate(findings.labels):
        one = {name: values[place] for name, values in settings.items()}
        curve = threshold_curve([s[:, place] for s in scores], edges, findings.stretches, label, one, 0.2)
        at = int(np.flatnonzero(curve["threshold"] == one["high"])[0])
        assert own[label]["predicted_events"] > 0
        for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1")):
            assert curve[name][at] == pytest.approx(own[label][f"event_{key}"])


# ---- The page ----


@pytest.mark.parametrize("seed", range(2))
def test_the_page_shows_what_the_metrics_count(tmp_path, seed):
    findings = random_findings(tmp_path, seed)
    page, results = page_of(tmp_path, findings)
    judged = [one for own in findings.judged for one in own]
    metrics = results["metrics"]["test"]
    num_wanted = sum(own["annotated_events"] for own in results["per_class"].values())
    num_found = sum(own["predicted_events"] for own in results["per_class"].values())
    right = round(metrics["event_recall_micro"] * num_wanted)
    assert page.errors.count("missed") == num_wanted - right > 0
    assert page.errors.count("false alarm") == num_found - right > 0
    assert len(page.sounds) == len(page.errors)
    assert page.timelines == sum(any(own) for own in findings.judged)
    assert len(page.bars) == len(judged)
    assert [verdict for _, verdict, _ in page.bars].count("missed") == page.errors.count("missed")


def test_the_hardest_come_first_and_the_others_are_counted(tmp_path):
    many = [Event(t, t + 0.4, "dog") for t in (1.0, 2.0, 3.0)]
    findings = findings_of(
        tmp_path, {"a.wav": many[:1], "b.wav": many, "c.wav": []}, dict.fromkeys(("a.wav", "b.wav", "c.wav"), ())
    )
    page, _ = page_of(tmp_path, findings, most_parts=1)
    assert page.timelines == 1 and page.errors == ["missed"] * 3
    text = " ".join("".join(page.texts).split())
    assert "1 of the 2 parts of recordings with events" in text
    assert "They have 3 of 4 missed events and 0 of 0 false alarms" in text
    assert "b.wav" in text and "a.wav" not in text
    none, _ = page_of(tmp_path, findings, most_parts=0)
    assert none.timelines == 0 and "None of the 2 parts" in "".join(none.texts)


def test_sounds_are_those_of_the_recording_with_a_margin(tmp_path):
    """At the beginning and the end of a recording the margin is shorter; a long sound is cut."""
    times = [(0.2, 1.0), (3.0, 3.5), (5.8, 6.0)]
    findings = findings_of(tmp_path, {"a.wav": [Event(*time, "dog") for time in times]}, {"a.wav": []})
    page, _ = page_of(tmp_path, findings)
    recording, _ = soundfile.read(tmp_path / "a.wav")
    for (onset_s, offset_s), sound in zip(times, page.sounds):
        samples, rate = soundfile.read(io.BytesIO(sound))
        begin, end = max(onset_s - 0.5, 0), min(offset_s + 0.5, 6)
        expected = recording[round(begin * RATE) : round(end * RATE)]
        assert rate == RATE and len(samples) == pytest.approx(len(expected), abs=2)
        length = min(len(samples), len(expected))
        assert np.corrcoef(samples[:length], expected[:length])[0, 1] > 0.9  # MP3 of white noise
    findings = findings_of(tmp_path, {"a.wav": [Event(1, 19, "dog")]}, {"a.wav": []}, seconds=20.0)
    (sound,) = page_of(tmp_path, findings)[0].sounds
    assert soundfile.info(io.BytesIO(sound)).duration == pytest.approx(html_report.SOUND_S, abs=0.01)


def test_only_what_is_shown_is_decoded(tmp_path, monkeypatch):
    events = [Event(500.0, 501.0, "dog"), Event(502.0, 503.0, "dog")]
    findings = findings_of(tmp_path, {"a.wav": [*events, Event(30, 31, "dog")]}, {"a.wav": []}, seconds=605.0)
    spans, read = [], html_report.read_stretch

    def spy(source, rate, start, stop):
        spans.append((start / rate, stop / rate))
        return read(source, rate, start, stop)

    monkeypatch.setattr(html_report, "read_stretch", spy)
    page, _ = page_of(tmp_path, findings, most_parts=1)
    assert page.timelines == 1 and len(page.sounds) == 2
    ((begin, end),) = spans
    assert 484 <= begin < 499 and 503 < end <= 561
    text = "".join(page.texts)
    assert "0:08:20.00 to 0:08:21.00" in text and "0:08:30" in text


def test_a_page_has_a_largest_size(tmp_path, monkeypatch):
    events = [Event(t, t + 0.05, "dog") for t in np.arange(0.5, 5.5, 0.1)]
    findings = findings_of(tmp_path, {"a.wav": events}, {"a.wav": []})
    monkeypatch.setattr(html_report, "MOST_SOUND_BYTES", 100_000)
    page, _ = page_of(tmp_path, findings)
    assert len(page.errors) == html_report.MOST_LISTED < len(events)
    assert 0 < len(page.sounds) < html_report.MOST_LISTED and sum(map(len, page.sounds)) <= 75_000
    text = "".join(page.texts)
    assert f"{html_report.MOST_LISTED - len(page.sounds)} of them have none" in text and "and 10 more" in text


def test_odd_names_are_texts(tmp_path):
    names = ["sub/<i> & 'so' \"#?%41.wav", "sub/$x$ {{ 7 * 7 }} <script>alert(1)<script>.wav"]
    annotated = {name: [Event(i + 0.5, i + 1, label) for i, label in enumerate(ODD)] for name in names}
    page, _ = page_of(tmp_path, findings_of(tmp_path, annotated, dict.fromkeys(names, ())))
    plain = {
        new: [event._replace(label=str(i)) for i, event in enumerate(annotated[old])] for old, new in zip(names, "xy")
    }
    plain, _ = page_of(tmp_path / "plain", findings_of(tmp_path / "plain", plain, {"x": (), "y": ()}))
    assert page.tags == plain.tags and page.errors == plain.errors
    assert {*ODD[:3], "a\\u202eb"} <= {text.strip() for text in page.texts}
    assert {name.partition("/")[2] for name in names} <= set(page.texts)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "\u202e" not in text and text.count("<script>") == 1


def test_a_missing_recording_costs_its_picture_alone(tmp_path, caplog):
    events = {"a.wav": [Event(1, 2, "dog")], "b.wav": [Event(1, 2, "dog")]}
    findings = findings_of(tmp_path, events, dict.fromkeys(events, ()))
    (tmp_path / "a.wav").unlink()
    with caplog.at_level(logging.WARNING):
        page, _ = page_of(tmp_path, findings)
    assert page.timelines == 2 and len(page.errors) == 2 and len(page.sounds) == 1 and page.tags.count("img") == 1
    assert "".join(page.texts).count("could not be read again") == 1
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]


@pytest.mark.parametrize("unsure", [{}, {"a.wav": [Event(1.0, 5.0, "?")]}])
def test_recordings_without_events(tmp_path, unsure):
    findings = findings_of(tmp_path, {"a.wav": [], "b.wav": []}, {"a.wav": [], "b.wav": []}, unsure=unsure)
    page, _ = page_of(tmp_path, findings)
    assert page.timelines == 0 and "No recording has an event" in "".join(page.texts)
    html_report.draw_figures(tmp_path, findings)
    assert (tmp_path / "confusion_in_time.png").exists()


def test_unsure_stretches_are_shown(tmp_path):
    unsure = {"a.wav": [Event(3.0, 4.5, "?")]}
    findings = findings_of(tmp_path, {"a.wav": [Event(0, 1, "dog")]}, {"a.wav": [Event(3, 4, "dog")]}, unsure=unsure)
    page, _ = page_of(tmp_path, findings)
    assert [bar[1] for bar in page.bars] == ["missed", "not_scored"] and page.errors == ["missed"]
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r'class="unsure" style="left: (\S+)%; width: (\S+)%"', text) == [("50.000", "25.000")]


@pytest.mark.parametrize(("seconds", "expected"), [(59.9, 1), (60.0, 1), (60.1, 2), (36000.0, 600)])
def test_parts_are_equal_and_of_a_minute_at_most(seconds, expected):
    events = tuple(Event(t, t + 0.5, "dog") for t in np.arange(0, seconds - 1, seconds / 2000))
    parts = hardest_parts(Findings([Stretch("x", "x", seconds, events)], ["dog"], [()], 0.2))
    assert len(parts) == expected and sum(len(part.judged) for part in parts) == len(events)
    assert all(part.end_s - part.start_s <= 60 for part in parts)


def test_a_part_of_a_recording_has_the_times_of_the_whole(tmp_path):
    write_tone(tmp_path / "a.wav", seconds=30.0)
    source = {"path": str(tmp_path / "a.wav"), "start": 20.0, "end": 30.0}
    stretch = Stretch(source, "a.wav#t=20,30", 10.0, (Event(2.0, 3.0, "dog"),))
    page, _ = page_of(tmp_path, Findings([stretch], ["dog"], [[]], 0.2, extractor=DualSSASTFeatureExtractor()))
    assert any("dog: 22.00 to 23.00 s, annotated, missed" in title for *_, title in page.bars)
    assert soundfile.info(io.BytesIO(page.sounds[0])).duration == pytest.approx(2.0, abs=0.01)
    assert "a.wav" in page.texts and "20 to 30 s" in "".join(page.texts)


# ---- Programs ----

TINY = TINY_DETECTION | {
    "time_stride": 8,
    "crops_per_epoch": 8,
    "max_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "figure_format": "svg",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains for a step; returns the output folder."""
    tones = write_annotated_tones(tmp_path_factory.mktemp("tones"))

    def run(**values):
        folder = tmp_path_factory.mktemp("run")
        recipe = TINY | {"train_annotations": str(tones), "output_dir": str(folder / "out")} | values
        (folder / "recipe.json").write_text(json.dumps(recipe))
        _, *parts = tasks.parse([str(folder / "recipe.json")])
        detection.run(*parts)
        return folder / "out"

    return run


@pytest.mark.parametrize("number", [1, 2])
def test_the_stated_resamples_are_those_of_all_metrics(tmp_path, monkeypatch, number):
    """Many scores get fewer for the metrics without thresholds; one recording has none."""
    drawn, score = [], reporting.score_events
    monkeypatch.setattr(detection_scores, "resamples_for", lambda num_scores: 7)
    monkeypatch.setattr(reporting, "score_events", lambda *parts: drawn.append(parts[-1]) or score(*parts))
    stretches = [Stretch("x.wav", f"{place}.wav", 2.0, (Event(0.5, 1.0, "a"),)) for place in range(number)]
    scores, edges_s = np.linspace(0, 1, 20)[:, None], np.arange(21) / 10
    dataset = SimpleNamespace(
        labels=SimpleNamespace(names=("a",)),
        stretches=stretches,
        edges_s=lambda index: edges_s,
        known_scores=lambda scores: {one.name: (own, edges_s) for one, own in zip(stretches, scores)},
        feature_extractor=SimpleNamespace(sampling_rate=RATE),
    )
    trainer = SimpleNamespace(
        scores_of=lambda *parts: [scores] * number,
        model=SimpleNamespace(config=DualSSASTConfig(num_labels=1)),
        collar_s=0.2,
    )
    _, found = reporting.write_split(trainer, dataset, SimpleNamespace(predictions=None), tmp_path)
    intervals = found["confidence_intervals"]
    assert (intervals and intervals["resamples"]) == (7 if number > 1 else None) and drawn == [7 if number > 1 else 0]


def test_a_training_ends_with_its_page(trained):
    output = trained(report_clips=1)
    results = json.loads((output / "results.json").read_text())
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    figures = {"learning_curves", "threshold_curves", "confusion_in_time"}
    assert {path.stem for path in output.glob("*.png")} == {path.stem for path in output.glob("*.svg")} == figures
    assert page.timelines == 1 and page.tags.count("img") == 4
    text = "".join(page.texts)
    for name in ("event_f1_macro", "psds1", "frame_mean_average_precision"):
        assert f"{results['metrics']['test'][name]:.3f}" in page.texts
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "was chosen on the validation split for the event F1;" in card
    assert "chosen on the validation split." in text and f"{results['metrics']['validation']['loss']:.3f}" in text
    assert set(results["labels"]) <= set(page.texts) and "Post-processing" in text
    assert "://" not in re.sub('base64,[^"]+', "", (output / "report.html").read_text())


def test_card_and_page_claim_no_choice_that_was_not_made(trained, monkeypatch):
    by_hand = {"high": 0.5, "low": 0.2, "median_steps": 9, "max_gap_s": 0.1, "min_duration_s": 0.3}
    sizes, written = TINY["config_overrides"] | {"event_detection": by_hand}, []
    monkeypatch.setattr(reporting, "write_page", lambda *parts: written.extend(parts[:3]))
    output = trained(choose_postprocessing=False, config_overrides=sizes, window_s=0.4)
    stored = json.loads((output / "config.json").read_text())["event_detection"]
    assert stored == by_hand | {"window_s": 0.4}
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "was not chosen by these recordings" in card and "was chosen" not in card
    monkeypatch.undo()
    trainer, results, _ = written
    trainer.model.config.event_detection = {"window_s": 0.4}  # the same without settings by hand
    reporting.write_card(trainer, results, output / "README.md")
    reporting.write_page(*written, output)
    assert "How events are found" not in (output / "README.md").read_text(encoding="utf-8")
    texts = Page((output / "report.html").read_text(encoding="utf-8")).texts
    assert any("above 0.5, without a filter" in text for text in texts)


@pytest.mark.slow
def test_a_training_without_a_test_or_without_a_page(trained):
    none = {"validation_fraction": 0, "test_fraction": 0}
    output = trained(**none)
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    assert "No split was set aside" in "".join(page.texts) and page.timelines == 0 and not page.sounds
    assert {path.stem for path in output.glob("*.png")} == {"learning_curves"}
    output = trained(**none, html_report=False, output_dir=str(output), overwrite=True)
    assert not (output / "report.html").exists()


def test_an_evaluation_of_a_table_has_the_page_if_there_are_recordings(tmp_path):
    for name in ("a/one.wav", "b/two.wav"):
        write_tone(tmp_path / "audio" / name, seconds=3.0, rate=8000)
    write_events(tmp_path / "wanted.csv", {"a/one.wav": [Event(1, 2, "dog")], "b/two.wav": [Event(0, 1, "<b>")]})
    write_events(tmp_path / "found.csv", {"a/one": [Event(1, 2, "dog")], "two.mp3": [Event(2, 3, "dog", score=0.5)]})
    recipe = {"task": "evaluation", "events": "found.csv", "annotations": "wanted.csv", "output_dir": "out"}
    recipe |= {name: str(tmp_path / value) for name, value in recipe.items() if name != "task"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    words = [str(tmp_path / "recipe.json")]
    assert train_hf.main(words) == 0
    assert not (tmp_path / "out" / "report.html").exists()
    assert train_hf.main([*words, "--recordings", str(tmp_path / "audio"), "--overwrite", "true"]) == 0
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.errors == ["missed", "false alarm"] and page.timelines == 2 and len(page.sounds) == 2
    assert {"b/two.wav", "a/one.wav", "<b>", "false alarms per hour"} <= set(page.texts)
    assert "threshold" not in page.texts and "average precision" not in page.texts
    samples, rate = soundfile.read(io.BytesIO(page.sounds[1]))
    assert rate == 8000 and np.corrcoef(samples, tone(3.0, rate=8000)[12000:])[0, 1] > 0.95


@pytest.mark.slow
def test_a_browser_shows_and_plays_the_page(browser, tmp_path):
    findings = random_findings(tmp_path, 0, labels=ODD)
    page, _ = page_of(tmp_path, findings)
    place = tmp_path / "page" / "report.html"
    place.parent.mkdir()
    (tmp_path / "report.html").rename(place)
    check_page(browser, place, page.timelines, tmp_path / "picture", len(page.sounds))
    script = "return [...document.querySelectorAll('.timeline .label[title]')].map(one => one.textContent)"
    assert set(browser.execute_script(script)) == {*ODD[:3], "a\\u202eb"}
    # Bars lie on the spectrogram, below the times that they have.
    script = """
      const box = one => one.getBoundingClientRect(), line = document.querySelector(".timeline");
      const picture = box(line.querySelector("img"));
      return [...line.querySelectorAll(".bar")].every(
        one => box(one).left >= picture.left - 1 && box(one).right <= picture.right + 4
          && box(one).top >= picture.bottom)
    """
    assert browser.execute_script(script)
