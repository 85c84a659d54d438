"""The task `asit`: group masked model learning with self-distillation (Atito et al., 2022)."""

import math

import numpy as np
import torch
from transformers import TrainerCallback

from modeling_dual_ssast import ASiTConfig, ASiTForPreTraining, DualSSASTFeatureExtractor
from modeling_dual_ssast.corruption_asit import LARGEST_SIDE, corrupt, corruption_rng, replace_from_batch

from ..base.arguments import EncoderArguments
from ..data.arguments import UnlabelledDataArguments
from ..data.augmentation import random_crop
from ..data.clip_stream import clips_per_step
from ..errors import InputError
from . import throughput, train
from .arguments import AsitTrainingArguments
from .trainer import PretrainingTask, PretrainingTrainer, pad_features

SHIFT_RATE = 0.5  # of the clips that are rolled in time before they are cropped, as in the original
REFERENCE_BATCH = 256  # clips per step for which the recipe's learning rate is meant


def run(model: EncoderArguments, data: UnlabelledDataArguments, arguments: AsitTrainingArguments):
    """Pretrains as `training.pretraining.run` says."""
    train.run(TASK, model, data, arguments)


class Examples:
    """
    Two random crops and their corruption: (samples,) -> `input_values`, `corrupted_values`, `corruption_mask`, each
    (2, frames, mel), and a `key` for what is random in the batch.

    The published code calls its crops random-resized; what it calls cuts without resizing, and so does this.
    """

    def __init__(self, feature_extractor: DualSSASTFeatureExtractor, config: ASiTConfig):
        largest = int(min(feature_extractor.max_length, config.num_mel_bins) * LARGEST_SIDE)
        if config.corruption_align >= largest:
            got = config.corruption_align
            raise InputError(f"corruption_align: must be below {largest}, 30 % of a crop, got {got}")
        self.feature_extractor = feature_extractor
        self.config = config

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> dict:
        extractor, config = self.feature_extractor, self.config
        # Blocks need room: their sides are at most 30 % of a crop's.
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


class Collator:
    """Joins examples into a batch padded to its longest clip, and replaces blocks by those of other clips."""

    def __init__(self, feature_extractor: DualSSASTFeatureExtractor, config: ASiTConfig, seed: int = 0):
        self.feature_extractor = feature_extractor
        self.config = config

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
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
        """The batch's first or second crops: (batch, frames, mel)"""
        clean = pad_features(self.feature_extractor, [example["input_values"][crop] for example in examples])
        corrupted = pad_features(self.feature_extractor, [example["corrupted_values"][crop] for example in examples])
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


def panels(model: ASiTForPreTraining, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first crops, what the student saw of them, and what it painted: (clips, frames, mel) each."""
    output = model(**batch, return_dict=True)
    return {
        "clip": batch["input_values"][:, 0],
        "corrupted": batch["corrupted_values"][:, 0],
        "reconstructed": output.reconstruction[:, 0],
    }


def metrics(config: ASiTConfig) -> tuple[str, ...]:
    return "reconstruction_loss", "class_loss", "data_loss"  # these two fall and rise with the teacher's temperature


def cosine_schedule(
    step: int, num_steps: int, first: float, last: float, num_warmup_steps: int = 0, start: float = 0.0
) -> float:
    """
    Returns the value at `step`: a linear rise from `start` to `first` over the warm-up, then a cosine to `last`.

    `first` is reached at the warm-up's last step and `last` one step after the end, like in the published code.
    """
    if step < num_warmup_steps:
        return start + (first - start) * step / max(num_warmup_steps - 1, 1)
    progress = (step - num_warmup_steps) / max(num_steps - num_warmup_steps, 1)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(progress, 1.0)))


class Schedules(TrainerCallback):
    """What the original sets around every step: weight decay, temperature, gradient clipping, teacher."""

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
    """Scales every parameter's gradient whose norm is above `largest` down to it, each for itself."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient, norm in zip(gradients, torch._foreach_norm(gradients)):
        gradient.mul_((largest / (norm + 1e-6)).clamp(max=1.0))


class AsitTrainer(PretrainingTrainer):
    """With ASiT's optimiser and schedules."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Schedules(self))

    @property
    def highest_learning_rate(self) -> float:
        return self.args.learning_rate * clips_per_step(self.args) / REFERENCE_BATCH

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW that spares biases and vectors from weight decay, but not tokens and positions."""
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
        """The cosine from `highest_learning_rate` to `min_learning_rate`, after a linear rise."""
        if self.lr_scheduler is None:
            highest, warmup = self.highest_learning_rate, self.args.warmup_epochs * self.epoch_steps

            def factor(step: int) -> float:
                return cosine_schedule(step, num_training_steps, highest, self.args.min_learning_rate, warmup) / highest

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler


TASK = PretrainingTask(
    name="asit",
    title="group masked model learning with self-distillation (ASiT)",
    config_class=ASiTConfig,
    model_class=ASiTForPreTraining,
    make_examples=Examples,
    make_collator=Collator,
    components=("class_loss", "data_loss", "reconstruction_loss"),
    metrics=metrics,
    flops_per_clip=throughput.asit_flops,
    crops=2,
    panels=panels,
    trainer_class=AsitTrainer,
)
