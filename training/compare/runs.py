"""Reads the predictions of finished runs, and finds the clips that all of them have tested."""

import csv
import json
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
from transformers.utils import logging

from ..base.predictions import score_names
from ..classification.metrics import DIRECTIONS
from ..data.labels import LabelSet
from ..errors import InputError, printable, short

SEEDS = "seed-*"
PREFIX = "probability_"

logger = logging.get_logger(__name__)


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
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file}: is no record of a run ({type(error).__name__}); name another folder") from None
    if not path.exists():
        raise InputError(
            f"{folder}: its task {printable(task)} has left no predictions.csv; name runs of the tasks classification, "
            "evaluation, cross_validation or probe, and repeat a run of an earlier version"
        )
    names = json.dumps(metrics)
    counts = {kind: sum(f'"{name}"' in names for name in known) for kind, known in DIRECTIONS.items()}
    problem = max(counts, key=counts.get)  # two kinds have a macro_f1
    if not counts[problem]:
        raise InputError(f"{file}: holds no metric of a classification or regression; name another folder")
    if task != "probe" and "validation" in metrics and "test" not in metrics:
        logger.warning(f"{folder}: its predictions are of validation clips, which may have chosen its checkpoint")
    try:  # as text: a class may be called 007 or NA
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
        if table.empty:
            raise ValueError("it has no rows")
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
