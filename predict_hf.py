"""Classifies audio files: `python predict_hf.py MODEL FILES-OR-FOLDERS [--top_k 3] [--output scores.csv]`."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas
import soundfile
import torch
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

import modeling_dual_ssast  # noqa: F401  registers the Auto classes
from training.audio import find_audio_files, read_audio
from training.errors import InputError
from training.reporting import probabilities


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict_hf.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="folder or Hub name of a classifier of this project")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="file-or-folder", help="audio of any rate and length")
    parser.add_argument("--top_k", type=int, default=1, help="classes to print per file (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="CSV for the scores of all classes")
    parser.add_argument("--batch_size", type=int, default=8, help="clips per forward pass (default: %(default)s)")
    parser.add_argument(
        "--window_s", type=float, help="seconds per window of long clips (default: the model's longest)"
    )
    parser.add_argument("--hop_s", type=float, help="seconds between windows (default: half a window)")
    arguments = parser.parse_args(argv)
    for name in ("top_k", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    return arguments


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    try:
        model, extractor = load(arguments.model)
        files = list_files(arguments.inputs)
        logits, failures = classify_files(model, extractor, files, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(model, logits, arguments)
    for message in failures:
        print(f"error: {message}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(files)} files could not be classified", file=sys.stderr)
    return 1 if failures else 0


def load(name: str):
    """The classifier, ready for inference on the accelerator if there is one, and its feature extractor."""
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name)
        model = AutoModelForAudioClassification.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name}: not a classifier that can be loaded ({reason}); name a folder or a Hub model"
        ) from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.eval().to(device), extractor


def list_files(inputs: list[Path]) -> list[str]:
    """Files as they are given, folders replaced by the audio files below them."""
    files = []
    for path in inputs:
        found = find_audio_files(path) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: holds no audio files; name another folder")
        files += map(str, found)
    return files


def classify_files(model, extractor, files: list[str], arguments) -> tuple[dict[str, np.ndarray], list[str]]:
    """
    Logits (labels,) per readable file, in the given order, and a message per unreadable one.

    Files are grouped by length, so that a batch costs what its clips are long; clips beyond the model's length are
    heard in windows.
    """
    longest = int(extractor.max_seconds * extractor.sampling_rate)  # samples
    windowed = arguments.window_s is not None or arguments.hop_s is not None
    logits, failures = {}, []
    by_length = sorted(dict.fromkeys(files), key=duration_s)
    progress = tqdm(total=len(by_length), desc="classifying", unit="file", disable=None)
    for first in range(0, len(by_length), arguments.batch_size):
        batch = {}
        for file in by_length[first : first + arguments.batch_size]:
            try:
                batch[file] = read_audio(file, extractor.sampling_rate)
            except InputError as error:
                failures.append(str(error))
        short = {file: audio for file, audio in batch.items() if len(audio) <= longest and not windowed}
        if short:
            logits |= dict(zip(short, classify(model, extractor, list(short.values()))))
        for file in batch.keys() - short.keys():
            logits[file] = classify_long(model, extractor, batch[file], arguments)
        progress.update(min(arguments.batch_size, len(by_length) - first))
    progress.close()
    return {file: logits[file] for file in files if file in logits}, failures


def duration_s(file: str) -> float:
    """Seconds by the header; unreadable files go first and are told by `read_audio`."""
    try:
        return soundfile.info(file).duration
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return 0.0


@torch.no_grad()
def classify(model, extractor, clips: list[np.ndarray]) -> np.ndarray:
    """(clips, labels)"""
    features = extractor(clips, sampling_rate=extractor.sampling_rate, padding="longest", return_tensors="pt")
    return model(**features.to(model.device)).logits.float().cpu().numpy()


def classify_long(model, extractor, audio: np.ndarray, arguments) -> np.ndarray:
    """(labels,), averaged over windows"""
    try:
        windows = model.classify_windows(
            audio,
            extractor,
            sampling_rate=extractor.sampling_rate,
            window_s=arguments.window_s,
            hop_s=arguments.hop_s,
            batch_size=arguments.batch_size,
        )
    except ValueError as error:  # a window or a hop that the model cannot take
        raise InputError(str(error)) from error
    return windows.logits.float().cpu().numpy()


def report(model, logits: dict[str, np.ndarray], arguments):
    """Prints the likeliest classes of each file, and writes the CSV, which takes its place only when it is complete."""
    if not logits:
        return
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    problem_type = model.config.problem_type or "single_label_classification"
    scores = probabilities(np.stack(list(logits.values())), problem_type)  # (files, labels)
    for file, row in zip(logits, scores):
        best = np.argsort(-row)[: arguments.top_k]
        print(f"{file}\t" + ", ".join(f"{names[index]} {row[index]:.3f}" for index in best))
    if arguments.output:
        table = pandas.DataFrame(scores, columns=names)
        table.insert(0, "file", list(logits))
        table.insert(1, "prediction", [names[index] for index in scores.argmax(axis=1)])
        unfinished = arguments.output.with_name(arguments.output.name + ".unfinished")
        table.to_csv(unfinished, index=False)
        os.replace(unfinished, arguments.output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
