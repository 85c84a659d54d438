"""Classifies the time frames of recordings of any length: windows of whole frames, joined to one sequence."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from ..base.event_detection import event_settings
from ..base.label_frames import frame_grid
from ..data.labels import LabelSet
from .overlaps import FrameSequence, concatenated, run_frames
from .plan import Stretch
from .scores import Classifier
from .shards import Part


class FrameClassifier(Classifier):
    """
    Gives the logits of every frame, see [`FrameGrid`][training.base.label_frames.FrameGrid]; where windows overlap,
    their mean. A clip has the highest logits of its frames.

    Args:
        window_s, hop_s: see `frame_grid`

    Raises:
        InputError: a window that the model does not accept.
    """

    of_frames = True

    def __init__(self, model, extractor, labels: LabelSet, window_s: float | None = None, hop_s: float | None = None):
        super().__init__(model, extractor, labels, window_s)
        self.grid = frame_grid(model, extractor, window_s, hop_s)
        self.window, self.hop = self.grid.length, self.grid.hop * self.grid.step

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        return [first * self.grid.step for first in self.grid.windows(num_samples)], self.grid.length

    def run(self, features):
        logits, counts = run_frames(self.model, features)
        return {"logits": logits}, counts.clamp(max=self.grid.frames).tolist()

    def places(self, stretch: Stretch, counts: list[int]) -> dict[str, np.ndarray]:
        first = np.asarray(stretch.starts[: len(counts)]) // self.grid.step
        frames = np.concatenate([start + np.arange(count) for start, count in zip(first, counts)])
        # The length of the recording stands in every row: parts are read without their clips.
        return {"frame": frames, "length": np.full(len(frames), stretch.clip.length)}

    def sequence(self, begin: int) -> FrameSequence:
        return FrameSequence(self.grid, begin)

    @property
    def thresholds(self) -> np.ndarray:
        return event_settings(self.model.config)["high"]

    def joined(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yields parts with a row per frame of the recording, in order, and its times in samples."""
        sequence, length = FrameSequence(self.grid), 0
        for part in parts:
            segments, found = [], []
            for segment, arrays in part.split():
                frames = []
                if segment.error:
                    sequence = FrameSequence(self.grid)
                elif segment.rows:
                    length = int(arrays["length"][-1])
                    frames += sequence.add(arrays["frame"], arrays["logits"])
                if segment.is_last:
                    frames += sequence.end(length)
                found += frames
                rows = sum(len(one["logits"]) for one in frames)
                segments.append(dataclasses.replace(segment, rows=rows, windows=rows))
            yield Part(segments, concatenated(found))
