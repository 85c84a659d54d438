"""Averages the frames of overlapping windows, and joins them to one sequence."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from ..base.label_frames import FrameGrid, frame_grid


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


class FrameSequence:
    """
    Joins the windows of a recording to one sequence of frames, as they come: rows of `logits`, and the samples from
    which (`start`) to which (`stop`) they are about.

    Args:
        begin: sample with which frame 0 begins
    """

    def __init__(self, grid: FrameGrid, begin: int = 0):
        self.grid, self.begin = grid, begin
        self.overlaps = Overlaps()

    def add(self, frames: np.ndarray, logits: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Takes the rows of several windows, `frames` their numbers; returns those that no other window can change."""
        return self._placed(self.overlaps.add(frames, logits))

    def add_windows(self, starts: np.ndarray, found: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Takes windows as the network gives them. starts: first sample of each in the recording"""
        firsts = (np.asarray(starts) - self.begin) // self.grid.step
        windows = [window["logits"][: self.grid.frames] for window in found]
        frames = np.concatenate([first + np.arange(len(window)) for first, window in zip(firsts, windows)])
        return self.add(frames, np.concatenate(windows))

    def end(self, length: int) -> list[dict[str, np.ndarray]]:
        """Returns the remaining frames of a recording of so many samples."""
        return self._placed(self.overlaps.end(), length)

    def _placed(self, found: Iterable[tuple[int, np.ndarray]], length: int | None = None) -> list[dict]:
        placed, (step, offset) = [], (self.grid.step, self.grid.offset)
        for first, logits in found:
            frames = first + np.arange(len(logits))
            if length is not None:  # some models pad short clips
                frames = frames[frames * step < length]
            stops = (frames + 1) * step + offset
            if length is not None:
                stops = np.minimum(stops, length)
                stops[-1:] = length
            starts = np.where(frames == 0, 0, frames * step + offset)
            rows = {"logits": logits[: len(frames)], "start": self.begin + starts, "stop": self.begin + stops}
            placed += [rows] if len(frames) else []
        return placed


def concatenated(found: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = found[0] if found else {}
    return {name: np.concatenate([one[name] for one in found]) for name in names}


def run_frames(model, features) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits of frames (batch, frames, labels), and how many frames each clip of the batch has."""
    logits = model(**features, return_dict=True).logits
    counts = model.base_model.num_label_frames(features["attention_mask"].sum(dim=1))
    return logits, counts.clamp(1, logits.shape[1])


@torch.no_grad()
def classify_frames(model, extractor, waveform: np.ndarray, batch_size: int = 8) -> dict[str, np.ndarray]:
    """Returns the time frames of a recording (samples,) at the extractor's rate, see `FrameSequence`."""
    grid, rate = frame_grid(model, extractor), extractor.sampling_rate
    starts = [first * grid.step for first in grid.windows(len(waveform))]
    found = []
    for place in range(0, len(starts), batch_size):
        windows = [waveform[start : start + grid.length] for start in starts[place : place + batch_size]]
        features = extractor(
            windows, sampling_rate=rate, padding="longest", return_attention_mask=True, return_tensors="pt"
        ).to(model.device)
        logits, counts = run_frames(model, features)
        found += [{"logits": row[:count]} for row, count in zip(logits.float().cpu().numpy(), counts.tolist())]
    sequence = FrameSequence(grid)
    return concatenated(sequence.add_windows(starts, found) + sequence.end(len(waveform)))
