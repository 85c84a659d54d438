# Copyright 2026 The Dual SSAST authors. Licensed under the Apache License, Version 2.0.
"""
ASiT (Atito et al., IEEE/ACM TASLP 2024): group masked model learning with local and global self-distillation.

A teacher reads two clean crops of a clip, a student reads the same crops corrupted. The student imitates the teacher's
class outputs of the other crop and its patch outputs of the same crop, and reconstructs the corrupted area. The teacher
is the moving average of the student, and its encoder `dual_ssast` is the result.
"""

import copy
import itertools
import math
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import nn
from transformers.utils import ModelOutput

from .attention_dual_ssast import with_blocks  # noqa: F401  Transformers 4.48 copies only direct imports, so
from .classifier_dual_ssast import init
from .configuration_asit import ASiTConfig
from .configuration_dual_ssast import DualSSASTConfig  # noqa: F401  this file names what modeling_dual_ssast imports
from .corruption_asit import corrupt, corruption_rng, replace_from_batch
from .embedding_dual_ssast import EmbeddingMixin  # noqa: F401
from .fusion_dual_ssast import align_frames, check_spectrograms, frame_mask, to_feature_map
from .masking_dual_ssast import sample_masked_patches  # noqa: F401
from .modeling_dual_ssast import (
    DualSSASTForAudioClassification,
    DualSSASTForAudioFrameClassification,
    DualSSASTModel,
    DualSSASTPreTrainedModel,
    SideBySideMixin,
    clipwise_mean,
)
from .packing_dual_ssast import Packing  # noqa: F401


class WeightNormLinear(nn.Module):
    """
    Applies a Linear without bias whose rows have the length `scale`, which ASiT fixes at 1.

    The parameters do not have the original's names weight_g and weight_v, because Transformers renames those when it
    loads a file.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(out_features, 1))
        self.direction = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Transforms vectors: (..., in_features) -> (..., out_features)."""
        weight = self.direction * (self.scale / self.direction.norm(dim=1, keepdim=True))
        return nn.functional.linear(hidden, weight)


class ASiTReconstruction(nn.Module):
    """Reconstructs a spectrogram from the states of its patches."""

    def __init__(self, config: ASiTConfig):
        super().__init__()
        hidden, bottleneck = config.reconstruction_hidden_size, config.reconstruction_bottleneck_size
        sizes = (config.hidden_size, hidden, hidden, bottleneck)
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.GELU())]
        self.mlp = nn.Sequential(*layers)
        self.unpatch = nn.ConvTranspose2d(bottleneck, 1, config.patch_shape, stride=config.patch_shape)
        self.config = config

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Reconstructs the spectrogram as far as patches reach: (batch, patches, hidden) -> (batch, frames, mel)."""
        grid = to_feature_map(self.mlp(patches), self.config.grid_shape[0])  # (batch, bottleneck, rows, columns)
        return self.unpatch(grid).squeeze(1).transpose(1, 2)  # (batch, frames, mel)


class ASiTHeads(nn.Module):
    """Computes ASiT's outputs from an encoder's states; student and teacher have one each."""

    def __init__(self, config: ASiTConfig):
        super().__init__()
        hidden, bottleneck = config.head_hidden_size, config.head_bottleneck_size
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.class_layer = WeightNormLinear(bottleneck, config.class_dim)
        self.data_layer = WeightNormLinear(bottleneck, config.data_dim)
        self.reconstruction = ASiTReconstruction(config)
        self.num_prefix_tokens = config.num_prefix_tokens

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes class outputs (batch, class_dim) and data outputs (batch, patches, data_dim) from states."""
        projected = nn.functional.normalize(self.mlp(states), dim=-1)
        return self.class_layer(projected[:, 0]), self.data_layer(projected[:, self.num_prefix_tokens :])


@dataclass
class ASiTForPreTrainingOutput(ModelOutput):
    """
    Holds the losses of ASiT's pretraining.

    Attributes:
        loss: Scalar, class + data + `config.reconstruction_weight` * reconstruction.
        class_loss: Scalar, global self-distillation between the two crops.
        data_loss: Scalar, local self-distillation per patch.
        reconstruction_loss: Scalar, mean absolute error over the corrupted area.
        reconstruction: (batch, 2, frames, mel), the student's reconstruction.
        hidden_states: If asked for, the student's, (2 * batch, tokens, hidden); the crops of a clip stand side by side.
        attentions: If asked for, the student's, in the same order.
    """

    loss: torch.Tensor = None
    class_loss: torch.Tensor = None
    data_loss: torch.Tensor = None
    reconstruction_loss: torch.Tensor = None
    reconstruction: torch.Tensor = None
    hidden_states: Optional[tuple[torch.Tensor, ...]] = None
    attentions: Optional[tuple[torch.Tensor, ...]] = None


class ASiTModel(DualSSASTModel):
    """Loads the teacher's encoder of an ASiT folder, with the fused representation of [`DualSSASTModel`]."""

    config_class = ASiTConfig


class ASiTForAudioClassification(DualSSASTForAudioClassification):
    """Classifies clips by the teacher's encoder of an ASiT folder, like [`DualSSASTForAudioClassification`]."""

    config_class = ASiTConfig


class ASiTForAudioFrameClassification(DualSSASTForAudioFrameClassification):
    """Classifies time frames by the teacher's encoder, like [`DualSSASTForAudioFrameClassification`]."""

    config_class = ASiTConfig


class ASiTForPreTraining(SideBySideMixin, DualSSASTPreTrainedModel):
    """
    Pretrains by ASiT's group masked model learning (Atito et al., IEEE/ACM TASLP 2024).

    Holds the student, the teacher (`dual_ssast` and `teacher_heads`), and the centres of the teacher's outputs. In
    training mode each forward pass moves the centres, averaged over all processes. The training loop calls `set_epoch`
    in every epoch and `update_teacher` after every step of the optimiser.
    """

    config_class = ASiTConfig

    def __init__(self, config: ASiTConfig):
        super().__init__(config)
        self._check_strides()
        self.dual_ssast = DualSSASTModel(config, add_fusion=False)
        self.teacher_heads = ASiTHeads(config)
        # The student has its own configuration: resizing one encoder must not change the other's grid.
        self.student = DualSSASTModel(copy.deepcopy(config), add_fusion=False)
        self.student_heads = ASiTHeads(config)
        self.register_buffer("class_center", torch.zeros(1, config.class_dim))
        self.register_buffer("data_center", torch.zeros(1, config.data_dim))
        self.register_buffer("teacher_temperature", torch.tensor(config.teacher_temperature_at(0)))
        self.post_init()
        self.restart_teacher()
        self._freeze_unreached()
        self.train(self.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, WeightNormLinear):
            init.ones_(module.scale)
            bound = module.direction.shape[1] ** -0.5
            init.uniform_(module.direction, -bound, bound)
        elif isinstance(module, nn.ConvTranspose2d):
            bound = math.prod(module.weight.shape[1:]) ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif module is self:
            init.zeros_(self.class_center)
            init.zeros_(self.data_center)
            init.constant_(self.teacher_temperature, self.config.teacher_temperature_at(0))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """
        Loads a model like [`DualSSASTPreTrainedModel`]. If the folder holds only an encoder, student and teacher both
        start with it.
        """
        model, report = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        missing = [str(key) for key in report["missing_keys"]]
        if any(key.startswith("student.") for key in missing) and not any(k.startswith("dual_ssast.") for k in missing):
            model.student.load_state_dict(model.dual_ssast.state_dict())
            model.teacher_heads.load_state_dict(model.student_heads.state_dict())
        return (model, report) if output_loading_info else model

    def _freeze_unreached(self):
        """Freezes the teacher, and the row lengths of the student's last layers."""
        self.dual_ssast.requires_grad_(False)
        self.teacher_heads.requires_grad_(False)
        for layer in (self.student_heads.class_layer, self.student_heads.data_layer):
            layer.scale.requires_grad_(False)

    def train(self, mode: bool = True):
        """Sets the mode of the student. The teacher stays in evaluation mode, without stochastic depth."""
        super().train(mode)
        self.dual_ssast.eval()
        self.teacher_heads.eval()
        return self

    def _fit_head(self, old_fused_size: int):
        """Resizes the student too, whose configuration is its own."""
        config = self.config
        self.student.resize_position_embeddings(config.max_length, config.frequency_stride, config.time_stride)

    # ---- updates of the training loop ----

    def restart_teacher(self):
        """Copies the student's weights to the teacher."""
        self.dual_ssast.load_state_dict(self.student.state_dict())
        self.teacher_heads.load_state_dict(self.student_heads.state_dict())

    @torch.no_grad()
    def update_teacher(self, momentum: float):
        """Updates the teacher: momentum * teacher + (1 - momentum) * student."""
        for teacher, student in ((self.dual_ssast, self.student), (self.teacher_heads, self.student_heads)):
            for average, parameter in zip(teacher.parameters(), student.parameters()):
                average.lerp_(parameter, 1 - momentum)

    def set_epoch(self, epoch: int):
        """Sets the teacher's temperature for an epoch, counted from 0."""
        self.teacher_temperature.fill_(self.config.teacher_temperature_at(epoch))

    # ---- the step ----

    def forward(
        self,
        input_values: torch.Tensor,
        corrupted_values: Optional[torch.Tensor] = None,
        corruption_mask: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[tuple, ASiTForPreTrainingOutput]:
        """
        Computes the pretraining losses of a batch.

        Args:
            input_values: (batch, 2, frames, mel), two clean crops of each clip, normalised.
            corrupted_values: (batch, 2, frames, mel), the same crops corrupted. By default `corrupt_crops` makes them.
            corruption_mask: Boolean (batch, 2, frames, mel), true where they were corrupted.
            attention_mask: (batch, frames), 1 for audio and 0 for padding on any side, the same for both crops.
            output_attentions: Whether to return the student's attention weights.
            output_hidden_states: Whether to return the student's hidden states.
            return_dict: Whether to return a `ModelOutput` instead of a tuple. The default is `config.return_dict`.
            **kwargs: See `check_keywords`.

        Returns:
            An [`ASiTForPreTrainingOutput`].

        Raises:
            ValueError: Shapes that do not fit, more frames than `config.max_length`, or only one of `corrupted_values`
                and `corruption_mask`.
            TypeError: A keyword is unknown.
        """
        self.check_keywords(kwargs)
        if input_values.ndim != 4 or input_values.shape[1] != 2:
            raise ValueError(
                f"expected input_values (batch, 2 crops, frames, mel), got {tuple(input_values.shape)}: stack two crops"
            )
        check_spectrograms(input_values[:, 0], attention_mask, self.config.num_mel_bins)
        if (corrupted_values is None) != (corruption_mask is None):
            raise ValueError("corrupted_values and corruption_mask belong together: give both or neither")
        for name, crops in (("corrupted_values", corrupted_values), ("corruption_mask", corruption_mask)):
            if crops is not None and crops.shape != input_values.shape:
                raise ValueError(
                    f"{name} has shape {tuple(crops.shape)}, expected that of input_values, {tuple(input_values.shape)}"
                )
        if attention_mask is not None:  # the corruption, too, finds the audio at the beginning
            fill = self.config.padding_value
            input_values = align_crops(input_values, attention_mask, fill)
            if corrupted_values is not None:
                corrupted_values = align_crops(corrupted_values, attention_mask, fill)
                corruption_mask = align_crops(corruption_mask, attention_mask, 0)
            attention_mask = frame_mask(attention_mask.bool().sum(dim=1), attention_mask.shape[1])
        if corrupted_values is None:
            corrupted_values, corruption_mask = self.corrupt_crops(input_values, attention_mask)
        # The crops of a clip stand side by side: (2 * batch, frames, mel) each.
        clean, corrupted, where_corrupted = (
            crops.flatten(0, 1) for crops in (input_values, corrupted_values, corruption_mask)
        )
        mask = None if attention_mask is None else attention_mask.repeat_interleave(2, dim=0)  # (2 * batch, frames)
        patch_mask = self._patches_of_audio(clean, mask)

        with torch.no_grad():
            encoded = self.dual_ssast(
                clean, mask, output_hidden_states=False, output_attentions=False, return_dict=True
            )
            teacher_class, teacher_data = self.teacher_heads(encoded.last_hidden_state)
        config = self.config  # the student has a copy, which does not see a change
        encoded = self.student(
            corrupted,
            mask,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            return_dict=True,
        )
        states = encoded.last_hidden_state  # (2 * batch, prefix + patches, hidden)
        student_class, student_data = self.student_heads(states)
        reconstruction = self.student_heads.reconstruction(states[:, self.config.num_prefix_tokens :])

        class_loss = self._class_loss(student_class.float(), teacher_class.float())
        data_loss = clipwise_mean(self._imitation(student_data, teacher_data, self.data_center), patch_mask)
        reconstruction_loss = self._reconstruction_loss(reconstruction, clean, where_corrupted, mask)
        if self.training:
            everything = torch.ones(teacher_class.shape[:1], dtype=torch.bool, device=clean.device)
            self._move_center(self.class_center, teacher_class, everything)
            self._move_center(self.data_center, teacher_data, patch_mask)
        output = ASiTForPreTrainingOutput(
            loss=class_loss + data_loss + self.config.reconstruction_weight * reconstruction_loss,
            class_loss=class_loss,
            data_loss=data_loss,
            reconstruction_loss=reconstruction_loss,
            reconstruction=reconstruction.unflatten(0, (-1, 2)),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _patches_of_audio(self, clean: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Marks patches that hold audio: (2 * batch, frames, mel), (2 * batch, frames) -> (2 * batch, patches)."""
        config, (count, num_frames) = self.config, clean.shape[:2]
        lengths = torch.full((count,), num_frames, device=clean.device) if mask is None else mask.sum(dim=1)
        columns = frame_mask(config.num_columns(lengths), config.num_batch_columns(num_frames))
        return columns.repeat(1, config.grid_shape[0])

    def _imitation(self, student: torch.Tensor, teacher: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        """Computes the cross-entropy of the student with the centred, sharpened teacher: (..., outputs) -> (...)."""
        target = ((teacher.float() - center) / self.teacher_temperature).softmax(dim=-1)
        return -(target * (student.float() / self.config.student_temperature).log_softmax(dim=-1)).sum(dim=-1)

    def _class_loss(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Compares each crop's student with the teacher of the other crop: (2 * batch, class_dim) each -> scalar."""
        return self._imitation(student.unflatten(0, (-1, 2)).flip(1).flatten(0, 1), teacher, self.class_center).mean()

    def _reconstruction_loss(
        self,
        reconstruction: torch.Tensor,
        clean: torch.Tensor,
        corruption_mask: torch.Tensor,
        attention_mask: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """Averages the absolute error over the corrupted area of all processes: (2 * batch, frames, mel) -> scalar."""
        frames = min(reconstruction.shape[1], clean.shape[1])  # the last patch may reach beyond the clip
        mels = reconstruction.shape[2]  # the highest bins are left over if no whole patch fits
        where = corruption_mask[:, :frames, :mels].bool()
        if attention_mask is not None:
            where = where & attention_mask[:, :frames].unsqueeze(-1)
        error = (reconstruction[:, :frames].float() - clean[:, :frames, :mels].float()).abs()
        count = where.sum().float()
        return torch.where(where, error, 0.0).sum() / self._mean_over_processes(count).clamp(min=1)

    @torch.no_grad()
    def _move_center(self, center: torch.Tensor, outputs: torch.Tensor, valid: torch.Tensor):
        """Moves a centre to the mean of valid outputs, (clips, outputs) or (clips, patches, outputs)."""
        total = (outputs.float() * valid.unsqueeze(-1)).flatten(0, -2).sum(dim=0, keepdim=True)  # (1, outputs)
        mean = self._mean_over_processes(total) / self._mean_over_processes(valid.sum().float())
        center.copy_(torch.lerp(center.float(), mean, 1 - self.config.center_momentum))  # the weights may be bfloat16

    def _mean_over_processes(self, value: torch.Tensor) -> torch.Tensor:
        """Averages a value over all processes in training; an evaluation may run in one process only."""
        if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return value
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
        return value / torch.distributed.get_world_size()

    def corrupt_crops(
        self, input_values: torch.Tensor, attention_mask: Optional[torch.Tensor] = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Corrupts every crop by the configuration, with a seed from torch's generator. Training corrupts in the data
        loader instead.

        Args:
            input_values: (batch, 2, frames, mel).
            attention_mask: (batch, frames), 1 for audio and 0 for padding.

        Returns:
            The corrupted crops and a boolean mask, both (batch, 2, frames, mel).
        """
        rng = corruption_rng(int(torch.randint(2**31, (), device="cpu")))
        frames = None if attention_mask is None else attention_mask.sum(dim=1).tolist()
        pairs = [corrupt_batch(crop, self.config, rng, frames) for crop in input_values.cpu().unbind(1)]
        corrupted, masks = (torch.stack(parts, dim=1).to(input_values.device) for parts in zip(*pairs))
        return corrupted, masks


def align_crops(crops: torch.Tensor, mask: torch.Tensor, padding_value: float) -> torch.Tensor:
    """Aligns crops (batch, 2, frames, mel) with one mask (batch, frames) for both like `align_frames`."""
    aligned = align_frames(crops.flatten(0, 1), mask.repeat_interleave(2, dim=0), padding_value)
    return aligned.unflatten(0, (-1, 2))


def corrupt_batch(
    clean: torch.Tensor, config: ASiTConfig, rng, num_valid_frames: Optional[list[int]] = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Corrupts one crop of every clip, (batch, frames, mel), blocks first, then replacement from other clips: -> the
    corrupted crops and a boolean mask of their shape.
    """
    frames = [None] * len(clean) if num_valid_frames is None else num_valid_frames
    pairs = [
        corrupt(crop, config.corruption_fraction, config.corruption, config.corruption_align, rng, valid)
        for crop, valid in zip(clean, frames)
    ]
    corrupted, masks = (torch.stack(parts) for parts in zip(*pairs))
    if config.replacement_fraction:
        corrupted, masks = replace_from_batch(
            clean,
            corrupted,
            masks,
            config.replacement_fraction,
            config.corruption_align,
            rng,
            num_valid_frames=num_valid_frames,
        )
    return corrupted, masks


ASiTModel.register_for_auto_class("AutoModel")
ASiTForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ASiTForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
ASiTForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
