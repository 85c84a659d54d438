"""
What is wrong with a labelled data set, before anything is trained on it: `python -m training.check DATA`.

Every clip is decoded once. Errors are what would stop a training or make its test no test; warnings are worth a look.
Duplicates are found by their decoded samples: the same recording as wav and as flac, under any name. They are not found
at another sampling rate, as mp3 or ogg, or cut otherwise.
"""

import difflib
import filecmp
import hashlib
import json
import math
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas
from transformers.utils import logging

from .data.arguments import DataArguments
from .data.audio import AudioSource
from .data.columns import audio_of
from .data.labels import LabelSet, find_labels, read_label_file, sort_key
from .data.screening import classes_of, for_each_clip, names_of, try_to_decode
from .data.sources import TABLE_READERS
from .data.splits import load_splits
from .errors import InputError, one_line
from .recipe import described, parse_words, show_help

USAGE = "python -m training.check DATA [--key value ...]"
PRINTED = 10  # findings of each kind on the screen

SILENCE_DBFS = -60.0  # RMS of the mean over the channels, without its mean; a full-scale square wave has 0
LOWEST_DBFS = -200.0  # what digital silence is said to have
FULL_SCALE = 32767 / 32768  # of 16 bits
CLIPPED_SHARE = 1e-3  # of the samples, at full scale
CLIPPED_SAMPLES = 3  # and at least so many: the peaks of a clip that was normalised lie there too
DC_OFFSET = 0.02  # of full scale
FRAME_S = 0.025  # what features are computed on
LENGTH_RATIO = 10.0  # to the median
NEAR_NAMES = 0.8  # difflib's ratio
RARE_SHARE = 0.1  # of the clips of the class with a name like it: fewer look like a slip

KINDS = {  # kind -> whether it is an error, and what it means
    "unreadable": (True, "clips that cannot be read"),
    "bad_labels": (True, "labels at which a training stops"),
    "duplicates_across_splits": (True, "the same samples in several splits"),
    "groups_across_splits": (True, "groups that lie in several splits"),
    "duplicates_within_splits": (False, "the same samples under several names, which a split that is made may divide"),
    "listed_twice": (False, "clips that are listed more than once"),
    "other_sampling_rate": (False, "clips at another rate than sampling_rate, which are resampled whenever heard"),
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
class CheckArguments:
    """What `training.check` does beside reading the data."""

    output: str | None = described(None, "JSON file for everything that is found.")
    num_workers: int | None = described(None, "Threads that decode; as many as there are cores, at most 16, if unset.")

    def __post_init__(self):
        if self.num_workers is not None and self.num_workers < 1:
            raise InputError(f"num_workers: must be positive, got {self.num_workers}")


def parse(argv: list[str]) -> tuple[DataArguments, CheckArguments]:
    """
    `[DATA] [--key value ...]`; DATA is a folder, a manifest or a data set of the Hub.

    Raises:
        InputError: no data, an unknown key, or a value of the wrong kind.
    """
    classes = (DataArguments, CheckArguments)
    if {"-h", "--help"} & set(argv):
        show_help(classes, USAGE)
    if argv and not argv[0].startswith("-"):
        is_table = Path(argv[0]).is_file() or Path(argv[0]).suffix.lower() in TABLE_READERS
        argv = ["--train_file" if is_table else "--dataset_name", *argv]
    if not argv:
        raise InputError(f"usage: {USAGE}")
    return parse_words(classes, argv, USAGE, "command line")


def check(arguments: DataArguments, num_workers: int | None = None) -> dict:
    """
    Everything that is found, in an order that depends on the data alone.

    Returns:
        "splits": split -> clips and seconds; "sampling_rates", "channels": value -> clips; "classes": class -> split ->
        clips; "thresholds"; "findings": kind -> severity, meaning, count and items; "errors", "warnings": their number

    Raises:
        InputError: the data cannot be loaded.
    """
    splits = load_splits(arguments)
    clips = make_table(splits, num_workers)
    readable = clips[clips["reason"] == ""]
    classes = {} if arguments.problem_type == "regression" else count_classes(splits)
    found = {
        "unreadable": _rows(clips[clips["reason"] != ""], "reason"),
        "bad_labels": find_bad_labels(splits, clips, arguments),
        "groups_across_splits": find_divided_groups(splits),
        "listed_twice": find_repeats(clips),
        **find_duplicates(readable, splits),
        **find_odd_sounds(readable, arguments.sampling_rate),
        **find_odd_classes(classes, list(splits)),
    }
    findings = {
        kind: {"severity": "error" if is_error else "warning", "meaning": meaning, "count": len(found[kind])}
        | {"items": found[kind]}
        for kind, (is_error, meaning) in KINDS.items()
    }
    counts = {
        name: sum(f["count"] for f in findings.values() if f["severity"] == name) for name in ("error", "warning")
    }
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
            "near_names": NEAR_NAMES, "rare_share": RARE_SHARE,
        },
        "findings": findings,
        "errors": counts["error"],
        "warnings": counts["warning"],
    }  # fmt: skip


def measure(source: AudioSource) -> dict:
    """What is known of a clip once it is decoded; `reason` is empty unless it cannot be read."""
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
        "seconds": num_samples / rate,
        "level_dbfs": round(max(20 * math.log10(max(rms, 1e-30)), LOWEST_DBFS), 2),
        "clipped_share": num_clipped / samples.size if num_clipped >= CLIPPED_SAMPLES else 0.0,
        "dc_offset": float(np.abs(samples.mean(axis=0, dtype=np.float64)).max()),
        "content": content.hexdigest(),
    }


def make_table(splits: dict[str, datasets.Dataset], num_workers: int | None) -> pandas.DataFrame:
    """A row per clip: its split, index and name, and what `measure` says."""
    names, measured = names_of(splits), for_each_clip(splits, measure, num_workers)
    rows = [
        {"split": split, "index": index, "clip": names[split][index]} | facts
        for split in splits
        for index, facts in enumerate(measured[split])
    ]
    columns = ("reason", "sampling_rate", "channels", "seconds", "level_dbfs", "clipped_share", "dc_offset", "content")
    return pandas.DataFrame(rows, columns=["split", "index", "clip", *columns])


def find_bad_labels(
    splits: dict[str, datasets.Dataset], clips: pandas.DataFrame, arguments: DataArguments
) -> list[dict]:
    """What a training would say of the labels of each clip."""
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
    counts = defaultdict(Counter)
    for split, data in splits.items():
        for group in data["group"] if "group" in data.column_names else ():
            counts[group][split] += 1
    return [{"group": group} | dict(own) for group, own in sorted(counts.items()) if len(own) > 1]


def find_repeats(clips: pandas.DataFrame) -> list[dict]:
    counts = defaultdict(Counter)
    for split, clip in zip(clips["split"], clips["clip"]):
        counts[os.path.normpath(clip)][split] += 1
    return [{"clip": clip} | dict(own) for clip, own in sorted(counts.items()) if own.total() > 1]


def find_duplicates(readable: pandas.DataFrame, splits: dict[str, datasets.Dataset]) -> dict[str, list[dict]]:
    """
    Clips with the same samples, rate and channels, in several splits or under several names. Digital silence is left
    out, which every clip of that kind and length shares.
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
    """What the samples themselves tell: rates, channels, levels and lengths."""
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
    """class -> split -> clips"""
    counts = {split: Counter() for split in splits}
    for split, data in splits.items():
        for label in data["label"]:
            counts[split].update(classes_of([label]))
    names = sorted(set().union(*counts.values()), key=sort_key)
    return {name: {split: own[name] for split, own in counts.items()} for name in names}


def find_odd_classes(classes: dict[str, dict[str, int]], splits: list[str]) -> dict[str, list[dict]]:
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
    """Pairs that differ in case, spaces or underscores alone, or in a few letters where one of them is rare."""
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
            # Names that are numbered are not slips of each other.
            if re.sub(r"\d+", "", name) != re.sub(r"\d+", "", other):
                found.setdefault(frozenset((name, other)), "a few letters")
    pairs = [(sorted(pair, key=lambda name: (-totals[name], name)), reason) for pair, reason in found.items()]
    return [
        {"class": one, "clips": totals[one], "like": two, "clips of that": totals[two], "differ in": reason}
        for (two, one), reason in sorted(pairs)
    ]


def _rows(clips: pandas.DataFrame, column: str) -> list[dict]:
    """The clips of a finding, with the value that they are listed for."""
    kinds = {"sampling_rate": int, "channels": int}
    convert = kinds.get(column, lambda value: value if isinstance(value, str) else round(float(value), 6))
    rows = zip(clips["split"], clips["clip"], clips[column])
    return [{"split": split, "clip": clip, column: convert(value)} for split, clip, value in rows]


def _values(readable: pandas.DataFrame, column: str) -> list[dict]:
    """A row per value, where there are several."""
    if readable[column].nunique() < 2:
        return []
    first = readable.drop_duplicates(column).set_index(column)["clip"]
    return [{column: int(value), "clips": n, "such as": first[value]} for value, n in _counts(readable[column]).items()]


def _counts(values: pandas.Series) -> dict[int, int]:
    return {int(value): int(count) for value, count in values.value_counts().sort_index().items()}


def print_report(report: dict):
    """The splits, the classes, and a table of the first findings of each kind."""
    for split, own in report["splits"].items():
        print(f"{split}: {own['clips']} clips, {own['seconds'] / 60:.1f} min")
    rates = ", ".join(f"{rate} Hz ({count})" for rate, count in report["sampling_rates"].items())
    channels = ", ".join(f"{number} ({count})" for number, count in report["channels"].items())
    print(f"sampling rates: {rates}; channels: {channels}")
    print_table("clips per class", [{"class": name} | own for name, own in report["classes"].items()])
    for found in report["findings"].values():
        if found["count"]:
            print_table(f"{found['severity']}: {found['meaning']}", found["items"])
    print(f"\n{report['errors']} errors, {report['warnings']} warnings")


def print_table(title: str, rows: list[dict]):
    print(f"\n{title} ({len(rows)})")
    if not rows:
        return
    header = list(dict.fromkeys(key for row in rows for key in row))
    cells = [header, *([_as_cell(row.get(key, "")) for key in header] for row in rows[:PRINTED])]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
    if len(rows) > PRINTED:
        print(f"  ... and {len(rows) - PRINTED} more")


def _as_cell(value) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def write_report(report: dict, path: Path):
    """Under another name first."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def main(argv: list[str] | None = None) -> int:
    """0 where nothing is an error, else 1."""
    logging.set_verbosity_error()
    try:
        data_arguments, arguments = parse(sys.argv[1:] if argv is None else argv)
        output = Path(arguments.output) if arguments.output else None
        if output is not None and not output.parent.is_dir():
            raise InputError(f"output: the folder {output.parent} does not exist; make it or name another")
        report = check(data_arguments, arguments.num_workers)
        if output is not None:
            write_report(report, output)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print_report(report)
    if output is not None:
        print(f"everything is in {output}")
    return int(report["errors"] > 0)


if __name__ == "__main__":
    sys.exit(main())
