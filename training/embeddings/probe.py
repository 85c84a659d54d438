"""
Runs the task `probe`: evaluates a frozen encoder on a data set.

Trains a linear layer on standardised embeddings, in the manner of EVAR (Niizumi et al., EUSIPCO 2022): Adam, learning
rate and end of the training chosen on the validation split, several seeds. Also scores nearest neighbours, and logistic
regression on a few labels per class. `protocol: evar` follows EVAR to the letter, see evar.py.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas
import torch
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import set_seed
from transformers.utils import logging

from modeling_dual_ssast.classifier_dual_ssast import classification_loss

from ..base import reproduction
from ..base.arguments import ModelArguments
from ..base.finite import check_scores
from ..base.loading import choose_windows, load_feature_extractor
from ..base.outputs import STAGING_NAME, describe_recipe, publish, write_results
from ..base.predictions import labelled_table
from ..base.ridge import metric_of
from ..console import print_table
from ..data.arguments import FrozenDataArguments
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet, find_labels
from ..data.screening import screen
from ..data.splits import complete_splits, load_splits, make_folds
from ..errors import InputError
from ..files import check_writable, fingerprint, write_csv
from ..inference.shards import Shards
from . import evar
from .arguments import ProbeArguments
from .representations import fill_shards, fused, load_for_recipe

SPLITS = ("train", "validation", "test")

logger = logging.get_logger(__name__)


def run(model_arguments: ModelArguments, data_arguments: FrozenDataArguments, arguments: ProbeArguments):
    """
    Embeds the clips once, evaluates and writes the output folder.

    Raises:
        InputError: bad input, before the encoding starts wherever possible.
    """
    folder = Path(arguments.output_dir)
    check_writable(folder, is_folder=True)
    if (folder / "results.json").exists() and not arguments.overwrite:
        raise InputError(f"{folder}: holds a probe already; set overwrite to begin anew, or choose another output_dir")
    recipe = {"task": "probe"} | describe_recipe(model_arguments, data_arguments, arguments)
    if arguments.protocol == "evar":
        outcomes = run_evar(model_arguments, data_arguments, arguments)
        rows = list(evar.rows_of(outcomes.by_seed, arguments.learning_rates[0]))
        for row in rows:
            row["scores"] = outcomes.scores(row["seed"])
        write_outputs(folder, rows, outcomes.dataset, outcomes.counts, outcomes.size, recipe)
        return
    set_seed(arguments.seed)
    extractor = load_feature_extractor(model_arguments, data_arguments)
    model = load_for_recipe(model_arguments, extractor)
    splits = screen(load_splits(data_arguments), data_arguments, folder)
    label_set = find_labels(splits["train"]["label"], data_arguments.problem_type)
    splits = complete_splits(splits, data_arguments, stratify=label_set.is_single, seed=arguments.seed)
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise InputError(f"{missing[0]}_split: a probe needs one; name it, or set {missing[0]}_fraction above 0")
    windows = choose_windows(model, extractor, data_arguments)
    datasets = {split: ClipDataset(splits[split], extractor, label_set, windows=windows) for split in SPLITS}
    for dataset in datasets.values():
        dataset.check_labels()
    embeddings = {
        split: embed(model, dataset, folder / "embeddings" / split, model_arguments, arguments)
        for split, dataset in datasets.items()
    }
    labels = {
        split: np.asarray([dataset.label(index) for index in range(len(dataset))])
        for split, dataset in datasets.items()
    }
    scaler = StandardScaler().fit(embeddings["train"])
    features = {split: scaler.transform(values).astype(np.float32) for split, values in embeddings.items()}
    rows = []
    if "linear" in arguments.methods:
        rows += linear_rows(features, labels, label_set, arguments)
    if label_set.is_single and "neighbours" in arguments.methods:
        rows.append(neighbour_row(features, labels, len(label_set.names), arguments))
    if label_set.is_single and "few_shot" in arguments.methods:
        rows += few_shot_rows(features, labels, len(label_set.names), arguments)
    counts = {split: len(values) for split, values in features.items()}
    write_outputs(folder, rows, datasets["test"], counts, features["train"].shape[1], recipe)


@dataclasses.dataclass
class EvarOutcomes:
    """
    Holds the linear layers of EVAR's protocol.

    by_seed: seed -> an outcome per fold
    tested: per fold the test clips' indices among `num_tested`, and their targets (clips, labels)
    dataset: the clips that are tested
    counts: split -> clips; with folds `train` and `test` hold all clips
    size: of an embedding
    """

    by_seed: dict[int, list[evar.Outcome]]
    tested: list[tuple[np.ndarray, np.ndarray]]
    dataset: ClipDataset
    counts: dict[str, int]
    size: int

    @property
    def label_set(self) -> LabelSet:
        return self.dataset.labels

    def scores(self, seed: int) -> np.ndarray:
        """Returns the outputs of a seed's layers for the clips of `dataset`: (clips, labels)"""
        found = np.zeros((len(self.dataset), len(self.label_set.names)), dtype=np.float32)
        for (held, _), outcome in zip(self.tested, self.by_seed[seed]):
            found[held] = outcome.outputs
        return found


def run_evar(
    model_arguments: ModelArguments, data_arguments: FrozenDataArguments, arguments: ProbeArguments
) -> EvarOutcomes:
    """
    Embeds the clips and trains the linear layers of EVAR's protocol: on the data set's splits, or on its folds, if it
    has them (`fold_column`) and no test split.

    Raises:
        InputError: bad input, or a regression.
    """
    folder = Path(arguments.output_dir)
    splits = screen(load_splits(data_arguments), data_arguments, folder)
    label_set = find_labels(splits["train"]["label"], data_arguments.problem_type)
    if label_set.problem_type == "regression":
        raise InputError("protocol: evar has no regression; leave it out")
    has_folds = "fold" in splits["train"].column_names and "test" not in splits
    if not has_folds:  # EVAR draws the validation clips itself, anew for each seed
        divided = dataclasses.replace(data_arguments, validation_fraction=0.0)
        splits = complete_splits(splits, divided, stratify=label_set.is_single, seed=arguments.seed)
        if "test" not in splits:
            raise InputError("test_split: a probe needs one; name it, or set test_fraction above 0")
    folds = make_folds(splits["train"], 0, label_set.is_single, arguments.seed) if has_folds else []
    extractor = load_feature_extractor(model_arguments, data_arguments)
    length = evar.fixed_length(model_arguments, extractor, arguments.clip_s)
    model = load_for_recipe(model_arguments, extractor)

    def clips_of(data, split: str) -> evar.FixedClips:
        at_random = split != "test" and not has_folds  # with folds each clip is in both
        clips = evar.FixedClips(
            data, extractor, label_set, seed=arguments.seed, num_samples=length, at_random=at_random
        )
        clips.check_labels()
        return clips

    training = splits["train"].select(folds[0][0]) if has_folds else splits["train"]
    if data_arguments.mean is None and data_arguments.std is None:
        extractor = evar.own_statistics(clips_of(training, "train"), extractor)
        model.config.padding_value = extractor.padding_value
    eye, data = np.eye(len(label_set.names), dtype=np.float32), {}
    all_clips = {split: clips_of(part, split) for split, part in splits.items()}
    for split, clips in all_clips.items():
        labels = np.asarray([clips.label(index) for index in range(len(clips))])
        embeddings = embed(model, clips, folder / "embeddings" / split, model_arguments, arguments)
        data[split] = embeddings, eye[labels] if label_set.is_single else labels.astype(np.float32)
    if has_folds:
        features, targets = data["train"]
        parts = [
            {split: (features[fold], targets[fold]) for split, fold in zip(("train", "test"), pair)} for pair in folds
        ]
        tested = [(held, targets[held]) for _, held in folds]
    else:
        parts, targets = [data], data["test"][1]
        tested = [(np.arange(len(targets)), targets)]
    by_seed = evar.train_layers(parts, label_set.is_single, arguments)
    counts = {split: len(values) for split, (values, _) in data.items()}
    counts.setdefault("test", counts["train"])
    dataset = all_clips["train" if has_folds else "test"]
    return EvarOutcomes(by_seed, tested, dataset, counts, data["train"][0].shape[1])


def embed(model, dataset, folder: Path, model_arguments, arguments: ProbeArguments) -> np.ndarray:
    """Computes the fused vectors of a split: (clips, fused_size)"""
    shards = Shards(
        folder,
        len(dataset),
        arguments.shard_clips,
        {
            "model": str(model_arguments.model_name_or_path),
            "settings": model_arguments.overrides(),
            "features": dataset.feature_extractor.to_dict() | {"windows": dataset.windows},
            "clips": fingerprint(dataset.names()),
        },
    )
    shards.prepare(arguments.overwrite)
    batch_size, workers = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    fill_shards(shards, model, dataset, batch_size, workers, represent=fused)
    embeddings = shards.means()["embedding"]
    check_scores(embeddings, "the embeddings", dataset.names())
    return embeddings


def linear_rows(features: dict, labels: dict, label_set: LabelSet, arguments: ProbeArguments) -> list[dict]:
    """
    Returns a row per seed, with the learning rate of the best validation score. `scores` of every row of this module
    are those of the test clips, (clips, labels): probabilities or numbers.

    Raises:
        InputError: the layer diverges with every learning rate.
    """
    rows = []
    for seed in range(arguments.seed, arguments.seed + arguments.num_seeds):
        tried = [
            fit_linear(features, labels, label_set, rate, seed, arguments)
            for rate in tqdm(arguments.learning_rates, desc=f"linear, seed {seed}", leave=False)
        ]
        diverged = [rate for rate, row in zip(arguments.learning_rates, tried) if row is None]
        if len(diverged) == len(tried):
            raise InputError(f"learning_rates: the linear layer diverges with each of {diverged}; set lower ones")
        if diverged:
            logger.warning(f"the linear layer of seed {seed} diverges with the learning rates {diverged}")
        rows.append(max(filter(None, tried), key=lambda row: row["validation"]))
    return rows


def fit_linear(
    features: dict, labels: dict, label_set: LabelSet, learning_rate: float, seed: int, arguments: ProbeArguments
) -> dict | None:
    """
    Trains one linear layer; returns its validation and test scores at the best epoch, or `None` if it diverges: if an
    output is not finite.
    """
    score = score_function(label_set)
    inputs = {split: torch.from_numpy(values) for split, values in features.items()}
    targets = {split: torch.from_numpy(values) for split, values in labels.items()}
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(inputs["train"].shape[1], len(label_set.names))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.01)
        layer.bias.zero_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=learning_rate)
    best = {"validation": -np.inf}
    for epoch in range(arguments.num_epochs):
        order = torch.randperm(len(inputs["train"]), generator=generator)
        for batch in order.split(arguments.batch_size):
            loss = classification_loss(layer(inputs["train"][batch]), targets["train"][batch], label_set.problem_type)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            outputs = {split: layer(inputs[split]).numpy() for split in ("validation", "test")}
            if not all(np.isfinite(values).all() for values in outputs.values()):
                return None  # the highest of NaN scores would be class 0
            validation = score(outputs["validation"], labels["validation"])
            if validation > best["validation"]:
                best = {
                    "method": "linear", "setting": f"learning rate {learning_rate:g}", "seed": seed, "epoch": epoch + 1,
                    "validation": validation, "test": score(outputs["test"], labels["test"]),
                    "scores": scores_of(outputs["test"], label_set),
                }  # fmt: skip
        if epoch + 1 - best["epoch"] >= arguments.patience:
            break
    return best


def scores_of(outputs: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """Returns the probabilities, or numbers, of a linear layer's outputs: both (clips, labels)"""
    if label_set.is_regression:
        return outputs
    return softmax(outputs, axis=1) if label_set.is_single else expit(outputs)


def score_function(label_set: LabelSet):
    """Returns a function: outputs (clips, labels) and labels -> metric of this kind of problem, higher is better."""
    metric = metric_of(label_set.problem_type)[1]
    eye = np.eye(len(label_set.names))

    def score(outputs: np.ndarray, labels: np.ndarray) -> float:
        targets = eye[labels] if label_set.is_single else labels.reshape(outputs.shape)
        return metric(targets, outputs)

    return score


def neighbour_row(features: dict, labels: dict, num_labels: int, arguments: ProbeArguments) -> dict:
    """Scores nearest neighbours by cosine; the validation split chooses their number."""
    rows = []
    for count in sorted(set(arguments.neighbours)):
        if count > len(features["train"]):
            continue
        model = KNeighborsClassifier(count, metric="cosine").fit(features["train"], labels["train"])
        scores = {split: model.score(features[split], labels[split]) for split in ("validation", "test")}
        scores["scores"] = probabilities_of(model, features["test"], num_labels)
        rows.append({"method": "neighbours", "setting": f"{count} neighbours", "seed": arguments.seed, **scores})
    if not rows:
        raise InputError(f"neighbours: {arguments.neighbours} are more than the {len(features['train'])} clips")
    return max(rows, key=lambda row: row["validation"])


def few_shot_rows(features: dict, labels: dict, num_labels: int, arguments: ProbeArguments) -> list[dict]:
    """Scores logistic regressions on a few training clips of every class; a row per number of clips and draw."""
    rows = []
    classes, counts = np.unique(labels["train"], return_counts=True)
    for shots in arguments.few_shot:
        if shots > counts.min():
            continue  # a class has too few clips
        for seed in range(arguments.seed, arguments.seed + arguments.num_seeds):
            rng = np.random.default_rng((seed, shots))
            chosen = np.concatenate(
                [rng.choice(np.flatnonzero(labels["train"] == name), shots, replace=False) for name in classes]
            )
            model = LogisticRegression(max_iter=2000).fit(features["train"][chosen], labels["train"][chosen])
            scores = {split: model.score(features[split], labels[split]) for split in ("validation", "test")}
            scores["scores"] = probabilities_of(model, features["test"], num_labels)
            rows.append({"method": "few_shot", "setting": f"{shots} per class", "seed": seed, **scores})
    return rows


def probabilities_of(model, features: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns a classifier's probabilities: (clips, labels), 0 for classes without training clips."""
    found = np.zeros((len(features), num_labels))
    found[:, model.classes_] = model.predict_proba(features)
    return found


def summarise(table: pandas.DataFrame) -> pandas.DataFrame:
    """Returns mean and deviation over seeds per method; each linear layer has the learning rate of its seed."""
    summary = table.groupby(names_of(table), sort=False)["test"].agg(["mean", "std", "count"])
    return summary.rename(columns={"mean": "test", "std": "standard_deviation", "count": "runs"})


def names_of(table: pandas.DataFrame) -> pandas.Series:
    """Returns the name of each run's method; few labels count as a method per number of them."""
    return table["method"].where(table["method"] != "few_shot", "few_shot, " + table["setting"])


def write_outputs(
    folder: Path, rows: list[dict], dataset: ClipDataset, counts: dict[str, int], size: int, recipe: dict
):
    """
    Writes `probe.csv` with every run, `predictions.csv` of the test clips and `results.json` with the summary, and
    prints the summary.
    """
    staging, label_set = folder / STAGING_NAME, dataset.labels
    staging.mkdir(parents=True, exist_ok=True)
    scores = [row.pop("scores") for row in rows]
    table = pandas.DataFrame(rows)
    write_csv(table, staging / "probe.csv")
    predictions = [
        labelled_table(dataset, label_set, own).assign(method=name, seed=row["seed"])
        for own, name, row in zip(scores, names_of(table), rows)
    ]
    write_csv(pandas.concat(predictions), staging / "predictions.csv")
    summary, metric = summarise(table), metric_of(label_set.problem_type)[0]
    results = {
        "metric": metric,
        "summary": summary.reset_index(names="method").to_dict("records"),
        "labels": list(label_set.names),
        "clips": counts,
        "embedding_size": size,
        "versions": reproduction.versions(),
        "recipe": recipe,
    }
    write_results(results, staging)
    publish(staging, folder)
    print(f"{metric} on {counts['test']} test clips, embeddings of {size} numbers:")
    rows = summary.round(4).astype(object).where(summary.notna(), None).reset_index().to_numpy().tolist()
    print_table(rows, ["method", *summary.columns])
    print(f"everything is in {folder}")
