"""Trains classifiers of clips: those of the recipe's sampler, evaluated in windows."""

import numpy as np
import torch

from modeling_dual_ssast.classifier_dual_ssast import classification_loss

from ..base.fine_tuning import FineTuningTrainer
from ..base.open_set import EmbeddingHook
from ..data.dataset import mean_over_windows
from ..errors import InputError
from .token_batches import TokenBatches


class ClassificationTrainer(FineTuningTrainer):
    """
    Trains a classifier of clips.

    Args:
        sampler: order of the training clips, or their batches; `None`: Transformers'
    """

    def __init__(self, *args, sampler=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self._clips_of_step = None  # over all processes, with batches of different numbers of clips
        self._by_embeddings = None  # hook and function of `predict_by_embeddings`

    def predict_by_embeddings(self, dataset, function) -> tuple[np.ndarray, np.ndarray]:
        """
        Predicts, and calls a function of the normalised embeddings (windows, size); of a clip's windows the mean.

        Returns:
            logits (clips, labels), and what the function returns (clips, ...)
        """
        if self.args.torch_compile:
            torch.compiler.reset()  # what is compiled ignores new hooks
        hook, compute_metrics = EmbeddingHook(self._plain_model()), self.compute_metrics
        self._by_embeddings, self.compute_metrics = (hook, function), None
        try:
            return self.predict(dataset).predictions
        finally:
            self._by_embeddings, self.compute_metrics = None, compute_metrics
            hook.remove()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Predicts as Trainer does; a clip in windows has their mean logits, as in `classify_windows`."""
        num_windows = inputs.pop("num_windows", None)
        loss, logits, labels = self._predict_batch(model, inputs, num_windows, prediction_loss_only, ignore_keys)
        if self._by_embeddings is not None:
            hook, function = self._by_embeddings
            values = function(hook.take())
            logits = (logits, values if num_windows is None else mean_over_windows(values, num_windows))
        return loss, logits, labels

    def _predict_batch(self, model, inputs, num_windows, prediction_loss_only, ignore_keys):
        if num_windows is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.is_sharded:  # all processes must make the same number of passes
            raise InputError(
                "window_s: clips longer than the model's input cannot be evaluated with FSDP or DeepSpeed; set "
                "eval_strategy to no, leave the splits out, and evaluate with predict_hf.py"
            )
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        batch_size = self.args.per_device_eval_batch_size
        with torch.no_grad(), self.compute_loss_context_manager():
            parts = zip(*(value.split(batch_size) for value in inputs.values()))
            logits = [model(**dict(zip(inputs, part)), return_dict=True).logits for part in parts]
            logits = mean_over_windows(torch.cat(logits), num_windows)
            loss = self._loss_of_counted(model, logits, labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def _loss_of_counted(self, model, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the loss of the clips that count in an evaluation, see `num_counted`. logits: (batch, labels)"""
        config, count = self.accelerator.unwrap_model(model).config, self.num_counted(len(logits))
        return classification_loss(logits[:count], labels[:count], config.problem_type, config.label_smoothing)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Returns the loader, also of batches that are not a number of clips."""
        if not isinstance(self.sampler, TokenBatches):
            return super().get_train_dataloader()
        persists = self.args.dataloader_persistent_workers
        return self.accelerator.prepare(self.own_loader(batch_sampler=self.sampler, persistent_workers=persists))

    def get_batch_samples(self, *args, **kwargs):
        """Also counts the clips of a step of the optimiser, over all processes."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if isinstance(self.sampler, TokenBatches):
            count = sum(len(batch["labels"]) for batch in batches)
            if self.args.world_size > 1:
                count = int(self.accelerator.reduce(torch.tensor(count, device=self.args.device), "sum"))
            self._clips_of_step = count
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        Computes the loss as `FineTuningTrainer` does; a clip counts the same in batches of few clips and of many, and
        in evaluations once.
        """
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        num_clips = len(inputs["input_values"])
        if not model.training:
            if self.num_counted(num_clips) < num_clips:
                loss = self._loss_of_counted(model, outputs.logits, inputs["labels"])
        elif self._clips_of_step is not None:
            # Trainer and DDP average over the batches of a step, of which each is a mean over its clips.
            batches = self.args.gradient_accumulation_steps * self.args.world_size
            loss = loss * (num_clips * batches / self._clips_of_step)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler
