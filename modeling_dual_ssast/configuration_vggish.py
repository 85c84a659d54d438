# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Configuration of VGGish (Hershey et al., ICASSP 2017) with composed features (Niizumi et al., EUSIPCO 2022)."""

import math

from .configuration_composed import ComposedConfig
from .configuration_dual_ssast import StrictConfig  # noqa: F401  Transformers 4.48 copies only direct imports

VGGISH_AUTO_MAP = {
    "AutoConfig": "configuration_vggish.VGGishConfig",
    "AutoFeatureExtractor": "feature_extraction_vggish.VGGishFeatureExtractor",
    "AutoModel": "modeling_vggish.VGGishModel",
    "AutoModelForAudioClassification": "modeling_vggish.VGGishForAudioClassification",
    "AutoModelForAudioFrameClassification": "modeling_vggish.VGGishForAudioFrameClassification",
}

# The ReLUs, by their index in the original's list of modules: six after convolutions, three after Linear layers.
VGGISH_CONV_LAYERS = (1, 4, 7, 9, 12, 14)
VGGISH_FC_LAYERS = (17, 19, 21)
# Stage of each convolution: the index of its `channels`, and how often its input was halved.
VGGISH_STAGES = dict(zip(VGGISH_CONV_LAYERS, (0, 1, 2, 2, 3, 3)))
VGGISH_SILENCE = math.log(0.01)  # log-mel of silence
VGGISH_TIME_STRIDE = 16  # input frames per time frame of the representation, as after the last of the four halvings


class VGGishConfig(ComposedConfig):
    r"""
    Stores the configuration of [`VGGishModel`]: VGGish (Hershey et al., ICASSP 2017) with composed features (Niizumi et
    al., EUSIPCO 2022). A clip is cut into examples of 0.96 s side by side. Each example gives 6 time frames, and the
    frames of all examples are pooled.

    Args:
        fusion_layers (`list[int]`, *optional*, defaults to `[9, 14]`):
            ReLUs whose outputs form a time frame, numbered like the original's modules: 1, 4, 7, 9, 12 and 14 follow
            convolutions; 17, 19 and 21 follow Linear layers, whose output is repeated in every frame of its example.
            `[21]` is VGGish's own embedding of 128 numbers.
        channels (`list[int]`, *optional*, defaults to `[64, 128, 256, 512]`):
            Channels of the four stages of convolutions.
        fc_size (`int`, *optional*, defaults to 4096):
            Size of the first two Linear layers.
        embedding_size (`int`, *optional*, defaults to 128):
            Size of the last Linear layer.
        example_length (`int`, *optional*, defaults to 96):
            Frames of an example, a multiple of 16.
        drop_partial_example (`bool`, *optional*, defaults to `True`):
            Whether frames after the last whole example are dropped, like in the original. `False` pads them with
            silence to an example. A clip shorter than one example is padded in either case; the original fails.
        padding_value (`float`, *optional*, defaults to log(0.01)):
            Value of a padded frame: silence.
        **kwargs:
            Arguments of [`ComposedConfig`]. `num_mel_bins` is a multiple of 16.

    Raises:
        ValueError: A value or a combination of values is impossible. The message names both sides.
        TypeError: A keyword is unknown.
    """

    model_type = "vggish_composed"
    auto_classes = VGGISH_AUTO_MAP

    def __init__(
        self,
        fusion_layers=(9, 14),
        channels=(64, 128, 256, 512),
        fc_size=4096,
        embedding_size=128,
        example_length=96,
        drop_partial_example=True,
        padding_value=VGGISH_SILENCE,
        **kwargs,
    ):
        self.fc_size = fc_size
        self.embedding_size = embedding_size
        self.example_length = example_length
        self.drop_partial_example = drop_partial_example
        super().__init__(fusion_layers=fusion_layers, channels=channels, padding_value=padding_value, **kwargs)

    @property
    def layers(self) -> tuple[int, ...]:
        """ReLUs that `fusion_layers` can name, from input to output."""
        return (*VGGISH_CONV_LAYERS, *VGGISH_FC_LAYERS)

    def time_stride(self, layer: int) -> int:
        """Returns the number of input frames per column of a layer's map; 16 for Linear layers."""
        return 2 ** VGGISH_STAGES[layer] if layer in VGGISH_STAGES else VGGISH_TIME_STRIDE

    def layer_size(self, layer: int) -> int:
        """Returns the size of a layer's time frame: channels times rows in frequency, or the Linear layer's size."""
        if layer in VGGISH_FC_LAYERS:
            return self.embedding_size if layer == VGGISH_FC_LAYERS[-1] else self.fc_size
        return self.channels[VGGISH_STAGES[layer]] * (self.num_mel_bins // self.time_stride(layer))

    @property
    def min_frames(self) -> int:
        """Frames of the shortest input; shorter clips are padded to it."""
        return self.example_length

    @property
    def frames_per_example(self) -> int:
        """Time frames per example."""
        return self.example_length // VGGISH_TIME_STRIDE

    def num_examples(self, num_frames):
        """
        Returns the number of examples in a clip, at least one.

        Args:
            num_frames (`int` or `torch.Tensor`): Frames of the clip; an integer tensor of any shape for several clips.

        Returns:
            `int`, or an integer tensor of the same shape.
        """
        if not self.drop_partial_example:
            num_frames = num_frames + self.example_length - 1
        whole = num_frames // self.example_length
        return whole + (whole == 0)  # for numbers and tensors alike

    def check(self):
        """Checks all values, see [`StrictConfig.check`]."""
        self._check_sizes("channels", 4)
        self._check_positive_ints("fc_size", "embedding_size", "example_length", "num_mel_bins")
        for name in ("example_length", "num_mel_bins"):
            self._check_multiple(name, VGGISH_TIME_STRIDE)
        self._check_flags("drop_partial_example")
        super().check()


VGGishConfig.register_for_auto_class()
