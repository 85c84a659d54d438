"""Runs the task `asit`: group masked model learning with self-distillation (Atito et al., 2022)."""

import math

import numpy as np
import torch
from transformers import TrainerCallback

from modeling_dual_ssast import ASiTConfig, ASiTForPreTraining
from modeling_dual_ssast.corruption_asit import LARGEST_SIDE, corrupt, corruption_rng, replace_from_batch

from ..base.arguments import EncoderArguments
from ..data.arguments import UnlabelledDataArguments
from ..data.augmentation import random_crop
from ..data.clip_stream import clips_per_step
from ..errors import InputError
from . import train
from .arguments import AsitTrainingArguments
from .throughput import encoder_flops, num_patches
from .trainer import Examples, PretrainingTrainer

SHIFT_RATE = 0.5  # share of the clips that are rolled in time before they are cropped, as in the original
REFERENCE_BATCH = 256  # clips per step for which the recipe's learning rate holds


def run(model: EncoderArguments, data: UnlabelledDataArguments, arguments: AsitTrainingArguments):
    """Pretrains by ASiT; see `training.pretraining.train.run`."""
    train.run(AsitTrainer, model, data, arguments)


class AsitExamples(Examples):
    """
    Makes examples of two random crops and their corruption.

    The published code calls its crops random-resized, but does not resize them; neither does this class.
    """

    def __init__(self, feature_extractor, config: ASiTConfig):
        super().__init__(feature_extractor, config)
        largest = int(min(feature_extractor.max_length, config.num_mel_bins) * LARGEST_SIDE)
        if config.corruption_align >= largest:
            got = config.corruption_align
            raise InputError(f"corruption_align: must be below {largest}, 30 % of a crop, got {got}")

    def make(self, waveform: np.ndarray, rng: np.random.Generator) -> dict:
        """
        Makes an example: `input_values`, `corrupted_values` and `corruption_mask`, each (2, frames, mel), and `key`,
        the seed of the random numbers of the batch. waveform: (samples,)
        """
        extractor, config = self.feature_extractor, self.config
        # The sides of corrupted blocks are at most 30 % of a crop's, so a crop needs a minimum length.
        shortest = extractor.num_samples(int((config.corruption_align + 2) / LARGEST_SIDE))
        waveform = np.pad(waveform, (0, max(shortest - len(waveform), 0)))
        if rng.random() < SHIFT_RATE:
            waveform = np.roll(waveform, rng.integers(len(waveform)))
        crops = [torch.from_numpy(random_crop(waveform, extractor.max_samples, rng)) for _ in range(2)]
        features = extractor(crops, extractor.sampling_rate, padding=False)["input_values"]
        blocks = corruption_rng(int(rng.integers(2**62)))
        pairs = [
            corrupt(crop, config.corruption_fraction, config.corruption, config.corruption_align, blocks)
            for crop in features
        ]
        corrupted, masks = (torch.stack(parts) for parts in zip(*pairs))
        return {
            "input_values": torch.stack(list(features)),
            "corrupted_values": corrupted,
            "corruption_mask": masks,
            "key": int(rng.integers(2**62)),
        }

    def collate(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Joins examples, and replaces blocks by blocks of other clips.

        Returns:
            `input_values`, `corrupted_values` and `corruption_mask`, each (batch, 2, frames, mel), and, if anything is
            padded, `attention_mask` (batch, frames)
        """
        rng = corruption_rng(*(example["key"] for example in examples))
        lengths = [example["input_values"].shape[1] for example in examples]
        crops = [self._crop(examples, crop, lengths, rng) for crop in range(2)]
        batch = {
            name: torch.stack([crop[name] for crop in crops], dim=1) for name in crops[0] if name != "attention_mask"
        }
        if "attention_mask" in crops[0]:
            batch["attention_mask"] = crops[0]["attention_mask"]
        return batch

    def _crop(self, examples: list[dict], crop: int, lengths: list[int], rng) -> dict[str, torch.Tensor]:
        """Joins the first or the second crops: tensors (batch, frames, mel)."""
        clean = self.pad([example["input_values"][crop] for example in examples])
        corrupted = self.pad([example["corrupted_values"][crop] for example in examples])
        corrupted, frames = corrupted["input_values"], max(lengths)
        masks = [example["corruption_mask"][crop] for example in examples]
        masks = torch.stack([torch.nn.functional.pad(mask, (0, 0, 0, frames - len(mask))) for mask in masks])
        if self.config.replacement_fraction:
            corrupted, masks = replace_from_batch(
                clean["input_values"],
                corrupted,
                masks,
                self.config.replacement_fraction,
                self.config.corruption_align,
                rng,
                num_valid_frames=lengths,
            )
        return {**clean, "corrupted_values": corrupted, "corruption_mask": masks}


def cosine_schedule(
    step: int, num_steps: int, first: float, last: float, num_warmup_steps: int = 0, start: float = 0.0
) -> float:
    """
    Returns the value at `step`: a linear rise from `start` to `first` over the warm-up, then a cosine to `last`.

    `first` is reached at the warm-up's last step and `last` one step after the end, as in the published code.
    """
    if step < num_warmup_steps:
        return start + (first - start) * step / max(num_warmup_steps - 1, 1)
    progress = (step - num_warmup_steps) / max(num_steps - num_warmup_steps, 1)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(progress, 1.0)))


class Schedules(TrainerCallback):
    """Sets weight decay, teacher temperature, gradient clipping and teacher at every step, as in the original."""

    def __init__(self, trainer: "AsitTrainer"):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, model, **kwargs):
        group = self.trainer.optimizer.param_groups[0]  # the decayed parameters
        group["weight_decay"] = cosine_schedule(
            state.global_step, state.max_steps, args.weight_decay, args.final_weight_decay
        )
        model.set_epoch(state.global_step // self.trainer.epoch_steps)

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step // self.trainer.epoch_steps < args.freeze_last_layer_epochs:
            for layer in (model.student_heads.class_layer, model.student_heads.data_layer):
                layer.direction.grad = None
        if args.max_parameter_grad_norm:
            clip_each(model.parameters(), args.max_parameter_grad_norm)

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if not self.trainer.accelerator.optimizer_step_was_skipped:
            momentum = model.config.teacher_momentum
            model.update_teacher(cosine_schedule(state.global_step, state.max_steps, momentum, 1.0))


@torch.no_grad()
def clip_each(parameters, largest: float):
    """Clips the gradient norm of each parameter separately to `largest`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient, norm in zip(gradients, torch._foreach_norm(gradients)):
        gradient.mul_((largest / (norm + 1e-6)).clamp(max=1.0))


class AsitTrainer(PretrainingTrainer):
    """Trains with ASiT's objectives, optimiser and schedules."""

    task = "asit"
    title = "group masked model learning with self-distillation (ASiT)"
    config_class = ASiTConfig
    model_class = ASiTForPreTraining
    examples_class = AsitExamples
    components = ("class_loss", "data_loss", "reconstruction_loss")
    CONSTANT_SETTINGS = ("initial_lr", "betas", "eps")  # `Schedules` changes the weight decay

    @staticmethod
    def metrics_of(config: ASiTConfig) -> tuple[str, ...]:
        """Returns the losses to watch, first the one that does not follow the teacher's temperature."""
        return "reconstruction_loss", "class_loss", "data_loss"

    @staticmethod
    def flops_per_clip(config: ASiTConfig, num_frames: int) -> float:
        """
        Returns the floating-point operations of a training step per clip: two crops, and only a forward pass of the
        teacher. The backward pass counts as in `MspmTrainer.flops_per_clip`.
        """
        patches, size = num_patches(config, num_frames), config.hidden_size
        tokens, values = config.num_prefix_tokens + patches, math.prod(config.patch_shape)
        hidden, bottleneck = config.head_hidden_size, config.head_bottleneck_size
        embedding = 2 * patches * values * size
        network = encoder_flops(config, tokens, config.num_hidden_layers)
        network += 2 * tokens * (size * hidden + hidden**2 + hidden * bottleneck)
        network += 2 * bottleneck * (config.class_dim + patches * config.data_dim)
        hidden, bottleneck = config.reconstruction_hidden_size, config.reconstruction_bottleneck_size
        reconstruction = 2 * patches * (size * hidden + hidden**2 + hidden * bottleneck + bottleneck * values)
        return 2 * (3 * embedding + 4 * network + 3 * reconstruction)

    def encoders(self) -> dict[str, torch.nn.Module]:
        """Returns student and teacher."""
        return {"student": self.model.student, "teacher": self.model.base_model}

    def make_panels(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the first crops, the student's input, and its reconstruction: (clips, frames, mel) each."""
        output = self.model(**batch, return_dict=True)
        return {
            "clip": batch["input_values"][:, 0],
            "corrupted": batch["corrupted_values"][:, 0],
            "reconstructed": output.reconstruction[:, 0],
        }

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Schedules(self))

    @property
    def highest_learning_rate(self) -> float:
        """Returns the recipe's learning rate, scaled from `REFERENCE_BATCH` to the true batch."""
        return self.args.learning_rate * clips_per_step(self.args) / REFERENCE_BATCH

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Creates AdamW without weight decay of biases and vectors; tokens and positions are decayed."""
        if self.optimizer is None:
            model = self.model if model is None else model
            named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
            spared = [parameter for name, parameter in named if parameter.ndim == 1 or name.endswith(".bias")]
            decayed = [parameter for name, parameter in named if parameter.ndim > 1 and not name.endswith(".bias")]
            self.optimizer = torch.optim.AdamW(
                [{"params": decayed, "weight_decay": self.args.weight_decay}, {"params": spared, "weight_decay": 0.0}],
                lr=self.highest_learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                fused=True,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Creates a linear rise to `highest_learning_rate`, then a cosine to `min_learning_rate`."""
        if self.lr_scheduler is None:
            highest, warmup = self.highest_learning_rate, self.args.warmup_epochs * self.epoch_steps

            def factor(step: int) -> float:
                return cosine_schedule(step, num_training_steps, highest, self.args.min_learning_rate, warmup) / highest

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler
