"""Averages the frames of overlapping windows."""

from collections.abc import Iterator

import numpy as np


class Overlaps:
    """Averages time frames that several windows have, and gives them away as soon as no other window can have them."""

    def __init__(self):
        self.first, self.total, self.counts = 0, None, None

    def add(self, frames: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Takes the rows of several windows; yields number of the first frame, and frames (frames, size)."""
        ends = [*(np.flatnonzero(np.diff(frames) != 1) + 1), len(frames)]
        for start, end in zip([0, *ends], ends):
            yield from self._add_window(int(frames[start]), values[start:end])

    def _add_window(self, start: int, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        if self.total is None:
            self.first, self.total, self.counts = start, values[:0], np.zeros((0, 1), dtype=values.dtype)
        done = start - self.first
        if done > 0 and len(self.total):
            yield self.first, self.total[:done] / self.counts[:done]
            self.first, self.total, self.counts = start, self.total[done:], self.counts[done:]
        missing = ((0, max(len(values) - len(self.total), 0)), (0, 0))
        self.total, self.counts = np.pad(self.total, missing), np.pad(self.counts, missing)
        self.total[: len(values)] += values
        self.counts[: len(values)] += 1

    def end(self) -> list[tuple[int, np.ndarray]]:
        """Returns the remaining frames of a clip, and begins another one."""
        rest = [] if self.total is None else [(self.first, self.total / self.counts)]
        self.__init__()
        return rest
