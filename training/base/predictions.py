"""Makes the table of a classifier's predictions, for predict_hf.py and the classification tasks."""

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

    prefix = "" if labels.is_regression else "probability_"
    # Objects: the texts of pandas 3 cannot hold names of files that are not UTF-8.
    columns = pandas.Index([f"{prefix}{name}" for name in labels.names], dtype=object)
    table = pandas.DataFrame(scores, columns=columns)
    table.insert(0, "file", pandas.Series(files, dtype=object))
    predictions = labels_of_probabilities(torch.from_numpy(scores), labels.names, labels.problem_type, thresholds)
    table.insert(1, "prediction", pandas.Series(map(as_text, predictions), dtype=object))
    return table


def as_text(label) -> str:
    """Returns a label as a cell of the table; several labels as a row of CSV, so that their names may hold commas."""
    return csv_row(label) if isinstance(label, (list, tuple)) else str(label)
