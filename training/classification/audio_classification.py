"""
Offers the metrics of `metrics.py` as a module of the library `evaluate`, loaded from the repository's root:
`evaluate.load("training/classification/audio_classification.py", "multi_label_classification")`.
"""

import datasets
import evaluate
import numpy as np

from training.classification.metrics import metrics_of_split

DESCRIPTION = """
Accuracy, unweighted average recall and macro F1 for one label per clip; mean average precision, mean area under the
ROC curve, d' and F1 for several; errors and R2 for numbers.
"""

INPUTS = """
Args:
    predictions: `single_label_classification`: class indices. `multi_label_classification`: a score per class.
        `regression`: numbers.
    references: class indices, 0 or 1 per class, or numbers.
    thresholds: `multi_label_classification`: per class, the score above which it is predicted; 0.5 by default.

Returns:
    `accuracy`, `unweighted_average_recall` (mean recall of the classes in the references), `macro_f1`; or
    `mean_average_precision`, `mean_auc` (means over the classes that have both positive and negative clips; NaN without
    such a class), `d_prime` (sqrt(2) times the normal quantile of `mean_auc`, as in Hershey et al., ICASSP 2017;
    infinite at 1), `micro_f1` (over all decisions) and `macro_f1` (mean over the classes that have positive clips); or
    `mean_squared_error`, `mean_absolute_error`, `r2`.
"""

FEATURES = {
    "single_label_classification": datasets.Value("int64"),
    "multi_label_classification": datasets.Sequence(datasets.Value("float64")),
    "regression": datasets.Value("float64"),
}


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class AudioClassification(evaluate.Metric):
    def _info(self):
        if self.config_name not in FEATURES:
            raise ValueError(f"configuration must be one of {', '.join(FEATURES)}, got {self.config_name!r}")
        feature = FEATURES[self.config_name]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": feature, "references": feature}),
        )

    def _compute(self, predictions, references, thresholds=None):
        return metrics_of_split(np.asarray(predictions), np.asarray(references), self.config_name, thresholds)
