"""Draws the layer x layer maps and the scores per layer of a sweep."""

from pathlib import Path

import numpy as np
from matplotlib.patches import Circle, Rectangle
from transformers.utils import logging

from ..base.figures import COLOURS, MAP, new_figure, save_figure
from ..base.paired_tests import NOT_TOLD_APART
from .choice import BEST, SIMPLEST

logger = logging.get_logger(__name__)

OPEN = (BEST, NOT_TOLD_APART)
CORNER = 0.34  # from the middle of a cell to its dot
POINTS_OF_PANEL = 65  # size of the numbers times the cells of a row: three letters fill two thirds of a cell
SMALLEST_POINTS = 4  # of a number that can be read


def plot_heat_maps(found, folder: Path, figure_format: str):
    """Draws a figure per readout: a layer x layer map per pooling; the diagonal shows single layers."""
    layers, metric, values = found.layers, found.metric.replace("_", " "), found.table[found.metric]
    ticks = range(len(layers))
    for readout in dict.fromkeys(candidate.readout for candidate in found.candidates):
        own = values[found.table["readout"] == readout]
        if own.isna().all():  # features that overflow
            logger.warning(f"layers_{readout}: is left out, because no candidate with this readout has a score")
            continue
        lowest, highest = own.quantile(0.02), own.max()
        maps, open_cells, simplest = {}, {}, {}
        for index in sorted(own.index):  # in the order of the candidates, not of their scores
            candidate = found.candidates[index]
            grid = maps.setdefault(candidate.way, np.full((len(layers), len(layers)), np.nan))
            first, last = layers.index(candidate.layers[0]), layers.index(candidate.layers[-1])
            grid[first, last] = grid[last, first] = own[index]
            if found.table["verdict"][index] in OPEN:
                open_cells.setdefault(candidate.way, []).extend({(first, last), (last, first)})
            if index == found.chosen[SIMPLEST]:
                simplest[candidate.way] = (last, first)
        columns = min(4, len(maps))
        rows = -(-len(maps) // columns)
        figure, axes = new_figure(rows, columns, size=(max(3.6 * columns, 6.4), 3.4 * rows + 0.5), squeeze=False)
        for axis, (way, grid) in zip(axes.flat, maps.items()):
            image = axis.imshow(grid, origin="lower", cmap=MAP, vmin=lowest, vmax=highest)
            _write_numbers(axis, grid, image)
            dots = np.array(open_cells.get(way, [(np.nan, np.nan)])) + CORNER
            axis.plot(*dots.T, "o", color="white", markersize=2.5, markeredgecolor="black", markeredgewidth=0.4)
            frame = {"edgecolor": COLOURS[3], "facecolor": "none", "linewidth": 1.8, "zorder": 3, "clip_on": False}
            if way in simplest:
                axis.add_patch(Circle(simplest[way], 0.45, **frame))
            score = "no score"
            if np.isfinite(grid).any():  # else all features overflow
                best = np.unravel_index(np.nanargmax(grid), grid.shape)
                axis.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, **frame))
                score = f"{grid[best]:.3f}"
            axis.set(title=f"{way} ({score})", xlabel="layer", ylabel="layer")
            axis.set_xticks(ticks, layers, fontsize="small")
            axis.set_yticks(ticks, layers, fontsize="small")
        for axis in axes.flat[len(maps) :]:
            axis.remove()
        lines = (
            f"{metric} of two layers side by side (diagonal: one layer)",
            "frame and number in brackets: the best of a panel",
            f"dot: {NOT_TOLD_APART} from the best of all; circle: the simplest within one standard error of it",
        )
        figure.suptitle("\n".join(lines), fontsize="medium")
        figure.colorbar(image, ax=list(axes.flat[: len(maps)]), label=metric, extend="min")
        save_figure(figure, folder / f"layers_{readout}.png", figure_format)


def _write_numbers(axis, grid: np.ndarray, image):
    """Writes each score into its cell, without the zero before the point, if the cells are large enough."""
    size = min(POINTS_OF_PANEL / len(grid), 8)
    if size < SMALLEST_POINTS:
        return
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = image.to_rgba(value)
            colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"  # as grey, ITU-R BT.601
            text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.1f}"
            axis.text(column, row, text, size=size, color=colour, ha="center", va="center")


def plot_layers(found, path: Path, figure_format: str):
    """Draws the score of each single layer with every pooling except concatenation; a panel per readout."""
    layers, table, ways = found.layers, found.table, {}
    for index in sorted(table.index):
        candidate, row = found.candidates[index], table.loc[index]
        if len(candidate.layers) == 1 and candidate.combination != "concat":
            own = ways.setdefault(candidate.readout, {})
            dots = own.setdefault(candidate.way, (*np.zeros((2, len(layers))), np.zeros(len(layers), dtype=bool)))
            place = layers.index(candidate.layers[0])
            dots[0][place], dots[1][place], dots[2][place] = row[found.metric], row["interval"], row["verdict"] in OPEN
    size = (max(8, 0.9 * len(layers)), 2.6 * max(len(ways), 2))
    figure, panels = new_figure(len(ways), size=size, squeeze=False, sharex=True, sharey=True)
    for axes, (readout, own) in zip(panels[:, 0], ways.items()):
        for place, (way, (values, intervals, is_open)) in enumerate(own.items()):
            x = np.arange(len(layers)) + (place - (len(own) - 1) / 2) * 0.7 / len(own)
            axes.errorbar(x, values, intervals, fmt="o", markersize=4, elinewidth=0.8, label=way.split(": ")[-1])
            axes.plot(x[is_open], values[is_open], "o", color="white", markersize=1.5, zorder=3)
        axes.set(title=readout, ylabel=found.metric.replace("_", " "))
        axes.set_xticks(range(len(layers)), layers)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    panels[-1, 0].set_xlabel("layer (0 is the embedding)" if layers[0] == 0 else "layer")
    bars = f"one layer alone; bars: 95 % interval over {found.num_folds} folds"
    figure.suptitle(f"{bars}; white centre: {NOT_TOLD_APART} from the best of all", fontsize="medium")
    save_figure(figure, path, figure_format)
