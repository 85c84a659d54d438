"""Draws every figure in one style, without pyplot: no global state, nothing to close, safe in threads."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modeling_dual_ssast import PannsCnn14FeatureExtractor, VGGishFeatureExtractor
from modeling_dual_ssast.feature_extraction_dual_ssast import LOWEST_MEL_HZ, hz_to_mel
from modeling_dual_ssast.feature_extraction_panns_cnn14 import hz_to_slaney_mel, slaney_mel_to_hz
from modeling_dual_ssast.feature_extraction_vggish import HIGHEST_MEL_HZ as VGGISH_HIGHEST_HZ
from modeling_dual_ssast.feature_extraction_vggish import LOWEST_MEL_HZ as VGGISH_LOWEST_HZ

from ..errors import printable
from ..files import complete_file

# Okabe and Ito's colours, distinct for any kind of colour vision (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MAP = "viridis"  # of spectrograms and scores: readable in grey and by the colour-blind
COUNTS = "Blues"  # of confusion matrices
DOTS_PER_INCH = 120
FORMATS = ("png", "pdf", "svg")
MOST_LETTERS = 32  # of a name in a picture
# Every machine lacks the fonts of some scripts: their letters are drawn as boxes.
MISSING_FONTS = "Glyph .* missing from|Matplotlib currently does not support"


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


def plain(text: str, most: int = MOST_LETTERS) -> str:
    """
    Returns a text as matplotlib draws it letter by letter: one line, without formulas between dollar signs. The middle
    of a text of more than `most` letters is left out, or it would leave no room for the picture.
    """
    text = printable(text)
    if len(text) > most:
        text = f"{text[: most * 2 // 3]}…{text[len(text) - most // 3 + 1 :]}"
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path, figure_format: str = "png", dpi: int = DOTS_PER_INCH):
    """
    Writes the figure to `path`, whole or not at all; `pdf` or `svg` adds a copy for papers beside it.

    Args:
        path: ends in .png, the format of model cards and pages
        figure_format: one of `FORMATS`
    """
    for target in {path, path.with_suffix(f".{figure_format}")}:
        with complete_file(target) as unfinished, warnings.catch_warnings():
            warnings.filterwarnings("ignore", MISSING_FONTS)
            figure.savefig(unfinished, dpi=dpi, format=target.suffix[1:].lower())


def khz_ticks(frequencies_hz: Sequence[float]) -> dict[float, str]:
    """
    Returns place -> frequency in kHz of the ticks beside a picture of mel bins.

    Args:
        frequencies_hz: (mel,), centres of the bins, ascending; bin i spans i to i + 1
    """
    ticks, bins = {}, len(frequencies_hz)
    for hz in (62.5 * 2**octave for octave in reversed(range(10))):
        place = float(np.interp(hz, frequencies_hz, np.arange(bins) + 0.5))
        # Labels of low octaves would overlap.
        if frequencies_hz[0] <= hz <= frequencies_hz[-1] and all(abs(place - other) >= 0.1 * bins for other in ticks):
            ticks[place] = f"{hz / 1000:g}"
    return ticks


def label_mel_axis(axes: Axes, frequencies_hz: Sequence[float]):
    """Labels the vertical axis of a picture of mel bins in kHz, see `khz_ticks`."""
    ticks = khz_ticks(frequencies_hz)
    axes.set_yticks([*ticks], [*ticks.values()])
    axes.set_ylabel("frequency (kHz)")


def label_time_axis(axes: Axes, seconds: float, start_s: float, most: int = 10):
    """Labels the time axis of a picture of some seconds from `start_s` on, with times of the whole recording."""
    ticks = MaxNLocator(most).tick_values(start_s, start_s + seconds)
    ticks = [tick for tick in ticks if 0 <= tick - start_s <= seconds]
    axes.set_xticks([tick - start_s for tick in ticks], [f"{tick:.6g}" for tick in ticks])


def mel_centres(extractor) -> np.ndarray:
    """Returns the centre frequencies of a feature extractor's mel bins in Hz, ascending: (mel,)"""
    bins = extractor.num_mel_bins
    if isinstance(extractor, PannsCnn14FeatureExtractor):
        mels = torch.linspace(hz_to_slaney_mel(extractor.fmin), hz_to_slaney_mel(extractor.fmax), bins + 2)
        return slaney_mel_to_hz(mels)[1:-1].numpy()
    ends_hz = (LOWEST_MEL_HZ, extractor.sampling_rate / 2)
    if isinstance(extractor, VGGishFeatureExtractor):
        ends_hz = (VGGISH_LOWEST_HZ, VGGISH_HIGHEST_HZ)
    mels = np.linspace(*map(hz_to_mel, ends_hz), bins + 2)[1:-1]
    return 700 * np.expm1(mels / 1127)


def draw_spectrogram(axes: Axes, spectrogram: np.ndarray, extractor, **settings):
    """
    Draws a spectrogram over seconds and kHz.

    Args:
        spectrogram: (mel, frames); NaN is not drawn
        extractor: the feature extractor that made it
        settings: of `imshow`; by default the colours end at the 1 % and 99 % quantiles
    """
    low, high = np.nanquantile(spectrogram, (0.01, 0.99))
    extent = (0, spectrogram.shape[1] * extractor.hop_s, 0, len(spectrogram))
    settings = {"cmap": MAP, "vmin": low, "vmax": high, **settings}
    axes.imshow(spectrogram, origin="lower", aspect="auto", extent=extent, **settings)
    axes.set_xlabel("time (s)")
    label_mel_axis(axes, mel_centres(extractor))
