"""The task `classification`: fine-tunes any model, or trains a Dual SSAST from random weights, and reports on it."""

import time
import uuid
from pathlib import Path

import evaluate
import numpy as np
from transformers import AutoModelForAudioClassification, PreTrainedModel, set_seed
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTConfig
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from modeling_dual_ssast.feature_extraction_dual_ssast import SpectrogramFeatureExtractor

from . import reporting
from .arguments import DataArguments, ModelArguments, TrainingArguments, check_output_folder
from .audio import read_audio
from .augmentation import AugmentationArguments
from .dataset import ClipDataset, Collator, EpochCallback
from .errors import InputError
from .labels import LabelSet, find_labels, read_label_file
from .loading import (
    check_same_run,
    check_weights,
    compute_statistics,
    config_changes,
    load_config,
    load_feature_extractor,
    mismatched,
)
from .splits import check_files, complete_splits, load_splits, warn_of_repeats
from .trainer import AudioTrainer, early_stopping

logger = logging.get_logger(__name__)

# What a checkpoint may lack: what fuses layers, and classifiers.
NEW_WEIGHTS = (
    "classifier.", "dual_ssast.fusion.", "composed_classifier.", "audioset_classifier.", "panns_cnn14.embedding.",
)  # fmt: skip
METRICS = Path(__file__).parent / "metrics" / "audio_classification"
# The metrics of each kind of problem and whether more is better; the first one chooses the best checkpoint.
DIRECTIONS = {
    "single_label_classification": {"accuracy": True, "unweighted_average_recall": True, "macro_f1": True},
    "multi_label_classification": {"mean_average_precision": True, "mean_auc": True},
    "regression": {"mean_squared_error": False, "mean_absolute_error": False, "r2": True},
}


def run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
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
        InputError: bad input, told before training starts wherever it can be known by then.
    """
    checkpoint = check_output_folder(arguments)
    set_seed(arguments.seed)
    if splits is None:
        splits = load_splits(data_arguments)
        warn_of_repeats(splits)
    stored_config = load_config(model_arguments)
    extractor = load_feature_extractor(model_arguments, data_arguments)
    if data_arguments.check_samples:
        check_files(splits, lambda source: read_audio(source, extractor.sampling_rate))
    elif data_arguments.check_files:
        check_files(splits)
    labels = choose_labels(splits["train"]["label"], data_arguments, stored_config, label_names)
    is_single = labels.problem_type == "single_label_classification"
    splits = complete_splits(splits, data_arguments, stratify=is_single, seed=arguments.seed)
    datasets = {
        split: ClipDataset(data, extractor, labels, augmentation if split == "train" else None, arguments.seed)
        for split, data in splits.items()
    }
    for dataset in datasets.values():  # a label outside the label set is told now, not after the first epoch
        dataset.check_labels()
    model = load_model(model_arguments, stored_config, labels)
    if data_arguments.compute_statistics:
        waveforms = map(datasets["train"].waveform, range(len(datasets["train"])))
        extractor = compute_statistics(waveforms, len(datasets["train"]), extractor)
        for dataset in datasets.values():
            dataset.feature_extractor = extractor
    model.config.padding_value = extractor.padding_value
    windows = choose_windows(model.base_model, extractor, data_arguments)
    for dataset in datasets.values():
        dataset.windows = windows
    if checkpoint is not None:
        check_same_run(checkpoint, model.config)
    trainer = make_trainer(model, extractor, datasets, labels, arguments)
    if checkpoint is None:
        trainer.remove_checkpoints()
    starting_weights = reporting.layer_weights(model)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    outcomes = {
        split: trainer.predict(datasets[split], metric_key_prefix=split)
        for split in ("validation", "test")
        if split in datasets
    }
    recipe = {"task": "classification"} | reporting.describe_recipe(model_arguments, data_arguments, augmentation)
    recipe["TrainingArguments"] = arguments.to_dict()
    reporting.write_outputs(trainer, datasets, labels, outcomes, recipe, seconds, starting_weights)


def choose_windows(encoder, extractor, data_arguments: DataArguments) -> tuple[int, int]:
    """
    Window and hop of the evaluation, in samples.

    Raises:
        InputError: a window that the model cannot hear at once, or a hop that skips audio.
    """
    try:
        return window_and_hop(encoder, extractor, data_arguments.window_s, data_arguments.hop_s)
    except ValueError as error:
        raise InputError(str(error)) from error


def choose_labels(
    training_labels: list, data_arguments: DataArguments, stored_config, names: tuple[str, ...] | None = None
) -> LabelSet:
    """The label set, in the order of a label file or of a fine-tuned checkpoint that has the same classes."""
    if data_arguments.label_file:
        names = tuple(read_label_file(Path(data_arguments.label_file)).values())
    labels = find_labels(training_labels, data_arguments.problem_type, names)
    if stored_config is not None and set(stored_config.id2label.values()) == set(labels.names):
        stored = tuple(stored_config.id2label[index] for index in range(len(labels.names)))
        return LabelSet(stored, labels.problem_type)
    return labels


def load_model(model_arguments: ModelArguments, stored_config, labels: LabelSet) -> PreTrainedModel:
    """The classifier: the checkpoint's weights with the recipe's changes, or a Dual SSAST with random weights."""
    config = DualSSASTConfig() if stored_config is None else stored_config
    overrides = config_changes(model_arguments, config) | {
        "id2label": labels.id2label,
        "label2id": labels.label2id,
        "problem_type": labels.problem_type,
    }
    try:
        if stored_config is None:
            attention = overrides.pop("attn_implementation", None)
            return AutoModelForAudioClassification.from_config(
                DualSSASTConfig(**overrides), **({"attn_implementation": attention} if attention else {})
            )
        model, report = AutoModelForAudioClassification.from_pretrained(
            model_arguments.model_name_or_path, ignore_mismatched_sizes=True, output_loading_info=True, **overrides
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"model: {error}") from error
    new = mismatched(report) | set(report["missing_keys"])
    check_weights(model_arguments, {key for key in new if not key.startswith(NEW_WEIGHTS)})
    if getattr(stored_config, "fused_layers", None) != model.config.fused_layers and hasattr(
        model.base_model, "fusion"
    ):
        model.base_model.reset_fusion()  # what was learned of other layers
    if stored_config.id2label != labels.id2label and not new:  # as many classes, but others
        logger.warning("The checkpoint's classifier knows other classes: a new one takes its place.")
        model.reset_classifier()
    return model


def make_trainer(
    model: PreTrainedModel,
    extractor: SpectrogramFeatureExtractor,
    datasets: dict[str, ClipDataset],
    labels: LabelSet,
    arguments: TrainingArguments,
) -> AudioTrainer:
    """The trainer with metrics, model selection and early stopping."""
    if "validation" not in datasets:
        arguments.eval_strategy, arguments.eval_on_start, arguments.load_best_model_at_end = "no", False, False
    choose_metric(arguments, labels.problem_type)
    return AudioTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("validation"),
        data_collator=Collator(extractor),
        processing_class=extractor,
        compute_metrics=metric_function(labels.problem_type),
        callbacks=[EpochCallback(datasets["train"]), *early_stopping(arguments)],
    )


def choose_metric(arguments: TrainingArguments, problem_type: str):
    """
    Sets which metric chooses the best checkpoint, and whether more of it is better.

    Raises:
        InputError: a metric that this kind of problem does not have.
    """
    directions = DIRECTIONS[problem_type] | {"loss": False}
    name = (arguments.chosen_metric or next(iter(directions))).removeprefix("eval_")
    if name not in directions:
        raise InputError(f"metric_for_best_model: {name!r} is unknown; known are {', '.join(directions)}")
    direction = arguments.chosen_direction
    arguments.metric_for_best_model = name
    arguments.greater_is_better = directions[name] if direction is None else direction


def metric_function(problem_type: str):
    """What Trainer calls with the logits and labels of a whole split."""
    metric = evaluate.load(str(METRICS), problem_type, experiment_id=uuid.uuid4().hex, keep_in_memory=True)

    def compute(prediction) -> dict[str, float]:
        return metric.compute(
            predictions=predictions_from_logits(prediction.predictions, problem_type), references=prediction.label_ids
        )

    return compute


def predictions_from_logits(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """(clips, labels) -> what the metric expects: class indices, scores per class, or numbers."""
    if problem_type == "single_label_classification":
        return logits.argmax(axis=-1)
    return (
        reporting.probabilities(logits, problem_type) if problem_type == "multi_label_classification" else logits[:, 0]
    )
