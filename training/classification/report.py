"""What a finished run leaves in its folder: model, results, predictions, pictures and a model card."""

import contextlib
import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.metrics import classification_report

from model_cards.card import classifier_card, with_interval

from ..base.arguments import ModelArguments
from ..base.reproduction import versions
from ..data.audio import audio_seconds
from ..data.augmentation import AugmentationArguments
from ..data.columns import audio_of
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..errors import InputError
from .arguments import TuningArguments
from .calibration import describe_calibration, probabilities
from .confidence_intervals import confidence_intervals
from .html_report import write_report
from .plots import plot_calibration

matplotlib.use("Agg")
from ..base.outputs import STAGING_NAME, publish, write_results
from .plots import _is_metric, plot_confusion, plot_layer_weights, plot_learning_curves
from .predictions import write_predictions

MEASURED_CLIPS = 1000  # whose lengths are looked up for the card
# Of a recipe, what the model card shows where it is not the default: names of their own would tell nothing to others.
SHOWN = (ModelArguments, TuningArguments, AugmentationArguments)
NOT_SHOWN = ("model_name_or_path", "from_sweep", "config_overrides", "background_folder", "attn_implementation")


def write_outputs(
    trainer,
    datasets: dict[str, ClipDataset],
    labels: LabelSet,
    outcomes: dict,
    recipe: dict,
    seconds: float,
    starting_weights: dict[int, float] | None = None,
    circumstances: dict | None = None,
    calibration: dict | None = None,
):
    """
    Writes the output folder. Every file is complete before it takes its place, and `results.json` comes last: until
    then the outputs of an earlier run stay. Called by every process; the main one writes.

    Args:
        outcomes: split -> Trainer's PredictionOutput, the test split last
        recipe: argument class -> its values
        seconds: of the training
        starting_weights: what `layer_weights` gave before the training
        circumstances: the entries `versions`, `machine` and `data` of `results.json`
        calibration: what `calibrate` gave
    """
    folder = Path(trainer.args.output_dir)
    staging = folder / STAGING_NAME
    trainer.save_model(str(staging), _internal_call=True)  # without the push that an ordinary call would make
    if not trainer.is_world_process_zero():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle with paths of this machine; results.json says it
    results = {
        **describe_outcomes(datasets, labels, outcomes),
        "training": {"seconds": seconds, "steps": trainer.state.global_step, "epochs": trainer.state.epoch}
        | trainer.num_parameters,
        "normalisation": {name: getattr(trainer.processing_class, name, None) for name in ("mean", "std")},
        **(circumstances or {"versions": versions()}),
        **describe_clips(datasets, labels, recipe["DataArguments"]),
        "recipe": recipe,
        "log": trainer.state.log_history,
    }
    plot_learning_curves(trainer.state.log_history, staging / "learning_curves.png")
    weights = layer_weights(trainer.model)
    if weights is not None:
        results["layer_weights"] = weights
        plot_layer_weights(weights, starting_weights, staging / "layer_weights.png")
    scores = None
    if outcomes:
        split, outcome = list(outcomes.items())[-1]
        found, scores = describe_split(split, datasets[split], labels, outcome, trainer.model.config, staging)
        results |= found
    if calibration is not None:
        results["calibration"] = calibration
        plot_calibration(calibration, split, labels, staging / "calibration.png")
    write_card(trainer, results, staging / "README.md")
    if trainer.args.html_report:
        name = data_name(results["recipe"]["DataArguments"])
        write_report(staging, trainer, datasets, labels, outcomes, results, scores, name)
    write_results(results, staging)
    publish(staging, folder)
    print_metrics(results)
    print(f"trained for {seconds:.0f} s; everything is in {folder}")


def write_evaluation(trainer, dataset: ClipDataset, labels: LabelSet, outcome, recipe: dict, circumstances: dict):
    """Writes what is known of a finished model on the clips of a test, as `write_outputs` does after a training."""
    folder = Path(trainer.args.output_dir)
    staging = folder / STAGING_NAME
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    config, outcomes, datasets = trainer.model.config, {"test": outcome}, {"test": dataset}
    results = {**describe_outcomes(datasets, labels, outcomes), **circumstances, "recipe": recipe}
    found, scores = describe_split("test", dataset, labels, outcome, config, staging)
    results |= found
    if labels.problem_type != "regression":
        results["calibration"] = describe_calibration(config, outcomes, labels)
        plot_calibration(results["calibration"], "test", labels, staging / "calibration.png")
    if trainer.args.html_report:
        name = data_name(recipe["EvaluationDataArguments"])
        write_report(staging, trainer, datasets, labels, outcomes, results, scores, name)
    write_results(results, staging)
    publish(staging, folder)
    print_metrics(results)
    print(f"everything is in {folder}")


def describe_outcomes(datasets: dict[str, ClipDataset], labels: LabelSet, outcomes: dict) -> dict:
    """The first entries of `results.json`, arguments as of `write_outputs`."""
    return {
        "metrics": {split: clean_metrics(outcome.metrics, split) for split, outcome in outcomes.items()},
        "clips": {split: dataset.num_clips for split, dataset in datasets.items()},
        "labels": list(labels.names),
        "problem_type": labels.problem_type,
    }


def describe_split(
    split: str, dataset: ClipDataset, labels: LabelSet, outcome, config, staging: Path
) -> tuple[dict, np.ndarray]:
    """
    Writes the predictions and the pictures of a split, from Trainer's PredictionOutput.

    Returns:
        entries of `results.json`; and the probabilities, or numbers (clips, labels)
    """
    scores = probabilities(outcome.predictions, labels.problem_type, config.calibration_temperature)
    targets, thresholds = outcome.label_ids, config.decision_thresholds
    write_predictions(dataset, labels, scores, staging / "predictions.csv", thresholds)
    found = {"confidence_intervals": intervals(dataset, labels, scores, targets, thresholds)}
    if labels.problem_type == "single_label_classification":
        predictions = scores.argmax(axis=1)
        found["per_class"] = per_class(targets, predictions, labels)
        plot_confusion(targets, predictions, labels, f"{split} split", staging / "confusion_matrix.png")
    elif labels.problem_type == "multi_label_classification":
        found["per_class"] = per_class(targets > 0.5, scores > (0.5 if thresholds is None else thresholds), labels)
    return found, scores


def print_metrics(results: dict):
    """A line per split; with intervals where they are known."""
    last = list(results["metrics"])[-1:]
    for name, metrics in results["metrics"].items():
        found = results.get("confidence_intervals") if name in last else None
        print(f"{name}: " + ", ".join(f"{key} {with_interval(key, value, found)}" for key, value in metrics.items()))


def intervals(
    dataset: ClipDataset, labels: LabelSet, scores: np.ndarray, targets: np.ndarray, thresholds: list[float] | None
) -> dict | None:
    """Confidence intervals of the metrics of a split; by group where its clips have one. scores: (clips, labels)"""
    if labels.problem_type == "single_label_classification":
        predictions = scores.argmax(axis=1)
    else:
        predictions = scores if labels.problem_type == "multi_label_classification" else scores[:, 0]
    groups = dataset.examples["group"][:] if "group" in dataset.examples.column_names else None
    return confidence_intervals(predictions, targets, labels.problem_type, thresholds, groups)


def per_class(targets: np.ndarray, predictions: np.ndarray, labels: LabelSet) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of clips of every class, of indices (clips,) or booleans (clips, labels)."""
    indices = list(range(len(labels.names)))
    report = classification_report(
        targets, predictions, labels=indices, target_names=labels.names, output_dict=True, zero_division=0
    )
    return {name: report[name] for name in labels.names}


def layer_weights(model) -> dict[int, float] | None:
    """Fused layer -> its share of the fused vector, where `fusion` is `weighted`; they sum to one."""
    config = model.config
    if getattr(config, "fusion", None) != "weighted":
        return None
    fusion = model.base_model.fusion.fusion
    with torch.no_grad():  # unit vectors come out as what the model weighs them by
        weights = fusion(list(torch.eye(len(config.fused_layers), device=fusion.layer_weights.device)))
    return dict(zip(config.fused_layers, weights.tolist()))


def write_card(trainer, results: dict, path: Path):
    """The model card, from the template and the run's own figures."""
    recipe = results["recipe"]
    card = classifier_card(
        Path(trainer.args.output_dir).resolve().name,
        trainer.model.config,
        trainer.processing_class,
        results,
        dataset_name=data_name(recipe["DataArguments"]),
        num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        settings=chosen_settings(recipe),
    )
    path.write_text(str(card), encoding="utf-8")


def chosen_settings(recipe: dict) -> dict:
    """What a recipe sets of model, tuning and augmentation, without what is the default anyway."""
    chosen = {}
    for part in SHOWN:
        for field in dataclasses.fields(part):
            value = recipe[part.__name__][field.name]
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if field.name not in NOT_SHOWN and value not in (None, default):
                chosen[field.name] = value
    return chosen


def describe_clips(datasets: dict[str, ClipDataset], labels: LabelSet, data: dict) -> dict:
    """
    Entries of `results.json` on what was heard: `clip_seconds` and `clips_per_class` by split (or `label_range` of the
    training labels), and `groups` of the split that is reported. What a stream does not tell beforehand is left out.

    Args:
        data: the recipe's `DataArguments`
    """
    splits = {split: dataset for split, dataset in datasets.items() if isinstance(dataset, ClipDataset)}
    found = {"clip_seconds": {split: clip_seconds(dataset) for split, dataset in splits.items()}}
    if labels.problem_type != "regression":
        found["clips_per_class"] = {split: clips_per_class(dataset, labels) for split, dataset in splits.items()}
    elif "train" in splits:
        values = [float(value) for value in splits["train"].examples["label"]]
        found["label_range"] = [min(values), max(values)]
    tested = "test" if "test" in datasets else "validation"
    sides = [set(splits[name].examples["group"]) for name in ("train", tested) if has_groups(splits.get(name))]
    if len(sides) == 2:
        found["groups"] = {
            "column": data["group_column"] or "group",
            "count": len(sides[1]),
            "shared": len(sides[0] & sides[1]),
        }
    return found


def has_groups(dataset: ClipDataset | None) -> bool:
    return dataset is not None and "group" in dataset.examples.column_names


def clip_seconds(dataset: ClipDataset) -> dict[str, float]:
    """Of the shortest, the median and the longest clip, from the headers of at most `MEASURED_CLIPS` of them."""
    seconds = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, MEASURED_CLIPS).astype(int)):
        with contextlib.suppress(InputError):  # a card is no reason to lose a finished training
            seconds.append(audio_seconds(audio_of(dataset.examples[int(index)])))
    if not seconds:
        return {}
    return {"shortest": min(seconds), "median": float(np.median(seconds)), "longest": max(seconds)}


def clips_per_class(dataset: ClipDataset, labels: LabelSet) -> dict[str, int]:
    counts = Counter()
    for label in dataset.examples["label"]:
        counts.update(label if isinstance(label, (list, tuple)) else [str(label)])
    return {name: counts[name] for name in labels.names}


def data_name(data: dict) -> str:
    """What to call the data set of a recipe's `DataArguments`."""
    return Path(data["dataset_name"] or Path(data.get("train_file") or data["test_file"]).parent).resolve().name


def clean_metrics(metrics: dict, split: str) -> dict[str, float]:
    """Without the prefix of the split and without the timings, which depend on the machine."""
    metrics = {key.removeprefix(f"{split}_"): value for key, value in metrics.items()}
    return {key: value for key, value in metrics.items() if _is_metric(key) or key == "loss"}
