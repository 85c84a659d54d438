"""Draws layer weights, calibration and predicted numbers, and counts what is confused."""

from pathlib import Path

import numpy as np
import pandas

from ..base.figures import COLOURS, new_figure, save_figure
from ..data.labels import LabelSet
from .calibration import NUM_BINS


def plot_layer_weights(
    weights: dict[int, float], starting_weights: dict[int, float] | None, path: Path, figure_format: str = "png"
):
    """Draws a bar per fused layer, in the order of the layers, and a dashed line at the weights before training."""
    layers = sorted(weights)
    figure, axes = new_figure(size=(max(4.0, 0.5 * len(layers) + 2), 4.0))
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
    save_figure(figure, path, figure_format)


def confusion_table(targets: np.ndarray, predictions: np.ndarray, labels: LabelSet) -> pandas.DataFrame:
    """Returns the clips of each class (rows) by predicted class (columns); targets, predictions: (clips,) indices."""
    counts = np.zeros((len(labels.names), len(labels.names)), dtype=int)
    np.add.at(counts, (targets, predictions), 1)
    names = pandas.Index(labels.names, dtype=object)
    return pandas.DataFrame(counts, index=names.rename("label"), columns=names)


def plot_calibration(report: dict, split: str, labels: LabelSet, path: Path, figure_format: str = "png"):
    """
    Draws the reliability diagram of a split, before and after calibration if a temperature was found, and the number of
    decisions in each bin of confidence.

    Args:
        report: `describe_calibration`'s
    """
    is_single, temperature = labels.is_single, report["temperature"]
    titles = {"before": "not calibrated" if temperature == 1.0 else "before (temperature 1)"}
    if temperature != 1.0:
        titles["after"] = f"after (temperature {temperature:.3g})"
    figure, axes = new_figure(
        2, len(titles), (4.7 * len(titles) + 1, 6.0), height_ratios=(3, 1), sharex=True, sharey="row", squeeze=False
    )
    edges, width = np.linspace(0, 1, NUM_BINS + 1), 1 / NUM_BINS
    right = "share that is right" if is_single else "share that has the label"
    for (diagram, histogram), (name, title) in zip(axes.T, titles.items()):
        scores = report[split][name]
        bins = {key: np.asarray(values) for key, values in scores["bins"].items()}
        filled = bins["count"] > 0
        diagram.bar(edges[:-1][filled], bins["accuracy"][filled], width, align="edge", edgecolor="white", label=right)
        diagram.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfect calibration")
        diagram.plot(
            bins["confidence"][filled], bins["accuracy"][filled], "o", color=COLOURS[1], markersize=4,
            label="mean confidence of the bin",
        )  # fmt: skip
        diagram.set_title(f"{title}\nexpected calibration error {scores['expected_calibration_error']:.3f}")
        drawn = histogram.bar(edges[:-1], bins["count"], width, align="edge", color=COLOURS[5], edgecolor="white")
        histogram.bar_label(drawn, [_count(count) for count in bins["count"]], fontsize=7)
        histogram.margins(y=0.25)
        histogram.set(xlim=(0, 1), xlabel="confidence" if is_single else "probability of a label")
    axes[0, 0].set(ylim=(0, 1), ylabel=right)
    axes[0, 0].legend(loc="upper left", fontsize=8)
    axes[1, 0].set_ylabel("clips" if is_single else "decisions")
    figure.suptitle(f"reliability on the {split} split")
    save_figure(figure, path, figure_format)


def _count(count: int) -> str:
    """Formats a count in at most four characters; 0 is empty."""
    return "" if not count else str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def plot_numbers(targets: np.ndarray, predictions: np.ndarray, split: str, path: Path, figure_format: str = "png"):
    """Draws predictions against targets of a regression, (clips,) each."""
    figure, axes = new_figure(size=(5.0, 5.0))
    ends = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.scatter(targets, predictions, s=14, alpha=0.6, label="clips")
    axes.plot(ends, ends, color="black", linewidth=1, linestyle="--", label="prediction = target")
    axes.set(title=f"{split} split", xlabel="target", ylabel="prediction", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path, figure_format)
