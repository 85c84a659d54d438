"""Runs the task `classification`: fine-tunes any model, or trains a Dual SSAST from random weights, and reports."""

import dataclasses
from pathlib import Path

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, set_seed
from transformers.utils import logging

from modeling_dual_ssast.feature_extraction_dual_ssast import SpectrogramFeatureExtractor

from ..base import outputs, reproduction
from ..base.arguments import ModelArguments, TrainingArguments
from ..base.earlier_clips import warn_of_learnt_clips
from ..base.loading import choose_windows, load_config, load_feature_extractor, load_model, with_statistics
from ..base.outputs import check_output_folder
from ..base.push_to_hub import check_hub
from ..base.resumption import SEEDS, order_of
from ..base.trainer import early_stopping
from ..base.tuning import check_resumption, prepare
from ..data.arguments import DataArguments
from ..data.augmentation import AugmentationArguments
from ..data.dataset import ClipDataset, Collator
from ..data.decoded_cache import DecodedCache
from ..data.labels import LabelSet, class_name, find_labels, read_label_file
from ..data.screening import screen
from ..data.splits import complete_splits, divides_by_class, load_splits, sample_splits, warn_of_repeats
from ..errors import InputError
from . import report as reporting
from .arguments import TuningArguments
from .calibration import calibrate
from .finished_run import FinishedRun
from .labelled_stream import LabelledClipStream, LabelledStream, check_streaming, describe_stream, open_streams
from .losses import training_loss
from .metrics import choose_metric, metric_function
from .open_set import fit_open_set, leave_out
from .samplers import make_sampler
from .token_batches import STRATEGY as TOKEN_BUDGET
from .trainer import ClassificationTrainer

logger = logging.get_logger(__name__)
BATCHES_PER_STEP = "batches per step (processes x gradient_accumulation_steps)"


def run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    tuning: TuningArguments,
    arguments: TrainingArguments,
    *,
    splits: dict | None = None,
    label_names: tuple[str, ...] | None = None,
):
    """
    Trains, evaluates and writes the output folder.

    Args:
        splits: split -> examples, instead of those that the recipe names
        label_names: the classes in their order, instead of those of the training split

    Raises:
        InputError: bad input, wherever possible before the training starts.
    """
    if splits is None:
        model_arguments.divide_like_sweep(data_arguments)
    checkpoint = check_output_folder(arguments)
    check_hub(arguments)
    set_seed(arguments.seed)
    stored_config = load_config(model_arguments)
    extractor = load_feature_extractor(model_arguments, data_arguments)
    if data_arguments.streaming:
        check_streaming(data_arguments, augmentation, tuning, arguments)
        splits, unknown, labels = open_streamed_splits(data_arguments, stored_config, arguments, checkpoint is not None)
    else:
        splits, unknown, labels = open_splits(splits, label_names, data_arguments, stored_config, arguments)
    datasets = make_datasets(splits, extractor, labels, data_arguments, augmentation, arguments)
    model = load_model(model_arguments, stored_config, labels)
    extractor = complete_datasets(datasets, model, extractor, data_arguments, arguments)
    model.config.padding_value = extractor.padding_value
    stored = {split: data for split, data in splits.items() if not isinstance(data, LabelledStream)}
    circumstances = reproduction.circumstances(stored, arguments)
    order = choose_order(data_arguments, arguments)
    order["stream"] = describe_stream(splits["train"], data_arguments) if data_arguments.streaming else None
    facts = check_resumption(checkpoint, circumstances.get("data", {}), order, model, extractor, tuning)
    starting_weights = reporting.layer_weights(model)
    trainer = make_trainer(model, extractor, datasets, labels, tuning, arguments)
    trainer.data_facts = facts
    trainer.train(resume_from_checkpoint=checkpoint)
    if data_arguments.streaming:  # early stopping ends it sooner, and other batches may have gone before
        datasets["train"].num_clips = datasets["train"].num_delivered(trainer.state.global_step, arguments)
        if trainer.is_world_process_zero():
            datasets["train"].log.warn()
    outcomes = trainer.predict_held_out(datasets)
    calibration = calibrate(model.config, outcomes, labels) if arguments.calibrate else None
    if calibration is not None:  # metrics of decisions depend on the thresholds
        for split, outcome in outcomes.items():
            metrics = trainer.compute_metrics(outcome)
            outcome.metrics.update({f"{split}_{name}": value for name, value in metrics.items()})
    open_set = None
    if arguments.open_set and labels.is_single and not (data_arguments.streaming or trainer.is_sharded):
        open_set = fit_open_set(trainer, datasets, unknown, outcomes)
    recipe = {"task": "classification"} | outputs.describe_recipe(model_arguments, data_arguments, augmentation, tuning)
    recipe["TrainingArguments"] = arguments.as_given()
    finished = FinishedRun(trainer.model, trainer.processing_class, arguments, datasets, labels, outcomes, recipe)
    reporting.write_outputs(finished, trainer, starting_weights, circumstances, calibration, open_set)
    trainer.push_to_hub()


def choose_order(data_arguments: DataArguments, arguments: TrainingArguments) -> dict:
    """Returns the settings that decide the order of the training clips. Streams count clips, and not steps."""
    seeds = {name: getattr(arguments, name) for name in SEEDS}
    if data_arguments.streaming:
        return seeds
    if arguments.train_sampling_strategy != TOKEN_BUDGET:
        return order_of(arguments)
    batches = arguments.world_size * arguments.gradient_accumulation_steps
    return seeds | {"tokens_per_batch": arguments.tokens_per_batch, BATCHES_PER_STEP: batches}


def open_splits(
    splits: dict | None, label_names, data_arguments: DataArguments, stored_config, arguments: TrainingArguments
) -> tuple[dict, Dataset | None, LabelSet]:
    """Returns the readable clips of all splits, those of unknown classes, and the label set; arguments as for `run`."""
    named = ()
    if splits is None:
        splits = load_splits(data_arguments)
        named = tuple(splits)
        warn_of_repeats(splits)
    splits, unknown = screen(splits, data_arguments, arguments.output_dir), None
    if data_arguments.unknown_classes:
        splits, unknown = leave_out(splits, data_arguments.unknown_classes)
        unknown = sample_splits({"unknown": unknown}, data_arguments, arguments.seed)["unknown"]
    labels = choose_labels(splits["train"]["label"], data_arguments, stored_config, label_names)
    stratify = divides_by_class(labels, splits["train"]["label"])
    splits = complete_splits(splits, data_arguments, stratify, data_arguments.seed_of_splits(arguments.seed))
    splits = sample_splits(splits, data_arguments, arguments.seed)
    if stored_config is not None:
        warn_of_learnt_clips(stored_config.name_or_path, splits, named)
    return splits, unknown, labels


def open_streamed_splits(
    data_arguments: DataArguments, stored_config, arguments: TrainingArguments, goes_on: bool
) -> tuple[dict, None, LabelSet]:
    """Returns what `open_splits` does, with the training clips as a stream."""
    splits = open_streams(data_arguments)
    held_out = {split: data for split, data in splits.items() if split != "train"}
    splits |= screen(held_out, data_arguments, arguments.output_dir, goes_on=goes_on)
    return splits, None, choose_streamed_labels(splits["train"], data_arguments, stored_config)


def choose_labels(
    training_labels: list, data_arguments: DataArguments, stored_config, names: tuple[str, ...] | None = None
) -> LabelSet:
    """Returns the label set, in the order of a label file or of a fine-tuned checkpoint with the same classes."""
    if data_arguments.label_file:
        unknown = set(map(class_name, data_arguments.unknown_classes or ()))
        names = tuple(name for name in read_label_file(Path(data_arguments.label_file)).values() if name not in unknown)
    labels = find_labels(training_labels, data_arguments.problem_type, names)
    if stored_config is not None and set(stored_config.id2label.values()) == set(labels.names):
        stored = tuple(stored_config.id2label[index] for index in range(len(labels.names)))
        return LabelSet(stored, labels.problem_type)
    return labels


def choose_streamed_labels(stream: LabelledStream, data_arguments: DataArguments, stored_config) -> LabelSet:
    """
    Returns the label set of an unread stream, from a label file, the data set's description, or a checkpoint that was
    fine-tuned on it.

    Raises:
        InputError: no source names the classes.
    """
    names = stream.class_names()
    if names is None and not data_arguments.label_file and data_arguments.problem_type != "regression":
        if stored_config is None or stored_config.label2id == PretrainedConfig().label2id:
            raise InputError(
                f"label_file: is not set, and the stream {stream.name} does not know its classes before it is read; "
                "name a file with a class per line"
            )
        names = tuple(stored_config.id2label[index] for index in range(stored_config.num_labels))
    problem_type = data_arguments.problem_type or "single_label_classification"
    known = list(read_label_file(Path(data_arguments.label_file)).values()) if data_arguments.label_file else names
    labels = [[name] for name in known or ()]
    return choose_labels(labels, dataclasses.replace(data_arguments, problem_type=problem_type), stored_config)


def make_datasets(
    splits: dict, extractor, labels: LabelSet, data_arguments: DataArguments, augmentation, arguments: TrainingArguments
) -> dict[str, ClipDataset | LabelledClipStream]:
    """Returns the examples of each split, those of the training augmented; checks their labels."""
    datasets = {
        split: ClipDataset(
            data,
            extractor,
            labels,
            augmentation if split == "train" else None,
            arguments.seed,
            on_device=arguments.features_on_device,
        )
        for split, data in splits.items()
    }
    if data_arguments.streaming:
        datasets["train"] = LabelledClipStream(splits["train"], datasets["train"], data_arguments, arguments)
    for dataset in datasets.values():  # before the training, not after the first epoch
        dataset.check_labels()
    return datasets


def complete_datasets(
    datasets: dict, model: PreTrainedModel, extractor, data_arguments: DataArguments, arguments: TrainingArguments
) -> SpectrogramFeatureExtractor:
    """
    Opens the decoded clips, computes the statistics of the features if the recipe asks for these, and sets the windows
    of the evaluations; returns the feature extractor.
    """
    if data_arguments.decoded_cache is not None:
        cache = DecodedCache(data_arguments.decoded_cache, extractor.sampling_rate, reports=arguments.should_log)
        for split, dataset in datasets.items():
            dataset.decoded = cache.open(split, dataset.examples)
    if data_arguments.compute_statistics:
        extractor = with_statistics(extractor, datasets)
    windows = choose_windows(model.base_model, extractor, data_arguments)
    for dataset in datasets.values():
        dataset.windows = windows
    return extractor


def make_trainer(
    model: PreTrainedModel,
    extractor: SpectrogramFeatureExtractor,
    datasets: dict[str, ClipDataset],
    labels: LabelSet,
    tuning: TuningArguments,
    arguments: TrainingArguments,
) -> ClassificationTrainer:
    """
    Returns the trainer of the recipe, with metrics, model selection and early stopping.

    Raises:
        InputError: settings that do not fit the model or the labels.
    """
    if model.config.label_smoothing and not labels.is_single:
        logger.warning("label_smoothing: has no effect, for it needs one label per clip")
    if "validation" not in datasets:
        arguments.eval_strategy, arguments.eval_on_start, arguments.load_best_model_at_end = "no", False, False
    choose_metric(arguments, labels.problem_type)
    return ClassificationTrainer(
        model=prepare(model, tuning),
        args=arguments,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("validation"),
        data_collator=Collator(extractor),
        processing_class=extractor,
        compute_metrics=metric_function(labels.problem_type, model.config),
        callbacks=[datasets["train"].callback(), *early_stopping(arguments)],
        tuning=tuning,
        training_loss=training_loss(tuning, labels, datasets["train"], model.config.label_smoothing),
        sampler=make_sampler(tuning, labels, datasets["train"], arguments, model.config),
    )
