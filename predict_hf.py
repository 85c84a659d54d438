"""Classifies audio files: `python predict_hf.py MODEL FILES-OR-FOLDERS [--top_k 3] [--output scores.csv]`."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm.auto import tqdm

from modeling_dual_ssast.classifier_dual_ssast import WindowedOutput
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.base.inference import labels_of, load_classifier
from training.classification.predictions import score_table
from training.data.audio import find_audio_files, read_audio
from training.data.labels import LabelSet
from training.errors import InputError


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict_hf.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="folder or Hub name of a classifier of this project")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="file-or-folder", help="audio of any rate and length")
    parser.add_argument(
        "--top_k", "--top-k", type=int, default=1, help="classes to print per file (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="CSV for the scores of all classes")
    parser.add_argument(
        "--batch_size", "--batch-size", type=int, default=8, help="clips per forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--window_s", "--window-s", type=float, help="seconds per window of long clips (default: the model's own)"
    )
    parser.add_argument("--windows", type=Path, help="CSV for the scores of every window, with its times")
    parser.add_argument("--hop_s", "--hop-s", type=float, help="seconds between windows (default: half a window)")
    arguments = parser.parse_args(argv)
    for name in ("top_k", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    return arguments


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    try:
        for path in (arguments.output, arguments.windows):
            check_output(path)
        model, extractor = load_classifier(arguments.model)
        labels = labels_of(arguments.model, model.config)
        files, empty_folders = list_files(arguments.inputs)
        logits, windows, failures = classify_files(model, extractor, files, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(model, labels, logits, arguments)
    if arguments.windows and windows:
        write_windows(model, labels, windows, arguments.windows)
    for message in empty_folders + failures:
        print(f"error: {message}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(files)} files could not be classified", file=sys.stderr)
    return 1 if empty_folders or failures else 0


def check_output(path: Path | None):
    """Before hours of classification, not after them."""
    if path and not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it or name another file")
    if path and path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")


def list_files(inputs: list[Path]) -> tuple[list[str], list[str]]:
    """Files as they are given, folders replaced by the audio files below them, and a message per empty folder."""
    files, empty_folders = [], []
    for path in inputs:
        found = find_audio_files(path) if path.is_dir() else [path]
        files += map(str, found)
        if not found:
            empty_folders.append(f"{path}: holds no audio files; name another folder")
    if not files:
        raise InputError(f"{', '.join(map(str, inputs))}: holds no audio files; name another folder")
    return files, empty_folders


def classify_files(
    model, extractor, files: list[str], arguments
) -> tuple[dict[str, np.ndarray], dict[str, WindowedOutput], list[str]]:
    """
    Logits (labels,) per readable file, in the given order, the windows of those that were heard in windows, and a
    message per unreadable one.

    Clips longer than the model's window are heard in windows; all are, where windows are asked for.
    """
    longest, _ = window_and_hop(model.base_model, extractor)
    windowed = any(value is not None for value in (arguments.window_s, arguments.hop_s, arguments.windows))
    logits, windows, failures = {}, {}, []
    batches = group_by_length(files, 0.0 if windowed else longest / extractor.sampling_rate, arguments.batch_size)
    progress = tqdm(total=sum(map(len, batches)), desc="classifying", unit="file", disable=None)
    for group in batches:
        batch = {}
        for file in group:
            try:
                batch[file] = read_audio(file, extractor.sampling_rate)
            except InputError as error:
                failures.append(str(error))
        short = {file: audio for file, audio in batch.items() if len(audio) <= longest and not windowed}
        if short:
            logits |= dict(zip(short, classify(model, extractor, list(short.values()))))
        for file in batch.keys() - short.keys():
            windows[file] = classify_long(model, extractor, batch[file], arguments)
            logits[file] = windows[file].logits.mean(dim=0).numpy()
        progress.update(len(group))
    progress.close()
    logits, windows = ({file: found[file] for file in files if file in found} for found in (logits, windows))
    return logits, windows, failures


def group_by_length(files: list[str], longest_s: float, batch_size: int) -> list[list[str]]:
    """
    Batches of files of similar length, so that a batch costs what its clips are long. Files longer than `longest_s`
    come alone: decoded, they could fill the memory.
    """
    durations_s = {file: duration_s(file) for file in files}
    by_length = sorted(durations_s, key=durations_s.get)
    short = [file for file in by_length if durations_s[file] <= longest_s]
    batches = [short[first : first + batch_size] for first in range(0, len(short), batch_size)]
    return batches + [[file] for file in by_length[len(short) :]]


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


def classify_long(model, extractor, audio: np.ndarray, arguments) -> WindowedOutput:
    """Logits (windows, labels) and times, on the CPU"""
    try:
        windows = model.classify_windows(
            audio,
            extractor,
            sampling_rate=extractor.sampling_rate,
            window_s=arguments.window_s,
            hop_s=arguments.hop_s,
            batch_size=arguments.batch_size,
            average=False,
        )
    except ValueError as error:  # a window or a hop that the model cannot take
        raise InputError(str(error)) from error
    windows.logits = windows.logits.float().cpu()
    return windows


def report(model, labels: LabelSet, logits: dict[str, np.ndarray], arguments):
    """Prints the likeliest classes of each file, and writes the CSV, which takes its place when it is complete."""
    if not logits:
        return
    scores = model.probabilities(torch.from_numpy(np.stack(list(logits.values())))).numpy()  # (files, labels)
    for file, row in zip(logits, scores):
        best = np.argsort(-row)[: arguments.top_k]
        print(f"{file}\t" + ", ".join(f"{labels.names[index]} {row[index]:.3f}" for index in best))
    if arguments.output:
        write_table(score_table(list(logits), labels, scores, model.config.decision_thresholds), arguments.output)


def write_windows(model, labels: LabelSet, windows: dict[str, WindowedOutput], path: Path):
    """A row per window: file, `start_s`, `end_s`, prediction and scores."""
    scores = model.probabilities(torch.cat([output.logits for output in windows.values()])).numpy()
    files = [file for file, output in windows.items() for _ in output.start_s]
    table = score_table(files, labels, scores, model.config.decision_thresholds)
    for place, name in enumerate(("start_s", "end_s"), start=1):
        times = torch.cat([getattr(output, name) for output in windows.values()])
        table.insert(place, name, times.numpy().round(6))
    write_table(table, path)


def write_table(table, path: Path):
    """A CSV, which takes its place when it is complete."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    table.to_csv(unfinished, index=False)
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
