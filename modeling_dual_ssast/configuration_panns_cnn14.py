# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Configuration of PANNs' CNN14, its composed features and its own head."""

from .configuration_composed import ComposedConfig
from .configuration_dual_ssast import StrictConfig  # noqa: F401  Transformers 4.48 fetches only what a file names itself

PANNS_CNN14_AUTO_MAP = {
    "AutoConfig": "configuration_panns_cnn14.PannsCnn14Config",
    "AutoFeatureExtractor": "feature_extraction_panns_cnn14.PannsCnn14FeatureExtractor",
    "AutoModel": "modeling_panns_cnn14.PannsCnn14Model",
    "AutoModelForAudioClassification": "modeling_panns_cnn14.PannsCnn14ForAudioClassification",
}

CNN14_BLOCKS = (1, 2, 3, 4, 5, 6)
CNN14_TIME_STRIDE = 32  # input frames per time frame of the representation: blocks 1 to 5 halve, block 6 does not
CNN14_READOUTS = ("composed", "panns")


class PannsCnn14Config(ComposedConfig):
    r"""
    Configuration of [`PannsCnn14Model`] (Kong et al., PANNs, IEEE/ACM TASLP 2020) with composed features (Niizumi et
    al., EUSIPCO 2022).

    Args:
        readout (`str`, defaults to `"composed"`):
            What a clip's vector is. `"composed"`: frequency x channel of the blocks in `fusion_layers`, pooled over
            time; a classifier on it is LayerNorm and Linear. `"panns"`: the original's embedding (mean over frequency,
            mean + max over time, Linear, ReLU) and its classifier, one Linear; `fusion_layers` and `temporal_pooling`
            are then ignored. Converted checkpoints have `"panns"`, and load with either.
        fusion_layers (`list[int]`, defaults to `[3, 6]`): blocks, 1 to 6.
        temporal_pooling (`list[str]`, defaults to `["mean", "max"]`): over the time frames of a clip; summed.
        channels (`list[int]`, defaults to `[64, 128, 256, 512, 1024, 2048]`): of the six blocks.
        embedding_size (`int`, defaults to 2048): of the original's embedding.
        num_mel_bins (`int`, defaults to 64): a multiple of 32.
        hidden_dropout_prob (`float`, defaults to 0.2): after every block.
        classifier_dropout (`float`, defaults to 0.0):
            Before each Linear of the classifier; with `readout="panns"` before the embedding's Linear, where the
            original has 0.5.
        padding_value (`float`, defaults to -100.0): silence, in dB.
        hidden_act, classifier_hidden_sizes, classifier_layer_norm_eps, label_smoothing: of the classifier on composed
            features, as in [`DualSSASTConfig`].

    Raises:
        ValueError: a value or a combination of values is impossible; the message names both sides.
        TypeError: an unknown keyword.
    """

    model_type = "panns_cnn14"
    auto_classes = PANNS_CNN14_AUTO_MAP

    def __init__(
        self,
        readout="composed",
        fusion_layers=(3, 6),
        channels=(64, 128, 256, 512, 1024, 2048),
        embedding_size=2048,
        hidden_dropout_prob=0.2,
        padding_value=-100.0,
        **kwargs,
    ):
        self.readout = readout
        self.embedding_size = embedding_size
        self.hidden_dropout_prob = hidden_dropout_prob
        super().__init__(fusion_layers=fusion_layers, channels=channels, padding_value=padding_value, **kwargs)

    @property
    def layers(self) -> tuple[int, ...]:
        return CNN14_BLOCKS

    def time_stride(self, layer: int) -> int:
        return min(2**layer, CNN14_TIME_STRIDE)

    def layer_size(self, layer: int) -> int:
        return self.channels[layer - 1] * (
            self.num_mel_bins // self.time_stride(layer)
        )  # frequency is halved with time

    @property
    def min_frames(self) -> int:
        return CNN14_TIME_STRIDE

    @property
    def fused_size(self) -> int:
        return self.embedding_size if self.readout == "panns" else super().fused_size

    def check(self):
        self._check_choice("readout", CNN14_READOUTS)
        self._check_sizes("channels", len(CNN14_BLOCKS))
        self._check_positive_ints("embedding_size", "num_mel_bins")
        self._check_multiple("num_mel_bins", CNN14_TIME_STRIDE)
        self._check_shares("hidden_dropout_prob")
        super().check()


PannsCnn14Config.register_for_auto_class()
