# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Configuration of ASiT (Atito et al., IEEE/ACM TASLP 2024): encoder, heads, corruption and schedules."""

from .configuration_dual_ssast import DualSSASTConfig

CORRUPTIONS = ("zeros", "noise", "time", "freq")

ASIT_AUTO_MAP = {
    "AutoConfig": "configuration_asit.ASiTConfig",
    "AutoFeatureExtractor": "feature_extraction_dual_ssast.DualSSASTFeatureExtractor",
    "AutoModel": "modeling_asit.ASiTModel",
    "AutoModelForAudioClassification": "modeling_asit.ASiTForAudioClassification",
    "AutoModelForAudioFrameClassification": "modeling_asit.ASiTForAudioFrameClassification",
    "AutoModelForPreTraining": "modeling_asit.ASiTForPreTraining",
}


class ASiTConfig(DualSSASTConfig):
    r"""
    Stores the configuration of [`ASiTForPreTraining`] (Atito et al., IEEE/ACM TASLP 2024).

    The encoder's settings are those of [`DualSSASTConfig`], with other defaults: one prefix token, 592 frames (crops of
    6 s) and a stochastic depth of 0.1.

    Args:
        class_dim (`int`, *optional*, defaults to 8192):
            Outputs of the class head, one vector per clip.
        data_dim (`int`, *optional*, defaults to 1024):
            Outputs of the data head, one vector per patch.
        head_hidden_size (`int`, *optional*, defaults to 2048):
            Hidden size of the MLP that both heads share.
        head_bottleneck_size (`int`, *optional*, defaults to 256):
            Output size of that MLP.
        reconstruction_hidden_size (`int`, *optional*, defaults to 768):
            Hidden size of the reconstruction head's MLP.
        reconstruction_bottleneck_size (`int`, *optional*, defaults to 128):
            Output size of that MLP, before the transposed convolution.
        student_temperature (`float`, *optional*, defaults to 0.1):
            Softmax temperature of the student.
        warmup_teacher_temperature (`float`, *optional*, defaults to 0.04):
            Softmax temperature of the teacher in the first epoch.
        teacher_temperature (`float`, *optional*, defaults to 0.07):
            Softmax temperature of the teacher after the warm-up.
        warmup_teacher_temperature_epochs (`int`, *optional*, defaults to 30):
            Epochs of the linear warm-up between the two.
        center_momentum (`float`, *optional*, defaults to 0.9):
            Momentum of the running means that centre the teacher's outputs.
        teacher_momentum (`float`, *optional*, defaults to 0.996):
            EMA momentum of the teacher; cosine schedule from this value to 1.
        reconstruction_weight (`float`, *optional*, defaults to 2.0):
            Weight of the reconstruction loss in the sum.
        corruption (`str`, *optional*, defaults to `"zeros"`):
            Content of corrupted blocks: `"zeros"`, `"noise"`, `"time"` (whole frames of zeros) or `"freq"` (whole mel
            bins of zeros).
        corruption_fraction (`float`, *optional*, defaults to 0.7):
            Upper bound of the corrupted fraction, drawn uniformly from [0.5, this].
        replacement_fraction (`float`, *optional*, defaults to 0.3):
            Fraction of the clean crop that blocks of another clip replace in about half of the crops, instead of the
            corruption. 0 turns the replacement off.
        corruption_align (`int`, *optional*, defaults to 1):
            Grid that the corrupted blocks snap to, in frames and mel bins.
        **kwargs:
            Arguments of [`DualSSASTConfig`]. ASiT does not use those of masked patches: `mask_ratio`, `clustered_mask`,
            `shared_mask`, `pretraining_objective`, `num_decoder_layers` and `clip_contrast_weight`.

    Raises:
        ValueError: A value or a combination of values is impossible. The message names both sides.
        TypeError: A keyword is unknown.
    """

    model_type = "asit"
    auto_classes = ASIT_AUTO_MAP

    def __init__(
        self,
        class_dim=8192,
        data_dim=1024,
        head_hidden_size=2048,
        head_bottleneck_size=256,
        reconstruction_hidden_size=768,
        reconstruction_bottleneck_size=128,
        student_temperature=0.1,
        warmup_teacher_temperature=0.04,
        teacher_temperature=0.07,
        warmup_teacher_temperature_epochs=30,
        center_momentum=0.9,
        teacher_momentum=0.996,
        reconstruction_weight=2.0,
        corruption="zeros",
        corruption_fraction=0.7,
        replacement_fraction=0.3,
        corruption_align=1,
        **kwargs,
    ):
        self.class_dim = class_dim
        self.data_dim = data_dim
        self.head_hidden_size = head_hidden_size
        self.head_bottleneck_size = head_bottleneck_size
        self.reconstruction_hidden_size = reconstruction_hidden_size
        self.reconstruction_bottleneck_size = reconstruction_bottleneck_size
        self.student_temperature = student_temperature
        self.warmup_teacher_temperature = warmup_teacher_temperature
        self.teacher_temperature = teacher_temperature
        self.warmup_teacher_temperature_epochs = warmup_teacher_temperature_epochs
        self.center_momentum = center_momentum
        self.teacher_momentum = teacher_momentum
        self.reconstruction_weight = reconstruction_weight
        self.corruption = corruption
        self.corruption_fraction = corruption_fraction
        self.replacement_fraction = replacement_fraction
        self.corruption_align = corruption_align
        super().__init__(**{"num_prefix_tokens": 1, "max_length": 592, "drop_path_rate": 0.1, **kwargs})

    @property
    def num_pretraining_crops(self) -> int:
        """Number of crops of a clip that an example of pretraining has."""
        return 2

    def check(self):
        """Checks all values, see [`StrictConfig.check`]."""
        super().check()
        self._check_positive_ints("class_dim", "data_dim", "head_hidden_size", "head_bottleneck_size")
        self._check_positive_ints("reconstruction_hidden_size", "reconstruction_bottleneck_size", "corruption_align")
        self._check_positive_numbers("student_temperature", "warmup_teacher_temperature", "teacher_temperature")
        names = ("center_momentum", "teacher_momentum", "corruption_fraction")
        self._check_numbers(names, "a number above 0 and at most 1", lambda value: 0 < value <= 1)
        names = ("reconstruction_weight", "warmup_teacher_temperature_epochs")
        self._check_numbers(names, "a number of 0 or more", lambda value: value >= 0)
        self._check_numbers(["replacement_fraction"], "a number from 0 to 1", lambda value: 0 <= value <= 1)
        self._check_choice("corruption", CORRUPTIONS)

    def teacher_temperature_at(self, epoch: int) -> float:
        """
        Returns the teacher's temperature in an epoch, counted from 0.

        It rises linearly over the warm-up; the first and the last epoch of the warm-up have the two temperatures. A
        training may be shorter than the warm-up, which the original code rejects.
        """
        warmup = self.warmup_teacher_temperature_epochs
        if epoch >= warmup:
            return self.teacher_temperature
        share = epoch / max(warmup - 1, 1)
        return self.warmup_teacher_temperature + share * (self.teacher_temperature - self.warmup_teacher_temperature)


ASiTConfig.register_for_auto_class()
