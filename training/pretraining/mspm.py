"""Runs the task `mspm`: masked spectrogram patch modelling, the pretraining of SSAST (Gong et al., AAAI 2022)."""

import math

import numpy as np
import torch

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForPreTraining
from modeling_dual_ssast.masking_dual_ssast import sample_masked_patches

from ..base.arguments import EncoderArguments
from ..data.arguments import UnlabelledDataArguments
from ..data.augmentation import random_crop
from . import train
from .arguments import MspmTrainingArguments
from .throughput import encoder_flops, num_patches
from .trainer import Examples, PretrainingTrainer


def run(model: EncoderArguments, data: UnlabelledDataArguments, arguments: MspmTrainingArguments):
    """Pretrains by MSPM; see `training.pretraining.train.run`."""
    train.run(MspmTrainer, model, data, arguments)


class MspmExamples(Examples):
    """
    Makes examples of a random crop and its mask, or of two crops with `clip_contrast_weight`.

    The mask is drawn here and not by the model, so that it depends on the clip's place in the training alone: it is the
    same with any number of processes, and after a resumption.
    """

    def make(self, waveform: np.ndarray, rng: np.random.Generator) -> dict:
        """
        Makes an example: `input_values` (frames, mel), or (2, frames, mel) with two crops, and `bool_masked_pos`
        (masks, rows, columns).
        """
        extractor, config = self.feature_extractor, self.config
        num_crops = config.num_pretraining_crops
        crops = [torch.from_numpy(random_crop(waveform, extractor.max_samples, rng)) for _ in range(num_crops)]
        features = torch.stack(list(extractor(crops, extractor.sampling_rate, padding=False)["input_values"]))
        rows, columns = config.grid_shape[0], config.num_columns(features.shape[1])
        num_masks = config.num_pretraining_masks
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        masks = sample_masked_patches(
            rows,
            columns,
            torch.full((num_masks,), columns),
            config.mask_ratio,
            clustered=config.clustered_mask,
            generator=generator,
        )
        return {
            "input_values": features if num_crops > 1 else features[0],
            "bool_masked_pos": masks.unflatten(1, (rows, columns)),
        }

    def collate(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Joins examples; padding is never masked.

        Returns:
            those of `pad`, with two crops `input_values` (batch, 2, frames, mel); and `bool_masked_pos` (batch,
            patches), or (batch, 2, patches) with a mask per objective or crop
        """
        pad = self.pad_crops if self.config.num_pretraining_crops > 1 else self.pad
        batch = pad([example["input_values"] for example in examples])
        columns = self.config.num_batch_columns(batch["input_values"].shape[-2])
        masks = [example["bool_masked_pos"] for example in examples]
        masks = [torch.nn.functional.pad(mask, (0, columns - mask.shape[-1])) for mask in masks]
        masks = torch.stack(masks).flatten(2)  # (batch, masks, patches)
        return {**batch, "bool_masked_pos": masks if masks.shape[1] > 1 else masks[:, 0]}


class MspmTrainer(PretrainingTrainer):
    """Trains with SSAST's objectives, its optimiser, and its schedule unless the recipe names another."""

    task = "mspm"
    title = "masked spectrogram patch modelling (SSAST)"
    config_class = DualSSASTConfig
    model_class = DualSSASTForPreTraining
    examples_class = MspmExamples
    components = (
        "discriminative_loss", "discriminative_accuracy", "generative_loss", "clip_contrast_loss",
        "clip_contrast_accuracy", "num_masked",
    )  # fmt: skip

    @staticmethod
    def metrics_of(config: DualSSASTConfig) -> tuple[str, ...]:
        """Returns the metrics to watch, first the accuracy as in SSAST's plateau schedule, or the error without one."""
        discriminative, generative = ("discriminative_accuracy", "discriminative_loss"), ("generative_loss",)
        objectives = {"discriminative": discriminative, "generative": generative, "joint": discriminative + generative}
        contrast = ("clip_contrast_accuracy", "clip_contrast_loss") if config.clip_contrast_weight else ()
        return objectives[config.pretraining_objective] + contrast

    @staticmethod
    def flops_per_clip(config: DualSSASTConfig, num_frames: int) -> float:
        """
        Returns the floating-point operations of a training step per clip. The backward pass of a product counts twice
        its forward pass, or once if its input needs no gradient.
        """
        patches, values = num_patches(config, num_frames), math.prod(config.patch_shape)
        tokens, size = config.num_prefix_tokens + patches, config.hidden_size
        embedding = 2 * patches * values * size
        if config.num_decoder_layers:
            visible = tokens - round(patches * config.mask_ratio)
            blocks = encoder_flops(config, visible, config.num_hidden_layers)
            blocks += encoder_flops(config, tokens, config.num_decoder_layers)
        else:
            blocks = encoder_flops(config, tokens, config.num_hidden_layers)
        heads = 2 if config.pretraining_objective == "joint" else 1
        passes = 1 if config.shared_mask else heads
        total = passes * (2 * embedding + 3 * blocks) + heads * 3 * 2 * patches * (size**2 + size * values)
        if config.pretraining_objective != "generative":
            total += 2 * 2 * patches**2 * values  # every patch is compared with every other
        return total * config.num_pretraining_crops

    def make_panels(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the clips, their visible patches, and the reconstruction of the others: (clips, frames, mel) each."""
        model = self.model
        output = model(**batch, return_dict=True)
        values, attention_mask, masked = batch["input_values"], batch.get("attention_mask"), batch["bool_masked_pos"]
        reconstruction = output.reconstruction
        if model.config.clip_contrast_weight:  # the first crops
            values, masked = values[:, 0], masked[:, 0]
            reconstruction = None if reconstruction is None else reconstruction[::2]
        patches = model.patchify(values, attention_mask)  # (clips, patches, values)
        masked = (masked[:, 1] if masked.ndim == 3 else masked).unsqueeze(-1)
        pictures = {"clip": patches, "masked": torch.where(masked, float("nan"), patches)}
        if reconstruction is not None:
            pictures["reconstructed"] = torch.where(masked, reconstruction.to(patches.dtype), patches)
        rows = model.config.grid_shape[0]
        mels, frames = model.config.patch_shape
        shape = (rows * mels, patches.shape[1] // rows * frames)
        return {
            title: torch.nn.functional.fold(values.mT, shape, (mels, frames), stride=(mels, frames)).squeeze(1).mT
            for title, values in pictures.items()
        }

    def watching_settings(self) -> dict:
        """Returns also the settings of the original, which halves the rate."""
        own = {"factor": 0.5, "patience": self.args.lr_patience}
        is_plateau = self.args.lr_scheduler_type == "reduce_lr_on_plateau"
        return super().watching_settings() | (own if is_plateau else {})

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Creates Adam with its L2 penalty on every parameter, as in the original."""
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = torch.optim.Adam(
                [parameter for parameter in model.parameters() if parameter.requires_grad],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
                fused=True,
            )
        return self.optimizer
