"""Compares runs that have tested the same clips: the paired bootstrap, and permutation tests."""

import numpy as np
from scipy.stats import rankdata
from transformers.utils import logging

from ..base.bootstrap import BLOCK_SIZE, LEVEL, NUM_RESAMPLES, draw_weights, interval_of, resamples_for, units_to_draw
from ..base.paired_tests import ALPHA, NOT_TOLD_APART, NUM_PERMUTATIONS, holm, permutation_p
from ..classification.metrics import DIRECTIONS, weighted_metrics
from ..errors import InputError, nearest
from .runs import Run

logger = logging.get_logger(__name__)


def units_of(runs: list[Run]) -> tuple[np.ndarray | None, str]:
    """
    Returns what is drawn and exchanged together, (clips,) from 0, and its noun; `None`, with a warning, for a single
    clip or group: nothing says how far others would differ from it.
    """
    groups = next((run.groups for run in runs if run.groups is not None), None)
    noun, units = "clips" if groups is None else "groups", units_to_draw(len(runs[0].clips), groups)
    if units is None:
        what = "there is one shared clip" if groups is None else f"all shared clips are of one group, {groups[0]}"
        where = "" if groups is None else " (group in predictions.csv)"
        logger.warning(f"{what}{where}: differences have neither intervals nor p-values; test more {noun}")
    return units, noun


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
    for weights in [] if units is None else draw_weights(units, count[0], seed):
        for values, own in zip(resampled, given):
            values.append(measure(weights, own, targets).mean(axis=0))
    resampled = [np.concatenate(values) if values else np.empty(0) for values in resampled]
    scores = [
        {
            "run": run.name, metric: float(values.mean()), **_ends_of(drawn), "seeds": len(values),
            "deviation_of_seeds": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
        }
        for run, values, drawn in zip(runs, by_seed, resampled)
    ]  # fmt: skip
    rows = []
    for first, second in pairs:
        p_value = np.nan
        if units is not None:
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
