# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""The classifier on a clip's representation, its loss, and clips of any length: the same for all encoders."""

import itertools
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from .configuration_dual_ssast import PROBLEM_TYPES, StrictConfig
from .embedding_dual_ssast import window_and_hop, window_starts

try:  # What every model's _init_weights calls. Transformers 5: the initialisers that leave loaded weights alone
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # noqa: F401


class DualSSASTClassifierHead(nn.Module):
    """LayerNorm, hidden layers if any, Linear: (batch, fused_size) -> (batch, labels). With none, SSAST's head."""

    def __init__(self, config: StrictConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.fused_size, eps=config.classifier_layer_norm_eps)
        sizes = [config.fused_size, *config.classifier_hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(sizes[-1], config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        pooled = self.layernorm(pooled)
        for linear in self.hidden:
            pooled = self.activation(linear(self.dropout(pooled)))
        return self.dense(self.dropout(pooled))


def guess_problem_type(labels: torch.Tensor, num_labels: int) -> str:
    """Transformers' convention: one output is a regression, integer labels are single, rows of floats are several."""
    if num_labels == 1:
        return "regression"
    is_single = labels.ndim == 1 and not labels.is_floating_point()
    return "single_label_classification" if is_single else "multi_label_classification"


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str, label_smoothing: float = 0.0
) -> torch.Tensor:
    """
    Mean squared error, cross-entropy (hard or soft labels) or binary cross-entropy, in float32.

    logits: (batch, labels); labels: (batch,) or (batch, labels)
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}")
    logits, labels = logits.float(), labels.to(logits.device)
    # One number per clip is a class, or the target of a regression with one output.
    flat = problem_type == "single_label_classification" or (problem_type == "regression" and logits.shape[1] == 1)
    if labels.shape != logits.shape and not (flat and labels.shape == logits.shape[:1]):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits {tuple(logits.shape)} ({problem_type})"
        )
    if problem_type == "regression":
        return nn.functional.mse_loss(logits, labels.float().view_as(logits))
    if problem_type == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    if labels.ndim == 1 and labels.is_floating_point():
        raise ValueError(f"expected integer classes (batch,) or soft labels {tuple(logits.shape)}, got {labels.dtype}")
    labels = labels.float() if labels.ndim == 2 else labels.long()
    return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def classifier_output(
    config: StrictConfig, logits: torch.Tensor, labels: Optional[torch.Tensor], outputs: ModelOutput
) -> SequenceClassifierOutput:
    """The logits of a model whose encoder gave `outputs`, with the loss if there are labels."""
    loss = None
    if labels is not None:
        if config.problem_type is None:  # stored like Transformers does, so that pipelines know it
            config.problem_type = guess_problem_type(labels, config.num_labels)
        loss = classification_loss(logits, labels, config.problem_type, config.label_smoothing)
    return SequenceClassifierOutput(
        loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
    )


def probabilities_of_logits(logits: torch.Tensor, problem_type: str, temperature: float = 1.0) -> torch.Tensor:
    """Softmax or sigmoid of `logits / temperature`, or a regression's numbers, in float32: (..., labels)"""
    logits = logits.float()
    if problem_type == "single_label_classification":
        return (logits / temperature).softmax(dim=-1)
    return (logits / temperature).sigmoid() if problem_type == "multi_label_classification" else logits


def labels_of_probabilities(
    probabilities: torch.Tensor, names: list, problem_type: str, thresholds: Optional[list] = None
) -> list:
    """
    The likeliest name, the names above their thresholds (one half if there are none), or the number, per clip; a list
    of the numbers where a regression has several. probabilities: (clips, labels)
    """
    if problem_type == "single_label_classification":
        return [names[index] for index in probabilities.argmax(dim=-1).tolist()]
    if problem_type == "multi_label_classification":
        thresholds = [0.5] * len(names) if thresholds is None else thresholds
        return [[name for name, p, t in zip(names, row, thresholds) if p > t] for row in probabilities.tolist()]
    return (probabilities[:, 0] if probabilities.shape[1] == 1 else probabilities).tolist()


@dataclass
class WindowedOutput(ModelOutput):
    """
    Logits of the windows of one clip.

    logits: (labels,) averaged over the windows, or (windows, labels)
    start_s, end_s: (windows,) in seconds
    """

    logits: torch.Tensor = None
    start_s: torch.Tensor = None
    end_s: torch.Tensor = None


class ClassifierMixin:
    """Calibrated answers and `classify_windows`, for a classifier whose `base_model` is an encoder of this project."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """
        What the model makes of its logits: softmax or sigmoid after the division by `config.calibration_temperature`,
        or the numbers of a regression. (..., labels), in float32
        """
        return probabilities_of_logits(logits, self._problem_type(), self.config.calibration_temperature)

    def predict_labels(self, logits: torch.Tensor) -> list:
        """
        Per clip the likeliest label; of a model for several labels the list of those whose probability is above their
        `config.decision_thresholds` (one half if it has none); of a regression the number. logits: (clips, labels)
        """
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        thresholds = self.config.decision_thresholds
        return labels_of_probabilities(self.probabilities(logits), names, self._problem_type(), thresholds)

    def _problem_type(self) -> str:
        """By Transformers' convention, of a model that does not say."""
        return self.config.problem_type or (
            "regression" if self.config.num_labels == 1 else "single_label_classification"
        )

    @torch.no_grad()
    def classify_windows(
        self,
        waveform,
        feature_extractor,
        sampling_rate: Optional[int] = None,
        window_s: Optional[float] = None,
        hop_s: Optional[float] = None,
        batch_size: int = 8,
        average: bool = True,
    ) -> WindowedOutput:
        """
        Classifies a clip of any length in overlapping windows. The last window ends where the clip ends, so that all
        windows are full; a clip that fits into one window gives exactly the ordinary logits.

        Args:
            waveform: (samples,) array or tensor
            feature_extractor: the one saved with this model
            sampling_rate: of the waveform, in Hz; checked
            window_s: seconds per window; at most, and by default, what `config.max_length` holds; about a minute of a
                model without a limit
            hop_s: seconds from window to window; by default half a window
            batch_size: windows per forward pass
            average: average the logits over the windows, or return them all

        Raises:
            ValueError: a window longer than `config.max_length`, a hop that skips audio, or an empty batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        rate = feature_extractor.sampling_rate
        window, hop = window_and_hop(self.base_model, feature_extractor, window_s, hop_s)
        starts = window_starts(len(waveform), window, hop)
        logits = []
        for first in range(0, len(starts), batch_size):
            clips = [waveform[start : start + window] for start in starts[first : first + batch_size]]
            features = feature_extractor(
                clips,
                sampling_rate=sampling_rate,
                padding="longest",
                return_attention_mask=True,
                return_tensors="pt",
            )
            logits.append(self(**features.to(self.device)).logits)
        logits = torch.cat(logits)  # (windows, labels)
        start_s = torch.tensor(starts, dtype=torch.float64) / rate
        end_s = torch.clamp(start_s + window / rate, max=len(waveform) / rate)
        return WindowedOutput(logits=logits.mean(dim=0) if average else logits, start_s=start_s, end_s=end_s)
