"""
Measures what pretraining on two CPU cores is worth: small encoders by several objectives and budgets, frozen, beside
random weights and log-mel statistics.

Pretrains on the corpus of pretraining_corpus.py. Each encoder is read as a user would read it. With all labels a sweep
chooses layers, readout and poolings, and its nested score is that of the whole choice; log-mel statistics get the same
clips, folds and regression, and the choice among three kinds of them. With few labels nothing is chosen: mean and
deviation of the time frames of the middle and last layer, and a logistic regression on some clips of each class, ten
draws in each of the same folds; log-mel statistics have mean, deviation and change.

`--finetune` fine-tunes encoders and random weights with few labels: the first draw of each fold, each fold with another
seed. A fold gets the learning rate that is best, with four labels, in the other folds.

Pretrainings that differ in their seed alone share a row, the mean of their scores fold by fold; so do random weights,
of three seeds.

The clips are of package_clips.py, and a fold never divides a group: a drum is asked for by other kits, an instrument
family by other programs, a language by other letters, a consonant before other vowels, a tone in other syllables.

A budget is a number of steps, so that it is the same on every machine; the table has the minutes that they took.
Finished runs are not repeated: to begin anew, remove the output folder.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas
import pretraining_corpus
import torch
import yaml
from fusion_page import choice_text
from fusion_runs import SWEEP_RECIPE, save_random
from matplotlib import colormaps
from matplotlib.figure import Figure
from package_clips import CHECKS, LABEL_COLUMN, SPLITS, make_clips
from report import print_table, versions
from sklearn.model_selection import train_test_split
from training_runs import ROOT, embed, results_of, test_accuracy, train, train_here

sys.path.insert(0, str(ROOT))  # `training` is not installed

from training import tasks
from training.base.ridge import make_targets, metric_of, score_folds
from training.data.labels import find_labels
from training.data.splits import make_folds
from training.embeddings.choice import BEST, compare_with, half_interval, nested_scores, share_of_tests
from training.embeddings.linear import probabilities, scaled
from training.embeddings.log_mel import LOG_MEL as LOG_MEL_MODEL
from training.embeddings.stored import read_embeddings
from training.embeddings.sweep import load_clips

RECIPE = ROOT / "recipes" / "small_encoder.yaml"
FINETUNING = RECIPE.with_name("small_encoder_finetune.yaml")
DRUMS = "hydrogen-drumkits"
RANDOM, LOG_MEL = "random weights", "log-mel statistics"
LINES = ("-", "--", ":", "-.")
MOST_CLIPS = 500  # per set: a sweep of them takes half a minute
SHORTEST_S = 0.2  # of a cut of the corpus: effects are short
NUM_FOLDS = 6  # twelve drum kits
RIDGE = (0.1, 0.01)  # penalties per feature, for all alike
FEW = (2, 4, 8, 16)  # labelled clips of each class
NUM_DRAWS = 10  # of them, in each fold
RATES = (5e-5, 2e-4, 1e-3)  # of fine-tuning
STEPS, EPOCHS = 60, 8  # whichever is longer
RATE_LABELS = 4  # labelled clips of each class with which a rate is chosen
RANDOM_SEEDS = (0, 1, 2)
READING = ("--readout", "frames", "--pooling", "mean", "std", "--pooling_combination", "concat")  # of the fused layers
ALL = "all"  # labels
Scores = dict[str, np.ndarray]  # labelled clips of each class -> accuracy on the held-out clips of each fold
KINDS = ((0,), (0, 1), (0, 1, 2))  # of log-mel statistics: mean; and deviation; and change


def read_recipe(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Variant:
    """
    Describes a way to pretrain.

    Args:
        config: fields of the configuration that differ from the recipe's
        settings: other settings that differ
        recipe: another one than `RECIPE`
        patch: mel bins and frames of a patch, whatever the recipe has: so a measured variant stays the same
    """

    title: str
    config: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    recipe: Path = RECIPE
    patch: tuple[int, int] = (16, 16)

    @property
    def config_overrides(self) -> dict:
        mels, frames = self.patch
        patches = {"patch_size": [mels, frames], "frequency_stride": mels, "time_stride": frames}
        return read_recipe(self.recipe)["config_overrides"] | patches | self.config


FRAMES = (128, 4)
JOINT = {"pretraining_objective": "joint", "clip_contrast_weight": 0.0}  # SSAST's own
COMMON = (  # settings of the recipe that are no part of a method
    "max_length", "compute_statistics", "validation_clips", "per_device_train_batch_size", "bf16", "health_clips",
    "dataloader_num_workers",
)  # fmt: skip
# The first tenth of 250 steps, an epoch, raises the rate.
ASIT = {name: read_recipe(RECIPE)[name] for name in COMMON} | {
    "sampling_rate": 16000, "epoch_steps": 25, "warmup_epochs": 1,
}  # fmt: skip
SHORT = {"max_length": 112, "per_device_train_batch_size": 128}  # as many tokens in a batch
VARIANTS = {
    "joint": Variant("both objectives (SSAST)", JOINT),
    "joint_two_pass": Variant("both objectives (SSAST), a mask and a pass each", JOINT | {"shared_mask": False}),
    "contrast": Variant("generative and contrast"),
    "contrast_light": Variant("generative and a tenth of the contrast", {"clip_contrast_weight": 0.1}),
    "contrast_fast": Variant("generative and contrast, rate 2e-3", settings={"learning_rate": 2e-3}),
    "contrast_slow": Variant("generative and contrast, rate 1.25e-4", settings={"learning_rate": 1.25e-4}),
    "contrast_half": Variant("generative and contrast, half masked", {"mask_ratio": 0.5}),
    "contrast_most": Variant("generative and contrast, nine tenths masked", {"mask_ratio": 0.9}),
    "contrast_single": Variant("generative and contrast, single patches masked", {"clustered_mask": False}),
    "contrast_audioset": Variant(
        "generative and contrast, statistics of AudioSet", settings={"compute_statistics": False}
    ),
    "contrast_full": Variant("generative and contrast, full encoding", {"num_decoder_layers": 0}),
    "contrast_32": Variant("generative and contrast, batch 32", settings={"per_device_train_batch_size": 32}),
    "contrast_128": Variant("generative and contrast, batch 128", settings={"per_device_train_batch_size": 128}),
    "asit": Variant("ASiT", {"num_hidden_layers": 6}, ASIT, ROOT / "recipes" / "asit_tiny_patch.yaml"),
    "bands_contrast": Variant("generative and contrast", patch=(32, 8)),
    "frames_joint": Variant("both objectives (SSAST)", JOINT, patch=FRAMES),
    "frames_contrast": Variant("generative and contrast", patch=FRAMES),
    "frames_short": Variant("generative and contrast, 1.1 s, batch 128", settings=SHORT, patch=FRAMES),
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
        """Returns what runs have in common that differ in their seed."""
        return f"{VARIANTS[self.variant].title}, {self.shape}, {self.steps} steps"

    @property
    def shape(self) -> str:
        """Returns mel bins and frames of a patch, such as 32x8: encoders of one shape have the same random weights."""
        return "{}x{}".format(*VARIANTS[self.variant].patch)


def pretrain(run: Run, corpus: Path, args: argparse.Namespace) -> Path:
    """Pretrains, and returns the folder of the encoder."""
    variant, folder = VARIANTS[run.variant], args.output / "encoders" / run.name
    # Words of the command line replace a dictionary of the recipe as a whole.
    config = json.dumps(variant.config_overrides)
    words = ["--train_sources", corpus / "train.csv", "--config_overrides", config, "--seed", run.seed]
    words += [word for name, value in variant.settings.items() for word in (f"--{name}", value)]
    train(folder, args.threads, variant.recipe, *words, "--max_steps", run.steps, "--save_strategy", "no")
    return folder


# ---- scores ----


def join_splits(folder: Path) -> Path:
    """
    Writes the clips of all splits to one table, at most `MOST_CLIPS` in the proportions of the classes: the folds
    divide them. The groups of drums are kits: their authors, the groups of package_clips.py, are too few.
    """
    path = folder / "all.csv"
    table = pandas.concat(
        [pandas.read_csv(folder / f"{split}.csv", dtype=str, keep_default_na=False) for split in SPLITS],
        ignore_index=True,
    )
    if folder.name == DRUMS:
        table["group"] = [Path(source).parent.name for source in table["source"]]
    if len(table) > MOST_CLIPS:
        table, _ = train_test_split(table, train_size=MOST_CLIPS, stratify=table[LABEL_COLUMN], random_state=0)
    table.sort_index().to_csv(path, index=False)
    return path


def sweep_words(table: Path) -> list:
    """Returns the words of a sweep's command line that name clips and folds."""
    return [
        *("--train_file", table, "--label_column", LABEL_COLUMN, "--group_column", "group"),
        *("--validation_fraction", 0, "--test_fraction", 0, "--num_folds", NUM_FOLDS),
        *("--readouts", "frames", "--ridge", *RIDGE, "--dataloader_num_workers", 0),
    ]


class Clips:
    """Holds the labelled clips of a table, and the folds of a sweep of them."""

    def __init__(self, table: Path, encoder: Path):
        words = [SWEEP_RECIPE, "--model_name_or_path", encoder, *sweep_words(table)]
        _, _, data_arguments, arguments = tasks.parse([str(word) for word in words])
        clips = load_clips(data_arguments, arguments)
        self.table, self.ridge = table, arguments.ridge
        self.label_set = find_labels(clips["label"], data_arguments.problem_type)
        self.targets = make_targets(clips["label"], self.label_set)
        self.folds = make_folds(clips, arguments.num_folds, True, arguments.seed, arguments.num_repeats)
        self.share = share_of_tests(self.folds)
        self.classes = np.array([self.label_set.label2id[label] for label in clips["label"]])

    def draw(self, place: int, draw: int) -> dict[int, np.ndarray]:
        """Draws training clips of a fold: labels of each class -> their indices. Fewer are some of those with more."""
        order = np.random.default_rng((place, draw)).permutation(self.folds[place][0])
        by_class = [order[self.classes[order] == label] for label in range(len(self.label_set.names))]
        return {count: np.concatenate([own[:count] for own in by_class]) for count in FEW}

    def nested_of_log_mel(self, statistics: np.ndarray) -> np.ndarray:
        """Scores log-mel statistics (clips, 3 mel) as a sweep scores an encoder: the nested scores of the folds."""
        parts = np.split(statistics, 3, axis=1)
        scores = score_folds(
            lambda place: parts[place],
            [list(kind) for kind in KINDS],
            self.targets,
            self.folds,
            self.ridge,
            metric_of(self.label_set.problem_type)[1],
        )
        return nested_scores(BEST, scores, range(len(KINDS)))

    def few_of(self, vectors: np.ndarray) -> Scores:
        """
        Scores vectors (clips, size) with few labels, the mean of draws that are alike for all vectors. With fewer
        labels, they are some of those with more; a class with fewer clips gives all of them.
        """
        features, num_classes = scaled(vectors), len(self.label_set.names)
        hits = {str(count): np.zeros(len(self.folds), dtype=np.int64) for count in FEW}
        for (place, (_, test)), draw in itertools.product(enumerate(self.folds), range(NUM_DRAWS)):
            for count, drawn in self.draw(place, draw).items():
                answers = probabilities(features[drawn], self.classes[drawn], features[test], num_classes)
                hits[str(count)][place] += (answers.argmax(axis=1) == self.classes[test]).sum()
        tries = NUM_DRAWS * np.array([len(test) for _, test in self.folds])
        return {count: found / tries for count, found in hits.items()}


def vectors_of(model: str | Path, table: Path, path: Path, *words: str) -> np.ndarray:
    """Embeds a table's clips, unless `path` exists: float64 (clips, size), in the order of the table."""
    embed(model, [table], path, *words)
    stored = read_embeddings(path)
    if list(stored.columns["group"]) != list(pandas.read_csv(table, dtype=str, keep_default_na=False)["group"]):
        raise SystemExit(f"{path}: has not the clips of {table}; remove it")
    return stored.vectors.astype(np.float64)


# ---- fine-tuning ----


class FineTuning:
    """
    Fine-tunes encoders with few labels in the folds of `clips`.

    Args:
        folder: where manifests and runs go
        pool: runs one fine-tuning in each of its processes
    """

    def __init__(self, clips: Clips, folder: Path, pool: Executor):
        self.clips, self.folder, self.pool = clips, folder, pool
        self.batch = read_recipe(FINETUNING)["per_device_train_batch_size"]
        table = pandas.read_csv(clips.table, dtype=str, keep_default_na=False)
        table["file_name"] = [clips.table.parent / name for name in table["file_name"]]
        folder.mkdir(parents=True, exist_ok=True)
        for place, (_, test) in enumerate(clips.folds):
            table.iloc[test].to_csv(folder / f"test-{place}.csv", index=False)
            for count, drawn in clips.draw(place, 0).items():
                table.iloc[drawn].to_csv(folder / f"{count}-{place}.csv", index=False)

    def score(self, encoders: Sequence[Path]) -> Scores:
        """Returns accuracies by labels of each class; the folds take turns with the encoders."""
        places = range(len(self.clips.folds))
        grid = list(itertools.product(RATES, places))
        found = self._accuracies(encoders, [(RATE_LABELS, rate, place) for rate, place in grid])
        by_rate = found.reshape(len(RATES), len(places))
        elsewhere = by_rate.sum(axis=1, keepdims=True) - by_rate
        chosen = elsewhere.argmax(axis=0)
        runs = [(count, RATES[chosen[place]], place) for count in FEW for place in places]
        scores = self._accuracies(encoders, runs).reshape(len(FEW), len(places))
        return {str(count): own for count, own in zip(FEW, scores)}

    def _accuracies(self, encoders: Sequence[Path], runs: list[tuple[int, float, int]]) -> np.ndarray:
        """Fine-tunes with numbers of labels, rates and folds, and returns the accuracy on the fold's test clips."""
        calls = []
        for count, rate, place in runs:
            encoder = encoders[place % len(encoders)]
            folder = self.folder / f"{encoder.name}-{count}-{rate:g}-{place}"
            words = ["--model_name_or_path", encoder, "--learning_rate", rate, "--seed", place]
            batches = math.ceil(len(self.clips.draw(place, 0)[count]) / self.batch)
            words += ["--max_steps", max(STEPS, EPOCHS * batches), "--label_column", LABEL_COLUMN]
            words += ["--train_file", self.folder / f"{count}-{place}.csv"]
            words += ["--test_file", self.folder / f"test-{place}.csv"]
            calls.append((folder, FINETUNING, *words))
        list(self.pool.map(train_here, *zip(*calls)))  # a failed one ends those that wait
        return np.array([test_accuracy(folder) for folder, *_ in calls])


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
    encoders: dict[str, dict[str, list[Path]]] = {}  # by shape and title; random weights first
    for run, folder in folders.items():
        if run.shape not in encoders:
            ones = [args.output / "encoders" / f"random-{run.shape}-seed{seed}" for seed in RANDOM_SEEDS]
            for seed, one in zip(RANDOM_SEEDS, ones):
                save_random(folder, one, seed)
            encoders[run.shape] = {f"{RANDOM}, {run.shape}": ones}
        encoders[run.shape].setdefault(run.title, []).append(folder)
    for name, table in tables.items():
        report["scores"][name] = score_all(name, table, encoders, args.output)
    tuned = {run.title for run in args.finetune}
    report["fine-tuned"] = {}
    # New processes: those of a fork would share the threads of torch. They import once, which takes as long as a run.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.parallel, context, torch.set_num_threads, (args.threads,)) as pool:
        for name, table in tables.items() if tuned else ():
            report["fine-tuned"][name] = finetune_all(name, table, encoders, tuned, args.output, pool)
    return report


def finetune_all(
    name: str,
    table: Path,
    encoders: dict[str, dict[str, list[Path]]],
    tuned: set[str],
    output: Path,
    pool: Executor,
) -> list[dict]:
    """Returns a row for random weights, and one for each title in `tuned` beside it, of each kind of patches."""
    rows = []
    for titles in encoders.values():
        if not tuned & set(titles):
            continue
        tuning = FineTuning(Clips(table, next(iter(titles.values()))[0]), output / "finetuned" / name, pool)
        baselines = {}
        for title, ones in titles.items():
            if title in tuned or not baselines:
                found = [tuning.score(ones)]
                rows.append(row_of(title, found, [], tuning.clips.share, baselines))
                baselines.setdefault(RANDOM, found)
    return rows


def score_all(name: str, table: Path, encoders: dict[str, dict[str, list[Path]]], output: Path) -> list[dict]:
    """
    Returns a row for the statistics, and one for each title of each kind of patches, whose first is random weights,
    beside both baselines.
    """
    clips = Clips(table, next(iter(next(iter(encoders.values())).values()))[0])

    def score(encoder: Path) -> tuple[Scores, str]:
        place = f"{encoder.name}-{name}"
        train_here(output / "sweeps" / place, SWEEP_RECIPE, "--model_name_or_path", encoder, *sweep_words(table))
        best = results_of(output / "sweeps" / place)[BEST]
        vectors = vectors_of(encoder, table, output / "vectors" / f"{place}.parquet", *READING)
        return clips.few_of(vectors) | {ALL: np.array(best["nested"]["folds"])}, choice_text(best["model"])

    statistics = vectors_of(LOG_MEL_MODEL, table, output / "vectors" / f"log-mel-{name}.parquet")
    log_mel = clips.few_of(statistics) | {ALL: clips.nested_of_log_mel(statistics)}
    rows = [row_of(LOG_MEL, [log_mel], [], clips.share, {})]
    for titles in encoders.values():
        baselines = {LOG_MEL: [log_mel]}
        for title, ones in titles.items():
            found, chosen = zip(*map(score, ones))
            rows.append(row_of(title, found, chosen, clips.share, baselines))
            baselines.setdefault(RANDOM, found)  # the first title
    return rows


def row_of(
    title: str,
    found: Sequence[Scores],
    chosen: Sequence[str],
    share: float,
    baselines: dict[str, Sequence[Scores]],
) -> dict:
    """
    Returns means over seeds and folds with half of their intervals, the means of the seeds, and the difference to each
    baseline with its p-value.

    Args:
        found: the scores of each seed
        chosen: what the sweep of each seed chose
        share: held-out clips of a fold for each training clip
        baselines: name -> the scores of each of its seeds
    """
    row = {"features": title, "chosen": list(dict.fromkeys(chosen)), "scores": {}}
    for labels in found[0]:
        seeds = np.stack([own[labels] for own in found])
        folds = seeds.mean(axis=0)
        beyond = {}
        for name, baseline in baselines.items():
            compared = compare_with(np.mean([own[labels] for own in baseline], axis=0), folds[None], share)
            beyond[name] = {key: float(compared[key][0]) for key in ("difference", "p")}
        row["scores"][labels] = {
            "mean": float(folds.mean()),
            "interval": float(half_interval(folds, share)),
            "seeds": seeds.mean(axis=1).tolist(),
            "folds": folds.tolist(),
            "beyond": beyond,
        }
    return row


def plot(report: dict, path: Path):
    """
    Draws the scores against the steps: a column of panels per set of clips, a row with four labels of each class, and
    one with all; statistics and random weights as lines.
    """
    shown = {"4": "4 labels per class", ALL: "all labels (nested)"}
    figure = Figure(figsize=(2.8 * len(report["scores"]), 6), layout="constrained")
    panels = figure.subplots(len(shown), len(report["scores"]), squeeze=False)
    steps = sorted({run["steps"] for run in report["runs"].values()})
    for column, (name, rows) in enumerate(report["scores"].items()):
        for axes, labels in zip(panels[:, column], shown):
            axes.set_prop_cycle(color=colormaps["tab20"].colors)  # more variants than the usual ten colours
            found = {row["features"]: row["scores"][labels]["mean"] for row in rows}
            for variant in VARIANTS:
                runs = [run for run in report["runs"].values() if run["variant"] == variant]
                points = sorted({(run["steps"], found[run["title"]]) for run in runs})
                if points:
                    label = f"{VARIANTS[variant].title}, {runs[0]['shape']}"
                    axes.plot(*zip(*points), "o-", markersize=3, label=label)
            for title, style in zip([title for title in found if title.startswith((LOG_MEL, RANDOM))], LINES):
                axes.axhline(found[title], color="grey", linestyle=style, linewidth=1, label=title)
            axes.set(xscale="log")
            axes.set_xticks(steps, map(str, steps), rotation=45)
            axes.minorticks_off()
        panels[0, column].set_title(name)
        panels[-1, column].set_xlabel("steps")
    for axes, text in zip(panels[:, 0], shown.values()):
        axes.set_ylabel(f"accuracy, {text}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with the .deb files")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pretraining_budgets")
    parser.add_argument(
        "--runs", type=Run.parse, nargs="+", metavar="VARIANT:STEPS[:SEED]", default=[Run(v, 250) for v in VARIANTS],
        help=f"pretrainings; variants: {', '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--finetune", type=Run.parse, nargs="+", metavar="VARIANT:STEPS", default=[],
        help="of --runs, those to fine-tune, with all their seeds",
    )  # fmt: skip
    parser.add_argument("--sets", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="labelled clips")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--parallel", type=int, default=max(1, torch.get_num_threads()), help="runs at a time")
    args = parser.parse_args()
    args.output, args.packages = args.output.resolve(), args.packages.resolve()
    strange = {run.title for run in args.finetune} - {run.title for run in args.runs}
    if strange:
        parser.error(f"--finetune: {', '.join(sorted(strange))} is none of --runs")
    report = measure(args.runs, args) | {"versions": versions()}
    (args.output / "pretraining_budgets.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(report, args.output / "pretraining_budgets.png")
    print(versions())
    rows = [[name, f"{run['minutes']:.1f}", f"{run['audio_hours']:.1f}"] for name, run in report["runs"].items()]
    print_table(["pretraining", "minutes", "hours of audio"], rows)
    print(f"\naccuracy by labels of each class ({ALL}: nested score of the sweep's choice), mean (lowest-highest seed)")
    for name, found in report["scores"].items():
        print_scores(name, found)
    if report["fine-tuned"]:
        print("\nfine-tuned, accuracy by labels of each class")
    for name, found in report["fine-tuned"].items():
        print_scores(name, found)
    print()
    print(f"plot and figures: {args.output / 'pretraining_budgets.png'}, .json")


def print_scores(name: str, found: list[dict]):
    """Prints a table of scores, and one for each baseline of the differences to it."""
    print()
    header, rows = [name, *found[0]["scores"]], []
    for row in found:
        rows.append([row["features"], *map(score_text, row["scores"].values())])
        if ALL in row["scores"]:
            rows[-1].append("; or ".join(row["chosen"]))
    print_table([*header, "chosen with all"] if ALL in header else header, rows)
    for baseline in (LOG_MEL, RANDOM):
        scores = [(row["features"], row["scores"].values()) for row in found]
        rows = [
            [title, *(cell_of(score["beyond"][baseline]) for score in own)]
            for title, own in scores
            if all(baseline in score["beyond"] for score in own)
        ]
        if rows:
            print()
            print_table([f"{name}: to {baseline}", *found[0]["scores"]], rows)


def score_text(found: dict) -> str:
    """Returns the mean, with the lowest and the highest seed where there are several."""
    seeds = found["seeds"]
    return f"{found['mean']:.3f}" + (f" ({min(seeds):.3f}-{max(seeds):.3f})" if len(seeds) > 1 else "")


def cell_of(found: dict) -> str:
    return f"{found['difference']:+.3f} ({found['p']:.2f})"


if __name__ == "__main__":
    main()
