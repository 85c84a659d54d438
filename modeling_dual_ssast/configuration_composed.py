# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Base configuration of the convolutional networks with composed features (Niizumi et al., EUSIPCO 2022)."""

from .configuration_dual_ssast import StrictConfig, _as_list, _check_value, _is_int, _is_positive_int


class ComposedConfig(StrictConfig):
    r"""
    Stores the configuration of composed features (Niizumi et al., EUSIPCO 2022) and of a classifier on them: the base
    class of [`VGGishConfig`] and [`PannsCnn14Config`], which define the layers and their sizes.

    Args:
        fusion_layers (`list[int]`):
            Layers whose maps form a time frame. They are joined in the network's order.
        temporal_pooling (`list[str]`, *optional*, defaults to `["mean", "max"]`):
            Non-empty subset of `mean`, `max`, `min`, `std` (standard deviation) and `attention` (learned queries) over
            time. Their sum is the clip's vector.
        channels (`list[int]`):
            Channels of the network's stages.
        num_mel_bins (`int`, *optional*, defaults to 64):
            Mel bins of the input.
        padding_value (`float`):
            Value of a padded frame: silence. The model writes it over masked frames and pads clips with it that are
            shorter than `min_frames`.
        classifier_hidden_sizes (`list[int]`, *optional*):
            Hidden layers of the classifier, with `classifier_activation`.
        classifier_dropout (`float`, *optional*, defaults to 0.0):
            Dropout before each Linear of the classifier.
        classifier_layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the classifier's LayerNorm.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the cross-entropy, for single-label classification.
        **kwargs:
            Arguments of [`StrictConfig`] and of Transformers' `PretrainedConfig`, such as `id2label`.

    Raises:
        ValueError: A value or a combination of values is impossible. The message names both sides.
        TypeError: A keyword is unknown.
    """

    def __init__(
        self,
        fusion_layers=(),
        temporal_pooling=("mean", "max"),
        channels=(),
        num_mel_bins=64,
        padding_value=0.0,
        classifier_hidden_sizes=None,
        classifier_dropout=0.0,
        classifier_layer_norm_eps=1e-5,
        label_smoothing=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.fusion_layers = _as_list(fusion_layers)
        self.temporal_pooling = [temporal_pooling] if isinstance(temporal_pooling, str) else _as_list(temporal_pooling)
        self.channels = _as_list(channels)
        self.num_mel_bins = num_mel_bins
        self.padding_value = padding_value
        self.classifier_hidden_sizes = [] if classifier_hidden_sizes is None else _as_list(classifier_hidden_sizes)
        self.classifier_dropout = classifier_dropout
        self.classifier_layer_norm_eps = classifier_layer_norm_eps
        self.label_smoothing = label_smoothing
        self.check()

    def time_stride(self, layer: int) -> int:
        """Returns the number of input frames per column of a layer's map."""
        raise NotImplementedError

    def layer_size(self, layer: int) -> int:
        """Returns the size of a layer's time frame: channels times rows in frequency."""
        raise NotImplementedError

    @property
    def min_frames(self) -> int:
        """Frames of the shortest input; shorter clips are padded to it."""
        raise NotImplementedError

    @property
    def fused_layers(self) -> list[int]:
        """`fusion_layers` in the network's order."""
        return [layer for layer in self.layers if layer in self.fusion_layers]

    @property
    def fused_size(self) -> int:
        """Size of `pooler_output`, the input of the classifier."""
        return sum(self.layer_size(layer) for layer in self.fused_layers)

    @classmethod
    def _of_earlier_versions(cls, stored: dict) -> dict:
        stored = super()._of_earlier_versions(stored)
        if stored.get("readout", "composed") != "composed":  # these sizes had no effect on its classifier
            stored = {**stored, "classifier_hidden_sizes": []}
        return stored

    def check(self):
        """Checks all values, see [`StrictConfig.check`]."""
        self._check_classifier()
        self._check_positive_ints("num_mel_bins")
        self._check_finite("padding_value")
        self._check_poolings("temporal_pooling", self.temporal_pooling)
        is_composed = getattr(self, "readout", "composed") == "composed"
        if self.classifier == "prototypes" and not is_composed:
            raise ValueError(f"readout={self.readout!r} has a classifier of its own, not 'prototypes': use 'composed'")
        if self.classifier_hidden_sizes and not is_composed:
            raise ValueError(
                f"readout={self.readout!r} has a classifier of one Linear, got classifier_hidden_sizes "
                f"{self.classifier_hidden_sizes}: leave them out, or use 'composed'"
            )
        layers = self.fusion_layers
        known = isinstance(layers, list) and all(_is_int(layer) and layer in self.layers for layer in layers)
        if not known or not layers or len(set(layers)) < len(layers):
            raise ValueError(
                f"fusion_layers must be a list of one or more of {', '.join(map(str, self.layers))}, each at most "
                f"once, got {layers!r}"
            )
        self._check_attention(self.temporal_pooling, self.fused_size, is_composed)

    def _check_sizes(self, name: str, count: int):
        """Checks a list of `count` positive integers."""
        sizes = getattr(self, name)
        if not isinstance(sizes, list) or len(sizes) != count:
            raise ValueError(f"{name} must be a list of {count} integers, got {sizes!r}")
        for size in sizes:
            _check_value(name, size, "a positive integer", _is_positive_int)

    def _check_multiple(self, name: str, factor: int):
        if getattr(self, name) % factor:
            raise ValueError(
                f"{name} must be a multiple of {factor}, which the network divides it by, got {getattr(self, name)}"
            )
