"""What the two pretraining tasks share: data, trainer, evaluation with pictures, and the folder that a run leaves."""

import itertools
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import AutoModelForPreTraining, set_seed
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTFeatureExtractor

from ..base.inference import PATCH_MODEL_TYPES
from ..base.loading import (
    check_same_run,
    check_weights,
    compute_statistics,
    load_config,
    load_feature_extractor,
    mismatched,
)
from ..base.pushes import check_hub
from ..base.trainer import AudioTrainer, early_stopping
from ..classification import report as reporting
from ..data.audio import read_audio
from ..data.clip_stream import ClipList, ClipStream, StreamCallback, clips_per_step
from ..data.unlabelled_sources import (
    UNREADABLE_CLIPS,
    LocalClips,
    StreamedClips,
    UnreadableLog,
    drop_unreadable,
    hold_out,
    join,
    open_source,
    parse_sources,
)
from ..errors import InputError
from ..recipe import NO_PLATEAU, EncoderArguments, PretrainingArguments, UnlabelledDataArguments, check_output_folder
from . import report as pretraining_report
from . import throughput

logger = logging.get_logger(__name__)

DATA = "training_data.json"  # what a resumed run must find again
PICTURES = "reconstructions"  # one of every evaluation
LARGEST_HELD_OUT_SHARE = 0.1  # of small collections


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


def run(
    task: PretrainingTask,
    model_arguments: EncoderArguments,
    data_arguments: UnlabelledDataArguments,
    arguments: PretrainingArguments,
):
    """
    Pretrains, evaluates and writes the output folder.

    Raises:
        InputError: bad input, told before training starts wherever it can be known by then.
    """
    checkpoint = check_output_folder(arguments)
    check_hub(arguments)
    set_seed(arguments.seed)
    stored_config = load_config(model_arguments, PATCH_MODEL_TYPES)
    extractor = load_feature_extractor(model_arguments, data_arguments, task.config_class)
    log_path = Path(arguments.output_dir) / UNREADABLE_CLIPS
    with arguments.main_process_first(desc="looking for an earlier run"):
        if checkpoint is None and arguments.should_save:
            log_path.unlink(missing_ok=True)
    log = UnreadableLog(log_path)
    sources, clips, validation = open_clips(data_arguments, arguments, log)
    if data_arguments.compute_statistics:
        some = some_clips(clips, data_arguments.statistics_clips, arguments.seed)
        extractor = compute_statistics(readable(some, extractor.sampling_rate), len(some), extractor)
    model = load_model(task, model_arguments, stored_config, extractor)
    if checkpoint is not None:
        check_same_run(checkpoint, model.config)
    with arguments.main_process_first(desc="comparing the data with an earlier run's"):
        check_same_data(Path(arguments.output_dir) / DATA, clips, validation, arguments, is_new=checkpoint is None)
    make_example = task.make_examples(extractor, model.config)
    stream = ClipStream(
        clips,
        [source.weight for source in sources],
        make_example,
        extractor.sampling_rate,
        arguments.seed,
        arguments.train_batch_size,
        log,
        num_processes=arguments.world_size,
        process_index=arguments.process_index,
        max_unreadable_share=data_arguments.max_unreadable_share,
    )
    epoch_steps = count_steps(arguments, stream)
    held_out = None
    if validation is not None:
        held_out = ClipList(validation, make_example, extractor.sampling_rate, arguments.seed, log)
    trainer = make_trainer(task, model, extractor, stream, held_out, arguments, epoch_steps)
    if checkpoint is None:
        trainer.remove_checkpoints()
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    metrics = trainer.last_metrics()
    recipe = {"task": task.name} | reporting.describe_recipe(model_arguments, data_arguments)
    recipe["TrainingArguments"] = arguments.to_dict()
    trainer.accelerator.wait_for_everyone()  # all clips are logged
    pretraining_report.write_outputs(trainer, task, sources, clips, log, metrics, recipe, seconds)
    trainer.push_to_hub()


def open_clips(data_arguments: UnlabelledDataArguments, arguments: PretrainingArguments, log: UnreadableLog):
    """
    Returns:
        the recipe's sources, the training clips of each, and the validation clips or `None`
    """
    sources = parse_sources("train_sources", data_arguments.train_sources)
    clips = [_open(source, data_arguments, log) for source in sources]
    if arguments.eval_strategy == "no" or not (data_arguments.validation_clips or data_arguments.validation_sources):
        arguments.eval_strategy, arguments.eval_on_start = "no", False
        return sources, clips, None
    if data_arguments.validation_sources:
        opened = parse_sources("validation_sources", data_arguments.validation_sources)
        opened = [_open(source, data_arguments, log) for source in opened]
        found = some_clips(opened, data_arguments.validation_clips or 10**9, arguments.seed)
        return sources, clips, found
    num_local = sum(len(source) for source in clips if isinstance(source, LocalClips))
    if not num_local:
        raise InputError(
            "validation_sources: is not set, and streamed sources have no clips to hold out; name some, or set "
            "eval_strategy to no (and lr_scheduler_type to constant_with_warmup, say)"
        )
    count = min(data_arguments.validation_clips, max(1, int(num_local * LARGEST_HELD_OUT_SHARE)))
    clips, validation = hold_out(clips, count, arguments.seed)
    return sources, clips, validation


def check_same_data(path: Path, clips: list, validation, arguments: PretrainingArguments, is_new: bool):
    """
    Writes down which clips a run hears and in which order, or compares that with what a resumed run wrote down.

    Raises:
        InputError: other clips, or another seed: what was heard and what was held out would mix.
    """
    names = {source.name: reporting.fingerprint(source.names()) for source in clips if isinstance(source, LocalClips)}
    streams = {source.name: "streamed" for source in clips if isinstance(source, StreamedClips)}
    held_out = None if validation is None else reporting.fingerprint(validation.names())
    found = {"seed": arguments.seed, "train_sources": names | streams, "validation clips": held_out}
    if is_new or not path.exists():
        if arguments.should_save:
            unfinished = path.with_name(f".{path.name}")
            unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(path)
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    for key, value in found.items():
        if stored.get(key) != value:
            raise InputError(
                f"{path}: the run began with other {key} than the recipe gives now (files that were added, removed or "
                "named by another path count too); resume with the same, or begin anew with --overwrite true"
            )


def _open(source, data_arguments: UnlabelledDataArguments, log: UnreadableLog) -> LocalClips | StreamedClips:
    clips = open_source(source, data_arguments.shuffle_buffer)
    if data_arguments.check_files and isinstance(clips, LocalClips):
        clips = drop_unreadable(clips, log, data_arguments.max_unreadable_share)
    return clips


def some_clips(clips: list[LocalClips | StreamedClips], count: int, seed: int) -> LocalClips:
    """About `count` clips, undecoded, from all sources alike; of the local ones evenly spaced."""
    share = math.ceil(count / len(clips))
    chosen = []
    for source in clips:
        if isinstance(source, LocalClips):
            indices = np.linspace(0, len(source) - 1, min(share, len(source))).round().astype(int)
            chosen.append(source.select(indices))
        else:
            first = itertools.islice(source.shuffled(np.random.default_rng(seed)), share)
            chosen.append(LocalClips(source.name, datasets.Dataset.from_list([{"audio": audio} for audio in first])))
    return join(chosen)


def readable(clips: LocalClips, sampling_rate: int):
    """The waveforms of the clips that can be read."""
    for index in range(len(clips)):
        try:
            yield read_audio(clips[index], sampling_rate)
        except InputError:  # told when the run itself meets the clip
            continue


def load_model(task: PretrainingTask, model_arguments: EncoderArguments, stored_config, extractor):
    """The pretraining model, from random weights or from a checkpoint."""
    overrides = model_arguments.overrides() | {"padding_value": extractor.padding_value}
    try:
        if stored_config is None:
            attention = overrides.pop("attn_implementation", None)
            return AutoModelForPreTraining.from_config(
                task.config_class(**overrides), **({"attn_implementation": attention} if attention else {})
            )
        model, report = task.model_class.from_pretrained(
            model_arguments.model_name_or_path,
            revision=model_arguments.model_revision,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **overrides,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"model: {error}") from error
    foreign = {str(key) for key in report["missing_keys"] if str(key).startswith("dual_ssast.")}
    check_weights(model_arguments, foreign | mismatched(report))
    return model


def count_steps(arguments: PretrainingArguments, stream: ClipStream) -> int:
    """Fills in the numbers of steps that the recipe leaves open; returns those of an epoch."""
    epoch_steps = arguments.epoch_steps
    if epoch_steps is None:
        if stream.clips_per_pass is None:
            raise InputError(
                "epoch_steps: is not set, and a streamed source has no known end; say how many steps count as an epoch"
            )
        epoch_steps = max(1, stream.clips_per_pass // clips_per_step(arguments))
    if arguments.max_steps <= 0:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * epoch_steps)
    defaults = {"eval_steps": epoch_steps, "save_steps": epoch_steps, "logging_steps": max(1, epoch_steps // 10)}
    for name in arguments.open_steps:
        setattr(arguments, name, defaults[name])
    return epoch_steps


def make_trainer(
    task: PretrainingTask,
    model,
    extractor: DualSSASTFeatureExtractor,
    stream: ClipStream,
    held_out: ClipList | None,
    arguments: PretrainingArguments,
    epoch_steps: int,
) -> "PretrainingTrainer":
    metrics = (*task.metrics(model.config), "loss")
    watched = (arguments.chosen_metric or metrics[0]).removeprefix("eval_")
    if watched not in metrics:
        raise InputError(f"metric_for_best_model: {watched!r} is unknown; known are {', '.join(metrics)}")
    direction = arguments.chosen_direction
    arguments.metric_for_best_model = watched
    arguments.greater_is_better = watched.endswith("accuracy") if direction is None else direction
    if held_out is None and arguments.lr_scheduler_type == "reduce_lr_on_plateau":
        raise InputError(NO_PLATEAU)
    return task.trainer_class(
        model=model,
        args=arguments,
        train_dataset=stream,
        eval_dataset=held_out,
        data_collator=task.make_collator(extractor, model.config, arguments.seed),
        processing_class=extractor,
        callbacks=early_stopping(arguments),
        task=task,
        epoch_steps=epoch_steps,
    )


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
