"""Writes `report.html`: what a detector or a table of events finds in recordings, misses, and finds wrongly."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTFeatureExtractor

from ..base.figures import khz_ticks, mel_centres
from ..base.outputs import dispensable
from ..base.page import audio_uri, picture_uris, public_names, spectrogram_uri, write_page
from ..base.plots import plot_confusion
from ..data.audio import audio_format, num_samples, read_stretch
from ..data.events import Event
from ..errors import one_line
from .plots import MOST_CURVES, plot_threshold_curves, threshold_curve
from .postprocessing import OFFSET_SHARE
from .recordings import Stretch
from .verdicts import ALARM, MISSED, Judged, confusion_in_time, judge

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("report.html")
SPLITS = ("train", "validation", "test")
PICTURES = {
    "learning_curves.png": "learning curves",
    "threshold_curves.png": "thresholds",
    "confusion_in_time.png": "confusion in time",
}
HEADLINES = (
    "event_f1_macro", "event_f1_micro", "event_precision_micro", "event_recall_micro", "false_alarms_per_hour",
    "segment_f1_macro", "psds1", "psds2", "frame_mean_average_precision",
)  # fmt: skip
FIGURES = {
    "F1": "event_f1", "precision": "event_precision", "recall": "event_recall", "average precision": "frame_ap",
}  # fmt: skip
SETTINGS = {
    "threshold": "high", "second threshold": "low", "median filter (frames)": "median_steps",
    "shortest event (s)": "min_duration_s", "longest gap (s)": "max_gap_s",
}  # fmt: skip
PART_S = 60.0  # longest part of a recording that is one timeline
MARGIN_S = 0.5  # before and after a missed event or a false alarm in its sound
SOUND_S = 10.0  # longest sound
MOST_COLUMNS = 1000  # of a spectrogram, which then has at most 300 kB
MOST_SOUND_BYTES = 8_000_000  # of all sounds of a page
MOST_LISTED = 40  # missed events and false alarms below a timeline
TICKS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
MOST_TICKS = 8


@dataclass
class Findings:
    """
    Holds the events that were found in the recordings of a split.

    Args:
        found: per recording
        collar_s, offset_share: see `event_metrics`
        extractor: makes the spectrograms; `None`: one at the rate of each recording
        scores: per recording (frames, labels); `None`: unknown
        edges_s: per recording (frames + 1,), with scores
        settings: those of `EventFinder` that found the events, with scores
    """

    stretches: Sequence[Stretch]
    labels: Sequence[str]
    found: Sequence[Sequence[Event]]
    collar_s: float
    offset_share: float = OFFSET_SHARE
    extractor: object = None
    scores: Sequence[np.ndarray] | None = None
    edges_s: Sequence[np.ndarray] | None = None
    settings: Mapping | None = None

    def __post_init__(self):
        pairs = zip(self.found, self.stretches)
        self.judged = [judge(own, one, self.collar_s, self.offset_share) for own, one in pairs]

    def settings_of(self, place: int) -> dict[str, float]:
        """Returns the settings of one label."""
        labels = len(self.labels)
        return {name: float(np.broadcast_to(value, labels)[place]) for name, value in self.settings.items()}


def draw_figures(folder: Path, findings: Findings, figure_format: str = "png"):
    """Draws what is found in place of what, and the curves over the threshold where there are scores."""
    with dispensable("confusion_in_time.png"):
        table = confusion_in_time(findings.found, findings.stretches, findings.labels)
        names = ("annotated", "found")
        plot_confusion(table, "seconds", folder / "confusion_in_time.png", figure_format, "seconds", names)
    if findings.scores is None:
        return
    with dispensable("threshold_curves.png"):
        annotated = Counter(event.label for one in findings.stretches for event in one.events)
        numbers = [annotated[label] for label in findings.labels]
        curves, chosen = {}, {}
        for place in np.argsort([-number for number in numbers], kind="stable")[:MOST_CURVES]:
            if numbers[place]:
                label, settings = findings.labels[place], findings.settings_of(place)
                scores = [own[:, place] for own in findings.scores]
                parts = (findings.edges_s, findings.stretches, label, settings, findings.collar_s)
                curves[label], chosen[label] = threshold_curve(scores, *parts), settings["high"]
        if curves:
            plot_threshold_curves(curves, chosen, folder / "threshold_curves.png", figure_format)


def write_report(folder: Path, name: str, results: dict, findings: Findings | None, most_parts: int, **model):
    """
    Writes the page into the folder that holds the figures already.

    Args:
        name: title of the page
        results: the content of `results.json`
        findings: those of the reported split; `None` without one
        most_parts: timelines
        model: of a training: `config`, `extractor`, `arguments`, `num_parameters`, `model_name`, `dataset_name`, and
            `has_own`, whether the configuration says how events are found, and `how_chosen`, the split that the
            post-processing was chosen on; without a model `None`
    """
    parts, totals, shown = [], {}, {}
    if findings is not None:
        everything = hardest_parts(findings)
        parts = _timelines(findings, everything[:most_parts])
        for kind in (MISSED, ALARM):
            totals[kind] = sum(one.verdict == kind for own in findings.judged for one in own)
            shown[kind] = sum(one.verdict == kind for part in everything[:most_parts] for one in part.judged)
        totals["parts"] = len(everything)
    split = list(results["metrics"])[-1] if results["metrics"] else None
    metrics = results["metrics"].get(split, {})
    counts = {name: own["count"] if isinstance(own, dict) else own for name, own in results["recordings"].items()}
    counts = {name: counts[name] for name in SPLITS if name in counts}
    write_page(
        folder / "report.html",
        TEMPLATE,
        name=name,
        results=results,
        split=split,
        num_recordings=counts,
        headlines={name: metrics[name] for name in HEADLINES if name in metrics},
        compared=[name for name in next(iter(results["metrics"].values()), {}) if name in metrics],
        pictures=picture_uris(folder, PICTURES),
        captions=PICTURES,
        most_curves=MOST_CURVES,
        unit="crops",
        classes=None if findings is None else _class_table(findings, results),
        settings=_settings_table(findings),
        parts=parts,
        totals=totals,
        shown=shown,
        part_s=PART_S,
        sound_s=SOUND_S,
        num_silent=sum("audio" not in error for part in parts if "picture" in part for error in part["errors"]),
        collar_s=None if findings is None else findings.collar_s,
        offset_share=None if findings is None else findings.offset_share,
        **{"config": None, "has_own": False, "how_chosen": None, **model},
    )


def _class_table(findings: Findings, results: dict) -> dict:
    """Returns column names, and per label its name, its counts and its figures."""
    hours = sum(one.duration_s for one in findings.stretches) / 3600
    alarms = dict.fromkeys(findings.labels, 0)
    for own in findings.judged:
        for one in own:
            alarms[one.event.label] += one.verdict == ALARM
    figures = {title: key for title, key in FIGURES.items() if key in next(iter(results["per_class"].values()), {})}
    rows = []
    for label in findings.labels:
        own = results["per_class"][label]
        values = [own[key] for key in figures.values()] + [alarms[label] / hours if hours else math.nan]
        rows.append({"name": label, "counts": [own["annotated_events"], own["predicted_events"]], "figures": values})
    return {"figures": [*figures, "false alarms per hour"], "rows": rows}


def _settings_table(findings: Findings | None) -> dict | None:
    """Returns column names, and per label its name and its post-processing; `None` where that is unknown."""
    if findings is None or findings.settings is None:
        return None
    titles = [title for title, key in SETTINGS.items() if key in findings.settings]
    rows = [
        {"name": label, "values": [findings.settings_of(place)[SETTINGS[title]] for title in titles]}
        for place, label in enumerate(findings.labels)
    ]
    return {"titles": titles, "rows": rows}


# ---- Timelines ----


class Part(NamedTuple):
    """Holds a part of a recording, in seconds from the stretch's beginning on, with the events whose middle it has."""

    recording: int
    start_s: float
    end_s: float
    judged: list[Judged]


def hardest_parts(findings: Findings) -> list[Part]:
    """Returns the equal parts of all recordings that have events, those with the most errors first."""
    parts = []
    for recording, (one, judged) in enumerate(zip(findings.stretches, findings.judged)):
        count = max(math.ceil(one.duration_s / PART_S), 1)
        own: dict[int, list[Judged]] = {}
        for each in judged:
            middle_s = (each.event.onset_s + each.event.offset_s) / 2
            place = int(np.clip(middle_s / max(one.duration_s, 1e-9) * count, 0, count - 1))
            own.setdefault(place, []).append(each)
        for place, events in sorted(own.items()):
            edges = [one.duration_s * edge / count for edge in (place, place + 1)]
            parts.append(Part(recording, *edges, events))
    return sorted(parts, key=lambda part: -sum(one.is_error for one in part.judged))


def _timelines(findings: Findings, parts: Sequence[Part]) -> list[dict]:
    """Returns the page's entries of parts of recordings. Only these, and what their sounds need, are decoded."""
    paths = [_path_of(findings.stretches[part.recording]) for part in parts]
    names, entries, left = public_names(paths), [], MOST_SOUND_BYTES
    for part, name in zip(parts, names):
        one, judged = findings.stretches[part.recording], findings.judged[part.recording]
        entry = _timeline(one, part, judged) | {"name": name}
        try:
            left -= _add_sight_and_sound(entry, one, part, findings.extractor, left)
        except Exception as error:  # a recording that is missing on the page must not stop the run
            logger.warning(one_line(f"report.html shows no picture of {one.name} ({error})"))
        entries.append(entry)
    return entries


def _path_of(one: Stretch) -> str:
    return one.source if isinstance(one.source, str) else one.source.get("path") or one.name


def _timeline(one: Stretch, part: Part, judged: Sequence[Judged]) -> dict:
    """Returns times, bars and errors of a part."""
    begin_s = 0.0 if isinstance(one.source, str) else one.source.get("start") or 0.0
    length_s = max(part.end_s - part.start_s, 1e-9)
    is_long = begin_s + one.duration_s > 120

    def clock(seconds: float, digits: int = 0) -> str:
        """Formats a time of the whole recording."""
        seconds = round(begin_s + seconds, digits)
        if not is_long:
            return f"{seconds:.{digits}f}"
        minutes, rest = divmod(seconds, 60)
        width = digits + 3 if digits else 2
        return f"{int(minutes // 60)}:{int(minutes % 60):02d}:{rest:0{width}.{digits}f}"

    def span(start_s: float, end_s: float, digits: int = 0) -> str:
        return f"{clock(start_s, digits)} to {clock(end_s, digits)}{'' if is_long else ' s'}"

    def place(event: Event) -> dict:
        start, end = (
            float(np.clip((time - part.start_s) / length_s, 0, 1)) * 100 for time in (event.onset_s, event.offset_s)
        )
        return {"left": start, "width": end - start}

    def is_seen(event: Event) -> bool:
        return event.onset_s < part.end_s and max(event.offset_s, event.onset_s + 1e-9) > part.start_s

    def title_of(each: Judged) -> str:
        event, kind = each.event, "annotated" if each.is_annotated else "found"
        score = "" if event.score is None else f", score {event.score:.2f}"
        return f"{event.label}: {span(event.onset_s, event.offset_s, 2)}, {kind}, {each.verdict}{score}"

    seen = [each for each in judged if is_seen(each.event)]
    rows = []
    for label in sorted({each.event.label for each in seen}):
        lanes = [
            [
                place(each.event) | {"verdict": each.verdict.replace(" ", "_"), "title": title_of(each)}
                for each in seen
                if each.event.label == label and each.is_annotated == is_annotated
            ]
            for is_annotated in (True, False)
        ]
        rows.append({"label": label, "annotated": lanes[0], "found": lanes[1]})
    errors = [each for each in part.judged if each.is_error]
    listed = [
        {
            "kind": each.verdict,
            "label": each.event.label,
            "times": span(each.event.onset_s, each.event.offset_s, 2),
            "score": each.event.score,
            "event": each.event,
        }
        for each in errors[:MOST_LISTED]
    ]
    ticks = ((100 * (time - part.start_s) / length_s, clock(time, digits)) for time, digits in _ticks(part, begin_s))
    return {
        "times": span(part.start_s, part.end_s, 0 if part.end_s - part.start_s > MOST_TICKS else 2),
        "unit": "h:min:s" if is_long else "s",
        "counts": {kind: sum(each.verdict == kind for each in errors) for kind in (MISSED, ALARM)},
        "ticks": list(ticks),
        "unsure": [place(event) for event in one.unsure if is_seen(event)],
        "rows": rows,
        "errors": listed,
        "num_unlisted": len(errors) - len(listed),
    }


def _ticks(part: Part, begin_s: float) -> Iterator[tuple[float, int]]:
    """Yields round times of the whole recording, from the stretch's beginning on, and their decimals."""
    step = next((s for s in TICKS_S if (part.end_s - part.start_s) / s <= MOST_TICKS), TICKS_S[-1])
    digits = 0 if step >= 1 else 1 if step >= 0.1 else 2
    first = math.ceil((begin_s + part.start_s) / step - 1e-6)
    for number in range(first, math.floor((begin_s + part.end_s) / step + 1e-6) + 1):
        yield number * step - begin_s, digits


def _add_sight_and_sound(entry: dict, one: Stretch, part: Part, extractor, most_bytes: int) -> int:
    """Adds the spectrogram, and a sound per error as long as they fit into `most_bytes`; returns their size."""
    extractor = extractor or DualSSASTFeatureExtractor(sampling_rate=audio_format(one.source)[0])
    rate = extractor.sampling_rate
    # All sounds lie in this span, so that one reading is enough.
    span = [max(part.start_s - SOUND_S, 0.0), min(part.end_s + SOUND_S, one.duration_s)]
    first, last = (round(time * rate) for time in span)
    waveform = read_stretch(one.source, rate, first, min(last, num_samples(one.source, rate)))
    begin, end = (round(time * rate) - first for time in (part.start_s, part.end_s))
    shown = waveform[begin:end]
    if not len(shown):
        raise ValueError("the recording ends before")
    shown = np.pad(shown, (0, max(end - begin - len(shown), 0)))  # it holds less than its header says
    length_s, size = max(part.end_s - part.start_s, 1e-9), 0
    picture = spectrogram_uri(shown, extractor, MOST_COLUMNS)
    ticks = khz_ticks(mel_centres(extractor))
    entry["khz"] = [(100 * place / extractor.num_mel_bins, text) for place, text in ticks.items()]
    for error in entry["errors"]:
        event = error["event"]
        begin_s = max(event.onset_s - MARGIN_S, span[0])
        end_s = min(event.offset_s + MARGIN_S, begin_s + SOUND_S, span[1])
        sound = waveform[round(begin_s * rate) - first : round(end_s * rate) - first]
        uri = audio_uri(sound, rate) if len(sound) and size < most_bytes else ""
        if uri and size + len(uri) <= most_bytes:
            size += len(uri)
            error |= {
                "audio": uri,
                "is_cut": end_s < min(event.offset_s + MARGIN_S, span[1]) - 1e-6,
                "from": 100 * (begin_s - part.start_s) / length_s,
                "span": 100 * (end_s - begin_s) / length_s,
            }
    entry["picture"] = picture
    return size
