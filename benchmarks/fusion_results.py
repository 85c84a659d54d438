"""
Measures every fusion, pooling and head on every data set, frozen and fine-tuned, and writes the tables of
docs/fusion_results.md.

Trains a tiny encoder on each data set of the repository. Then sweeps, probes and fine-tunes encoders of other clips:
five seeds, compared with the mean over the last layer on the same test clips. Finished runs are kept in the output
folder, so that a stopped script goes on; to begin anew, remove the folder.

`--packages FOLDER` adds data sets made of packages of Debian, see package_clips.py. `--encoder FOLDER` takes a
checkpoint of your own instead of the tiny encoders.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the trainings run in this process

import fusion_page
import numpy as np
import yaml
from fusion_runs import (
    BASELINE, ENCODER, OWN, PROBE_OPTIONS, RANDOM, RECIPE, Clips, configurations, depth, fine_tune, probe, probes,
    save_random, sweep, train_encoder,
)  # fmt: skip
from package_clips import LABEL_COLUMN, PACKAGES, make_clips
from report import versions
from training_runs import results_of

from training import compare

FINE_TUNED, FROZEN = "fine-tuned", "frozen"
DOMAINS = {"klettres-data": "voice_prompts", "hydrogen-drumkits": "instruments"}  # whose encoder is nearest


@dataclass(frozen=True)
class Cell:
    """Names a table: clips, the encoder and what it was trained on, and whether its weights are trained further."""

    clips: Clips
    encoder: Path
    origin: str
    half: str

    @property
    def place(self) -> str:
        return f"{self.clips.name}-{self.origin}"


def cells(data_sets: list[Clips], args: argparse.Namespace) -> Iterator[Cell]:
    """Yields all tables: the fine-tuned ones of the repository's own data sets, then the frozen ones of all."""
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


# ---- runs ----


def run_cell(cell: Cell, args: argparse.Namespace):
    """Runs what a table lacks; the seeds are the outer loop of the fine-tunings, so that each is complete."""
    swept, num_layers = args.output / "sweeps" / cell.place, depth(cell.encoder)
    sweep(cell.clips, cell.encoder, swept)
    if cell.half == FROZEN:
        for name, (words, methods) in probes(num_layers).items():
            folder = args.output / FROZEN / cell.place / name
            probe(cell.clips, cell.encoder, words or ["--from_sweep", swept], methods, args.seeds, folder)
        return
    for seed in range(args.seeds):
        for place, words in enumerate(configurations(num_layers).values()):
            folder = args.output / FINE_TUNED / cell.place / f"{place:02d}-seed{seed}"
            fine_tune(cell.clips, cell.encoder, words or ["--from_sweep", swept], seed, folder)


def predictions(cell: Cell, args: argparse.Namespace) -> list[compare.Run]:
    """Returns the predictions of every configuration with all its seeds, the baseline first."""
    num_layers = depth(cell.encoder)
    if cell.half == FROZEN:
        found = []
        for name, (_, methods) in probes(num_layers).items():
            runs = compare.read_runs(args.output / FROZEN / cell.place / name, name)
            named = {run.name: run for run in runs}
            found += [replace(named[f"{name}, {method}"], name=shown) for method, shown in methods.items()]
        order = [shown for _, methods in probes(num_layers).values() for shown in methods.values()]
        return compare.align(sorted(found, key=lambda run: (run.name != BASELINE, order.index(run.name))))
    runs, names = [], list(configurations(num_layers))
    for place in range(len(names)):
        for seed in range(args.seeds):
            folder = args.output / FINE_TUNED / cell.place / f"{place:02d}-seed{seed}"
            runs += compare.read_runs(folder, folder.name)
    runs, merged = compare.align(runs), []
    for place, name in enumerate(names):
        own = runs[place * args.seeds : (place + 1) * args.seeds]
        decisions = {str(seed): next(iter(run.decisions.values())) for seed, run in enumerate(own)}
        merged.append(replace(own[0], name=name, decisions=decisions))
    return merged


# ---- figures ----


def figures_of(cell: Cell, args: argparse.Namespace) -> dict:
    """Returns a table: scores with the deviation of the seeds, and paired differences to the baseline."""
    runs = predictions(cell, args)
    found = compare.compare(runs, "accuracy", compare.choose_pairs(runs, BASELINE))
    differences = {row["first"]: row for row in found["differences"]}
    rows = []
    for score, run in zip(found["scores"], runs):
        own = [float((decisions == run.targets).mean()) for decisions in run.decisions.values()]
        row = {"configuration": run.name, "accuracy": score["accuracy"], "by_seed": own}
        row["deviation_of_seeds"] = float(np.std(own, ddof=1)) if len(own) > 1 else None
        if run.name in differences:
            paired = differences[run.name]
            row |= {key: paired[key] for key in ("difference", "lower", "upper", "p", "p_holm")}
            row["verdict"] = paired["better"] if paired["better"] == compare.NOT_TOLD_APART else (
                "better" if paired["difference"] > 0 else "worse"
            )  # fmt: skip
        rows.append(row)
    return {
        "data_set": cell.clips.name, "half": cell.half, "encoder": cell.origin, "test_clips": found["clips"],
        "classes": len(runs[0].labels.names), "seeds": args.seeds, "permutations": found["permutations"], "rows": rows,
    }  # fmt: skip


def sweep_figures(cell: Cell, args: argparse.Namespace) -> dict:
    """Returns what a sweep has chosen, and how far its measures without labels agree with its scores."""
    results = results_of(args.output / "sweeps" / cell.place)
    best = results["best"]
    chosen = {key: best["model"].get(key) for key in ("fusion_layers", "readout", "pooling", "pooling_combination")}
    return {
        "data_set": cell.clips.name, "encoder": cell.origin, "clips": results["clips"], "chosen": chosen,
        "candidates": results["candidates"], "accuracy": best["accuracy"],
        "nested": best.get("nested", {}).get("accuracy"), "unlabelled": results["unlabelled"],
    }  # fmt: skip


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
    args = parser.parse_args()
    args.output = args.output.resolve()
    args.encoder = args.encoder and args.encoder.resolve()
    os.chdir(ROOT)
    data_sets, missing = prepare(args)
    tables, sweeps = [], {}
    for cell in cells(data_sets, args):
        run_cell(cell, args)
        tables.append(figures_of(cell, args))
        sweeps[cell.place] = sweep_figures(cell, args)
        print(f"{cell.clips.name}, {cell.half}, encoder {cell.origin}: done", flush=True)
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    report = {
        "versions": versions(),
        "encoder": str(args.encoder) if args.encoder else ENCODER,
        "epochs": {clips.name: clips.epochs for clips in data_sets if clips.epochs},
        "learning_rate": recipe["learning_rate"],
        "probe": PROBE_OPTIONS,
        "data_sets": {clips.name: asdict(clips)["label_column"] for clips in data_sets},
        "unmeasured": missing,
        "tables": tables,
        "sweeps": list(sweeps.values()),
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    fusion_page.write(report, args.page)
    print(f"figures: {args.json}; tables: {args.page}")


if __name__ == "__main__":
    main()
