"""
Runs the task `sweep`: compares layers and poolings of an encoder on a data set, with one encoder pass per clip.

The Dual SSAST paper fine-tunes every candidate; Niizumi et al. evaluate layer by layer. The sweep scores all pairs of
layers, readouts and poolings by linear evaluation, and turns the best one, or the simplest of the good ones, into a
recipe for fine-tuning.
"""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import yaml
from datasets import concatenate_datasets
from sklearn.model_selection import train_test_split
from transformers import set_seed
from transformers.utils import logging

from modeling_dual_ssast.configuration_composed import ComposedConfig
from modeling_dual_ssast.configuration_dual_ssast import READOUTS

from ..base import outputs, reproduction
from ..base.arguments import EncoderArguments
from ..base.loading import choose_windows, load_feature_extractor
from ..base.ridge import best_of, make_targets, mean_of, metric_of, other_folds, score_folds, why_undefined
from ..console import print_table
from ..data.arguments import FrozenDataArguments
from ..data.dataset import ClipDataset
from ..data.labels import find_labels
from ..data.screening import screen
from ..data.splits import complete_splits, divides_by_class, load_splits, make_folds
from ..errors import InputError
from ..files import write_csv, write_json
from .arguments import SweepArguments
from .choice import BEST, CHOICES, WORSE, choose, compare_with, half_interval, nested_scores, share_of_tests, verdicts
from .representations import (
    COMPOSED,
    Represented,
    block_features,
    blocks,
    encode_clips,
    load_for_recipe,
    subsets,
)
from .sweep_plots import plot_heat_maps, plot_layers
from .unlabelled import MEASURES, UnlabelledClips, agreement, geometry, plot_geometry, warn_of_ignored

logger = logging.get_logger(__name__)

FIGURES = ("layers", *(f"layers_{readout}" for readout in (*READOUTS, COMPOSED)), "unlabelled")
# Of one sweep; without labels, or with other readouts, another one lacks some of them.
OUTPUTS = (
    "best.json",
    "finetune.yaml",
    *(f"{name}.csv" for name in ("sweep", "comparison", "unlabelled")),
    *(f"{name}.{ending}" for name in FIGURES for ending in ("png", "pdf", "svg")),
)
RECIPE_HEADER = "# Fine-tunes with the layers and poolings that a sweep has chosen: {score}.\n"


@dataclass(frozen=True)
class Candidate:
    """Holds values of `readout`, `fusion_layers`, `pooling` and `pooling_combination` to compare."""

    readout: str
    layers: tuple[int, ...]
    pooling: tuple[str, ...]
    combination: str

    def settings(self) -> dict:
        """Returns the candidate as fields of `ModelArguments`."""
        settings = {"readout": self.readout, "fusion_layers": list(self.layers)}
        if self.pooling:
            settings |= {"pooling": list(self.pooling)}
        if self.pooling and self.readout != COMPOSED:
            settings |= {"pooling_combination": self.combination}
        return settings

    @property
    def way(self) -> str:
        """Returns a short name of readout and poolings."""
        if self.readout == "prefix":
            return "prefix"
        joined = (" + " if self.combination == "sum" else ", ").join(self.pooling)
        return f"{self.readout}: {joined}"

    @property
    def simplicity(self) -> tuple[int, int]:
        """Returns what sorts the simplest candidates first: fewest layers, then fewest poolings."""
        return len(self.layers), max(len(self.pooling), 1)


@dataclass
class Results:
    """
    Holds the results of a sweep.

    candidates: the index of `table` counts them in this order
    table: as `make_table` returns it, the best candidate first
    metric: name of the score's column in `table`
    layers: all layers of the encoder
    geometry: measures of the features of each layer, which need no labels
    chosen: rule of `CHOICES` -> index of its candidate
    nested: rule -> score of the whole choice by it, on each fold; empty with two folds
    test_share: held-out clips of a fold for each training clip
    seconds: duration of encoding and scoring
    """

    candidates: list[Candidate]
    table: pandas.DataFrame
    metric: str
    layers: list[int]
    geometry: pandas.DataFrame
    chosen: dict[str, int]
    nested: dict[str, np.ndarray]
    num_clips: int
    num_folds: int
    test_share: float
    seconds: dict[str, float]


def candidates(layers: list[int], readouts: list[str]) -> list[Candidate]:
    """
    Returns every layer and pair of layers with every subset of mean, max and min, summed and (for transformers)
    concatenated.
    """
    choices = [*((layer,) for layer in layers), *itertools.combinations(layers, 2)]
    found = []
    for readout in readouts:
        if readout == "prefix":
            found += [Candidate(readout, chosen, (), "") for chosen in choices]
            continue
        for pooling in subsets():
            can_join = len(pooling) > 1 and readout != COMPOSED
            for combination in ("sum", "concat") if can_join else ("sum",):
                found += [Candidate(readout, chosen, pooling, combination) for chosen in choices]
    return found


def run(model_arguments: EncoderArguments, data_arguments: FrozenDataArguments, arguments: SweepArguments):
    """
    Encodes the clips once, scores all candidates and writes the output folder.

    Raises:
        InputError: bad input, before the encoding starts wherever possible.
    """
    folder = Path(arguments.output_dir)
    outputs.check_free(folder, "sweep", arguments.overwrite)
    set_seed(arguments.seed)
    extractor = load_feature_extractor(model_arguments, data_arguments)
    model = load_for_recipe(model_arguments, extractor, fuse_all=True)
    readouts = choose_readouts(model.config, arguments.readouts)
    layers, windows = list(model.config.layers), choose_windows(model, extractor, data_arguments)
    if arguments.unlabelled:
        warn_of_ignored(data_arguments, arguments)
        dataset = UnlabelledClips(data_arguments, extractor, windows, arguments.max_clips, arguments.seed, folder)
        arrays = encode(folder, model_arguments, model, dataset, arguments)
        recipe = {"task": "sweep"} | outputs.describe_recipe(model_arguments, data_arguments, arguments)
        write_unlabelled(folder, geometry(arrays, readouts, layers), len(dataset), recipe, arguments)
        return
    clips = load_clips(data_arguments, arguments)
    label_set = find_labels(clips["label"], data_arguments.problem_type)
    if data_arguments.fold_column and arguments.num_repeats > 1:
        raise InputError("num_repeats: the folds of fold_column are the same in each; leave one of the two out")
    folds = make_folds(clips, arguments.num_folds, label_set.is_single, arguments.seed, arguments.num_repeats)
    targets = make_targets(clips["label"], label_set)
    check_folds(folds, clips, targets, label_set.problem_type, arguments.num_folds)
    can_nest = arguments.nested and len(other_folds(folds, 0)) > 1
    if arguments.nested and not can_nest:
        logger.warning("two folds leave none to choose by in a nested cross-validation; set num_folds to 3 or more")
    dataset = ClipDataset(clips, extractor, label_set, windows=windows)
    started = time.perf_counter()
    arrays = encode(folder, model_arguments, model, dataset, arguments)
    encoded = time.perf_counter()
    found = candidates(layers, readouts)
    name, metric = metric_of(label_set.problem_type)
    scores = score_folds(
        lambda block: block_features(arrays, *block),
        [blocks(c.readout, c.layers, c.pooling, c.combination) for c in found],
        targets,
        folds,
        arguments.ridge,
        metric,
        model.device,
        can_nest,
    )
    seconds = {"encoding": encoded - started, "scoring": time.perf_counter() - encoded}
    share, order = share_of_tests(folds), sorted(range(len(found)), key=lambda index: found[index].simplicity)
    results = Results(
        candidates=found,
        table=make_table(found, scores.with_best_penalty(), name, share),
        metric=name,
        layers=layers,
        geometry=geometry(arrays, readouts, layers),
        chosen={rule: choose(rule, scores.scores, order, share)[0] for rule in CHOICES},
        nested={rule: nested_scores(rule, scores, order) for rule in CHOICES if can_nest},
        num_clips=len(clips),
        num_folds=len(folds),
        test_share=share,
        seconds=seconds,
    )
    recipe = {"task": "sweep"} | outputs.describe_recipe(model_arguments, data_arguments, arguments)
    write_outputs(folder, results, recipe, model.config, arguments)


def encode(folder: Path, model_arguments: EncoderArguments, model, dataset, arguments: SweepArguments) -> dict:
    """Encodes the clips that a stopped sweep has not encoded; returns the arrays of `representations`."""
    network, dtype = Represented(model, dataset, dtype=arguments.storage_dtype), arguments.storage_dtype
    outputs.begin_anew(folder)
    return encode_clips(network, dataset, folder / "representations", model_arguments, arguments, dtype=dtype).means()


def choose_readouts(config, wanted: list[str] | None) -> list[str]:
    """
    Returns the readouts to compare: `wanted`, or all of the model.

    Raises:
        InputError: this kind of model does not have such a readout.
    """
    known = (COMPOSED,) if isinstance(config, ComposedConfig) else READOUTS
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise InputError(f"readouts: a {config.model_type} model has no {unknown[0]!r}, only {', '.join(known)}")
    return list(wanted or known)


def load_clips(data_arguments: FrozenDataArguments, arguments: SweepArguments):
    """
    Loads the training and validation clips, at most `max_clips` in the proportions of the classes. Leaves out the test
    clips: given ones, and those that a fine-tuning with the sweep's recipe holds out.
    """
    splits = load_splits(data_arguments)
    splits = screen(splits, data_arguments, arguments.output_dir)
    labels = find_labels(splits["train"]["label"], data_arguments.problem_type)
    stratify = divides_by_class(labels, splits["train"]["label"])
    # Stored with the choice: what goes on with it, with any seed, sets the same clips aside.
    data_arguments.split_seed = data_arguments.seed_of_splits(FINE_TUNING["seed"])
    splits = complete_splits(splits, data_arguments, stratify, data_arguments.split_seed)
    splits.pop("test", None)
    clips = concatenate_datasets(list(splits.values()))
    if len(clips) <= arguments.max_clips:
        return clips
    logger.warning(f"{arguments.max_clips} of {len(clips)} clips are scored with; max_clips sets how many")
    labels = [str(label) for label in clips["label"]]
    try:
        chosen, _ = train_test_split(
            range(len(clips)), train_size=arguments.max_clips, random_state=arguments.seed, stratify=labels
        )
    except ValueError:  # a class has a single clip, or labels are numbers
        chosen, _ = train_test_split(range(len(clips)), train_size=arguments.max_clips, random_state=arguments.seed)
    return clips.select(sorted(chosen))


def check_folds(folds: list[tuple], clips, targets: np.ndarray, problem_type: str, num_folds: int):
    """Raises `InputError` if the score has no value on the held-out clips of a fold; arguments as in `run`."""
    for _, held in folds:
        if not (problem := why_undefined(targets[held], problem_type)):
            continue
        if "fold" in clips.column_names:
            name = clips[int(held[0])]["fold"]
            raise InputError(
                f"fold_column: fold {name} is a fold of {problem}; join it with another, or leave fold_column out"
            )
        fewer = f"at most {len(clips) // 2}" if problem_type == "regression" and len(clips) > 3 else "fewer"
        raise InputError(f"num_folds: {num_folds} leave a fold of {problem}; set {fewer}, or add clips")


def make_table(found: list[Candidate], scores: list, metric: str, test_share: float) -> pandas.DataFrame:
    """
    Returns a row per candidate, the best first: settings, mean, deviation and 95 % interval over the folds, and the
    comparison with the best. Candidates whose features or predictions are not finite come last.

    Raises:
        InputError: no candidate has finite predictions.
    """
    folds = np.stack([score.folds for score in scores])  # (candidates, folds)
    means = mean_of(folds)
    best, compared = int(best_of(means)), np.arange(len(folds)) != best_of(means)
    rows = [
        {
            "readout": candidate.readout,
            "layers": "+".join(map(str, candidate.layers)),
            "pooling": "+".join(candidate.pooling),
            "combination": candidate.combination,
        }
        for candidate in found
    ]
    columns = {
        metric: means,
        "standard_deviation": folds.std(axis=1, ddof=1),
        "interval": half_interval(folds, test_share),
        "ridge": [score.ridge for score in scores],
        "alpha": [score.alpha for score in scores],
    }
    table = pandas.DataFrame(rows).assign(**columns, difference=0.0, p=1.0, p_holm=1.0, verdict=BEST)
    for name, values in compare_with(folds[best], folds[compared], test_share).items():
        table.loc[compared, name] = values
    table.loc[compared, "verdict"] = verdicts(table.loc[compared, "p_holm"], [WORSE] * int(compared.sum()))
    table = table.assign(**{f"fold_{index}": values for index, values in enumerate(folds.T)})
    missing = int(table[metric].isna().sum())
    if missing == len(table):
        raise InputError(
            "no candidate has finite predictions: the encoder's numbers overflow; set storage_dtype to float32, raise "
            "ridge, or check the recordings (python -m training.check)"
        )
    if missing:
        logger.warning(
            f"{missing} of {len(table)} candidates have features or predictions that are not finite, and come last "
            "without a score; set storage_dtype to float32"
        )
    # A stable sort: the first of equal candidates is the simplest.
    return table.sort_values(metric, ascending=False, kind="stable")


def comparison(table: pandas.DataFrame, metric: str, layers: list[int], test_share: float) -> pandas.DataFrame:
    """
    Compares as in the Dual SSAST paper: last, middle and both layers, with every pooling. Tests both layers against the
    last one, with p-values corrected for the number of poolings.
    """
    middle, last = layers[(len(layers) - 1) // 2], layers[-1]
    chosen = {"last": f"{last}", "middle": f"{middle}", "dual": f"{middle}+{last}"}
    ways = table["readout"].str.cat([table["pooling"], table["combination"]], sep=" ").str.strip()
    names = [name for name in table.columns if name.startswith("fold_")]
    rows, folds = [], {name: [] for name in chosen}
    for way in sorted(set(ways)):
        row = {"way": way}
        for name, layers in chosen.items():
            found = table[(ways == way) & (table["layers"] == layers)].iloc[0]
            row |= {name: found[metric], f"{name}_interval": found["interval"]}
            folds[name].append(found[names].to_numpy(dtype=np.float64))
        rows.append(row)
    tested = compare_with(np.stack(folds["last"]), np.stack(folds["dual"]), test_share)
    better = verdicts(tested["p_holm"], ["dual" if value > 0 else "last" for value in tested["difference"]])
    return pandas.DataFrame(rows).assign(dual_p_holm=tested["p_holm"], better=better)


def describe_choice(found: Results, rule: str, model: dict) -> dict:
    """Returns the entries of `results.json` about what a rule chooses; `model`: the encoder's settings."""
    row = found.table.loc[found.chosen[rule]]
    described = {
        "model": model | found.candidates[found.chosen[rule]].settings(),
        found.metric: float(row[found.metric]),
        "interval": float(row["interval"]),
        "verdict": row["verdict"],
    }
    if rule in found.nested:
        folds = found.nested[rule]
        described["nested"] = {
            found.metric: float(folds.mean()),
            "interval": float(half_interval(folds, found.test_share)),
            "folds": folds.tolist(),
        }
    return described


def write_outputs(folder: Path, found: Results, recipe: dict, config, arguments: SweepArguments):
    """Writes tables, figures, the chosen candidate and a recipe with it, `results.json` last; prints the best ones."""
    staging = outputs.new_staging(folder)
    table, metric, seconds = found.table, found.metric, found.seconds
    write_csv(table, staging / "sweep.csv")
    compared = comparison(table, metric, found.layers, found.test_share)
    write_csv(compared, staging / "comparison.csv")
    measured = with_scores(found)
    agreed = agreement(measured, metric)
    write_csv(measured, staging / "unlabelled.csv")
    plot_geometry(measured, staging / "unlabelled.png", arguments.figure_format, metric)
    plot_heat_maps(found, staging, arguments.figure_format)
    plot_layers(found, staging / "layers.png", arguments.figure_format)
    encoder = {key: value for key, value in recipe["EncoderArguments"].items() if value not in (None, {})}
    divided = {"split_seed": recipe["DataArguments"]["split_seed"]}
    choices = {rule: describe_choice(found, rule, encoder) | divided for rule in CHOICES}
    if not hasattr(config, "readout"):  # VGGish has only one
        for described in choices.values():
            described["model"].pop("readout")
    chosen = choices[arguments.choice]
    write_json(staging / "best.json", outputs.without_nan(chosen))
    data = {key: value for key, value in recipe["DataArguments"].items() if value is not None and key in RECIPE_DATA}
    fine_tuning = {
        "task": "classification", **chosen["model"], **data, **FINE_TUNING, "output_dir": f"{folder}-fine-tuned"
    }  # fmt: skip
    interval = "" if np.isnan(chosen["interval"]) else f" +- {chosen['interval']:.4f}"
    score = f"{metric} {chosen[metric]:.4f}{interval} over {found.num_folds} folds"
    text = RECIPE_HEADER.format(score=score) + yaml.safe_dump(fine_tuning, sort_keys=False)
    (staging / "finetune.yaml").write_text(text, encoding="utf-8")
    num_apart = int((table["verdict"] == WORSE).sum())
    results = {
        **choices,
        "choice": arguments.choice,
        "comparison": compared.to_dict("records"),
        "clips": found.num_clips,
        "folds": found.num_folds,
        "candidates": len(table),
        "told_apart_from_the_best": num_apart,
        "unlabelled": agreed.to_dict("records"),
        "seconds": seconds,
        "versions": reproduction.versions(),
        "recipe": recipe,
    }
    outputs.write_results(results, staging)
    outputs.publish(staging, folder, OUTPUTS)
    print(
        f"{len(table)} candidates, {found.num_clips} clips: encoded in {seconds['encoding']:.1f} s, "
        f"scored in {seconds['scoring']:.1f} s"
    )
    columns = ["readout", "layers", "pooling", "combination", metric, "interval", "verdict"]
    print_table(outputs.without_nan(table[columns].head(5).values.tolist()), columns)
    print(f"{num_apart} candidates are told apart from the best over {found.num_folds} folds")
    print_choices(found, choices)
    print(f"everything is in {folder}; to fine-tune with it: train_hf.py {folder / 'finetune.yaml'}")


def with_scores(found: Results) -> pandas.DataFrame:
    """Returns `found.geometry` with the scores of the same layers and poolings."""
    scores = found.table.loc[found.table["combination"] != "concat", ["readout", "layers", "pooling", found.metric]]
    named = found.geometry.assign(layers=found.geometry["layer"].astype(str))
    return named.merge(scores, on=["readout", "layers", "pooling"]).drop(columns="layers")


def write_unlabelled(folder: Path, table: pandas.DataFrame, num_clips: int, recipe: dict, arguments: SweepArguments):
    """Writes the table and figure of a sweep without labels, and prints the layer that each measure takes."""
    staging = outputs.new_staging(folder)
    write_csv(table, staging / "unlabelled.csv")
    plot_geometry(table, staging / "unlabelled.png", arguments.figure_format)
    outputs.write_results({"clips": num_clips, "versions": reproduction.versions(), "recipe": recipe}, staging)
    outputs.publish(staging, folder, OUTPUTS)
    rows = []
    for (readout, pooling), part in table.dropna().groupby(["readout", "pooling"], sort=False):
        rows.append([readout, pooling, *(int(part.loc[part[name].idxmax(), "layer"]) for name in MEASURES)])
    print(f"{num_clips} clips without labels: the layers with the highest")
    print_table(rows, ["readout", "pooling", *MEASURES])
    print(f"everything is in {folder}")


def print_choices(found: Results, choices: dict[str, dict]):
    """Prints what each rule chooses, its score, and the nested score of the whole choice."""
    rows, metric = [], found.metric
    for rule, described in choices.items():
        candidate, nested = found.candidates[found.chosen[rule]], described.get("nested", {})
        name = f"{candidate.way}, layers {' and '.join(map(str, candidate.layers))}"
        rows.append([rule, name, described[metric], described["interval"], nested.get(metric), nested.get("interval")])
    print_table(outputs.without_nan(rows), ["choice", "candidate", metric, "interval", "nested", "interval"])


# Recipe of the fine-tuning: keys copied from the sweep, and SSAST's settings for small data sets.
RECIPE_DATA = (
    "dataset_name", "dataset_config_name", "dataset_revision", "train_split", "validation_split", "test_split",
    "train_file", "validation_file", "test_file", "audio_column", "label_column", "label_separator", "problem_type",
    "none_label", "group_column", "start_column", "end_column", "on_bad_audio", "max_unreadable_share", "label_file",
    "window_s", "hop_s", "mean", "std", "validation_fraction", "test_fraction", "split_seed",
)  # fmt: skip
FINE_TUNING = {
    "num_train_epochs": 25,
    "per_device_train_batch_size": 12,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "seed": 0,
}
