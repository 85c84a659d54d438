"""Fits the statistics by which a classifier rejects unknown sounds, and tests them on classes left out."""

import datasets
import numpy as np
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from transformers.utils import logging

from ..base.open_set import MIN_CLIPS, NUM_QUANTILES, SCORES, OpenSet, energies
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet, class_name
from ..errors import InputError, nearest

logger = logging.get_logger(__name__)

MOST_CLIPS = 10_000  # training clips whose embeddings are computed
MOST_DIRECTIONS = 64
KEPT = 0.95  # share of the validation clips in the reported figures


def leave_out(splits: dict, names: list[str]) -> tuple[dict, datasets.Dataset]:
    """
    Takes classes out of all splits.

    Returns:
        the splits, and the clips of these classes

    Raises:
        InputError: a class that no training clip has, or several labels per clip.
    """
    names = {class_name(name) for name in names}
    known = sorted({str(label) for label in splits["train"]["label"]})
    if any(isinstance(label, list) for data in splits.values() for label in data["label"]):
        raise InputError("unknown_classes: needs one label per clip, and some clips have a list; leave it out")
    for name in sorted(names - set(known)):
        hint = nearest(name, known, f"known are {', '.join(known[:20])}")
        raise InputError(f"unknown_classes: no training clip has the label {name!r}; {hint}")
    kept, unknown = {}, []
    for split, data in splits.items():
        is_unknown = np.asarray([str(label) in names for label in data["label"]], dtype=bool)
        unknown.append(data.select(np.flatnonzero(is_unknown)))
        kept[split] = data.select(np.flatnonzero(~is_unknown))
        if not len(kept[split]):
            raise InputError(f"unknown_classes: no clip of the {split} split is left; leave out fewer classes")
    return kept, datasets.concatenate_datasets(unknown)


def fit_open_set(trainer, clips: dict[str, ClipDataset], unknown, outcomes: dict) -> tuple[OpenSet, dict] | None:
    """
    Fits the statistics on training clips, and the thresholds on the validation split.

    Args:
        clips: split -> clips, which are not augmented here
        unknown: a `datasets.Dataset` of the classes left out, or `None`
        outcomes: split -> Trainer's PredictionOutput, whose predictions are logits (clips, labels)

    Returns:
        the statistics, and the entry `open_set` of `results.json`; `None` with too few validation clips
    """
    num_clips = len(clips["validation"]) if "validation" in clips else 0
    if num_clips < MIN_CLIPS:
        logger.warning(
            f"{num_clips} validation clips are too few for --reject of predict_hf.py; {MIN_CLIPS} are needed"
        )
        return None
    training = clips["train"]
    rng = np.random.default_rng(trainer.args.seed)
    chosen = rng.choice(len(training), min(MOST_CLIPS, len(training)), replace=False)
    training = with_examples(training, training.examples.select(np.sort(chosen)))
    _, embeddings = trainer.predict_by_embeddings(training, lambda values: values)
    targets = np.asarray(list(training.encoded_labels()))
    found = fit_statistics(embeddings.astype(np.float64), targets, len(training.labels.names))
    tested = {split: clips[split] for split in outcomes}
    if unknown is not None:
        tested["unknown"] = with_examples(training, unknown)
        tested["unknown"].labels = Unlearnt(training.labels.names, training.labels.problem_type)
    scores = {}
    for split, dataset in tested.items():
        logits, distances = trainer.predict_by_embeddings(dataset, found.distances)
        scores[split] = dict(zip(SCORES, (distances, energies(torch.from_numpy(logits)).numpy())))
    shares = np.linspace(0, 1, NUM_QUANTILES)
    for name in SCORES:
        quantiles = np.quantile(scores["validation"][name], shares, method="inverted_cdf")
        found.quantiles[name] = torch.from_numpy(quantiles.astype(np.float32))
    report = {"clips": {split: len(dataset) for split, dataset in {"train": training, **tested}.items()}, "kept": KEPT}
    for name in SCORES:
        report[name] = describe(found.threshold(name, KEPT), {split: values[name] for split, values in scores.items()})
    return found, report


class Unlearnt(LabelSet):
    """Encodes labels that the model has not learnt, and whose loss nobody reads."""

    def encode(self, label, source: str) -> int:
        return 0


def with_examples(dataset: ClipDataset, examples) -> ClipDataset:
    """Returns other clips, read as those of a data set without augmentation are."""
    extractor, windows = dataset.feature_extractor, dataset.windows
    return ClipDataset(examples, extractor, dataset.labels, windows=windows, on_device=dataset.on_device)


def fit_statistics(embeddings: np.ndarray, targets: np.ndarray, num_classes: int) -> OpenSet:
    """
    Returns class means and the covariance that all classes share, shrunk by Ledoit and Wolf's rule (2004): few clips
    give a covariance that is too narrow in most directions.

    embeddings: (clips, size); targets: (clips,), class indices. A class without a clip gets the mean of all.
    """
    means = np.stack(
        [
            embeddings[targets == index].mean(axis=0) if (targets == index).any() else embeddings.mean(axis=0)
            for index in range(num_classes)
        ]
    )
    offsets = embeddings - means[targets]
    most = min(MOST_DIRECTIONS, max(len(offsets) - num_classes, 1), offsets.shape[1] - 1)
    typical, shrinkage = np.square(offsets).mean(), 1.0
    if typical:
        shrinkage = ledoit_wolf_shrinkage(offsets, assume_centered=True)
    else:  # a clip per class says nothing about their spread; normalised embeddings have the variance 1
        typical = 1.0
    with np.errstate(invalid="ignore"):  # shares of no variance
        pca = PCA(most, random_state=0).fit(offsets)
    variances = np.append(pca.explained_variance_, pca.noise_variance_)
    variances = np.maximum((1 - shrinkage) * variances + shrinkage * typical, 1e-6 * typical)
    return OpenSet(*(torch.from_numpy(value).float() for value in (means, pca.components_, variances)), {})


def describe(threshold: float, scores: dict[str, np.ndarray]) -> dict:
    """
    Returns the threshold, the share of clips below it by split, and the area under the ROC curve.

    scores: split -> (clips,)
    """
    found = {"threshold": threshold}
    found["share_kept"] = {split: float((values <= threshold).mean()) for split, values in scores.items()}
    if "unknown" in scores and "test" in scores:
        values = np.concatenate([scores["test"], scores["unknown"]])
        found["auroc"] = float(roc_auc_score(np.arange(len(values)) >= len(scores["test"]), values))
    return found
