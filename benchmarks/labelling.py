"""
Measures how many labels `training.suggest` saves, and how well `training.suspects` finds wrong labels.

Embeds the recordings of `data/` with an encoder of random weights and with log-mel statistics, or with `--models`. Ten
seeds, each with its own division into quarters: each is the test clips once, and the others are to label. Prompts and
groups of takes are never divided, so that no test clip has a take of the same instrument or the same prompt among the
others.

Labels: both sides train the same logistic regression on the same embeddings of the labelled clips alone. Random
labelling is the mean of several orders per division; a strategy labels in rounds, and begins without labels. The table
has the labels that a strategy needs for the mean accuracy which random labelling reaches with 25, 50 and 75 % of the
clips, as a share of those of random labelling; the strategy's own mean curve is linear between rounds. Its interval is
of a bootstrap of the seeds: by how much other divisions of the same clips change it.

Two rows are no strategies. `informed` is a measure of what an order can save: it knows the class and the group of every
clip, and takes the classes in turn, of each a new group first. `random, one order` is a further random order of each
division, and shows what chance does: it saves nothing.

Wrong labels: a tenth of all labels is replaced by another class, drawn at random. AUC of the quality, wrong labels
against right ones.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas
import torch
import training_runs
from report import print_table, versions, write_figures
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `training` is not installed

from training.data.labels import LabelSet  # noqa: E402
from training.embeddings.known_labels import KnownLabels  # noqa: E402
from training.embeddings.label_errors import find_label_errors  # noqa: E402
from training.embeddings.linear import probabilities, scaled  # noqa: E402
from training.embeddings.log_mel import LOG_MEL  # noqa: E402
from training.embeddings.stored import read_embeddings  # noqa: E402
from training.embeddings.suggesting import STRATEGIES, suggest  # noqa: E402

# Name -> column of the labels, column of what is not divided, clips per round.
DATA_SETS = {"voice_prompts": ("language", "prompt", 10), "instruments": ("category", "group", 5)}
SHARES = (0.25, 0.5, 0.75)  # of the clips to label: labels of random labelling
GOAL, AUC_GOAL, NUM_PLANTED = 0.6, 0.9, 0.1
NUM_QUARTERS = 4
NUM_DRAWS = 1000  # of the bootstrap
ONE_ORDER = "random, one order"
RANDOM = "random"  # in place of a model: `ENCODER`
# Layer 0 is a random projection of log-mel frames: blocks without training add nothing. Without a norm the vectors keep
# the level of the sound.
ENCODER = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768, "max_length": 512,
    "patch_size": [128, 1], "frequency_stride": 128, "time_stride": 1, "readout": "frames", "fusion_norm": "none",
    "fusion_layers": [0], "pooling": ["mean", "max", "min", "std"], "pooling_combination": "concat",
}  # fmt: skip


def save_encoder(folder: Path):
    """Saves an encoder with random weights."""
    torch.manual_seed(0)
    DualSSASTModel(DualSSASTConfig(**ENCODER)).save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=ENCODER["max_length"]).save_pretrained(folder)


def embed(model: str, data_set: str, output: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns vectors (clips, size), class numbers (clips,) and groups (clips,) of all splits of a data set."""
    path = output / f"{model.replace('/', '_')}_{data_set}.parquet"
    if not path.exists():
        if model == RANDOM:
            model = output / "encoder"
            save_encoder(model)
        tables = [ROOT / "data" / data_set / f"{split}.csv" for split in ("train", "validation", "test")]
        training_runs.embed(model, tables, path)
    stored = read_embeddings(path)
    label, group, _ = DATA_SETS[data_set]
    return stored.vectors, pandas.factorize(stored.columns[label], sort=True)[0], stored.columns[group].to_numpy()


class Division:
    """
    Holds the clips to label, and those to test with: a quarter of a seed.

    Args:
        fold: places of the clips to label, and of those to test with
        features: (clips, size), of `scaled`
    """

    def __init__(
        self, fold: tuple[np.ndarray, np.ndarray], features: np.ndarray, classes: np.ndarray, groups: np.ndarray,
        seed: int, quarter: int,
    ):  # fmt: skip
        self.open, self.test = fold
        self.classes, self.test_classes = classes[self.open], classes[self.test]
        self.groups, self.seed, self.quarter = groups[self.open], seed, quarter
        self.names = tuple(map(str, range(classes.max() + 1)))
        self.features, self.test_features = features[self.open], features[self.test]

    def accuracy(self, labelled: np.ndarray) -> float:
        """Returns the accuracy on the test clips, with the labels of some clips."""
        found = probabilities(
            self.features[labelled], self.classes[labelled], self.test_features, len(self.names)
        ).argmax(axis=1)
        return float((found == self.test_classes).mean())

    def order(self, strategy: str, round_size: int) -> np.ndarray:
        """Returns all clips in the order in which a strategy has them labelled."""
        labelled = np.empty(0, dtype=np.int64)
        while len(labelled) < len(self.open):
            clips = np.sort(labelled)
            numbers, targets = np.unique(self.classes[clips], return_inverse=True)
            labels = LabelSet(tuple(self.names[number] for number in numbers), "single_label_classification")
            found = suggest(self.features, KnownLabels(clips, targets, labels), round_size, strategy, self.seed)
            labelled = np.concatenate([labelled, found.clips])
        return labelled

    def random_order(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, self.quarter, number)).permutation(len(self.open))

    def informed_order(self, number: int) -> np.ndarray:
        """Returns a random order in which the classes take turns, each with a clip of a new group first."""
        clips = pandas.DataFrame({"group": self.groups, "label": self.classes}).iloc[self.random_order(number)]
        clips["take"] = clips.groupby("group").cumcount()
        clips = clips.sort_values("take", kind="stable")
        clips["turn"] = clips.groupby("label").cumcount()
        return clips.sort_values("turn", kind="stable").index.to_numpy()


def divide(vectors: np.ndarray, classes: np.ndarray, groups: np.ndarray, num_seeds: int) -> list[Division]:
    """Divides the clips into quarters once for each seed; each quarter is the test clips of a division."""
    # All clips are embedded, so all are scaled together, as by the program; no label has a part in it.
    features, found = scaled(vectors), []
    for seed in range(num_seeds):
        folds = StratifiedGroupKFold(NUM_QUARTERS, shuffle=True, random_state=seed).split(features, classes, groups)
        found += [Division(fold, features, classes, groups, seed, quarter) for quarter, fold in enumerate(folds)]
    return found


DRAWN = {"random": Division.random_order, "informed": Division.informed_order}  # orders that are no strategy


def curves(divisions: list[Division], round_size: int, num_orders: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the numbers of labels after 1, 2 ... rounds, and by strategy the accuracies with so many per seed."""
    size = min(len(one.open) for one in divisions)
    counts = np.array([*range(round_size, size, round_size), size])

    def orders(name: str, one: Division) -> list[np.ndarray]:
        if name == ONE_ORDER:
            return [one.random_order(num_orders)]  # none of those that it is compared with
        return [DRAWN[name](one, n) for n in range(num_orders)] if name in DRAWN else [one.order(name, round_size)]

    found = {}
    for name in (*DRAWN, ONE_ORDER, *STRATEGIES):
        rows = [
            np.mean([[one.accuracy(order[:count]) for count in counts] for order in orders(name, one)], axis=0)
            for one in divisions
        ]
        found[name] = np.reshape(rows, (-1, NUM_QUARTERS, len(counts))).mean(axis=1)
        print(f"{name} done", file=sys.stderr)
    return counts, found


def labels_needed(counts: np.ndarray, accuracies: np.ndarray, wanted: float) -> float:
    """Returns the smallest number of labels at which a curve, linear between its points, reaches an accuracy."""
    place = int((accuracies >= wanted).argmax())
    if accuracies[place] < wanted:
        return np.inf
    if place == 0:
        return float(counts[0])
    low, high = accuracies[place - 1 : place + 1]
    return float(counts[place - 1] + (wanted - low) / (high - low) * (counts[place] - counts[place - 1]))


def ratios(counts: np.ndarray, accuracies: np.ndarray, at_random: np.ndarray) -> np.ndarray:
    """
    Returns the labels that a strategy needs at each of `SHARES`, as a share of those of random labelling, and their
    mean.

    Args:
        accuracies: (seeds, rounds) of the strategy; means over the seeds count
        at_random: those of random labelling
    """
    accuracies, at_random, shares = accuracies.mean(axis=0), at_random.mean(axis=0), []
    for share in SHARES:
        number = share * counts[-1]
        shares.append(labels_needed(counts, accuracies, np.interp(number, counts, at_random)) / number)
    return np.array([*shares, np.mean(shares)])


def intervals(counts: np.ndarray, accuracies: np.ndarray, at_random: np.ndarray) -> np.ndarray:
    """Returns the 95 % intervals of `ratios` by a bootstrap of the seeds, the same for both sides: (2, shares + 1)"""
    rng, num_seeds = np.random.default_rng(0), len(accuracies)
    drawn = [
        ratios(counts, accuracies[seeds], at_random[seeds])
        for seeds in rng.integers(0, num_seeds, (NUM_DRAWS, num_seeds))
    ]
    return np.quantile(drawn, (0.025, 0.975), axis=0, method="nearest")  # none is between a number and infinity


def planted_auc(vectors: np.ndarray, classes: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Plants wrong labels; returns the AUC of their quality, and precision and recall of the suspected ones."""
    rng, num_classes = np.random.default_rng(seed), classes.max() + 1
    wrong = np.zeros(len(classes), dtype=bool)
    wrong[rng.permutation(len(classes))[: round(NUM_PLANTED * len(classes))]] = True
    labels = np.where(wrong, (classes + rng.integers(1, num_classes, len(classes))) % num_classes, classes)
    names = LabelSet(tuple(map(str, range(num_classes))), "single_label_classification")
    judged = find_label_errors(vectors, KnownLabels(np.arange(len(classes)), labels, names), seed=seed)
    quality = np.nan_to_num(judged.quality, nan=1.0)
    hits = (judged.suspected & wrong).sum()
    return roc_auc_score(wrong, -quality), hits / max(judged.suspected.sum(), 1), hits / wrong.sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "labelling")
    parser.add_argument(
        "--models", nargs="+", default=[RANDOM, LOG_MEL], help=f"encoders; {RANDOM}: one with random weights; {LOG_MEL}"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--orders", type=int, default=5, help="random orders per division")
    parser.add_argument("--data", nargs="+", choices=tuple(DATA_SETS), default=list(DATA_SETS))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    report, rows, suspects = {"versions": versions(), "models": {model: {} for model in args.models}}, [], []
    for model, data_set in itertools.product(args.models, args.data):
        vectors, classes, groups = embed(model, data_set, args.output)
        planted = [planted_auc(vectors, classes, seed) for seed in range(args.seeds)]
        auc, precision, recall = np.mean(planted, axis=0)
        lowest = min(one[0] for one in planted)
        suspects.append([model, data_set, f"{auc:.3f}", f"{lowest:.3f}", f"{precision:.2f}", f"{recall:.2f}"])
        counts, found = curves(divide(vectors, classes, groups, args.seeds), DATA_SETS[data_set][2], args.orders)
        needed_by, within = {}, {}
        for strategy in (*STRATEGIES, "informed", ONE_ORDER):
            needed = needed_by[strategy] = ratios(counts, found[strategy], found["random"]).tolist()
            within[strategy] = intervals(counts, found[strategy], found["random"]).tolist()
            met = "" if strategy not in STRATEGIES else "yes" if max(needed[:-1]) <= GOAL else "no"
            texts = (f"{value:.0%} ({low:.0%}-{high:.0%})" for value, low, high in zip(needed, *within[strategy]))
            rows.append([model, data_set, strategy, *texts, met])
        report["models"][model][data_set] = {
            "planted": [list(map(float, one)) for one in planted],
            "curves": {"labels": counts.tolist()} | {name: own.mean(axis=0).tolist() for name, own in found.items()},
            "ratios": {name: needed[:-1] for name, needed in needed_by.items()},
            "intervals": within,
        }
    print(versions())
    print(f"\nplanted wrong labels, mean of {args.seeds} seeds (goal: AUC of {AUC_GOAL})\n")
    print_table(["model", "data set", "AUC", "lowest seed", "precision", "recall"], suspects)
    print("\nlabels for the accuracy that random labelling reaches with a share of all clips, relative to that share")
    print("(95 % interval over the seeds)\n")
    shares = [f"at {share:.0%}" for share in SHARES]
    print_table(["model", "data set", "strategy", *shares, "mean", f"at most {GOAL:.0%} at each"], rows)
    write_figures(args.output / "labelling.json", report)


if __name__ == "__main__":
    main()
