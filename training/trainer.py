"""Transformers' Trainer with a learning rate for the head and checkpoints that are never half-written."""

import os
import shutil
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import rotate_checkpoints

from modeling_dual_ssast.classifier_dual_ssast import classification_loss

from .dataset import mean_over_windows
from .errors import InputError

STAGING_NAME = "unfinished-checkpoint"  # not checkpoint-N: nothing takes it for one


def early_stopping(arguments) -> list[EarlyStoppingCallback]:
    """
    The callback that `early_stopping_patience` asks for, if it does.

    Raises:
        InputError: there are no evaluations whose best one could be kept.
    """
    if arguments.early_stopping_patience is None:
        return []
    if arguments.eval_strategy == "no" or not arguments.load_best_model_at_end:
        raise InputError(
            "early_stopping_patience: needs evaluations, and load_best_model_at_end: name validation clips, and set "
            "eval_strategy and save_strategy"
        )
    return [EarlyStoppingCallback(arguments.early_stopping_patience)]


class AudioTrainer(Trainer):
    """
    Trainer for the tasks of this project.

    Checkpoints are written under a staging name and renamed when every process has finished its part, so that a run
    killed at any moment leaves only whole ones.
    """

    _staging: str | None = None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """
        AdamW (or what `optim` says), with `head_learning_rate` for everything outside the encoder and
        `fusion_learning_rate` for the learned weights of layers.
        """
        model = self.model if model is None else model
        weighs_layers = any(name.endswith("layer_weights") for name, _ in model.named_parameters())
        if self.optimizer is None and (weighs_layers or self.args.head_learning_rate is not None):
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self._parameter_groups(model), **settings)
        return super().create_optimizer(model)

    def _parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        decayed = set(self.get_decay_parameter_names(model))
        prefix = f"{self.accelerator.unwrap_model(model).base_model_prefix}."
        groups = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rate, is_decayed = self.args.learning_rate, name in decayed
            if name.endswith("layer_weights"):  # decayed, they would be drawn to be equal
                rate, is_decayed = self.args.fusion_learning_rate, False
            elif prefix not in f".{name}" and self.args.head_learning_rate is not None:
                rate = self.args.head_learning_rate
            groups.setdefault((rate, is_decayed), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if is_decayed else 0.0}
            for (rate, is_decayed), parameters in groups.items()
        ]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As Trainer's. The logits of a clip that comes as windows are the mean over them, as in `classify_windows`."""
        num_windows = inputs.pop("num_windows", None)
        if num_windows is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels, config = inputs.pop("labels"), self.accelerator.unwrap_model(model).config
        batch_size = self.args.per_device_eval_batch_size
        with torch.no_grad(), self.compute_loss_context_manager():
            parts = zip(*(value.split(batch_size) for value in inputs.values()))
            logits = [model(**dict(zip(inputs, part)), return_dict=True).logits for part in parts]
            logits = mean_over_windows(torch.cat(logits), num_windows)
            loss = classification_loss(logits, labels, config.problem_type, config.label_smoothing)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def remove_checkpoints(self):
        """Removes the checkpoints of an earlier run, which a resumption would take for this one's."""
        if self.args.should_save and os.path.isdir(self.args.output_dir):
            for folder in Path(self.args.output_dir).glob("checkpoint-*"):
                shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        run_folder = Path(super()._get_output_dir(trial))
        staging = run_folder / STAGING_NAME
        final = run_folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(staging / final.name / "trainer_state.json")  # with the final name of the best
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging / final.name, final)
            staging.rmdir()
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
