"""
Measures every fusion, pooling and head on every data set, frozen and fine-tuned, and writes the tables of
docs/fusion_results.md. A run that lacks tables or seeds, or has another encoder, writes them into the output folder.

Trains a tiny encoder on each data set of the repository. Then sweeps, probes and fine-tunes encoders of other clips
with several seeds, and compares with the mean over the last layer on the same test clips (training.compare). Finished
runs are kept in the output folder, so that a stopped script goes on; to begin anew, remove the folder.

`--packages FOLDER` adds data sets made of packages of Debian, see package_clips.py. `--encoder FOLDER` takes a
checkpoint of your own instead of the tiny encoders.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
from soundscape_tags import WORDS, make_tags
from training_runs import ROOT, results_of

SOUNDSCAPES = "soundscapes"
# Whose encoder is nearest. The soundscapes are mixed of the instruments and the prompts; of the prompts their test
# recordings have test clips only.
DOMAINS = {SOUNDSCAPES: "voice_prompts", "klettres-data": "voice_prompts", "hydrogen-drumkits": "instruments",
           "fluid-soundfont-gm": "instruments"}  # fmt: skip
KNOWN, HALVES, SEEDS = [*OWN, SOUNDSCAPES, *PACKAGES], [FINE_TUNED, FROZEN], 5  # all that the page of docs/ has
GROUPS = {"fluid-soundfont-gm": "group"}  # package -> column of what folds and comparisons do not divide


@dataclass(frozen=True)
class Cell:
    """
    Describes a table.

    origin: what the encoder was trained on, or `RANDOM`
    half: `FROZEN`, or `FINE_TUNED`: its weights are trained further
    """

    clips: Clips
    encoder: Path
    origin: str
    half: str

    @property
    def place(self) -> str:
        return f"{self.clips.name}-{self.origin}"

    @property
    def facts(self) -> dict[str, str]:
        """Returns what names the table in the figures."""
        return {"data_set": self.clips.name, "half": self.half, "encoder": self.origin}


def cells(data_sets: list[Clips], args: argparse.Namespace) -> Iterator[Cell]:
    """
    Yields all tables: the frozen ones of all data sets, the fine-tuned ones of the repository's own, and the frozen
    ones of random weights.
    """
    found = []
    for clips in data_sets:
        if args.encoder:
            origins = {args.encoder.name: args.encoder}
        else:
            origin = DOMAINS.get(clips.name) or next(name for name in OWN if name != clips.name)
            origins = {name: args.output / "encoders" / name for name in (origin, RANDOM)}
        found += [(clips, encoder, origin) for origin, encoder in origins.items()]
    for half, at_random in ((FROZEN, False), (FINE_TUNED, False), (FROZEN, True)):
        for clips, encoder, origin in found:
            if (origin == RANDOM) == at_random and (half == FROZEN or clips.epochs):
                yield Cell(clips, encoder, origin, half)


def jobs(all_cells: list[Cell], args: argparse.Namespace) -> Iterator[tuple[str, Callable]]:
    """
    Yields name and call of every run: probes table by table, and fine-tunings seed by seed, so that a script that is
    stopped has whole tables with fewer seeds.
    """
    for half, own in itertools.groupby(all_cells, key=lambda cell: cell.half):
        own = list(own)
        for seed in range(args.seeds if half == FINE_TUNED else 1):
            for cell in own:
                if seed == 0:
                    swept = args.output / "sweeps" / cell.place
                    yield f"{cell.place}, sweep", partial(sweep, cell.clips, cell.encoder, swept)
                yield from (fine_tunings_of(cell, seed, args) if half == FINE_TUNED else probes_of(cell, args))


def fine_tunings_of(cell: Cell, seed: int, args: argparse.Namespace) -> Iterator[tuple[str, Callable]]:
    """Yields the fine-tunings of a table with one seed."""
    for name, configuration in configurations(depth(cell.encoder)).items():
        fusion = words_of(configuration, args.output / "sweeps" / cell.place)
        folder = folder_of(cell, args) / name / f"seed-{seed}"
        yield f"{cell.place}, {name}, seed {seed}", partial(fine_tune, cell.clips, cell.encoder, fusion, seed, folder)


def probes_of(cell: Cell, args: argparse.Namespace) -> Iterator[tuple[str, Callable]]:
    """Yields the probes of a table, each with all seeds."""
    for name, (configuration, methods) in probes(depth(cell.encoder)).items():
        fusion = words_of(configuration, args.output / "sweeps" / cell.place)
        folder = folder_of(cell, args) / name
        yield (
            f"{cell.place}, probe {name}",
            partial(probe, cell.clips, cell.encoder, fusion, methods, args.seeds, folder),
        )


def titles_of(cell: Cell) -> dict[str, str]:
    """Returns name of each run in the comparison -> title of its configuration, the baseline first."""
    if cell.half == FROZEN:
        found = probes(depth(cell.encoder))
        return {f"{name}, {method}": title for name, (_, own) in found.items() for method, title in own.items()}
    return {name: configuration.title for name, configuration in configurations(depth(cell.encoder)).items()}


def folder_of(cell: Cell, args: argparse.Namespace) -> Path:
    return args.output / cell.half / cell.place


def is_finished(cell: Cell, args: argparse.Namespace) -> bool:
    """Returns whether every configuration has a finished run, if not with all seeds."""
    seed = "seed-0" if cell.half == FINE_TUNED else ""
    names = {name.partition(",")[0] for name in titles_of(cell)}
    return all((folder_of(cell, args) / name / seed / "results.json").exists() for name in names)


def figures_of(cell: Cell, titles: dict[str, str], args: argparse.Namespace) -> dict:
    """
    Returns a table: scores with the deviation of the seeds, and paired differences to the baseline. Where the last
    seeds are not finished for all configurations, training.compare leaves them out.
    """
    folders = dict.fromkeys(folder_of(cell, args) / name.partition(",")[0] for name in titles)
    baseline, output = next(iter(titles)), args.output / "compared" / f"{cell.half}-{cell.place}"
    command = [sys.executable, "-m", "training.compare", *folders, "--baseline", baseline, "--output_dir", output]
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    metric, scores = found["metric"], {row["run"]: row for row in found["scores"]}
    differences = {row["first"]: row for row in found["differences"]}
    rows = []
    for name, title in titles.items():
        row = {"configuration": title, "score": scores[name][metric], "seeds": scores[name]["seeds"]}
        row["deviation_of_seeds"] = scores[name].get("deviation_of_seeds")
        if name != baseline:
            row |= {key: differences[name][key] for key in ("difference", "lower", "upper", "p_holm")}
            is_apart = differences[name]["p_holm"] < found["alpha"]
            row["verdict"] = fusion_page.verdict(row["difference"], is_apart)
        rows.append(row)
    facts = {"test_clips": found["clips"], "metric": metric, "resampled": found["resampled"]}
    return cell.facts | facts | {"permutations": found["permutations"], "rows": rows}


def sweep_figures(cell: Cell, args: argparse.Namespace) -> dict:
    """Returns what a sweep has chosen, and how far its measures without labels agree with its scores."""
    results = results_of(args.output / "sweeps" / cell.place)
    best = results["best"]
    names = ("fusion_layers", "readout", "pooling", "pooling_combination")
    metric = next(name for name in ("accuracy", "mean_average_precision") if name in best)
    return {
        "data_set": cell.clips.name,
        "encoder": cell.origin,
        "clips": results["clips"],
        "candidates": results["candidates"],
        "chosen": {name: best["model"][name] for name in names if name in best["model"]},
        "score": best[metric],
        "nested": best.get("nested", {}).get(metric),
        "unlabelled": results["unlabelled"],
    }


def prepare(args: argparse.Namespace) -> list[Clips]:
    """Makes clips and encoders; returns the data sets, without those whose package is not there."""
    data_sets = [clips for clips in OWN.values() if clips.name in args.data_sets]
    if SOUNDSCAPES in args.data_sets:
        folder = args.output / SOUNDSCAPES
        make_tags(folder)
        data_sets.append(Clips(SOUNDSCAPES, folder, "labels", epochs=6, group_column="group", options=WORDS))
    for name in PACKAGES:
        folder = args.output / "packages" / name
        if name in args.data_sets and args.packages is not None and make_clips(args.packages, name, folder):
            data_sets.append(Clips(name, folder, LABEL_COLUMN, group_column=GROUPS.get(name)))
    if not args.encoder:
        for clips in OWN.values():
            train_encoder(clips, args.output / "encoders" / clips.name)
        save_random(args.output / "encoders" / next(iter(OWN)), args.output / "encoders" / RANDOM)
    return data_sets


def is_complete(report: dict, args: argparse.Namespace) -> bool:
    """Returns whether a report has all tables of docs/fusion_results.md with all their seeds."""
    finished = [row["seeds"] for table in report["tables"] for row in table["rows"]]
    return not (args.encoder or report["unmeasured"]) and min(finished) >= SEEDS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "fusion_results", help="folder of all runs")
    parser.add_argument("--packages", type=Path, help="folder with .deb files, or with packages taken apart")
    parser.add_argument("--encoder", type=Path, help="saved encoder to measure instead of the tiny ones")
    parser.add_argument("--data_sets", nargs="+", default=KNOWN, choices=KNOWN)
    parser.add_argument("--halves", nargs="+", default=HALVES, choices=HALVES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--finished", action="store_true", help="run nothing: write the figures of finished runs")
    where = "unset: docs/ and benchmarks/ if the run is complete, the output folder if not"
    parser.add_argument("--json", type=Path, help=f"where the figures are written; {where}")
    parser.add_argument("--page", type=Path, help="page whose tables are replaced")
    parser.add_argument("--picture", type=Path, help="where the figure is written")
    args = parser.parse_args()
    args.output = args.output.resolve()
    args.encoder = args.encoder and args.encoder.resolve()
    data_sets = prepare(args)
    every = list(cells(data_sets, args))
    planned = [cell for cell in every if cell.half in args.halves]
    for name, job in [] if args.finished else jobs(planned, args):
        started = time.perf_counter()
        job()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    measured = [cell for cell in planned if is_finished(cell, args)]
    if not measured:
        raise SystemExit(f"{args.output}: no table is finished; nothing is written")
    missing = [name for name in KNOWN if name not in {clips.name for clips in data_sets}]
    missing += [fusion_page.title_of(cell.facts) for cell in every if cell not in measured]
    tables = [figures_of(cell, titles_of(cell), args) for cell in measured]
    swept = {cell.place: cell for cell in planned if (args.output / "sweeps" / cell.place / "results.json").exists()}
    report = {
        "versions": versions(),
        "encoder": args.encoder.name if args.encoder else ENCODER,
        "epochs": {clips.name: clips.epochs for clips in data_sets if clips.epochs},
        "learning_rate": yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["learning_rate"],
        "probe": PROBE_OPTIONS,
        "seeds": args.seeds,
        "unmeasured": missing,
        "tables": tables,
        "sweeps": [sweep_figures(cell, args) for cell in swept.values()],
    }
    write(report, args)


def write(report: dict, args: argparse.Namespace):
    """Writes figures, page and picture; those of the repository are replaced by a complete run alone, or by name."""
    defaults = (fusion_page.FIGURES, fusion_page.PAGE, fusion_page.PICTURE)
    if not is_complete(report, args):
        # The page names its picture as `images/NAME`.
        places = (args.output, args.output, args.output / fusion_page.PICTURE.parent.name)
        defaults = [place / path.name for place, path in zip(places, defaults)]
    figures, page, picture = (given or own for given, own in zip((args.json, args.page, args.picture), defaults))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    fusion_page.write(report, page)
    fusion_page.plot(report, picture)
    print(f"figures: {figures}; tables: {page}; picture: {picture}")


if __name__ == "__main__":
    main()
