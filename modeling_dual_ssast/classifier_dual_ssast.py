# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Classifier on a clip's representation, its loss, its labels and its windows; the same for all encoders."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import ModelOutput, logging

from .configuration_dual_ssast import CALIBRATION, PROBLEM_TYPES, StrictConfig
from .embedding_dual_ssast import HUB_KEYWORDS, evaluating, input_device, window_and_hop, window_starts
from .fusion_dual_ssast import LayerFusion, TokenAttention, at_least_float32, frame_mask, in_place_of

try:  # The initialisers of Transformers 5 do not overwrite loaded weights
    from transformers import initialization as init
except ImportError:
    from torch.nn import init


logger = logging.get_logger(__name__)
SPECTROGRAM_HOP_S = 0.01  # of the features that all families were trained on


class DualSSASTClassifierHead(nn.Module):
    """
    Classifies a clip's representation: LayerNorm, hidden layers if any, Linear.

    Without hidden layers it is the head of SSAST (Gong et al., AAAI 2022). Without an activation every Linear has a
    LayerNorm before it: the head of the published Dual SSAST (Choi et al., Neurocomputing 623, 2025).

    Args:
        config: Configuration of the classifier.
        size: Size of the representation. The default is `config.fused_size`.
    """

    def __init__(self, config: StrictConfig, size: Optional[int] = None):
        super().__init__()
        eps = config.classifier_layer_norm_eps
        sizes = [config.fused_size if size is None else size, *config.classifier_hidden_sizes]
        self.layernorm = nn.Identity() if eps is None else nn.LayerNorm(sizes[0], eps=eps)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        if config.classifier_activation is None:
            self.activations = nn.ModuleList(nn.LayerNorm(width, eps=eps) for width in sizes[1:])
        else:
            self.activations = [ACT2FN[config.classifier_activation]] * len(self.hidden)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(sizes[-1], config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Computes the logits: (..., size) -> (..., labels)."""
        pooled = self.layernorm(pooled)
        for linear, activation in zip(self.hidden, self.activations):
            pooled = activation(linear(self.dropout(pooled)))
        return self.dense(self.dropout(pooled))


class PrototypeClassifier(nn.Module):
    """
    Classifies tokens by their likeness to learned prototypes: the most alike token counts, wherever it is.

    The logit of class c is b_c + sum_k w_ck max_t cos(LayerNorm(x_t), p_ck), with K prototypes p_ck per class. Binary
    prototypes are sign(p_ck), whose gradient is passed straight to p_ck. Bird-MAE's prototypical probes (arXiv
    2504.12880) have prototypes per class, too; the binarised probes of arXiv 2509.24901 share prototypes among the
    classes by a Linear. Here a class reads its own prototypes alone, so that a map of cosines explains its logit.

    Args:
        config: Configuration of the classifier.
        size: Size of a token.
    """

    SCALE = 10.0  # sum of the initial weights of a class: cosines alone are too small for a softmax

    def __init__(self, config: StrictConfig, size: int):
        super().__init__()
        eps = config.classifier_layer_norm_eps
        self.is_binary = config.binary_prototypes
        self.layernorm = nn.Identity() if eps is None else nn.LayerNorm(size, eps=eps)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.prototypes = nn.Parameter(torch.empty(config.num_labels, config.prototypes_per_class, size))
        self.weight = nn.Parameter(torch.empty(config.num_labels, config.prototypes_per_class))
        self.bias = nn.Parameter(torch.empty(config.num_labels))

    def cosines(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compares tokens (..., size) with all prototypes: (..., labels, prototypes)."""
        tokens = at_least_float32(self.dropout(self.layernorm(tokens)))
        prototypes = at_least_float32(self.prototypes)
        if self.is_binary:
            signs = torch.where(prototypes >= 0, 1.0, -1.0).to(prototypes.dtype)
            prototypes = signs + (prototypes - prototypes.detach())  # zero, with the gradient of the sign
        tokens, prototypes = (nn.functional.normalize(vectors, dim=-1) for vectors in (tokens, prototypes))
        return (tokens @ prototypes.flatten(0, 1).mT).unflatten(-1, self.weight.shape)

    def forward(self, tokens: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Computes logits.

        Args:
            tokens: (batch, frames, tokens of a frame, size).
            mask: Boolean (batch, frames), true for the frames of each clip, to classify clips; `None` to classify
                frames.

        Returns:
            (batch, labels), or (batch, frames, labels) without a mask.
        """
        best = self.cosines(tokens).amax(dim=2)  # (batch, frames, labels, prototypes)
        if mask is not None:
            best = best.masked_fill(~mask[:, :, None, None], -2).amax(dim=1)  # below every cosine
        weight, bias = at_least_float32(self.weight), at_least_float32(self.bias)
        return ((best * weight).sum(dim=-1) + bias).to(tokens.dtype)


def make_classifier(config: StrictConfig, encoder: nn.Module, size: Optional[int] = None) -> nn.Module:
    """Makes the classifier that `config.classifier` names; `size`: see [`DualSSASTClassifierHead`]."""
    if config.classifier == "prototypes":
        return PrototypeClassifier(config, encoder.frame_size)
    return DualSSASTClassifierHead(config, size)


def init_learned(module: nn.Module):
    """Initialises learned poolings, fusions and prototypes, which are the same in all models; skips other modules."""
    if isinstance(module, PrototypeClassifier):
        init.normal_(module.prototypes, std=0.02)
        init.constant_(module.weight, module.SCALE / module.weight.shape[1])
        init.zeros_(module.bias)
    elif isinstance(module, TokenAttention):
        init.zeros_(module.pooling_query)
    elif isinstance(module, LayerFusion) and hasattr(module, "layer_weights"):
        init.zeros_(module.layer_weights)


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


class HeadMixin:
    """Adds probabilities, labels and new weights to a model with a `classifier`, and freezes what it never reads."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """Loads a model like its base class. A new classifier, or one with other labels, is not calibrated."""
        name = pretrained_model_name_or_path
        model, report = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        if name is not None and any(getattr(model.config, field) != new for field, new in CALIBRATION.items()):
            hub = {key: kwargs[key] for key in HUB_KEYWORDS if key in kwargs}
            model._drop_stored_calibration(cls.config_class.get_config_dict(name, **hub)[0], report, given=kwargs)
        return (model, report) if output_loading_info else model

    def _drop_stored_calibration(self, stored: dict, report: dict, given: dict):
        """
        Resets the calibration that a folder's `config.json` (`stored`) has for another classifier than this one, by the
        report of the loading. Values that the caller gave, in `given` or in a configuration, stay.
        """
        config = self.config
        stored = type(config).from_dict(stored) if stored else config
        prefix = next(name for name, module in self.named_modules() if module is self.classifier) + "."
        # Some versions of Transformers name the shapes beside a mismatched weight.
        new = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
        if stored.id2label != config.id2label or any(key.startswith(prefix) for key in (*new, *report["missing_keys"])):
            same = [name for name in CALIBRATION if getattr(config, name) == getattr(stored, name)]
            config.reset_calibration([name for name in same if name not in given])

    def _freeze_unreached(self):
        """Freezes the encoder's modules that the head leaves without a gradient: DDP with checkpointing fails on it."""
        for module in self.base_model.unreached():
            module.requires_grad_(False)

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
        Decides on the labels of each clip or time frame, with the calibrated probabilities and
        `config.decision_thresholds` (0.5 by default).

        Args:
            logits: (clips, labels), or (time frames, labels) of one clip.

        Returns:
            Per row the most probable label (single-label), the list of labels above their thresholds (multi-label), or
                the number (regression; a list of numbers for several outputs).

        Raises:
            ValueError: Logits of another shape, such as those of a batch of frames, or of other labels.
        """
        if logits.ndim != 2 or logits.shape[1] != self.config.num_labels:
            raise ValueError(
                f"logits must be (clips, labels), or (time frames, labels) of one clip, got {tuple(logits.shape)} for "
                f"{self.config.num_labels} label(s)"
            )
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        thresholds = self.config.decision_thresholds
        return labels_of_probabilities(self.probabilities(logits), names, self._problem_type(), thresholds)

    def reset_classifier(self):
        """Gives the classifier new, random weights, which are not calibrated."""
        for parameter in self.classifier.parameters():
            parameter._is_hf_initialized = False  # Transformers 5 keeps loaded weights from being initialised
        self.classifier.apply(self._init_weights)
        self.config.reset_calibration()

    def frame_mask(self, frames: torch.Tensor, attention_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Marks the label frames (batch, frames, ...) that hold audio: boolean (batch, frames)."""
        if attention_mask is None:
            return torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        lengths = self.base_model.num_label_frames(attention_mask.bool().sum(dim=1))
        return frame_mask(lengths, frames.shape[1])

    def _fit_head(self, old_fused_size: int, size: Optional[int] = None):
        """Replaces the classifier if a new patch grid changed the size of its input: with `readout="frames"` only."""
        if self.config.fused_size == old_fused_size:
            return
        self.classifier = in_place_of(self.classifier, make_classifier(self.config, self.base_model, size))
        self.classifier.apply(self._init_weights)
        self.config.reset_calibration()
        logger.warning(
            f"The new patch grid changes fused_size from {old_fused_size} to {self.config.fused_size}: the classifier "
            "is newly initialised and must be trained."
        )


class ClassifierMixin(HeadMixin):
    """Adds the loss and `classify_windows` to a classifier on an encoder of this package."""

    @property
    def loss_function(self) -> Callable:
        """
        Loss of (labels, logits, config), a scalar. Assigning a function or a module replaces it, `None` restores the
        usual one. A module follows the logits to their device, but is no part of the model: it is not saved, and an
        optimiser of the model's parameters does not train its own.
        """
        return getattr(self, "_loss_function", None) or configured_loss

    def __setattr__(self, name: str, value):
        if name != "loss_function":
            return super().__setattr__(name, value)
        # torch would make a module a part of the model, saved with it, without a call of a setter.
        object.__setattr__(self, "_loss_function", value)
        if isinstance(value, nn.Module) and any(True for _ in value.parameters()):
            logger.warning(
                "The parameters of loss_function are not the model's: they are neither saved nor trained with it. Give "
                "them to the optimiser yourself."
            )

    def logits_of(self, outputs: ModelOutput, attention_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Classifies the output of the encoder (for prototypes with `hidden_states`): (batch, labels)."""
        config = self.config
        if config.classifier != "prototypes":
            return self.classifier(outputs.pooler_output)
        tokens = self.base_model.label_tokens(outputs)
        # Prefix tokens have no place in time, and `attention_over_padding` means that padding takes part.
        is_whole = getattr(config, "attention_over_padding", False) or getattr(config, "readout", None) == "prefix"
        return self.classifier(tokens, self.frame_mask(tokens, None if is_whole else attention_mask))

    def classifier_output(
        self, logits: torch.Tensor, labels: Optional[torch.Tensor], outputs: ModelOutput, wants_states: bool = True
    ) -> SequenceClassifierOutput:
        """Adds the loss if there are labels, and sets `config.problem_type` from them if it is `None`."""
        config, loss = self.config, None
        if labels is not None:
            stored = config.problem_type
            if stored is None:  # stored like in Transformers, because pipelines read it
                config.problem_type = guess_problem_type(labels, config.num_labels)
            loss_function = self.loss_function
            if isinstance(loss_function, nn.Module):
                loss_function.to(logits.device)
            try:
                loss = loss_function(labels, logits, config)
            except Exception:
                config.problem_type = stored  # labels that are refused must not decide about the next ones
                raise
        states = outputs.hidden_states if wants_states else None
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states, attentions=outputs.attentions)

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


def frame_loss(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, problem_type: str, label_smoothing: float = 0.0
) -> torch.Tensor:
    """
    Computes the loss of a frame classifier in float32, the mean over the frames that hold audio and their labels.

    Args:
        logits: (batch, time frames, labels).
        labels: Floats (batch, time frames, labels): the labels that are active in each frame, -100 where that is
            unknown (binary cross-entropy), or regression targets. Single-label: classes (batch, time frames), -100 for
            frames without one (cross-entropy).
        mask: Boolean (batch, time frames), true for audio.
        problem_type: One of `PROBLEM_TYPES`.
        label_smoothing: Label smoothing of the cross-entropy.

    Returns:
        Scalar; 0 if no frame has a label.

    Raises:
        ValueError: Labels whose shape does not fit, or classes that are not integers.
    """
    logits, labels = logits.float(), labels.to(logits.device)
    is_single = problem_type == "single_label_classification"
    expected = logits.shape[:2] if is_single else logits.shape
    if labels.shape != expected:
        axes = "(batch, time frames)" if is_single else "(batch, time frames, labels)"
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits {tuple(logits.shape)} ({problem_type}): expected "
            f"{axes} = {tuple(expected)}"
        )
    if is_single:
        if labels.is_floating_point():
            raise ValueError(f"classes must be integers (batch, time frames), got {labels.dtype}")
        labels = labels.long().masked_fill(~mask, -100)
        loss = nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, label_smoothing=label_smoothing, reduction="sum"
        )
        return loss / (labels != -100).sum().clamp(min=1)
    function = (
        nn.functional.mse_loss if problem_type == "regression" else nn.functional.binary_cross_entropy_with_logits
    )
    counts = mask.unsqueeze(-1).expand_as(labels)
    if problem_type != "regression":
        counts = counts & (labels != -100)
    losses = function(logits, labels.float().masked_fill(~counts, 0), reduction="none")
    return losses.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)


class FrameClassifierMixin(HeadMixin):
    """
    Classifies every time frame by the fused layers of an encoder of this package, which is the `base_model`: poolings
    run over frequency alone. A subclass makes encoder and `classifier`.
    """

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        labels: Optional[torch.Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[tuple, TokenClassifierOutput]:
        """
        Classifies the time frames of a batch of spectrograms.

        Args:
            input_values: (batch, frames, mel), normalised.
            attention_mask: (batch, frames), 1 for audio and 0 for padding, on any side.
            labels: Floats (batch, time frames, labels) for several labels per frame, or classes (batch, time frames).
            output_attentions: Whether to return the attention weights; the convolutional networks have none.
            output_hidden_states: Whether to return the hidden states.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            `loss` (scalar) if there are labels: the mean over the frames that hold audio; `logits` (batch, time frames,
                labels), a frame every `config.frame_hop_s` seconds; `hidden_states` and `attentions` like those of the
                encoder if asked for.

        Raises:
            ValueError: Shapes that do not fit.
            TypeError: A keyword is unknown, or attention weights are asked of a convolutional network.
        """
        self.check_keywords(kwargs)
        config, encoder = self.config, self.base_model
        outputs = encoder(
            input_values,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=True,
            return_dict=True,
        )
        has_prototypes = config.classifier == "prototypes"
        frames = encoder.label_tokens(outputs) if has_prototypes else encoder.label_frames(outputs)
        logits = self.classifier(frames)  # (batch, time frames, labels)
        loss = None
        if labels is not None:
            guess = "multi_label_classification" if labels.ndim == 3 else "single_label_classification"
            problem_type = config.problem_type or guess
            mask = self.frame_mask(logits, attention_mask)
            loss = frame_loss(logits, labels, mask, problem_type, config.label_smoothing)
            config.problem_type = problem_type  # only if the labels fit
        wants_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states if wants_states else None,
            attentions=outputs.get("attentions"),
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _problem_type(self) -> str:
        return self.config.problem_type or "multi_label_classification"

    def _finish(self):
        """Adds the classifier and the frames' hop to a model that has its encoder."""
        self.num_labels = self.config.num_labels
        pools_rows = getattr(self.config, "readout", None) == "patches"
        if not pools_rows and any(isinstance(module, TokenAttention) for module in self.base_model.modules()):
            raise ValueError(
                "these time frames are classified before any pooling, so pooling 'attention' would stay untrained: use "
                "another pooling"
            )
        self.classifier = make_classifier(self.config, self.base_model, self.base_model.label_frame_size)
        self._set_hop()
        self.post_init()
        self._freeze_unreached()

    def _fit_head(self, old_fused_size: int):
        super()._fit_head(old_fused_size, self.base_model.label_frame_size)
        self._set_hop()

    def _set_hop(self):
        """Sets `config.frame_hop_s`, unless it is the hop of the frames already, exact or rounded."""
        hop_s = self.base_model.label_frame_stride * SPECTROGRAM_HOP_S
        if not math.isclose(self.config.frame_hop_s or 0, hop_s, rel_tol=0.01):
            self.config.frame_hop_s = hop_s
