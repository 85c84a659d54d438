"""Tests the maps of a sweep: each score in its cell, and the marks as docs/guides/layers.md explains them."""

from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from matplotlib.patches import Circle, Rectangle

from training.base.paired_tests import NOT_TOLD_APART
from training.embeddings import sweep_plots
from training.embeddings.choice import BEST, SIMPLEST, WORSE


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws the maps of scores; returns the axes of the panels by their titles."""
    figures = []
    monkeypatch.setattr(sweep_plots, "save_figure", lambda figure, *others: figures.append(figure))

    def draw(found):
        sweep_plots.plot_heat_maps(found, tmp_path, "png")
        return {axes.get_title(): axes for figure in figures for axes in figure.axes if axes.get_title()}

    return draw


def sweep(layers, ways, score, verdict, simplest):
    candidates, rows = [], []
    for way in ways:
        for low in layers:
            for high in layers[layers.index(low) :]:
                candidates.append(SimpleNamespace(readout="patches", way=way, layers=(low, high)))
                rows.append(("patches", score(way, low, high), verdict(way, low, high)))
    table = pandas.DataFrame(rows, columns=["readout", "accuracy", "verdict"])
    chosen = {SIMPLEST: simplest, BEST: int(table["accuracy"].argmax())}
    return SimpleNamespace(layers=layers, metric="accuracy", table=table, candidates=candidates, chosen=chosen)


def test_numbers_and_marks(drawn):
    def verdict(way, low, high):
        return BEST if (way, low, high) == ("b", 1, 2) else NOT_TOLD_APART if (way, low) == ("b", 0) else WORSE

    found = sweep([0, 1, 2], "ab", lambda way, low, high: 0.1 * low + 0.2 * high + (way == "b") * 0.3, verdict, 4)
    found.table.loc[11, "accuracy"] = 0.05  # b of layer 2: else the best
    panels = drawn(found)
    assert list(panels) == ["a (0.600)", "b (0.800)"]
    for axes, shift, best in ((panels["a (0.600)"], 0, (2, 2)), (panels["b (0.800)"], 0.3, (2, 1))):
        texts = {text.get_position(): text.get_text() for text in axes.texts}
        assert len(texts) == 9
        for (x, y), text in texts.items():
            value = 0.1 * min(x, y) + 0.2 * max(x, y) + shift if (x, y, shift) != (2, 2, 0.3) else 0.05
            assert float(text) == pytest.approx(value, abs=0.0051) and not text.startswith("0")
        (frame,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
        # A score of two layers stands in two cells; the first one is framed.
        assert {*np.add(frame.get_xy(), 0.5)} == {*map(float, best)}
    (circle,) = (patch for axes in panels.values() for patch in axes.patches if isinstance(patch, Circle))
    assert circle in panels["a (0.600)"].patches and tuple(circle.center) == (2, 1)  # candidate 4: layers 1 and 2
    dots = {tuple(np.round(dot - sweep_plots.CORNER).astype(int)) for dot in panels["b (0.800)"].lines[0].get_xydata()}
    assert dots == {(1, 2), (2, 1), (0, 0), (0, 1), (1, 0), (0, 2), (2, 0)}
    assert np.isnan(panels["a (0.600)"].lines[0].get_xydata()).all()


def test_cells_without_room_have_no_numbers(drawn):
    layers = list(range(25))
    panels = drawn(sweep(layers, "a", lambda way, low, high: low / 30, lambda *where: WORSE, 0))
    (axes,) = panels.values()
    assert not axes.texts


def test_a_panel_without_scores_says_so(drawn, caplog):
    """Features of one pooling that overflow have no score; a readout with none at all has no figure."""
    found = sweep([0, 1], "ab", lambda way, low, high: 0.5 if way == "a" else np.nan, lambda *where: WORSE, 0)
    panels = drawn(found)
    assert list(panels) == ["a (0.500)", "b (no score)"] and not panels["b (no score)"].texts
    found.table["accuracy"] = np.nan
    assert drawn(found) == panels and "layers_patches: is left out" in caplog.text
