"""
Scores the encoder of a pretraining, frozen, on a small labelled data set: ridge regression on its fused features.

Two baselines show what the score is worth: the same encoder with random weights, and mean and standard deviation of the
log-mels. They get the same clips, the same regression and the same choice of its penalty.
"""

import re
from collections.abc import Callable

import datasets
import numpy as np
import pandas
import torch
from transformers.utils import logging

from ..base.figures import COLOURS
from ..base.loading import choose_windows
from ..base.log_mel_statistics import mean_and_deviation
from ..base.reproduction import describe_data
from ..base.ridge import best_of, make_targets, mean_of, metric_of, score_fits
from ..data.arguments import FrozenDataArguments, UnlabelledDataArguments
from ..data.dataset import ClipDataset
from ..data.labels import find_labels
from ..data.screening import check_files
from ..data.splits import load_splits, make_folds
from ..data.tables import names_table
from ..errors import InputError
from .batches import batches_of
from .health import with_fusion

TABLE = "probe.csv"
COLUMNS = ("step", "epoch", "features", "metric", "value", "ridge")
ENCODER, RANDOM, LOG_MEL = "encoder", "random_weights", "log_mel_statistics"
BASELINES = {RANDOM: COLOURS[1], LOG_MEL: COLOURS[2]}  # name -> colour of its line
KEY = re.compile(rf"probe_(?P<metric>accuracy|mean_average_precision)_(?P<features>{ENCODER}|{RANDOM}|{LOG_MEL})")
RIDGE = tuple(10.0**power for power in range(1, -6, -1))  # penalties per feature; of equal scores the first one wins
NUM_FOLDS = 5

logger = logging.get_logger(__name__)


class Probe:
    """
    Holds the features of labelled clips, and scores encoders on them.

    Args:
        windows: of each clip, its log-mel features (frames, mel)
        extractor: the feature extractor that made them, which also pads them
        targets: (clips, outputs), see `make_targets`
        folds: (training clips, test clips)
        inner: per fold a division of its training clips (places among them), which chooses the penalty
        problem_type: kind of labels, which decides the metric
        batch_size: windows per pass of an encoder
        facts: split -> number of clips and their fingerprint, see `describe_data`
    """

    def __init__(
        self,
        windows: list[list[torch.Tensor]],
        extractor,
        targets: np.ndarray,
        folds: list[tuple[np.ndarray, np.ndarray]],
        inner: list[list[np.ndarray]],
        problem_type: str,
        batch_size: int,
        facts: dict[str, dict] | None = None,
    ):
        self.windows, self.extractor = windows, extractor
        self.targets, self.folds, self.inner = targets, folds, inner
        self.metric, self._metric = metric_of(problem_type)
        self.batch_size, self.facts = batch_size, facts

    def __len__(self) -> int:
        return len(self.windows)

    def score_encoder(self, encoder, autocast: Callable) -> tuple[float, float]:
        """Returns `score` of the fused vectors of a `DualSSASTModel` in evaluation mode, run in `autocast()`."""
        fusing, vectors = with_fusion(encoder), []
        flat = [window for clip in self.windows for window in clip]
        with torch.no_grad(), autocast():
            for batch in batches_of(self.extractor, flat, self.batch_size, encoder.device):
                vectors.append(fusing(**batch, return_dict=True).pooler_output.float().cpu())
        return self.score(self._clip_means(torch.cat(vectors)))

    def score_log_mel(self) -> tuple[float, float]:
        """Returns `score` of the mean and standard deviation of each mel bin over the frames of a window."""
        statistics = [mean_and_deviation(window) for clip in self.windows for window in clip]
        return self.score(self._clip_means(torch.stack(statistics)))

    def _clip_means(self, vectors: torch.Tensor) -> np.ndarray:
        """Averages over the windows of each clip: (windows of all clips, size) -> float64 (clips, size)"""
        parts = vectors.double().split([len(clip) for clip in self.windows])
        return torch.stack([part.mean(dim=0) for part in parts]).numpy()

    def score(self, features: np.ndarray) -> tuple[float, float]:
        """
        Scores features (clips, size): fits on the training clips of each fold, with the penalty of `RIDGE` that is the
        best in a cross-validation within them, and predicts the fold's test clips.

        Returns:
            the mean of the metric over the folds, and the geometric mean of the chosen penalties
        """
        values, penalties = [], []
        for fold, parts in zip(self.folds, self.inner):
            scores, inner = np.zeros(len(RIDGE)), np.zeros((len(RIDGE), len(parts)))
            fits = score_fits(lambda _: features, [["features"]], self.targets, fold, RIDGE, self._metric, inner=parts)
            for _, place, score, by_part in fits:
                scores[place], inner[place] = score, by_part
            chosen = int(best_of(mean_of(inner)))
            values.append(scores[chosen])
            penalties.append(RIDGE[chosen])
        return float(np.mean(values)), float(np.exp(np.log(penalties).mean()))


def open_probe(data_arguments: UnlabelledDataArguments, extractor, encoder, arguments) -> Probe:
    """
    Loads `probe_dataset` and computes the features of its clips, which stay in memory.

    Trains on its training split and tests on its validation split, because people decide by a curve that they watch; on
    its test split without one. A data set with a single split is divided into folds.

    Raises:
        InputError: a data set that cannot be loaded or is too small, or an unreadable clip.
    """
    name = data_arguments.probe_dataset
    key = "train_file" if names_table(name) else "dataset_name"
    frozen = FrozenDataArguments(
        **{key: name}, label_column=data_arguments.probe_label_column, check_files=data_arguments.check_files
    )
    try:
        splits = load_splits(frozen)
        test = next((split for split in ("validation", "test") if split in splits), None)
        splits = {split: splits[split] for split in ("train", test) if split is not None}
        splits = _sample(splits, data_arguments.probe_clips, arguments.seed)
        if frozen.check_files:
            check_files(splits)
        labels = [label for data in splits.values() for label in data["label"]]
        label_set = find_labels(labels, None)
        folds, inner = _folds(splits, label_set.is_single, arguments.seed)
        windows = choose_windows(encoder, extractor, frozen)
        features = [
            example["input_values"] if isinstance(example["input_values"], list) else [example["input_values"]]
            for data in splits.values()
            for example in ClipDataset(data, extractor, label_set, windows=windows)
        ]
    except InputError as error:
        raise InputError(f"probe_dataset: {str(error).replace('label_column', 'probe_label_column')}") from error
    targets = make_targets(labels, label_set)
    size = arguments.per_device_eval_batch_size
    return Probe(features, extractor, targets, folds, inner, label_set.problem_type, size, describe_data(splits))


def _sample(splits: dict[str, datasets.Dataset], most: int, seed: int) -> dict[str, datasets.Dataset]:
    """Draws `most` clips of all splits together, each in its share, and keeps their order."""
    total = sum(map(len, splits.values()))
    if total <= most:
        return splits
    logger.warning(f"probe_dataset: {most} of {total} clips take part, drawn at random (probe_clips)")
    rng = np.random.default_rng(seed)
    counts = {split: max(1, len(data) * most // total) for split, data in splits.items()}
    return {
        split: data.select(sorted(rng.choice(len(data), counts[split], replace=False)))
        for split, data in splits.items()
    }


def _folds(splits: dict[str, datasets.Dataset], stratify: bool, seed: int) -> tuple[list, list]:
    """Returns the folds over the clips of all splits in order, and the inner divisions of their training clips."""
    training, *others = splits.values()
    try:
        folds = [(np.arange(len(training)), np.arange(len(training), len(training) + len(data))) for data in others]
        folds = folds or make_folds(training, NUM_FOLDS, stratify, seed)
        inner = [[test for _, test in make_folds(training.select(own), NUM_FOLDS, stratify, seed)] for own, _ in folds]
    except InputError as error:
        raise InputError(
            f"{len(training)} training clips are too few for {NUM_FOLDS} folds ({error}); name a larger data set"
        ) from None
    return folds, inner


def entries(metric: str, features: str, score: tuple[float, float]) -> dict[str, float]:
    """Returns a score and its penalty as numbers of the log; `features`: `ENCODER`, `RANDOM` or `LOG_MEL`."""
    value, ridge = score
    return {f"probe_{metric}_{features}": value, f"probe_ridge_{features}": ridge}


def table_of(log: list[dict]) -> pandas.DataFrame:
    """Returns the scores in Trainer's log: a row per step, and one per baseline; see `COLUMNS`."""
    rows = []
    for entry in log:
        found = {match["features"]: match for match in filter(None, map(KEY.fullmatch, entry))}
        for features in sorted(found, key=(*BASELINES, ENCODER).index):
            score = found[features]["metric"], entry[found[features][0]], entry[f"probe_ridge_{features}"]
            rows.append((entry["step"], entry.get("epoch"), features, *score))
    return pandas.DataFrame(rows, columns=COLUMNS)
