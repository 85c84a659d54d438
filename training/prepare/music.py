"""Reads and splits music data sets: GTZAN, NSynth, Surge."""

from pathlib import Path

from ..data.sources import SPLIT_NAMES
from ..errors import InputError, blamed
from ..files import read_json
from .common import (
    GET_AGAIN,
    Clip,
    Reader,
    as_given,
    audio_below,
    check_present,
    damaged,
    files_called,
    need,
    read_lines,
    readable,
    shared_out,
    warn_of_missing,
)

GTZAN_LISTS = {"train": "train_filtered.txt", "validation": "valid_filtered.txt", "test": "test_filtered.txt"}
SURGE_LIST = "dataset_surge_tone_splits.csv"


def read_gtzan(folder: Path) -> list[Clip]:
    """Reads genres/blues/blues.00000.wav (or .au), with splits by the fault-filtered lists if they are there."""
    genres = folder / "genres" if (folder / "genres").is_dir() else folder
    listed = {}
    for split, name in GTZAN_LISTS.items():
        found = next(iter(files_called(folder, name)), None)
        if found is not None:
            listed |= {Path(line).stem: split for line in read_lines(found)}
    paths = {
        path.stem: path for path in audio_below(genres, ".wav", ".au")
    }  # two downloads side by side contain all recordings twice
    warn_of_missing(listed, paths, "recordings")
    # One of the files on Kaggle, jazz.00054.wav, is damaged.
    return readable([Clip(path, path.parent.name, listed.get(stem)) for stem, path in paths.items()])


def split_gtzan(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
    """Returns the fault-filtered split; raises `InputError` if its lists are missing."""
    if all(clip.split is None for clip in clips):
        raise InputError(
            f"{', '.join(GTZAN_LISTS.values())}: are not in the folder; get them from "
            "https://github.com/jongpillee/music_dataset_split (GTZAN_split), or choose --split random"
        )
    return as_given([clip for clip in clips if clip.split is not None], seed)


def read_nsynth(folder: Path) -> list[Clip]:
    """Reads nsynth-train/examples.json and nsynth-train/audio/*.wav; the label is the instrument's family."""
    clips = []
    for split in ("train", "valid", "test"):
        part = need(folder / f"nsynth-{split}")
        path = need(part / "examples.json")
        notes = read_json(path, GET_AGAIN)
        with blamed(path, GET_AGAIN):
            clips += [
                Clip(part / "audio" / f"{name}.wav", note["instrument_family_str"], split, group=note["instrument_str"])
                for name, note in notes.items()
            ]
    return check_present(clips)


def read_surge(folder: Path) -> list[Clip]:
    """Reads PRESET/60.ogg (the label is the note's MIDI number), with EVAR's splits if its list is there."""
    found = next(iter(files_called(folder, SURGE_LIST)), None)
    listed = {}
    for line in read_lines(found)[1:] if found else ():
        preset, comma, split = line.rpartition(",")
        if not comma or split not in SPLIT_NAMES:
            raise damaged(found, line, "surge-patches-1-velocity64,train")
        listed[preset] = split
    paths = audio_below(folder, ".ogg")
    warn_of_missing(listed, (path.parent.name for path in paths), "presets")
    return [Clip(path, path.stem, listed.get(path.parent.name), group=path.parent.name) for path in paths]


def split_surge(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
    """Returns EVAR's split if its list is there, else draws a tenth of the presets each for validation and test."""
    if all(clip.split is None for clip in clips):
        return shared_out("group", validation=0.1, test=0.1)(clips, seed)
    return as_given([clip for clip in clips if clip.split is not None], seed)


READERS = {
    "gtzan": Reader(read_gtzan, {"paper": split_gtzan, "random": shared_out()}),
    "nsynth": Reader(read_nsynth, {"paper": as_given}),
    "surge": Reader(read_surge, {"paper": split_surge}),
}
