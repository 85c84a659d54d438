"""
Runs the task `probe`: evaluates a frozen encoder on a data set.

Trains heads on its stored features with the same budget for each: a linear layer in the manner of EVAR (Niizumi et al.,
EUSIPCO 2022), and what `heads.py` lists. Learning rate, weight decay and end of the training are chosen on the
validation split, with several seeds. Also scores nearest neighbours, and logistic regression on a few labels per class.
The best head is saved as a model. `protocol: evar` follows EVAR to the letter, see evar.py.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from transformers import set_seed
from transformers.utils import logging

from ..base.arguments import ModelArguments
from ..base.earlier_clips import warn_of_learnt_clips
from ..base.finite import check_scores
from ..base.loading import choose_windows, load_feature_extractor
from ..base.outputs import begin_anew, check_free, describe_recipe
from ..base.ridge import why_undefined
from ..data.arguments import FrozenDataArguments
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet, find_labels
from ..data.screening import screen
from ..data.splits import complete_splits, divides_by_class, load_splits, make_folds
from ..errors import InputError
from ..inference.shards import Shards
from . import evar
from .arguments import UNTRAINED, ProbeArguments
from .head_training import head_rows
from .heads import EMBEDDING, METHODS, Head, config_of
from .probe_outputs import Trained, check_model_folder, write_outputs
from .representations import Represented, encode_clips, fused, load_for_recipe
from .stored_features import FeatureNetwork, Stored, check_size, clip_means

SPLITS = ("train", "validation", "test")

logger = logging.get_logger(__name__)


def run(model_arguments: ModelArguments, data_arguments: FrozenDataArguments, arguments: ProbeArguments):
    """
    Embeds the clips once, evaluates and writes the output folder.

    Raises:
        InputError: bad input, before the encoding starts wherever possible.
    """
    model_arguments.divide_like_sweep(data_arguments)
    folder = Path(arguments.output_dir)
    check_free(folder, "probe", arguments.overwrite)
    check_model_folder(folder)
    recipe = {"task": "probe"} | describe_recipe(model_arguments, data_arguments, arguments)
    if arguments.protocol == "evar":
        outcomes = run_evar(model_arguments, data_arguments, arguments)
        rows = list(evar.rows_of(outcomes.by_seed, arguments.learning_rates[0]))
        for row in rows:
            row["scores"] = outcomes.scores(row["seed"])
        write_outputs(folder, rows, outcomes.dataset, outcomes.counts, outcomes.size, recipe, folds=outcomes.folds)
        return
    if data_arguments.fold_column:
        raise InputError("fold_column: has an effect with protocol evar alone; name splits, or set group_column")
    set_seed(arguments.seed)
    extractor = load_feature_extractor(model_arguments, data_arguments)
    model = load_for_recipe(model_arguments, extractor)
    splits = screen(load_splits(data_arguments), data_arguments, folder)
    label_set = find_labels(splits["train"]["label"], data_arguments.problem_type)
    stratify, named = divides_by_class(label_set, splits["train"]["label"]), tuple(splits)
    splits = complete_splits(splits, data_arguments, stratify, data_arguments.seed_of_splits(arguments.seed))
    warn_of_learnt_clips(model_arguments.model_name_or_path, splits, named)
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise InputError(f"{missing[0]}_split: a probe needs one; name it, or set {missing[0]}_fraction above 0")
    windows = choose_windows(model, extractor, data_arguments)
    datasets = {split: ClipDataset(splits[split], extractor, label_set, windows=windows) for split in SPLITS}
    labels = {split: np.asarray(list(dataset.encoded_labels())) for split, dataset in datasets.items()}
    methods = chosen_methods(arguments, label_set)
    heads = {
        name: Head(METHODS[name], config_of(METHODS[name], model.config, label_set))
        for name in methods
        if name in METHODS
    }
    check_labels_of(labels, label_set, methods, arguments)
    more = [] if heads.keys() == set(methods) else [EMBEDDING]
    network = FeatureNetwork(model, datasets["train"], heads.values(), more)
    check_size(network, datasets, heads.values(), arguments.max_feature_gb)
    begin_anew(folder)
    started = time.perf_counter()
    shards = {
        split: encode_clips(
            network, dataset, folder / "embeddings" / split, model_arguments, arguments, arrays=network.names
        )
        for split, dataset in datasets.items()
    }
    seconds = {"encoding": time.perf_counter() - started}
    features = Features(shards, network.names)
    if features.embeddings:
        for split, dataset in datasets.items():
            check_scores(features.embeddings[split], "the embeddings", dataset.names())
    rows, others = [], {"neighbours": neighbour_rows, "few_shot": few_shot_rows}
    for name in methods:
        started = time.perf_counter()
        if head := heads.get(name):
            device = "cpu" if head.method.standardises else model.device
            rows += head_rows(head, features.of(head), labels, label_set, arguments, device)
        else:
            rows += others[name](features.standardised, labels, len(label_set.names), arguments)
        seconds[name] = time.perf_counter() - started
    counts = {split: len(dataset) for split, dataset in datasets.items()}
    finished = Trained(model, heads, features.scaler, datasets, seconds)
    write_outputs(folder, rows, datasets["test"], counts, model.config.fused_size, recipe, finished)


class Features:
    """Holds what heads read, split by split: the arrays of one method at a time, and the embeddings of the clips."""

    def __init__(self, shards: dict[str, Shards], names: Sequence[str]):
        self.shards = shards
        self.embeddings, self.standardised, self.scaler = {}, {}, None
        if EMBEDDING in names:
            self.embeddings = {split: clip_means(own, EMBEDDING) for split, own in shards.items()}
            self.scaler = StandardScaler().fit(self.embeddings["train"])
            self.standardised = {split: self._scaled(values) for split, values in self.embeddings.items()}

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return self.scaler.transform(values).astype(np.float32)

    def of(self, head: Head) -> dict[str, Stored]:
        """Returns split -> the arrays that a head reads."""
        if head.method.name == "linear":  # the mean of its logits is the logit of the mean
            return {split: Stored.of_clips(EMBEDDING, values) for split, values in self.standardised.items()}
        data = {split: Stored.load(own, head.names) for split, own in self.shards.items()}
        if head.method.standardises:
            for stored in data.values():
                stored.vectors = {name: self._scaled(values) for name, values in stored.vectors.items()}
        return data


def chosen_methods(arguments: ProbeArguments, label_set: LabelSet) -> list[str]:
    """Returns the methods of the recipe that these labels allow, and says which ones they do not."""
    left = [] if label_set.is_single else [name for name in UNTRAINED if name in arguments.methods]
    if left:
        logger.warning(f"{' and '.join(left)}: left out, because only one label per clip has neighbours or shots")
    methods = [name for name in (*METHODS, *UNTRAINED) if name in arguments.methods and name not in left]
    if not methods:
        raise InputError(f"methods: {', '.join(left)} need one label per clip; add linear")
    return methods


def check_labels_of(labels: dict[str, np.ndarray], label_set: LabelSet, methods: list[str], arguments: ProbeArguments):
    """
    Checks that labels suffice for the scores and methods of a probe, before the encoding.

    Args:
        labels: split -> encoded labels, (clips, ...)

    Raises:
        InputError: a split has no score, or all numbers of neighbours or shots are above the number of training clips.
    """
    for split in SPLITS[1:]:
        if problem := why_undefined(labels[split], label_set.problem_type):
            raise InputError(f"{split}_split: holds {problem}; name another, or set a higher {split}_fraction")
    if "neighbours" in methods and all(count > len(labels["train"]) for count in arguments.neighbours):
        raise InputError(f"neighbours: {arguments.neighbours} are more than the {len(labels['train'])} clips")
    if "few_shot" in methods:
        fewest = np.unique(labels["train"], return_counts=True)[1].min()
        if all(shots > fewest for shots in arguments.few_shot):
            raise InputError(f"few_shot: a class has {fewest} training clips; give at most as many, or add clips")


@dataclasses.dataclass
class EvarOutcomes:
    """
    Holds the linear layers of EVAR's protocol.

    by_seed: seed -> an outcome per fold
    tested: per fold the test clips' indices in `dataset`, and their targets (clips, labels)
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

    @property
    def folds(self) -> list[np.ndarray]:
        """The test clips of each fold, as indices in `dataset`."""
        return [held for held, _ in self.tested]

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
    has them (`fold_column`).

    Raises:
        InputError: bad input, a regression, or an option of the data that the protocol does not obey.
    """
    folder = Path(arguments.output_dir)
    splits = screen(load_splits(data_arguments), data_arguments, folder)
    label_set = find_labels(splits["train"]["label"], data_arguments.problem_type)
    if label_set.problem_type == "regression":
        raise InputError("protocol: evar has no regression; leave it out")
    evar.check_data(data_arguments, splits)
    has_folds = bool(data_arguments.fold_column)
    if not has_folds:  # EVAR draws the validation clips itself, anew for each seed
        divided = dataclasses.replace(data_arguments, validation_fraction=0.0)
        stratify, named = divides_by_class(label_set, splits["train"]["label"]), tuple(splits)
        splits = complete_splits(splits, divided, stratify, data_arguments.seed_of_splits(arguments.seed))
        warn_of_learnt_clips(model_arguments.model_name_or_path, splits, named)
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
    begin_anew(folder)
    for split, clips in all_clips.items():
        labels = np.asarray(list(clips.encoded_labels()))
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


def embed(model, dataset: evar.FixedClips, folder: Path, model_arguments, arguments: ProbeArguments) -> np.ndarray:
    """Computes the fused vectors of a split: (clips, fused_size)"""
    network, source = Represented(model, dataset, fused), dataset.source()
    shards = encode_clips(network, source, folder, model_arguments, arguments, cut=dataset.description())
    embeddings = shards.means()["embedding"]
    check_scores(embeddings, "the embeddings", dataset.names())
    return embeddings


def neighbour_rows(features: dict, labels: dict, num_labels: int, arguments: ProbeArguments) -> list[dict]:
    """Scores nearest neighbours by cosine, in one row; the validation split chooses their number."""
    rows = []
    for count in sorted(arguments.neighbours):
        if count > len(features["train"]):
            continue
        model = KNeighborsClassifier(count, metric="cosine").fit(features["train"], labels["train"])
        scores = {split: model.score(features[split], labels[split]) for split in ("validation", "test")}
        scores["scores"] = probabilities_of(model, features["test"], num_labels)
        rows.append({"method": "neighbours", "setting": f"{count} neighbours", "seed": arguments.seed, **scores})
    return [max(rows, key=lambda row: row["validation"])]


def few_shot_rows(features: dict, labels: dict, num_labels: int, arguments: ProbeArguments) -> list[dict]:
    """Scores logistic regressions on a few training clips of every class; a row per number of clips and draw."""
    rows = []
    classes, counts = np.unique(labels["train"], return_counts=True)
    for shots in arguments.few_shot:
        if shots > counts.min():
            logger.warning(f"few_shot: {shots} are left out, for a class has {counts.min()} training clips")
            continue
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
