"""Screens clips before a run: unreadable ones stop it or are skipped (`on_bad_audio`)."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import InputError
from .arguments import ClipArguments
from .audio import NAMELESS, AudioSource, audio_name, audio_seconds, check_audio, decode_audio, mix_down
from .columns import TIME_COLUMNS, audio_of, clip_names, row_of
from .recordings import SAME_S
from .unreadable import UNREADABLE_CLIPS, UnreadableLog, reason_of

logger = logging.get_logger(__name__)

MOST_WORKERS = 16  # more threads hardly speed up one disk
CLIPS_AHEAD = 4  # per thread: clips that are looked at before their turn


class Decoded(NamedTuple):
    """Holds a decoded clip: float32 (samples, channels), the mean over channels (samples,), and its rate in Hz."""

    samples: np.ndarray
    mono: np.ndarray
    sampling_rate: int


def decode(source: AudioSource) -> Decoded:
    """
    Decodes a clip with all checks on its samples.

    Raises:
        InputError: a missing, unreadable or empty file, a segment outside it, or NaN or infinite samples.
    """
    samples, rate = decode_audio(source)
    return Decoded(samples, mix_down(source, samples), rate)


def try_to_decode(source: AudioSource) -> tuple[Decoded | None, str]:
    """Decodes a clip: returns it and "", or `None` and the reason without the clip's name."""
    try:
        return decode(source), ""
    except Exception as error:  # also a damaged header that claims more samples than fit into memory
        reason = reason_of(error, source)
        # Errors of a whole file begin with its name without the times of the segment.
        return None, reason if isinstance(source, str) else reason.removeprefix(f"{source.get('path')}: ")


def each_clip(
    data: datasets.Dataset, look: Callable[[AudioSource], object], doing: str, num_workers: int | None = None
) -> Iterator:
    """
    Calls `look` on every clip in threads (decoding releases Python's lock), and yields its results in the order of the
    clips. Only `CLIPS_AHEAD` results per thread wait to be taken: they may be decoded clips.

    Args:
        doing: text of the progress bar
    """
    num_workers = num_workers or min(_num_cores(), MOST_WORKERS)
    with (
        ThreadPool(num_workers) as pool,
        tqdm(desc=doing, total=len(data), leave=False, disable=len(data) < 1000) as bar,
    ):
        calls = (pool.apply_async(lambda index: look(audio_of(data[index])), [index]) for index in range(len(data)))
        begun = deque(itertools.islice(calls, CLIPS_AHEAD * num_workers))
        while begun:
            yield begun.popleft().get()
            bar.update()
            begun.extend(itertools.islice(calls, 1))


def for_each_clip(
    splits: dict[str, datasets.Dataset], look: Callable[[AudioSource], object], num_workers: int | None = None
) -> dict[str, list]:
    """
    Calls `look` on every clip of all splits by `each_clip`.

    Returns:
        split -> results of `look`, in the order of the clips
    """
    return {
        split: list(each_clip(data, look, f"decoding {split} clips", num_workers)) for split, data in splits.items()
    }


def names_of(splits: dict[str, datasets.Dataset]) -> dict[str, list[str]]:
    """Returns the name of each clip, with its index if clips are stored as bytes: their names may repeat."""
    names = {split: clip_names(data) for split, data in splits.items()}
    for split, data in splits.items():
        if not isinstance(data.features["audio"], datasets.Value):
            names[split] = [f"{name} (clip {index} of {split})" for index, name in enumerate(names[split])]
    return names


def screen(
    splits: dict[str, datasets.Dataset], arguments: ClipArguments, folder, goes_on: bool = False
) -> dict[str, datasets.Dataset]:
    """
    Stops at unreadable clips, or leaves them out with `on_bad_audio` skip. Every process calls this function; with
    skip, only the main one decodes.

    Args:
        folder: folder of the run; its `unreadable_clips.jsonl` lists the clips that are left out
        goes_on: the list also has clips of a stream, which a resumed run goes on with

    Raises:
        InputError: unreadable clips; with `skip`, too many of them, all of a split, or all training clips of a class.
    """
    path = Path(folder) / UNREADABLE_CLIPS
    if _is_main_process() and not goes_on:
        path.unlink(missing_ok=True)  # of an earlier run
    if arguments.on_bad_audio == "skip":
        return _leave_out(splits, arguments, path)
    if arguments.check_samples:
        check_files(splits, decode)
    elif arguments.check_files:
        check_files(splits)
    return splits


def _leave_out(
    splits: dict[str, datasets.Dataset], arguments: ClipArguments, path: Path
) -> dict[str, datasets.Dataset]:
    # Every process must leave out the same clips, even if a file was unreadable for a moment in one of them.
    unreadable = _from_main_process(lambda: _log_unreadable(splits, path))
    num_unreadable, num_clips = sum(map(len, unreadable.values())), sum(map(len, splits.values()))
    if not num_unreadable:
        return splits
    log = UnreadableLog(path)
    log.check_share(num_unreadable, num_clips, arguments.max_unreadable_share, are_all=True)
    kept = {
        split: data.select(sorted(set(range(len(data))) - unreadable[split])) if unreadable[split] else data
        for split, data in splits.items()
    }
    for split, data in kept.items():
        if not len(data):
            raise InputError(f"all {len(splits[split])} {split} clips are unreadable; repair them ({path} lists them)")
    if getattr(arguments, "problem_type", None) != "regression":  # an evaluation uses the model's
        _check_classes(splits, kept, path)
    if _is_main_process():
        first = "; ".join(f"{clip} ({reason})" for clip, reason in list(log.entries().items())[:3])
        logger.warning(
            f"{num_unreadable} of {num_clips} clips are unreadable and left out: {first}; {path} lists them all"
        )
    return kept


def _log_unreadable(splits: dict[str, datasets.Dataset], path: Path) -> dict[str, set[int]]:
    """Lists unreadable clips in the file, and returns their indices: split -> indices"""

    def look(source: AudioSource) -> tuple[str, str]:
        reason = try_to_decode(source)[1]
        return reason, audio_name(source) if not reason and ends_after_recording(source) else ""

    found = for_each_clip(splits, look)
    cut = [name for own in found.values() for _, name in own if name]
    if cut:
        _warn_of_cut_parts(cut)
    reasons = {split: [reason for reason, _ in own] for split, own in found.items()}
    unreadable = {split: {index for index, reason in enumerate(own) if reason} for split, own in reasons.items()}
    if any(unreadable.values()):
        log, names = UnreadableLog(path), names_of(splits)
        for split, indices in unreadable.items():
            for index in sorted(indices):
                log.add(names[split][index], reasons[split][index])
    return unreadable


def _check_classes(before: dict[str, datasets.Dataset], after: dict[str, datasets.Dataset], path: Path):
    for split in before:
        lost = sorted(classes_of(before[split]["label"]) - classes_of(after[split]["label"]))
        if lost and split == "train":
            raise InputError(
                f"class {lost[0]!r}: all its training clips are unreadable; repair them ({path} lists them), or remove "
                "the class"
            )
        if lost and _is_main_process():
            logger.warning(f"All clips of {', '.join(lost)} in the {split} split are unreadable.")


def classes_of(labels) -> set[str]:
    """Returns the names of all classes in a column of labels (texts or lists of texts)."""
    return {str(name) for label in labels for name in (label if isinstance(label, list) else [label])}


def _from_main_process(compute: Callable[[], object]):
    """Runs `compute` in the main process, and returns its result in every process."""
    if not _is_distributed():
        return compute()
    box = [compute() if _is_main_process() else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_main_process() -> bool:
    return not _is_distributed() or torch.distributed.get_rank() == 0


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_files(splits: dict[str, datasets.Dataset], check=check_audio):
    """
    Checks the header of every clip, or calls another `check` on it.

    Raises:
        InputError: damaged files; names the first and counts the others.
    """
    failures, cut = [], []
    for split, data in splits.items():
        examples = data.select_columns([name for name in ("audio", *TIME_COLUMNS) if name in data.column_names])
        for index, example in enumerate(
            tqdm(examples, desc=f"checking {split} files", leave=False, disable=len(data) < 1000)
        ):
            source = audio_of(example)
            try:
                check(source)
                if ends_after_recording(source):
                    cut.append(audio_name(source))
            except InputError as error:
                failures.append(str(error).replace(NAMELESS, f"{row_of(index)} of the {split} split"))
    if cut and not failures:
        _warn_of_cut_parts(cut)
    if failures:
        more = f" (and {len(failures) - 1} more damaged files)" if len(failures) > 1 else ""
        raise InputError(failures[0] + more)


def ends_after_recording(source: AudioSource) -> bool:
    """
    Returns whether a readable clip is a part that ends after its recording. The recording was looked at just before, so
    that its header is not read again.
    """
    end = None if isinstance(source, str) else source.get("end")
    return end is not None and end - (source.get("start") or 0.0) > audio_seconds(source) + SAME_S


def _warn_of_cut_parts(names: list[str]):
    if _is_main_process():
        logger.warning(f"{len(names)} parts end after their recordings, such as {names[0]}: are the times in seconds?")
