"""What a finished run leaves in its folder: model, results, predictions, pictures and a model card."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pandas
import torch
from sklearn.metrics import ConfusionMatrixDisplay, classification_report

from model_cards.card import classifier_card, with_interval
from modeling_dual_ssast.classifier_dual_ssast import labels_of_probabilities

from ..base.reproduction import versions
from ..data.audio import audio_seconds
from ..data.augmentation import AugmentationArguments
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..data.sources import audio_of
from ..errors import InputError
from ..recipe import ModelArguments, TuningArguments
from .calibration import describe_calibration, plot_calibration, probabilities
from .confidence_intervals import confidence_intervals
from .html_report import write_report

matplotlib.use("Agg")
from matplotlib import pyplot

STAGING_NAME = "unfinished-outputs"
# Only where a split was held out, where the layers' weights are learned, where probabilities were calibrated, and where
# `html_report` is on.
OPTIONAL_OUTPUTS = (
    "predictions.csv",
    "confusion_matrix.png",
    "reconstruction.png",
    "layer_weights.png",
    "calibration.png",
    "report.html",
    "adapter",  # of LoRA
)
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


def write_results(results: dict, folder: Path):
    """`results.json`, with null for what is not defined."""
    text = json.dumps(_without_nan(results), indent=2, default=str)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def publish(staging: Path, folder: Path):
    """Moves complete outputs to their place, `results.json` last; optional ones of an earlier run go."""
    for name in OPTIONAL_OUTPUTS:
        if not (staging / name).exists():
            _remove(folder / name)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "results.json"):
        if path.is_dir():  # a folder cannot take the place of another one
            _remove(folder / path.name)
        os.replace(path, folder / path.name)
    shutil.rmtree(staging)


def _remove(path: Path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def fingerprint(names: list[str]) -> str:
    """A short text that other clips, or another order of them, would change."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def describe_recipe(*parts) -> dict[str, dict]:
    """Argument class -> its values."""
    return {type(part).__name__: dataclasses.asdict(part) for part in parts}


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


def score_table(
    files: list[str], labels: LabelSet, scores: np.ndarray, thresholds: list[float] | None = None
) -> pandas.DataFrame:
    """One row per clip: file, prediction, and a probability per class (or the number). scores: (files, labels)"""
    prefix = "" if labels.problem_type == "regression" else "probability_"
    table = pandas.DataFrame(scores, columns=[f"{prefix}{name}" for name in labels.names])
    table.insert(0, "file", files)
    predictions = labels_of_probabilities(torch.from_numpy(scores), labels.names, labels.problem_type, thresholds)
    table.insert(1, "prediction", [_as_text(prediction) for prediction in predictions])
    return table


def write_predictions(
    dataset: ClipDataset, labels: LabelSet, scores: np.ndarray, path: Path, thresholds: list[float] | None = None
):
    """The score table of a split as a CSV, with the column `label` beside the prediction."""
    table = score_table(dataset.names(), labels, scores, thresholds)
    table.insert(1, "label", [_as_text(label) for label in dataset.examples["label"]])
    table.to_csv(path, index=False)


def plot_learning_curves(log: list[dict], path: Path):
    """Losses and metrics over the epochs."""
    metrics = sorted({key for entry in log for key in entry if key.startswith("eval_") and _is_metric(key)})
    figure, (losses, scores) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for key, name in (("loss", "training"), ("eval_loss", "validation")):
        losses.plot(*_curve(log, key), marker=".", label=name)
    for key in metrics:
        scores.plot(*_curve(log, key), marker=".", label=key.removeprefix("eval_").replace("_", " "))
    for axes, title in ((losses, "loss"), (scores, "validation metrics")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.has_data() and axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_layer_weights(weights: dict[int, float], starting_weights: dict[int, float] | None, path: Path):
    """A bar per fused layer, in the order of the layers, and what it started from as a dashed line."""
    layers = sorted(weights)
    figure, axes = pyplot.subplots(figsize=(max(4.0, 0.5 * len(layers) + 2), 4), layout="constrained")
    axes.bar(range(len(layers)), [weights[layer] for layer in layers], width=0.8)
    if starting_weights is not None:
        heights = [starting_weights[layer] for layer in layers]
        edges = [index - 0.5 for index in range(len(layers) + 1)]
        axes.stairs(heights, edges, baseline=None, color="black", linestyle="--", label="before training")
        axes.legend()
    axes.set(title="learned weights of the layers", xlabel="layer (0: patch embedding)", ylabel="weight")
    axes.set_xticks(range(len(layers)), layers)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_confusion(targets: np.ndarray, predictions: np.ndarray, labels: LabelSet, title: str, path: Path):
    """Counts of labels against predictions."""
    size = max(4.0, 0.45 * len(labels.names) + 2.5)
    figure, axes = pyplot.subplots(figsize=(size, size), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        targets,
        predictions,
        labels=list(range(len(labels.names))),
        display_labels=labels.names,
        cmap="Blues",
        colorbar=False,
        xticks_rotation=45 if len(labels.names) < 15 else 90,
        include_values=len(labels.names) <= 40,
        ax=axes,
    )
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


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
    return Path(data["dataset_name"] or Path(data["train_file"] or data["test_file"]).parent).resolve().name


def clean_metrics(metrics: dict, split: str) -> dict[str, float]:
    """Without the prefix of the split and without the timings, which depend on the machine."""
    metrics = {key.removeprefix(f"{split}_"): value for key, value in metrics.items()}
    return {key: value for key, value in metrics.items() if _is_metric(key) or key == "loss"}


def _without_nan(value):
    """JSON has no NaN: a metric that is not defined becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_metric(key: str) -> bool:
    return not key.endswith(("runtime", "_per_second", "loss", "preparation_time"))


def _curve(log: list[dict], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
    return [x for x, _ in points], [y for _, y in points]


def _as_text(label) -> str:
    return ",".join(map(str, label)) if isinstance(label, (list, tuple)) else str(label)
