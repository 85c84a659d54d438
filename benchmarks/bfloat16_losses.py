"""
Trains the same small model in float32 and with bfloat16 autocast on the embedded telephone prompts, with several seeds,
and compares the training losses: by how much the number formats differ, beside by how much the seeds do.

Weights stay float32 in both. Writes `losses.json`. Finished runs are not repeated: to begin anew, remove the output
folder.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import can_measure_bfloat16, print_table, versions, write_figures
from training_runs import ROOT, results_of, train

FORMATS = {"float32": "false", "bfloat16": "true"}


def run(number_format: str, seed: int, args: argparse.Namespace) -> dict:
    """Trains by the quickstart's recipe; returns the mean losses of each tenth of the steps, and the test's loss."""
    folder = args.output / f"{number_format}-seed{seed}"
    every = args.steps // 10
    words = ["--bf16", FORMATS[number_format], "--seed", seed, "--max_steps", args.steps]
    words += ["--logging_strategy", "steps", "--logging_steps", every]
    words += ["--eval_strategy", "no", "--save_strategy", "no", "--html_report", "false", "--warmup_steps", every]
    train(folder, 1, ROOT / "recipes" / "quickstart.yaml", *words)
    results = results_of(folder)
    losses = [entry["loss"] for entry in results["log"] if "loss" in entry]
    return {"losses": losses, "test": results["metrics"]["test"]["loss"]}


def compare(runs: dict[tuple[str, int], dict], seeds: range) -> list[list[str]]:
    """Makes the rows of the table: per tenth of the steps, and for the test, means and differences."""
    columns = {key: [*values["losses"], values["test"]] for key, values in runs.items()}
    rows = []
    for place, part in enumerate([*(f"{tenth}/10" for tenth in range(1, 11)), "test"]):
        losses = {name: [columns[name, seed][place] for seed in seeds] for name in FORMATS}
        differences = [two - one for one, two in zip(*losses.values())]
        rows.append([
            part,
            *(f"{statistics.mean(values):.4f}" for values in losses.values()),
            f"{statistics.mean(differences):+.4f}",
            f"{max(map(abs, differences)):.4f}",
            f"{max(losses['float32']) - min(losses['float32']):.4f}",
        ])  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bfloat16")
    parser.add_argument("--steps", type=int, default=1000, help="a multiple of 10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    args = parser.parse_args()
    args.output = args.output.resolve()
    if args.steps < 10 or args.steps % 10 or args.seeds < 1:
        parser.error(f"--steps is a multiple of 10 and --seeds at least 1, got {args.steps} and {args.seeds}")
    if not can_measure_bfloat16():
        return
    seeds = range(args.seeds)
    keys = [(name, seed) for seed in seeds for name in FORMATS]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = dict(zip(keys, pool.map(lambda key: run(*key, args), keys)))
    print(f"{versions()}\n\n{args.steps} steps of 8 clips, {args.seeds} seeds; losses\n")
    header = ["steps", *FORMATS, "difference, mean", "largest", "range of float32's seeds"]
    print_table(header, compare(runs, seeds))
    report = {
        "versions": versions(),
        "steps": args.steps,
        "runs": {"-seed".join(map(str, key)): runs[key] for key in keys},
    }
    write_figures(args.output / "losses.json", report)


if __name__ == "__main__":
    main()
