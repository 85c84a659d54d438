"""
Measures the gain from pretraining with few labels: the language of telephone prompts, from 2 to 32 labelled clips each.

Pretrains a small model on the training and validation clips without their labels. Fine-tunes it with few labels, and by
the same recipe the same model from random weights, each with several draws of the labelled clips. Beside them: a
logistic regression on log-mel statistics of the same clips. Writes a table, a plot and a JSON. Finished runs are not
repeated: to begin anew, remove the output folder.
"""

import argparse
import csv
import json
import random
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from report import print_table, versions
from training_runs import ROOT, embed, test_accuracy, train

sys.path.insert(0, str(ROOT))  # `training` is not installed

from training.embeddings.linear import probabilities, scaled
from training.embeddings.log_mel import LOG_MEL as LOG_MEL_MODEL
from training.embeddings.stored import read_embeddings

CLIPS = ROOT / "data" / "voice_prompts"
PRETRAINED, RANDOM, LOG_MEL = "pretrained", "random weights", "log-mel statistics"
COLOURS = {PRETRAINED: "tab:blue", RANDOM: "tab:orange", LOG_MEL: "tab:grey"}


@dataclass(frozen=True)
class Run:
    """Identifies a fine-tuning."""

    side: str
    num_labels: int  # per language
    seed: int

    @property
    def name(self) -> str:
        return f"{self.side.replace(' ', '_')}-{self.num_labels}-seed{self.seed}"


def read_rows(table: Path) -> list[dict[str, str]]:
    with open(table, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw_labelled(num_labels: int, seed: int, table: Path) -> list[dict[str, str]]:
    """Draws `num_labels` rows of the table per language. With one seed, smaller draws are subsets of larger ones."""
    rows = read_rows(table)
    chosen = []
    for language in sorted({row["language"] for row in rows}):
        own = [row for row in rows if row["language"] == language]
        if num_labels > len(own):
            raise SystemExit(f"{table}: holds {len(own)} clips for {language}, {num_labels} were asked for")
        chosen += random.Random(f"{seed}:{language}").sample(own, len(own))[:num_labels]
    return chosen


def write_manifest(rows: list[dict[str, str]], path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "language"])
        writer.writerows([CLIPS / row["file_name"], row["language"]] for row in rows)


def finetune(run: Run, args: argparse.Namespace) -> float:
    """Fine-tunes and returns the accuracy on the test clips."""
    folder, start = args.output / "finetuned" / run.name, args.output / "pretrained"
    if run.side == PRETRAINED:
        words = ["--model_name_or_path", start]
    else:  # the same features without the pretrained weights
        extractor = json.loads((start / "preprocessor_config.json").read_text(encoding="utf-8"))
        words = ["--mean", extractor["mean"], "--std", extractor["std"]]
        words += ["--learning_rate", args.random_learning_rate]
    manifest = args.output / "labelled" / f"{run.num_labels}-seed{run.seed}.csv"
    words += ["--train_file", manifest, "--test_file", args.test_file, "--seed", run.seed]
    # One process with one thread per core: short steps gain little from more threads.
    train(folder, 1, args.finetuning, *words)
    return test_accuracy(folder)


def log_mel_accuracies(
    draws: dict[tuple[int, int], list[dict[str, str]]], args: argparse.Namespace
) -> dict[tuple[int, int], float]:
    """Returns the test accuracy of a logistic regression on log-mel statistics for each draw of labelled clips."""
    table = CLIPS / "train.csv"
    path = args.output / f"log_mel-{args.test_file.stem}.parquet"
    embed(LOG_MEL_MODEL, [table, args.test_file], path)
    stored, rows, tests = read_embeddings(path), read_rows(table), read_rows(args.test_file)
    if [Path(name).name for name in stored.names] != [Path(row["file_name"]).name for row in rows + tests]:
        raise SystemExit(f"{path}: has not the clips of {table} and {args.test_file}; remove it")
    features = scaled(stored.vectors)
    places = {row["file_name"]: place for place, row in enumerate(rows)}
    labels, classes = np.unique([row["language"] for row in rows + tests], return_inverse=True)
    is_test = np.arange(len(classes)) >= len(rows)
    found = {}
    for draw, drawn in draws.items():
        chosen = [places[row["file_name"]] for row in drawn]
        answers = probabilities(features[chosen], classes[chosen], features[is_test], len(labels)).argmax(axis=1)
        found[draw] = float((answers == classes[is_test]).mean())
    return found


def plot(accuracies: dict[str, dict[int, list[float]]], title: str, path: Path):
    """Draws the mean over the draws, a dot per draw, and the range."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for side, by_labels in accuracies.items():
        counts = list(by_labels)
        colour = COLOURS[side]
        axes.plot(counts, [statistics.mean(values) for values in by_labels.values()], color=colour, label=side)
        lowest, highest = ([choose(values) for values in by_labels.values()] for choose in (min, max))
        axes.fill_between(counts, lowest, highest, color=colour, alpha=0.2, linewidth=0)
        for count, values in by_labels.items():
            axes.plot([count] * len(values), values, "o", color=colour, markersize=3)
    axes.axhline(0.2, color="grey", linestyle=":", label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="labelled clips per language", ylabel="accuracy", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pretrain_demo")
    parser.add_argument("--pretraining", type=Path, default=ROOT / "recipes" / "pretrain_demo.yaml")
    parser.add_argument("--finetuning", type=Path, default=ROOT / "recipes" / "pretrain_demo_finetune.yaml")
    parser.add_argument("--random-learning-rate", type=float, default=2e-4, help="of the side from random weights")
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="labelled clips per language")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the labelled clips")
    parser.add_argument("--test-file", type=Path, default=CLIPS / "test.csv", help="what the accuracies are of")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU cores to use")
    args = parser.parse_args()
    args.output, args.test_file = args.output.resolve(), args.test_file.resolve()
    args.finetuning = args.finetuning.resolve()

    train(args.output / "pretrained", args.threads, args.pretraining.resolve())
    table, counts = CLIPS / "train.csv", sorted(args.labels)
    draws = {(count, seed): draw_labelled(count, seed, table) for count in counts for seed in range(args.seeds)}
    for (count, seed), rows in draws.items():
        write_manifest(rows, args.output / "labelled" / f"{count}-seed{seed}.csv")
    runs = [Run(side, *draw) for draw in draws for side in (PRETRAINED, RANDOM)]
    with ThreadPoolExecutor(max(1, args.threads)) as pool:
        results = dict(zip(runs, pool.map(lambda run: finetune(run, args), runs)))

    results |= {Run(LOG_MEL, *draw): accuracy for draw, accuracy in log_mel_accuracies(draws, args).items()}

    accuracies = {
        side: {count: [results[Run(side, count, seed)] for seed in range(args.seeds)] for count in counts}
        for side in COLOURS
    }
    report = {"test_file": args.test_file.name, "accuracy": accuracies, "versions": versions()}
    (args.output / "pretraining_pays.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    title = f"telephone prompts in 5 languages, {args.seeds} draws"
    plot(accuracies, title, args.output / "pretraining_pays.png")

    print(versions())
    print(f"accuracy on {args.test_file.name}: mean of {args.seeds} draws (lowest-highest)\n")
    rows = []
    for count in counts:
        sides = [accuracies[side][count] for side in COLOURS]
        means = [statistics.mean(values) for values in sides]
        cells = [f"{mean:.2f} ({min(values):.2f}-{max(values):.2f})" for mean, values in zip(means, sides)]
        rows.append([str(count), *cells, f"{means[0] - means[1]:+.2f}"])
    print_table(["labelled clips per language", *COLOURS, "gain over random weights"], rows)
    print(f"\nplot and figures: {args.output / 'pretraining_pays.png'}, .json")


if __name__ == "__main__":
    main()
