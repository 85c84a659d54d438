"""Scores the events that a frame classifier finds in the recordings of a split."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..base.arguments import TrainingArguments
from ..base.detection_scores import event_metrics
from ..base.event_detection import find_events, without_unsure
from ..data.events import Event
from ..errors import InputError
from .recordings import Stretch

# The metrics of an evaluation; the first one chooses the best checkpoint. Higher is better.
METRICS = (
    "frame_mean_average_precision",
    "event_f1_macro",
    "event_f1_micro",
    "segment_f1_macro",
    "intersection_f1_macro",
)


def choose_metric(arguments: TrainingArguments):
    """
    Sets the metric that chooses the best checkpoint.

    Raises:
        InputError: there is no such metric.
    """
    name = (arguments.chosen_metric or METRICS[0]).removeprefix("eval_")
    if name not in (*METRICS, "loss"):
        raise InputError(f"metric_for_best_model: {name!r} is unknown; known are {', '.join(METRICS)}, loss")
    arguments.metric_for_best_model = name
    arguments.greater_is_better = name != "loss" if arguments.chosen_direction is None else arguments.chosen_direction


def score_events(
    found: Sequence[Sequence[Event]],
    stretches: Sequence[Stretch],
    labels: Sequence[str],
    collar_s: float,
    num_resamples: int = 0,
) -> dict:
    """Returns what `event_metrics` returns, for the events that are found in each stretch."""
    return event_metrics(
        {one.name: without_unsure(own, one.unsure, one.events) for one, own in zip(stretches, found)},
        {one.name: one.events for one in stretches},
        {one.name: one.duration_s for one in stretches},
        labels,
        collar_s,
        num_resamples=num_resamples,
    )


def find_all(
    scores: Sequence[np.ndarray], edges_s: Sequence[np.ndarray], labels: Sequence[str], settings: Mapping
) -> list[list[Event]]:
    """Returns the events of each recording. scores: per recording (frames, labels); settings: of `EventFinder`"""
    return [find_events(own, labels, edges[:-1], edges[1:], **settings) for own, edges in zip(scores, edges_s)]
