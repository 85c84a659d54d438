# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""Configuration of ASiT: the Dual SSAST encoder with heads, corruption and schedules for self-distillation."""

from .configuration_dual_ssast import DualSSASTConfig

CORRUPTIONS = ("zeros", "noise", "time", "freq")

ASIT_AUTO_MAP = {
    "AutoConfig": "configuration_asit.ASiTConfig",
    "AutoFeatureExtractor": "feature_extraction_dual_ssast.DualSSASTFeatureExtractor",
    "AutoModel": "modeling_asit.ASiTModel",
    "AutoModelForAudioClassification": "modeling_asit.ASiTForAudioClassification",
    "AutoModelForPreTraining": "modeling_asit.ASiTForPreTraining",
}


class ASiTConfig(DualSSASTConfig):
    r"""
    Configuration of [`ASiTForPreTraining`] (Atito et al., 2022). The encoder's settings are [`DualSSASTConfig`]'s, with
    other defaults: one prefix token, 592 frames (crops of 6 s) and a stochastic depth of 0.1.

    Args:
        class_dim, data_dim (`int`, default to 8192 and 1024):
            Outputs of the class head (one per clip) and of the data head (one per patch).
        head_hidden_size, head_bottleneck_size (`int`, default to 2048 and 256): of the MLP that both share.
        reconstruction_hidden_size, reconstruction_bottleneck_size (`int`, default to 768 and 128)
        student_temperature (`float`, defaults to 0.1)
        warmup_teacher_temperature, teacher_temperature (`float`, default to 0.04 and 0.07):
            The teacher's temperature goes from the first to the second over `warmup_teacher_temperature_epochs` (`int`,
            defaults to 30).
        center_momentum (`float`, defaults to 0.9): of the running means that centre the teacher's outputs.
        teacher_momentum (`float`, defaults to 0.996):
            Of the moving average that the teacher is; it grows to 1 over the training, as a cosine.
        reconstruction_weight (`float`, defaults to 2.0): of the reconstruction in the loss.
        corruption (`str`, defaults to `"zeros"`): what blocks are filled with: `zeros`, `noise`, `time` or `freq`.
        corruption_fraction (`float`, defaults to 0.7):
            Most of a crop that is corrupted; the share is drawn between 0.5 and this.
        replacement_fraction (`float`, defaults to 0.3):
            For half of the crops, that much of the clean crop is replaced by another clip's instead. 0: never.
        corruption_align (`int`, defaults to 1): grid that blocks snap to, in frames and mel bins.
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

    def check(self):
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
        Of an epoch, counted from 0: linear over the warm-up, whose first and last epoch have the two temperatures. (The
        original refuses trainings that are shorter than the warm-up; here they end on the way.)
        """
        warmup = self.warmup_teacher_temperature_epochs
        if epoch >= warmup:
            return self.teacher_temperature
        share = epoch / max(warmup - 1, 1)
        return self.warmup_teacher_temperature + share * (self.teacher_temperature - self.warmup_teacher_temperature)


ASiTConfig.register_for_auto_class()
