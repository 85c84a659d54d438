"""Writes tables of predictions and probabilities per clip."""

from pathlib import Path

import numpy as np

from ..base.predictions import as_text, score_table
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..files import write_csv


def write_predictions(
    dataset: ClipDataset, labels: LabelSet, scores: np.ndarray, path: Path, thresholds: list[float] | None = None
):
    """Writes the score table of a split as a CSV, with the column `label` beside the prediction."""
    table = score_table(dataset.names(), labels, scores, thresholds)
    table.insert(1, "label", [as_text(label) for label in dataset.examples["label"]])
    write_csv(table, path)
