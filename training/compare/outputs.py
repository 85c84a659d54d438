"""Writes the tables and the figure of a comparison."""

from pathlib import Path

import numpy as np
import pandas

from model_cards.card import markdown

from ..base.figures import COLOURS, new_figure, plain, save_figure
from ..base.outputs import without_nan
from ..base.paired_tests import NOT_TOLD_APART
from ..errors import printable
from ..files import complete_file, write_csv, write_json

FIGURE = "comparison.png"


def write_outputs(found: dict, folder: Path, figure_format: str):
    """Writes the tables, the figure and `comparison.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("scores", "differences"):
        table = pandas.DataFrame(found[name])
        write_csv(table, folder / f"{name}.csv")
        for ending, text in (("md", as_markdown(table)), ("tex", as_latex(table))):
            with complete_file(folder / f"{name}.{ending}") as unfinished:
                unfinished.write_text(text, encoding="utf-8")
    plot(found, folder / FIGURE, figure_format)
    write_json(folder / "comparison.json", without_nan(found))


def as_texts(table: pandas.DataFrame) -> pandas.DataFrame:
    table = table.map(lambda cell: as_cell(cell) if isinstance(cell, float) else printable(cell))
    return table.rename(columns=lambda name: name.replace("_", " "))


def as_cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def as_markdown(table: pandas.DataFrame) -> str:
    texts = as_texts(table)
    lines = [list(texts.columns), ["---"] * len(texts.columns), *map(markdown, texts.to_numpy().tolist())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(table: pandas.DataFrame) -> str:
    """Returns a table for the package booktabs."""
    styler = as_texts(table).style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return styler.to_latex(
        hrules=True, column_format="".join("r" if kind.kind in "if" else "l" for kind in table.dtypes)
    )


def plot(found: dict, path: Path, figure_format: str):
    """Draws the scores and the differences with their intervals; hollow grey differences are not told apart."""
    scores, rows, metric = found["scores"][::-1], found["differences"][::-1], found["metric"].replace("_", " ")
    height = max(1.6 + 0.32 * max(len(scores), len(rows)), 2.6)
    figure, (left, right) = new_figure(1, 2, size=(11, height))
    for place, row in enumerate(scores):
        _draw(left, place, row, found["metric"], COLOURS[0], COLOURS[0])
    left.set_yticks(range(len(scores)), [plain(row["run"]) for row in scores])
    left.set(title=metric, ylim=(-0.6, len(scores) - 0.4))
    for place, row in enumerate(rows):
        is_apart = row["better"] != NOT_TOLD_APART
        _draw(right, place, row, "difference", *([COLOURS[3]] * 2 if is_apart else ("grey", "white")))
    names = [f"{plain(row['first'], 24)} - {plain(row['second'], 24)}" for row in rows]
    right.set_yticks(range(len(rows)), names, fontsize="small")
    right.set(title=f"difference of {metric}; hollow: {NOT_TOLD_APART}", ylim=(-0.6, len(rows) - 0.4))
    right.axvline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    title = f"{found['clips']} test clips; bars: {found['level']:.0%} interval over {found['resampled']}"
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, path, figure_format)


def _draw(axes, place: int, row: dict, key: str, colour: str, inside: str):
    axes.plot([row["lower"], row["upper"]], [place, place], color=colour, linewidth=1.5)
    axes.plot(row[key], place, "o", color=colour, markerfacecolor=inside)
