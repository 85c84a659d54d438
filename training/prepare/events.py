"""Reads data sets of sound events: ESC-50, UrbanSound8K, isolated urban events, bird calls, AudioSet."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas
from transformers.utils import logging

from ..data.listing import find_audio_files
from ..errors import InputError, blamed
from .common import (
    GET_AGAIN,
    Clip,
    Reader,
    as_given,
    audio_below,
    check_present,
    damaged,
    in_folds,
    need,
    pieces,
    read_lines,
    shared_out,
    warn_of_unreadable,
)

logger = logging.get_logger(__name__)

URBAN_PIECE_S = 0.4
URBAN_MOST_PIECES = 550  # per class
URBAN_CLASSES = {
    "bird": "bird", "citycar": "citycar", "constructionsite": "construction", "dog": "dog", "plane": "plane",
    "roadcar": "roadcar", "siren": "siren", "stepcity": "step", "steppark": "step", "stopcar": "stopcar",
    "train": "train", "truck": "truck",
}  # fmt: skip
BIRD_PIECE_S = 10.0


def read_esc50(folder: Path) -> list[Clip]:
    """Reads meta/esc50.csv (filename, fold, category, src_file) and audio/."""
    table = _table(folder / "meta" / "esc50.csv", "filename", "fold", "category", "src_file")
    return check_present(
        [
            Clip(folder / "audio" / row.filename, row.category, fold=row.fold, group=row.src_file)
            for row in table.itertuples()
        ]
    )


def read_urbansound8k(folder: Path) -> list[Clip]:
    """Reads metadata/UrbanSound8K.csv (slice_file_name, fsID, fold, class) and audio/fold1/."""
    table = _table(folder / "metadata" / "UrbanSound8K.csv", "slice_file_name", "fsID", "fold", "class")
    rows = zip(table["slice_file_name"], table["class"], table["fold"], table["fsID"])
    return check_present(
        [
            Clip(folder / "audio" / f"fold{fold}" / name, label, fold=fold, group=recording)
            for name, label, fold, recording in rows
        ]
    )


def read_isolated_urban(folder: Path) -> list[Clip]:
    """Reads event/**/bird05.wav of the paper's 11 classes (of 25), in pieces of 0.4 s, at most 550 per class."""
    by_class = defaultdict(list)
    for path in audio_below(need(folder / "event"), ".wav"):
        match = re.fullmatch(r"([a-z]+)\d+", path.stem.lower())
        label = URBAN_CLASSES.get(match[1]) if match else None
        if label is not None:
            by_class[label] += pieces(Clip(path, label, group=path.stem), URBAN_PIECE_S)
    if not by_class:
        raise InputError(f"{folder / 'event'}: holds no files that are called like bird05.wav")
    rng = np.random.default_rng(0)
    return [
        clips[index] for clips in by_class.values() for index in sorted(rng.permutation(len(clips))[:URBAN_MOST_PIECES])
    ]


def read_birdcall(folder: Path) -> list[Clip]:
    """Reads train.csv (ebird_code, filename, recordist) and train_audio/aldfly/XC134874.mp3, in pieces of 10 s."""
    table = _table(folder / "train.csv", "ebird_code", "filename", "recordist")
    clips, unreadable = [], []
    for row in table.itertuples():
        path = need(folder / "train_audio" / row.ebird_code / row.filename)
        try:
            clips += pieces(Clip(path, row.ebird_code, speaker=row.recordist, group=row.filename), BIRD_PIECE_S)
        except InputError:  # one of the published files is damaged
            unreadable.append(path)
    warn_of_unreadable(unreadable)
    return clips


def read_audioset20k(folder: Path) -> list[Clip]:
    """Reads balanced_train_segments.csv and eval_segments.csv."""
    return _read_audioset(folder, {"balanced_train": "train", "eval": "test"})


def read_audioset(folder: Path) -> list[Clip]:
    """Reads balanced_train_segments.csv, unbalanced_train_segments.csv and eval_segments.csv."""
    return _read_audioset(folder, {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"})


def _read_audioset(folder: Path, segments: dict[str, str]) -> list[Clip]:
    """
    Reads the segments with audio: files of 10 s anywhere below the folder, named by the YouTube id, possibly with a Y
    before it, and with the segment's start (and end) after it.
    """
    need(folder / "class_labels_indices.csv")
    audio = {}
    for path in find_audio_files(folder):
        match = re.fullmatch(r"(.{11})(_\d.*)?", path.stem) or re.fullmatch(r"Y(.{11})(_\d.*)?", path.stem)
        if match:
            audio[match[1]] = path
    clips, missing = [], 0
    for name, split in segments.items():
        path = folder / f"{name}_segments.csv"
        lines = [line for line in read_lines(path) if not line.startswith("#")]
        rows = list(csv.reader(lines, skipinitialspace=True))
        for line, row in zip(lines, rows):
            if len(row) != 4 or line.count('"') % 2:
                raise damaged(path, line, '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"')
        present = [row for row in rows if row[0] in audio]
        missing += len(rows) - len(present)
        clips += [Clip(audio[row[0]], row[3], split=split) for row in present]
    if missing:
        logger.warning(f"{missing} segments have no audio below {folder} and are left out")
    if not clips:
        raise InputError(f"{folder}: holds no audio of the listed segments, such as {rows[0][0]}.wav")
    return clips


def _table(path: Path, *columns: str) -> pandas.DataFrame:
    """Reads a CSV file as texts; raises `InputError` if it is damaged, or one of `columns` is missing."""
    with blamed(need(path), GET_AGAIN):
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    lacking = [name for name in columns if name not in table]
    if lacking:
        raise InputError(f"{path}: has no column {lacking[0]}")
    for name in columns:
        are_cut = (table[name] == "") & (table.iloc[:, -1] == "")  # too few cells become empty ones
        if are_cut.any():
            raise InputError(f"{path}: row {are_cut.argmax() + 1} has no {name}; {GET_AGAIN}")
    return table


READERS = {
    "isolated_urban": Reader(read_isolated_urban, {"paper": shared_out(), "recording": shared_out("group")}),
    "birdcall": Reader(
        read_birdcall,
        {"paper": shared_out(), "recording": shared_out("group"), "recordist": shared_out("speaker")},
    ),
    "esc50": Reader(read_esc50, {"paper": in_folds}),
    "urbansound8k": Reader(read_urbansound8k, {"paper": in_folds}),
    "audioset20k": Reader(read_audioset20k, {"paper": as_given}),
    "audioset": Reader(read_audioset, {"paper": as_given}),
}
