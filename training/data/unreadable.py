"""Lists the clips that cannot be read, with the reason."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, one_line
from .audio import audio_name, read_audio

UNREADABLE_CLIPS = "unreadable_clips.jsonl"  # in the folder of a run


class UnreadableLog:
    """
    The clips that could not be read: one JSON line {"clip", "reason"} each, which any number of workers, processes and
    resumed runs append to; and counters, which the workers of this process share.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._counts = torch.zeros(2, dtype=torch.long).share_memory_()  # unreadable, heard
        self._logged = set(self.entries())

    def add(self, clip: str, reason: str):
        if clip in self._logged:
            return
        self._logged.add(clip)
        line = json.dumps({"clip": clip, "reason": reason}) + "\n"
        # One write in append mode: lines of several writers follow each other, none is torn.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def entries(self) -> dict[str, str]:
        """clip -> reason, each clip once, sorted."""
        entries = {}
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the disk was full, or the machine went down
                continue
            entries[entry["clip"]] = entry["reason"]
        return dict(sorted(entries.items()))

    def count(self, readable: bool):
        self._counts[int(readable)] += 1

    def counts(self) -> tuple[int, int]:
        """Unreadable and heard clips that the workers of this process met since it began."""
        return int(self._counts[0]), int(self._counts[1])

    def check_share(self, num_unreadable: int, num_met: int, max_share: float, are_all: bool):
        """
        Raises `InputError` where more than `max_share` of the clips met are unreadable, or all of them. Unless these
        are all clips that there are (`are_all`), the share may be higher by chance: by three standard deviations.
        """
        chance = 0 if are_all else 3 * math.sqrt(max_share * (1 - max_share) / num_met)
        if num_unreadable and (num_unreadable / num_met > max_share + chance or num_unreadable == num_met):
            first = "; ".join(f"{clip} ({reason})" for clip, reason in itertools.islice(self.entries().items(), 3))
            raise InputError(
                f"{num_unreadable} of {num_met} clips are unreadable (max_unreadable_share is {max_share:g}): {first}; "
                f"{self.path} lists them all: repair or remove them, or raise max_unreadable_share"
            )


def reason_of(error: Exception, audio: dict) -> str:
    """Without the clip's name, which stands beside it."""
    return (one_line(error) or type(error).__name__).removeprefix(f"{audio_name(audio)}: ")


def try_to_read(audio: dict, name: str, sampling_rate: int, log: UnreadableLog) -> tuple[np.ndarray | None, str]:
    """The decoded clip; or nothing, and why, which is logged: one damaged clip must not stop a long run."""
    try:
        return read_audio(audio, sampling_rate), ""
    except Exception as error:
        reason = reason_of(error, audio)
        log.add(name, reason)
        return None, reason
