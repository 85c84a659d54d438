"""What is done about clips that cannot be read, before a training: stop at them, or leave them out."""

import os
from collections.abc import Callable
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
from .audio import AudioSource, check_audio, decode_audio, mix_down
from .columns import audio_of, clip_names
from .unreadable import UNREADABLE_CLIPS, UnreadableLog, reason_of

logger = logging.get_logger(__name__)

MOST_WORKERS = 16  # a disk hardly serves more


class Decoded(NamedTuple):
    """A clip as it is stored: float32 (samples, channels), the mean of the channels (samples,), and the rate in Hz."""

    samples: np.ndarray
    mono: np.ndarray
    sampling_rate: int


def decode(source: AudioSource) -> Decoded:
    """
    All that can be wrong with a clip.

    Raises:
        InputError: as `read_audio`.
    """
    samples, rate = decode_audio(source)
    return Decoded(samples, mix_down(source, samples), rate)


def try_to_decode(source: AudioSource) -> tuple[Decoded | None, str]:
    """The decoded clip; or nothing, and why, without the clip's name."""
    try:
        return decode(source), ""
    except Exception as error:  # also a damaged header that announces more samples than fit into memory
        reason = reason_of(error, source)
        # What is wrong with a whole file is told without the times of the part.
        return None, reason if isinstance(source, str) else reason.removeprefix(f"{source.get('path')}: ")


def for_each_clip(
    splits: dict[str, datasets.Dataset], look: Callable[[AudioSource], object], num_workers: int | None = None
) -> dict[str, list]:
    """
    `look` at every clip, in threads: decoding leaves Python's lock. Each holds the audio of one clip at a time.

    Returns:
        split -> what `look` gave, in the order of the clips
    """
    found = {}
    with ThreadPool(num_workers or min(_num_cores(), MOST_WORKERS)) as pool:
        for split, data in splits.items():
            looks = pool.imap(lambda index, data=data: look(audio_of(data[index])), range(len(data)), chunksize=4)
            bar = tqdm(looks, desc=f"decoding {split} clips", total=len(data), leave=False, disable=len(data) < 1000)
            found[split] = list(bar)
    return found


def names_of(splits: dict[str, datasets.Dataset]) -> dict[str, list[str]]:
    """What to call each clip. Names of clips that are stored as bytes may repeat; their places do not."""
    names = {split: clip_names(data) for split, data in splits.items()}
    for split, data in splits.items():
        if not isinstance(data.features["audio"], datasets.Value):
            names[split] = [f"{name} (clip {index} of {split})" for index, name in enumerate(names[split])]
    return names


def screen(splits: dict[str, datasets.Dataset], arguments: ClipArguments, folder) -> dict[str, datasets.Dataset]:
    """
    Stops at unreadable clips or leaves them out, as `on_bad_audio` says. Called by every process; the main one decodes.

    Args:
        folder: of the run; what is left out is listed in its `unreadable_clips.jsonl`

    Raises:
        InputError: unreadable clips; with `skip`, too many of them, all of a split, or all training clips of a class.
    """
    path = Path(folder) / UNREADABLE_CLIPS
    if _is_main_process():
        path.unlink(missing_ok=True)  # an earlier run's
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
    # Every process must leave out the same clips, also where one of them could not read a file just now.
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
    if getattr(arguments, "problem_type", None) != "regression":  # an evaluation's is the model's
        _check_classes(splits, kept, path)
    if _is_main_process():
        first = "; ".join(f"{clip} ({reason})" for clip, reason in list(log.entries().items())[:3])
        logger.warning(
            f"{num_unreadable} of {num_clips} clips are unreadable and left out: {first}; {path} lists them all"
        )
    return kept


def _log_unreadable(splits: dict[str, datasets.Dataset], path: Path) -> dict[str, set[int]]:
    """split -> the indices of unreadable clips, which are listed in the file"""
    reasons = for_each_clip(splits, lambda source: try_to_decode(source)[1])
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
    return {str(name) for label in labels for name in (label if isinstance(label, list) else [label])}


def _from_main_process(compute: Callable[[], object]):
    """What `compute` gives in the main process, in every process."""
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
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_files(splits: dict[str, datasets.Dataset], check=check_audio):
    """
    Reads the header of every clip, or what `check` reads of it.

    Raises:
        InputError: names the first damaged file and how many there are.
    """
    failures = []
    for split, data in splits.items():
        for example in tqdm(
            data.remove_columns("label"), desc=f"checking {split} files", leave=False, disable=len(data) < 1000
        ):
            try:
                check(audio_of(example))
            except InputError as error:
                failures.append(str(error))
    if failures:
        more = f" (and {len(failures) - 1} more damaged files)" if len(failures) > 1 else ""
        raise InputError(failures[0] + more)
