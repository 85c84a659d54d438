"""
Makes labelled examples in the workers of the data loader (decoding, augmentation, features) and joins them to batches.

Training takes a random crop of a long clip, evaluation all of it in windows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import TrainerCallback

from modeling_dual_ssast.embedding_dual_ssast import window_starts

from ..errors import InputError
from .audio import audio_name, audio_seconds, num_samples, read_audio
from .augmentation import (
    AugmentationArguments,
    FeatureChanges,
    add_background,
    clip_generator,
    mix_waveforms,
    random_crop,
    random_gain,
)
from .columns import audio_of, clip_names
from .decoded_cache import DecodedClips
from .feature_plans import FeaturePlan, join_features, made_or_planned
from .labels import LabelSet
from .listing import find_audio_files
from .screening import check_files


class ClipDataset(torch.utils.data.Dataset):
    """
    Returns examples of one split: index -> {"input_values": (frames, mel), "labels": class index, (labels,) vector, or
    number}; without augmentation `input_values` is a list of windows, (frames, mel) each.

    Args:
        examples: a `datasets.Dataset` with the columns `audio` and `label`, and possibly `start` and `end`
        feature_extractor: feature extractor of any encoder of the project
        augmentation: for the training split; `None`: every clip unchanged
        seed: seed of the augmentation
        windows: window and hop of long clips in samples, see `window_and_hop`; `None`: each clip is one window
        decoded: the same clips, stored in decoded form; `None`: they are decoded at each use
        on_device: whether examples hold plans of their features, which a `PlannedBatch` makes on any device
    """

    def __init__(
        self,
        examples,
        feature_extractor,
        labels: LabelSet,
        augmentation: AugmentationArguments | None = None,
        seed: int = 0,
        windows: tuple[int, int] | None = None,
        decoded: DecodedClips | None = None,
        on_device: bool = False,
    ):
        self.examples = examples
        self.feature_extractor = feature_extractor
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        self.windows = windows
        self.decoded = decoded
        self.on_device = on_device
        self.backgrounds = find_backgrounds(augmentation)
        # Shared memory: the workers of the data loader read the epoch that the training loop sets.
        self.epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.examples)

    def names(self) -> list[str]:
        """Returns the name of each clip, for messages and tables."""
        return clip_names(self.examples)

    def label(self, index: int):
        """Returns the encoded label of a clip: class index, multi-hot vector (labels,), or number."""
        example = self.examples[index]
        return self.labels.encode(example["label"], audio_name(audio_of(example)))

    def encoded_labels(self) -> Iterator:
        """
        Yields the label of each clip like `label`, without reading audio.

        Raises:
            InputError: a label outside the label set.
        """
        for label, name in zip(self.examples["label"], self.names()):  # by column: a row would read its audio
            yield self.labels.encode(label, name)

    def label_matrix(self) -> np.ndarray:
        """Returns the labels of each clip without reading audio: (clips, labels), boolean (1 GiB for AudioSet)."""
        matrix = np.zeros((len(self), len(self.labels.names)), dtype=bool)
        for row, label in zip(matrix, self.encoded_labels()):
            row[:] = self._soft(label) > 0
        return matrix

    def num_samples(self) -> list[int]:
        """Returns the length of each clip in samples as the model receives it, from the headers of the files."""
        rate, limit = self.feature_extractor.sampling_rate, self.feature_extractor.max_samples
        counts = [num_samples(audio_of(example), rate) for example in self.examples]
        return counts if limit is None else [min(count, limit) for count in counts]

    def check_labels(self):
        """Raises `InputError` for the first label outside the label set; reads no audio."""
        for _ in self.encoded_labels():
            pass

    def __getitem__(self, index: int) -> dict:
        label = self.label(index)
        if self.augmentation is None:
            parts = (FeaturePlan.of(part, self.feature_extractor) for part in self._parts(index))
            return {"input_values": [self.made(plan) for plan in parts], "labels": label}
        rng = clip_generator(self.seed, int(self.epoch), index)
        return self.training_example(self.waveform(index), label, rng)

    def training_example(self, waveform: np.ndarray, label, rng: np.random.Generator) -> dict:
        """Augments a random crop of a clip (samples,): {"input_values": (frames, mel), "labels"}."""
        extractor, augmentation = self.feature_extractor, self.augmentation
        waveform = random_crop(waveform, extractor.max_samples, rng)
        if augmentation.gain_db:
            waveform = random_gain(waveform, augmentation.gain_db, rng)
        if self.backgrounds:
            waveform = self._with_background(waveform, rng)
        if augmentation.mixup_rate:
            plan, label = self._mixed(waveform, self._soft(label), rng)
        else:
            plan = FeaturePlan.of(waveform, extractor)
        plan.changes = FeatureChanges.draw(*plan.shape(extractor), augmentation, rng)
        return {"input_values": self.made(plan), "labels": label}

    def made(self, plan: FeaturePlan) -> torch.Tensor | FeaturePlan:
        """Returns the features of a plan (frames, mel), or with `on_device` the plan itself."""
        return made_or_planned(plan, self.feature_extractor, self.on_device)

    @property
    def num_clips(self) -> int:
        return len(self)

    def callback(self) -> TrainerCallback:
        """Returns the callback that the training loop needs for this data set."""
        return EpochCallback(self)

    def waveforms(self) -> Iterator[np.ndarray]:
        """Yields every clip in order, at the feature extractor's rate: (samples,) each"""
        return map(self.waveform, range(len(self)))

    def waveform(self, index: int) -> np.ndarray:
        """Reads a whole clip at the feature extractor's rate: (samples,), which may be read-only"""
        stored = None if self.decoded is None else self.decoded[index]
        if stored is not None:
            return stored
        return read_audio(audio_of(self.examples[index]), self.feature_extractor.sampling_rate)

    def _parts(self, index: int) -> list[np.ndarray]:
        """Returns the windows of a clip, (samples,) each; most clips are one window."""
        waveform = self.waveform(index)
        if self.windows is None:
            return [waveform]
        window, hop = self.windows
        return [waveform[start : start + window] for start in window_starts(len(waveform), window, hop)]

    def _random_clip(self, index: int, rng: np.random.Generator) -> np.ndarray:
        return random_crop(self.waveform(index), self.feature_extractor.max_samples, rng)

    def _with_background(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        settings = self.augmentation
        if rng.random() >= settings.background_rate:
            return waveform
        path = self.backgrounds[rng.integers(len(self.backgrounds))]
        length_s = len(waveform) / self.feature_extractor.sampling_rate
        start_s = rng.uniform(0, max(audio_seconds(path) - length_s, 0))  # decodes only this segment of a long file
        part = {"path": path, "start": start_s, "end": start_s + length_s}
        background = read_audio(part, self.feature_extractor.sampling_rate)
        return add_background(waveform, background, rng.uniform(*settings.background_snr_db))

    def _mixed(self, waveform: np.ndarray, label, rng: np.random.Generator) -> tuple[FeaturePlan, np.ndarray]:
        """Returns plan and label (labels,) of the clip, or of a mixture with another clip (mixup)."""
        settings = self.augmentation
        if rng.random() >= settings.mixup_rate:
            return FeaturePlan.of(waveform, self.feature_extractor), label
        partner = int(rng.integers(len(self)))
        weight = np.float32(rng.beta(settings.mixup_alpha, settings.mixup_alpha))
        plan = self._mixture(waveform, self._random_clip(partner, rng), weight)
        return plan, weight * label + (1 - weight) * self._soft(self.label(partner))

    def _mixture(self, waveform: np.ndarray, other: np.ndarray, weight: np.float32) -> FeaturePlan:
        """Returns the plan of a mixture of two waveforms (samples,), or of their features."""
        if self.augmentation.mixup_domain == "waveform":
            return FeaturePlan.of(mix_waveforms(waveform, other, weight), self.feature_extractor)
        return FeaturePlan.of(waveform, self.feature_extractor, other, float(weight))

    def _soft(self, label):
        """Turns a class index into a one-hot vector (labels,): with mixup all labels of an epoch have one type."""
        return np.eye(len(self.labels.names), dtype=np.float32)[label] if isinstance(label, int) else label


def find_backgrounds(settings: AugmentationArguments | None) -> list[str]:
    """
    Returns the paths of the recordings in the background folder; empty unless backgrounds are on.

    Raises:
        InputError: a missing folder, one without audio, or damaged files: a training would end at the first that it
            draws.
    """
    if settings is None or settings.background_folder is None or not settings.background_rate:
        return []
    paths = [str(path) for path in find_audio_files(Path(settings.background_folder))]
    if not paths:
        raise InputError(f"background_folder: {settings.background_folder} holds no audio files; name another folder")
    check_files({"background": datasets.Dataset.from_dict({"audio": paths})})
    return paths


class Collator:
    """
    Joins examples into a batch, padded to its longest: `input_values` (windows of all clips, frames, mel) and `labels`.
    Unless all clips have one window, `num_windows` (clips,) counts the windows of each clip. Plans of features become a
    `PlannedBatch`.
    """

    def __init__(self, feature_extractor):
        self.feature_extractor = feature_extractor

    def __call__(self, examples: Sequence[dict]) -> dict[str, torch.Tensor]:
        clips = [example["input_values"] for example in examples]
        clips = [clip if isinstance(clip, list) else [clip] for clip in clips]
        batch = join_features([window for clip in clips for window in clip], self.feature_extractor)
        labels = torch.as_tensor(np.asarray([example["labels"] for example in examples]))
        counts = torch.tensor([len(clip) for clip in clips])
        # Trainer counts the clips of a batch by its first entry.
        return {"labels": labels, **batch} | ({"num_windows": counts} if counts.max() > 1 else {})


def mean_over_windows(values: torch.Tensor, num_windows: torch.Tensor) -> torch.Tensor:
    """Averages values per window over the windows of each clip: (windows of all clips, ...) -> (clips, ...)"""
    return torch.stack([part.mean(dim=0) for part in values.split(num_windows.tolist())])


class EpochCallback(TrainerCallback):
    """Sets the epoch of the training data, also when an epoch is resumed in the middle."""

    def __init__(self, dataset: ClipDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch.fill_(int(state.epoch + 1e-6))
