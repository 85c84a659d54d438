"""
Measures every fusion, pooling and head on every data set, frozen and fine-tuned, and writes the tables of
docs/fusion_results.md.

Trains a tiny encoder on each data set of the repository. Then sweeps, probes and fine-tunes encoders of other clips
with several seeds, and compares with the mean over the last layer on the same test clips (training.compare). Finished
runs are kept in the output folder, so that a stopped script goes on; to begin anew, remove the folder.

`--packages FOLDER` adds data sets made of packages of Debian, see package_clips.py. `--encoder FOLDER` takes a
checkpoint of your own instead of the tiny encoders.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fusion_page
import yaml
from fusion_page import FINE_TUNED, FROZEN
from fusion_runs import (
    ENCODER,
    OWN,
    PROBE_OPTIONS,
    RANDOM,
    RECIPE,
    Clips,
    configurations,
    depth,
    fine_tune,
    probe,
    probes,
    save_random,
    sweep,
    train_encoder,
    words_of,
)
from package_clips import LABEL_COLUMN, PACKAGES, make_clips
from report import versions
from training_runs import ROOT, results_of

DOMAINS = {"klettres-data": "voice_prompts", "hydrogen-drumkits": "instruments"}  # whose encoder is nearest


@dataclass(frozen=True)
class Cell:
    """
    Describes a table.

    origin: what the encoder was trained on
    half: whether its weights are trained further
    """

    clips: Clips
    encoder: Path
    origin: str
    half: str

    @property
    def place(self) -> str:
        return f"{self.clips.name}-{self.origin}"


def cells(data_sets: list[Clips], args: argparse.Namespace) -> Iterator[Cell]:
    """Yields all tables: the fine-tuned ones of the repository's own data sets, and the frozen ones of all."""
    for half in args.halves:
        for clips in data_sets:
            if args.encoder:
                origins = {args.encoder.name: args.encoder}
            else:
                origin = DOMAINS.get(clips.name) or next(name for name in OWN if name != clips.name)
                origins = {name: args.output / "encoders" / name for name in (origin, RANDOM)}
            for origin, encoder in origins.items():
                if half == FROZEN or (clips.epochs and origin != RANDOM):
                    yield Cell(clips, encoder, origin, half)


def run_cell(cell: Cell, args: argparse.Namespace) -> dict[str, str]:
    """
    Runs what a table lacks: seed by seed, so that the first seeds are complete when the script is stopped.

    Returns:
        name of each run in the comparison -> title of its configuration, the baseline first
    """
    swept, num_layers, folder = args.output / "sweeps" / cell.place, depth(cell.encoder), folder_of(cell, args)
    sweep(cell.clips, cell.encoder, swept)
    if cell.half == FROZEN:
        found = probes(num_layers)
        for name, (configuration, methods) in found.items():
            fusion = words_of(configuration, swept)
            probe(cell.clips, cell.encoder, fusion, methods, args.seeds, folder / name)
        return {f"{name}, {method}": title for name, (_, own) in found.items() for method, title in own.items()}
    found = configurations(num_layers)
    for seed in range(args.seeds):
        for name, configuration in found.items():
            fusion = words_of(configuration, swept)
            fine_tune(cell.clips, cell.encoder, fusion, seed, folder / name / f"seed-{seed}")
    return {name: configuration.title for name, configuration in found.items()}


def folder_of(cell: Cell, args: argparse.Namespace) -> Path:
    return args.output / cell.half / cell.place


def figures_of(cell: Cell, titles: dict[str, str], args: argparse.Namespace) -> dict:
    """Returns a table: scores with the deviation of the seeds, and paired differences to the baseline."""
    folders = dict.fromkeys(folder_of(cell, args) / name.partition(",")[0] for name in titles)
    baseline, output = next(iter(titles)), args.output / "compared" / f"{cell.half}-{cell.place}"
    command = [sys.executable, "-m", "training.compare", *folders, "--baseline", baseline, "--output_dir", output]
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    scores = {row["run"]: row for row in found["scores"]}
    differences = {row["first"]: row for row in found["differences"]}
    rows = []
    for name, title in titles.items():
        row = {"configuration": title, "accuracy": scores[name]["accuracy"], "seeds": scores[name]["seeds"]}
        row["deviation_of_seeds"] = scores[name].get("deviation_of_seeds")
        if name != baseline:
            row |= {key: differences[name][key] for key in ("difference", "lower", "upper", "p_holm")}
            is_apart = differences[name]["p_holm"] < found["alpha"]
            row["verdict"] = fusion_page.verdict(row["difference"], is_apart)
        rows.append(row)
    facts = {"data_set": cell.clips.name, "half": cell.half, "encoder": cell.origin}
    return facts | {"test_clips": found["clips"], "permutations": found["permutations"], "rows": rows}


def sweep_figures(cell: Cell, args: argparse.Namespace) -> dict:
    """Returns what a sweep has chosen, and how far its measures without labels agree with its scores."""
    results = results_of(args.output / "sweeps" / cell.place)
    best = results["best"]
    names = ("fusion_layers", "readout", "pooling", "pooling_combination")
    return {
        "data_set": cell.clips.name,
        "encoder": cell.origin,
        "clips": results["clips"],
        "candidates": results["candidates"],
        "chosen": {name: best["model"][name] for name in names if name in best["model"]},
        "accuracy": best["accuracy"],
        "nested": best.get("nested", {}).get("accuracy"),
        "unlabelled": results["unlabelled"],
    }


def prepare(args: argparse.Namespace) -> tuple[list[Clips], list[str]]:
    """Makes clips and encoders; returns the data sets, and the packages that are not there."""
    data_sets, missing = [clips for clips in OWN.values() if clips.name in args.data_sets], []
    for name in PACKAGES:
        folder = args.output / "packages" / name
        if args.packages is None or not make_clips(args.packages, name, folder):
            missing.append(name)
        elif name in args.data_sets:
            data_sets.append(Clips(name, folder, LABEL_COLUMN))
    if not args.encoder:
        for clips in OWN.values():
            train_encoder(clips, args.output / "encoders" / clips.name)
        save_random(args.output / "encoders" / next(iter(OWN)), args.output / "encoders" / RANDOM)
    return data_sets, missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "fusion_results", help="folder of all runs")
    parser.add_argument("--packages", type=Path, help="folder with .deb files, or with packages taken apart")
    parser.add_argument("--encoder", type=Path, help="saved encoder to measure instead of the tiny ones")
    parser.add_argument("--data_sets", nargs="+", default=[*OWN, *PACKAGES], choices=[*OWN, *PACKAGES])
    parser.add_argument("--halves", nargs="+", default=[FINE_TUNED, FROZEN], choices=[FINE_TUNED, FROZEN])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=fusion_page.FIGURES, help="where the figures are written")
    parser.add_argument("--page", type=Path, default=fusion_page.PAGE, help="page whose tables are replaced")
    parser.add_argument("--picture", type=Path, default=fusion_page.PICTURE, help="where the figure is written")
    args = parser.parse_args()
    args.output = args.output.resolve()
    args.encoder = args.encoder and args.encoder.resolve()
    data_sets, missing = prepare(args)
    tables, sweeps = [], {}
    for cell in cells(data_sets, args):
        tables.append(figures_of(cell, run_cell(cell, args), args))
        sweeps[cell.place] = sweep_figures(cell, args)
        print(f"{cell.clips.name}, {cell.half}, encoder {cell.origin}: done", flush=True)
    report = {
        "versions": versions(),
        "encoder": args.encoder.name if args.encoder else ENCODER,
        "epochs": {clips.name: clips.epochs for clips in data_sets if clips.epochs},
        "learning_rate": yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["learning_rate"],
        "probe": PROBE_OPTIONS,
        "unmeasured": missing,
        "tables": tables,
        "sweeps": list(sweeps.values()),
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    fusion_page.write(report, args.page)
    fusion_page.plot(report, args.picture)
    print(f"figures: {args.json}; tables: {args.page}; picture: {args.picture}")


if __name__ == "__main__":
    main()
