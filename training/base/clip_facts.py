"""Describes the clips of a run for results and cards: lengths, clips per class, groups in several splits."""

import contextlib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from ..data.audio import audio_seconds
from ..data.columns import audio_of
from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from ..errors import InputError

MEASURED_CLIPS = 1000  # clips whose lengths the card summarises


def describe_clips(datasets: Mapping[str, object], labels: LabelSet, group_column: str | None) -> dict:
    """
    Returns the entries of `results.json` about the clips: `clip_seconds` and `clips_per_class` by split (or
    `label_range` of the training labels), and `groups` of the reported split. Streams are left out.

    Args:
        datasets: split -> clips, or a stream
        group_column: the name that the groups have in the data set
    """
    splits = {split: dataset for split, dataset in datasets.items() if isinstance(dataset, ClipDataset)}
    found = {"clip_seconds": {split: clip_seconds(dataset) for split, dataset in splits.items()}}
    if not labels.is_regression:
        found["clips_per_class"] = {split: clips_per_class(dataset, labels) for split, dataset in splits.items()}
    elif "train" in splits:
        values = [float(value) for value in splits["train"].examples["label"]]
        found["label_range"] = [min(values), max(values)]
    tested = "test" if "test" in datasets else "validation"
    sides = [set(splits[name].examples["group"]) for name in ("train", tested) if has_groups(splits.get(name))]
    if len(sides) == 2:
        found["groups"] = {
            "column": group_column or "group",
            "count": len(sides[1]),
            "shared": len(sides[0] & sides[1]),
        }
    return found


def has_groups(dataset: ClipDataset | None) -> bool:
    return dataset is not None and "group" in dataset.examples.column_names


def clip_seconds(dataset: ClipDataset) -> dict[str, float]:
    """Returns the shortest, median and longest length in seconds, by the headers of at most `MEASURED_CLIPS` clips."""
    seconds = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, MEASURED_CLIPS).astype(int)):
        with contextlib.suppress(InputError):  # an unreadable header must not stop a finished training
            seconds.append(audio_seconds(audio_of(dataset.examples[int(index)])))
    if not seconds:
        return {}
    return {"shortest": min(seconds), "median": float(np.median(seconds)), "longest": max(seconds)}


def clips_per_class(dataset: ClipDataset, labels: LabelSet) -> dict[str, int]:
    counts = Counter()
    for label in dataset.examples["label"]:
        counts.update(label if isinstance(label, (list, tuple)) else [str(label)])
    return {name: counts[name] for name in labels.names}
