"""Metrics of classification and regression, and which of them chooses a checkpoint."""

import uuid
from pathlib import Path

import evaluate
import numpy as np

from ..base.arguments import TrainingArguments
from ..errors import InputError
from .calibration import probabilities

METRICS = Path(__file__).parent.parent / "metrics" / "audio_classification"
# The metrics of each kind of problem and whether more is better; the first one chooses the best checkpoint.
DIRECTIONS = {
    "single_label_classification": {"accuracy": True, "unweighted_average_recall": True, "macro_f1": True},
    "multi_label_classification": {
        "mean_average_precision": True,
        "mean_auc": True,
        "d_prime": True,
        "micro_f1": True,
        "macro_f1": True,
    },
    "regression": {"mean_squared_error": False, "mean_absolute_error": False, "r2": True},
}


def choose_metric(arguments: TrainingArguments, problem_type: str):
    """
    Sets which metric chooses the best checkpoint, and whether more of it is better.

    Raises:
        InputError: a metric that this kind of problem does not have.
    """
    directions = DIRECTIONS[problem_type] | {"loss": False}
    name = (arguments.chosen_metric or next(iter(directions))).removeprefix("eval_")
    if name not in directions:
        raise InputError(f"metric_for_best_model: {name!r} is unknown; known are {', '.join(directions)}")
    direction = arguments.chosen_direction
    arguments.metric_for_best_model = name
    arguments.greater_is_better = directions[name] if direction is None else direction


def metric_function(problem_type: str, config):
    """What Trainer calls with the logits and labels of a whole split, to be decided on as the configuration says."""
    metric = evaluate.load(str(METRICS), problem_type, experiment_id=uuid.uuid4().hex, keep_in_memory=True)

    def compute(prediction) -> dict[str, float]:
        return metric.compute(
            predictions=predictions_from_logits(prediction.predictions, problem_type, config.calibration_temperature),
            references=prediction.label_ids,
            thresholds=config.decision_thresholds,
        )

    return compute


def predictions_from_logits(logits: np.ndarray, problem_type: str, temperature: float) -> np.ndarray:
    """(clips, labels) -> what the metric expects: class indices, scores per class, or numbers."""
    if problem_type == "single_label_classification":
        return logits.argmax(axis=-1)
    is_multi = problem_type == "multi_label_classification"
    return probabilities(logits, problem_type, temperature) if is_multi else logits[:, 0]
