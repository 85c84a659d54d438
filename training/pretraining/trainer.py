"""Trains the pretraining methods: each is a subclass of `PretrainingTrainer` and one of `Examples`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from modeling_dual_ssast import DualSSASTFeatureExtractor

from ..base.outputs import best_step
from ..base.trainer import AudioTrainer
from ..data.clip_stream import StreamCallback
from . import health, probe, throughput
from . import report as pretraining_report
from .batches import padded

PICTURES = "reconstructions"  # folder with a figure per evaluation


class Examples:
    """Makes the training examples of a method, and joins them into batches."""

    def __init__(self, feature_extractor: DualSSASTFeatureExtractor, config):
        self.feature_extractor = feature_extractor
        self.config = config

    def make(self, waveform: np.ndarray, rng: np.random.Generator) -> dict:
        """Makes an example from a clip (samples,). `rng` is seeded by the clip's place in the training."""
        raise NotImplementedError

    def collate(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Joins examples into the inputs of the model, padded to the longest clip."""
        raise NotImplementedError

    def pad(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pads spectrograms (frames, mel), see `padded`."""
        return padded(self.feature_extractor, features)

    def pad_crops(self, clips: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pads clips (crops, frames, mel) like `pad`: `input_values` is (batch, crops, frames, mel)."""
        crops = [self.pad(list(own)) for own in zip(*clips)]  # those of a clip have one length, and so one mask
        return {**crops[0], "input_values": torch.stack([crop["input_values"] for crop in crops], dim=1)}


class PretrainingCallback(StreamCallback):
    """Also restores the throughput totals of a resumed run."""

    def __init__(self, trainer: "PretrainingTrainer"):
        super().__init__(trainer.train_dataset, trainer.epoch_steps)
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        hours = [entry["audio_hours"] for entry in state.log_history if "audio_hours" in entry]
        self.trainer.meter.begin(self.stream.start, hours[-1] if hours else 0.0)

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.meter.measure_again()


class PretrainingTrainer(AudioTrainer):
    """
    Trains a method of pretraining on a stream; logs the parts of the loss and the throughput, and draws
    reconstructions. A subclass defines the following attributes and methods, the optimiser and its schedules.
    """

    task: ClassVar[str]  # name in `tasks.TASKS`
    title: ClassVar[str]  # name of the method, for the model card
    config_class: ClassVar[type]
    model_class: ClassVar[type]
    examples_class: ClassVar[type[Examples]]
    components: ClassVar[tuple[str, ...]]  # logged outputs of the model, beside the loss

    @staticmethod
    def metrics_of(config) -> tuple[str, ...]:
        """Returns the metrics that `metric_for_best_model` may name beside the loss, the default first."""
        raise NotImplementedError

    @staticmethod
    def flops_per_clip(config, num_frames: int) -> float:
        """Returns the floating-point operations of a training step per clip."""
        raise NotImplementedError

    def make_panels(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the pictures of reconstructions, first the clips: title -> (clips, frames, mel)."""
        raise NotImplementedError

    def __init__(self, *args, epoch_steps: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.epoch_steps = epoch_steps
        self.compute_metrics = self._mean_components
        self._part_norms = {}  # norms of the gradients of the next log line, on the device
        self._evaluated = ()  # components that the model returned in the last pass
        config, device = self.model.config, self.args.device
        dtype = throughput.product_dtype(self.accelerator.autocast, device)
        self.meter = throughput.Meter(
            self.components,
            lambda num_frames: self.flops_per_clip(config, num_frames),
            lambda: throughput.measure_peak_flops(device, dtype),
            self.processing_class.hop_s,
            config.num_pretraining_crops,
            self.args.world_size,
        )
        self.add_callback(PretrainingCallback(self))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if model.training:
            self.meter.add(outputs, inputs["input_values"], inputs.get("attention_mask"))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if "loss" in logs and self.meter.steps:
            logs = logs | self.meter.read(lambda vector: self.accelerator.reduce(vector, "mean"))
            logs |= {name: float(norm) for name, norm in self._part_norms.items()}
            self._part_norms = {}
        super().log(logs, start_time)

    def _get_grad_norm(self, model, grad_norm=None):
        """Also keeps the norms of the parts of the model before the steps that end in a log line."""
        norm = super()._get_grad_norm(model, grad_norm)
        step, state = self.state.global_step + 1, self.state
        every = {state.logging_steps, state.eval_steps, state.save_steps} - {None, 0}
        if step == 1 or step >= state.max_steps or any(step % steps == 0 for steps in every):
            parameters = self.model.named_parameters()
            self._part_norms = health.gradient_norms(parameters, self.model.config.num_hidden_layers)
        return norm

    def encoders(self) -> dict[str, torch.nn.Module]:
        """Returns the encoders whose features are measured by their names; `base_model` is the result of the run."""
        return {"encoder": self.model.base_model}

    @contextmanager
    def in_evaluation_mode(self) -> Iterator[None]:
        """Sets the model to evaluation mode for a block."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns the loss, the components (clips, components), and zeros (clips,): Trainer requires labels."""
        inputs = self._prepare_inputs(inputs)
        clips = inputs["input_values"].shape[0]
        counted = {name: value[: self.num_counted(clips)] for name, value in inputs.items()}
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**counted)
        self._evaluated = [name for name in self.components if getattr(outputs, name, None) is not None]
        values = torch.stack([getattr(outputs, name).float().mean() for name in self._evaluated])
        return outputs.loss.mean().detach(), values.repeat(clips, 1), torch.zeros(clips, device=values.device)

    def _mean_components(self, prediction) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self._evaluated, prediction.predictions.mean(axis=0))}

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self.meter.paused():
            metrics = super().evaluate(*args, **kwargs)
            if self.args.picture_clips and self.is_world_process_zero():
                pretraining_report.draw_reconstructions(self, self.picture_path(self.state.global_step))
        return metrics

    def remove_checkpoints(self):
        """Also removes the reconstruction images and the tables of an earlier run."""
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / PICTURES, ignore_errors=True)
            for name in (health.TABLE, probe.TABLE):
                (Path(self.args.output_dir) / name).unlink(missing_ok=True)
        super().remove_checkpoints()

    @property
    def kept_step(self) -> int:
        """Returns the step of the model's final weights: the last or the best."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return best_step(self.state) if best and Path(best).is_dir() else self.state.global_step

    def last_metrics(self) -> dict[str, float]:
        """Returns the metrics of the kept weights, from the log if possible; empty without validation clips."""
        if self.eval_dataset is None:
            return {}
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"] == self.kept_step:
                return entry
        return self.evaluate()

    def picture_path(self, step: int) -> Path:
        """Returns the path of the figure of the evaluation at `step`."""
        return Path(self.args.output_dir) / PICTURES / f"step-{step:07d}.png"

    def panels(self) -> dict[str, list[torch.Tensor]]:
        """Reconstructs the first validation clips: title -> (frames, mel) of each clip, without its padding."""
        count = min(self.args.picture_clips, len(self.eval_dataset))
        examples = [self.eval_dataset[index] for index in range(count)]
        lengths = [example["input_values"].shape[-2] for example in examples]
        batch = {name: value.to(self.args.device) for name, value in self.data_collator(examples).items()}
        with self.in_evaluation_mode(), torch.no_grad():
            panels = self.make_panels(batch)
        return {
            title: [clip[:length] for clip, length in zip(clips.float().cpu(), lengths)]
            for title, clips in panels.items()
        }

    def _save_checkpoint(self, model, trial):
        with self.meter.paused():
            super()._save_checkpoint(model, trial)
