"""Reads the recordings on which an export is compared with the model."""

import argparse
import dataclasses
from pathlib import Path

import datasets
import numpy as np

from ..base.inference import labels_of
from ..data.audio import audio_name, read_audio
from ..data.columns import Columns, audio_of
from ..data.listing import find_audio_files
from ..data.sources import load_folder
from ..data.tables import load_table
from ..errors import InputError
from ..files import read_json
from .graph import gives_frames

LENGTHS_S = (0.3, 1.0, 2.5, 5.0, 10.0, 15.0)
BATCH_SIZES = (1, 2, 4, 8)
RECORDINGS = Path(__file__).parent.parent.parent / "data"


def read_recordings(inputs: list[Path] | None, rate: int) -> list[np.ndarray]:
    """Reads clips (samples,) for the comparison."""
    if inputs is None:
        files = [path for name in ("voice_prompts", "instruments") for path in find_audio_files(RECORDINGS / name)]
        files = files[::16]
    else:
        files = [file for path in inputs for file in (find_audio_files(path) if path.is_dir() else [path])]
    if not files:
        raise InputError(
            f"--verify_with: {', '.join(map(str, inputs or [RECORDINGS]))} holds no audio files; name recordings"
        )
    return [read_audio(str(file), rate) for file in files]


WITH_ACCURACY = ("int8", "safetensors-fp16", "transformers-js")  # formats that round the weights


def labelled_clips(arguments: argparse.Namespace, model, rate: int) -> list[tuple[np.ndarray, int]] | None:
    """Reads labelled clips, ((samples,), class index) each; `None` without a labelled data set."""
    path, columns = arguments.data, Columns(label=arguments.label_column)
    if gives_frames(model):
        if path is not None:
            raise InputError(f"--data: {arguments.model} labels time frames, and accuracy is for clips; leave it out")
        return None
    if path is None and arguments.format in WITH_ACCURACY:
        path, columns = test_clips_of(Path(arguments.model))
    if path is None:
        return None
    if not hasattr(model, "classifier"):
        raise InputError(f"--data: {arguments.model} is an encoder without labels; leave it out")
    labels = labels_of(arguments.model, model.config)
    if labels.problem_type != "single_label_classification":
        raise InputError(f"--data: accuracy is for one label per clip, not {labels.problem_type}; leave it out")
    data = read_labelled(path, columns)
    clips = []
    for example in data:
        source = audio_of(example)
        clips.append((read_audio(source, rate), labels.encode(example["label"], audio_name(source))))
    return clips


def test_clips_of(folder: Path) -> tuple[Path | None, Columns | None]:
    """Finds the table of a run's test clips, if it still exists, and its columns."""
    if not (folder / "results.json").is_file():
        return None, None
    results = read_json(folder / "results.json", "evaluate the model anew (train_hf.py recipes/evaluation.yaml)")
    settings = results.get("recipe", {}).get("DataArguments", {})
    found = Path(settings["test_file"]) if settings.get("test_file") and not settings.get("unknown_classes") else None
    if results.get("problem_type") != "single_label_classification" or found is None or not found.is_file():
        return None, None
    names = {field.name: settings.get(f"{field.name}_column") for field in dataclasses.fields(Columns)}
    return found, Columns(**names | {"separator": settings.get("label_separator")})


def read_labelled(path: Path, columns: Columns) -> datasets.Dataset:
    """Loads a manifest, or the test split of a folder (all of it if it has none)."""
    if not path.is_dir():
        return load_table(path, columns)
    splits = load_folder(path, columns)
    return splits.get("test") or datasets.concatenate_datasets(list(splits.values()))


def pieces(clips: list[np.ndarray], rate: int, longest: int | None) -> list[list[np.ndarray]]:
    """Cuts the concatenated recordings into batches of pieces of mixed lengths, up to `longest` samples."""
    joined = np.concatenate(clips)
    lengths = [round(seconds * rate) for seconds in LENGTHS_S]
    lengths = [length for length in lengths if longest is None or length < longest]
    lengths += [longest] if longest is not None and longest <= LENGTHS_S[-1] * rate else []
    joined = np.tile(joined, -(-2 * max(lengths) // len(joined)))
    batches, start, place = [], 0, 0
    for size in BATCH_SIZES:
        batch = []
        for _ in range(size):
            length = lengths[place % len(lengths)]
            start = start if start + length <= len(joined) else 0
            batch.append(joined[start : start + length])
            start, place = start + length, place + 1
        batches.append(batch)
    return batches
