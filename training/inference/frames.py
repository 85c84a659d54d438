"""Classifies the time frames of recordings of any length: windows of whole frames, joined to one sequence."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from ..base.event_detection import event_settings
from ..base.label_frames import frame_grid
from ..data.labels import LabelSet
from .overlaps import Overlaps
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

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        return [first * self.grid.step for first in self.grid.windows(num_samples)], self.grid.length

    def run(self, features):
        logits = self.model(**features, return_dict=True).logits
        counts = self.model.base_model.num_label_frames(features["attention_mask"].sum(dim=1))
        return {"logits": logits}, counts.clamp(1, min(logits.shape[1], self.grid.frames)).tolist()

    def places(self, stretch: Stretch, counts: list[int]) -> dict[str, np.ndarray]:
        first = np.asarray(stretch.starts[: len(counts)]) // self.grid.step
        frames = np.concatenate([start + np.arange(count) for start, count in zip(first, counts)])
        # The length of the recording stands in every row: parts are read without their clips.
        return {"frame": frames, "length": np.full(len(frames), stretch.clip.length)}

    @property
    def thresholds(self) -> np.ndarray:
        return event_settings(self.model.config)["high"]

    def joined(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yields parts with a row per frame of the recording, in order, and its times in samples."""
        overlaps, length = Overlaps(), 0
        for part in parts:
            segments, found = [], []
            for segment, arrays in part.split():
                frames = []
                if segment.error:
                    overlaps = Overlaps()
                elif segment.rows:
                    length = int(arrays["length"][-1])
                    frames += overlaps.add(arrays["frame"], arrays["logits"])
                if segment.is_last:
                    frames += overlaps.end()
                if frames:
                    logits = np.concatenate([values for _, values in frames])
                    numbers = frames[0][0] + np.arange(len(logits))
                    has_audio = numbers * self.grid.step < length  # some models pad short clips
                    found.append(self._placed(numbers[has_audio], logits[has_audio], length, segment.is_last))
                rows = len(found[-1]["logits"]) if frames else 0
                segments.append(dataclasses.replace(segment, rows=rows, windows=rows))
            names = found[0] if found else {}
            yield Part(segments, {name: np.concatenate([one[name] for one in found]) for name in names})

    def _placed(self, frames: np.ndarray, logits: np.ndarray, length: int, is_last: bool) -> dict[str, np.ndarray]:
        starts = np.where(frames == 0, 0, frames * self.grid.step + self.grid.offset)
        stops = np.minimum((frames + 1) * self.grid.step + self.grid.offset, length)
        if is_last:
            stops[-1] = length
        return {"logits": logits, "start": starts, "stop": stops}
