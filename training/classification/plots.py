"""Draws learning curves, layer weights, confusion matrices and calibration."""

from pathlib import Path

import numpy as np
from matplotlib import pyplot
from sklearn.metrics import ConfusionMatrixDisplay

from ..base.progress import is_metric
from ..data.labels import LabelSet
from .calibration import NUM_BINS


def plot_learning_curves(log: list[dict], path: Path):
    """Losses and metrics over the epochs."""
    metrics = sorted({key for entry in log for key in entry if key.startswith("eval_") and is_metric(key)})
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


def _curve(log: list[dict], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
    return [x for x, _ in points], [y for _, y in points]


def plot_calibration(report: dict, split: str, labels: LabelSet, path: Path):
    """The reliability diagram of a split before and after, and below how many decisions have each confidence."""
    is_single = labels.problem_type == "single_label_classification"
    figure, axes = pyplot.subplots(
        2, 2, figsize=(9, 5.5), height_ratios=(3, 1), sharex=True, sharey="row", layout="constrained"
    )
    edges = np.linspace(0, 1, NUM_BINS + 1)
    temperatures = {"before": 1.0, "after": report["temperature"]}
    for (diagram, histogram), (name, temperature) in zip(axes.T, temperatures.items()):
        scores = report[split][name]
        bins = {key: np.asarray(values) for key, values in scores["bins"].items()}
        filled = bins["count"] > 0
        diagram.bar(edges[:-1][filled], bins["accuracy"][filled], width=1 / NUM_BINS, align="edge", edgecolor="white")
        diagram.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
        diagram.plot(bins["confidence"][filled], bins["accuracy"][filled], "o", color="tab:orange", markersize=4)
        diagram.set_title(f"{name}: temperature {temperature:.3g}, ECE {scores['expected_calibration_error']:.3f}")
        histogram.bar(edges[:-1], bins["count"], width=1 / NUM_BINS, align="edge", edgecolor="white")
        histogram.set(xlim=(0, 1), xlabel="confidence" if is_single else "probability of a label")
    axes[0, 0].set(ylim=(0, 1), ylabel="share that is right" if is_single else "share that has the label")
    axes[1, 0].set_ylabel("clips" if is_single else "decisions")
    figure.suptitle(f"reliability on the {split} split")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
