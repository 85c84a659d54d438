# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Classifier on a clip's representation, its loss, its labels and its windows; the same for all encoders."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from .configuration_dual_ssast import PROBLEM_TYPES, StrictConfig
from .embedding_dual_ssast import evaluating, input_device, window_and_hop, window_starts

try:  # For every model's _init_weights: the initialisers of Transformers 5 do not overwrite loaded weights
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # noqa: F401


class DualSSASTClassifierHead(nn.Module):
    """
    Classifies a clip's representation: LayerNorm, hidden layers if any, Linear.

    Without hidden layers it is the head of SSAST (Gong et al., AAAI 2022).
    """

    def __init__(self, config: StrictConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.fused_size, eps=config.classifier_layer_norm_eps)
        sizes = [config.fused_size, *config.classifier_hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(sizes[-1], config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Computes the logits: (batch, config.fused_size) -> (batch, labels)."""
        pooled = self.layernorm(pooled)
        for linear in self.hidden:
            pooled = self.activation(linear(self.dropout(pooled)))
        return self.dense(self.dropout(pooled))


def guess_problem_type(labels: torch.Tensor, num_labels: int) -> str:
    """
    Guesses the problem type by Transformers' convention.

    Args:
        labels: (batch,) or (batch, labels).
        num_labels: Outputs of the classifier.

    Returns:
        `"regression"` for one output, `"single_label_classification"` for integer labels (batch,), else
            `"multi_label_classification"`.
    """
    if num_labels == 1:
        return "regression"
    is_single = labels.ndim == 1 and not labels.is_floating_point()
    return "single_label_classification" if is_single else "multi_label_classification"


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str, label_smoothing: float = 0.0
) -> torch.Tensor:
    """
    Computes the loss in float32: mean squared error, cross-entropy or binary cross-entropy.

    Args:
        logits: (batch, labels).
        labels: Classes (batch,), or floats (batch, labels): soft labels, several true labels, or regression targets. A
            regression with one output accepts floats (batch,), too.
        problem_type: One of `PROBLEM_TYPES`.
        label_smoothing: Label smoothing of the cross-entropy.

    Returns:
        Scalar, the mean over the batch.

    Raises:
        ValueError: An unknown problem type, or labels whose shape or dtype does not fit.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}")
    logits, labels = logits.float(), labels.to(logits.device)
    # Labels (batch,) are classes, or the targets of a regression with one output.
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


def configured_loss(labels: torch.Tensor, logits: torch.Tensor, config: StrictConfig) -> torch.Tensor:
    """Computes `classification_loss` with the arguments of Transformers' `model.loss_function`."""
    return classification_loss(logits, labels, config.problem_type, config.label_smoothing)


def probabilities_of_logits(logits: torch.Tensor, problem_type: str, temperature: float = 1.0) -> torch.Tensor:
    """
    Computes probabilities: softmax (single-label) or sigmoid (multi-label) of `logits / temperature`.

    Args:
        logits: (..., labels).
        problem_type: One of `PROBLEM_TYPES`.
        temperature: Calibration temperature (Guo et al., ICML 2017).

    Returns:
        float32 (..., labels); the logits themselves for a regression.
    """
    logits = logits.float()
    if problem_type == "single_label_classification":
        return (logits / temperature).softmax(dim=-1)
    return (logits / temperature).sigmoid() if problem_type == "multi_label_classification" else logits


def labels_of_probabilities(
    probabilities: torch.Tensor, names: list, problem_type: str, thresholds: Optional[list] = None
) -> list:
    """
    Decides on the labels of each clip.

    Args:
        probabilities: (clips, labels).
        names: Name of each label.
        problem_type: One of `PROBLEM_TYPES`.
        thresholds: Multi-label only: threshold per label; `None`: 0.5 for all.

    Returns:
        Per clip the most probable name (single-label), the list of names above their thresholds (multi-label), or the
            number (regression; a list of numbers for several outputs).
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
    Holds the logits of one clip's windows.

    Attributes:
        logits: (labels,), averaged over the windows, or (windows, labels).
        start_s: (windows,), start of each window in seconds.
        end_s: (windows,), end of each window in seconds.
    """

    logits: torch.Tensor = None
    start_s: torch.Tensor = None
    end_s: torch.Tensor = None


class ClassifierMixin:
    """
    Adds loss, calibrated probabilities, labels and `classify_windows` to a classifier on an encoder of this package.
    """

    @property
    def loss_function(self) -> Callable:
        """Loss of (labels, logits, config), a scalar. Assigning a function or a module replaces it."""
        # torch stores an assigned module among the submodules, without a call of the setter.
        return getattr(self, "_loss_function", None) or self._modules.get("loss_function") or configured_loss

    @loss_function.setter
    def loss_function(self, function: Optional[Callable]):
        self._loss_function = function

    def classifier_output(
        self, logits: torch.Tensor, labels: Optional[torch.Tensor], outputs: ModelOutput
    ) -> SequenceClassifierOutput:
        """Adds the loss if there are labels, and sets `config.problem_type` from them if it is `None`."""
        config, loss = self.config, None
        if labels is not None:
            if config.problem_type is None:  # stored like in Transformers, because pipelines read it
                config.problem_type = guess_problem_type(labels, config.num_labels)
            loss = self.loss_function(labels, logits, config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """
        Computes calibrated probabilities: softmax (single-label) or sigmoid (multi-label) of `logits /
        config.calibration_temperature`.

        Args:
            logits: (..., labels).

        Returns:
            float32 (..., labels); the logits themselves for a regression.
        """
        return probabilities_of_logits(logits, self._problem_type(), self.config.calibration_temperature)

    def predict_labels(self, logits: torch.Tensor) -> list:
        """
        Decides on the labels of each clip, with the calibrated probabilities and `config.decision_thresholds` (0.5 by
        default).

        Args:
            logits: (clips, labels).

        Returns:
            Per clip the most probable label (single-label), the list of labels above their thresholds (multi-label), or
                the number (regression; a list of numbers for several outputs).
        """
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        thresholds = self.config.decision_thresholds
        return labels_of_probabilities(self.probabilities(logits), names, self._problem_type(), thresholds)

    def _problem_type(self) -> str:
        """Returns `config.problem_type`, or a guess by Transformers' convention if it is `None`."""
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
        Classifies a clip of any length in overlapping windows.

        The last window ends at the clip's end, so that all windows are full. A clip that fits into one window gives
        exactly the logits of an ordinary call.

        Args:
            waveform (`np.ndarray` or `torch.Tensor`): Mono clip (samples,).
            feature_extractor (`SpectrogramFeatureExtractor`): The one saved with this model.
            sampling_rate: Sampling rate of the waveform in Hz, checked against the extractor's.
            window_s: Seconds per window. The default is the model's longest input, or about a minute without a limit.
            hop_s: Seconds from window to window. The default is half a window.
            batch_size: Windows per forward pass.
            average: Whether to average the logits over the windows.

        Returns:
            `logits` (labels,), or (windows, labels) without `average`; `start_s` and `end_s` (windows,) in seconds.

        Raises:
            ValueError: A window longer than the longest input, a hop that skips audio, `batch_size` below 1, or audio
                that the feature extractor rejects.

        Example:
            ```python
            >>> output = model.classify_windows(waveform, extractor, sampling_rate=16000)
            >>> model.predict_labels(output.logits[None])
            ['dog']
            ```
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        rate = feature_extractor.sampling_rate
        window, hop = window_and_hop(self.base_model, feature_extractor, window_s, hop_s)
        starts = window_starts(len(waveform), window, hop)
        logits = []
        with evaluating(self):
            for first in range(0, len(starts), batch_size):
                clips = [waveform[start : start + window] for start in starts[first : first + batch_size]]
                features = feature_extractor(
                    clips,
                    sampling_rate=sampling_rate,
                    padding="longest",
                    return_attention_mask=True,
                    return_tensors="pt",
                )
                logits.append(self(**features.to(input_device(self)), return_dict=True).logits)
        logits = torch.cat(logits)  # (windows, labels)
        start_s = torch.tensor(starts, dtype=torch.float64, device="cpu") / rate
        end_s = torch.clamp(start_s + window / rate, max=len(waveform) / rate)
        return WindowedOutput(logits=logits.mean(dim=0) if average else logits, start_s=start_s, end_s=end_s)
