"""One style for every figure, drawn without pyplot: no global state, nothing to close, safe in threads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import complete_file

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MAP = "viridis"  # of spectrograms and scores: readable in grey and by the colour-blind
COUNTS = "Blues"  # of confusion matrices
DOTS_PER_INCH = 120
FORMATS = ("png", "pdf", "svg")


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 4.0), **settings):
    """
    Returns a figure and its axes, laid out so that no label is cut off.

    Args:
        size: of the figure, in inches (width, height)
        settings: of `Figure.subplots`, such as `squeeze` or `sharex`
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, **settings)
    for axis in axes.flat if hasattr(axes, "flat") else (axes,):
        axis.set_prop_cycle(color=COLOURS)
    return figure, axes


def plain(text: str) -> str:
    """Returns a text in which matplotlib finds no formula: names of classes and files may hold dollar signs."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path, figure_format: str = "png", dpi: int = DOTS_PER_INCH):
    """
    Writes the figure to `path`, whole or not at all; for papers also beside it, as `pdf` or `svg`.

    Args:
        path: ends in .png, which model cards and pages show
        figure_format: one of `FORMATS`
    """
    for target in {path, path.with_suffix(f".{figure_format}")}:
        with complete_file(target) as unfinished:
            figure.savefig(unfinished, dpi=dpi, format=target.suffix[1:])


def label_mel_axis(axes: Axes, frequencies_hz: Sequence[float]):
    """
    Labels the vertical axis of a picture of mel bins in kHz.

    Args:
        axes: bin i stands from i to i + 1
        frequencies_hz: (mel,), centres of the bins, ascending
    """
    octaves = [hz for hz in (62.5 * 2**k for k in range(10)) if frequencies_hz[0] <= hz <= frequencies_hz[-1]]
    places = np.interp(octaves, frequencies_hz, np.arange(len(frequencies_hz)) + 0.5)
    axes.set_yticks(places, [f"{hz / 1000:g}" for hz in octaves])
    axes.set_ylabel("frequency (kHz)")
