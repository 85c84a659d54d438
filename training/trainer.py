"""Transformers' Trainer with a learning rate for the head and checkpoints that are never half-written."""

import os
import shutil
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import rotate_checkpoints

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
        """AdamW (or what `optim` says) with `head_learning_rate` for everything outside the encoder."""
        if self.optimizer is None and self.args.head_learning_rate is not None:
            model = self.model if model is None else model
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self._parameter_groups(model), **settings)
        return super().create_optimizer(model)

    def _parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        decayed = set(self.get_decay_parameter_names(model))
        prefix = f"{self.accelerator.unwrap_model(model).base_model_prefix}."
        groups = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                in_head = prefix not in f".{name}"
                groups.setdefault((in_head, name in decayed), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.args.head_learning_rate if in_head else self.args.learning_rate,
                "weight_decay": self.args.weight_decay if is_decayed else 0.0,
            }
            for (in_head, is_decayed), parameters in groups.items()
        ]

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
