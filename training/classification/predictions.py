"""Writes tables of predictions and probabilities per clip."""

from pathlib import Path

import numpy as np

from ..base.predictions import labelled_table
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..files import write_csv


def write_predictions(
    dataset: ClipDataset, labels: LabelSet, scores: np.ndarray, path: Path, thresholds: list[float] | None = None
):
    """Writes the score table of a split as a CSV, with the columns `label` and `group` beside the prediction."""
    write_csv(labelled_table(dataset, labels, scores, thresholds), path)
