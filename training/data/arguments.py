"""Arguments of labelled and unlabelled data."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from ..recipe import described


@dataclass
class FeatureArguments:
    """How clips become features, for every task."""

    check_files: bool = described(True, "Read the header of every file before training.")
    sampling_rate: int = described(16000, "Hz, of the features of a model with random weights.")
    mean: float | None = described(None, "Mean of the log-mels, for normalisation.")
    std: float | None = described(None, "Standard deviation of the log-mels, for normalisation.")
    compute_statistics: bool = described(False, "Compute mean and std on the training clips.")
    shuffle_buffer: int = described(1000, "Clips among which streamed ones are shuffled.")
    max_unreadable_share: float = described(
        0.05, "Share of unreadable clips above which a run stops that leaves them out."
    )

    def __post_init__(self):
        if self.shuffle_buffer < 1:
            raise InputError(f"shuffle_buffer: must be positive, got {self.shuffle_buffer}")
        if not 0 <= self.max_unreadable_share <= 1:
            raise InputError(f"max_unreadable_share: must be from 0 to 1, got {self.max_unreadable_share}")


@dataclass
class DataArguments(FeatureArguments):
    """Where the labelled clips come from and how they are read."""

    needed_file: ClassVar[str] = "train_file"  # where there is no data set

    dataset_name: str | None = described(None, "A data set on the Hub, or a local folder (class folders or metadata).")
    dataset_config_name: str | None = described(None, "Configuration of the Hub data set.")
    dataset_revision: str | None = described(None, "Branch, tag or commit of the Hub data set.")
    train_split: str = described("train", "Name of the training split.")
    validation_split: str = described("validation", "Name of the validation split.")
    test_split: str = described("test", "Name of the test split.")
    train_file: str | None = described(None, "Manifest of the training clips: CSV, TSV, JSON, JSONL or Parquet.")
    validation_file: str | None = described(None, "Manifest of the validation clips.")
    test_file: str | None = described(None, "Manifest of the test clips.")
    audio_column: str | None = described(None, "Column of the audio; guessed when unset.")
    label_column: str | None = described(None, "Column of the labels; guessed when unset.")
    fold_column: str | None = described(None, "Column of the data set's own folds, for cross-validation and sweeps.")
    group_column: str | None = described(None, "Column of what splits must not divide, such as a speaker.")
    start_column: str | None = described(None, "Column of the beginnings of parts of recordings, in seconds.")
    end_column: str | None = described(None, "Column of their ends, in seconds.")
    label_separator: str | None = described(None, "What separates several labels in one text, such as a comma.")
    label_file: str | None = described(
        None, "Labels in order, one per line, or SSAST's CSV (index, mid, display_name)."
    )
    problem_type: str | None = described(None, "single_label_classification, multi_label_classification or regression.")
    validation_fraction: float = described(0.1, "Share of the training clips for validation where no split is given.")
    test_fraction: float = described(0.1, "Share of the training clips for the test where no split is given.")
    check_samples: bool = described(False, "Decode every file before training: finds NaN samples too.")
    on_bad_audio: str = described(
        "error", "error: stop at unreadable clips; skip: decode every clip before training and leave those out."
    )
    max_train_clips: int | None = described(None, "Train with a random sample of so many clips, to try a recipe out.")
    max_eval_clips: int | None = described(None, "Evaluate on a random sample of so many clips of each split.")
    streaming: bool = described(False, "Stream the training split of a Hub data set instead of downloading it.")
    window_s: float | None = described(
        None, "Seconds per window in which long clips are evaluated; unset, the longest."
    )
    hop_s: float | None = described(None, "Seconds from window to window; half a window if unset.")

    def __post_init__(self):
        super().__post_init__()
        if bool(self.dataset_name) == bool(getattr(self, self.needed_file)):
            raise InputError(f"data: set either dataset_name or {self.needed_file}")
        for name in ("max_train_clips", "max_eval_clips"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}: must be 1 or more, got {getattr(self, name)}")
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 0.5:
                raise InputError(f"{name}: must be from 0 to below 0.5, got {getattr(self, name)}")
        if self.on_bad_audio not in ("error", "skip"):
            raise InputError(f"on_bad_audio: must be error or skip, got {self.on_bad_audio!r}")


@dataclass
class EvaluationDataArguments(DataArguments):
    """The same, of the clips that a finished classifier is tested on: the test split, or all where there is one."""

    needed_file: ClassVar[str] = "test_file"


@dataclass
class UnlabelledDataArguments(FeatureArguments):
    """Where the clips of a pretraining come from. Each source is a name or path, or a JSON object; see the README."""

    train_sources: list[str] | None = described(
        None, 'Folders, manifests and Hub data sets, or {"path": ..., "weight": ..., "streaming": true, ...}.'
    )
    validation_sources: list[str] | None = described(None, "The same, for the evaluations.")
    validation_clips: int = described(
        256, "Clips for the evaluations: of validation_sources (0: all), else of the local train_sources (0: none)."
    )
    statistics_clips: int = described(1000, "Clips on which compute_statistics computes.")

    def __post_init__(self):
        super().__post_init__()
        if not self.train_sources:
            raise InputError("train_sources: is not set; name folders, manifests or Hub data sets")
        for name, lowest in (("validation_clips", 0), ("statistics_clips", 1)):
            if getattr(self, name) < lowest:
                raise InputError(f"{name}: must be {lowest} or more, got {getattr(self, name)}")
