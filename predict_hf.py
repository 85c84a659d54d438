"""Classifies audio files: `python predict_hf.py MODEL FILES-OR-FOLDERS [--top_k 3] [--output scores.csv]`."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_dual_ssast.classifier_dual_ssast import WindowedOutput
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.base.finite import OVERFLOW
from training.base.inference import labels_of, load_classifier
from training.base.predictions import score_table
from training.console import fail, run_program
from training.data.audio import audio_seconds, read_audio
from training.data.labels import LabelSet
from training.data.listing import find_audio_files
from training.errors import InputError, printable
from training.files import check_writable, write_csv
from training.recipe import Arguments, described, name_positionals, parse_words, show_help

USAGE = "predict_hf.py MODEL FILE-OR-FOLDER ... [--key value ...]"
KEPT = "tables are written at the end, so nothing is kept; give the same command again"


@dataclass
class PredictArguments(Arguments):
    """Defines the options of predict_hf.py."""

    model: str | None = described(None, "Folder or Hub name of a classifier of this project; the first word.")
    inputs: list[Path] | None = described(None, "Audio of any rate and length, and folders; the words after MODEL.")
    top_k: int = described(1, "Classes to print per file.", at_least=1)
    output: Path | None = described(None, "CSV for the scores of all classes.")
    windows: Path | None = described(None, "CSV for the scores of every window, with its times.")
    batch_size: int = described(8, "Clips per forward pass.", at_least=1)
    window_s: float | None = described(
        None, "Seconds per window of long clips; unset: the model's longest input.", above=0
    )
    hop_s: float | None = described(None, "Seconds from window to window; unset: half a window.", above=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.model or not self.inputs:
            raise InputError(f"usage: {USAGE}")


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        show_help((PredictArguments,), USAGE)
    return run_program(predict, argv, KEPT)


def predict(argv: list[str]) -> int:
    """Classifies what the command line names; returns 1 if anything could not be classified."""
    words = name_positionals(argv, PredictArguments, "model", "inputs")
    (arguments,) = parse_words((PredictArguments,), words, USAGE, "command line")
    for path in filter(None, (arguments.output, arguments.windows)):
        check_writable(path)
    model, extractor = load_classifier(arguments.model)
    labels = labels_of(arguments.model, model.config)
    files, empty_folders = list_files(arguments.inputs)
    logits, windows, failures = classify_files(model, extractor, files, arguments)
    if arguments.windows and windows:
        write_windows(model, labels, windows, arguments.windows)
    report(model, labels, logits, arguments)
    for message in empty_folders + failures:
        fail(message)
    if failures:
        print(f"{len(failures)} of {len(files)} files could not be classified", file=sys.stderr)
    return 1 if empty_folders or failures else 0


def list_files(inputs: list[Path]) -> tuple[list[str], list[str]]:
    """Returns the files, folders replaced by the audio files below them, and a message per empty folder."""
    files, empty_folders = [], []
    for path in inputs:
        found = find_audio_files(path) if os.path.isdir(path) else [path]
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
    Classifies files: long clips in windows, or all clips if options of windows are set.

    Returns:
        in the given order: logits (labels,) per readable file; windows of the files that were cut; a message per
        unreadable file
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
        for file in (file for file in batch if file not in short):
            windows[file] = classify_long(model, extractor, batch[file], arguments)
            logits[file] = windows[file].logits.mean(dim=0).numpy()
        for file in batch:
            if not np.isfinite(logits[file]).all():  # the highest of NaN scores would be the first class
                failures.append(f"{file}: {OVERFLOW}")
                del logits[file]
                windows.pop(file, None)
        progress.update(len(group))
    progress.close()
    logits, windows = ({file: found[file] for file in files if file in found} for found in (logits, windows))
    return logits, windows, failures


def group_by_length(files: list[str], longest_s: float, batch_size: int) -> list[list[str]]:
    """
    Groups files of similar length into batches, to reduce padding. A file longer than `longest_s` is a batch by itself:
    several could fill the memory.
    """
    durations_s = {file: duration_s(file) for file in files}
    by_length = sorted(durations_s, key=durations_s.get)
    short = [file for file in by_length if durations_s[file] <= longest_s]
    batches = [short[first : first + batch_size] for first in range(0, len(short), batch_size)]
    return batches + [[file] for file in by_length[len(short) :]]


def duration_s(file: str) -> float:
    """Returns the duration in seconds; 0 for unreadable files, which `read_audio` reports."""
    try:
        return audio_seconds(file)
    except InputError:
        return 0.0


@torch.no_grad()
def classify(model, extractor, clips: list[np.ndarray]) -> np.ndarray:
    """Returns the logits (clips, labels) of clips that fit into one window."""
    features = extractor(clips, sampling_rate=extractor.sampling_rate, padding="longest", return_tensors="pt")
    return model(**features.to(model.device)).logits.float().cpu().numpy()


def classify_long(model, extractor, audio: np.ndarray, arguments) -> WindowedOutput:
    """Returns the logits (windows, labels) and times of a clip in windows, on the CPU."""
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
    except ValueError as error:  # a window or hop that the model does not accept
        raise InputError(str(error)) from error
    windows.logits = windows.logits.float().cpu()
    return windows


def report(model, labels: LabelSet, logits: dict[str, np.ndarray], arguments):
    """Writes the table, and then prints the likeliest classes of each file, also where the disk is full."""
    if not logits:
        return
    scores = model.probabilities(torch.from_numpy(np.stack(list(logits.values())))).numpy()  # (files, labels)
    try:
        if arguments.output:
            write_csv(score_table(list(logits), labels, scores, model.config.decision_thresholds), arguments.output)
    finally:
        for file, row in zip(logits, scores):
            best = np.argsort(-row)[: arguments.top_k]
            found = ", ".join(f"{printable(labels.names[index])} {row[index]:.3f}" for index in best)
            print(f"{printable(file)}\t{found}")


def write_windows(model, labels: LabelSet, windows: dict[str, WindowedOutput], path: Path):
    """Writes a row per window: file, `start_s`, `end_s`, prediction and scores."""
    scores = model.probabilities(torch.cat([output.logits for output in windows.values()])).numpy()
    files = [file for file, output in windows.items() for _ in output.start_s]
    table = score_table(files, labels, scores, model.config.decision_thresholds)
    for place, name in enumerate(("start_s", "end_s"), start=1):
        times = torch.cat([getattr(output, name) for output in windows.values()])
        table.insert(place, name, times.numpy().round(6))
    write_csv(table, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
