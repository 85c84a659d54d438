"""Turns published data sets into the manifests that the recipes in recipes/datasets read."""

import csv
import filecmp
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import yaml
from transformers.utils import logging

from ..errors import InputError
from ..files import TEXT_ERRORS, check_writable, complete_file
from . import emotion, events, music, speech
from .common import SPLITS, Clip, DatasetInfo

READERS = emotion.READERS | events.READERS | speech.READERS | music.READERS
DATASETS = {
    name: DatasetInfo(name, *READERS[name], **entry)
    for name, entry in yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")).items()
}
logger = logging.get_logger(__name__)

MANIFESTS = ("clips", *SPLITS)
COLUMNS = ("label", "start", "end", "fold", "speaker", "group")


def prepare(name: str, folder: Path, output: Path, split: str = "paper", seed: int = 0) -> dict[str, int]:
    """
    Writes `train.csv` and the split's other manifests to `output`, with the columns `file_name` and `label` and, where
    known, `fold`, `speaker`, `group`, and `start` and `end` (seconds) of segments of recordings.

    Returns:
        manifest -> number of clips

    Raises:
        InputError: an unknown data set or split, or a folder without the unpacked data set.
    """
    info = find(name)
    if split not in info.splits:
        raise InputError(f"--split {split}: is unknown; {name} has {', '.join(info.splits)}")
    check_output(output, folder, info.copies)
    try:
        clips = info.read(folder)
    except InputError as error:
        raise InputError(f"{error}. {info.title} is expected as {info.layout}; get it from {info.source}") from None
    if info.num_clips and len(clips) < info.num_clips:
        logger.warning(f"{folder}: {len(clips)} of {info.num_clips} clips; the download of {info.title} is incomplete")
    manifests = info.splits[split](clips, seed)
    output.mkdir(parents=True, exist_ok=True)
    for file in info.copies:
        shutil.copyfile(folder / file, output / file)
    # The same columns in every manifest, since a recipe names them once.
    columns = [column for column in COLUMNS if any(getattr(clip, column) is not None for clip in clips)]
    for manifest, members in manifests.items():
        write_manifest(output / f"{manifest}.csv", members, columns)
    for manifest in set(MANIFESTS) - set(manifests):  # manifests of an earlier split would mix with the new ones
        (output / f"{manifest}.csv").unlink(missing_ok=True)
    return {manifest: len(members) for manifest, members in manifests.items()}


def find(name: str) -> DatasetInfo:
    """Returns the data set of that name; raises `InputError` if it is unknown."""
    if name not in DATASETS:
        raise InputError(f"{name}: is no known data set; known are {', '.join(DATASETS)}")
    return DATASETS[name]


def check_output(output: Path, folder: Path, copies: Iterable[str] = ()):
    """
    Checks that manifests, and copies of files of the data set, can be written to a folder.

    Raises:
        InputError: the disk refuses them, or they would replace files of the data set, or files that are neither.
    """
    check_writable(output, is_folder=True)
    if output.resolve() == folder.resolve():
        raise InputError(f"--output {output}: is the folder of the data set; name another one")
    for manifest in MANIFESTS:
        check_manifest(output / f"{manifest}.csv")
    for name in copies:
        path, own = output / name, folder / name
        if path.exists() and own.exists() and not filecmp.cmp(path, own, shallow=False):
            raise InputError(f"{path}: is not that of {folder} and would be replaced; name another --output")


def check_manifest(path: Path):
    """Raises `InputError` if a file is there that `write_manifest` has not written, and would replace."""
    if path.exists() and not (path.is_file() and _is_manifest(path)):
        raise InputError(f"{path}: is no manifest of this program and would be replaced; name another --output")


def _is_manifest(path: Path) -> bool:
    """Returns whether a table has no columns but those of a manifest, and absolute paths: others' are mostly not."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            header, *rows = itertools.islice(csv.reader(file), 2)
        except (csv.Error, ValueError):  # ValueError: not a single row
            return False
    has_own_columns = header[:1] == ["file_name"] and {*header[1:]} <= {*COLUMNS}
    return has_own_columns and all(row and os.path.isabs(row[0]) for row in rows)


def write_manifest(path: Path, clips: list[Clip], columns: list[str]):
    """Writes a row per clip, with the absolute path of its file."""
    with complete_file(path) as part, part.open("w", newline="", encoding="utf-8", errors=TEXT_ERRORS) as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *columns])
        writer.writerows([clip.path.resolve(), *(getattr(clip, column) for column in columns)] for clip in clips)


def describe(info: DatasetInfo) -> str:
    """Describes a data set: source, licence, layout, splits and leaks."""
    lines = {
        "title": info.title,
        "get it from": info.source,
        "licence": info.licence,
        "cite": info.citation,
        "unpacked as": info.layout,
        "classes": info.num_classes,
        "metric": info.metric,
        "split": info.split,
        "leaks": info.leaks,
        "--split": ", ".join(info.splits),
    }
    return "\n".join(f"{name + ':':<13}{value}" for name, value in lines.items())
