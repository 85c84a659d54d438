"""Divides the clips of a shard into parts of a few minutes, each a range of windows that is computed in one go."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from ..data.audio import AudioSource, fetched, num_samples, read_audio, read_stretch
from ..data.recordings import Following
from ..data.unreadable import reason_of

# Seconds of audio in a part: what a kill may cost a process, and what its memory holds at once. A longer clip is read
# in stretches, so that memory does not depend on its rate and channels.
PART_S = 120
STRETCH_S = 60


@dataclass(frozen=True)
class Clip:
    """A clip before it is decoded; `length` in samples at the network's rate, `error` if it cannot be read."""

    number: int
    name: str
    source: AudioSource
    length: int = 0
    error: str = ""
    read: Following = field(default_factory=Following, compare=False)


@dataclass(frozen=True)
class Stretch:
    """
    A range of a clip's windows, in one part.

    Args:
        starts: first sample of each window
        window: samples per window; the last one may be shorter
        share: of all windows of the clip
        is_last: no later part has windows of the clip
    """

    clip: Clip
    starts: np.ndarray
    window: int
    share: float = 1.0
    is_last: bool = True

    @property
    def start(self) -> int:
        return int(self.starts[0]) if len(self.starts) else 0

    @property
    def stop(self) -> int:
        """The sample after the last one."""
        return min(int(self.starts[-1]) + self.window, self.clip.length) if len(self.starts) else 0

    def read(self, rate: int) -> np.ndarray:
        """Decodes the samples `start` to `stop`: float32 (samples,)."""
        if self.clip.length <= PART_S * rate:
            return read_audio(self.clip.source, rate)[self.start : self.stop]
        edges = [*range(self.start, self.stop, STRETCH_S * rate), self.stop]
        parts = [read_stretch(self.clip.source, rate, *pair, self.clip.read) for pair in itertools.pairwise(edges)]
        if self.is_last:
            self.clip.read.close()
        return np.concatenate(parts)


def examine(number: int, name: str, source: AudioSource, rate: int) -> Clip:
    """Finds the length of a clip by its header, or why it cannot be read."""
    try:
        source = fetched(source)
        return Clip(number, name, source, num_samples(source, rate))
    except Exception as error:
        return Clip(number, name, source, error=reason_of(error, source))


def cut(clips: list[Clip], layout, rate: int) -> list[list[Stretch]]:
    """
    Divides clips into parts, in order: none has more than `PART_S` of audio, unless a single window is longer.

    Args:
        layout: samples of a clip -> first samples of its windows, and samples per window
        rate: samples per second
    """
    parts, waiting, most = [[]], 0, PART_S * rate
    for clip in clips:
        starts, window = layout(clip.length) if clip.length else ([], 0)
        starts = np.asarray(starts, dtype=np.int64)
        ranges = _ranges(starts, window, most)
        for place, indices in enumerate(ranges):
            own = starts[indices]
            share = len(own) / len(starts) if len(starts) else 1.0
            stretch = Stretch(clip, own, window, share, place == len(ranges) - 1)
            samples = stretch.stop - stretch.start
            if parts[-1] and waiting + samples > most:
                parts.append([])
                waiting = 0
            parts[-1].append(stretch)
            waiting += samples
    return parts


def _ranges(starts: np.ndarray, window: int, most: int) -> list[slice]:
    """Returns consecutive ranges of windows that span `most` samples, or one window."""
    ranges, first = [], 0
    while first < len(starts):
        last = max(int(np.searchsorted(starts, starts[first] + most - window, side="right")), first + 1)
        ranges.append(slice(first, last))
        first = last
    return ranges or [slice(0, 0)]
