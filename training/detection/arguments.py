"""Defines the options of the task detection."""

from dataclasses import dataclass
from typing import ClassVar

from ..base.arguments import FineTuningArguments, ReportArguments, TrainedWeightsArguments
from ..data.arguments import AnnotationArguments, FeatureArguments
from ..errors import InputError
from ..recipe import described

POSTPROCESSING_METRICS = ("event_f1", "intersection_f1", "segment_f1")  # see `event_metrics`


@dataclass
class DetectionDataArguments(FeatureArguments, AnnotationArguments):
    """Names the annotated recordings, their division into splits, and the crops of an epoch."""

    label_file: str | None = described(
        None, "File of the labels in order, one per line; unset: those of the annotations."
    )
    validation_fraction: float = described(
        0.1, "Share of the training annotations for validation where no split is given.", at_least=0, below=0.5
    )
    test_fraction: float = described(
        0.1, "Share of the training annotations for the test where no split is given.", at_least=0, below=0.5
    )
    split_by: str = described(
        "recording",
        "What the splits do not divide: a recording, a site, or (time) moments: each recording's end is held out.",
        choices=("recording", "site", "time"),
    )
    on_bad_audio: str = described(
        "error", "Treatment of unreadable recordings: error stops; skip leaves them out.", choices=("error", "skip")
    )
    compute_statistics: bool = described(False, "Compute mean and std on the crops of the first epoch.")
    crop_s: float | None = described(None, "Seconds of a training crop; unset: the model's longest input.", above=0)
    crops_per_epoch: int | None = described(
        None, "Crops of an epoch; unset: as many as the training recordings hold side by side.", at_least=1
    )
    event_share: float | None = described(
        0.5, "Share of the crops that show an event, the others show none; none: crops from anywhere.",
        at_least=0, at_most=1,
    )  # fmt: skip
    weak_annotations: str | None = described(
        None, "Manifest of clips whose labels have no times, with columns such as file and label; unset: none."
    )
    label_separator: str | None = described(
        None, "Separator of several labels in one text of weak_annotations; unset: a text is one label."
    )
    weak_share: float = described(
        0.25, "Share of the crops that come from weak_annotations, where they are set.", at_least=0, below=1
    )
    window_s: float | None = described(
        None, "Seconds per window of the evaluations; unset: the longest that the model takes.", above=0
    )
    hop_s: float | None = described(None, "Seconds from window to window; unset: half a window.", above=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.train_annotations:
            raise InputError("train_annotations: is not set; name a table of events, or a folder of tables")
        if self.split_by == "site" and not self.site:
            raise InputError("split_by: site needs the key site, a column or a regular expression; set it")


@dataclass
class DetectionTuningArguments(TrainedWeightsArguments):
    """Selects the trained weights of a frame classifier, its loss, and how often each class is drawn."""

    stored_as: ClassVar[str] = "TuningArguments"

    sampler: str = described(
        "uniform",
        "Choice of the events to show; balanced: each class equally often, then one of its events.",
        choices=("uniform", "balanced"),
    )
    class_weights: str = described(
        "none",
        "Weights in the loss; balanced: the frames with a class count as much as those without.",
        choices=("none", "balanced"),
    )
    loss: str = described(
        "binary_cross_entropy",
        "Loss of each frame and class; focal is that of Lin et al. (2017).",
        choices=("binary_cross_entropy", "focal"),
    )
    focal_gamma: float = described(
        2.0, "Exponent of the focal loss: how much it favours misclassified frames.", at_least=0
    )
    weak_weight: float = described(
        1.0, "Weight of the loss of weak_annotations, on the linear softmax over a clip's frames.", at_least=0
    )


@dataclass
class DetectionTrainingArguments(FineTuningArguments, ReportArguments):
    """Sets up the training of a frame classifier: `FineTuningArguments`, and the choice of how events are found."""

    onset_collar_s: float = described(
        0.2,
        "Seconds by which onset and offset of a found event may differ; offsets by 20 % of its length too.",
        above=0,
    )
    choose_postprocessing: bool = described(
        True, "Choose filter, thresholds, shortest event and gap per class on the validation split after the training."
    )
    postprocessing_metric: str = described(
        "event_f1",
        "F1 that they are chosen for: of events within the collar, of intersections (half of each covered), or of "
        "segments of a second.",
        choices=POSTPROCESSING_METRICS,
    )
