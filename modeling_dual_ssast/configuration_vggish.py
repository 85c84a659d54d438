# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Configuration of VGGish and its composed features."""

import math

from .configuration_composed import ComposedConfig
from .configuration_dual_ssast import StrictConfig  # noqa: F401  Transformers 4.48 fetches only what a file names itself

VGGISH_AUTO_MAP = {
    "AutoConfig": "configuration_vggish.VGGishConfig",
    "AutoFeatureExtractor": "feature_extraction_vggish.VGGishFeatureExtractor",
    "AutoModel": "modeling_vggish.VGGishModel",
    "AutoModelForAudioClassification": "modeling_vggish.VGGishForAudioClassification",
}

# The ReLUs, by their place in the original's list of modules: six after convolutions, three after Linear layers.
VGGISH_CONV_LAYERS = (1, 4, 7, 9, 12, 14)
VGGISH_FC_LAYERS = (17, 19, 21)
# Of the convolutions: which of the four `channels` each has, which is also how often its input was halved.
VGGISH_STAGES = dict(zip(VGGISH_CONV_LAYERS, (0, 1, 2, 2, 3, 3)))
VGGISH_SILENCE = math.log(0.01)  # log-mel of silence
VGGISH_TIME_STRIDE = 16  # input frames per time frame of the representation, as after the last of the four halvings


class VGGishConfig(ComposedConfig):
    r"""
    Configuration of [`VGGishModel`] (Hershey et al., ICASSP 2017) with composed features (Niizumi et al., EUSIPCO
    2022). A clip is cut into examples of 0.96 s side by side, each example gives 6 time frames, and the frames of all
    of them are pooled.

    Args:
        fusion_layers (`list[int]`, defaults to `[9, 14]`):
            Which ReLUs make a time frame, as the original numbers its modules: 1, 4, 7, 9, 12 and 14 follow
            convolutions, 17, 19 and 21 Linear layers, whose outputs every frame of an example repeats. `[21]` is
            VGGish's own embedding of 128 numbers.
        temporal_pooling (`list[str]`, defaults to `["mean", "max"]`): over the time frames of a clip; summed.
        channels (`list[int]`, defaults to `[64, 128, 256, 512]`): of the four stages of convolutions.
        fc_size (`int`, defaults to 4096), embedding_size (`int`, defaults to 128): of the Linear layers.
        num_mel_bins (`int`, defaults to 64), example_length (`int`, defaults to 96): mel bins and frames of an example;
            multiples of 16.
        drop_partial_example (`bool`, defaults to `True`):
            The original leaves out what follows the last whole example. `False` fills it up with silence instead. A
            clip shorter than one example is filled up in either case, where the original fails.
        padding_value (`float`, defaults to log(0.01)): silence.
        hidden_act, classifier_hidden_sizes, classifier_dropout, classifier_layer_norm_eps, label_smoothing: of the
            classifier, as in [`DualSSASTConfig`].

    Raises:
        ValueError: a value or a combination of values is impossible; the message names both sides.
        TypeError: an unknown keyword.
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
        return (*VGGISH_CONV_LAYERS, *VGGISH_FC_LAYERS)

    def time_stride(self, layer: int) -> int:
        return 2 ** VGGISH_STAGES[layer] if layer in VGGISH_STAGES else VGGISH_TIME_STRIDE

    def layer_size(self, layer: int) -> int:
        if layer in VGGISH_FC_LAYERS:
            return self.embedding_size if layer == VGGISH_FC_LAYERS[-1] else self.fc_size
        return self.channels[VGGISH_STAGES[layer]] * (self.num_mel_bins // self.time_stride(layer))

    @property
    def min_frames(self) -> int:
        return self.example_length

    @property
    def frames_per_example(self) -> int:
        """Time frames of the representation in one example."""
        return self.example_length // VGGISH_TIME_STRIDE

    def num_examples(self, num_frames):
        """Examples in a clip of `num_frames` frames (an `int` or an integer tensor), at least one."""
        if not self.drop_partial_example:
            num_frames = num_frames + self.example_length - 1
        whole = num_frames // self.example_length
        return whole + (whole == 0)  # for numbers and tensors alike

    def check(self):
        self._check_sizes("channels", 4)
        self._check_positive_ints("fc_size", "embedding_size", "example_length", "num_mel_bins")
        for name in ("example_length", "num_mel_bins"):
            self._check_multiple(name, VGGISH_TIME_STRIDE)
        self._check_flags("drop_partial_example")
        super().check()


VGGishConfig.register_for_auto_class()
