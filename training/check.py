"""
Checks a labelled data set before anything is trained on it: `python -m training.check DATA`; annotated recordings:
`python -m training.check --annotations TABLES`.

The check decodes every clip. Errors would stop a training or make its test invalid; warnings deserve a look. It finds
duplicates by their decoded samples (such as one recording as wav and flac, under any name), but not at another sampling
rate, as mp3 or ogg, or with another start or end.
"""

import difflib
import filecmp
import hashlib
import math
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pandas
from transformers.utils import logging

from .console import print_table, run_program
from .data import annotation_check
from .data.annotations import load_annotations
from .data.arguments import HIGHEST_RATE, AnnotationArguments, DataArguments, SplitArguments
from .data.audio import AudioSource, header_remark
from .data.columns import audio_of
from .data.labels import LabelSet, find_labels, read_label_file, sort_key
from .data.screening import classes_of, ends_after_recording, for_each_clip, names_of, try_to_decode
from .data.splits import count_repeats, load_splits
from .data.tables import names_table
from .errors import InputError
from .files import check_writable, write_json
from .recipe import Arguments, described, options, parse_words, read_recipe, show_help

USAGE = "python -m training.check DATA [--key value ...]"
ANNOTATED_USAGE = "python -m training.check --annotations TABLES [--recordings FOLDER] [--key value ...]"
DATA = """DATA is one of
  a folder with a sub-folder of audio per class, also within train, validation and test
  a folder with audio and metadata.csv, .tsv, .xlsx, .jsonl or .parquet (columns file_name and label)
  a folder with train.csv and, if there are, validation.csv and test.csv, or such tables of the other kinds
  a manifest of the training clips: CSV, TSV, Excel, JSON, JSONL or Parquet; --validation_file and --test_file add
  others
  a data set on the Hub, such as ashraq/esc50
  a recipe (.yaml, .yml): its data are checked

Sound events in recordings: python -m training.check --annotations TABLES; see python -m training.check --annotations
--help"""
RECIPES = (".yaml", ".yml")
PRINTED = 10  # findings of each kind on the screen

SILENCE_DBFS = -60.0  # RMS of the channels' mean, DC removed; 0 for a full-scale square wave
LOWEST_DBFS = -200.0  # value for digital silence
FULL_SCALE = 32767 / 32768  # for 16-bit samples
CLIPPED_SHARE = 1e-3  # of the samples, at full scale
CLIPPED_SAMPLES = 3  # at least: the peaks of a normalised clip are at full scale too
DC_OFFSET = 0.02  # share of full scale
FRAME_S = 0.025  # seconds, one window of the features
LENGTH_RATIO = 10.0  # relative to the median length
NEAR_NAMES = 0.8  # difflib's ratio
RARE_SHARE = 0.1  # of the clips of the class with a similar name; a class with fewer may be a typing error
HIGH_SHARE = 0.1  # share of a clip's energy
SAMPLED_CLIPS, SAMPLED_S = 100, 10.0  # clips and seconds per clip for the spectra

KINDS = {  # kind -> (is it an error, meaning)
    "unreadable": (True, "clips that cannot be read, which --on_bad_audio skip leaves out of a training"),
    "left_out": (False, "files of the folder that are not clips of the data set"),
    "bad_labels": (True, "labels at which a training stops"),
    "duplicates_across_splits": (True, "the same samples in several splits"),
    "groups_across_splits": (True, "groups that lie in several splits"),
    "duplicates_within_splits": (False, "the same samples under several names, which a split that is made may divide"),
    "listed_twice": (False, "clips that are listed more than once"),
    "header_disagrees": (False, "clips whose header and content disagree; what they hold is read"),
    "cut_parts": (False, "parts that end after their recordings: are the times in seconds?"),
    "other_sampling_rate": (False, "clips at another rate than sampling_rate, which are resampled whenever read"),
    "high_frequencies": (
        False,
        f"sampled clips with more than {HIGH_SHARE:.0%} of their energy above half of sampling_rate, which the model "
        "does not receive",
    ),
    "mixed_sampling_rates": (False, "clips have different sampling rates"),
    "mixed_channels": (False, "clips have different numbers of channels, which are averaged"),
    "silent": (False, f"clips below {SILENCE_DBFS:g} dBFS"),
    "clipped": (False, f"clips with more than {CLIPPED_SHARE:.1%} of their samples at full scale"),
    "dc_offset": (False, f"clips whose mean is more than {DC_OFFSET:g} of full scale"),
    "shorter_than_a_frame": (False, f"clips shorter than {FRAME_S * 1000:g} ms"),
    "very_short": (False, f"clips shorter than the median by more than {LENGTH_RATIO:g} times"),
    "very_long": (False, f"clips longer than the median by more than {LENGTH_RATIO:g} times"),
    "similar_classes": (False, "classes whose names look like slips of each other"),
    "single_clip_classes": (False, "classes with one clip"),
    "missing_classes": (False, "classes that are missing from a split"),
}


@dataclass
class ReportArguments(Arguments):
    """Holds the options of a check besides its data: the sampling rate of the model, and the report."""

    group: ClassVar[str] = "data"

    sampling_rate: int = described(
        16000, "Sampling rate in Hz of the model's features.", at_least=1, at_most=HIGHEST_RATE
    )
    output: str | None = described(None, "JSON file for all findings; unset: none.", group="report")
    num_workers: int | None = described(
        None, "Threads that decode; unset: as many as there are cores, at most 16.", at_least=1, group="report"
    )


@dataclass
class CheckArguments(ReportArguments, SplitArguments):
    """Holds the options of the check of labelled clips."""


@dataclass
class AnnotationCheckArguments(ReportArguments, AnnotationArguments):
    """Holds the options of the check of annotated recordings."""

    refused: ClassVar[Mapping[str, str]] = {"num_workers": "has no effect here; leave it out"}


def parse(argv: list[str]) -> CheckArguments | AnnotationCheckArguments:
    """
    Parses `[DATA] [--key value ...]`; DATA is a folder, a manifest, a data set of the Hub or a recipe.

    Raises:
        InputError: no data, an unknown key, or a value of the wrong type.
    """
    argv = ["--train_" + word[2:] if word.partition("=")[0] == "--annotations" else word for word in argv]
    recipe, source = {}, "command line"
    if argv and Path(argv[0]).suffix.lower() in RECIPES:
        source, recipe, argv = argv[0], read_recipe(Path(argv[0])), argv[1:]
    named = [*recipe, *(word[2:].partition("=")[0] for word in argv if word.startswith("--"))]
    is_annotated = any(name.endswith("_annotations") for name in named)
    cls = AnnotationCheckArguments if is_annotated else CheckArguments
    if {"-h", "--help"} & set(argv):
        show_help((cls,), ANNOTATED_USAGE if is_annotated else USAGE, "" if is_annotated else DATA)
    if argv and not argv[0].startswith("-"):
        argv = ["--train_file" if names_table(argv[0]) else "--dataset_name", *argv]
    if not argv and not recipe:
        raise InputError(f"usage: {USAGE}")
    known = {option.name for option in options(cls)}
    for key in recipe.keys() - (known - {"output"}):  # those of the training
        del recipe[key]
    refused = dict.fromkeys((option.name for option in options(DataArguments)), "has no effect here; leave it out")
    return parse_words((cls,), argv, USAGE, source, recipe=recipe, refused=refused)[0]


def check(arguments: SplitArguments, num_workers: int | None = None) -> dict:
    """
    Finds the errors and oddities of a data set, in an order that depends on the data alone.

    Returns:
        "splits": split -> clips and seconds; "sampling_rates", "channels": value -> clips; "classes": class -> split ->
        clips; "thresholds"; "findings": kind -> severity, meaning, number of examined clips, count and items; "errors",
        "warnings": number of each

    Raises:
        InputError: the data cannot be loaded.
    """
    left_out = []
    splits = load_splits(arguments, lambda folder, rows: left_out.extend(rows))
    clips = make_table(splits, num_workers)
    readable = clips[clips["reason"] == ""]
    classes = {} if arguments.problem_type == "regression" else count_classes(splits)
    sampled = sample_spectra(readable, splits, arguments.sampling_rate, num_workers)
    found = {
        "unreadable": _rows(clips[clips["reason"] != ""], "reason"),
        "left_out": left_out,
        "bad_labels": find_bad_labels(splits, clips, arguments),
        "groups_across_splits": find_divided_groups(splits),
        "listed_twice": find_repeats(clips),
        **find_duplicates(readable, splits),
        "header_disagrees": _rows(readable[readable["header"] != ""], "header"),
        "cut_parts": _rows(readable[readable["end"].notna()], "end"),
        "high_frequencies": _rows(sampled[sampled["energy_share"] > HIGH_SHARE], "energy_share"),
        **find_odd_sounds(readable, arguments.sampling_rate),
        **find_odd_classes(classes, list(splits)),
    }
    examined = {"high_frequencies": len(sampled), "unreadable": len(clips)}
    return {
        "splits": {
            split: {"clips": len(own), "seconds": round(float(own["seconds"].sum()), 3)}
            for split, own in ((split, clips[clips["split"] == split]) for split in splits)
        },
        "sampling_rates": _counts(readable["sampling_rate"]),
        "channels": _counts(readable["channels"]),
        "classes": classes,
        "thresholds": {
            "sampling_rate": arguments.sampling_rate, "silence_dbfs": SILENCE_DBFS, "clipped_share": CLIPPED_SHARE,
            "clipped_samples": CLIPPED_SAMPLES,
            "dc_offset": DC_OFFSET, "frame_s": FRAME_S, "length_ratio": LENGTH_RATIO,
            "near_names": NEAR_NAMES, "rare_share": RARE_SHARE, "high_share": HIGH_SHARE,
        },
        **_findings(KINDS, found, {kind: examined.get(kind, len(readable)) for kind in KINDS}),
    }  # fmt: skip


def check_annotations(arguments: AnnotationCheckArguments) -> dict:
    """
    Finds the errors and oddities of annotated recordings as they stand in the tables: overlaps are not joined.

    Returns:
        "splits": split -> recordings, sites, events and hours; "classes": class -> events by split, and durations;
        "overlaps": pairs of classes that sound at once; "thresholds", "findings", "errors", "warnings" as in `check`

    Raises:
        InputError: the annotations cannot be read.
    """
    acts: list[tuple[Path, dict]] = []
    as_they_stand = replace(arguments, overlaps="keep", point_s=0.0)
    splits = load_annotations(as_they_stand, "skip", lambda source, own: acts.append((source, own)))
    found = {
        kind: [{"split": split} | item for split, (_, own) in zip(splits, acts) for item in own[kind]]
        for kind in acts[0][1]
    }
    classes = annotation_check.describe_classes(splits)
    counts = {name: {split: own[split] for split in splits} for name, own in classes.items()}
    odd_classes = find_odd_classes(counts, list(splits))
    found |= {
        **annotation_check.find_odd_events(splits, arguments.sampling_rate),
        **annotation_check.find_leaks(splits),
        "long_gaps": annotation_check.find_long_gaps(splits),
        **odd_classes,
        "single_event_classes": odd_classes["single_clip_classes"],
    }
    facts = annotation_check.describe_splits(splits)
    num_recordings, num_events = (sum(own[name] for own in facts.values()) for name in ("recordings", "events"))
    about_recordings = ("unreadable", "unlabelled", "empty", "without_site")
    kinds = annotation_check.KINDS
    return {
        "splits": facts,
        "classes": classes,
        "overlaps": annotation_check.describe_overlaps(splits),
        "thresholds": {
            "sampling_rate": arguments.sampling_rate, "long_gap_s": annotation_check.LONG_GAP_S,
            "length_ratio": annotation_check.LENGTH_RATIO, "fewest_events": annotation_check.FEWEST_EVENTS,
            "shortest_s": annotation_check.SHORTEST_S, "near_names": NEAR_NAMES, "rare_share": RARE_SHARE,
        },
        **_findings(kinds, found, {kind: num_recordings if kind in about_recordings else num_events for kind in kinds}),
    }  # fmt: skip


def _findings(kinds: dict, found: dict[str, list[dict]], examined: dict[str, int]) -> dict:
    """Returns `findings` in the order of the kinds, and the numbers of `errors` and `warnings`."""
    findings = {
        kind: {
            "severity": "error" if is_error else "warning",
            "meaning": meaning,
            "examined": examined[kind],
            "count": len(found[kind]),
            "items": found[kind],
        }
        for kind, (is_error, meaning) in kinds.items()
    }
    errors, warnings = (
        sum(own["count"] for own in findings.values() if own["severity"] == name) for name in ("error", "warning")
    )
    return {"findings": findings, "errors": errors, "warnings": warnings}


def measure(source: AudioSource) -> dict:
    """Decodes a clip and measures rate, length, levels and a hash of its samples; if unreadable, gives the reason."""
    decoded, reason = try_to_decode(source)
    if decoded is None:
        return {"reason": reason}
    samples, mono, rate = decoded
    num_samples, num_channels = samples.shape
    num_clipped = np.count_nonzero((samples >= FULL_SCALE) | (samples <= -FULL_SCALE))
    rms = math.sqrt(mono.var(dtype=np.float64))
    content = hashlib.blake2b(np.ascontiguousarray(samples), digest_size=16, key=f"{rate}/{num_channels}".encode())
    return {
        "reason": "",
        "sampling_rate": rate,
        "channels": num_channels,
        "header": header_remark(source, num_samples),
        "end": source["end"] if ends_after_recording(source) else math.nan,
        "seconds": num_samples / rate,
        "level_dbfs": round(max(20 * math.log10(max(rms, 1e-30)), LOWEST_DBFS), 2),
        "clipped_share": num_clipped / samples.size if num_clipped >= CLIPPED_SAMPLES else 0.0,
        "dc_offset": float(np.abs(samples.mean(axis=0, dtype=np.float64)).max()),
        "content": content.hexdigest(),
    }


def make_table(splits: dict[str, datasets.Dataset], num_workers: int | None) -> pandas.DataFrame:
    """Makes a table with a row per clip: its split, index and name, and the results of `measure`."""
    names, measured = names_of(splits), for_each_clip(splits, measure, num_workers)
    rows = [
        {"split": split, "index": index, "clip": names[split][index]} | facts
        for split in splits
        for index, facts in enumerate(measured[split])
    ]
    measures = (
        "sampling_rate",
        "channels",
        "header",
        "end",
        "seconds",
        "level_dbfs",
        "clipped_share",
        "dc_offset",
        "content",
    )
    return pandas.DataFrame(rows, columns=["split", "index", "clip", "reason", *measures])


def sample_spectra(
    readable: pandas.DataFrame, splits: dict[str, datasets.Dataset], sampling_rate: int, num_workers: int | None
) -> pandas.DataFrame:
    """
    Measures the share of energy that resampling to `sampling_rate` removes (above half of it), on at most
    `SAMPLED_CLIPS` evenly spaced clips at a higher rate. Returns their rows with the column `energy_share`.
    """
    higher = readable[readable["sampling_rate"] > sampling_rate]
    places = np.linspace(0, len(higher) - 1, min(len(higher), SAMPLED_CLIPS)).round().astype(int)
    chosen = higher.iloc[places]
    parts = {split: splits[split].select(own["index"]) for split, own in chosen.groupby("split", sort=False)}
    shares = for_each_clip(parts, lambda source: energy_share_above(source, sampling_rate / 2), num_workers)
    return chosen.assign(energy_share=[share for own in shares.values() for share in own])


def energy_share_above(source: AudioSource, frequency_hz: float) -> float:
    """Returns the share of energy above a frequency in the first `SAMPLED_S` seconds of a clip, without its mean."""
    decoded, _ = try_to_decode(source)
    if decoded is None:  # a fault of disk or network: it was readable before
        return 0.0
    mono = decoded.mono[: int(SAMPLED_S * decoded.sampling_rate)]
    power = np.abs(np.fft.rfft(mono - mono.mean())) ** 2
    frequencies = np.fft.rfftfreq(len(mono), 1 / decoded.sampling_rate)
    return float(power[frequencies > frequency_hz].sum() / max(power.sum(), 1e-30))


def find_bad_labels(
    splits: dict[str, datasets.Dataset], clips: pandas.DataFrame, arguments: SplitArguments
) -> list[dict]:
    """Finds the labels at which a training would stop, with the error message."""
    known = tuple(read_label_file(Path(arguments.label_file)).values()) if arguments.label_file else None
    try:
        labels = find_labels(splits["train"]["label"], arguments.problem_type, known)
    except InputError as error:
        return [{"split": "train", "clip": "", "reason": str(error)}]
    found = []
    for split, data in splits.items():
        for label, name in zip(data["label"], clips.loc[clips["split"] == split, "clip"]):
            reason = _label_error(labels, label, name)
            if reason:
                found.append({"split": split, "clip": name, "reason": reason})
    return found


def _label_error(labels: LabelSet, label, name: str) -> str:
    try:
        labels.encode(label, name)
    except InputError as error:
        return str(error).removeprefix(f"{name}: ")
    return ""


def find_divided_groups(splits: dict[str, datasets.Dataset]) -> list[dict]:
    """Finds groups with clips in several splits, and counts their clips by split."""
    counts = defaultdict(Counter)
    for split, data in splits.items():
        for group in data["group"] if "group" in data.column_names else ():
            counts[group][split] += 1
    return [{"group": group} | dict(own) for group, own in sorted(counts.items()) if len(own) > 1]


def find_repeats(clips: pandas.DataFrame) -> list[dict]:
    """Finds clips that are listed more than once, and counts their entries by split."""
    repeated = count_repeats(zip(clips["split"], clips["clip"]))
    return [{"clip": clip} | dict(own) for clip, own in sorted(repeated.items())]


def find_duplicates(readable: pandas.DataFrame, splits: dict[str, datasets.Dataset]) -> dict[str, list[dict]]:
    """
    Finds clips with the same samples, rate and channels, in several splits or under several names. It ignores digital
    silence: all silent clips of one length have the same samples.
    """
    found = {"duplicates_across_splits": [], "duplicates_within_splits": []}
    audible = readable[readable["level_dbfs"] > LOWEST_DBFS]
    for _, own in audible[audible.duplicated("content", keep=False)].groupby("content", sort=False):
        is_across = own["split"].nunique() > 1
        if not is_across and own["clip"].map(os.path.normpath).nunique() == 1:
            continue  # listed twice
        sources = [audio_of(splits[split][index]) for split, index in zip(own["split"], own["index"])]
        labels = [splits[split][index]["label"] for split, index in zip(own["split"], own["index"])]
        item = {
            "clips": [f"{split}: {clip}" for split, clip in zip(own["split"], own["clip"])],
            "labels": sorted(classes_of(labels), key=sort_key),
            "identical_bytes": all(_same_bytes(sources[0], other) for other in sources[1:]),
        }
        found["duplicates_across_splits" if is_across else "duplicates_within_splits"].append(item)
    return found


def _same_bytes(one: AudioSource, two: AudioSource) -> bool:
    one, two = ({"path": source} if isinstance(source, str) else source for source in (one, two))
    if one.get("bytes") is None and two.get("bytes") is None:
        return filecmp.cmp(one["path"], two["path"], shallow=False)
    return one.get("bytes") == two.get("bytes")


def find_odd_sounds(readable: pandas.DataFrame, sampling_rate: int) -> dict[str, list[dict]]:
    """Finds unusual rates, channels, levels and lengths."""
    seconds, median = readable["seconds"], readable["seconds"].median()
    return {
        "other_sampling_rate": _rows(readable[readable["sampling_rate"] != sampling_rate], "sampling_rate"),
        "mixed_sampling_rates": _values(readable, "sampling_rate"),
        "mixed_channels": _values(readable, "channels"),
        "silent": _rows(readable[readable["level_dbfs"] < SILENCE_DBFS], "level_dbfs"),
        "clipped": _rows(readable[readable["clipped_share"] > CLIPPED_SHARE], "clipped_share"),
        "dc_offset": _rows(readable[readable["dc_offset"] > DC_OFFSET], "dc_offset"),
        "shorter_than_a_frame": _rows(readable[seconds < FRAME_S], "seconds"),
        "very_short": _rows(readable[(seconds < median / LENGTH_RATIO) & (seconds >= FRAME_S)], "seconds"),
        "very_long": _rows(readable[seconds > median * LENGTH_RATIO], "seconds"),
    }


def count_classes(splits: dict[str, datasets.Dataset]) -> dict[str, dict[str, int]]:
    """Counts clips: class -> split -> number."""
    counts = {split: Counter() for split in splits}
    for split, data in splits.items():
        for label in data["label"]:
            counts[split].update(classes_of([label]))
    names = sorted(set().union(*counts.values()), key=sort_key)
    return {name: {split: own[name] for split, own in counts.items()} for name in names}


def find_odd_classes(classes: dict[str, dict[str, int]], splits: list[str]) -> dict[str, list[dict]]:
    """Finds classes with similar names, with one clip, or missing from a split."""
    totals = {name: sum(own.values()) for name, own in classes.items()}
    return {
        "similar_classes": find_similar_names(totals),
        "single_clip_classes": [
            {"class": name, "split": next(split for split in splits if classes[name][split])}
            for name, total in totals.items()
            if total == 1
        ],
        "missing_classes": [
            {"class": name, "missing_from": [split for split in splits if not own[split]], "clips": totals[name]}
            for name, own in classes.items()
            if not all(own.values())
        ],
    }


def find_similar_names(totals: dict[str, int]) -> list[dict]:
    """Finds pairs of names that differ only in case, spaces or underscores, or, if one is rare, in a few letters."""
    found = {}
    forms = defaultdict(list)
    for name in totals:
        forms[re.sub(r"[\s_]+", "", unicodedata.normalize("NFKC", name).casefold())].append(name)
    for names in forms.values():
        for name in names[1:]:
            found[frozenset((names[0], name))] = "case, spaces or underscores"
    for name, total in totals.items():
        frequent = [other for other, own in totals.items() if total <= RARE_SHARE * own]
        for other in difflib.get_close_matches(name, frequent, n=len(frequent) or 1, cutoff=NEAR_NAMES):
            # Numbered names (dog1, dog2) are different classes.
            if re.sub(r"\d+", "", name) != re.sub(r"\d+", "", other):
                found.setdefault(frozenset((name, other)), "a few letters")
    pairs = [(sorted(pair, key=lambda name: (-totals[name], name)), reason) for pair, reason in found.items()]
    return [
        {"class": one, "clips": totals[one], "like": two, "clips of that": totals[two], "differ in": reason}
        for (two, one), reason in sorted(pairs)
    ]


def _rows(clips: pandas.DataFrame, column: str) -> list[dict]:
    """Returns a row per clip of a finding: split, clip and the value of `column`."""
    kinds = {"sampling_rate": int, "channels": int}
    convert = kinds.get(column, lambda value: value if isinstance(value, str) else round(float(value), 6))
    rows = zip(clips["split"], clips["clip"], clips[column])
    return [{"split": split, "clip": clip, column: convert(value)} for split, clip, value in rows]


def _values(readable: pandas.DataFrame, column: str) -> list[dict]:
    """Returns a row per value of a column with its number of clips; empty if all values are equal."""
    if readable[column].nunique() < 2:
        return []
    first = readable.drop_duplicates(column).set_index(column)["clip"]
    return [{column: int(value), "clips": n, "such as": first[value]} for value, n in _counts(readable[column]).items()]


def _counts(values: pandas.Series) -> dict[int, int]:
    return {int(value): int(count) for value, count in values.value_counts().sort_index().items()}


def print_report(report: dict):
    """Prints the splits, the classes, and a table of the first findings of each kind."""
    for split, own in report["splits"].items():
        print(f"{split}: {_count(own['clips'], 'clip')}, {own['seconds'] / 60:.1f} min")
    rates = ", ".join(f"{rate} Hz ({count})" for rate, count in report["sampling_rates"].items())
    channels = ", ".join(f"{number} ({count})" for number, count in report["channels"].items())
    print(f"sampling rates: {rates}; channels: {channels}")
    print_rows("clips per class", [{"class": name} | own for name, own in report["classes"].items()])
    print_findings(report)


def print_annotation_report(report: dict):
    """Prints the splits, the classes, what sounds at once, and a table of the first findings of each kind."""
    print_rows("splits", [{"split": split} | own for split, own in report["splits"].items()])
    print_rows("events per class", [{"class": name} | own for name, own in report["classes"].items()])
    if report["overlaps"]:
        print_rows("classes that sound at once", report["overlaps"])
    print_findings(report)


def print_findings(report: dict):
    for found in report["findings"].values():
        title = f"{found['severity']}: {found['meaning']}"
        shared = value_of_all(found)
        if shared:
            print(f"\n{title}: all {found['examined']} ({shared})")
        elif found["count"]:
            print_rows(title, found["items"])
    print(f"\n{_count(report['errors'], 'error')}, {_count(report['warnings'], 'warning')}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def value_of_all(found: dict) -> str:
    """Returns the range of the measured value if all of several examined clips have the finding; else an empty text."""
    items = found["items"]
    if not 1 < len(items) == found["examined"] or list(items[0])[:2] != ["split", "clip"]:
        return ""
    name = list(items[0])[2]
    values = [item[name] for item in items]
    if isinstance(values[0], str):
        return ""
    lowest, highest = (f"{value:g}" for value in (min(values), max(values)))
    return f"{name} {lowest}" if lowest == highest else f"{name} {lowest} to {highest}"


def print_rows(title: str, rows: list[dict]):
    """Prints a title, the number of rows, and the first rows as a table."""
    print(f"\n{title} ({len(rows)})")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if rows:
        print_table([[_as_cell(row.get(key)) for key in columns] for row in rows[:PRINTED]], columns)
    if len(rows) > PRINTED:
        print(f"... and {len(rows) - PRINTED} more")


def _as_cell(value):
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return float(f"{value:g}") if isinstance(value, float) else value


def program(argv: list[str]) -> int:
    """Checks the data set and prints the report; returns 0 without errors, else 1."""
    logging.set_verbosity_error()
    arguments = parse(argv)
    output = Path(arguments.output) if arguments.output else None
    if output is not None:
        check_writable(output)
    is_annotated = isinstance(arguments, AnnotationCheckArguments)
    report = check_annotations(arguments) if is_annotated else check(arguments, arguments.num_workers)
    if output is not None:
        write_json(output, report)
    (print_annotation_report if is_annotated else print_report)(report)
    if output is not None:
        print(f"everything is in {output}")
    return int(report["errors"] > 0)


def main(argv: list[str] | None = None) -> int:
    return run_program(program, sys.argv[1:] if argv is None else argv, "nothing is written")


if __name__ == "__main__":
    sys.exit(main())
