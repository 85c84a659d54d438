"""Runs a pretraining: loads the data and the model, trains, evaluates, and writes the output folder."""

import itertools
import math
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import AutoModelForPreTraining, set_seed
from transformers.utils import logging

from ..base import outputs
from ..base.arguments import EncoderArguments
from ..base.finite import check_weights_finite
from ..base.inference import PATCH_MODEL_TYPES
from ..base.loading import (
    blames_model,
    check_weights,
    compute_statistics,
    load_config,
    load_feature_extractor,
    mismatched,
)
from ..base.outputs import check_output_folder
from ..base.push_to_hub import check_hub
from ..base.resumption import DATA, REMEDY, check_same_run
from ..base.trainer import early_stopping
from ..data.arguments import UnlabelledDataArguments
from ..data.audio import read_audio
from ..data.clip_stream import ClipList, ClipStream, clips_per_step
from ..data.clips import LocalClips, StreamedClips, join
from ..data.unlabelled_sources import UnlabelledSource, drop_unreadable, hold_out, open_source, parse_sources
from ..data.unreadable import UNREADABLE_CLIPS, UnreadableLog
from ..errors import InputError
from ..files import check_same, fingerprint, read_json, write_json
from . import report as pretraining_report
from .arguments import NO_PLATEAU, PretrainingArguments
from .probe import open_probe
from .trainer import Examples, PretrainingTrainer
from .watch import Watch

logger = logging.get_logger(__name__)
LARGEST_HELD_OUT_SHARE = 0.1  # of the local clips: few clips are mostly needed for training


def run(
    method: type[PretrainingTrainer],
    model_arguments: EncoderArguments,
    data_arguments: UnlabelledDataArguments,
    arguments: PretrainingArguments,
):
    """
    Pretrains, evaluates and writes the output folder.

    Raises:
        InputError: bad input, before the training starts wherever possible.
    """
    has_probe, labelled = data_arguments.probe_dataset is not None, None
    if arguments.probe_steps is not None and not has_probe:
        raise InputError("probe_steps: has no effect without probe_dataset; name one, or leave it out")
    checkpoint = check_output_folder(arguments)
    check_hub(arguments)
    set_seed(arguments.seed)
    stored_config = load_config(model_arguments, PATCH_MODEL_TYPES)
    extractor = load_feature_extractor(model_arguments, data_arguments, method.config_class)
    log_path = Path(arguments.output_dir) / UNREADABLE_CLIPS
    with arguments.main_process_first(desc="looking for an earlier run"):
        if checkpoint is None and arguments.should_save:
            log_path.unlink(missing_ok=True)
    log = UnreadableLog(log_path)
    sources, clips, validation = open_clips(data_arguments, arguments, log)
    if data_arguments.compute_statistics:
        some = some_clips(clips, data_arguments.statistics_clips, arguments.seed)
        extractor = compute_statistics(readable(some, extractor.sampling_rate), len(some), extractor)
    model = load_model(method, model_arguments, stored_config, extractor)
    examples = method.examples_class(extractor, model.config)
    stream = ClipStream(
        clips,
        [source.weight for source in sources],
        examples.make,
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
        held_out = ClipList(validation, examples.make, extractor.sampling_rate, arguments.seed, log)
    facts = describe_clips(sources, clips, validation, arguments.seed)
    watched = watched_clips(clips, validation, arguments)
    if watched is not None:
        facts["health_clips"] = {"clips": len(watched), "names": fingerprint(watched.names())}
        watched = ClipList(watched, examples.make, extractor.sampling_rate, arguments.seed, log)
    if has_probe and arguments.should_save:
        labelled = open_probe(data_arguments, extractor, model.base_model, arguments)
        facts["probe_dataset"] = labelled.facts
    with arguments.main_process_first(desc="comparing the data with an earlier run's"):
        if checkpoint is not None:
            facts = check_same_data(checkpoint, facts)
            check_same_run(checkpoint, model.config, extractor)
        if arguments.should_save:
            write_json(Path(arguments.output_dir) / DATA, facts)
    trainer = make_trainer(method, model, examples, stream, held_out, arguments, epoch_steps)
    trainer.data_facts = facts
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        refuse_sharded(has_probe, arguments)
        watched = None
    trainer.add_callback(Watch(trainer, watched, has_probe, labelled, starts_random=stored_config is None))
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.last_metrics()
    recipe = {"task": method.task} | outputs.describe_recipe(model_arguments, data_arguments)
    recipe["TrainingArguments"] = arguments.as_given()
    trainer.accelerator.wait_for_everyone()  # until every process has logged its unreadable clips
    pretraining_report.write_outputs(trainer, sources, clips, log, metrics, recipe)
    trainer.push_to_hub()


def open_clips(data_arguments: UnlabelledDataArguments, arguments: PretrainingArguments, log: UnreadableLog):
    """
    Opens the recipe's sources, and holds out clips for validation; sets `eval_strategy` to no without such clips.

    Returns:
        the recipe's sources, the training clips of each, and the validation clips or `None`

    Raises:
        InputError: sources that cannot be loaded, that are never evaluated, or that have no clips to hold out.
    """
    sources = parse_sources("train_sources", data_arguments.train_sources)
    clips = [_open(source, data_arguments, log) for source in sources]
    if arguments.eval_strategy == "no" and data_arguments.validation_sources:
        raise InputError("validation_sources: have no effect with eval_strategy: no; leave one of them out")
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


def describe_clips(sources: list[UnlabelledSource], clips: list, validation: LocalClips | None, seed: int) -> dict:
    """
    Returns what a resumption must share: the seed, fingerprints of the clips by their names, and what chooses and
    orders the clips of each source.
    """
    names = {source.name: fingerprint(source.names()) for source in clips if isinstance(source, LocalClips)}
    streams = {source.name: "streamed" for source in clips if isinstance(source, StreamedClips)}
    held_out = None if validation is None else fingerprint(validation.names())
    settings = {  # the place is a part of the key: the order of the sources counts, and one may be there twice
        f"{place} ({source.path})": {name: getattr(source, name) for name in ("weight", "config", "revision", "split")}
        | (opened.facts() if isinstance(opened, StreamedClips) else {})
        for place, (source, opened) in enumerate(zip(sources, clips), start=1)
    }
    return {
        "seed": seed,
        "train_sources": names | streams,
        "sources": settings,
        "validation clips": held_out,
    }


def check_same_data(checkpoint: str, facts: dict) -> dict:
    """
    Compares seed and clips with those of the checkpoint to resume from, as far as it has stored them.

    Args:
        facts: `describe_clips`, and the clips on which features and probe are measured, if they are

    Returns:
        the facts, with those of measurements that only the earlier part of the run has made

    Raises:
        InputError: training and validation clips would mix, or a curve would go on with other clips.
    """
    # Earlier versions have stored them in the output folder alone.
    path = next((path for path in (Path(checkpoint, DATA), Path(checkpoint).parent / DATA) if path.exists()), None)
    stored = {} if path is None else read_json(path, REMEDY)
    known = {name: value for name, value in facts.items() if name in stored}
    remedy = (
        "resume with the same clips, seed, health_clips and probe (files that were added, removed or named by another "
        "path count too), or begin anew with --overwrite true"
    )
    check_same(path or checkpoint, stored, known, remedy)
    return stored | facts


def _open(source, data_arguments: UnlabelledDataArguments, log: UnreadableLog) -> LocalClips | StreamedClips:
    clips = open_source(source, data_arguments.shuffle_buffer)
    if data_arguments.check_files and isinstance(clips, LocalClips):
        clips = drop_unreadable(clips, log, data_arguments.max_unreadable_share)
    return clips


def some_clips(clips: list[LocalClips | StreamedClips], count: int, seed: int) -> LocalClips:
    """Returns about `count` undecoded clips, equally many per source, evenly spaced in local sources."""
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


def watched_clips(clips, validation: LocalClips | None, arguments: PretrainingArguments) -> LocalClips | None:
    """
    Returns the clips whose features are measured: of the validation, else of the training; `None` if there are none.
    A single clip differs from no other.
    """
    if not arguments.health_clips:
        return None
    found = some_clips(clips if validation is None else [validation], arguments.health_clips, arguments.seed)
    if len(found) >= 2:
        return found
    logger.warning("health_clips: the features are not measured, for there is a single clip; hold out more clips")
    return None


def refuse_sharded(has_probe: bool, arguments: PretrainingArguments):
    """Refuses, or leaves out with a warning, what needs whole weights in the main process."""
    for name, is_set in (("probe_dataset", has_probe), ("stop_on_collapse", arguments.stop_on_collapse)):
        if is_set:
            raise InputError(f"{name}: needs whole weights in every process; leave it out, or FSDP and DeepSpeed")
    if arguments.health_clips:
        logger.warning("health_clips: the features are not measured, for FSDP and DeepSpeed divide the weights")


def readable(clips: LocalClips, sampling_rate: int):
    """Yields the waveforms (samples,) of the readable clips."""
    for index in range(len(clips)):
        try:
            yield read_audio(clips[index], sampling_rate)
        except InputError:  # logged when the run itself reads the clip
            continue


def load_model(method: type[PretrainingTrainer], model_arguments: EncoderArguments, stored_config, extractor):
    """Loads the pretraining model from a checkpoint, or makes one with random weights if `stored_config` is `None`."""
    overrides = model_arguments.overrides() | {"padding_value": extractor.padding_value}
    with blames_model(model_arguments):
        if stored_config is None:
            attention = overrides.pop("attn_implementation", None)
            return AutoModelForPreTraining.from_config(
                method.config_class(**overrides), **({"attn_implementation": attention} if attention else {})
            )
        model, report = method.model_class.from_pretrained(
            model_arguments.model_name_or_path,
            revision=model_arguments.model_revision,
            dtype=torch.float32,  # also of a folder in float16: its steps would be lost in rounding
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **overrides,
        )
    foreign = {str(key) for key in report["missing_keys"] if str(key).startswith("dual_ssast.")}
    check_weights(model_arguments, foreign | mismatched(report))
    check_weights_finite(f"model_name_or_path: {model_arguments.model_name_or_path}", model)
    return model


def count_steps(arguments: PretrainingArguments, stream: ClipStream) -> int:
    """Sets the numbers of steps that are not set in the recipe; returns the steps per epoch."""
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
    method: type[PretrainingTrainer],
    model,
    examples: Examples,
    stream: ClipStream,
    held_out: ClipList | None,
    arguments: PretrainingArguments,
    epoch_steps: int,
) -> PretrainingTrainer:
    """Builds the method's Trainer; sets `metric_for_best_model` if the recipe does not."""
    metrics = (*method.metrics_of(model.config), "loss")
    watched = (arguments.chosen_metric or metrics[0]).removeprefix("eval_")
    if watched not in metrics:
        raise InputError(f"metric_for_best_model: {watched!r} is unknown; known are {', '.join(metrics)}")
    direction = arguments.chosen_direction
    arguments.metric_for_best_model = watched
    arguments.greater_is_better = watched.endswith("accuracy") if direction is None else direction
    if held_out is None and arguments.lr_scheduler_type == "reduce_lr_on_plateau":
        raise InputError(NO_PLATEAU)
    return method(
        model=model,
        args=arguments,
        train_dataset=stream,
        eval_dataset=held_out,
        data_collator=examples.collate,
        processing_class=examples.feature_extractor,
        callbacks=early_stopping(arguments),
        epoch_steps=epoch_steps,
    )
