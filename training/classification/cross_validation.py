"""
The task `cross_validation`: a classification repeated for every fold and seed, and what its figures are on average.

The folds divide all clips that the recipe names. Of the training clips of each fold a part is set aside for validation
(`validation_fraction`), so that no choice is made by the clips that are tested.
"""

import copy
import json
import math
import shutil
from pathlib import Path

import pandas
from datasets import concatenate_datasets

from ..base import outputs, reproduction
from ..base.arguments import TrainingArguments
from ..data.arguments import DataArguments
from ..data.columns import clip_names
from ..data.labels import find_labels
from ..data.screening import screen
from ..data.splits import load_splits, make_folds, warn_of_repeats
from ..errors import InputError
from . import train
from .confidence_intervals import d_prime

RUNS = "seed-*-fold-*"
DESCRIPTION = "cross_validation.json"
# What changes nothing about the figures.
NOT_COMPARED = (
    "output_dir", "run_name", "overwrite", "resume_from_checkpoint", "disable_tqdm", "local_rank", "report_to",
    "dataloader_num_workers", "dataloader_prefetch_factor", "logging_dir", "html_report", "report_clips",
    "license", "language", "figure_format",
)  # fmt: skip


def run(*parts):
    """
    Trains in `OUTPUT_DIR/seed-S-fold-K` and writes the summary to the output folder. What is finished is not repeated.

    Args:
        parts: those of the task `classification`, and `CrossValidationArguments`

    Raises:
        InputError: bad input, told before training starts wherever it can be known by then.
    """
    *parts, settings = parts
    data_arguments, arguments = find_part(parts, DataArguments), find_part(parts, TrainingArguments)
    folder = Path(arguments.output_dir or "")
    if arguments.push_to_hub:
        raise InputError(
            "push_to_hub: a cross-validation has no model of its own; push one of its runs with python -m model_cards "
            "push FOLDER user/name"
        )
    with arguments.main_process_first(local=False, desc="looking for earlier runs"):
        prepare_folder(folder, arguments)
    clips, labels = load_clips(data_arguments, folder)
    is_single = labels.problem_type == "single_label_classification"
    folds = make_folds(clips, settings.num_folds, is_single, arguments.seed)
    seeds = range(arguments.seed, arguments.seed + settings.num_seeds)
    check_same_recipe(folder / DESCRIPTION, clips, folds, parts, arguments)
    folders = {(s, k): folder / f"seed-{s}-fold-{k + 1}" for s in seeds for k in range(len(folds))}
    for (seed, fold), own_folder in folders.items():
        if (own_folder / "results.json").exists():
            continue
        if arguments.should_log:
            print(f"seed {seed}, fold {fold + 1} of {len(folds)}", flush=True)
        training, test = folds[fold]
        splits = {"train": clips.select(training), "test": clips.select(test)}
        own_parts = parts_of_run(parts, own_folder, seed)
        find_part(own_parts, DataArguments).problem_type = labels.problem_type  # a fold may have one kind of label only
        train.run(*own_parts, splits=splits, label_names=labels.names)
        if arguments.should_save:
            for checkpoint in own_folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
    if arguments.should_save:
        recipe = {"task": "cross_validation"} | outputs.describe_recipe(
            *(part for part in (*parts, settings) if part is not arguments)
        )
        recipe["TrainingArguments"] = as_chosen(arguments)
        write_summary(folder, folders, recipe)


def as_chosen(arguments: TrainingArguments) -> dict:
    """The arguments without what Transformers fills in for them, which each run chooses for itself."""
    chosen = {"metric_for_best_model": arguments.chosen_metric, "greater_is_better": arguments.chosen_direction}
    return arguments.to_dict() | chosen


def check_same_recipe(path: Path, clips, folds: list, parts, arguments: TrainingArguments):
    """
    Writes down what the runs have in common, or compares it with what an earlier beginning wrote down.

    Raises:
        InputError: other clips, folds or settings: the summary would mix them.
    """
    found = {"clips and folds": describe_folds(clips, folds)}
    for part in outputs.describe_recipe(*(part for part in parts if part is not arguments)).values():
        found |= part
    found |= {name: value for name, value in as_chosen(arguments).items() if name not in NOT_COMPARED}
    found = json.loads(json.dumps(found, default=str))
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        for name, value in found.items():
            if stored.get(name) != value:
                raise InputError(
                    f"{path}: the cross-validation began with other {name} ({_short(stored.get(name))}, now "
                    f"{_short(value)}); go on with the same, or begin anew with --overwrite true"
                )
    elif arguments.should_save:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)


def describe_folds(clips, folds: list) -> str:
    labels = [f"{name}: {label}" for name, label in zip(clip_names(clips), clips["label"])]
    return outputs.fingerprint([*labels, *(str(sorted(map(int, test))) for _, test in folds)])


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def find_part(parts, kind: type):
    return next(part for part in parts if isinstance(part, kind))


def prepare_folder(folder: Path, arguments: TrainingArguments):
    """
    Removes earlier runs if `overwrite` is set.

    Raises:
        InputError: there are some, and neither `resume_from_checkpoint` nor `overwrite` is set.
    """
    if not arguments.output_dir:
        raise InputError("output_dir: is not set; name the folder that the runs write to")
    earlier = [path for path in (*folder.glob(RUNS), folder / DESCRIPTION, folder / "results.json") if path.exists()]
    goes_on = str(arguments.resume_from_checkpoint).lower() == "true"
    if arguments.overwrite and not goes_on:
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif earlier and not goes_on:
        raise InputError(
            f"{folder}: holds a cross-validation already; add --resume_from_checkpoint true to go on with it, "
            "--overwrite true to begin anew, or choose another output_dir"
        )


def load_clips(data_arguments: DataArguments, folder: Path):
    """All clips that the recipe names, and their label set."""
    splits = load_splits(data_arguments)
    warn_of_repeats(splits)
    splits = screen(splits, data_arguments, folder)
    clips = concatenate_datasets(list(splits.values()))
    return clips, find_labels(clips["label"], data_arguments.problem_type)


def parts_of_run(parts, folder: Path, seed: int) -> list:
    """The recipe of one run: its own folder and seed; it goes on from its own checkpoint, if there is one."""
    own = [copy.copy(part) for part in parts]
    data_arguments = find_part(own, DataArguments)
    data_arguments.check_files = data_arguments.check_samples = False  # they were
    data_arguments.on_bad_audio = "error"
    arguments = find_part(own, TrainingArguments)
    arguments.output_dir = arguments.run_name = str(folder)
    arguments.seed = seed
    arguments.resume_from_checkpoint = True
    return own


def write_summary(folder: Path, folders: dict[tuple[int, int], Path], recipe: dict):
    """`cross_validation.csv`, `predictions.csv` of all held-out clips and `results.json`; the summary on the screen."""
    rows, predictions = [], []
    for (seed, fold), own_folder in folders.items():
        results = json.loads((own_folder / "results.json").read_text(encoding="utf-8"))
        place = {"seed": seed, "fold": fold + 1}
        rows.append(place | {"clips": results["clips"]["test"]} | results["metrics"]["test"])
        predictions.append(pandas.read_csv(own_folder / "predictions.csv").assign(**place))
    table = pandas.DataFrame(rows)
    summary = summarise(table)
    staging = folder / outputs.STAGING_NAME
    staging.mkdir(parents=True, exist_ok=True)
    table.to_csv(staging / "cross_validation.csv", index=False)
    pandas.concat(predictions).to_csv(staging / "predictions.csv", index=False)
    summary_by_metric = summary.to_dict("index")
    results = {"metrics": summary_by_metric, "runs": rows, "versions": reproduction.versions(), "recipe": recipe}
    outputs.write_results(results, staging)
    outputs.publish(staging, folder)
    print(table.to_string(index=False, float_format="%.4f"))
    print(summary.to_string(float_format="%.4f", na_rep=""))
    print(f"everything is in {folder}")


def summarise(table: pandas.DataFrame) -> pandas.DataFrame:
    """
    Per metric the mean and the deviation over all runs, and of several seeds the deviation of their means: what the
    seed alone changes. Where a metric is not defined, or infinite, in some runs, `runs` says of how many the mean is.
    """
    metrics = table.drop(columns=["fold", "clips"]).set_index("seed")
    summary = pandas.DataFrame({"mean": metrics.mean(), "standard_deviation": metrics.std()})
    counts = metrics.notna().sum()
    if (counts < len(metrics)).any():
        summary["runs"] = counts
    if "d_prime" in summary.index and counts["d_prime"] < len(metrics):  # an infinite one is the best, not none
        summary.loc["d_prime", ["mean", "standard_deviation"]] = d_prime(summary.loc["mean_auc", "mean"]), math.nan
    by_seed = metrics.groupby(level="seed").mean()
    if len(by_seed) > 1:
        summary["deviation_of_seeds"] = by_seed.std()
    return summary
