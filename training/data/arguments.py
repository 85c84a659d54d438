"""Defines the options of labelled and unlabelled data; each task takes the class with the options that it obeys."""

from dataclasses import dataclass, fields
from typing import ClassVar

from modeling_dual_ssast.configuration_dual_ssast import PROBLEM_TYPES

from ..errors import InputError
from ..recipe import Arguments, described

HIGHEST_RATE = 1_000_000  # Hz; clips are resampled to it
# Options of one kind of source alone -> what to do where they are given for the other.
OF_TABLES = dict.fromkeys(
    ("validation_file", "test_file"), "leave it out, or name a table of the training clips as train_file instead"
)
OF_DATA_SETS = dict.fromkeys(
    ("dataset_config_name", "dataset_revision", "train_split", "validation_split", "test_split"),
    "leave it out; a table is a split of its own",
)


@dataclass
class SourceArguments(Arguments):
    """Holds the options of a source of labelled clips, and of its tables."""

    group: ClassVar[str] = "data"
    needed_file: ClassVar[str] = "test_file"  # required without a data set

    dataset_name: str | None = described(
        None, "Data set on the Hub, or local folder: class folders, metadata, or train, validation and test tables."
    )
    dataset_config_name: str | None = described(None, "Configuration of the Hub data set; unset: its only one.")
    dataset_revision: str | None = described(None, "Branch, tag or commit of the Hub data set; unset: the latest.")
    test_split: str = described("test", "Name of the test split.")
    test_file: str | None = described(None, "Manifest of the test clips: CSV, TSV, Excel, JSON, JSONL or Parquet.")
    audio_column: str | None = described(None, "Column of the audio; unset: guessed.")
    label_column: str | None = described(None, "Column of the labels; unset: guessed.")
    start_column: str | None = described(
        None, "Column with the start times of segments, in seconds; unset: clips begin with their recordings."
    )
    end_column: str | None = described(
        None, "Column with the end times of segments, in seconds; unset: clips end with their recordings."
    )
    label_separator: str | None = described(
        None, "Separator of several labels in one text, such as a comma; unset: a text is one label."
    )
    none_label: str | None = described(
        None,
        "Label of clips with none of the classes, such as background, where each class has a threshold; clips without "
        "any label have none of them too.",
        is_label=True,
    )
    label_file: str | None = described(
        None,
        "File of the labels in order, one per line, or SSAST's CSV (index, mid, display_name); unset: those of the "
        "data.",
    )

    def __post_init__(self):
        super().__post_init__()
        if bool(self.dataset_name) == bool(getattr(self, self.needed_file)):
            raise InputError(f"data: set either dataset_name or {self.needed_file}")

    def check_source(self):
        """Raises `InputError` for an option of tables beside a named data set, and for the other way round."""
        source, remedies = ("dataset_name", OF_TABLES) if self.dataset_name else (self.needed_file, OF_DATA_SETS)
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in remedies and value and value != option.default:
                raise InputError(f"{option.name}: has no effect with {source}; {remedies[option.name]}")


@dataclass
class SplitArguments(SourceArguments):
    """Holds the options of labelled clips in training, validation and test splits."""

    needed_file: ClassVar[str] = "train_file"

    train_split: str = described("train", "Name of the training split.")
    validation_split: str = described("validation", "Name of the validation split.")
    train_file: str | None = described(None, "Manifest of the training clips: CSV, TSV, Excel, JSON, JSONL or Parquet.")
    validation_file: str | None = described(None, "Manifest of the validation clips.")
    fold_column: str | None = described(
        None, "Column of the data set's own folds, for cross-validation and sweeps; unset: folds are drawn."
    )
    group_column: str | None = described(None, "Column of what splits must not divide, such as a speaker.")
    problem_type: str | None = described(
        None, "Kind of labels; unset: multi-label where a clip has several labels or none.", choices=PROBLEM_TYPES
    )

    def __post_init__(self):
        super().__post_init__()
        if self.none_label is not None:
            self.problem_type = self.problem_type or "multi_label_classification"
            if self.problem_type != "multi_label_classification":
                raise InputError(
                    f"none_label: needs a threshold per class, but problem_type is {self.problem_type}; leave out one "
                    "of the two"
                )


@dataclass
class AnnotationArguments(Arguments):
    """Holds the options of annotated recordings in training, validation and test splits."""

    group: ClassVar[str] = "data"

    train_annotations: str | None = described(
        None, "Table of the training events (Raven, Audacity, DCASE, CSV, JSON, soundevent), or a folder of tables."
    )
    validation_annotations: str | None = described(None, "Tables of the validation events.")
    test_annotations: str | None = described(None, "Tables of the test events.")
    recordings: str | None = described(
        None, "Folder of the recordings, or the only one; unset: the folder of each table."
    )
    audio_column: str | None = described(None, "Column of the recordings; unset: guessed.")
    label_column: str | None = described(None, "Column of the labels; unset: guessed.")
    label_map: str | None = described(
        None,
        "Labels of the tables -> labels, or null for no event: a mapping, a file of one in YAML or JSON, or a CSV of "
        "pairs; * stands for all others; unset: labels stay as they are.",
    )
    exclude_labels: list[str] | None = described(
        None, "Labels, such as unsure, whose time is neither learnt nor evaluated; unset: none.", is_label=True
    )
    unannotated: str = described(
        "unlabelled",
        "What recordings without a table are: unlabelled, or empty (without events).",
        choices=("unlabelled", "empty"),
    )
    overlaps: str = described(
        "join",
        "Events of one label that overlap or touch: join makes one of them, keep keeps them.",
        choices=("join", "keep"),
    )
    point_s: float = described(
        0.0, "Length in seconds that events without duration get, around their time.", at_least=0, at_most=3600
    )
    site: str | None = described(
        None,
        "Column of the tables with the site of each recording, or a regular expression that finds it in the path: its "
        "first group; unset: unknown.",
    )


@dataclass
class ScreeningArguments(Arguments):
    """Holds the options of the search for unreadable clips, and of the share that a run skips."""

    group: ClassVar[str] = "data"

    check_files: bool = described(True, "Read the header of every file before the run.")
    max_unreadable_share: float = described(
        0.05, "Share of unreadable clips above which a run that skips them stops.", at_least=0, at_most=1
    )


@dataclass
class ClipArguments(ScreeningArguments):
    """Holds the options of the treatment of unreadable and of long labelled clips."""

    check_samples: bool = described(False, "Decode every file before the run: finds NaN samples too.")
    on_bad_audio: str = described(
        "error",
        "Treatment of unreadable clips: error stops; skip decodes every clip before the run and leaves them out.",
        choices=("error", "skip"),
    )
    window_s: float | None = described(
        None,
        "Window length in seconds for the evaluation of long clips; unset: the longest that the model takes.",
        above=0,
    )
    hop_s: float | None = described(None, "Seconds from window to window; unset: half a window.", above=0)


@dataclass
class FeatureArguments(Arguments):
    """Holds the options of the feature extractor."""

    group: ClassVar[str] = "data"

    sampling_rate: int = described(
        16000, "Sampling rate in Hz of the features of a model with random weights.", at_least=1, at_most=HIGHEST_RATE
    )
    mean: float | None = described(None, "Mean of the log-mels, for normalisation; unset: the checkpoint's.")
    std: float | None = described(
        None, "Standard deviation of the log-mels, for normalisation; unset: the checkpoint's.", above=0
    )


@dataclass
class TrainingFeatureArguments(FeatureArguments):
    """Holds the options of a training's feature extractor, and of the shuffling of streamed clips."""

    compute_statistics: bool = described(False, "Compute mean and std on the training clips.")
    shuffle_buffer: int = described(1000, "Clips among which streamed ones are shuffled.", at_least=1)


@dataclass
class EvaluationDataArguments(ClipArguments, SourceArguments):
    """Holds the options of the test of a finished classifier: on the test split, or a source's only split."""

    max_eval_clips: int | None = described(
        None, "Clips in the random sample that is evaluated; unset: all.", at_least=1
    )


@dataclass
class FrozenDataArguments(FeatureArguments, ClipArguments, SplitArguments):
    """Holds the options of labelled clips for a frozen encoder (sweep and probe)."""

    stored_as: ClassVar[str] = "DataArguments"
    refused: ClassVar[dict[str, str]] = {
        "compute_statistics": "a frozen encoder keeps the statistics that it was trained with; leave it out, or give "
        "mean and std",
        "streaming": "folds and the features of a frozen encoder need all clips at once; leave it out",
        "features_on_device": "has an effect on the tasks classification, cross_validation and detection alone; leave "
        "it out",
    }

    validation_fraction: float = described(
        0.1, "Share of the training clips for validation where no split is given.", at_least=0, below=0.5
    )
    test_fraction: float = described(
        0.1, "Share of the training clips for the test where no split is given.", at_least=0, below=0.5
    )
    split_seed: int | None = described(
        None,
        "Random seed of these shares, so that runs with other seeds have the same clips; unset: that of from_sweep, "
        "else seed.",
        at_least=0,
    )

    def seed_of_splits(self, seed: int) -> int:
        """Returns the seed with which splits are set aside by a run of this seed."""
        return seed if self.split_seed is None else self.split_seed


@dataclass
class DataArguments(TrainingFeatureArguments, FrozenDataArguments):
    """Holds the options of labelled clips for a training."""

    refused: ClassVar[dict[str, str]] = {}

    max_train_clips: int | None = described(
        None, "Clips in the random sample of the training split, to try a recipe out; unset: all.", at_least=1
    )
    max_eval_clips: int | None = described(
        None, "Clips in the random sample of each other split; unset: all.", at_least=1
    )
    decoded_cache: str | None = described(
        None, "Folder for the decoded clips, which later epochs and runs read instead of decoding anew; unset: none."
    )
    streaming: bool = described(False, "Stream the training split of a Hub data set instead of downloading it.")
    unknown_classes: list[str] | None = described(
        None, "Classes to leave out of the training, and to test the rejection of unknown sounds with.", is_label=True
    )


@dataclass
class UnlabelledDataArguments(TrainingFeatureArguments, ScreeningArguments):
    """Holds the options of the clips of a pretraining. Each source is a name, a path, or a JSON object."""

    train_sources: list[str] | None = described(
        None, 'Folders, manifests and Hub data sets, or {"path": ..., "weight": ..., "streaming": true, ...}.'
    )
    validation_sources: list[str] | None = described(
        None, "The same, for the evaluations; unset: clips held out of the local train_sources."
    )
    validation_clips: int = described(
        256,
        "Clips for the evaluations: of validation_sources (0: all), else of the local train_sources (0: none).",
        at_least=0,
    )
    probe_dataset: str | None = described(
        None, "Labelled clips to score the frozen encoder on: a name or folder like dataset_name, or a manifest."
    )
    probe_label_column: str | None = described(None, "Column of the labels of probe_dataset; unset: guessed.")
    probe_clips: int = described(
        500, "Most clips of probe_dataset, drawn at random; their log-mels stay in memory.", at_least=20
    )
    statistics_clips: int = described(1000, "Clips on which compute_statistics computes.", at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if not self.train_sources:
            raise InputError("train_sources: is not set; name folders, manifests or Hub data sets")
