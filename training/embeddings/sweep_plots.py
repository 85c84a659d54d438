"""Draws the layer x layer maps and the bars of a sweep."""

from pathlib import Path

import numpy as np
from matplotlib import pyplot


def plot_heat_maps(table, found, metric: str, layers: list[int], folder: Path):
    """A picture per readout: layer x layer for every way of pooling; the diagonal is a layer alone."""
    values = table[metric]
    ticks = range(len(layers))
    for readout in dict.fromkeys(candidate.readout for candidate in found):
        own = values[table["readout"] == readout]
        lowest, highest = own.quantile(0.02), own.max()
        maps = {}
        for index in sorted(own.index):  # in the order of the candidates, not of their scores
            candidate = found[index]
            grid = maps.setdefault(candidate.way, np.full((len(layers), len(layers)), np.nan))
            first, last = layers.index(candidate.layers[0]), layers.index(candidate.layers[-1])
            grid[first, last] = grid[last, first] = own[index]
        columns = min(4, len(maps))
        rows = -(-len(maps) // columns)
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(3.6 * columns, 3.4 * rows), squeeze=False, layout="constrained"
        )
        for axis, (way, grid) in zip(axes.flat, maps.items()):
            image = axis.imshow(grid, origin="lower", cmap="viridis", vmin=lowest, vmax=highest)
            best = np.unravel_index(np.nanargmax(grid), grid.shape)
            axis.plot(best[1], best[0], "r+", markersize=10)
            axis.set(title=f"{way} ({np.nanmax(grid):.3f})", xlabel="layer", ylabel="layer")
            axis.set_xticks(ticks, layers, fontsize="small")
            axis.set_yticks(ticks, layers, fontsize="small")
        for axis in axes.flat[len(maps) :]:
            axis.remove()
        figure.colorbar(image, ax=list(axes.flat[: len(maps)]), label=metric.replace("_", " "))
        figure.savefig(folder / f"layers_{readout}.png", dpi=110)
        pyplot.close(figure)


def plot_layers(table, found, metric: str, layers: list[int], path: Path):
    """Bars: each layer alone, with every way of pooling without concatenation; a panel per readout."""
    ways = {}
    for index in sorted(table.index):
        candidate, row = found[index], table.loc[index]
        if len(candidate.layers) == 1 and candidate.combination != "concat":
            own = ways.setdefault(candidate.readout, {})
            bars = own.setdefault(candidate.way, (np.zeros(len(layers)), np.zeros(len(layers))))
            place = layers.index(candidate.layers[0])
            bars[0][place], bars[1][place] = row[metric], row["interval"]
    size = (max(8, 0.9 * len(layers)), 2.6 * max(len(ways), 2))
    figure, panels = pyplot.subplots(len(ways), figsize=size, squeeze=False, layout="constrained", sharex=True)
    for axes, (readout, own) in zip(panels[:, 0], ways.items()):
        width = 0.85 / len(own)
        for place, (way, (values, intervals)) in enumerate(own.items()):
            x = np.arange(len(layers)) + (place - (len(own) - 1) / 2) * width
            axes.bar(x, values, width, yerr=intervals, label=way.split(": ")[-1], error_kw={"linewidth": 0.5})
        lowest = min(values.min() for values, _ in own.values())
        axes.set(title=readout, ylabel=metric.replace("_", " "))
        axes.set_xticks(range(len(layers)), layers)
        axes.set_ylim(bottom=max(0.0, lowest - 0.1))
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    panels[-1, 0].set_xlabel("layer (0 is the embedding)" if layers[0] == 0 else "layer")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
