"""Metrics of audio classification, for `evaluate.load("training/metrics/audio_classification", CONFIGURATION)`."""

import datasets
import evaluate
import numpy as np
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    recall_score,
    roc_auc_score,
)

_DESCRIPTION = """
Accuracy, unweighted average recall and macro F1 for one label per clip; mean average precision, mean area under the
ROC curve, d' and F1 for several; errors and R2 for numbers.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: `single_label_classification`: class indices. `multi_label_classification`: a score per class.
        `regression`: numbers.
    references: class indices, 0 or 1 per class, or numbers.
    thresholds: of several labels, the score of each above which it is given; one half if there are none.

Returns:
    `accuracy`, `unweighted_average_recall` (mean recall of the classes in the references), `macro_f1`; or
    `mean_average_precision`, `mean_auc` (means over the classes that have both positive and negative clips; NaN if
    there is none), `d_prime` (sqrt(2) times the normal quantile of `mean_auc`, as in Hershey et al., ICASSP 2017;
    infinite at 1), `micro_f1` (over all decisions) and `macro_f1` (mean over the classes that have positive clips); or
    `mean_squared_error`, `mean_absolute_error`, `r2`.
"""

_FEATURES = {
    "single_label_classification": datasets.Value("int64"),
    "multi_label_classification": datasets.Sequence(datasets.Value("float64")),
    "regression": datasets.Value("float64"),
}


def _single_label(predictions, references, thresholds=None) -> dict[str, float]:
    classes = sorted(set(references))
    return {
        "accuracy": accuracy_score(references, predictions),
        "unweighted_average_recall": recall_score(
            references, predictions, labels=classes, average="macro", zero_division=0
        ),
        "macro_f1": f1_score(references, predictions, labels=classes, average="macro", zero_division=0),
    }


def _multi_label(predictions, references, thresholds=None) -> dict[str, float]:
    scores, targets = np.asarray(predictions), np.asarray(references) > 0.5
    known = targets.any(axis=0) & ~targets.all(axis=0)
    precision = auc = float("nan")
    if known.any():
        precision = average_precision_score(targets[:, known], scores[:, known], average="macro")
        auc = roc_auc_score(targets[:, known], scores[:, known], average="macro")
    given, positive = scores > (0.5 if thresholds is None else np.asarray(thresholds)), targets.any(axis=0)
    macro_f1 = f1_score(targets, given, average=None, zero_division=0)[positive]
    return {
        "mean_average_precision": precision,
        "mean_auc": auc,
        "d_prime": np.sqrt(2) * norm.ppf(auc),
        "micro_f1": f1_score(targets, given, average="micro", zero_division=0),
        "macro_f1": macro_f1.mean() if positive.any() else float("nan"),
    }


def _regression(predictions, references, thresholds=None) -> dict[str, float]:
    return {
        "mean_squared_error": mean_squared_error(references, predictions),
        "mean_absolute_error": mean_absolute_error(references, predictions),
        "r2": r2_score(references, predictions) if len(references) > 1 else float("nan"),
    }


_COMPUTE = {
    "single_label_classification": _single_label,
    "multi_label_classification": _multi_label,
    "regression": _regression,
}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AudioClassification(evaluate.Metric):
    def _info(self):
        if self.config_name not in _FEATURES:
            raise ValueError(f"configuration must be one of {', '.join(_FEATURES)}, got {self.config_name!r}")
        feature = _FEATURES[self.config_name]
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": feature, "references": feature}),
        )

    def _compute(self, predictions, references, thresholds=None):
        metrics = _COMPUTE[self.config_name](predictions, references, thresholds)
        return {name: float(value) for name, value in metrics.items()}
