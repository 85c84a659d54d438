"""
Measures the gain from the choice of layers and poolings: fine-tunes with the best of a sweep, with the mean over the
last layer (SSAST) and with the middle and last layer, mean + max (the default); several seeds, the same budget.

Pretrains a 12-layer model on the embedded recordings without their labels. For each data set, sweeps on its training
and validation clips, then fine-tunes. Writes a table and a JSON. Finished runs are not repeated: to begin anew, remove
the output folder.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from fusion_runs import OWN, SWEEP_RECIPE, sweep_words
from report import print_table, versions, write_figures
from training_runs import ROOT, results_of, test_accuracy, train

BEST = "best of the sweep"
FUSIONS = {
    "last layer, mean": ["--fusion_layers", "-1", "--pooling", "mean"],
    "middle and last, mean + max": ["--fusion_layers", "6", "12", "--pooling", "mean", "max"],
    BEST: [],
}


@dataclass(frozen=True)
class Run:
    """Identifies a fine-tuning."""

    data_set: str
    fusion: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data_set}-{list(FUSIONS).index(self.fusion)}-seed{self.seed}"


def sweep(data_set: str, args: argparse.Namespace) -> dict:
    """Runs the sweep and returns its `results.json`."""
    folder = args.output / f"sweep-{data_set}"
    train(folder, args.threads, SWEEP_RECIPE, *sweep_words(OWN[data_set], args.output / "pretrained"))
    return results_of(folder)


def finetune(run: Run, args: argparse.Namespace) -> float:
    """Fine-tunes and returns the accuracy on the test clips."""
    fusion = FUSIONS[run.fusion] or ["--from_sweep", args.output / f"sweep-{run.data_set}"]
    words = ["--model_name_or_path", args.output / "pretrained", *fusion, "--seed", run.seed]
    words += OWN[run.data_set].words()
    folder = args.output / "finetuned" / run.name
    train(folder, 1, args.finetuning, *words)
    return test_accuracy(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "fusion_demo")
    parser.add_argument("--pretraining", type=Path, default=ROOT / "recipes" / "fusion_demo.yaml")
    parser.add_argument("--finetuning", type=Path, default=ROOT / "recipes" / "fusion_demo_finetune.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU cores to use")
    args = parser.parse_args()
    args.output, args.finetuning = args.output.resolve(), args.finetuning.resolve()

    train(args.output / "pretrained", args.threads, args.pretraining.resolve())
    sweeps = {data_set: sweep(data_set, args) for data_set in OWN}
    runs = [Run(data_set, fusion, seed) for data_set in OWN for fusion in FUSIONS for seed in range(args.seeds)]
    # One process with one thread per core: short steps gain little from more threads.
    with ThreadPoolExecutor(max(1, args.threads)) as pool:
        accuracies = dict(zip(runs, pool.map(lambda run: finetune(run, args), runs)))

    print(versions())
    report = {"versions": versions(), "data_sets": {}}
    for data_set, found in sweeps.items():
        best = found["best"]
        settings = {name: value for name, value in best["model"].items() if name != "model_name_or_path"}
        num_clips = results_of(args.output / "finetuned" / Run(data_set, BEST, 0).name)["clips"]["test"]
        print(f"\n{data_set}: test accuracy on {num_clips} clips, mean of {args.seeds} seeds (lowest-highest)")
        print(
            f"the best of {found['candidates']} fusions on {found['clips']} clips: {settings}, {best['accuracy']:.3f}\n"
        )
        rows, by_fusion = [], {}
        for fusion in FUSIONS:
            values = [accuracies[Run(data_set, fusion, seed)] for seed in range(args.seeds)]
            by_fusion[fusion] = values
            rows.append([fusion, f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"])
        print_table(["fusion", "accuracy"], rows)
        report["data_sets"][data_set] = {"best": best, "sweep_seconds": found["seconds"], "accuracy": by_fusion}
    write_figures(args.output / "fusion_pays.json", report)


if __name__ == "__main__":
    main()
