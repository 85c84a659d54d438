"""The Trainer of both pretraining tasks."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from modeling_dual_ssast import DualSSASTFeatureExtractor

from ..base.trainer import AudioTrainer
from ..data.clip_stream import StreamCallback
from . import report as pretraining_report
from . import throughput

PICTURES = "reconstructions"  # one of every evaluation


@dataclass(frozen=True)
class PretrainingTask:
    """
    What one method of pretraining brings along.

    name: of the task; title: of the method
    config_class, model_class: its model
    make_examples: (feature extractor, config) -> what turns a waveform and random numbers into an example
    make_collator: (feature extractor, config, seed) -> what joins examples into a batch
    components: the model's outputs that are logged, beside the loss
    metrics: config -> those that can be watched beside the loss, the usual one first
    flops_per_clip: (config, frames) -> operations of a training step
    crops: that the model hears of each clip
    panels: (model, batch) -> pictures of the reconstruction, title -> (clips, frames, mel)
    trainer_class: with the method's optimiser and schedules
    """

    name: str
    title: str
    config_class: type
    model_class: type
    make_examples: Callable
    make_collator: Callable
    components: tuple[str, ...]
    metrics: Callable
    flops_per_clip: Callable
    crops: int
    panels: Callable
    trainer_class: type


class PretrainingCallback(StreamCallback):
    """And tells the meter what was heard before."""

    def __init__(self, trainer: "PretrainingTrainer"):
        super().__init__(trainer.train_dataset, trainer.epoch_steps)
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if state.best_model_checkpoint is None and best.is_dir():  # Trainer forgets it where the folder was renamed
            state.best_model_checkpoint = str(best)
        hours = [entry["audio_hours"] for entry in state.log_history if "audio_hours" in entry]
        self.trainer.meter.begin(self.stream.start, hours[-1] if hours else 0.0)


class PretrainingTrainer(AudioTrainer):
    """Trainer on a stream, which logs the parts of the loss and the throughput, and draws reconstructions."""

    def __init__(self, *args, task: PretrainingTask, epoch_steps: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.task = task
        self.epoch_steps = epoch_steps
        self.compute_metrics = self._mean_components
        self._evaluated = ()  # the components that the model gives, in order
        config, dtype = self.model.config, torch.float32
        if (self.args.bf16 or self.args.fp16) and self.args.device.type != "cpu":
            dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        self.meter = throughput.Meter(
            task.components,
            lambda num_frames: task.flops_per_clip(config, num_frames),
            throughput.measure_peak_flops(self.args.device, dtype),
            self.processing_class.frame_shift_ms / 1000,
            task.crops,
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
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, components per clip (clips, components), and labels that nobody reads but Trainer wants."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        self._evaluated = [name for name in self.task.components if getattr(outputs, name, None) is not None]
        values = torch.stack([getattr(outputs, name).float().mean() for name in self._evaluated])
        clips = inputs["input_values"].shape[0]
        return outputs.loss.mean().detach(), values.repeat(clips, 1), torch.zeros(clips, device=values.device)

    def _mean_components(self, prediction) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self._evaluated, prediction.predictions.mean(axis=0))}

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        started = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        if self.args.picture_clips and self.is_world_process_zero():
            pretraining_report.draw_reconstructions(self, self.picture_path(self.state.global_step))
        self.meter.paused_s += time.perf_counter() - started
        return metrics

    def remove_checkpoints(self):
        """And the pictures, which would be taken for this run's."""
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / PICTURES, ignore_errors=True)
        super().remove_checkpoints()

    @property
    def kept_step(self) -> int:
        """The step whose weights the model has after the training: the last or the best."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return self.state.best_global_step if best and Path(best).is_dir() else self.state.global_step

    def last_metrics(self) -> dict[str, float]:
        """Of the weights that are kept: from the log where they were evaluated, empty without validation clips."""
        if self.eval_dataset is None:
            return {}
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"] == self.kept_step:
                return entry
        return self.evaluate()

    def picture_path(self, step: int) -> Path:
        return Path(self.args.output_dir) / PICTURES / f"step-{step:07d}.png"

    def panels(self) -> dict[str, list[torch.Tensor]]:
        """What the model makes of the first validation clips, without their padding: title -> (frames, mel) each"""
        count = min(self.args.picture_clips, len(self.eval_dataset))
        examples = [self.eval_dataset[index] for index in range(count)]
        lengths = [example["input_values"].shape[-2] for example in examples]
        batch = {name: value.to(self.args.device) for name, value in self.data_collator(examples).items()}
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            panels = self.task.panels(self.model, batch)
        self.model.train(was_training)
        return {
            title: [clip[:length] for clip, length in zip(clips.float().cpu(), lengths)]
            for title, clips in panels.items()
        }

    def _save_checkpoint(self, model, trial):
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.meter.paused_s += time.perf_counter() - started


def pad_features(feature_extractor: DualSSASTFeatureExtractor, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    `input_values` (batch, frames, mel) and `attention_mask` (batch, frames). A batch without padding has no mask: the
    fastest attention kernels take none.
    """
    batch = dict(
        feature_extractor.pad(
            [{"input_values": clip} for clip in features],
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
    )
    if batch["attention_mask"].all():
        del batch["attention_mask"]
    return batch
