"""
Runs the task `cross_validation`: repeats a classification for every fold and seed, and summarises the metrics.

The folds divide all clips that the recipe names. A part of each fold's training clips is held out for validation
(`validation_fraction`), so that no choice depends on the test clips.
"""

import copy
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas

from ..base import outputs, reproduction
from ..base.arguments import DERIVED, ModelArguments, TrainingArguments
from ..data.arguments import DataArguments
from ..data.augmentation import AugmentationArguments
from ..data.columns import clip_names
from ..data.labels import LabelSet, find_labels
from ..data.screening import screen
from ..data.splits import load_splits, make_folds, warn_of_repeats
from ..errors import InputError, blamed
from ..files import check_same, check_writable, fingerprint, read_json, write_csv, write_json
from . import train
from .arguments import CrossValidationArguments, TuningArguments
from .confidence_intervals import d_prime

TASK = "cross_validation"
RUNS = "seed-*-fold-*"
DESCRIPTION = "cross_validation.json"
# Settings that do not affect the metrics.
NOT_COMPARED = (
    "output_dir", "run_name", "overwrite", "resume_from_checkpoint", "disable_tqdm", "local_rank", "report_to",
    "dataloader_num_workers", "dataloader_prefetch_factor", "logging_dir", "html_report", "report_clips",
    "decoded_cache",
    "license", "language", "figure_format", "use_cpu",
)  # fmt: skip


@dataclass
class Recipe:
    """Holds the arguments of the task `classification`, in the order of its parameters."""

    model: ModelArguments
    data: DataArguments
    augmentation: AugmentationArguments
    tuning: TuningArguments
    training: TrainingArguments

    def of_run(self, folder: Path, seed: int, labels: LabelSet) -> "Recipe":
        """Returns the recipe of one run: its own folder and seed; it resumes from its own checkpoint, if any."""
        own = Recipe(*(copy.copy(part) for part in self.parts()))
        own.data.check_files = own.data.check_samples = False  # all clips were checked
        own.data.on_bad_audio = "error"
        own.data.problem_type = labels.problem_type  # a fold may have one kind of label only
        own.training.output_dir = own.training.run_name = str(folder)
        own.training.seed = seed
        own.training.resume_from_checkpoint = True
        return own

    def parts(self) -> tuple:
        return self.model, self.data, self.augmentation, self.tuning, self.training

    def describe(self) -> dict[str, dict]:
        """
        Returns argument class -> its values, without those that Transformers fills in: each run chooses them itself.
        """
        training = self.training
        chosen = {"metric_for_best_model": training.chosen_metric, "greater_is_better": training.chosen_direction}
        described = outputs.describe_recipe(self.model, self.data, self.augmentation, self.tuning)
        return described | {"TrainingArguments": training.as_given() | chosen}


def run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    tuning: TuningArguments,
    arguments: TrainingArguments,
    settings: CrossValidationArguments,
):
    """
    Trains in `OUTPUT_DIR/seed-S-fold-K` and writes the summary to the output folder. Finished runs are not repeated.

    Raises:
        InputError: bad input, wherever possible before the training starts.
    """
    recipe = Recipe(model_arguments, data_arguments, augmentation, tuning, arguments)
    folder = Path(arguments.output_dir or "")
    if arguments.push_to_hub:
        raise InputError(
            "push_to_hub: a cross-validation has no model of its own; push one of its runs with python -m hub push "
            "FOLDER user/name"
        )
    with arguments.main_process_first(local=False, desc="looking for earlier runs"):
        prepare_folder(folder, arguments)
    clips, labels = load_clips(data_arguments, folder)
    folds = make_folds(clips, settings.num_folds, labels.is_single, arguments.seed)
    seeds = range(arguments.seed, arguments.seed + settings.num_seeds)
    check_same_recipe(folder / DESCRIPTION, clips, folds, recipe)
    folders = {(s, k): folder / f"seed-{s}-fold-{k + 1}" for s in seeds for k in range(len(folds))}
    for (seed, fold), own_folder in folders.items():
        if (own_folder / "results.json").exists():
            continue
        if arguments.should_log:
            print(f"seed {seed}, fold {fold + 1} of {len(folds)}", flush=True)
        training, test = folds[fold]
        splits = {"train": clips.select(training), "test": clips.select(test)}
        own = recipe.of_run(own_folder, seed, labels)
        train.run(*own.parts(), splits=splits, label_names=labels.names)
        if arguments.should_save:
            for checkpoint in own_folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
    if arguments.should_save:
        described = {"task": TASK} | recipe.describe() | outputs.describe_recipe(settings)
        write_summary(folder, folders, described)


def check_same_recipe(path: Path, clips: datasets.Dataset, folds: list, recipe: Recipe):
    """
    Stores the settings and clips that all runs share, or compares them with those that an earlier start stored, as far
    as it did.

    Args:
        folds: (training clips, test clips) of each fold, as indices

    Raises:
        InputError: clips, folds or settings differ, so that the summary would mix them.
    """
    found = {"clips and folds": describe_folds(clips, folds)}
    if not recipe.training.process_index:  # it reads the recordings
        found["data"] = reproduction.describe_data({"all": clips})
    for part in recipe.describe().values():
        found |= part
    found = json.loads(
        json.dumps({name: value for name, value in found.items() if name not in NOT_COMPARED}, default=str)
    )
    if path.exists():
        stored = read_json(path, "begin anew with --overwrite true")
        derived = recipe.training.to_dict()  # an earlier version has stored what it derived, and fewer settings
        known = {
            name: value
            for name, value in found.items()
            if name in stored and not (name in DERIVED and stored[name] == derived[name])
        }
        check_same(path, stored, known, "go on with the same, or begin anew with --overwrite true")
    elif recipe.training.should_save:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)


def describe_folds(clips: datasets.Dataset, folds: list) -> str:
    """Returns a fingerprint of the clips' names and labels and of the folds' test clips."""
    labels = [f"{name}: {label}" for name, label in zip(clip_names(clips), clips["label"])]
    return fingerprint([*labels, *(str(sorted(map(int, test))) for _, test in folds)])


def prepare_folder(folder: Path, arguments: TrainingArguments):
    """
    Removes earlier runs if `overwrite` is set.

    Raises:
        InputError: the folder has earlier runs, and neither `resume_from_checkpoint` nor `overwrite` is set; or the run
            of another task, whose model and checkpoints would stay beside the new results.
    """
    if not arguments.output_dir:
        raise InputError("output_dir: is not set; name the folder that the runs write to")
    check_writable(folder, is_folder=True)
    task = (outputs.earlier_results(folder).get("recipe") or {}).get("task", TASK)
    if task != TASK or next(folder.glob("checkpoint-*"), None):
        raise InputError(f"{folder}: holds the run of another task; remove it, or choose another output_dir")
    earlier = [path for path in (*folder.glob(RUNS), folder / DESCRIPTION, folder / "results.json") if path.exists()]
    goes_on = str(arguments.resume_from_checkpoint).lower() == "true"
    if arguments.overwrite and not goes_on:
        outputs.begin_anew(folder)
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif earlier and not goes_on:
        raise InputError(
            f"{folder}: holds a cross-validation already; add --resume_from_checkpoint true to go on with it, "
            "--overwrite true to begin anew, or choose another output_dir"
        )


def load_clips(data_arguments: DataArguments, folder: Path) -> tuple[datasets.Dataset, LabelSet]:
    """Loads all clips that the recipe names; returns them with their label set."""
    splits = load_splits(data_arguments)
    warn_of_repeats(splits)
    splits = screen(splits, data_arguments, folder)
    clips = datasets.concatenate_datasets(list(splits.values()))
    return clips, find_labels(clips["label"], data_arguments.problem_type)


def write_summary(folder: Path, folders: dict[tuple[int, int], Path], recipe: dict):
    """Writes `cross_validation.csv`, `predictions.csv` of all held-out clips and `results.json`; prints the summary."""
    rows, predictions = [], []
    for (seed, fold), own_folder in folders.items():
        remedy = f"remove {own_folder}, which is then trained anew"
        results = read_json(own_folder / "results.json", remedy)
        place = {"seed": seed, "fold": fold + 1}
        with blamed(str(own_folder), remedy):
            rows.append(place | {"clips": results["clips"]["test"]} | results["metrics"]["test"])
            # As text: a class may be called 007 or NA.
            own = pandas.read_csv(own_folder / "predictions.csv", dtype=str, keep_default_na=False)
        predictions.append(own.assign(**place))
    table = pandas.DataFrame(rows)
    summary = summarise(table)
    staging = outputs.new_staging(folder)
    write_csv(table, staging / "cross_validation.csv")
    write_csv(pandas.concat(predictions), staging / "predictions.csv")
    summary_by_metric = summary.to_dict("index")
    results = {"metrics": summary_by_metric, "runs": rows, "versions": reproduction.versions(), "recipe": recipe}
    outputs.write_results(results, staging)
    outputs.publish(staging, folder)
    print(table.to_string(index=False, float_format="%.4f"))
    print(summary.to_string(float_format="%.4f", na_rep=""))
    print(f"everything is in {folder}")


def summarise(table: pandas.DataFrame) -> pandas.DataFrame:
    """
    Returns per metric the mean and the standard deviation over all runs; with several seeds also the standard deviation
    of the seeds' means. Where a metric is undefined or infinite in some runs, `runs` counts the others.
    """
    metrics = table.drop(columns=["fold", "clips"]).set_index("seed")
    summary = pandas.DataFrame({"mean": metrics.mean(), "standard_deviation": metrics.std()})
    counts = metrics.notna().sum()
    if (counts < len(metrics)).any():
        summary["runs"] = counts
    if "d_prime" in summary.index and counts["d_prime"] < len(metrics):  # infinity is its best value: it is not missing
        summary.loc["d_prime", ["mean", "standard_deviation"]] = d_prime(summary.loc["mean_auc", "mean"]), math.nan
    by_seed = metrics.groupby(level="seed").mean()
    if len(by_seed) > 1:
        summary["deviation_of_seeds"] = by_seed.std()
    return summary
