"""Draws what the runs of several tasks have: learning curves, and what is confused with what."""

import textwrap
from pathlib import Path

import numpy as np
import pandas
from matplotlib.colors import LogNorm

from .figures import COUNTS, MAP, new_figure, plain, save_figure
from .progress import is_metric

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


def loss_note(settings: dict, plain_loss: str = "cross_entropy") -> str:
    """
    Names what only the training loss contains, for a figure; empty if training and validation loss are comparable.

    Args:
        settings: the values of `AugmentationArguments` and `TuningArguments`
        plain_loss: the loss of an evaluation
    """
    causes = {
        "mixup": settings["mixup_rate"],
        "SpecAugment": settings["frequency_mask_bins"] or settings["time_mask_frames"],
        "noise": settings["noise"],
        "backgrounds": settings["background_folder"],
        "random resized crops": settings["random_resized_crop"],
        "labels without times": settings.get("weak_annotations"),
        "class weights": settings["class_weights"] != "none",
        settings["loss"].replace("_", " "): settings["loss"] != plain_loss,
    }
    found = [name for name, is_used in causes.items() if is_used]
    return f"not comparable: only the training loss contains {', '.join(found)}" if found else ""


def _curve(log: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Returns the epochs and values of a key of the log."""
    points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
    return [x for x, _ in points], [y for _, y in points]


def plot_confusion(
    table: pandas.DataFrame,
    title: str,
    path: Path,
    figure_format: str = "png",
    unit: str = "clips",
    axis_labels: tuple[str, str] = ("class", "predicted class"),
):
    """
    Draws the counts of labels against predictions. Above `MOST_NAMED` classes each pair that occurs is a dot, the
    axes number the classes, and the pairs that are confused most often are listed beside them.

    Args:
        table: (classes, classes), such as `confusion_table`'s
        unit: what is counted
        axis_labels: of the rows, and of the columns
    """
    counts, names = table.to_numpy(), list(table.columns)
    if len(names) > MOST_NAMED:
        figure, (axes, bars) = new_figure(1, 2, (14.0, 8.0), width_ratios=(3, 2))
        rows, columns = np.nonzero(counts)
        colours = {"c": counts[rows, columns], "cmap": MAP, "norm": LogNorm(1, max(2, counts.max()))}
        image = axes.scatter(columns, rows, s=np.clip((400 / len(names)) ** 2, 2, 30), rasterized=True, **colours)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
        _plot_most_confused(counts, names, bars, unit)
    else:
        size = max(4.0, 0.45 * min(len(names), MOST_COUNTED) + 2.5)
        figure, axes = new_figure(size=(size, size))
        image = axes.imshow(counts, cmap=COUNTS)
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        texts = [plain(name) for name in names]
        axes.set_xticks(range(len(names)), texts, **slanted if len(names) < 15 else {"rotation": 90})
        axes.set_yticks(range(len(names)), texts)
        axes.tick_params(labelsize=10 if len(names) <= MOST_COUNTED else 7)
    axes.set(title=title, xlabel=axis_labels[1], ylabel=axis_labels[0])
    if len(names) <= MOST_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if count > counts.max() / 2 else "black"
            text = f"{count:.1f}" if counts.dtype.kind == "f" else count
            axes.text(column, row, text, ha="center", va="center", color=colour)
    else:
        figure.colorbar(image, ax=axes, label=unit, shrink=0.8)
    save_figure(figure, path, figure_format)


def _plot_most_confused(counts: np.ndarray, names: list[str], axes, unit: str):
    """Draws a bar per pair of classes that are confused most often. counts: (classes, classes)"""
    wrong = counts - np.diag(np.diag(counts))
    pairs = [divmod(int(index), len(names)) for index in np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]]
    pairs = [pair for pair in pairs if wrong[pair]]
    axes.barh(range(len(pairs)), [wrong[pair] for pair in pairs])
    texts = [f"{plain(names[row], 24)} as {plain(names[column], 24)}" for row, column in pairs]
    axes.set_yticks(range(len(pairs)), texts, fontsize=8)
    axes.invert_yaxis()
    axes.set(title="most often confused", xlabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
