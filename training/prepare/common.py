"""Describes data sets and clips, finds files, and divides clips into splits."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers.utils import logging

from ..data.audio import audio_seconds, check_audio
from ..data.listing import find_audio_files, find_files
from ..data.sources import SPLIT_NAMES
from ..errors import InputError, blamed, short

logger = logging.get_logger(__name__)

SPLITS = ("train", "validation", "test")
GET_AGAIN = "it may be cut off: unpack or download it again"


@dataclass
class Clip:
    """Holds a recording, or its segment from `start` to `end` (seconds), with label, split, fold, speaker and group."""

    path: Path
    label: str
    split: str | None = None
    fold: str | None = None
    speaker: str | None = None
    group: str | None = None  # must stay in one split: a recording, an instrument, ...
    start: float | None = None
    end: float | None = None


# Clips and a seed -> manifests: name -> clips.
Splitter = Callable[[list[Clip], int], dict[str, list[Clip]]]


class Reader(NamedTuple):
    """Reads the clips of a data set's folder; splits: name -> splitter, the first is the default."""

    read: Callable[[Path], list[Clip]]
    splits: dict[str, Splitter]


@dataclass(frozen=True)
class DatasetInfo:
    """Describes a data set: its entry in `catalogue.yaml` (its licence, its use in papers), and its reader."""

    name: str
    read: Callable[[Path], list[Clip]]
    splits: dict[str, Splitter]
    title: str
    source: str
    licence: str
    citation: str
    layout: str
    num_classes: int
    metric: str
    split: str
    leaks: str
    num_clips: int | None = None
    copies: tuple[str, ...] = ()


def need(path: Path) -> Path:
    """Returns the path; raises `InputError` if nothing exists there."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return path


def audio_below(folder: Path, *extensions: str) -> list[Path]:
    """Returns the files with these extensions below a folder, sorted; raises `InputError` if none exists."""
    paths = [path for path in find_audio_files(need(folder)) if path.suffix.lower() in extensions]
    if not paths:
        raise InputError(f"{folder}: holds no {' or '.join(extensions)} files")
    return paths


def check_present(clips: list[Clip]) -> list[Clip]:
    """Returns the clips; raises `InputError` if files that the data set lists are missing."""
    missing = [clip.path for clip in clips if not clip.path.exists()]
    if missing:
        raise InputError(f"{missing[0]}: is listed but missing, and {len(missing) - 1} more of {len(clips)}")
    return clips


def readable(clips: list[Clip]) -> list[Clip]:
    """Returns the clips with readable audio, and warns of the others: some published data sets have damaged files."""
    kept, unreadable = [], []
    for clip in clips:
        try:
            check_audio(str(clip.path))
            kept.append(clip)
        except InputError:
            unreadable.append(clip.path)
    warn_of_unreadable(unreadable)
    return kept


def warn_of_unreadable(paths: list[Path]):
    """Warns if recordings of a data set cannot be read."""
    if paths:
        logger.warning(f"{len(paths)} recordings cannot be read and are left out, such as {paths[0]}")


def warn_of_missing(listed: Iterable[str], found: Iterable[str], what: str):
    """Warns if listed names are not found: the split is then smaller than the published one."""
    missing = sorted(set(listed) - set(found))
    if missing:
        logger.warning(f"{len(missing)} {what} of the lists are missing and are left out, such as {missing[0]}")


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file, without empty ones; raises `InputError` if it is missing or not UTF-8."""
    with blamed(need(path), GET_AGAIN):
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def damaged(path: Path, line: str, example: str) -> InputError:
    """Returns the error of a line of a list that is cut off or of another form."""
    return InputError(f"{path}: {short(line, 80)!r} is no line like {example!r}; {GET_AGAIN}")


def files_called(folder: Path, name: str) -> list[Path]:
    """Returns the files of that name below a folder, sorted, but not those of hidden folders, such as a waste bin."""
    return [path for path in find_files(folder, (Path(name).suffix,)) if path.name == name]


def pieces(recording: Clip, seconds: float) -> list[Clip]:
    """
    Divides a recording into pieces of `seconds`; drops the rest at its end.

    Raises:
        InputError: the recording cannot be read.
    """
    count = int(audio_seconds(str(recording.path)) / seconds + 1e-6)
    return [
        replace(recording, start=round(index * seconds, 6), end=round((index + 1) * seconds, 6))
        for index in range(count)
    ]


def as_given(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
    """Returns the data set's own splits, under this project's names."""
    splits = defaultdict(list)
    for clip in clips:
        splits[SPLIT_NAMES[clip.split]].append(clip)
    return {split: splits[split] for split in SPLITS if split in splits}


def in_folds(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
    """Returns all clips with their folds; also the last fold as test split and the others as training split."""
    last = max({clip.fold for clip in clips}, key=lambda fold: (len(fold), fold))  # 10 comes after 9
    return {
        "clips": clips,
        "train": [clip for clip in clips if clip.fold != last],
        "test": [clip for clip in clips if clip.fold == last],
    }


def shared_out(by: str | None = None, validation: float = 0.1, test: float = 0.2) -> Splitter:
    """
    Returns a splitter that draws whole speakers or groups (`by`), or single clips (`None`), at random. Those that have
    one class are drawn separately for each class.

    Args:
        validation, test: shares of the speakers, groups or clips
    """

    def split(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
        together = defaultdict(list)
        for index, clip in enumerate(clips):
            together[getattr(clip, by) if by else index].append(clip)
        strata = defaultdict(list)
        for members in together.values():
            labels = {clip.label for clip in members}
            strata[labels.pop() if len(labels) == 1 else None].append(members)
        rng = np.random.default_rng(seed)
        splits = {name: [] for name in SPLITS}
        for stratum in strata.values():
            order = [stratum[index] for index in rng.permutation(len(stratum))]
            num_test = min(_at_least_one(test, len(order)), len(order) - 1)
            num_validation = min(_at_least_one(validation, len(order)), len(order) - 1 - num_test)
            bounds = {"test": (0, num_test), "validation": (num_test, num_test + num_validation)}
            bounds["train"] = (num_test + num_validation, len(order))
            for name, (start, stop) in bounds.items():
                splits[name] += [clip for members in order[start:stop] for clip in members]
        return {name: members for name, members in splits.items() if members}

    return split


def tested_on(*speakers: str, validation_by: str) -> Splitter:
    """Returns a splitter: test on the given speakers, validation on a tenth of the others' `validation_by`."""

    def split(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
        others = [clip for clip in clips if clip.speaker not in speakers]
        test = [clip for clip in clips if clip.speaker in speakers]
        if not others or not test:
            raise InputError(f"the test speakers {', '.join(speakers)} or all others are missing; unpack everything")
        return {**shared_out(validation_by, test=0)(others, seed), "test": test}

    return split


def as_authors(is_test: Callable[[Clip], bool], missing: str) -> Splitter:
    """
    Returns a splitter of the Dual SSAST authors' lists. They choose the epoch on the test clips, so these are the
    validation clips too; `missing` is the message where no clip is a test clip, or all are.
    """

    def split(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
        test, training = ([clip for clip in clips if is_test(clip) == wanted] for wanted in (True, False))
        if not test or not training:
            raise InputError(missing)
        return {"train": training, "validation": test, "test": test}

    return split


def _at_least_one(share: float, count: int) -> int:
    return max(1, round(share * count)) if share else 0
