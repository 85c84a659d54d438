"""Runs the task `detection`: trains a frame classifier on annotated recordings, and reports."""

import numpy as np
import torch
from transformers import AutoModelForAudioFrameClassification, PreTrainedModel, set_seed

from modeling_dual_ssast.configuration_dual_ssast import WINDOW_SETTINGS

from ..base import outputs, reproduction
from ..base.arguments import ModelArguments
from ..base.label_frames import FrameGrid, frame_grid
from ..base.loading import load_config, load_feature_extractor, load_model, with_statistics
from ..base.outputs import check_output_folder
from ..base.push_to_hub import check_hub
from ..base.resumption import order_of, stored_facts
from ..base.trainer import early_stopping
from ..base.tuning import check_resumption, prepare
from ..data.augmentation import AugmentationArguments
from ..data.labels import LabelSet
from ..errors import InputError
from . import report as reporting
from .arguments import DetectionDataArguments, DetectionTrainingArguments, DetectionTuningArguments
from .crops import CropDataset, CropDrawer, FrameCollator, FrameCounter, WindowDataset
from .metrics import choose_metric
from .postprocessing import choose_settings
from .recordings import Stretch, WeakClips, choose_labels, encode, load_splits, load_weak, with_known_labels
from .trainer import DetectionTrainer, FrameLoss

CROP_SETTINGS = ("crop_s", "crops_per_epoch", "event_share", "weak_share")  # and `sampler`, which the tuning holds


def run(
    model_arguments: ModelArguments,
    data_arguments: DetectionDataArguments,
    augmentation: AugmentationArguments,
    tuning: DetectionTuningArguments,
    arguments: DetectionTrainingArguments,
):
    """
    Trains, evaluates and writes the output folder.

    Raises:
        InputError: bad input, wherever possible before the training starts.
    """
    checkpoint = check_output_folder(arguments)
    check_hub(arguments)
    set_seed(arguments.seed)
    stored_config = load_config(model_arguments)
    extractor = load_feature_extractor(model_arguments, data_arguments)
    splits = load_splits(data_arguments, arguments.seed)
    labels = choose_labels(splits, data_arguments, stored_config)
    splits = {split: with_known_labels(split, own, labels) for split, own in splits.items()}
    model = load_model(model_arguments, stored_config, labels, AutoModelForAudioFrameClassification)
    datasets = make_datasets(model, extractor, splits, labels, data_arguments, augmentation, tuning, arguments)
    if data_arguments.compute_statistics:
        extractor = with_statistics(extractor, datasets)
    model.config.padding_value = extractor.padding_value
    circumstances = reproduction.circumstances(described(splits, datasets["train"].weak), arguments)
    order = order_of(arguments)
    crops = {name: getattr(data_arguments, name) for name in CROP_SETTINGS}
    crops["crops"] = datasets["train"].facts()
    is_same = checkpoint is not None and stored_facts(checkpoint).get("crops") == crops["crops"]
    order |= {} if is_same else crops  # other settings may make the same crops
    facts = check_resumption(checkpoint, circumstances.get("data", {}), order, model, extractor, tuning)
    trainer = make_trainer(model, extractor, datasets, tuning, arguments)
    trainer.data_facts = facts | crops
    trainer.train(resume_from_checkpoint=checkpoint)
    outcomes = trainer.predict_held_out(datasets)
    keep_windows(trainer.model.config, data_arguments)
    if arguments.choose_postprocessing and "validation" in outcomes:
        choose_postprocessing(trainer, datasets, outcomes)
    recipe = {"task": "detection"} | outputs.describe_recipe(model_arguments, data_arguments, augmentation, tuning)
    recipe["TrainingArguments"] = arguments.as_given()
    reporting.write_outputs(trainer, datasets, splits, labels, outcomes, recipe, circumstances)
    trainer.push_to_hub()


def make_datasets(
    model: PreTrainedModel,
    extractor,
    splits: dict[str, list[Stretch]],
    labels: LabelSet,
    data_arguments: DetectionDataArguments,
    augmentation: AugmentationArguments,
    tuning: DetectionTuningArguments,
    arguments: DetectionTrainingArguments,
) -> dict[str, CropDataset | WindowDataset]:
    """
    Returns the crops of the training split, and the windows of the others.

    Raises:
        InputError: crops or windows that the model does not take.
    """
    recordings = {split: encode(own, labels, extractor.sampling_rate) for split, own in splits.items()}
    crop_grid = _grid("crop_s", model, extractor, data_arguments.crop_s)
    grid = frame_grid(model, extractor, data_arguments.window_s, data_arguments.hop_s)
    weak = load_weak(data_arguments, labels, splits, crop_grid.length / extractor.sampling_rate)
    total = sum(one.num_samples for one in recordings["train"])
    num_crops = data_arguments.crops_per_epoch or max(-(-total // crop_grid.length), 1)
    num_weak = 0 if weak is None else round(data_arguments.weak_share * num_crops)
    drawer = CropDrawer(
        recordings["train"],
        crop_grid.length,
        num_crops - num_weak,
        data_arguments.event_share,
        tuning.sampler == "balanced",
    )
    datasets = {
        "train": CropDataset(
            recordings["train"],
            extractor,
            labels,
            crop_grid,
            FrameCounter(model, extractor, crop_grid),
            drawer,
            augmentation,
            arguments.seed,
            weak,
            num_weak,
            arguments.features_on_device,
        )
    }
    counter = FrameCounter(model, extractor, grid)
    for split in recordings.keys() - {"train"}:
        datasets[split] = WindowDataset(
            recordings[split], extractor, labels, grid, counter, splits[split], arguments.features_on_device
        )
    return datasets


def _grid(option: str, model, extractor, seconds: float | None) -> FrameGrid:
    try:
        return frame_grid(model, extractor, seconds)
    except InputError as error:
        raise InputError(str(error).replace("window_s", option)) from None


def make_trainer(
    model: PreTrainedModel,
    extractor,
    datasets: dict[str, CropDataset | WindowDataset],
    tuning: DetectionTuningArguments,
    arguments: DetectionTrainingArguments,
) -> DetectionTrainer:
    """
    Returns the trainer of the recipe, with metrics, model selection and early stopping.

    Raises:
        InputError: settings that do not fit the model.
    """
    if "validation" not in datasets:
        arguments.eval_strategy, arguments.eval_on_start, arguments.load_best_model_at_end = "no", False, False
    choose_metric(arguments)
    return DetectionTrainer(
        model=prepare(model, tuning),
        args=arguments,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("validation"),
        data_collator=FrameCollator(extractor),
        processing_class=extractor,
        callbacks=[datasets["train"].callback(), *early_stopping(arguments)],
        tuning=tuning,
        frame_loss=make_loss(tuning, datasets["train"]),
        weak_weight=tuning.weak_weight,
        collar_s=arguments.onset_collar_s,
    )


def make_loss(tuning: DetectionTuningArguments, dataset: CropDataset) -> FrameLoss:
    """Returns the loss of the recipe; balanced weights are negative over positive time of the training recordings."""
    weights = None
    if tuning.class_weights == "balanced":
        total = sum(one.num_samples for one in dataset.examples)
        positive = np.zeros(len(dataset.labels.names))
        for one in dataset.examples:
            known = one.labels >= 0
            np.add.at(positive, one.labels[known], np.diff(one.intervals[known], axis=1)[:, 0])
        positive = np.clip(positive, 0, total)
        weights = np.where(positive > 0, (total - positive) / np.maximum(positive, 1.0), 1.0)
        weights = torch.from_numpy(weights.astype(np.float32))
    return FrameLoss(weights, tuning.focal_gamma if tuning.loss == "focal" else 0.0)


def keep_windows(config, data_arguments: DetectionDataArguments):
    """
    Stores the windows of the evaluations in the model's `event_detection`, as far as the recipe or the model sets them:
    in others `predict_hf.py` would find other events. Which ones these are is what `frame_grid` decides.
    """
    own = config.event_detection or {}
    sizes = {name: getattr(data_arguments, name) for name in WINDOW_SETTINGS}
    if sizes["window_s"] is None:
        sizes = {name: own.get(name) if value is None else value for name, value in sizes.items()}
    others = {name: value for name, value in own.items() if name not in WINDOW_SETTINGS}
    config.event_detection = others | {name: value for name, value in sizes.items() if value is not None} or None


def choose_postprocessing(trainer: DetectionTrainer, datasets: dict, outcomes: dict):
    """Sets the model's `event_detection` by the validation split, and the metrics that follow from it."""
    dataset = datasets["validation"]
    scores = trainer.scores_of(dataset, outcomes["validation"].predictions)
    edges_s = [dataset.edges_s(index) for index in range(len(scores))]
    names, metric = dataset.labels.names, trainer.args.postprocessing_metric
    settings = choose_settings(scores, edges_s, dataset.stretches, names, trainer.collar_s, metric)
    if settings is None:
        return
    config = trainer.model.config
    sizes = {name: value for name, value in (config.event_detection or {}).items() if name in WINDOW_SETTINGS}
    config.event_detection = settings | sizes
    for split, outcome in outcomes.items():
        trainer.evaluated = datasets[split]
        outcome.metrics.update({f"{split}_{name}": value for name, value in trainer.metrics_of(outcome).items()})


def described(splits: dict[str, list[Stretch]], weak: WeakClips | None) -> dict[str, list[dict]]:
    """Returns what `describe_data` reads: recordings with their events as labels, and the weak clips."""
    found = {
        split: [{"audio": one.source, "label": [list(event) for event in (*one.events, *one.unsure)]} for one in own]
        for split, own in splits.items()
    }
    if weak is not None:
        found["weak"] = [{"audio": clip, "label": row.tolist()} for clip, row in zip(weak.sources, weak.labels)]
    return found
