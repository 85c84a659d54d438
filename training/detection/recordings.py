"""Loads annotated recordings, divides them into splits, and finds their labels."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from transformers.utils import logging

from ..data.annotations import AnnotatedRecording, load_annotations
from ..data.audio import AudioSource, audio_name, audio_seconds, num_samples, segment_name
from ..data.columns import Columns, audio_of, clip_names, stored_paths
from ..data.events import BACKGROUND, Event
from ..data.labels import LabelSet, read_label_file, sort_key, without_label
from ..data.screening import check_files
from ..data.splits import count_repeats
from ..data.tables import load_table
from ..errors import InputError, printable
from .arguments import DetectionDataArguments

logger = logging.get_logger(__name__)

NUM_DIVISIONS = 200  # random ones, of which the most even is taken
LONGER = 1.05  # than a crop; crops are whole frames, and a little shorter than what a model takes
UNSURE = -1  # in place of a label's index
PROBLEM_TYPE = "multi_label_classification"


class Stretch(NamedTuple):
    """Holds a recording, or a stretch of it, with its events from the stretch's beginning on, in seconds."""

    source: AudioSource
    name: str
    duration_s: float
    events: tuple[Event, ...]
    unsure: tuple[Event, ...] = ()
    site: str | None = None


class Annotated(NamedTuple):
    """
    Holds a stretch as a training reads it.

    Args:
        num_samples: at the model's rate
        intervals: (events, 2), first sample of each event and the one after its last
        labels: (events,), index of the label, or `UNSURE`
    """

    source: AudioSource
    name: str
    num_samples: int
    intervals: np.ndarray
    labels: np.ndarray


class WeakClips(NamedTuple):
    """
    Holds clips of which it is known what sounds in them, but not when.

    Args:
        sources: the clips
        labels: (clips, labels), 0 or 1
    """

    sources: list[AudioSource]
    labels: np.ndarray


def load_weak(
    arguments: DetectionDataArguments,
    labels: LabelSet,
    splits: Mapping[str, Sequence[Stretch]] | None = None,
    crop_s: float = math.inf,
) -> WeakClips | None:
    """
    Returns the clips of `weak_annotations`, if they are set, without recordings of the validation and test; with
    `on_bad_audio` skip without those whose headers cannot be read. Warns of clips that are longer than a crop.

    Args:
        splits: what `load_splits` returns
        crop_s: seconds of a crop

    Raises:
        InputError: an unreadable table or clip, a label that the annotations do not have, or no clip is left.
    """
    if not arguments.weak_annotations:
        return None
    table = load_table(Path(arguments.weak_annotations), Columns(separator=arguments.label_separator, is_multi=True))
    table = _apart(arguments.weak_annotations, table, splits or {})
    longer = []

    def check(source: AudioSource):
        if audio_seconds(source) > LONGER * crop_s:
            longer.append(audio_name(source))

    if arguments.on_bad_audio == "skip":
        table = _readable(arguments.weak_annotations, table, check)
    else:
        check_files({"weak_annotations": table}, check)
    if longer:
        logger.warning(
            f"{arguments.weak_annotations}: {len(longer)} of {len(table)} clips are longer than a crop of {crop_s:.4g} "
            f"s, such as {printable(longer[0])}: what is read of them has all their labels, also those of sounds "
            "elsewhere; set a longer crop_s, or cut the clips"
        )
    # Background stands for no event, as in the annotations.
    rows = [
        labels.encode(without_label(label, BACKGROUND), name) for label, name in zip(table["label"], clip_names(table))
    ]
    return WeakClips([audio_of(row) for row in table], np.stack(rows))


def _apart(name: str, table: datasets.Dataset, splits: Mapping[str, Sequence[Stretch]]) -> datasets.Dataset:
    """Returns the clips of a table that are no recordings of the validation or test; warns of the others."""
    held_out = {
        os.path.realpath(one.source if isinstance(one.source, str) else one.source["path"])
        for split in splits.keys() - {"train"}
        for one in splits[split]
    }
    paths = stored_paths(table)
    kept = [index for index, path in enumerate(paths) if path is None or os.path.realpath(path) not in held_out]
    if len(kept) == len(paths):
        return table
    first = printable(paths[min(set(range(len(paths))) - set(kept))])
    if not kept:
        raise InputError(
            f"{name}: all of its {len(paths)} clips are recordings of the validation or test, such as {first}; name "
            "clips of other recordings, or leave weak_annotations out"
        )
    logger.warning(
        f"{name}: {len(paths) - len(kept)} of {len(paths)} clips are recordings of the validation or test and are left "
        f"out, such as {first}"
    )
    return table.select(kept)


def _readable(name: str, table: datasets.Dataset, check: Callable[[AudioSource], None]) -> datasets.Dataset:
    """Returns the clips of a table that `check` does not refuse; warns of the others."""
    kept, failures = [], []
    for index, row in enumerate(table):
        try:
            check(audio_of(row))
            kept.append(index)
        except InputError as error:
            failures.append(str(error))
    if not kept:
        raise InputError(f"{name}: none of its {len(table)} clips can be read, such as {failures[0]}")
    if failures:
        logger.warning(f"{name}: {len(failures)} of {len(table)} clips cannot be read and are left out: {failures[0]}")
    return table.select(kept)


def load_splits(arguments: DetectionDataArguments, seed: int) -> dict[str, list[Stretch]]:
    """
    Returns the annotated stretches of the splits `train` and, where there are any, `validation` and `test`. A split
    that the recipe does not name is set aside from the training annotations. Unlabelled recordings are left out.

    Raises:
        InputError: unreadable annotations, too few recordings (or sites) to divide, or recordings without a site.
    """
    found = load_annotations(arguments, arguments.on_bad_audio)
    splits = {split: [_whole(one) for one in own if one.events is not None] for split, own in found.items()}
    for split, own in splits.items():
        if not own:
            raise InputError(f"{getattr(arguments, f'{split}_annotations')}: no recording is annotated; add some")
    _warn_of_repeats(splits)
    fractions = {"test": arguments.test_fraction, "validation": arguments.validation_fraction}
    missing = {split: share for split, share in fractions.items() if share and split not in splits}
    if arguments.split_by == "time":
        return _divide_in_time(splits, missing)
    if missing and arguments.split_by == "site":
        _check_sites(arguments, splits["train"])
    for split, share in missing.items():
        splits["train"], splits[split] = _set_aside(splits["train"], split, share, arguments.split_by, seed)
    return splits


def _check_sites(arguments: DetectionDataArguments, stretches: list[Stretch]):
    """Raises `InputError` for recordings without a site, which may be of a site that a division must not divide."""
    nowhere = [one.name for one in stretches if one.site is None]
    if nowhere:
        raise InputError(
            f"{arguments.train_annotations}: {len(nowhere)} of {len(stretches)} annotated recordings have no site by "
            f"{arguments.site!r}, such as {printable(nowhere[0])}; fill it in, or set split_by: recording"
        )


def _warn_of_repeats(splits: dict[str, list[Stretch]]):
    """Warns of recordings that several splits annotate: a test on what was learnt is invalid."""
    counts = count_repeats((split, os.path.realpath(one.source)) for split, own in splits.items() for one in own)
    repeated = [path for path, own in counts.items() if len(own) > 1]
    if repeated:
        named = f"such as {printable(min(repeated))}"
        logger.warning(f"{len(repeated)} recordings are annotated in more than one split, {named}: is that meant?")


def _whole(recording: AnnotatedRecording) -> Stretch:
    path = str(recording.path)
    return Stretch(path, path, recording.duration_s, recording.events, recording.unsure, recording.site)


def _divide_in_time(splits: dict[str, list[Stretch]], shares: dict[str, float]) -> dict[str, list[Stretch]]:
    """Cuts the end of every training recording off for the test, and what is before it for validation."""
    splits, wholes, end = dict(splits), splits["train"], 1.0
    for split, share in shares.items():
        splits[split] = [part(whole, (end - share) * whole.duration_s, end * whole.duration_s) for whole in wholes]
        end -= share
    if shares:
        splits["train"] = [part(whole, 0.0, end * whole.duration_s) for whole in wholes]
    return splits


def part(stretch: Stretch, start_s: float, end_s: float) -> Stretch:
    """Cuts a part out of a whole recording, and its events at the edges; times in seconds."""

    def cut(events: tuple[Event, ...]) -> tuple[Event, ...]:
        # An event without duration belongs to the part that begins with it, the recording's end to the last part.
        inside = [
            event
            for event in events
            if (event.onset_s < end_s or event.onset_s == end_s == stretch.duration_s)
            and (event.offset_s > start_s or event.onset_s >= start_s)
        ]
        return tuple(
            event._replace(onset_s=max(event.onset_s, start_s) - start_s, offset_s=min(event.offset_s, end_s) - start_s)
            for event in inside
        )

    source = {"path": stretch.source, "start": start_s, "end": end_s}
    name = segment_name(stretch.name, start_s, end_s)
    return Stretch(source, name, end_s - start_s, cut(stretch.events), cut(stretch.unsure), stretch.site)


def _set_aside(
    stretches: list[Stretch], split: str, share: float, by: str, seed: int
) -> tuple[list[Stretch], list[Stretch]]:
    """
    Divides stretches in whole recordings or sites: of many random divisions the one in which the shares of each class's
    events and of the time are the most even.
    """
    groups = [one.name if by == "recording" else one.site for one in stretches]
    names = sorted(set(groups))
    if len(names) < 2:
        raise InputError(
            f"{split}_fraction: {share:g} cannot be set aside from a single {by}; name {split}_annotations, set "
            f"split_by: time, or {split}_fraction: 0"
        )
    labels = sorted({event.label for one in stretches for event in one.events})
    places = {name: index for index, name in enumerate(names)}
    totals = np.zeros((len(names), len(labels) + 1))  # of each group: events per label, and seconds
    for one, group in zip(stretches, groups):
        totals[places[group], -1] += one.duration_s
        for event in one.events:
            totals[places[group], labels.index(event.label)] += 1
    totals = totals / totals.sum(axis=0)
    rng = np.random.default_rng(seed)
    best, least = None, np.inf
    for _ in range(NUM_DIVISIONS):
        order = rng.permutation(len(names))
        count = int(np.clip(np.abs(np.cumsum(totals[order, -1]) - share).argmin() + 1, 1, len(names) - 1))
        found = totals[order[:count]].sum(axis=0)
        unevenness = np.square(found - share).sum() + (found[:-1] > 0.999).sum()  # a class must be learnt somewhere
        if unevenness < least:
            best, least = {names[index] for index in order[:count]}, unevenness
    sides = [[one for one, group in zip(stretches, groups) if (group in best) == chosen] for chosen in (False, True)]
    return sides[0], sides[1]


def choose_labels(splits: dict[str, list[Stretch]], arguments: DetectionDataArguments, stored_config) -> LabelSet:
    """
    Returns the label set: of the label file, else of the training events and what was set aside from them, but never
    `background`, which stands for no event; in the order of a fine-tuned checkpoint with the same classes.

    Raises:
        InputError: no event has a label, or the label file holds `background`.
    """
    if arguments.label_file:
        names = tuple(read_label_file(Path(arguments.label_file)).values())
        if BACKGROUND in names:
            raise InputError(f"{arguments.label_file}: {BACKGROUND} stands for no event; leave it out, or rename it")
        return LabelSet(names, PROBLEM_TYPE)
    named = {split for split in ("validation", "test") if getattr(arguments, f"{split}_annotations")}
    stretches = [one for split, own in splits.items() if split not in named for one in own]
    names = {event.label for one in stretches for event in one.events} - {BACKGROUND}
    names = tuple(sorted(names, key=sort_key))
    if not names:
        raise InputError(f"{arguments.train_annotations}: holds no events; a detector needs some to learn from")
    if stored_config is not None and set(stored_config.id2label.values()) == set(names):
        names = tuple(stored_config.id2label[index] for index in range(len(names)))
    return LabelSet(names, PROBLEM_TYPE)


def with_known_labels(split: str, stretches: list[Stretch], labels: LabelSet) -> list[Stretch]:
    """Returns the stretches without events of labels that the label set lacks; warns of them."""
    unknown = [event for one in stretches for event in one.events if event.label not in labels.label2id]
    nothing = [event for event in unknown if event.label == BACKGROUND]
    unknown = [event for event in unknown if event.label != BACKGROUND]
    if nothing:
        logger.warning(
            f"{split}: {len(nothing)} events are called {BACKGROUND}, which stands for no event, and are left out; "
            "rename them with label_map to learn them"
        )
    if unknown:
        logger.warning(
            f"{split}: {len(unknown)} events have labels that the training lacks, and are left out, such as "
            f"{printable(unknown[0].label)}"
        )
    return [
        one._replace(events=tuple(event for event in one.events if event.label in labels.label2id)) for one in stretches
    ]


def encode(stretches: list[Stretch], labels: LabelSet, rate: int) -> list[Annotated]:
    """Returns the stretches with times in samples at `rate` Hz."""
    found = []
    for one in stretches:
        times = [(event.onset_s, event.offset_s) for event in (*one.events, *one.unsure)]
        indices = [labels.label2id[event.label] for event in one.events] + [UNSURE] * len(one.unsure)
        count = num_samples(one.source, rate)
        intervals = np.minimum(np.asarray(times, dtype=np.float64).reshape(-1, 2) * rate, count)
        intervals[:, 0] = np.minimum(intervals[:, 0], count - 1)  # without duration at the end: in the last frame
        found.append(Annotated(one.source, one.name, count, intervals, np.asarray(indices, dtype=np.int64)))
    return found
