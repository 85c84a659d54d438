"""Draws the curves of a detector's events over the threshold."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..base.detection_scores import counter
from ..base.event_detection import median_filtered, times_of
from ..base.figures import COLOURS, new_figure, plain, save_figure
from .postprocessing import OFFSET_SHARE, THRESHOLDS, count_right
from .recordings import Stretch

MOST_CURVES = 12  # labels, those with the most events
COLUMNS = 3


def threshold_curve(
    scores: Sequence[np.ndarray],
    edges_s: Sequence[np.ndarray],
    stretches: Sequence[Stretch],
    label: str,
    settings: Mapping[str, float],
    collar_s: float,
) -> dict[str, np.ndarray]:
    """
    Returns `threshold`, and `precision`, `recall` and `F1` of a label's events there, (thresholds,) each. The second
    threshold keeps its ratio to the first; the other settings stay.

    Args:
        scores: per recording (frames,), of this label
        settings: those of `EventFinder` for this label
    """
    high, low = settings["high"], settings.get("low", settings["high"])
    thresholds = np.union1d(THRESHOLDS, high)
    filtered = [median_filtered(own[:, None], int(settings.get("median_steps", 1)))[:, 0] for own in scores]
    wanted = [times_of([event for event in one.events if event.label == label]) for one in stretches]
    lows = np.where(thresholds == high, low, thresholds * (low / high if high > 0 else 1.0))
    others = [np.full(len(thresholds), settings.get(name, 0.0)) for name in ("max_gap_s", "min_duration_s")]
    unsure = [times_of(one.unsure) for one in stretches]
    count = counter("event", collar_s, OFFSET_SHARE)
    right, given, total = count_right(filtered, edges_s, wanted, unsure, count, thresholds, lows, *others)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "threshold": thresholds,
            "precision": right / given,
            "recall": right / total,
            "F1": 2 * right / (given + total),
        }


def plot_threshold_curves(curves: dict[str, dict], chosen: dict[str, float], path: Path, figure_format: str = "png"):
    """
    Draws precision, recall and F1 of each label over the threshold.

    Args:
        curves: label -> what `threshold_curve` returns
        chosen: label -> its threshold, marked by a line
    """
    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    size = (3.4 * columns + 0.8, 2.6 * rows + 0.8)
    figure, grid = new_figure(rows, columns, size, sharex=True, sharey=True, squeeze=False)
    for axes, (label, curve) in zip(grid.flat, curves.items()):
        for name, style, colour in (("precision", "--", COLOURS[0]), ("recall", ":", COLOURS[3]), ("F1", "-", "black")):
            axes.plot(curve["threshold"], curve[name], style, color=colour, label=name)
        axes.axvline(chosen[label], color="grey", linewidth=4, alpha=0.4, label="chosen threshold")
        axes.set(xlim=(0, 1), ylim=(-0.03, 1.03), xticks=(0.2, 0.4, 0.6, 0.8))
        axes.set_title(plain(label, 28), fontsize=10)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    for axes in list(grid.flat)[: len(curves)][-columns:]:  # with nothing below
        axes.set_xlabel("threshold")
        axes.tick_params(labelbottom=True)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save_figure(figure, path, figure_format)
