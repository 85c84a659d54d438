"""Logs unreadable clips with the reason, and limits their share."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from ..errors import InputError, one_line
from .audio import audio_name, read_audio

logger = logging.get_logger(__name__)
UNREADABLE_CLIPS = "unreadable_clips.jsonl"  # in the folder of a run


class UnreadableLog:
    """
    Logs unreadable clips as JSON lines {"clip", "reason"}, and counts readable and unreadable clips. Any number of
    workers, processes and resumed runs append to one file; the workers of one process share the counters.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._counts = torch.zeros(2, dtype=torch.long).share_memory_()  # unreadable, readable
        self._logged = set(self.entries())

    def add(self, clip: str, reason: str):
        """Appends a clip to the file, unless it is listed already."""
        if clip in self._logged:
            return
        self._logged.add(clip)
        line = json.dumps({"clip": clip, "reason": reason}) + "\n"
        # One write in append mode: the lines of several writers do not mix.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def entries(self) -> dict[str, str]:
        """Reads the file: clip -> reason, each clip once, sorted."""
        entries = {}
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else ():
            try:
                entry = json.loads(line)
                entries[str(entry["clip"])] = str(entry["reason"])
            except (ValueError, LookupError, TypeError, RecursionError):
                continue  # the disk was full, the machine went down, or a hand wrote it
        return dict(sorted(entries.items()))

    def warn(self):
        """Warns of the listed clips, if there are any."""
        if listed := self.entries():
            logger.warning(f"{self.path}: lists {len(listed)} unreadable clips, left out: {self._first(listed)}")

    @staticmethod
    def _first(listed: dict[str, str]) -> str:
        return "; ".join(f"{clip} ({reason})" for clip, reason in itertools.islice(listed.items(), 3))

    def count(self, readable: bool):
        """Counts a clip as readable or unreadable."""
        self._counts[int(readable)] += 1

    def counts(self) -> tuple[int, int]:
        """Returns the numbers of unreadable and readable clips in the workers of this process since it began."""
        return int(self._counts[0]), int(self._counts[1])

    def check_share(self, num_unreadable: int, num_met: int, max_share: float, are_all: bool):
        """
        Raises `InputError` if more than `max_share` of the clips met are unreadable, or all of them. Unless they are
        all clips of the run (`are_all`), a tolerance of three standard deviations allows for chance.
        """
        chance = 0 if are_all else 3 * math.sqrt(max_share * (1 - max_share) / num_met)
        if num_unreadable and (num_unreadable / num_met > max_share + chance or num_unreadable == num_met):
            raise InputError(
                f"{num_unreadable} of {num_met} clips are unreadable (max_unreadable_share is {max_share:g}): "
                f"{self._first(self.entries())}; {self.path} lists them all: repair or remove them, or raise "
                "max_unreadable_share"
            )


def reason_of(error: Exception, audio: dict) -> str:
    """Returns the message of an error without the clip's name, which is logged beside it."""
    return one_line(error).removeprefix(f"{audio_name(audio)}: ")


def try_to_read(audio: dict, name: str, sampling_rate: int, log: UnreadableLog) -> tuple[np.ndarray | None, str]:
    """Reads a clip (samples,): returns it and "", or logs the reason and returns `None` and the reason."""
    try:
        return read_audio(audio, sampling_rate), ""
    except Exception as error:
        reason = reason_of(error, audio)
        log.add(name, reason)
        return None, reason
