"""The task `mspm`: masked spectrogram patch modelling, the pretraining of SSAST (Gong et al., AAAI 2022)."""

import numpy as np
import torch
from transformers import TrainerCallback

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForPreTraining
from modeling_dual_ssast.masking_dual_ssast import sample_masked_patches

from ..base.arguments import EncoderArguments
from ..data.arguments import UnlabelledDataArguments
from ..data.augmentation import random_crop
from . import throughput, train
from .arguments import MspmTrainingArguments
from .trainer import PretrainingTask, PretrainingTrainer, pad_features


def run(model: EncoderArguments, data: UnlabelledDataArguments, arguments: MspmTrainingArguments):
    """Pretrains as `training.pretraining.run` says."""
    train.run(TASK, model, data, arguments)


class Examples:
    """
    A random crop and its mask: (samples,) -> {"input_values": (frames, mel), "bool_masked_pos": (masks, rows, columns)}

    Masks are drawn here and not by the model, so that they belong to the clip's place in the training: a run is the
    same with any number of processes, and after a resumption.
    """

    def __init__(self, feature_extractor: DualSSASTFeatureExtractor, config: DualSSASTConfig):
        self.feature_extractor = feature_extractor
        self.config = config

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> dict:
        extractor, config = self.feature_extractor, self.config
        waveform = random_crop(waveform, extractor.max_samples, rng)
        features = extractor([torch.from_numpy(waveform)], extractor.sampling_rate, padding=False)["input_values"][0]
        rows, columns = config.grid_shape[0], config.num_columns(len(features))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        masks = sample_masked_patches(
            rows,
            columns,
            torch.full((num_masks(config),), columns),
            config.mask_ratio,
            clustered=rows > 1,
            generator=generator,
        )
        return {"input_values": features, "bool_masked_pos": masks.unflatten(1, (rows, columns))}


def num_masks(config: DualSSASTConfig) -> int:
    """Per clip: the published form draws one for each objective."""
    return 2 if config.pretraining_objective == "joint" and not config.shared_mask else 1


class Collator:
    """Joins examples into a batch padded to its longest clip; padding is never masked."""

    def __init__(self, feature_extractor: DualSSASTFeatureExtractor, config: DualSSASTConfig, seed: int = 0):
        self.feature_extractor = feature_extractor
        self.config = config

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = pad_features(self.feature_extractor, [example["input_values"] for example in examples])
        columns = self.config.num_columns(batch["input_values"].shape[1])
        if self.config.attention_over_padding:
            columns = self.config.grid_shape[1]
        masks = [example["bool_masked_pos"] for example in examples]
        masks = [torch.nn.functional.pad(mask, (0, columns - mask.shape[-1])) for mask in masks]
        masks = torch.stack(masks).flatten(2)  # (batch, masks, patches)
        return {**batch, "bool_masked_pos": masks if masks.shape[1] > 1 else masks[:, 0]}


def panels(model: DualSSASTForPreTraining, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The clips, what the model saw of them, and what it painted there: (clips, frames, mel) each."""
    output = model(**batch, return_dict=True)
    patches = model.patchify(batch["input_values"], batch.get("attention_mask"))  # (clips, patches, values)
    masked = batch["bool_masked_pos"]
    masked = (masked[:, 1] if masked.ndim == 3 else masked).unsqueeze(-1)
    pictures = {"clip": patches, "masked": torch.where(masked, float("nan"), patches)}
    if output.reconstruction is not None:
        pictures["reconstructed"] = torch.where(masked, output.reconstruction.to(patches.dtype), patches)
    rows = model.config.grid_shape[0]
    mels, frames = model.config.patch_shape
    shape = (rows * mels, patches.shape[1] // rows * frames)
    return {
        title: torch.nn.functional.fold(values.mT, shape, (mels, frames), stride=(mels, frames)).squeeze(1).mT
        for title, values in pictures.items()
    }


def metrics(config: DualSSASTConfig) -> tuple[str, ...]:
    """What tells that the training stalls: SSAST watches the accuracy, or the error where there is none."""
    discriminative, generative = ("discriminative_accuracy", "discriminative_loss"), ("generative_loss",)
    objectives = {"discriminative": discriminative, "generative": generative, "joint": discriminative + generative}
    return objectives[config.pretraining_objective]


class WarmUp(TrainerCallback):
    """A linear rise of the learning rate, before the plateau schedule has its say."""

    def __init__(self, trainer: "MspmTrainer", num_steps: int):
        self.trainer = trainer
        self.num_steps = num_steps

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step < self.num_steps:
            for group in self.trainer.optimizer.param_groups:
                group["lr"] = args.learning_rate * (state.global_step + 1) / self.num_steps


class MspmTrainer(PretrainingTrainer):
    """With SSAST's optimiser, and its schedule where the recipe does not name another."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        arguments = self.args
        if arguments.lr_scheduler_type == "reduce_lr_on_plateau":
            arguments.lr_scheduler_kwargs = {
                "mode": "max" if arguments.greater_is_better else "min",
                "factor": 0.5,
                "patience": arguments.lr_patience,
            } | (arguments.lr_scheduler_kwargs or {})
            self.add_callback(WarmUp(self, arguments.get_warmup_steps(arguments.max_steps)))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Adam with its L2 penalty on every parameter, as the original has it."""
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


TASK = PretrainingTask(
    name="mspm",
    title="masked spectrogram patch modelling (SSAST)",
    config_class=DualSSASTConfig,
    model_class=DualSSASTForPreTraining,
    make_examples=Examples,
    make_collator=Collator,
    components=("discriminative_loss", "discriminative_accuracy", "generative_loss", "num_masked"),
    metrics=metrics,
    flops_per_clip=throughput.mspm_flops,
    crops=1,
    panels=panels,
    trainer_class=MspmTrainer,
)
