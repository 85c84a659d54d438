"""Tables of predictions and probabilities per clip."""

from pathlib import Path

import numpy as np
import pandas
import torch

from modeling_dual_ssast.classifier_dual_ssast import labels_of_probabilities

from ..data.dataset import ClipDataset
from ..data.labels import LabelSet


def score_table(
    files: list[str], labels: LabelSet, scores: np.ndarray, thresholds: list[float] | None = None
) -> pandas.DataFrame:
    """Returns a row per clip: file, prediction, and a probability per class (or the number). scores: (files, labels)"""
    prefix = "" if labels.problem_type == "regression" else "probability_"
    table = pandas.DataFrame(scores, columns=[f"{prefix}{name}" for name in labels.names])
    table.insert(0, "file", files)
    predictions = labels_of_probabilities(torch.from_numpy(scores), labels.names, labels.problem_type, thresholds)
    table.insert(1, "prediction", [_as_text(prediction) for prediction in predictions])
    return table


def write_predictions(
    dataset: ClipDataset, labels: LabelSet, scores: np.ndarray, path: Path, thresholds: list[float] | None = None
):
    """Writes the score table of a split as a CSV, with the column `label` beside the prediction."""
    table = score_table(dataset.names(), labels, scores, thresholds)
    table.insert(1, "label", [_as_text(label) for label in dataset.examples["label"]])
    table.to_csv(path, index=False)


def _as_text(label) -> str:
    return ",".join(map(str, label)) if isinstance(label, (list, tuple)) else str(label)
