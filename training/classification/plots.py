"""Draws learning curves, layer weights, confusion matrices, calibration and predicted numbers."""

import textwrap
from pathlib import Path

import numpy as np
import pandas
from matplotlib.colors import LogNorm

from ..base.figures import COLOURS, COUNTS, MAP, new_figure, plain, save_figure
from ..base.progress import is_metric
from ..data.labels import LabelSet
from .calibration import NUM_BINS

MOST_NAMED = 60  # classes up to which a confusion matrix names each row and column
MOST_COUNTED = 40  # classes up to which its cells show their counts
MOST_CONFUSED = 20  # pairs of classes listed beside a larger matrix


def plot_learning_curves(
    log: list[dict], path: Path, figure_format: str = "png", kept_epoch: float | None = None, note: str = ""
):
    """
    Draws losses and validation metrics over the epochs.

    Args:
        log: Trainer's `log_history`
        kept_epoch: epoch of the checkpoint whose weights the model has; marked by a line
        note: why training and validation loss are not comparable; shown above the losses
    """
    metrics = sorted({key for entry in log for key in entry if key.startswith("eval_") and is_metric(key)})
    figure, (losses, scores) = new_figure(1, 2, (10.0, 4.0))
    for key, name in (("loss", "training"), ("eval_loss", "validation")):
        losses.plot(*_curve(log, key), marker=".", label=name)
    for key in metrics:
        scores.plot(*_curve(log, key), marker=".", label=key.removeprefix("eval_").replace("_", " "))
    for axes, title in ((losses, "loss"), (scores, "validation metrics")):
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color="black", linestyle=":", label="chosen checkpoint")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    if note:
        losses.set_title(f"loss\n{textwrap.fill(note, 70)}", fontsize=8)
    save_figure(figure, path, figure_format)


def loss_note(settings: dict) -> str:
    """
    Names what only the training loss contains, for a figure; empty if training and validation loss are comparable.

    Args:
        settings: the values of `AugmentationArguments` and `TuningArguments`
    """
    causes = {
        "mixup": settings["mixup_rate"],
        "SpecAugment": settings["frequency_mask_bins"] or settings["time_mask_frames"],
        "noise": settings["noise"],
        "backgrounds": settings["background_folder"],
        "random resized crops": settings["random_resized_crop"],
        "class weights": settings["class_weights"] != "none",
        settings["loss"].replace("_", " "): settings["loss"] != "cross_entropy",
    }
    found = [name for name, is_used in causes.items() if is_used]
    return f"not comparable: only the training loss contains {', '.join(found)}" if found else ""


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


def plot_confusion(table: pandas.DataFrame, title: str, path: Path, figure_format: str = "png"):
    """
    Draws the counts of labels against predictions. Above `MOST_NAMED` classes each pair that occurs is a dot, the
    axes number the classes, and the pairs that are confused most often are listed beside them.

    Args:
        table: (classes, classes), of `confusion_table`
    """
    counts, names = table.to_numpy(), list(table.columns)
    if len(names) > MOST_NAMED:
        figure, (axes, bars) = new_figure(1, 2, (14.0, 8.0), width_ratios=(3, 2))
        rows, columns = np.nonzero(counts)
        colours = {"c": counts[rows, columns], "cmap": MAP, "norm": LogNorm(1, max(2, counts.max()))}
        image = axes.scatter(columns, rows, s=np.clip((400 / len(names)) ** 2, 2, 30), rasterized=True, **colours)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
        _plot_most_confused(counts, names, bars)
    else:
        size = max(4.0, 0.45 * min(len(names), MOST_COUNTED) + 2.5)
        figure, axes = new_figure(size=(size, size))
        image = axes.imshow(counts, cmap=COUNTS)
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        texts = [plain(name) for name in names]
        axes.set_xticks(range(len(names)), texts, **slanted if len(names) < 15 else {"rotation": 90})
        axes.set_yticks(range(len(names)), texts)
        axes.tick_params(labelsize=10 if len(names) <= MOST_COUNTED else 7)
    axes.set(title=title, xlabel="predicted class", ylabel="class")
    if len(names) <= MOST_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(column, row, count, ha="center", va="center", color=colour)
    else:
        figure.colorbar(image, ax=axes, label="clips", shrink=0.8)
    save_figure(figure, path, figure_format)


def _plot_most_confused(counts: np.ndarray, names: list[str], axes):
    """Draws a bar per pair of classes that are confused most often. counts: (classes, classes)"""
    wrong = counts - np.diag(np.diag(counts))
    pairs = [divmod(int(index), len(names)) for index in np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]]
    pairs = [pair for pair in pairs if wrong[pair]]
    axes.barh(range(len(pairs)), [wrong[pair] for pair in pairs])
    texts = [f"{plain(names[row], 24)} as {plain(names[column], 24)}" for row, column in pairs]
    axes.set_yticks(range(len(pairs)), texts, fontsize=8)
    axes.invert_yaxis()
    axes.set(title="most often confused", xlabel="clips")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


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


def _curve(log: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Returns the epochs and values of a key of the log."""
    points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
    return [x for x, _ in points], [y for _, y in points]
