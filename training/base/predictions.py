"""Makes the table of a classifier's predictions, for predict_hf.py and the tasks that test on labelled clips."""

import numpy as np
import torch

from modeling_dual_ssast.classifier_dual_ssast import labels_of_probabilities

from ..data.labels import LabelSet
from ..files import csv_row
from .finite import check_scores


def score_table(files: list[str], labels: LabelSet, scores: np.ndarray, thresholds: list[float] | None = None):
    """
    Returns a `pandas.DataFrame` with a row per clip: file, prediction, and a probability per class (or the number).

    Args:
        scores: (files, labels)
        thresholds: multi-label only: (labels,), the score above which a label is predicted; `None`: 0.5 for all

    Raises:
        InputError: a score is not finite.
    """
    check_scores(scores, names=files)
    import pandas  # slow: a prediction without a table does not need it

    # Objects: the texts of pandas 3 cannot hold names of files that are not UTF-8.
    columns = pandas.Index(score_names(labels), dtype=object)
    table = pandas.DataFrame(scores, columns=columns)
    table.insert(0, "file", pandas.Series(files, dtype=object))
    table.insert(1, "prediction", pandas.Series(predictions(labels, scores, thresholds), dtype=object))
    return table


def labelled_table(dataset, labels: LabelSet, scores: np.ndarray, thresholds: list[float] | None = None):
    """Returns the score table of a `ClipDataset`, with the columns `label` and, if the clips have groups, `group`."""
    table = score_table(dataset.names(), labels, scores, thresholds)
    table.insert(1, "label", [as_text(label) for label in dataset.examples["label"]])
    if "group" in dataset.examples.column_names:
        table.insert(2, "group", dataset.examples["group"][:])
    return table


def score_names(labels: LabelSet, prefix: str = "probability_") -> list[str]:
    """Returns the names of the columns with the scores of the classes; of a regression, its own name."""
    return [name if labels.is_regression else f"{prefix}{name}" for name in labels.names]


def predictions(labels: LabelSet, scores: np.ndarray, thresholds: list[float] | None = None) -> list[str]:
    """Returns the cell `prediction` of each row of scores (rows, labels); see `score_table`."""
    found = labels_of_probabilities(torch.from_numpy(scores), labels.names, labels.problem_type, thresholds)
    return list(map(as_text, found))


def as_text(label) -> str:
    """Returns a label as a cell of the table; several labels as a row of CSV, so that their names may hold commas."""
    return csv_row(label) if isinstance(label, (list, tuple)) else str(label)
