"""
Separates what an example is made of from its features: workers of the data loader read and augment waveforms and draw
all random numbers, and the features are made of them there, or in batches on the device that trains.
"""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from .augmentation import FeatureChanges, mix_features


@dataclasses.dataclass
class FeaturePlan:
    """
    Says how the features of an example are made.

    Args:
        waveform: float32 (samples,), checked
        other: float32 (samples,); its features are mixed into those of `waveform`; `None`: none are
        weight: of the features of `waveform` in that mixture
        changes: augmentation of the features; `None`: none
    """

    waveform: torch.Tensor
    other: torch.Tensor | None = None
    weight: float = 1.0
    changes: FeatureChanges | None = None

    @classmethod
    def of(cls, waveform: np.ndarray, extractor, other: np.ndarray | None = None, weight: float = 1.0) -> "FeaturePlan":
        """
        Returns the plan of a clip or a mixture, (samples,) each, without augmentation.

        Raises:
            ValueError: samples that the feature extractor does not take.
        """
        clips = extractor.as_clips([waveform] if other is None else [waveform, other])
        return cls(*clips, weight=weight)

    def shape(self, extractor) -> tuple[int, int]:
        """Returns the shape of the features: (frames, mel)."""
        frames = extractor.num_frames(len(self.waveform))
        longest = extractor.max_length
        return frames if longest is None else min(frames, longest), extractor.num_mel_bins

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Returns waveform, other waveform and noise."""
        return self.waveform, self.other, None if self.changes is None else self.changes.noise

    def with_tensors(self, waveform, other, noise) -> "FeaturePlan":
        """Returns the plan with other `tensors`."""
        changes = None if self.changes is None else self.changes._replace(noise=noise)
        return dataclasses.replace(self, waveform=waveform, other=other, changes=changes)


def make_features(plans: Sequence[FeaturePlan], extractor) -> list[torch.Tensor]:
    """Makes the features of all plans together, on the device of their tensors: (frames, mel) each"""
    others = [plan.other for plan in plans if plan.other is not None]
    features = extractor.normalized_log_mel([plan.waveform for plan in plans] + others, extractor.max_length)
    mixed, made = iter(features[len(plans) :]), []
    for plan, own in zip(plans, features):
        if plan.other is not None:
            own = mix_features(own, next(mixed), plan.weight, extractor.padding_value)
        made.append(own if plan.changes is None else plan.changes.apply(own, extractor.padding_value))
    return made


def made_or_planned(plan: FeaturePlan, extractor, on_device: bool) -> torch.Tensor | FeaturePlan:
    """Returns the features of a plan (frames, mel), or with `on_device` the plan, for a `PlannedBatch`."""
    return plan if on_device else make_features([plan], extractor)[0]


def pad_features(features: Sequence[torch.Tensor], extractor) -> dict[str, torch.Tensor]:
    """Pads features (frames, mel) to the longest: `input_values` and `attention_mask` of a batch"""
    rows = [{"input_values": own} for own in features]
    return dict(extractor.pad(rows, padding="longest", return_attention_mask=True, return_tensors="pt"))


class PlannedBatch:
    """
    Holds the plans of a batch. Their tensors are one, so that workers hand over one, and one transfer takes all to the
    device. PyTorch calls `pin_memory`, and Accelerate `to`.
    """

    KEY = "planned_features"  # among the entries of a batch

    def __init__(self, plans: Sequence[FeaturePlan]):
        tensors = [plan.tensors for plan in plans]
        self.values = torch.cat([tensor.flatten() for own in tensors for tensor in own if tensor is not None])
        self.shapes = [tuple(None if tensor is None else tensor.shape for tensor in own) for own in tensors]
        self.plans = [plan.with_tensors(None, None, None) for plan in plans]

    def to(self, device: torch.device, non_blocking: bool = False) -> "PlannedBatch":
        """Returns the batch on a device."""
        return self._with(self.values.to(device, non_blocking=non_blocking))

    def pin_memory(self, device=None) -> "PlannedBatch":
        """Returns the batch in memory from which transfers are faster."""
        return self._with(self.values.pin_memory())

    def _with(self, values: torch.Tensor) -> "PlannedBatch":
        batch = copy.copy(self)
        batch.values = values
        return batch

    def make(self, extractor) -> dict[str, torch.Tensor]:
        """Makes the features on the batch's device: `input_values` (windows, frames, mel) and `attention_mask`"""
        sizes = [shape.numel() for own in self.shapes for shape in own if shape is not None]
        parts = iter(self.values.split(sizes))
        plans = [
            plan.with_tensors(*(None if shape is None else next(parts).view(shape) for shape in own))
            for plan, own in zip(self.plans, self.shapes)
        ]
        return pad_features(make_features(plans, extractor), extractor)


def join_features(features: Sequence[torch.Tensor | FeaturePlan], extractor) -> dict:
    """Joins features (frames, mel), or plans of them, to entries of a batch."""
    if isinstance(features[0], FeaturePlan):
        return {PlannedBatch.KEY: PlannedBatch(features)}
    return pad_features(features, extractor)
