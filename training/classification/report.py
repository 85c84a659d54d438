"""Writes the output folder of a finished run: model, results, predictions, figures and the model card."""

import dataclasses
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from model_cards.card import classifier_card, with_interval

from ..base.arguments import ModelArguments
from ..base.clip_facts import describe_clips, has_groups
from ..base.open_set import SCORES, OpenSet
from ..base.outputs import STAGING_NAME, clean_metrics, dispensable, kept_epoch, new_staging, publish, write_results
from ..base.plots import MOST_NAMED, loss_note, plot_confusion, plot_learning_curves
from ..base.predictions import labelled_table
from ..data.augmentation import AugmentationArguments
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..files import write_csv
from ..recipe import default_of
from .arguments import TuningArguments
from .calibration import describe_calibration, probabilities
from .confidence_intervals import confidence_intervals
from .finished_run import FinishedRun
from .html_report import write_report
from .plots import confusion_table, plot_calibration, plot_layer_weights, plot_numbers
from .trainer import ClassificationTrainer

# Parts of a recipe whose changed settings the model card shows. Private names, such as paths, mean nothing to others.
SHOWN = (ModelArguments, TuningArguments, AugmentationArguments)
NOT_SHOWN = ("model_name_or_path", "from_sweep", "config_overrides", "background_folder", "attn_implementation")


def write_outputs(
    run: FinishedRun,
    trainer: ClassificationTrainer,
    starting_weights: dict[int, float] | None,
    circumstances: dict,
    calibration: dict | None,
    open_set: tuple[OpenSet, dict] | None,
):
    """
    Writes the output folder of a training. Every file is complete before it takes its place, and `results.json` comes
    last: until then the outputs of an earlier run stay. Called by every process; the main one writes.

    Args:
        trainer: that of the training
        starting_weights: `layer_weights` before the training
        circumstances: the entries `versions`, `machine` and `data` of `results.json`
        calibration: as `calibrate` returns it
        open_set: as `fit_open_set` returns it
    """
    staging = run.folder / STAGING_NAME
    if not trainer.save_outputs(staging):
        return
    results = {
        **describe_outcomes(run),
        "training": {"seconds": trainer.training_s, "steps": trainer.state.global_step, "epochs": trainer.state.epoch}
        | trainer.num_parameters,
        "normalisation": {name: getattr(trainer.processing_class, name, None) for name in ("mean", "std")},
        **circumstances,
        **describe_clips(run.datasets, run.labels, run.data["group_column"]),
        "recipe": run.recipe,
        "log": trainer.state.log_history,
    }
    note = loss_note(run.recipe["AugmentationArguments"] | run.recipe["TuningArguments"])
    curves = staging / "learning_curves.png"
    with dispensable(curves.name):
        plot_learning_curves(trainer.state.log_history, curves, run.figure_format, kept_epoch(trainer), note)
    weights = layer_weights(trainer.model)
    if weights is not None:
        results["layer_weights"] = weights
        with dispensable("layer_weights.png"):
            plot_layer_weights(weights, starting_weights, staging / "layer_weights.png", run.figure_format)
    scores = write_split(run, results, staging) if run.split else None
    if calibration is not None:
        results["calibration"] = calibration
        with dispensable("calibration.png"):
            plot_calibration(calibration, run.split, run.labels, staging / "calibration.png", run.figure_format)
    if open_set is not None:
        statistics, results["open_set"] = open_set
        statistics.save(trainer.model, staging)
    with dispensable("README.md"):
        write_card(run, results, staging / "README.md")
    finish(run, results, scores, staging)
    if calibration is not None:
        print_calibration(calibration)
    if open_set is not None:
        print_open_set(open_set[1])
    print(f"trained for {trainer.training_s:.0f} s; everything is in {run.folder}")


def write_evaluation(run: FinishedRun, circumstances: dict):
    """Writes the output folder of an evaluation, like `write_outputs`."""
    staging = new_staging(run.folder)
    results = {**describe_outcomes(run), **circumstances, "recipe": run.recipe}
    scores = write_split(run, results, staging)
    if not run.labels.is_regression:
        results["calibration"] = describe_calibration(run.config, run.outcomes, run.labels)
        calibration = staging / "calibration.png"
        with dispensable(calibration.name):
            plot_calibration(results["calibration"], run.split, run.labels, calibration, run.figure_format)
    finish(run, results, scores, staging)
    print(f"everything is in {run.folder}")


def finish(run: FinishedRun, results: dict, scores: np.ndarray | None, staging: Path):
    """Writes the page and `results.json`, moves all outputs to their place, and prints the metrics."""
    if run.arguments.html_report:
        with dispensable("report.html"):
            write_report(staging, run, results, scores)
    write_results(results, staging)
    publish(staging, run.folder)
    print_metrics(results)


def describe_outcomes(run: FinishedRun) -> dict:
    """Returns the entries of `results.json` that trainings and evaluations share."""
    return {
        "metrics": {split: clean_metrics(outcome.metrics, split) for split, outcome in run.outcomes.items()},
        "clips": {split: dataset.num_clips for split, dataset in run.datasets.items()},
        "labels": list(run.labels.names),
        "problem_type": run.labels.problem_type,
    }


def write_split(run: FinishedRun, results: dict, staging: Path) -> np.ndarray:
    """
    Writes the predictions and the figures of the reported split, and adds its entries to `results`.

    Returns:
        probabilities, or numbers: (clips, labels)
    """
    split, labels, outcome = run.split, run.labels, run.outcomes[run.split]
    scores = probabilities(outcome.predictions, labels.problem_type, run.config.calibration_temperature)
    targets, thresholds = outcome.label_ids, run.config.decision_thresholds
    write_csv(labelled_table(run.datasets[split], labels, scores, thresholds), staging / "predictions.csv")
    results["confidence_intervals"] = intervals(run.datasets[split], labels, scores, targets, thresholds)
    if labels.is_regression:
        with dispensable("predicted_numbers.png"):
            plot_numbers(targets, scores[:, 0], split, staging / "predicted_numbers.png", run.figure_format)
    elif labels.is_multi:
        results["per_class"] = per_class(targets > 0.5, scores > (0.5 if thresholds is None else thresholds), labels)
    else:
        predictions = scores.argmax(axis=1)
        results["per_class"] = per_class(targets, predictions, labels)
        table = confusion_table(targets, predictions, labels)
        with dispensable("confusion_matrix.png"):
            plot_confusion(table, f"{split} split", staging / "confusion_matrix.png", run.figure_format)
        if len(labels.names) > MOST_NAMED:  # the figure names only the classes that are confused most often
            results["confusion_table"] = "confusion_matrix.csv"
            write_csv(table, staging / results["confusion_table"], index=True)
    return scores


def print_metrics(results: dict):
    """Prints a line per split, with the intervals of the reported one."""
    last = list(results["metrics"])[-1:]
    for name, metrics in results["metrics"].items():
        found = results.get("confidence_intervals") if name in last else None
        print(f"{name}: " + ", ".join(f"{key} {with_interval(key, value, found)}" for key, value in metrics.items()))


def print_calibration(calibration: dict):
    """Prints which calibration the validation split has led to: it changes the probabilities."""
    temperature, thresholds = calibration["temperature"], calibration["decision_thresholds"]
    found = [f"temperature {temperature:.3g}"] if temperature != 1.0 else []
    found += ["a threshold per label"] if thresholds is not None else []
    if found:
        print(f"calibrated on the validation split: {', '.join(found)}; without it the same logits score differently")


def print_open_set(report: dict):
    """Prints how many clips `--reject` of predict_hf.py keeps, by each score."""
    for score in SCORES:
        shares = ", ".join(f"{share:.3f} of {split}" for split, share in report[score]["share_kept"].items())
        auroc = f", AUROC {report[score]['auroc']:.4f}" if "auroc" in report[score] else ""
        print(f"--reject {report['kept']} by {score} keeps {shares}{auroc}")


def intervals(
    dataset: ClipDataset, labels: LabelSet, scores: np.ndarray, targets: np.ndarray, thresholds: list[float] | None
) -> dict | None:
    """Returns confidence intervals of a split's metrics; by group where its clips have one. scores: (clips, labels)"""
    predictions = scores.argmax(axis=1) if labels.is_single else scores if labels.is_multi else scores[:, 0]
    groups = dataset.examples["group"][:] if has_groups(dataset) else None
    return confidence_intervals(predictions, targets, labels.problem_type, thresholds, groups)


def per_class(targets: np.ndarray, predictions: np.ndarray, labels: LabelSet) -> dict[str, dict[str, float]]:
    """
    Returns precision, recall, F1 and number of clips of every class.

    targets, predictions: class indices (clips,), or booleans (clips, labels)
    """
    columns = precision_recall_fscore_support(
        targets, predictions, labels=range(len(labels.names)), average=None, zero_division=0
    )
    rows = zip(*(column.astype(float).tolist() for column in columns))
    return {
        name: dict(zip(("precision", "recall", "f1-score", "support"), row)) for name, row in zip(labels.names, rows)
    }


def layer_weights(model) -> dict[int, float] | None:
    """Returns fused layer -> weight, with a sum of 1; `None` unless `fusion` is `weighted` or `gated`."""
    return getattr(model.base_model, "layer_weights", None)


def write_card(run: FinishedRun, results: dict, path: Path):
    """Writes the model card, from the template and the results of the run."""
    card = classifier_card(
        run.folder.resolve().name,
        run.config,
        run.extractor,
        results,
        dataset_name=run.data_name,
        num_parameters=run.num_parameters,
        settings=chosen_settings(run.recipe),
    )
    path.write_text(str(card), encoding="utf-8")


def chosen_settings(recipe: dict) -> dict:
    """Returns the settings of model, tuning and augmentation that differ from the defaults."""
    chosen = {}
    for part in SHOWN:
        for field in dataclasses.fields(part):
            value = recipe[part.__name__][field.name]
            if field.name not in NOT_SHOWN and value not in (None, default_of(field)):
                chosen[field.name] = value
    return chosen
