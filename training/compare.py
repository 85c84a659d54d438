"""
Compares finished runs on the clips that all of them have tested: `python -m training.compare RUN RUN ...`.

A run is the output folder of a classification, evaluation, cross-validation or probe. Each method of a probe counts as
a run of its own. A folder that holds runs of the same clips in `seed-0`, `seed-1` and so on counts as one run with
several seeds. Intervals are those of a paired bootstrap, p-values those of permutation tests, corrected for the
number of pairs (Holm). Clips of one group are drawn and exchanged together.

A program above the wings: it needs the metrics of `classification`, and reads what `embeddings` writes.
"""

import csv
import itertools
import json
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
from scipy.stats import rankdata
from transformers.utils import logging

from model_cards.card import markdown

from .base.bootstrap import BLOCK_SIZE, LEVEL, NUM_RESAMPLES, draw_weights, interval_of, resamples_for
from .base.figures import COLOURS, new_figure, plain, save_figure
from .base.outputs import without_nan
from .base.paired_tests import ALPHA, NOT_TOLD_APART, NUM_PERMUTATIONS, holm, permutation_p
from .base.predictions import score_names
from .base.reproduction import versions
from .classification.metrics import DIRECTIONS, weighted_metrics
from .console import print_table, run_program
from .data.labels import LabelSet
from .errors import InputError, nearest, printable, short
from .files import check_writable, complete_file, write_csv, write_json
from .recipe import Arguments, described, name_positionals, parse_words, show_help

USAGE = "python -m training.compare RUN RUN ... [--key value ...]"
KEPT = "nothing was written; give the same command again"
FIGURE = "comparison.png"
SEEDS = "seed-*"
PREFIX = "probability_"

logger = logging.get_logger(__name__)


@dataclass
class CompareArguments(Arguments):
    """Defines the options of training.compare."""

    runs: list[str] | None = described(None, "Output folders of finished runs; the first words.")
    metric: str | None = described(
        None, "Metric to compare; unset: accuracy, mean_average_precision, or mean_squared_error of numbers."
    )
    baseline: str | None = described(None, "Run to compare the others with; unset: all pairs.")
    output_dir: Path | None = described(None, "Folder for tables and figure; unset: they are printed only.")
    figure_format: str = described(
        "png", "Format in which the figure is written too, for papers.", choices=("png", "pdf", "svg")
    )
    seed: int = described(0, "Random seed of resamples and permutations.", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.runs:
            raise InputError(f"usage: {USAGE}")


@dataclass
class Run:
    """
    Holds the predictions of a finished run.

    clips: name and occurrence of each clip, in the order of the arrays
    targets: class indices (clips,), 0 or 1 (clips, labels), or numbers (clips,)
    decisions: seed -> class indices, 0 or 1 per label, or numbers, of the shape of `targets`
    scores: seed -> probabilities (clips, labels); of several labels per clip only
    groups: (clips,), or `None`
    """

    name: str
    labels: LabelSet
    clips: list[tuple[str, int]]
    targets: np.ndarray
    decisions: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    groups: np.ndarray | None

    def select(self, clips: list[tuple[str, int]], num_seeds: int) -> "Run":
        """Returns the run with these clips in this order, and with its first seeds."""
        places = {clip: place for place, clip in enumerate(self.clips)}
        rows = [places[clip] for clip in clips]
        seeds = list(self.decisions)[:num_seeds]
        decisions, scores = (
            {seed: part[seed][rows] for seed in seeds if seed in part} for part in (self.decisions, self.scores)
        )
        groups = None if self.groups is None else self.groups[rows]
        targets = self.targets[rows]
        return replace(self, clips=clips, targets=targets, decisions=decisions, scores=scores, groups=groups)


# ---- reading runs ----


def read_runs(folder: Path, shown: str) -> list[Run]:
    """
    Reads the predictions of a finished run; of a probe, those of each method. Runs in `seed-*` of the folder are joined
    to one with several seeds.

    Args:
        shown: name of the run

    Raises:
        InputError: no finished run, one of another task, no predictions, or seeds that have tested different clips.
    """
    seeds = sorted((part for part in folder.glob(SEEDS) if part.is_dir()), key=lambda part: _number(part.name))
    finished = [part for part in seeds if (part / "results.json").exists()]
    if finished and not (folder / "results.json").exists():
        if len(finished) < len(seeds):
            left = len(seeds) - len(finished)
            logger.warning(f"{folder}: {left} of its {len(seeds)} seeds are left out, which are not finished")
        return [_join([_read_seed(part) for part in finished], shown)]
    path, file = folder / "predictions.csv", folder / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        task = results["recipe"].get("task", "classification")
        metrics = results["metric"] if task == "probe" else results.get("metrics", {})
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no results.json; name the output folder of a finished run") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file}: is no record of a run ({type(error).__name__}); name another folder") from None
    if not path.exists():
        raise InputError(
            f"{folder}: its task {printable(task)} has left no predictions.csv; name runs of the tasks classification, "
            "evaluation, cross_validation or probe, and repeat a run of an earlier version"
        )
    names = json.dumps(metrics)
    problem = next((kind for kind, known in DIRECTIONS.items() if any(f'"{name}"' in names for name in known)), None)
    if problem is None:
        raise InputError(f"{file}: holds no metric of a classification or regression; name another folder")
    if task != "probe" and "validation" in metrics and "test" not in metrics:
        logger.warning(f"{folder}: its predictions are of validation clips, which may have chosen its checkpoint")
    try:  # as text: a class may be called 007 or NA
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
        labels = _labels_of(table, problem)
        parts = table.groupby("method", sort=False) if task == "probe" else [("", table)]
        return [_read_run(f"{shown}, {name}" if name else shown, part, labels) for name, part in parts]
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: is no table of predictions ({short(str(error))}); repeat the run") from None


def _number(name: str) -> tuple[int, str]:
    digits = name.removeprefix("seed-")
    return (int(digits), name) if digits.isdecimal() else (sys.maxsize, name)


def _read_seed(folder: Path) -> Run:
    """Reads one of several seeds; its only seed gets the name of the folder."""
    runs = read_runs(folder, folder.name)
    if len(runs) > 1 or len(runs[0].decisions) > 1:
        raise InputError(f"{folder}: holds several runs, where one of a single seed is expected; name it by itself")
    run = runs[0]
    decisions, scores = (dict(zip([folder.name], part.values())) for part in (run.decisions, run.scores))
    return replace(run, decisions=decisions, scores=scores)


def _join(seeds: list[Run], shown: str) -> Run:
    """Returns one run with the seeds of several, which have tested the same clips."""
    for run in seeds[1:]:
        if set(run.clips) != set(seeds[0].clips):
            raise InputError(
                f"{shown}: {seeds[0].name} and {run.name} have tested different clips; repeat one with the other's data"
            )
    seeds = align(seeds)
    decisions, scores = {}, {}
    for run in seeds:
        decisions |= run.decisions
        scores |= run.scores
    return replace(seeds[0], name=shown, decisions=decisions, scores=scores)


def _labels_of(table: pandas.DataFrame, problem: str) -> LabelSet:
    names = tuple(name.removeprefix(PREFIX) for name in table.columns if name.startswith(PREFIX))
    return LabelSet(names if problem != "regression" else ("value",), problem)


def _read_run(name: str, table: pandas.DataFrame, labels: LabelSet) -> Run:
    """Returns one run; the table has a row for every clip and seed."""
    seeds = table["seed"] if "seed" in table else pandas.Series("", index=table.index, name="seed")
    occurrence = table.groupby([seeds, "file"]).cumcount()
    table = table.set_index([table["file"], occurrence])
    parts = dict(iter(table.groupby(seeds.to_numpy(), sort=False)))
    first = next(iter(parts.values()))
    for seed, part in parts.items():
        if len(part) != len(first) or not part.index.isin(first.index).all():
            raise ValueError(f"seed {seed} has other clips than the first seed")
    parts = {seed: part.loc[first.index] for seed, part in parts.items()}
    scores = {seed: part[score_names(labels)].to_numpy(dtype=np.float64) for seed, part in parts.items()}
    if labels.is_regression:
        decisions = {seed: values[:, 0] for seed, values in scores.items()}
    else:
        decisions = {seed: _encode(part["prediction"], labels) for seed, part in parts.items()}
    groups = first["group"].to_numpy() if "group" in first else None
    targets = _encode(first["label"], labels)
    return Run(name, labels, list(first.index), targets, decisions, scores if labels.is_multi else {}, groups)


def _encode(cells: pandas.Series, labels: LabelSet) -> np.ndarray:
    """Returns cells as `base.predictions.as_text` has written them in the form of `Run.targets`."""
    is_text = labels.is_regression or (labels.is_single and set(cells) <= set(labels.names))
    rows = cells if is_text else [next(csv.reader([cell]), []) for cell in cells]
    return np.asarray([labels.encode(row, "a clip") for row in rows])


def names_of(folders: list[Path]) -> dict[Path, str]:
    """Returns the names of folders, and more of their paths where several have the same name."""
    names, length = {folder: folder.name for folder in folders}, 1
    while repeated := {name for name, count in Counter(names.values()).items() if count > 1}:
        length += 1
        names |= {folder: "/".join(folder.parts[-length:]) for folder, name in names.items() if name in repeated}
    return names


# ---- what is compared ----


def align(runs: list[Run]) -> list[Run]:
    """
    Returns the runs with the clips that all have tested, in one order, and with as many seeds each. A line says what is
    left out.

    The same clip has the same name, or a name that is the end of the other's path. Clips that share a name count if
    all runs have as many of them; the first is compared with the first.

    Raises:
        InputError: other labels, another kind of problem, or no shared clips.
    """
    first = runs[0]
    for run in runs[1:]:
        for what in ("problem_type", "names"):
            pair = [getattr(part.labels, what) for part in (first, run)]
            if pair[0] != pair[1] and (what == "problem_type" or set(pair[0]) != set(pair[1])):
                texts = [short(one if isinstance(one, str) else ", ".join(one), 80) for one in pair]
                raise InputError(f"{run.name}: is about {texts[1]}, and {first.name} about {texts[0]}; leave one out")
    runs = [_in_order(run, first.labels) for run in runs]
    _unify_names(runs)
    counts = [Counter(name for name, _ in run.clips) for run in runs]
    alike = {name for name, count in counts[0].items() if all(other[name] == count for other in counts)}
    shared = [clip for clip in runs[0].clips if clip[0] in alike]
    if not shared:
        examples = " and ".join(printable(run.clips[0][0]) for run in runs[:2])
        raise InputError(
            f"the runs have no test clip in common, such as {examples}; name runs with the same test clips"
        )
    num_seeds = min(len(run.decisions) for run in runs)
    for run in runs:
        if len(run.clips) > len(shared):
            logger.warning(f"{run.name}: {len(run.clips) - len(shared)} of its {len(run.clips)} clips are left out, "
                           "which another run has not tested")  # fmt: skip
        if len(run.decisions) > num_seeds:
            logger.warning(f"{run.name}: {len(run.decisions) - num_seeds} of its {len(run.decisions)} seeds are left "
                           "out, because another run has fewer")  # fmt: skip
    runs = [run.select(shared, num_seeds) for run in runs]
    for run in runs[1:]:
        differ = (run.targets != runs[0].targets).reshape(len(shared), -1).any(axis=1)
        if differ.any():
            clip = printable(shared[int(differ.argmax())][0])
            raise InputError(
                f"{run.name}: {differ.sum()} of {len(shared)} shared clips have another label than in {runs[0].name}, "
                f"such as {clip}; name runs with the same labels"
            )
    return runs


def _in_order(run: Run, labels: LabelSet) -> Run:
    """Returns a run whose class indices and columns are in the order of other labels."""
    if run.labels == labels:
        return run
    own = [run.labels.label2id[name] for name in labels.names]

    def convert(values: np.ndarray) -> np.ndarray:
        return values[:, own] if labels.is_multi else np.argsort(own)[values]

    decisions = {seed: convert(values) for seed, values in run.decisions.items()}
    scores = {seed: convert(values) for seed, values in run.scores.items()}
    return replace(run, labels=labels, targets=convert(run.targets), decisions=decisions, scores=scores)


def _unify_names(runs: list[Run]):
    """Renames clips whose path ends with the name of another run's clip, if no second one of the run does."""
    known = {name for run in runs for name, _ in run.clips}
    for run in runs:
        own = {name for name, _ in run.clips}
        ends = {name: next(end for end in _ends(name) if end in known) for name in own}
        count = Counter(ends.values())
        run.clips = [(ends[name] if count[ends[name]] == 1 else name, number) for name, number in run.clips]


def _ends(name: str) -> list[str]:
    """Returns the ends of a path, the shortest first and the path itself last."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in reversed(range(len(parts)))]


def units_of(runs: list[Run]) -> tuple[np.ndarray, str]:
    """Returns what is drawn and exchanged together, (clips,) from 0, and its noun."""
    groups = next((run.groups for run in runs if run.groups is not None), None)
    if groups is None or len(set(groups)) < 2:
        return np.arange(len(runs[0].clips)), "clips"
    return np.unique(groups, return_inverse=True)[1], "groups"


def predictions_for(run: Run, metric: str) -> list[np.ndarray]:
    """
    Returns what `weighted_metrics` takes, per seed.

    Metrics of a ranking get the ranks of the clips instead of their scores (Venkatraman and Begg, Biometrika 83, 1996):
    a permutation mixes the scores of two models, and their scales may differ. F1 gets the decisions, which the
    thresholds of each model have made.
    """
    if run.labels.is_multi and metric in ("mean_average_precision", "mean_auc"):
        return [rankdata(scores, axis=0) / (len(scores) + 1) for scores in run.scores.values()]
    return list(run.decisions.values())


def check_metric(metric: str | None, problem_type: str) -> str:
    """Returns the metric to compare; raises `InputError` if this kind of problem does not have it."""
    known = [name for name in DIRECTIONS[problem_type] if name != "d_prime"]  # infinite at its best
    if metric is not None and metric not in known:
        raise InputError(
            f"metric: {metric!r} is unknown here; {nearest(metric, known, 'known are ' + ', '.join(known))}"
        )
    return metric or known[0]


# ---- the comparison ----


def compare(runs: list[Run], metric: str, pairs: list[tuple[int, int]], seed: int = 0) -> dict:
    """
    Compares aligned runs.

    The score of a run is the mean over its seeds. A resample draws clips with all that the runs did on them.

    Args:
        pairs: indices of the runs to compare
        seed: of the resamples and permutations

    Returns:
        `scores`: a row per run; `differences`: a row per pair, first minus second; and numbers that describe the tests
    """
    labels, targets = runs[0].labels, runs[0].targets
    units, noun = units_of(runs)
    given = [predictions_for(run, metric) for run in runs]
    count = NUM_RESAMPLES, NUM_PERMUTATIONS
    if labels.is_multi:
        count = resamples_for(targets.size), min(NUM_PERMUTATIONS, 10 * resamples_for(targets.size))

    def measure(weights: np.ndarray, predictions: list[np.ndarray], targets: np.ndarray) -> np.ndarray:
        """Returns the metric of every seed: (seeds, resamples)"""
        return np.stack([weighted_metrics(weights, own, targets, labels.problem_type)[metric] for own in predictions])

    ones = np.ones((len(targets), 1), dtype=np.float32)
    by_seed = [measure(ones, own, targets)[:, 0] for own in given]
    if np.isnan(by_seed).any():
        raise InputError(f"metric: {metric} is not defined on the {len(targets)} shared clips; name another")
    resampled = [[] for _ in runs]
    for weights in draw_weights(units, count[0], seed):
        for values, own in zip(resampled, given):
            values.append(measure(weights, own, targets).mean(axis=0))
    resampled = [np.concatenate(values) for values in resampled]
    scores = [
        {
            "run": run.name, metric: float(values.mean()), **_ends_of(drawn), "seeds": len(values),
            "deviation_of_seeds": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
        }
        for run, values, drawn in zip(runs, by_seed, resampled)
    ]  # fmt: skip
    rows = []
    for first, second in pairs:
        p_value = _pair_p(given[first], given[second], targets, units, measure, count[1], seed)
        difference = float(by_seed[first].mean() - by_seed[second].mean())
        ends = _ends_of(resampled[first] - resampled[second])
        rows.append({"first": runs[first].name, "second": runs[second].name, "difference": difference, **ends,
                     "p": p_value})  # fmt: skip
    is_higher_better = DIRECTIONS[labels.problem_type][metric]
    for row, corrected in zip(rows, holm(np.array([row["p"] for row in rows]))):
        ahead = "first" if (row["difference"] > 0) == is_higher_better else "second"
        row |= {"p_holm": float(corrected), "better": row[ahead] if corrected < ALPHA else NOT_TOLD_APART}
    return {
        "metric": metric, "clips": len(targets), "scores": scores, "differences": rows, "level": LEVEL,
        "resampled": noun, "resamples": count[0], "permutations": count[1], "alpha": ALPHA,
    }  # fmt: skip


def _ends_of(values: np.ndarray) -> dict[str, float]:
    values = values[~np.isnan(values)]
    return dict(zip(("lower", "upper"), interval_of(values) if len(values) else (np.nan, np.nan)))


def _pair_p(first, second, targets, units, measure, num_permutations: int, seed: int) -> float:
    """Returns the p-value of a pair; `first` and `second` are predictions per seed, as for `measure`."""
    differ = np.zeros(len(targets), dtype=bool)
    for pair in zip(first, second):
        differ |= (pair[0] != pair[1]).reshape(len(targets), -1).any(axis=1)
    open_units = np.unique(units[differ])  # to exchange the others changes nothing
    moves, rows = np.isin(units, open_units)[:, None], np.searchsorted(open_units[:-1], units)
    both, twice = [np.concatenate(pair) for pair in zip(first, second)], np.concatenate([targets, targets])

    def difference(exchanged: np.ndarray) -> np.ndarray:
        swapped = (exchanged[rows] & moves).astype(np.float32)  # (clips, permutations)
        weights = np.concatenate([1 - swapped, swapped])  # of the first run, then of the second
        return (measure(weights, both, twice) - measure(1 - weights, both, twice)).mean(axis=0)

    return permutation_p(difference, len(open_units), num_permutations, max(1, BLOCK_SIZE // len(both[0])), seed)


# ---- outputs ----


def write_outputs(found: dict, folder: Path, figure_format: str):
    """Writes the tables, the figure and `comparison.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("scores", "differences"):
        table = pandas.DataFrame(found[name])
        write_csv(table, folder / f"{name}.csv")
        for ending, text in (("md", as_markdown(table)), ("tex", as_latex(table))):
            with complete_file(folder / f"{name}.{ending}") as unfinished:
                unfinished.write_text(text, encoding="utf-8")
    plot(found, folder / FIGURE, figure_format)
    write_json(folder / "comparison.json", without_nan(found))


def as_texts(table: pandas.DataFrame) -> pandas.DataFrame:
    table = table.map(lambda cell: as_cell(cell) if isinstance(cell, float) else printable(cell))
    return table.rename(columns=lambda name: name.replace("_", " "))


def as_cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def as_markdown(table: pandas.DataFrame) -> str:
    texts = as_texts(table)
    lines = [list(texts.columns), ["---"] * len(texts.columns), *map(markdown, texts.to_numpy().tolist())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(table: pandas.DataFrame) -> str:
    """Returns a table for the package booktabs."""
    styler = as_texts(table).style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return styler.to_latex(
        hrules=True, column_format="".join("r" if kind.kind in "if" else "l" for kind in table.dtypes)
    )


def plot(found: dict, path: Path, figure_format: str):
    """Draws the scores and the differences with their intervals; hollow grey differences are not told apart."""
    scores, rows, metric = found["scores"][::-1], found["differences"][::-1], found["metric"].replace("_", " ")
    height = max(1.6 + 0.32 * max(len(scores), len(rows)), 2.6)
    figure, (left, right) = new_figure(1, 2, size=(11, height))
    for place, row in enumerate(scores):
        _draw(left, place, row, found["metric"], COLOURS[0], COLOURS[0])
    left.set_yticks(range(len(scores)), [plain(row["run"]) for row in scores])
    left.set(title=metric, ylim=(-0.6, len(scores) - 0.4))
    for place, row in enumerate(rows):
        is_apart = row["better"] != NOT_TOLD_APART
        _draw(right, place, row, "difference", *([COLOURS[3]] * 2 if is_apart else ("grey", "white")))
    names = [f"{plain(row['first'], 24)} - {plain(row['second'], 24)}" for row in rows]
    right.set_yticks(range(len(rows)), names, fontsize="small")
    right.set(title=f"difference of {metric}; hollow: {NOT_TOLD_APART}", ylim=(-0.6, len(rows) - 0.4))
    right.axvline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    title = f"{found['clips']} test clips; bars: {found['level']:.0%} interval over {found['resampled']}"
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, path, figure_format)


def _draw(axes, place: int, row: dict, key: str, colour: str, inside: str):
    axes.plot([row["lower"], row["upper"]], [place, place], color=colour, linewidth=1.5)
    axes.plot(row[key], place, "o", color=colour, markerfacecolor=inside)


def print_rows(rows: list[dict]):
    cells = [[None if isinstance(cell, float) and np.isnan(cell) else cell for cell in row.values()] for row in rows]
    print_table(cells, list(rows[0]))


def choose_pairs(runs: list[Run], baseline: str | None) -> list[tuple[int, int]]:
    """Returns the indices of all pairs of runs, or of the baseline's; raises `InputError` if there is no such run."""
    if baseline is None:
        return list(itertools.combinations(range(len(runs)), 2))
    names = [run.name for run in runs]
    name = baseline if baseline in names else Path(baseline).name
    if name not in names:
        raise InputError(f"baseline: {baseline} is no run; {nearest(name, names, 'the runs are ' + '; '.join(names))}")
    return [(place, names.index(name)) for place in range(len(runs)) if names[place] != name]


def program(argv: list[str]):
    words = name_positionals(argv, CompareArguments, "runs")
    (arguments,) = parse_words((CompareArguments,), words, USAGE, "command line")
    folder = arguments.output_dir
    if folder is not None:
        check_writable(folder, is_folder=True)
    folders = list(dict.fromkeys(Path(run).absolute() for run in arguments.runs))
    names = names_of(folders)
    runs = [run for path in folders for run in read_runs(path, names[path])]
    if len(runs) < 2:
        raise InputError(f"{arguments.runs[0]}: is a single run; name two or more")
    metric = check_metric(arguments.metric, runs[0].labels.problem_type)
    pairs = choose_pairs(runs, arguments.baseline)
    found = compare(align(runs), metric, pairs, arguments.seed)
    print(f"{metric} on {found['clips']} clips that all {len(runs)} runs have tested:")
    print_rows(found["scores"])
    print(f"differences, with p-values corrected for {len(pairs)} pairs:")
    print_rows(found["differences"])
    if 2 * len(pairs) / (found["permutations"] + 1) >= ALPHA:
        text = f"{found['permutations']} permutations tell none of {len(pairs)} pairs apart"
        logger.warning(f"{text}; name fewer runs, or a baseline")
    if folder is not None:
        described_runs = {"runs": list(map(str, folders)), "seed": arguments.seed, "versions": versions()}
        write_outputs(found | described_runs, folder, arguments.figure_format)
        print(f"everything is in {folder}")


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        show_help((CompareArguments,), USAGE)
    return run_program(program, argv, KEPT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
