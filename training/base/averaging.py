"""Averages weights during training: EMA, and the mean of the weights of epochs."""

import contextlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.utils import logging

from ..errors import blamed
from .arguments import TrainedWeightsArguments
from .resumption import REMEDY

logger = logging.get_logger(__name__)

TRAINED_WEIGHTS_NAME = "trained_weights.safetensors"  # the model file of a checkpoint has the averaged ones
EPOCH_TOLERANCE = 1e-6  # Trainer counts epochs in fractions


def weight_average(tuning: TrainedWeightsArguments) -> "WeightAverage | None":
    """Returns the callback of the recipe's weight average; `None` if the recipe sets none."""
    if tuning.ema_decay is not None:
        return WeightAverage(get_ema_multi_avg_fn(tuning.ema_decay))
    if tuning.average_from_epoch is not None:
        return WeightAverage(update_mean, tuning.average_from_epoch)
    return None


@torch.no_grad()
def update_mean(means: list[torch.Tensor], values: list[torch.Tensor], num_averaged: torch.Tensor):
    """Updates means in place by one more value. Integer counters take the new value: torch averages no integers."""
    if means[0].is_floating_point():
        torch._foreach_lerp_(means, values, float(1 / (num_averaged + 1)))
    else:
        torch._foreach_copy_(means, values)


class WeightAverage(TrainerCallback):
    """
    Averages the weights during training, by `torch.optim.swa_utils`.

    `applied` puts the average into the model, for evaluations and checkpoints; a checkpoint also has the trained
    weights. Before the first update the model stays as it is.

    Args:
        update: (averages, weights, number averaged), in place. An exponential average is decay * average
            + (1 - decay) * weights, and begins with the weights after the first step
        from_epoch: first epoch at whose end the weights enter the average; `None`: they enter after every step
    """

    def __init__(self, update, from_epoch: int | None = None):
        self.update = update
        self.from_epoch = from_epoch
        self.average: AveragedModel | None = None  # `None` before and after the training
        self.checkpoint: Path | None = None  # to resume from; the model then begins with its average

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.from_epoch is not None and self.from_epoch > state.num_train_epochs and state.is_world_process_zero:
            logger.warning(
                f"average_from_epoch: {self.from_epoch} is beyond the {state.num_train_epochs} epochs of this run: "
                "nothing is averaged"
            )
        # Buffers are averaged too: the statistics of batch norms depend on the weights.
        self.average = AveragedModel(model, multi_avg_fn=self.update, use_buffers=True)
        if self.checkpoint is not None:
            self.average.n_averaged.fill_(self._num_averaged(state))
            path = self.checkpoint / TRAINED_WEIGHTS_NAME
            with blamed(str(path), REMEDY):
                weights = load_file(path)
            with torch.no_grad():
                for name, value in self._trained(model).items():
                    value.copy_(weights[name])

    def _num_averaged(self, state) -> int:
        if self.from_epoch is None:
            return state.global_step
        return max(int(state.epoch + EPOCH_TOLERANCE) - self.from_epoch + 1, 0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        # Not at `on_epoch_end`, which comes after a checkpoint of the last step.
        epoch = round(state.epoch)
        ends_epoch = abs(state.epoch - epoch) < EPOCH_TOLERANCE
        if self.from_epoch is None or (ends_epoch and epoch >= self.from_epoch):
            self.average.update_parameters(model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if not (args.load_best_model_at_end and state.best_model_checkpoint):  # else averaged already
            self._exchange(model)
        self.average = None

    @contextlib.contextmanager
    def applied(self, model: nn.Module):
        """Puts the averaged weights into the model, and restores the trained ones on exit."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def save(self, model: nn.Module, folder: Path):
        """Saves the trained weights, which a resumption needs beside the averaged ones."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self._trained(model).items()}
        save_file(weights, folder / TRAINED_WEIGHTS_NAME)

    @torch.no_grad()
    def _exchange(self, model: nn.Module):
        """Swaps trained and averaged weights in place, so that compiled graphs and the optimiser keep their tensors."""
        if self.average is None or not self.average.n_averaged:
            return
        averaged = self._trained(self.average.module)
        for name, value in self._trained(model).items():
            own = value.detach().clone()
            value.copy_(averaged[name])
            averaged[name].copy_(own)

    @staticmethod
    def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return trained | dict(model.named_buffers())
