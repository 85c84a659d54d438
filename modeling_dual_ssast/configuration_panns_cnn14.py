# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Configuration of CNN14 (Kong et al., PANNs, IEEE/ACM TASLP 2020) with composed features and its own head."""

from .configuration_composed import ComposedConfig
from .configuration_dual_ssast import StrictConfig  # noqa: F401  Transformers 4.48 copies only direct imports

PANNS_CNN14_AUTO_MAP = {
    "AutoConfig": "configuration_panns_cnn14.PannsCnn14Config",
    "AutoFeatureExtractor": "feature_extraction_panns_cnn14.PannsCnn14FeatureExtractor",
    "AutoModel": "modeling_panns_cnn14.PannsCnn14Model",
    "AutoModelForAudioClassification": "modeling_panns_cnn14.PannsCnn14ForAudioClassification",
    "AutoModelForAudioFrameClassification": "modeling_panns_cnn14.PannsCnn14ForAudioFrameClassification",
}

CNN14_BLOCKS = (1, 2, 3, 4, 5, 6)
CNN14_TIME_STRIDE = 32  # input frames per time frame of the representation: blocks 1 to 5 halve, block 6 does not
CNN14_READOUTS = ("composed", "panns")


class PannsCnn14Config(ComposedConfig):
    r"""
    Stores the configuration of [`PannsCnn14Model`]: CNN14 (Kong et al., PANNs, IEEE/ACM TASLP 2020) with composed
    features (Niizumi et al., EUSIPCO 2022).

    Args:
        readout (`str`, *optional*, defaults to `"composed"`):
            Representation of a clip. `"composed"`: frequency x channel of the blocks in `fusion_layers`, pooled over
            time; its classifier is LayerNorm and Linear. `"panns"`: the original's embedding (mean over frequency,
            mean + max over time, Linear, ReLU), whose classifier is one Linear; it ignores `fusion_layers` and
            `temporal_pooling`. Converted checkpoints store `"panns"` and load with either.
        fusion_layers (`list[int]`, *optional*, defaults to `[3, 6]`):
            Blocks from 1 to 6 whose maps form a time frame.
        channels (`list[int]`, *optional*, defaults to `[64, 128, 256, 512, 1024, 2048]`):
            Channels of the six blocks.
        embedding_size (`int`, *optional*, defaults to 2048):
            Size of the original's embedding.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.2):
            Dropout after every block.
        padding_value (`float`, *optional*, defaults to -100.0):
            Value of a padded frame in dB: silence.
        **kwargs:
            Arguments of [`ComposedConfig`]. `num_mel_bins` is a multiple of 32. With `readout="panns"`,
            `classifier_dropout` acts before the embedding's Linear, where the original has 0.5.

    Raises:
        ValueError: A value or a combination of values is impossible. The message names both sides.
        TypeError: A keyword is unknown.
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
        """Blocks that `fusion_layers` can name: 1 to 6."""
        return CNN14_BLOCKS

    def time_stride(self, layer: int) -> int:
        """Returns the number of input frames per column of a block's map: 2, 4, ..., 32, 32."""
        return min(2**layer, CNN14_TIME_STRIDE)

    def layer_size(self, layer: int) -> int:
        """Returns the size of a block's time frame: channels times rows in frequency."""
        rows = self.num_mel_bins // self.time_stride(layer)  # frequency is halved with time
        return self.channels[layer - 1] * rows

    @property
    def min_frames(self) -> int:
        """Frames of the shortest input; shorter clips are padded to it."""
        return CNN14_TIME_STRIDE

    @property
    def fused_size(self) -> int:
        """Size of `pooler_output`, the input of the classifier."""
        return self.embedding_size if self.readout == "panns" else super().fused_size

    def check(self):
        """Checks all values, see [`StrictConfig.check`]."""
        self._check_choice("readout", CNN14_READOUTS)
        self._check_sizes("channels", len(CNN14_BLOCKS))
        self._check_positive_ints("embedding_size", "num_mel_bins")
        self._check_multiple("num_mel_bins", CNN14_TIME_STRIDE)
        self._check_shares("hidden_dropout_prob")
        super().check()


PannsCnn14Config.register_for_auto_class()
