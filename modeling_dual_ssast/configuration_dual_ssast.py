# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Dual SSAST (Choi et al., Neurocomputing 623, 2025): encoder, layer fusion, heads, pretraining."""

import difflib
import inspect
import json
import math
from pathlib import Path

import torch
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

FUSION_NORMS = ("shared", "shared_twice", "separate", "none")
READOUTS = ("patches", "prefix", "frames")  # of any encoder; "tokens" needs attention_over_padding
POOLINGS = ("mean", "max", "min", "std", "attention")
POOLING_COMBINATIONS = ("sum", "mean", "concat")
FUSIONS = ("concat", "sum", "weighted", "gated")
CLASSIFIERS = ("linear", "prototypes")
# Not those with weights of their own, which a new classifier or an imported encoder would have to initialise.
ACTIVATIONS = tuple(sorted(set(ACT2FN) - {"prelu", "xielu"}))
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
PRETRAINING_OBJECTIVES = ("joint", "discriminative", "generative")
# Names of the published Dual SSAST -> `pooling`. A pooling that is named twice counts twice.
PUBLISHED_POOLINGS = {
    "mean": ["mean"],
    "max": ["max"],
    "mean_max": ["mean", "max"],
    "max_max": ["max", "max"],
    "min": ["min"],
    "mean_min": ["mean", "min"],
}
PUBLISHED_MLP_LAYERS = (2, 4, 6, 8)
# Settings of `event_detection` -> what they must be. An event begins with a score above `high`, after a median filter,
# and goes on while scores are above `low`.
EVENT_SETTINGS = {
    "high": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "low": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "min_duration_s": ("a number of seconds", lambda value: _is_number(value) and 0 <= value < math.inf),
    "max_gap_s": ("a number of seconds", lambda value: _is_number(value) and 0 <= value < math.inf),
    "median_steps": ("an odd number of frames", lambda value: _is_positive_int(value) and value % 2 == 1),
    "window_s": ("a number of seconds above 0", lambda value: _is_number(value) and 0 < value < math.inf),
    "hop_s": ("a number of seconds above 0", lambda value: _is_number(value) and 0 < value < math.inf),
    "metric": ("the name of what they were chosen for", lambda value: isinstance(value, str)),
}
WINDOW_SETTINGS = ("window_s", "hop_s")
# What is chosen for one trained classifier -> its value for a new one.
CALIBRATION = {"calibration_temperature": 1.0, "decision_thresholds": None, "event_detection": None}

# One saved folder serves all these Auto classes. Transformers copies the files flat beside the weights.
AUTO_MAP = {
    "AutoConfig": "configuration_dual_ssast.DualSSASTConfig",
    "AutoFeatureExtractor": "feature_extraction_dual_ssast.DualSSASTFeatureExtractor",
    "AutoModel": "modeling_dual_ssast.DualSSASTModel",
    "AutoModelForAudioClassification": "modeling_dual_ssast.DualSSASTForAudioClassification",
    "AutoModelForAudioFrameClassification": "modeling_dual_ssast.DualSSASTForAudioFrameClassification",
    "AutoModelForPreTraining": "modeling_dual_ssast.DualSSASTForPreTraining",
}

# With these files beside the weights, sentence-transformers embeds clips like the model's own `embed`.
SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"audio": {"method": "embed_padded", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"audio": {"return_waveforms": True}},  # of the feature extractor's call
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}

# Keywords of Transformers' constructor that are not attributes of a fresh configuration.
TRANSFORMERS_KEYS = {
    "_commit_hash",
    "_attn_implementation_autoset",
    "attn_implementation",
    "auto_map",
    "dtype",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}


class StrictConfig(PretrainedConfig):
    """
    Rejects unknown keywords and impossible values, and stores a complete `auto_map`: the base class of all
    configurations.

    A subclass fills `auto_classes` and calls `check` at the end of its constructor.

    Args:
        classifier_activation (`str`, *optional*, defaults to `"gelu"`):
            Activation of the classifier's hidden layers. `None`: no activation but a LayerNorm before every Linear, the
            head of the published Dual SSAST.
        classifier (`str`, *optional*, defaults to `"linear"`):
            `"linear"`: LayerNorm, hidden layers if any, Linear, on the pooled vector. `"prototypes"`: cosines between
            learned prototypes of each class and every token of the fused layers, and their maximum over the tokens; it
            does not pool. See [`PrototypeClassifier`].
        prototypes_per_class (`int`, *optional*, defaults to 5):
            Prototypes of each class.
        binary_prototypes (`bool`, *optional*, defaults to `False`):
            Whether prototypes are signs, -1 and +1, with a straight-through gradient (arXiv 2509.24901).
        num_pooling_heads (`int`, *optional*, defaults to 1):
            Queries of the pooling `attention`. Each pools its own part of the channels.
        calibration_temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits in the classifier's `probabilities` (temperature scaling, Guo et al., ICML 2017). The
            logits themselves do not change.
        decision_thresholds (`list[float]`, *optional*):
            Multi-label only: per-label probability threshold for predicting the label. `None`: 0.5 for all.
        frame_hop_s (`float`, *optional*):
            Seconds from frame to frame of a frame classifier's logits. The frame classifier sets it from its grid, for
            spectrogram frames of 10 ms, unless it is within 1 % of that already: PretrainedSED rounds 0.03992 to 0.04.
            Other models do not use it.
        event_detection (`dict`, *optional*):
            Frame classifiers only: how events are found in the scores, see `EVENT_SETTINGS`. Each value is a number, or
            a list with one per label. Chosen on the validation recordings of a training. `window_s` and `hop_s` are the
            windows for which they were chosen.
        **kwargs:
            Arguments of Transformers' `PretrainedConfig`.

    Raises:
        ValueError: `problem_type` is unknown.
        TypeError: A keyword is unknown.
    """

    auto_classes = {}

    def __init__(
        self,
        classifier_activation="gelu",
        classifier="linear",
        prototypes_per_class=5,
        binary_prototypes=False,
        num_pooling_heads=1,
        calibration_temperature=1.0,
        decision_thresholds=None,
        frame_hop_s=None,
        event_detection=None,
        **kwargs,
    ):
        self._reject_unknown(kwargs)
        self._check_problem_type(kwargs.get("problem_type"))  # Transformers' own error does not name the choices
        kwargs.setdefault("auto_map", dict(self.auto_classes))
        super().__init__(**kwargs)
        self.classifier_activation = classifier_activation
        self.classifier = classifier
        self.prototypes_per_class = prototypes_per_class
        self.binary_prototypes = binary_prototypes
        self.num_pooling_heads = num_pooling_heads
        self.calibration_temperature = calibration_temperature
        self.decision_thresholds = _as_list(decision_thresholds)
        self.frame_hop_s = frame_hop_s
        self.event_detection = event_detection

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that `fusion_layers` can name, from input to output."""
        raise NotImplementedError

    @property
    def projection_dim(self) -> int:
        """Size of an embedding, by the name that sentence-transformers looks for."""
        return self.fused_size

    # ---- checks ----

    def check(self):
        """
        Checks all values. Every model calls it again, because `from_pretrained(..., name=value)` sets attributes after
        construction.

        Raises:
            ValueError: A value or a combination of values is impossible. The message names both sides.
        """
        raise NotImplementedError

    def _check_classifier(self):
        self._check_problem_type(self.problem_type)
        if set(self.id2label) != set(range(len(self.id2label))) or not self.id2label:
            raise ValueError(f"id2label must name the labels from 0 on without gaps, got {self.id2label!s:.80}")
        if self.classifier_activation is not None:
            self._check_choice("classifier_activation", ACTIVATIONS)
        if not isinstance(self.classifier_hidden_sizes, list):
            raise ValueError(f"classifier_hidden_sizes must be a list, got {self.classifier_hidden_sizes!r}")
        for size in self.classifier_hidden_sizes:
            _check_value("classifier_hidden_sizes", size, "a positive integer", _is_positive_int)
        self._check_choice("classifier", CLASSIFIERS)
        self._check_positive_ints("prototypes_per_class", "num_pooling_heads")
        self._check_flags("binary_prototypes")
        if self.classifier == "prototypes" and self.classifier_hidden_sizes:
            raise ValueError(
                f"classifier='prototypes' has no hidden layers, got classifier_hidden_sizes "
                f"{self.classifier_hidden_sizes}: leave them out"
            )
        self._check_shares("classifier_dropout", "label_smoothing")
        self._check_positive_numbers("calibration_temperature")
        for name in ("classifier_layer_norm_eps", "frame_hop_s"):
            if getattr(self, name) is not None:
                self._check_positive_numbers(name)
        has_neither = self.classifier_activation is None and self.classifier_layer_norm_eps is None
        if self.classifier_hidden_sizes and has_neither:
            raise ValueError(
                f"classifier_hidden_sizes={self.classifier_hidden_sizes} needs classifier_activation, or a LayerNorm "
                "before every Linear: set classifier_layer_norm_eps, for example 1e-5"
            )
        self._check_finite("calibration_temperature")
        self._check_thresholds()
        self._check_event_detection()

    def _check_thresholds(self):
        thresholds = self.decision_thresholds
        if thresholds is None:
            return
        if not isinstance(thresholds, list) or len(thresholds) != self.num_labels:
            raise ValueError(
                f"decision_thresholds must be None or a list of {self.num_labels} numbers, one per label, got "
                f"{thresholds!r}"
            )
        for threshold in thresholds:
            _check_value("decision_thresholds", threshold, "numbers above 0 and below 1", _is_open_share)

    def _check_event_detection(self):
        settings = self.event_detection
        if settings is None:
            return
        if not isinstance(settings, dict) or not settings.keys() <= EVENT_SETTINGS.keys():
            raise ValueError(
                f"event_detection must be None or a mapping with some of {', '.join(EVENT_SETTINGS)}, got {settings!r}"
            )
        for name, value in settings.items():
            is_list = isinstance(value, list) and name not in (*WINDOW_SETTINGS, "metric")
            values = value if is_list else [value]
            if is_list and len(value) != self.num_labels:
                raise ValueError(f"event_detection: {name} needs {self.num_labels} numbers, one per label, got {value}")
            for one in values:
                _check_value(f"event_detection: {name}", one, *EVENT_SETTINGS[name])

    def _check_each(self, names, wanted: str, holds):
        for name in names:
            _check_value(name, getattr(self, name), wanted, holds)

    def _check_numbers(self, names, wanted: str, holds):
        self._check_each(names, wanted, lambda value: _is_number(value) and holds(value))

    def _check_choice(self, name: str, choices: tuple):
        self._check_each([name], f"one of {', '.join(choices)}", lambda value: value in choices)

    def _check_shares(self, *names: str):
        self._check_numbers(names, "a number from 0 to below 1", lambda value: 0 <= value < 1)

    def _check_positive_numbers(self, *names: str):
        self._check_numbers(names, "a positive number", lambda value: value > 0)

    def _check_positive_ints(self, *names: str):
        self._check_each(names, "a positive integer", _is_positive_int)

    def _check_finite(self, *names: str):
        self._check_numbers(names, "a finite number", math.isfinite)

    def _check_flags(self, *names: str):
        self._check_each(names, "true or false", lambda value: isinstance(value, bool))

    def _check_poolings(self, name: str, poolings):
        """Checks one list of poolings; `name` is the attribute that holds it."""
        known = isinstance(poolings, list) and all(pooling in POOLINGS for pooling in poolings)
        is_published = poolings in PUBLISHED_POOLINGS.values()
        if not known or not poolings or (len(set(poolings)) < len(poolings) and not is_published):
            raise ValueError(
                f"{name} must hold each of {', '.join(POOLINGS)} at most once, got {getattr(self, name)!r}"
            )

    def _check_attention(self, poolings: list[str], token_size: int, is_read: bool):
        """Checks the pooling `attention` for tokens of a size; `is_read`: the readout pools at all."""
        if "attention" not in poolings:
            return
        reason = f"readout={self.readout!r}" if not is_read else "classifier='prototypes'"
        if not is_read or self.classifier == "prototypes":
            raise ValueError(
                f"{reason} does not pool, so pooling 'attention' would stay untrained: use another pooling"
            )
        if token_size % self.num_pooling_heads:
            raise ValueError(
                f"num_pooling_heads must divide the size of a token, got {self.num_pooling_heads} and {token_size}"
            )

    @staticmethod
    def _check_problem_type(value):
        if value is not None and value not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be None or one of {', '.join(PROBLEM_TYPES)}, got {value!r}")

    # ---- keywords and files ----

    @classmethod
    def _own_keys(cls) -> set[str]:
        own_classes = [base for base in cls.__mro__ if issubclass(base, StrictConfig)]
        return {name for base in own_classes for name in inspect.signature(base.__init__).parameters} - {
            "self",
            "kwargs",
        }

    @classmethod
    def _unknown_keys(cls, keys) -> list[str]:
        known = cls._own_keys() | TRANSFORMERS_KEYS | set(vars(PretrainedConfig()))
        return [key for key in keys if key not in known]

    @classmethod
    def _reject_unknown(cls, kwargs):
        for key in cls._unknown_keys(kwargs):
            nearest = difflib.get_close_matches(key, sorted(cls._own_keys()), n=1, cutoff=0.4)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise TypeError(f"{cls.__name__} got an unexpected keyword {key!r}{hint}")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """
        Makes a configuration from stored values. Keys of another version or tool are kept, not rejected.

        Args:
            config_dict (`dict`): Values of a `config.json`.
            **kwargs: Values that override the stored ones. Other labels drop the stored calibration.

        Returns:
            The configuration, or with `return_unused_kwargs=True` a tuple of it and the unused keywords.

        Raises:
            ValueError: A value or a combination of values is impossible.
        """
        foreign = {key: config_dict[key] for key in cls._unknown_keys(config_dict)}
        known = {key: value for key, value in cls._of_earlier_versions(config_dict).items() if key not in foreign}
        if cls._has_other_labels(config_dict, kwargs):  # the new classifier is not calibrated
            known = {key: value for key, value in known.items() if key not in CALIBRATION}
        # Overrides pass through the constructor, which accepts tuples and single names and checks all together.
        known |= {key: kwargs.pop(key) for key in sorted(cls._own_keys() & set(kwargs))}
        result = super().from_dict(known, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for key, value in foreign.items():
            if not hasattr(cls, key):  # a property of ours, such as num_patches
                setattr(config, key, value)
        return result

    @classmethod
    def _of_earlier_versions(cls, stored: dict) -> dict:
        """Completes values that an earlier version stored: defaults that have changed since keep their meaning."""
        if "hidden_act" in stored:
            stored = {"classifier_activation": stored["hidden_act"], **stored}
        return stored

    @staticmethod
    def _has_other_labels(config_dict, kwargs) -> bool:
        names = _by_index(config_dict.get("id2label") or PretrainedConfig().id2label)
        if kwargs.get("id2label") is not None:
            return _by_index(kwargs["id2label"]) != names
        return kwargs.get("num_labels", len(names)) != len(names)

    def reset_calibration(self, names=tuple(CALIBRATION)):
        """Gives the fields of a calibration (`names`, by default all) the values of a new, untrained classifier."""
        for name in names:
            setattr(self, name, CALIBRATION[name])

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Writes `config.json`, which saving a model does too, and the files of sentence-transformers beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            path = Path(save_directory, name)
            if not path.exists():  # sentence-transformers writes its own, which may have more modules
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict:
        """Returns all values for a `config.json`, with a local `auto_map`."""
        # A model loaded from "user/name" refers to that repository, but a saved folder carries its own code.
        return {**super().to_dict(), "auto_map": dict(self.auto_classes)}


class DualSSASTConfig(StrictConfig):
    r"""
    Stores the configuration of the Dual SSAST models. Names follow `ASTConfig` of Transformers.

    The encoder is that of SSAST (Gong et al., AAAI 2022) and AST (Gong et al., Interspeech 2021); the defaults are the
    base patch model. A clip's representation is built in a fixed order: normalise each fused state, pool it, combine
    its poolings, fuse the layers (Dual SSAST, Choi et al., Neurocomputing 623, 2025).

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Size of every token.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Attention heads per block. Divides `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Size of the hidden layer of every block's MLP.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the MLPs.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout after the embeddings, the attention and the MLP of every block.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the attention weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the truncated normal initialisation.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the encoder's LayerNorms.
        qkv_bias (`bool`, *optional*, defaults to `True`):
            Whether queries, keys and values have a bias.
        patch_size (`int` or `list[int]`, *optional*, defaults to 16):
            Side of a square patch, or `[mel bins, frames]`: 16 for patch models, `[128, 2]` for frame models.
        frequency_stride (`int`, *optional*, defaults to 16):
            Step between patches in mel bins. SSAST pretrains without overlap and fine-tunes patch models at 10.
        time_stride (`int`, *optional*, defaults to 16):
            Step between patches in frames. SSAST fine-tunes patch models at 10 and frame models at 1.
        max_length (`int`, *optional*, defaults to 1024):
            Longest input in frames of 10 ms, which the positions cover. Shorter clips use the leading positions.
        num_mel_bins (`int`, *optional*, defaults to 128):
            Mel bins of the input.
        num_prefix_tokens (`int`, *optional*, defaults to 2):
            Tokens before the patches: 2 (class and distillation token: SSAST, AST) or 1 (class token: ASiT).
        fusion_layers (`list[int]`, *optional*, defaults to the layers of the published Dual SSAST):
            Hidden states that form the representation: 0 is the patch embedding, i the output of block i. Negative
            numbers count from the end. Unset: `round(num_hidden_layers * 5 / 12)` and the last, 5 and 12 of 12.
        fusion_norm (`str`, *optional*, defaults to `"shared"`):
            Normalisation of the fused states: `"shared"` (the encoder's final LayerNorm on each), `"shared_twice"` (the
            same LayerNorm applied two times, as published), `"separate"` (one LayerNorm per fused state) or `"none"`.
        readout (`str`, *optional*, defaults to `"patches"`):
            `"patches"` pools over all patches. `"prefix"` takes the mean of the prefix tokens and ignores `pooling`.
            `"frames"` flattens frequency x channel per time step, then pools over time (Niizumi et al., EUSIPCO 2022).
            `"tokens"` averages all tokens, in the order of time with the prefix first, to `num_token_frames` frames
            without regard to patch columns (PretrainedSED, Schmid et al., ICASSP 2025), and ignores `pooling`.
        num_token_frames (`int`, *optional*, defaults to 250):
            Frames of `readout="tokens"`.
        pooling (`list[str]` or `list[list[str]]`, *optional*, defaults to `["mean", "max"]`):
            Non-empty subset of `mean`, `max`, `min`, `std` (standard deviation) and `attention` (a mean weighted by
            learned queries, see `num_pooling_heads`), or one such subset per fused layer. `["max", "max"]` is twice the
            maximum, the published `max_max`.
        pooling_combination (`str`, *optional*, defaults to `"sum"`):
            Combination of a layer's poolings: `"sum"`, `"mean"` or `"concat"`.
        fusion (`str`, *optional*, defaults to `"concat"`):
            Combination of the layers: `"concat"`, `"sum"`, `"weighted"` (softmax over learned scalars) or `"gated"`
            (learned sigmoid gates, divided by their sum).
        classifier_hidden_sizes (`list[int]`, *optional*):
            Hidden layers of the classifier, between its LayerNorm and its last Linear. SSAST has none. See
            `classifier_activation` of [`StrictConfig`].
        classifier_dropout (`float`, *optional*, defaults to 0.0):
            Dropout before each Linear of the classifier.
        classifier_layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the classifier's LayerNorm: 1e-5 in the original repositories, 1e-12 in Transformers' AST.
            `None`: no LayerNorm.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the cross-entropy, for single-label classification.
        padding_value (`float`, *optional*, defaults to 0.467):
            Value of a padded frame after normalisation: `-mean / (2 * std)` of the feature extractor. The default
            belongs to AudioSet's statistics. The model writes it over masked frames and uses it to pad the last patch.
        attention_over_padding (`bool`, *optional*, defaults to `False`):
            Whether every clip is padded to `max_length` and padding takes part in attention and pooling, like in the
            original repositories.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth: the probability that a clip skips a branch of the last block. It grows linearly from 0 in
            the first block.
        pack_tokens (`bool`, *optional*):
            Whether the blocks run without the padding between the clips of a batch: the tokens of all clips in one row,
            in which each clip attends to itself alone. The numbers stay the same, except for the states of padding,
            which are zeros. `None`: on CPUs, for batches with more than 5 % of padding. Attention weights and graphs
            (`torch.compile`, exports) keep the padding in any case.
        mask_ratio (`float`, *optional*, defaults to 400 / 512):
            Share of a clip's patches that masked spectrogram patch modelling masks: 400 or 250 of 512 in SSAST.
        pretraining_objective (`str`, *optional*, defaults to `"joint"`):
            `"discriminative"`, `"generative"` or `"joint"` (discriminative + 10 * generative).
        clustered_mask (`bool`, *optional*, defaults to `True`):
            Whether the masked patches of a patch model form squares of 3 to 5 patches a side, as in SSAST, instead of
            lying anywhere. A frame model has one row of patches, and masks single ones in any case.
        shared_mask (`bool`, *optional*, defaults to `True`):
            Whether both objectives share one mask and one encoder pass. `False` is the published form: a mask and a
            pass for each, at twice the cost.
        num_decoder_layers (`int`, *optional*, defaults to 0):
            Blocks of the pretraining decoder. With 0 the encoder reads mask tokens, like SSAST. Otherwise it reads the
            visible patches only, and the decoder predicts the masked ones (MAE-AST, Baade et al., Interspeech 2022,
            with 2).
        clip_contrast_weight (`float`, *optional*, defaults to 0.0):
            Weight of a third objective of pretraining: two crops of a clip are found among the crops of the batch
            (COLA, Saeed et al., ICASSP 2021). 0, as in SSAST: none, and one crop per clip.
        **kwargs:
            Arguments of [`StrictConfig`] and of Transformers' `PretrainedConfig`, such as `id2label`.

    Raises:
        ValueError: A value or a combination of values is impossible. The message names both sides.
        TypeError: A keyword is unknown.

    Example:
        ```python
        >>> from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification

        >>> config = DualSSASTConfig(fusion_layers=[5, 12], pooling=["mean", "max"], num_labels=10)
        >>> config.fused_size
        1536
        >>> model = DualSSASTForAudioClassification(config)
        ```
    """

    model_type = "dual_ssast"
    auto_classes = AUTO_MAP
    # A generation parameter to Transformers, which pops or rejects it unless the class declares it.
    max_length: int = 1024

    def __init__(
        self,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.02,
        layer_norm_eps=1e-6,
        qkv_bias=True,
        patch_size=16,
        frequency_stride=16,
        time_stride=16,
        max_length=1024,
        num_mel_bins=128,
        num_prefix_tokens=2,
        fusion_layers=None,
        fusion_norm="shared",
        readout="patches",
        num_token_frames=250,
        pooling=("mean", "max"),
        pooling_combination="sum",
        fusion="concat",
        classifier_hidden_sizes=None,
        classifier_dropout=0.0,
        classifier_layer_norm_eps=1e-5,
        label_smoothing=0.0,
        padding_value=4.2677393 / (2 * 4.5689974),
        attention_over_padding=False,
        drop_path_rate=0.0,
        pack_tokens=None,
        mask_ratio=400 / 512,
        pretraining_objective="joint",
        clustered_mask=True,
        shared_mask=True,
        num_decoder_layers=0,
        clip_contrast_weight=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.qkv_bias = qkv_bias
        self.patch_size = _as_list(patch_size)
        self.frequency_stride = frequency_stride
        self.time_stride = time_stride
        self.max_length = max_length
        self.num_mel_bins = num_mel_bins
        self.num_prefix_tokens = num_prefix_tokens
        self.fusion_layers = (
            self.default_fusion_layers(num_hidden_layers) if fusion_layers is None else _as_list(fusion_layers)
        )
        self.fusion_norm = fusion_norm
        self.readout = readout
        self.num_token_frames = num_token_frames
        self.pooling = [pooling] if isinstance(pooling, str) else _as_list(pooling)
        self.pooling_combination = pooling_combination
        self.fusion = fusion
        self.classifier_hidden_sizes = [] if classifier_hidden_sizes is None else _as_list(classifier_hidden_sizes)
        self.classifier_dropout = classifier_dropout
        self.classifier_layer_norm_eps = classifier_layer_norm_eps
        self.label_smoothing = label_smoothing
        self.padding_value = padding_value
        self.attention_over_padding = attention_over_padding
        self.drop_path_rate = drop_path_rate
        self.pack_tokens = pack_tokens
        self.mask_ratio = mask_ratio
        self.pretraining_objective = pretraining_objective
        self.clustered_mask = clustered_mask
        self.shared_mask = shared_mask
        self.num_decoder_layers = num_decoder_layers
        self.clip_contrast_weight = clip_contrast_weight
        self.check()

    @classmethod
    def published(cls, pooling: str = "mean_max", mlp_layers: int = 2, **kwargs) -> "DualSSASTConfig":
        """
        Makes the configuration of the published Dual SSAST (Choi et al., Neurocomputing 623, 2025) and its code.

        Args:
            pooling (`str`, *optional*, defaults to `"mean_max"`):
                `mean`, `max`, `mean_max` (their sum) or `max_max` (twice the maximum). `min` and `mean_min` are named
                in the paper and not implemented in its code; they are the same by analogy.
            mlp_layers (`int`, *optional*, defaults to 2):
                2, 4, 6 or 8: one to four pairs of LayerNorm and Linear in the classifier.
            **kwargs:
                Other arguments of this class. The defaults are the published 512 frames at strides of 10 x 10 with
                attention over the padding.

        Returns:
            The configuration.

        Raises:
            ValueError: An unknown pooling or number of layers, or a value that this class rejects.
        """
        if pooling not in PUBLISHED_POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(PUBLISHED_POOLINGS)}, got {pooling!r}")
        if mlp_layers not in PUBLISHED_MLP_LAYERS:
            raise ValueError(
                f"mlp_layers must be one of {', '.join(map(str, PUBLISHED_MLP_LAYERS))}, got {mlp_layers!r}"
            )
        published = {
            "frequency_stride": 10,
            "time_stride": 10,
            "max_length": 512,
            "attention_over_padding": True,
            "fusion_norm": "shared_twice",
            "pooling": PUBLISHED_POOLINGS[pooling],
            "pooling_combination": "sum",
            "fusion": "concat",
        }
        values = {**published, **kwargs}
        return cls(**{**published_classifier(cls(**values).fused_size, mlp_layers), **values})

    @staticmethod
    def default_fusion_layers(num_hidden_layers: int) -> list[int]:
        """Returns the layers that are fused unless others are named: blocks 5 and 12 of 12, as published."""
        return [round(num_hidden_layers * 5 / 12), num_hidden_layers]

    @classmethod
    def _of_earlier_versions(cls, stored: dict) -> dict:
        stored = super()._of_earlier_versions(stored)
        if "fusion_layers" in stored and stored["fusion_layers"] is None:
            depth = stored.get("num_hidden_layers", 12)
            stored = {**stored, "fusion_layers": [depth // 2, depth]}
        return stored

    # ---- the patch grid ----

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Size of a patch: (mel bins, frames)."""
        return (self.patch_size, self.patch_size) if isinstance(self.patch_size, int) else tuple(self.patch_size)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Patch grid of a clip of `max_length` frames: (rows in frequency, columns in time), rounded down."""
        patch_mels, patch_frames = self.patch_shape
        rows = (self.num_mel_bins - patch_mels) // self.frequency_stride + 1
        return rows, (self.max_length - patch_frames) // self.time_stride + 1

    @property
    def num_patches(self) -> int:
        """Number of patches of a clip of `max_length` frames."""
        return math.prod(self.grid_shape)

    def num_columns(self, num_frames):
        """
        Returns the number of patch columns of a clip: enough to cover every frame, at least one, at most the grid's.

        Args:
            num_frames (`int` or `torch.Tensor`): Frames of the clip, at most `max_length`; an integer tensor of any
                shape for several clips.

        Returns:
            `int`, or an integer tensor of the same shape.
        """
        # Not -(-x // y): the division of a traced size truncates towards zero.
        steps = (num_frames - self.patch_shape[1] + self.time_stride - 1) // self.time_stride
        last = self.grid_shape[1] - 1
        return (steps.clamp(0, last) if isinstance(steps, torch.Tensor) else min(max(steps, 0), last)) + 1

    def num_batch_columns(self, num_frames: int) -> int:
        """Returns the patch columns of a batch padded to `num_frames`: the whole grid with `attention_over_padding`."""
        return self.grid_shape[1] if self.attention_over_padding else self.num_columns(num_frames)

    def num_covered_frames(self, num_columns):
        """Returns the number of frames that `num_columns` patch columns span, including padding at the right edge."""
        return (num_columns - 1) * self.time_stride + self.patch_shape[1]

    # ---- pretraining ----

    @property
    def num_pretraining_crops(self) -> int:
        """Number of crops of a clip that an example of pretraining has."""
        return 2 if self.clip_contrast_weight else 1

    @property
    def num_pretraining_masks(self) -> int:
        """Number of masks of an example of pretraining: one per crop, and one per objective without `shared_mask`."""
        num_passes = 2 if self.pretraining_objective == "joint" and not self.shared_mask else 1
        return num_passes * self.num_pretraining_crops

    # ---- the fused representation ----

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of `hidden_states`: 0 is the patch embedding, i the output of block i."""
        return tuple(range(self.num_hidden_layers + 1))

    @property
    def fused_layers(self) -> list[int]:
        """`fusion_layers` as non-negative indices of `hidden_states`."""
        return [layer + self.num_hidden_layers + 1 if layer < 0 else layer for layer in self.fusion_layers]

    @property
    def pooling_per_layer(self) -> list[list[str]]:
        """Poolings of each fused layer."""
        if isinstance(self.pooling[0], str):
            return [self.pooling] * len(self.fused_layers)
        return self.pooling

    @property
    def token_size(self) -> int:
        """Size of what is pooled: a patch, or a time step of all rows with `readout="frames"`."""
        return self.hidden_size * (self.grid_shape[0] if self.readout == "frames" else 1)

    @property
    def fused_size_per_layer(self) -> list[int]:
        """Size of each fused layer's vector."""
        if self.readout in ("prefix", "tokens"):
            return [self.hidden_size] * len(self.fused_layers)
        concatenated = self.pooling_combination == "concat"
        return [self.token_size * (len(pooling) if concatenated else 1) for pooling in self.pooling_per_layer]

    @property
    def fused_size(self) -> int:
        """Size of `pooler_output`, the input of the classifier."""
        sizes = self.fused_size_per_layer
        return sum(sizes) if self.fusion == "concat" else sizes[0]

    # ---- checks ----

    def check(self):
        """Checks all values, see [`StrictConfig.check`]."""
        self._check_positive_ints("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        self._check_positive_ints("frequency_stride", "time_stride", "max_length", "num_mel_bins", "num_token_frames")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        self._check_classifier()
        self._check_choice("hidden_act", ACTIVATIONS)
        self._check_grid()
        self._check_fusion()
        self._check_shares("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
        self._check_each(["mask_ratio"], "a number above 0 and below 1", _is_open_share)
        self._check_positive_numbers("layer_norm_eps", "initializer_range")
        self._check_finite("padding_value")
        self._check_each(["num_decoder_layers"], "an integer from 0", lambda value: _is_int(value) and value >= 0)
        self._check_flags("qkv_bias", "attention_over_padding", "clustered_mask", "shared_mask")
        self._check_numbers(["clip_contrast_weight"], "a number from 0", lambda value: value >= 0)
        if self.clip_contrast_weight and not self.shared_mask:
            raise ValueError(
                f"clip_contrast_weight={self.clip_contrast_weight} needs one mask per crop: set shared_mask=True"
            )
        self._check_each(["pack_tokens"], "None, true or false", lambda x: x is None or isinstance(x, bool))

    def _check_grid(self):
        if not _is_int(self.patch_size) and not (isinstance(self.patch_size, list) and len(self.patch_size) == 2):
            raise ValueError(f"patch_size must be an int or [frequency, time], got {self.patch_size!r}")
        sides = (
            ("num_mel_bins", self.num_mel_bins, "frequency_stride", self.frequency_stride),
            ("max_length", self.max_length, "time_stride", self.time_stride),
        )
        for patch, (size_name, size, stride_name, stride) in zip(self.patch_shape, sides):
            _check_value("patch_size", patch, "a positive integer", _is_positive_int)
            if patch > size:
                raise ValueError(
                    f"patch_size {self.patch_size} does not fit: {size_name} is {size}, the patch needs {patch}"
                )
            if stride > patch:
                raise ValueError(f"{stride_name}={stride} skips audio between patches of {patch}: use at most {patch}")
        if self.num_prefix_tokens not in (1, 2):
            raise ValueError(
                f"num_prefix_tokens must be 1 (class) or 2 (class and distillation), got {self.num_prefix_tokens!r}"
            )

    def _check_fusion(self):
        for name, choices in (
            ("fusion_norm", FUSION_NORMS),
            ("readout", (*READOUTS, "tokens")),
            ("pooling_combination", POOLING_COMBINATIONS),
            ("fusion", FUSIONS),
            ("pretraining_objective", PRETRAINING_OBJECTIVES),
        ):
            self._check_choice(name, choices)
        if self.readout == "tokens" and not self.attention_over_padding:
            raise ValueError("readout='tokens' needs attention_over_padding=True, got False")
        deepest = self.num_hidden_layers
        if self.fusion_layers is None:
            self.fusion_layers = self.default_fusion_layers(deepest)
        if not (isinstance(self.fusion_layers, list) and self.fusion_layers):
            raise ValueError(f"fusion_layers must be a list of at least one layer, got {self.fusion_layers!r}")
        for layer in self.fusion_layers:
            if not _is_int(layer) or not -deepest - 1 <= layer <= deepest:
                raise ValueError(f"fusion_layers must be integers from {-deepest - 1} to {deepest}, got {layer!r}")
        if len(set(self.fused_layers)) < len(self.fused_layers):
            raise ValueError(f"fusion_layers {self.fusion_layers} name the same layer twice: {self.fused_layers}")
        self._check_pooling()
        if self.fusion != "concat" and len(set(self.fused_size_per_layer)) > 1:
            raise ValueError(
                f"fusion={self.fusion!r} needs vectors of one size, but pooling {self.pooling} with "
                f"pooling_combination='concat' gives {self.fused_size_per_layer}"
            )

    def _check_pooling(self):
        if not isinstance(self.pooling, list) or not self.pooling:
            raise ValueError(f"pooling must be a non-empty list of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if not isinstance(self.pooling[0], str) and len(self.pooling) != len(self.fused_layers):
            raise ValueError(
                f"pooling has {len(self.pooling)} lists for {len(self.fused_layers)} fused layers: {self.pooling}"
            )
        for pooling in self.pooling_per_layer:
            self._check_poolings("pooling", pooling)
            self._check_attention(pooling, self.token_size, is_read=self.readout in ("patches", "frames"))


def published_classifier(fused_size: int, mlp_layers: int) -> dict:
    """Returns the settings of the published Dual SSAST's classifier of 2, 4, 6 or 8 layers, for a fused vector."""
    return {"classifier_hidden_sizes": [fused_size] * (mlp_layers // 2 - 1), "classifier_activation": None}


def _by_index(id2label: dict) -> dict:
    """Returns the names of labels by integers; a `config.json` has strings."""
    return {int(index): name for index, name in id2label.items()}


def _as_list(value):
    """Turns tuples, inner ones too, into lists like those of a JSON file."""
    return [_as_list(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_int(value) -> bool:
    return _is_int(value) and value > 0


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_open_share(value) -> bool:
    return _is_number(value) and 0 < value < 1


def _check_value(name: str, value, wanted: str, holds):
    if not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


DualSSASTConfig.register_for_auto_class()
