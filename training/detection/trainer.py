"""Trains frame classifiers, and scores whole recordings."""

import numpy as np
import torch
from torch import nn

from modeling_dual_ssast.classifier_dual_ssast import frame_loss

from ..base.detection_scores import frame_mean_average_precision
from ..base.event_detection import event_settings
from ..base.fine_tuning import FineTuningTrainer
from ..base.finite import check_scores
from .crops import UNKNOWN, WindowDataset
from .metrics import METRICS, find_all, score_events


class FrameLoss:
    """
    Computes the mean binary cross-entropy or focal loss (Lin et al., ICCV 2017) over the known frames and labels.

    Args:
        weights: (labels,), of the positive frames; `None`: ones
        gamma: 0 for the cross-entropy
    """

    def __init__(self, weights: torch.Tensor | None = None, gamma: float = 0.0):
        self.weights, self.gamma = weights, gamma

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the loss, a scalar. logits, labels: (batch, frames, labels); mask: (batch, frames), true for audio"""
        if self.weights is None and not self.gamma:
            return frame_loss(logits, labels, mask, "multi_label_classification")
        logits, counts = logits.float(), mask.unsqueeze(-1) & (labels != UNKNOWN)
        labels = labels.masked_fill(~counts, 0)
        weights = 1.0 if self.weights is None else self.weights.to(logits.device)
        positive = weights * labels * self._focus(-logits) * nn.functional.logsigmoid(logits)
        negative = (1 - labels) * self._focus(logits) * nn.functional.logsigmoid(-logits)
        return -(positive + negative).masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)

    def _focus(self, logits: torch.Tensor) -> torch.Tensor | float:
        # A power below 1 has no derivative at zero.
        return logits.sigmoid().clamp(min=1e-7) ** self.gamma if self.gamma else 1.0


def weak_loss(logits: torch.Tensor, clip_labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Returns the mean binary cross-entropy of the known clip labels, a scalar. A clip's probability is the linear softmax
    of its frames', the sum of squares over the sum (Wang et al., ICASSP 2019).

    logits: (batch, frames, labels); clip_labels: (batch, labels); mask: (batch, frames), true for audio
    """
    scores = logits.float().sigmoid() * mask.unsqueeze(-1)
    pooled = scores.square().sum(dim=1) / scores.sum(dim=1).clamp(min=1e-7)
    counts = clip_labels != UNKNOWN
    with torch.autocast(logits.device.type, enabled=False):  # which refuses this loss
        losses = nn.functional.binary_cross_entropy(
            pooled.clamp(max=1.0), clip_labels.masked_fill(~counts, 0), reduction="none"
        )
    return losses.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)


class DetectionTrainer(FineTuningTrainer):
    """
    Trains a frame classifier; evaluations score the frames and events of whole recordings.

    Args:
        frame_loss: loss of a training batch; evaluations have the plain cross-entropy
        weak_weight: weight of the loss of clips whose labels have no times
        collar_s: see `event_metrics`
    """

    def __init__(self, *args, frame_loss: FrameLoss, weak_weight: float, collar_s: float, **kwargs):
        super().__init__(*args, compute_metrics=self.metrics_of, **kwargs)
        self.frame_loss, self.weak_weight, self.collar_s = frame_loss, weak_weight, collar_s
        self.evaluated: WindowDataset | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._begin_batch(model, inputs)
        labels, clip_labels = inputs.pop("labels"), inputs.pop("clip_labels", None)
        outputs = model(**inputs)
        logits = outputs.logits
        missing = logits.shape[1] - labels.shape[1]  # frames of padding; some networks leave the last ones out
        labels = nn.functional.pad(labels, (0, 0, 0, missing), value=UNKNOWN)
        mask = self.accelerator.unwrap_model(model).frame_mask(logits, inputs["attention_mask"])
        if model.training:
            loss = self.frame_loss(logits, labels, mask)
        else:
            count = self.num_counted(len(logits))
            loss = FrameLoss()(logits[:count], labels[:count], mask[:count])
        if clip_labels is not None:
            loss = loss + self.weak_weight * weak_loss(logits, clip_labels, mask)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, dataloader, *args, **kwargs):
        self.evaluated = dataloader.dataset
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def scores_of(self, dataset: WindowDataset, logits: np.ndarray) -> list[np.ndarray]:
        """Returns per recording the scores of its frames (frames, labels). logits: (windows, frames, labels)"""
        check_scores(logits)
        model = self.accelerator.unwrap_model(self._plain_model())
        return [model.probabilities(torch.from_numpy(own)).numpy() for own in dataset.joined(logits)]

    def metrics_of(self, prediction) -> dict[str, float]:
        """Returns the metrics of `METRICS`, with the model's own settings of events."""
        dataset = self.evaluated
        scores, names = self.scores_of(dataset, prediction.predictions), dataset.labels.names
        edges_s = [dataset.edges_s(index) for index in range(len(scores))]
        settings = event_settings(self.accelerator.unwrap_model(self._plain_model()).config)
        found = find_all(scores, edges_s, names, settings)
        metrics = score_events(found, dataset.stretches, names, self.collar_s)["metrics"]
        events = {one.name: one.events for one in dataset.stretches}
        metrics[METRICS[0]] = frame_mean_average_precision(dataset.known_scores(scores), events, names)
        return {name: metrics[name] for name in METRICS}
