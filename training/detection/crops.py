"""Draws training crops with their targets from recordings of any length, and reads whole recordings in windows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers.utils import logging

from ..base.label_frames import FrameGrid, frame_targets
from ..data.audio import read_audio, read_stretch
from ..data.augmentation import (
    AugmentationArguments,
    FeatureChanges,
    TimeChanges,
    clip_generator,
    random_crop,
    random_gain,
)
from ..data.dataset import ClipDataset
from ..data.feature_plans import FeaturePlan, join_features, made_or_planned
from ..data.labels import LabelSet
from .recordings import UNSURE, Annotated, Stretch, WeakClips

logger = logging.get_logger(__name__)

UNKNOWN = -100  # in the labels of a batch, as Transformers marks what the loss ignores


class FrameCounter:
    """Says how many frames a model gives for some samples. Workers get its table, not the model."""

    def __init__(self, model, extractor, grid: FrameGrid):
        self.first, self.unit, self.most = extractor.num_samples(1), grid.unit, grid.frames
        longest = self.spectrogram_frames(grid.length + grid.step)
        self.counts = model.base_model.num_label_frames(torch.arange(longest + 1)).clamp(1, grid.frames).tolist()

    def spectrogram_frames(self, num_samples: int) -> int:
        return max(1 + (num_samples - self.first) // self.unit, 1)

    def __call__(self, num_samples: int) -> int:
        return self.counts[min(self.spectrogram_frames(num_samples), len(self.counts) - 1)]


class Crop(NamedTuple):
    """Marks samples `start` to `stop` of the recording with this index."""

    recording: int
    start: int
    stop: int


class Part(NamedTuple):
    """
    Holds what is read for an example.

    Args:
        waveform: (samples,)
        intervals: (events, 2), in samples from its beginning on
        labels: (events,), see `Annotated`
        clip_labels: (labels,), 0 or 1, or NaN where nobody knows
    """

    waveform: np.ndarray
    intervals: np.ndarray
    labels: np.ndarray
    clip_labels: np.ndarray

    def cut(self, num_samples: int) -> "Part":
        """Leaves out the events after the first samples."""
        is_inside = (self.intervals[:, 0] < num_samples) | (self.intervals[:, 0] == 0)
        return self._replace(intervals=self.intervals[is_inside], labels=self.labels[is_inside])


class CropDrawer:
    """
    Draws the crops of an epoch.

    The first crops of an epoch show an event, the others none; the training shuffles them. A crop that shows an event
    holds at least half of it, or half of the crop if the event is longer: borders are seen too. A crop that shows none
    lies where neither events nor unsure stretches are; where there is no such place, anywhere.

    Args:
        crop_samples: longest crop
        num_crops: crops of an epoch
        event_share: share of crops that show an event; `None`: all crops from anywhere, by the time of the recordings
        is_balanced: each class is shown equally often; else each event
    """

    def __init__(
        self,
        recordings: Sequence[Annotated],
        crop_samples: int,
        num_crops: int,
        event_share: float | None,
        is_balanced: bool = False,
    ):
        self.crop_samples, self.num_crops = crop_samples, num_crops
        self.lengths = np.array([one.num_samples for one in recordings])
        events = [
            (index, *interval, label)
            for index, one in enumerate(recordings)
            for interval, label in zip(one.intervals, one.labels)
            if label >= 0
        ]
        self.events = np.array(events, dtype=np.float64).reshape(-1, 4)  # recording, onset, offset, label
        free = [
            (index, first, last)
            for index, one in enumerate(recordings)
            for first, last in _free_starts(one, crop_samples)
        ]
        self.free = np.array(free, dtype=np.int64).reshape(-1, 3)  # recording, first and last start of a crop
        share = 0.0 if event_share is None or not len(self.events) else event_share
        self.num_with_events = round(share * num_crops)
        self.is_anywhere = event_share is None or not len(self.free)
        weights = np.ones(len(self.events))
        if is_balanced:
            labels = self.events[:, 3].astype(int)
            weights = 1 / np.bincount(labels)[labels]
        self.event_edges = np.cumsum(weights)
        covered = self.free[:, 2] - self.free[:, 1] + crop_samples  # samples that the crops of a place cover
        self.free_edges = np.cumsum(np.minimum(covered, self.lengths[self.free[:, 0]]))
        self.length_edges = np.cumsum(self.lengths)
        if event_share is not None and event_share < 1 and not len(self.free):
            logger.warning(
                f"no recording has {crop_samples} samples without events: the crops that should show none come from "
                "anywhere; set a shorter crop_s, or event_share to 1"
            )

    def draw(self, index: int, rng: np.random.Generator) -> Crop:
        """Returns crop `index` of an epoch, which depends on the generator alone."""
        if index < self.num_with_events:
            recording, onset, offset, _ = self.events[_pick(self.event_edges, rng)]
            seen = min(offset - onset, self.crop_samples) / 2
            return self._crop(int(recording), rng.uniform(onset + seen - self.crop_samples, offset - seen))
        if self.is_anywhere:
            recording = _pick(self.length_edges, rng)
            spare = max(self.lengths[recording] - self.crop_samples, 0)
            return self._crop(recording, rng.integers(spare + 1))
        recording, first, last = self.free[_pick(self.free_edges, rng)]
        return self._crop(int(recording), rng.integers(first, last + 1))

    def _crop(self, recording: int, start: float) -> Crop:
        length = int(self.lengths[recording])
        start = int(np.clip(start, 0, max(length - self.crop_samples, 0)))
        return Crop(recording, start, min(start + self.crop_samples, length))


def _pick(edges: np.ndarray, rng: np.random.Generator) -> int:
    """Draws an index with the weights whose cumulated sum is `edges`."""
    return min(int(np.searchsorted(edges, rng.uniform(0, edges[-1]), side="right")), len(edges) - 1)


def _free_starts(recording: Annotated, crop_samples: int) -> Iterator[tuple[int, int]]:
    """Yields the first and last start of crops that touch no event; a shorter recording without events is one."""
    ends = 0  # of the events so far
    order = np.argsort(recording.intervals[:, 0], kind="stable")
    borders = [*recording.intervals[order], (recording.num_samples, recording.num_samples)]
    if len(borders) == 1:
        yield 0, max(recording.num_samples - crop_samples, 0)
        return
    for onset, offset in borders:
        first, last = int(np.ceil(ends)), int(np.floor(onset)) - crop_samples
        if last >= first:
            yield first, last
        ends = max(ends, offset)


class CropDataset(ClipDataset):
    """
    Returns training crops: index -> {"input_values": (frames, mel), "labels": (label frames, labels)}, NaN where
    nobody knows. A crop depends on seed, epoch and index alone. With weak clips, the last indices are theirs: each
    example has "clip_labels" (labels,), NaN for crops of annotated recordings.

    Args:
        recordings: those that the crops come from
        count: gives the number of label frames
        drawer: chooses the crops
        weak: clips whose labels have no times; `None`: none
        num_weak: how many of them an epoch has
        on_device: see `ClipDataset`
    """

    def __init__(
        self,
        recordings: Sequence[Annotated],
        feature_extractor,
        labels: LabelSet,
        grid: FrameGrid,
        count: FrameCounter,
        drawer: CropDrawer,
        augmentation: AugmentationArguments,
        seed: int = 0,
        weak: WeakClips | None = None,
        num_weak: int = 0,
        on_device: bool = False,
    ):
        super().__init__(recordings, feature_extractor, labels, augmentation, seed, on_device=on_device)
        self.grid, self.count, self.drawer = grid, count, drawer
        self.weak, self.num_weak = weak, 0 if weak is None else num_weak

    def __len__(self) -> int:
        return self.drawer.num_crops + self.num_weak

    def names(self) -> list[str]:
        return [one.name for one in self.examples]

    def facts(self) -> dict:
        """Returns what the crops are made from, besides the recordings and the seed."""
        drawer = self.drawer
        return {
            "samples": drawer.crop_samples,
            "of_recordings": drawer.num_crops,
            "with_events": drawer.num_with_events,
            "are_anywhere": drawer.is_anywhere,
            "of_weak_clips": self.num_weak,
        }

    def waveform(self, index: int) -> np.ndarray:
        """Reads a crop of the first epoch at the feature extractor's rate: (samples,)"""
        return self.part(index, clip_generator(self.seed, 0, index)).waveform

    def part(self, index: int, rng: np.random.Generator) -> "Part":
        """Draws crop or weak clip `index` of an epoch, before its augmentation."""
        unknown = np.full(len(self.labels.names), np.nan, dtype=np.float32)
        if index < self.drawer.num_crops:
            crop = self.drawer.draw(index, rng)
            return Part(self.read(crop), *self.events(crop), unknown)
        clip = int(rng.integers(len(self.weak.sources)))
        waveform = read_audio(self.weak.sources[clip], self.feature_extractor.sampling_rate)
        waveform = random_crop(waveform, self.drawer.crop_samples, rng)
        everywhere = np.array([[0.0, len(waveform)]])
        return Part(waveform, everywhere, np.array([UNSURE]), self.weak.labels[clip].astype(np.float32))

    def read(self, crop: Crop) -> np.ndarray:
        """Decodes a crop, and little more of its recording: (samples,)"""
        source = self.examples[crop.recording].source
        waveform = read_stretch(source, self.feature_extractor.sampling_rate, crop.start, crop.stop)
        return waveform if len(waveform) else np.zeros(1, dtype=np.float32)  # the file holds less than it says

    def events(self, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
        """Returns the intervals of a crop's events in samples from its beginning on, and their labels."""
        recording = self.examples[crop.recording]
        begins, ends = recording.intervals.T
        is_inside = (begins < crop.stop) & ((ends > crop.start) | (begins >= crop.start))
        intervals = np.clip(recording.intervals[is_inside], crop.start, crop.stop) - crop.start
        return intervals, recording.labels[is_inside]

    def __getitem__(self, index: int) -> dict:
        rng = clip_generator(self.seed, int(self.epoch), index)
        settings, extractor = self.augmentation, self.feature_extractor
        part = self.part(index, rng)
        waveform, num_samples, shares = part.waveform, len(part.waveform), [(1.0, part)]
        if settings.gain_db:
            waveform = random_gain(waveform, settings.gain_db, rng)
        if self.backgrounds:
            waveform = self._with_background(waveform, rng)
        if rng.random() < settings.mixup_rate:
            is_weak, count = index >= self.drawer.num_crops, self.drawer.num_crops
            partner = count + rng.integers(self.num_weak) if is_weak else rng.integers(count)  # of the same kind
            other = self.part(int(partner), rng)
            weight = np.float32(rng.beta(settings.mixup_alpha, settings.mixup_alpha))
            plan = self._mixture(waveform, other.waveform, weight)
            shares = [(weight, part), (1 - weight, other.cut(num_samples))]
        else:
            plan = FeaturePlan.of(waveform, extractor)
        num_frames, num_bins = plan.shape(extractor)
        plan.changes = FeatureChanges.draw(num_frames, num_bins, settings, rng)
        targets = sum(
            share * self.targets(one.intervals, one.labels, num_samples, num_frames, plan.changes.in_time)
            for share, one in shares
        )
        weak = {"clip_labels": sum(share * one.clip_labels for share, one in shares)} if self.num_weak else {}
        return {"input_values": self.made(plan), "labels": targets, **weak}

    def targets(
        self, intervals: np.ndarray, labels: np.ndarray, num_samples: int, num_frames: int, changes: TimeChanges
    ) -> np.ndarray:
        """
        Returns the targets of a crop after its augmentation; nobody knows those of frames that are masked as a whole.

        Args:
            intervals: (events, 2), in samples from the crop's beginning on
            labels: (events,)
            num_samples: samples of the crop
            num_frames: spectrogram frames of the crop

        Returns:
            float32 (label frames, labels), 0, 1 or NaN
        """
        unit, names = self.grid.unit, self.labels.names
        moved, origins = changes.move(np.minimum(intervals, num_samples) / unit, num_frames)
        count = self.count(num_samples)
        targets = frame_targets(self.grid, moved * unit, labels[origins], count, len(names))
        start, width = changes.masked
        for begin, end in changes.roll(np.array([[start, start + width]], dtype=np.float64), num_frames)[0]:
            first, last = self.grid.places(np.array([begin, end]) * unit)
            targets[max(int(np.ceil(first)), 0) : max(int(np.floor(last)), 0)] = np.nan
        return targets


class WindowDataset(torch.utils.data.Dataset):
    """
    Reads recordings in windows that overlap: index -> like `CropDataset`, without augmentation.

    Args:
        recordings: all of them, in order
        count: gives the number of label frames
        stretches: the same with times in seconds, for the metrics
        on_device: see `ClipDataset`
    """

    def __init__(
        self,
        recordings: Sequence[Annotated],
        feature_extractor,
        labels: LabelSet,
        grid: FrameGrid,
        count: FrameCounter,
        stretches: Sequence[Stretch] = (),
        on_device: bool = False,
    ):
        self.recordings, self.feature_extractor, self.labels = recordings, feature_extractor, labels
        self.stretches, self.on_device = stretches, on_device
        self.grid, self.count = grid, count
        self.windows, self.targets = [], []  # of each window: index of its recording, first frame
        for index, one in enumerate(recordings):
            firsts = grid.windows(one.num_samples)
            self.windows += [(index, first) for first in firsts]
            num_frames = firsts[-1] + count(one.num_samples - firsts[-1] * grid.step)
            self.targets.append(frame_targets(grid, one.intervals, one.labels, num_frames, len(labels.names)))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        recording, first = self.windows[index]
        one, grid, rate = self.recordings[recording], self.grid, self.feature_extractor.sampling_rate
        start = first * grid.step
        waveform = read_stretch(one.source, rate, start, min(start + grid.length, one.num_samples))
        waveform = waveform if len(waveform) else np.zeros(1, dtype=np.float32)
        plan = FeaturePlan.of(waveform, self.feature_extractor)
        features = made_or_planned(plan, self.feature_extractor, self.on_device)
        return {"input_values": features, "labels": self.targets[recording][first : first + grid.frames]}

    def edges_s(self, recording: int) -> np.ndarray:
        """Returns the borders of a recording's frames in seconds: (frames + 1,)"""
        return self.grid.edges_s(len(self.targets[recording]), self.recordings[recording].num_samples)

    def known_scores(self, scores: Sequence[np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """
        Returns recording -> its scores (frames, labels), 0 where nobody knows whether an event is there, and the
        borders of its frames: what `detection_metrics` takes.
        """
        return {
            stretch.name: (np.where(np.isnan(self.targets[index]), 0, own), self.edges_s(index))
            for index, (stretch, own) in enumerate(zip(self.stretches, scores))
        }

    def joined(self, values: np.ndarray) -> list[np.ndarray]:
        """
        Joins the windows of each recording, with their mean where they overlap.

        Args:
            values: (windows, frames, labels); rows beyond a window's frames are ignored

        Returns:
            per recording float32 (frames, labels)
        """
        totals = [np.zeros(targets.shape, dtype=np.float32) for targets in self.targets]
        counts = [np.zeros((len(targets), 1), dtype=np.float32) for targets in self.targets]
        for (recording, first), own in zip(self.windows, values):
            own = own[: min(self.grid.frames, len(totals[recording]) - first)]
            totals[recording][first : first + len(own)] += own
            counts[recording][first : first + len(own)] += 1
        return [total / count for total, count in zip(totals, counts)]


class FrameCollator:
    """
    Joins examples into a batch, padded to its longest: `input_values`, `attention_mask` and `labels`, and `clip_labels`
    if there are weak clips. Plans of features become a `PlannedBatch`.
    """

    def __init__(self, feature_extractor):
        self.feature_extractor = feature_extractor

    def __call__(self, examples: Sequence[dict]) -> dict[str, torch.Tensor]:
        batch = join_features([example["input_values"] for example in examples], self.feature_extractor)
        targets = [example["labels"] for example in examples]
        longest = max(map(len, targets))
        labels = np.full((len(targets), longest, targets[0].shape[1]), np.nan, dtype=np.float32)
        for row, own in zip(labels, targets):
            row[: len(own)] = own
        # Trainer counts the clips of a batch by its first entry.
        batch = {"labels": torch.from_numpy(labels).nan_to_num(nan=UNKNOWN), **batch}
        if "clip_labels" in examples[0]:
            clips = torch.from_numpy(np.stack([example["clip_labels"] for example in examples]))
            batch["clip_labels"] = clips.nan_to_num(nan=UNKNOWN)
        return batch
