"""Computes training losses for rare classes and easy clips; evaluations keep the model's own loss."""

import torch
from torch import nn

from ..data.labels import LabelSet
from ..errors import InputError
from .arguments import TuningArguments
from .samplers import class_weights, positive_weights


class TrainingLoss:
    """
    Computes the cross-entropy with class weights, or the focal loss (Lin et al., ICCV 2017, equations 4 and 5), which
    weighs a clip by (1 - p) ** gamma, where p is the probability of the true class. With several labels per clip, each
    label is a binary problem.

    The loss of a soft label is the mixture of the losses of hard labels. The mean is over clips, not over weights, so
    that batches, accumulated steps and processes count alike.

    Args:
        label_smoothing: as in `torch.nn.functional.cross_entropy`; for one label per clip only
        weights: (labels,), weight of each class, or of the positives of each label; `None`: ones
        gamma: 0 for the cross-entropy
        is_binary: each class is a binary problem also with one label per clip, as SSAST trains Speech Commands
    """

    def __init__(
        self,
        problem_type: str,
        label_smoothing: float,
        weights: torch.Tensor | None,
        gamma: float,
        is_binary: bool = False,
    ):
        self.is_single = problem_type == "single_label_classification"
        self.is_binary = is_binary or not self.is_single
        self.label_smoothing = label_smoothing
        self.weights = weights
        self.gamma = gamma

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Returns the loss, a scalar in float32.

        logits: (batch, labels); labels: class indices (batch,), or probabilities (batch, labels)
        """
        logits, labels = logits.float(), labels.to(logits.device)
        weights = 1.0 if self.weights is None else self.weights.to(logits.device)
        if self.is_single:
            labels = nn.functional.one_hot(labels.long(), logits.shape[1]) if labels.ndim == 1 else labels
            labels = (1 - self.label_smoothing) * labels.float() + self.label_smoothing / logits.shape[1]
        if self.is_binary:
            labels, log_odds = labels.float(), nn.functional.logsigmoid
            positive = weights * labels * self._focus(1 - logits.sigmoid()) * log_odds(logits)
            return -(positive + (1 - labels) * self._focus(logits.sigmoid()) * log_odds(-logits)).mean()
        log_probabilities = logits.log_softmax(dim=-1)
        focus = self._focus(1 - log_probabilities.exp())
        return -(weights * labels * focus * log_probabilities).sum(dim=-1).mean()

    def _focus(self, distance: torch.Tensor) -> torch.Tensor | float:
        """Returns the focal weight (1 - p) ** gamma; `distance` is 1 - p, of any shape."""
        # A power below 1 has no derivative at zero, and 1 - p can round to zero in float32.
        return distance.clamp(min=1e-7) ** self.gamma if self.gamma else 1.0


def training_loss(tuning: TuningArguments, labels: LabelSet, dataset, label_smoothing: float) -> TrainingLoss | None:
    """
    Returns the loss of the recipe; `None` for the model's own.

    Raises:
        InputError: class weights or a focal loss for a regression.
    """
    gamma = tuning.focal_gamma if tuning.loss == "focal" else 0.0
    if tuning.loss == "cross_entropy" and tuning.class_weights == "none":
        return None
    if labels.is_regression:
        name = "class_weights" if tuning.loss == "cross_entropy" else "loss"
        raise InputError(f"{name}: {getattr(tuning, name)} needs classes, and a regression has none; leave it out")
    weights = None
    if tuning.class_weights == "balanced":
        compute = class_weights if labels.is_single else positive_weights
        weights = torch.from_numpy(compute(dataset.label_matrix()))
    return TrainingLoss(labels.problem_type, label_smoothing, weights, gamma, tuning.loss == "binary_cross_entropy")
