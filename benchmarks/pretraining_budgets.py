"""
Measures what pretraining on two CPU cores is worth: small encoders by several objectives and budgets, frozen, beside
random weights and log-mel statistics.

Pretrains on the corpus of pretraining_corpus.py. Each encoder is read as a user would read it: a sweep chooses layers,
readout and poolings, and its nested score is that of the whole choice. Log-mel statistics get the same clips, folds and
regression, and the choice among three kinds of them. The clips are of package_clips.py, and a fold never divides a
group: a drum is asked for by other kits, an instrument family by other programs, a consonant before other
vowels, a tone in other syllables.

A budget is a number of steps, so that it is the same on every machine; the table has the minutes that they took.
Finished runs are not repeated: to begin anew, remove the output folder.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas
import pretraining_corpus
import soundfile
import torch
import yaml
from fusion_page import choice_text
from fusion_runs import SWEEP_RECIPE, save_random
from matplotlib.figure import Figure
from package_clips import CHECKS, LABEL_COLUMN, SPLITS, make_clips
from report import print_table, versions
from training_runs import ROOT, results_of, train, train_here

sys.path.insert(0, str(ROOT))  # `training` is not installed

from modeling_dual_ssast import DualSSASTFeatureExtractor
from training import tasks
from training.base.log_mel_statistics import log_mel_statistics
from training.base.ridge import make_targets, metric_of, score_folds
from training.data.columns import stored_paths
from training.data.labels import find_labels
from training.data.splits import make_folds
from training.embeddings.choice import BEST, compare_with, half_interval, nested_scores, share_of_tests
from training.embeddings.sweep import load_clips

RECIPE = ROOT / "recipes" / "pretraining_budgets.yaml"
# Without the letters, which log-mel statistics solve.
DRUMS = "hydrogen-drumkits"
SETS = (DRUMS, "fluid-soundfont-gm", "mandarin-initials", "mandarin-tones")
RANDOM, LOG_MEL = "random weights", "log-mel statistics"
LINES = ("-", "--", ":")
MOST_CLIPS = 500  # per set: a sweep of them takes half a minute
SHORTEST_S = 0.2  # of a cut of the corpus: effects are short
NUM_FOLDS, NUM_REPEATS = 6, 2  # twelve drum kits
RIDGE = (0.1, 0.01)  # penalties per feature, for all alike
KINDS = ((0,), (0, 1), (0, 1, 2))  # of log-mel statistics: mean; and deviation; and change


@dataclass(frozen=True)
class Variant:
    """
    Describes a way to pretrain.

    Args:
        config: fields of the configuration that differ from the recipe's
        settings: other settings that differ
    """

    title: str
    config: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)


FRAMES = {"patch_size": [128, 4], "frequency_stride": 128, "time_stride": 4}
GENERATIVE, CONTRAST = {"pretraining_objective": "generative"}, {"clip_contrast_weight": 1.0}
FRAMES_CONTRAST = FRAMES | GENERATIVE | CONTRAST
BATCH = "per_device_train_batch_size"
SHORT = {"max_length": 112, BATCH: 128}  # as many tokens in a batch
VARIANTS = {
    "joint": Variant("both objectives (SSAST)"),
    "generative": Variant("generative", GENERATIVE),
    "contrast": Variant("generative and contrast", GENERATIVE | CONTRAST),
    "joint_contrast": Variant("both and contrast", CONTRAST),
    "frames_joint": Variant("frames: both objectives (SSAST)", FRAMES),
    "frames_generative": Variant("frames: generative", FRAMES | GENERATIVE),
    "frames_contrast": Variant("frames: generative and contrast", FRAMES_CONTRAST),
    "frames_half": Variant("frames: generative and contrast, half masked", FRAMES_CONTRAST | {"mask_ratio": 0.5}),
    "frames_short": Variant("frames: generative and contrast, 1.1 s, batch 128", FRAMES_CONTRAST, SHORT),
    "frames_short_256": Variant(
        "frames: generative and contrast, 1.1 s, batch 256", FRAMES_CONTRAST, SHORT | {BATCH: 256}
    ),
}


@dataclass(frozen=True)
class Run:
    """Identifies a pretraining."""

    variant: str
    steps: int
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> "Run":
        """Reads `VARIANT:STEPS`, or `VARIANT:STEPS:SEED`."""
        variant, *numbers = text.split(":")
        if variant not in VARIANTS:
            raise argparse.ArgumentTypeError(f"{variant}: no variant; choose from {', '.join(VARIANTS)}")
        if len(numbers) not in (1, 2) or not all(number.isdecimal() for number in numbers) or numbers[0] == "0":
            raise argparse.ArgumentTypeError(f"{text}: write VARIANT:STEPS or VARIANT:STEPS:SEED")
        return cls(variant, *map(int, numbers))

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.steps}-seed{self.seed}"

    @property
    def title(self) -> str:
        return f"{VARIANTS[self.variant].title}, {self.steps} steps, seed {self.seed}"

    @property
    def shape(self) -> str:
        """Returns the kind of patches: encoders of one kind have the same random weights."""
        return "frames" if "patch_size" in VARIANTS[self.variant].config else "patches"


def pretrain(run: Run, corpus: Path, args: argparse.Namespace) -> Path:
    """Pretrains, and returns the folder of the encoder."""
    variant, folder = VARIANTS[run.variant], args.output / "encoders" / run.name
    # Words of the command line replace a dictionary of the recipe as a whole.
    config = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["config_overrides"] | variant.config
    words = ["--train_sources", corpus / "train.csv", "--config_overrides", json.dumps(config), "--seed", run.seed]
    words += [word for name, value in variant.settings.items() for word in (f"--{name}", value)]
    train(folder, args.threads, RECIPE, *words, "--max_steps", run.steps)
    return folder


# ---- scores ----


def join_splits(folder: Path) -> Path:
    """
    Writes the clips of all splits to one table: the folds divide them. The groups of drums are kits: their authors, the
    groups of package_clips.py, are too few.
    """
    path = folder / "all.csv"
    table = pandas.concat(
        pandas.read_csv(folder / f"{split}.csv", dtype=str, keep_default_na=False) for split in SPLITS
    )
    if folder.name == DRUMS:
        table["group"] = [Path(source).parent.name for source in table["source"]]
    table.to_csv(path, index=False)
    return path


def sweep_words(table: Path) -> list:
    """Returns the words of a sweep's command line that name clips and folds."""
    return [
        *("--train_file", table, "--label_column", LABEL_COLUMN, "--group_column", "group"),
        *("--validation_fraction", 0, "--test_fraction", 0, "--num_folds", NUM_FOLDS),
        *("--num_repeats", NUM_REPEATS, "--max_clips", MOST_CLIPS),
        *("--readouts", "patches", "frames", "--ridge", *RIDGE, "--dataloader_num_workers", 0),
    ]


def score_encoder(encoder: Path, table: Path, folder: Path) -> tuple[np.ndarray, str]:
    """Sweeps an encoder; returns the nested scores of the folds, and what is chosen on all clips."""
    train_here(folder, SWEEP_RECIPE, "--model_name_or_path", encoder, *sweep_words(table))
    best = results_of(folder)[BEST]
    return np.array(best["nested"]["folds"]), choice_text(best["model"])


def score_log_mel(encoder: Path, table: Path) -> tuple[np.ndarray, float]:
    """
    Scores log-mel statistics as a sweep scores an encoder: the same clips, folds and penalties.

    Returns:
        the nested scores of the folds, and the number of held-out clips of a fold for each training clip
    """
    words = [SWEEP_RECIPE, "--model_name_or_path", encoder, *sweep_words(table)]
    _, _, data_arguments, arguments = tasks.parse([str(word) for word in words])
    clips = load_clips(data_arguments, arguments)
    label_set = find_labels(clips["label"], data_arguments.problem_type)
    folds = make_folds(clips, arguments.num_folds, label_set.is_single, arguments.seed, arguments.num_repeats)
    parts = np.split(np.stack([statistics(path) for path in stored_paths(clips)]), 3, axis=1)
    scores = score_folds(
        lambda place: parts[place],
        [list(kind) for kind in KINDS],
        make_targets(clips["label"], label_set),
        folds,
        arguments.ridge,
        metric_of(label_set.problem_type)[1],
    )
    share = share_of_tests(folds)
    return nested_scores(BEST, scores, range(len(KINDS)), share), share


def statistics(path: str) -> np.ndarray:
    """Returns mean, deviation and change of each mel bin of a clip: float64 (3 mel,)"""
    samples, rate = soundfile.read(path, dtype="float32")
    extractor = DualSSASTFeatureExtractor()
    log_mel = extractor([torch.from_numpy(samples)], rate, padding=False)["input_values"][0]
    return log_mel_statistics(log_mel).double().numpy()


# ---- the whole ----


def measure(runs: list[Run], args: argparse.Namespace) -> dict:
    """Pretrains and scores everything that is not finished; returns the report."""
    tables = {}
    for name in args.sets:
        folder = args.output / "clips" / name
        if not make_clips(args.packages, name, folder):
            package = CHECKS[name][0]
            raise SystemExit(f"{args.packages}: lacks {package}; there, run: apt-get download {package}")
        tables[name] = join_splits(folder)
    corpus = args.output / "corpus"
    if not corpus.exists():
        cutting = pretraining_corpus.Cutting(shortest_s=SHORTEST_S)
        pretraining_corpus.make_corpus(
            args.packages, corpus, held_out=[ROOT / "data"], cutting=cutting, threads=args.parallel
        )
    with ThreadPoolExecutor(args.parallel) as pool:
        folders = dict(zip(runs, pool.map(lambda run: pretrain(run, corpus, args), runs)))
    report = {"runs": {}, "scores": {}}
    for run, folder in folders.items():
        training = results_of(folder)["training"]
        facts = {"minutes": training["seconds"] / 60, "audio_hours": training["audio_hours"]}
        report["runs"][run.name] = asdict(run) | {"title": run.title, "shape": run.shape} | facts
    random_ones = {run.shape: args.output / "encoders" / f"random-{run.shape}" for run in runs}
    for run, folder in folders.items():
        save_random(folder, random_ones[run.shape])
    for name, table in tables.items():
        report["scores"][name] = score_all(name, table, folders, random_ones, args.output / "sweeps")
    return report


def score_all(
    name: str, table: Path, folders: dict[Run, Path], random_ones: dict[str, Path], sweeps: Path
) -> list[dict]:
    """Returns a row for the statistics, for each kind of random weights, and for each encoder beside both baselines."""
    log_mel, share = score_log_mel(next(iter(folders.values())), table)
    rows = [row_of(LOG_MEL, log_mel, share, {})]
    at_random = {}
    for shape, encoder in random_ones.items():
        at_random[shape], chosen = score_encoder(encoder, table, sweeps / f"{encoder.name}-{name}")
        rows.append(row_of(f"{RANDOM}, {shape}", at_random[shape], share, {LOG_MEL: log_mel}, chosen))
    for run, encoder in folders.items():
        folds, chosen = score_encoder(encoder, table, sweeps / f"{encoder.name}-{name}")
        baselines = {LOG_MEL: log_mel, RANDOM: at_random[run.shape]}
        rows.append(row_of(run.title, folds, share, baselines, chosen))
    return rows


def row_of(title: str, folds: np.ndarray, share: float, baselines: dict[str, np.ndarray], chosen: str = "") -> dict:
    """Returns a mean score with half of its interval, and the difference to each baseline with its p-value."""
    row = {"features": title, "nested": float(folds.mean()), "interval": float(half_interval(folds, share))}
    beyond = {name: compare_with(baseline, folds[None], share) for name, baseline in baselines.items()}
    row["beyond"] = {name: {key: float(found[key][0]) for key in ("difference", "p")} for name, found in beyond.items()}
    return row | {"folds": folds.tolist(), "chosen": chosen}


def plot(report: dict, path: Path):
    """Draws the nested scores against the steps, a panel per set of clips; statistics and random weights as lines."""
    figure = Figure(figsize=(3.2 * len(report["scores"]), 3.6), layout="constrained")
    panels = figure.subplots(1, len(report["scores"]), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, report["scores"].items()):
        found = {row["features"]: row["nested"] for row in rows}
        for variant in VARIANTS:
            points = sorted(
                (run["steps"], found[run["title"]]) for run in report["runs"].values() if run["variant"] == variant
            )
            if points:
                axes.plot(*zip(*points), "o-", markersize=3, label=VARIANTS[variant].title)
        for title, style in zip([title for title in found if title.startswith((LOG_MEL, RANDOM))], LINES):
            axes.axhline(found[title], color="grey", linestyle=style, linewidth=1, label=title)
        axes.set(title=name, xlabel="steps", xscale="log")
    panels[0].set_ylabel("accuracy (nested)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with the .deb files")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pretraining_budgets")
    parser.add_argument(
        "--runs", type=Run.parse, nargs="+", metavar="VARIANT:STEPS[:SEED]", default=[Run(v, 250) for v in VARIANTS],
        help=f"pretrainings; variants: {', '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument("--sets", nargs="+", choices=list(CHECKS), default=list(SETS), help="labelled clips")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--parallel", type=int, default=max(1, torch.get_num_threads()), help="runs at a time")
    args = parser.parse_args()
    args.output, args.packages = args.output.resolve(), args.packages.resolve()
    report = measure(args.runs, args) | {"versions": versions()}
    (args.output / "pretraining_budgets.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(report, args.output / "pretraining_budgets.png")
    print(versions())
    rows = [[run["title"], f"{run['minutes']:.1f}", f"{run['audio_hours']:.1f}"] for run in report["runs"].values()]
    print_table(["pretraining", "minutes", "hours of audio"], rows)
    print("\nnested score of the sweep's choice, and the difference to each baseline (p)\n")
    for name, found in report["scores"].items():
        rows = [
            [
                row["features"],
                f"{row['nested']:.3f} +- {row['interval']:.3f}",
                *(cell_of(row["beyond"].get(baseline)) for baseline in (LOG_MEL, RANDOM)),
                row["chosen"],
            ]
            for row in found
        ]
        print_table([name, "accuracy", f"to {LOG_MEL}", f"to {RANDOM}", "chosen"], rows)
        print()
    print(f"plot and figures: {args.output / 'pretraining_budgets.png'}, .json")


def cell_of(found: dict | None) -> str:
    return "" if found is None else f"{found['difference']:+.3f} ({found['p']:.2f})"


if __name__ == "__main__":
    main()
