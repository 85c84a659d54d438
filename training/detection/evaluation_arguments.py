"""Defines the options of the task event_evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from ..base.arguments import ReportArguments
from ..data.events import UNSURE
from ..errors import InputError
from ..recipe import described


@dataclass
class EventEvaluationArguments(ReportArguments):
    """Names tables of events, of any tool, the annotations that they are scored against, and how."""

    group: ClassVar[str] = "data"

    events: str | None = described(
        None, "Table of the events that are scored (Raven, Audacity, DCASE, CSV, JSON), or a folder of tables."
    )
    annotations: str | None = described(None, "Table of the annotated events, or a folder of tables.")
    recordings: str | None = described(
        None, "Folder of the recordings that are scored, or the only one; unset: those with annotations."
    )
    audio_column: str | None = described(None, "Column of the recordings in the annotations; unset: guessed.")
    label_column: str | None = described(None, "Column of the labels in the annotations; unset: guessed.")
    events_audio_column: str | None = described(None, "Column of the recordings in the events; unset: guessed.")
    events_label_column: str | None = described(None, "Column of the labels in the events; unset: guessed.")
    label_map: str | None = described(
        None,
        "Label of either table -> label, or null for what is left out, as a mapping, or a file of one in YAML or JSON, "
        "or a table with two columns; * stands for all labels without a line; unset: labels stay as they are.",
    )
    labels: list[str] | None = described(None, "Labels that are scored; unset: those of the annotations.")
    exclude_labels: list[str] | None = described(
        [UNSURE],
        "Annotated labels, before or after label_map, whose time is unsure: events mostly in it are not scored.",
        is_label=True,
    )
    unannotated: str = described(
        "unlabelled",
        "What recordings without annotations are: unlabelled (not scored), or empty (each event is a false alarm).",
        choices=("unlabelled", "empty"),
    )
    min_score: float | None = described(None, "Score below which events are left out; unset: none is.")
    onset_collar_s: float = described(0.2, "Largest difference of the onsets of two events, in seconds.", at_least=0)
    offset_share: float = described(
        0.2, "Share of an annotated event's length by which its offset may differ, if that is more.", at_least=0
    )
    segment_s: float = described(1.0, "Length of the segments in seconds.", at_least=0.001, at_most=3600)
    output_dir: str | None = described(None, "Folder to write to.", group="report")
    overwrite: bool = described(False, "Begin anew in an output folder that holds results.", group="report")

    def __post_init__(self):
        super().__post_init__()
        for name, what in (
            ("events", "table of the events"),
            ("annotations", "table of the annotations"),
            ("output_dir", "folder to write to"),
        ):
            if not getattr(self, name):
                raise InputError(f"{name}: is not set; name the {what}")
