"""Writes the output folder of a probe: every run, predictions, the summary, and the best head as a finished model."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from transformers import PreTrainedModel

from model_cards.card import probe_card

from ..base import reproduction
from ..base.bootstrap import LEVEL, MIN_RESAMPLES, NUM_RESAMPLES, draw_weights, interval_of, units_to_draw
from ..base.clip_facts import describe_clips, has_groups
from ..base.outputs import earlier_results, new_staging, publish, write_results
from ..base.predictions import labelled_table
from ..base.ridge import metric_of
from ..console import print_table
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..errors import InputError
from ..files import write_csv
from .heads import Head, assemble

MODEL = "model"  # folder of the best head
RULE = (
    "The method with the highest mean validation score over its seeds; among equal ones, that with fewer trained "
    "weights. Among its seeds, the one with the highest validation score."
)
COLUMNS = ("method", "setting", "seed", "epoch", "validation", "test")


@dataclass
class Trained:
    """
    Holds what the best head's model is made of.

    Args:
        encoder: frozen
        heads: method -> its head
        scaler: of the embeddings, for heads that standardise
        datasets: split -> clips
        seconds: of the encoding, and of each method
    """

    encoder: PreTrainedModel
    heads: dict[str, Head]
    scaler: object
    datasets: Mapping[str, ClipDataset]
    seconds: dict[str, float]


def best_row(rows: Sequence[dict], heads: Mapping[str, Head]) -> dict | None:
    """Returns the row of the best trained head by `RULE`; `None` without one."""
    by_method = {name: [row for row in rows if row["method"] == name] for name in heads}
    if not by_method:
        return None

    def merit(name: str) -> tuple[float, int]:
        mean = np.mean([row["validation"] for row in by_method[name]])
        return round(float(mean), 12), -heads[name].num_weights

    return max(by_method[max(by_method, key=merit)], key=lambda row: row["validation"])


def names_of(table: pandas.DataFrame) -> pandas.Series:
    """Returns the name of each run's method; few labels count as a method per number of them."""
    return table["method"].where(table["method"] != "few_shot", "few_shot, " + table["setting"])


def summarise(
    table: pandas.DataFrame, intervals: Mapping[str, Sequence[float] | None], trained: Trained | None
) -> list[dict]:
    """
    Returns a row per method: mean validation and test scores over the seeds, the interval and the deviation of the test
    score, the number of runs; of trained heads, their number of weights, the seconds of the whole search, and the
    settings that the seeds chose.
    """
    rows = []
    for name, runs in table.groupby(names_of(table), sort=False):
        lower, upper = intervals.get(name) or (None, None)
        head = trained.heads.get(name) if trained else None
        row = {
            "method": name, "validation": float(runs["validation"].mean()), "test": float(runs["test"].mean()),
            "lower": lower, "upper": upper,
            "standard_deviation": float(runs["test"].std()) if len(runs) > 1 else None, "runs": len(runs),
            "weights": head.num_weights if head else None,
            "seconds": round(trained.seconds[name]) if head else None,
            "chosen": "; ".join(dict.fromkeys(runs["setting"])),
        }  # fmt: skip
        rows.append(row)
    return rows


def num_resamples(label_set: LabelSet) -> int:
    """Returns how many resamples an interval is made of: fewer where scikit-learn computes the metric of each."""
    return NUM_RESAMPLES if label_set.is_single else MIN_RESAMPLES


def interval(
    scores: Sequence[np.ndarray],
    targets: np.ndarray,
    label_set: LabelSet,
    groups: Sequence[str] | None,
    folds: Sequence[np.ndarray] | None = None,
) -> list[float] | None:
    """
    Returns the confidence interval of the mean score of some runs, by resamples of the clips, or of whole groups.

    Args:
        scores: per run (clips, labels)
        targets: classes (clips,), or (clips, labels)
        folds: per fold the clips that it tests, for EVAR's scores: means over the folds, in which a label without
            positive test clips counts as 0; `None`: all clips are one test, and such a label is left out

    Returns:
        both ends; `None` with fewer than two clips or groups
    """
    units = units_to_draw(len(targets), groups)
    if units is None:
        return None
    blocks = draw_weights(units, num_resamples(label_set), seed=0)
    parts = [np.arange(len(targets))] if folds is None else folds
    if label_set.is_single:
        share = np.ones(len(targets))  # of a clip in the score: a fold counts as much as another
        for part in parts if len(parts) > 1 else ():
            share[part] = 1 / len(part)
        is_right = share * np.mean([own.argmax(axis=1) == targets for own in scores], axis=0)  # (clips,)
        return interval_of(np.concatenate([is_right @ weights / (share @ weights) for weights in blocks]))
    metric, found = metric_of(label_set.problem_type)[1], []
    targets = targets.reshape(len(targets), -1)
    # What a resample happens to lack is left out in any case: as zeros it would only lower the interval.
    factors = [1.0 if folds is None else (targets[part] > 0).any(axis=0).mean() for part in parts]
    for weights in (column for block in blocks for column in block.T):
        values = []
        for part, factor in zip(parts, factors):
            drawn = np.repeat(part, weights[part].astype(int))
            if label_set.is_regression or (targets[drawn] > 0).any():  # else no label has positive clips
                values.append(factor * np.mean([metric(targets[drawn], own[drawn]) for own in scores]))
            elif not factor:
                values.append(0.0)
        if values:
            found.append(np.mean(values))
    return interval_of(np.asarray(found)) if found else None


def check_model_folder(folder: Path):
    """Raises `InputError` if an output folder holds a `model` that no earlier probe wrote: it would be replaced."""
    earlier = earlier_results(folder)
    is_own = (earlier.get("recipe") or {}).get("task") == "probe" and "model" in earlier
    if (folder / MODEL).exists() and not is_own:
        raise InputError(f"{folder / MODEL}: no probe wrote it, and this one would replace it; name another output_dir")


def write_outputs(
    folder: Path,
    rows: list[dict],
    dataset: ClipDataset,
    counts: dict[str, int],
    size: int,
    recipe: dict,
    trained: Trained | None = None,
    folds: Sequence[np.ndarray] | None = None,
):
    """
    Writes `probe.csv` with every run, `predictions.csv` of the test clips, the model of the best head and
    `results.json` with the summary, and prints the summary.

    Args:
        rows: each run, with its `scores` (clips, labels)
        dataset: the test clips
        counts: split -> clips
        size: of an embedding
        folds: see `interval`
    """
    staging, label_set = new_staging(folder), dataset.labels
    best = best_row(rows, trained.heads) if trained else None
    scores = [row["scores"] for row in rows]
    table = pandas.DataFrame([{key: row[key] for key in row if key in COLUMNS} for row in rows])
    write_csv(table, staging / "probe.csv")
    names = names_of(table)
    predictions = [
        labelled_table(dataset, label_set, own).assign(method=name, seed=row["seed"])
        for own, name, row in zip(scores, names, rows)
    ]
    write_csv(pandas.concat(predictions), staging / "predictions.csv")
    targets = np.asarray(list(dataset.encoded_labels()))
    groups = dataset.examples["group"][:] if has_groups(dataset) else None
    clips = targets, label_set, groups
    intervals = {
        name: interval([own for own, other in zip(scores, names) if other == name], *clips, folds)
        for name in dict.fromkeys(names)
    }
    summary, metric = summarise(table, intervals, trained), metric_of(label_set.problem_type)[0]
    results = {
        "metric": metric,
        "summary": summary,
        "interval": {"level": LEVEL, "resampled": "clips" if groups is None else "groups"},
        "labels": list(label_set.names),
        "clips": counts,
        "embedding_size": size,
        **({"seconds": trained.seconds} if trained else {}),
        "versions": reproduction.versions(),
        "recipe": recipe,
    }
    if best is not None:
        results["model"] = {key: best[key] for key in COLUMNS} | {"folder": MODEL, "rule": RULE}
        write_model(staging / MODEL, folder, best, interval([best["scores"]], *clips), trained, results)
    elif (folder / MODEL).exists():
        shutil.rmtree(folder / MODEL)  # of an earlier run
    write_results(results, staging)
    publish(staging, folder)
    if trained:
        print(f"encoded {sum(counts.values())} clips in {trained.seconds['encoding']:.1f} s")
    print(f"{metric} on {counts['test']} test clips, embeddings of {size} numbers:")
    columns = [name for name in summary[0] if any(row[name] is not None for row in summary)]
    print_table([[row[name] for name in columns] for row in summary], columns)
    if best is not None:
        print(f"{folder / MODEL}: the {best['method']} head of seed {best['seed']}. {RULE}")
    print(f"everything is in {folder}")


def write_model(staging: Path, folder: Path, best: dict, found: list[float] | None, trained: Trained, results: Mapping):
    """Writes the encoder with the best head as a folder that `from_pretrained` takes: a classifier of clips."""
    head, test = trained.heads[best["method"]], trained.datasets["test"]
    weights = best["weights"]
    if head.method.standardises:
        weights = head.without_standardisation(weights, trained.scaler)
    model = assemble(trained.encoder, head, weights)
    model.save_pretrained(staging)
    test.feature_extractor.save_pretrained(staging)
    recipe, metric = results["recipe"], results["metric"]
    settings = recipe["ProbeArguments"]
    data = recipe["DataArguments"]
    own = {
        "metrics": {split: {metric: best[split]} for split in ("validation", "test")},
        "confidence_intervals": found
        and {
            "level": LEVEL,
            "resamples": num_resamples(test.labels),
            "resampled": results["interval"]["resampled"],
            "intervals": {metric: found},
        },
        "clips": results["clips"],
        "labels": results["labels"],
        "problem_type": test.labels.problem_type,
        **describe_clips(trained.datasets, test.labels, data["group_column"]),
        "head": {
            **results["model"],
            "title": head.method.title,
            "weights": head.num_weights,
            "seeds": list(range(settings["seed"], settings["seed"] + settings["num_seeds"])),
            "batch_size": settings["batch_size"],
            "budget": f"learning rates {_listed(settings['learning_rates'])}; weight decays "
            f"{_listed(settings['weight_decays'])}; at most {settings['num_epochs']} epochs",
        },
        "versions": results["versions"],
        "recipe": recipe,
    }
    write_results(own, staging)
    name = data["dataset_name"] or Path(data["train_file"]).parent
    card = probe_card(
        folder.resolve().name, model.config, test.feature_extractor, own,
        dataset_name=Path(name).resolve().name, num_parameters=model.num_parameters(),
    )  # fmt: skip
    (staging / "README.md").write_text(str(card), encoding="utf-8")


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
