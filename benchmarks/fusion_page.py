"""Writes the tables and the picture of docs/fusion_results.md from the figures of fusion_results.py."""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "benchmarks" / "fusion_results.json"
PAGE = ROOT / "docs" / "fusion_results.md"
PICTURE = ROOT / "docs" / "images" / "fusion_results.png"
FINE_TUNED, FROZEN = "fine-tuned", "frozen"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
BETTER, WORSE, NOT_TOLD_APART = "better", "worse", "not told apart"
MEASURES = {"effective_rank": "effective rank", "iso_score": "IsoScore"}
COLOURS = {BETTER: "#009E73", WORSE: "#D55E00", NOT_TOLD_APART: "white"}
ENCODERS = {"random": "random weights", "voice_prompts": "trained on the voice prompts",
            "instruments": "trained on the instruments"}  # fmt: skip

NAMES = {"voice_prompts": "voice prompts", "klettres-data": "letters (klettres-data)",
         "hydrogen-drumkits": "drums (hydrogen-drumkits)",
         "fluid-soundfont-gm": "instrument families (fluid-soundfont-gm)"}  # fmt: skip


def verdict(difference: float, is_apart: bool) -> str:
    """Returns what a comparison with the baseline says."""
    if not is_apart:
        return NOT_TOLD_APART
    return BETTER if difference > 0 else WORSE


def title_of(table: dict) -> str:
    return f"{name_of(table)}, {table['half']}, encoder {encoder_of(table)}"


def name_of(table: dict) -> str:
    return NAMES.get(table["data_set"], table["data_set"])


def encoder_of(table: dict) -> str:
    return ENCODERS.get(table["encoder"], table["encoder"])


def metric_of(table: dict) -> str:
    return table["metric"].replace("_", " ")


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---- tables ----


def table_text(table: dict, planned: int) -> str:
    """Returns the table of one data set, half and encoder, under a heading; says if it lacks some planned seeds."""
    rows = []
    for row in table["rows"]:
        deviation = "" if row["deviation_of_seeds"] is None else f"{row['deviation_of_seeds']:.3f}"
        cells = [row["configuration"], f"{row['score']:.3f}", deviation]
        if "difference" in row:
            mark = "**" if row["verdict"] != NOT_TOLD_APART else ""
            interval = f"{row['difference']:+.3f} ({row['lower']:+.3f} to {row['upper']:+.3f})"
            cells += [interval, f"{row['p_holm']:.4f}", f"{mark}{row['verdict']}{mark}"]
        else:
            cells += ["", "", "baseline"]
        rows.append(cells)
    count = min(row["seeds"] for row in table["rows"])
    seeds = f"{count} seeds" if count == planned else f"**only {count} of {planned} planned seeds are finished**"
    if table["resampled"] != "clips":
        seeds += f", compared by {table['resampled']}"
    header = ["configuration", metric_of(table), "deviation of seeds", "difference (95 % interval)", "p", "verdict"]
    text = f"### {title_of(table)[0].upper()}{title_of(table)[1:]}\n\n{table['test_clips']} test clips, {seeds}.\n\n"
    return text + markdown_table(header, rows)


def counts_text(tables: list[dict]) -> str:
    """Returns in how many tables each configuration is better, worse or not told apart, for each half."""
    halves = [half for half in (FINE_TUNED, FROZEN) if any(table["half"] == half for table in tables)]
    names = list(dict.fromkeys(row["configuration"] for table in tables for row in table["rows"][1:]))
    header, rows = ["configuration"], [[name] for name in names]
    for half in halves:
        own = [table for table in tables if table["half"] == half]
        word = "table" if len(own) == 1 else "tables"
        header += [f"{half}: better, worse, not told apart in {len(own)} {word}", "mean difference"]
        for line, name in zip(rows, names):
            found = [row for table in own for row in table["rows"] if row["configuration"] == name]
            if not found:
                line += ["", ""]
                continue
            verdicts = [row["verdict"] for row in found]
            mean = sum(row["difference"] for row in found) / len(found)
            counts = (verdicts.count(kind) for kind in (BETTER, WORSE, NOT_TOLD_APART))
            line += [", ".join(map(str, counts)), f"{mean:+.3f}"]
    return markdown_table(header, rows)


def sweeps_text(sweeps: list[dict]) -> str:
    """Returns what each sweep has chosen: its score as the best, and the nested score of the choice."""
    rows = []
    for found in sweeps:
        nested = "" if found["nested"] is None else f"{found['nested']:.3f}"
        score = f"{found['score']:.3f}"
        rows.append(
            [name_of(found), encoder_of(found), str(found["clips"]), choice_text(found["chosen"]), score, nested]
        )
    return markdown_table(["data", "encoder", "clips", "best of the sweep", "its score", "nested score"], rows)


def choice_text(chosen: dict) -> str:
    """Returns layers, readout and poolings that a sweep has chosen."""
    words = f"layers {', '.join(map(str, chosen['fusion_layers']))}; {chosen.get('readout', '')}"
    if chosen.get("readout") != "prefix":
        words += f"; {', '.join(map(str, chosen['pooling']))}"
        words += f" ({chosen['pooling_combination']})" if len(chosen["pooling"]) > 1 else ""
    return words


def agreement_text(sweeps: list[dict]) -> str:
    """
    Returns how far the measures without labels agree with the labelled scores: Spearman's correlation over the layers,
    and the score that the layer with the highest measure loses against the best layer. A row per sweep, and in a block
    that opens a row per readout and pooling.
    """
    header = ["data", "encoder", *(f"{name}: {what}" for name in MEASURES.values() for what in ("correlation", "loss"))]
    means = [[name_of(found), encoder_of(found), *mean_cells(found["unlabelled"])] for found in sweeps]
    everything = [row for found in sweeps for row in found["unlabelled"]]
    means.append(["**all**", f"{len(everything)} rows below", *mean_cells(everything)])
    rows = []
    for found in sweeps:
        for row in found["unlabelled"]:
            way = " ".join(filter(None, (row["readout"], row["pooling"])))
            cells = [name_of(found), encoder_of(found), way, str(row["best_layer"])]
            for measure in MEASURES:
                correlation, loss = row[f"{measure}_correlation"], row[f"{measure}_loss"]
                cells.append("" if correlation is None else f"{correlation:+.2f}")
                cells.append("" if loss is None else f"{row[f'{measure}_layer']}: {loss:.3f}")
            rows.append(cells)
    full = ["data", "encoder", "readout, pooling", "best layer"]
    for name in MEASURES.values():
        full += [f"{name}: correlation", "its layer: loss"]
    block = "".join(f"    {line}\n" for line in markdown_table(full, rows).splitlines())
    return f'{markdown_table(header, means)}\n??? note "Every readout and pooling"\n\n{block}'


def mean_cells(rows: list[dict]) -> list[str]:
    """Returns mean correlation and in how many of the rows it is positive, and mean loss, of each measure."""
    cells = []
    for measure in MEASURES:
        correlations = [row[f"{measure}_correlation"] for row in rows if row[f"{measure}_correlation"] is not None]
        losses = [row[f"{measure}_loss"] for row in rows if row[f"{measure}_loss"] is not None]
        if not (correlations and losses):
            cells += ["", ""]
            continue
        positive = f"{sum(value > 0 for value in correlations)} of {len(correlations)} positive"
        cells.append(f"{sum(correlations) / len(correlations):+.2f} ({positive})")
        cells.append(f"{sum(losses) / len(losses):.3f}")
    return cells


def text_of(report: dict) -> str:
    """Returns all that stands between the markers of the page."""
    tables, sweeps = report["tables"], report["sweeps"]
    missing = report["unmeasured"]
    parts = [
        "## All tables in one\n",
        "In how many tables a configuration is told apart from the baseline, the mean over the last layer:\n",
        counts_text(tables),
        "![Differences to the mean over the last layer, a panel per table](images/fusion_results.png)\n",
        "## The tables\n",
        *(table_text(table, report["seeds"]) for table in tables),
        "## What the sweeps choose\n",
        sweeps_text(sweeps),
        "## Layers without labels\n",
        "How far the two measures of [a sweep without labels](guides/layers.md#without-labels) agree with its scores\n"
        "with labels: Spearman's correlation over the layers, and the score that the layer with the highest\n"
        "measure loses against the best layer; means over the readouts and poolings:\n",
        agreement_text(sweeps),
        f"*Measured with {report['versions']}.*\n",
    ]  # fmt: skip
    if missing:
        parts.append(f"Unmeasured in this run of the script: {'; '.join(missing)}.\n")
    return "\n".join(parts)


def write(report: dict, page: Path):
    """Replaces what stands between the markers of the page, which is made if it does not exist."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}{END}\n"
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text_of(report)}\n{END}{after}", encoding="utf-8")


# ---- picture ----


def plot(report: dict, path: Path):
    """Draws the differences to the baseline with their intervals, a panel per table; filled: told apart."""
    tables = report["tables"]
    columns = min(4, len(tables))
    lines = -(-len(tables) // columns)
    most = max(len(table["rows"]) for table in tables)
    figure = Figure(figsize=(3.2 + 2.4 * columns, (0.9 + 0.22 * most) * lines + 0.6), layout="constrained")
    names = list(dict.fromkeys(row["configuration"] for table in tables for row in table["rows"][1:]))
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, table in zip(panels.flat, tables):
        for row in table["rows"][1:]:
            place, colour = names.index(row["configuration"]), COLOURS[row["verdict"]]
            edge = "grey" if row["verdict"] == NOT_TOLD_APART else colour
            axes.plot([row["lower"], row["upper"]], [place, place], color=edge, linewidth=1.2)
            axes.plot(row["difference"], place, "o", color=edge, markerfacecolor=colour, markersize=5)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(title_of(table).replace(", ", "\n", 1).replace("encoder ", ""), fontsize="small")
        axes.set_yticks(range(len(names)), names, fontsize="x-small")
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(axis="x", labelsize="x-small")
        axes.grid(axis="x", alpha=0.3)
        axes.set_ylim(len(names) - 0.4, -0.6)
    for axes in list(panels.flat)[len(tables) :]:
        axes.remove()
    figure.suptitle("difference to the mean over the last layer; hollow: not told apart", fontsize="medium")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    write(found, PAGE)
    plot(found, PICTURE)
