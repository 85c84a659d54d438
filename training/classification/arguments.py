"""Defines the options of the tasks classification, cross_validation and evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from ..base.arguments import FineTuningArguments, ReportArguments, TrainedWeightsArguments, TrainingArguments
from ..data.arguments import DataArguments
from ..errors import InputError
from ..inference.precision import FORMATS, HardwareArguments
from ..recipe import Arguments, described


@dataclass
class ClassificationTrainingArguments(FineTuningArguments, ReportArguments):
    """Sets up the training of a classifier: `FineTuningArguments`, batches by tokens, calibration and report."""

    train_sampling_strategy: str = described(
        "random",
        "Order of the training clips; token_budget: batches of tokens_per_batch instead of a number of clips.",
        choices=("random", "sequential", "group_by_length", "batch_rebalance", "token_budget"),
    )
    tokens_per_batch: int | None = described(
        None,
        "Most tokens (prefix and patches) per process and batch, instead of per_device_train_batch_size clips.",
        at_least=1,
    )

    calibrate: bool = described(True, "Choose temperature and thresholds on the validation split after the training.")
    open_set: bool = described(
        True, "Fit after the training by what --reject of predict_hf.py rejects clips of no class; one label per clip."
    )


@dataclass
class TuningArguments(TrainedWeightsArguments):
    """Selects the trained weights of a classifier, its loss, and how often each class is drawn."""

    class_weights: str = described(
        "none",
        "Weights of the classes in the loss; balanced: rare classes count as much as frequent ones.",
        choices=("none", "balanced"),
    )
    loss: str = described(
        "cross_entropy",
        "Loss; binary_cross_entropy is per class, focal that of Lin et al. (2017).",
        choices=("cross_entropy", "binary_cross_entropy", "focal"),
    )
    focal_gamma: float = described(
        2.0, "Exponent of the focal loss: how much it favours misclassified clips.", at_least=0
    )
    sampler: str = described(
        "uniform",
        "Order of the training clips; balanced: clips of rare classes are drawn more often.",
        choices=("uniform", "balanced"),
    )


@dataclass
class FoldDataArguments(DataArguments):
    """Names the clips of a cross-validation. Accepts `test_fraction`, which the recipe of a classification may have."""

    refused: ClassVar[dict[str, str]] = {
        "streaming": "folds need all clips at once; leave it out",
        "shuffle_buffer": "has an effect on streamed clips alone; leave it out",
        "unknown_classes": "folds divide all classes; leave it out, or run the task classification",
    }


@dataclass
class FoldTrainingArguments(ClassificationTrainingArguments):
    """Sets up each training of a cross-validation."""

    refused: ClassVar[dict[str, str]] = TrainingArguments.refused | dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
        "a cross-validation has no model of its own; push one of its runs with python -m hub push FOLDER user/name",
    )


@dataclass
class CrossValidationArguments(Arguments):
    """Sets folds and seeds of a cross-validation."""

    group: ClassVar[str] = "training"

    num_folds: int = described(5, "Folds, where the data set has none of its own (fold_column).", at_least=2)
    num_seeds: int = described(1, "Trainings per fold, from seed on; the folds stay.", at_least=1)


@dataclass
class EvaluationArguments(HardwareArguments, ReportArguments):
    """Sets up the evaluation of a finished classifier with its own features, classes and calibration."""

    group: ClassVar[str] = "model"

    model_name_or_path: str | None = described(None, "Folder or Hub name of a classifier.")
    model_revision: str = described("main", "Branch, tag or commit of a classifier on the Hub.")
    dtype: str = described(
        "float32",
        "Number format of the weights. float32: the numbers of the training's own test; auto: that of predict_hf.py.",
        choices=FORMATS,
    )
    per_device_eval_batch_size: int = described(16, "Clips or windows per forward pass.", at_least=1)
    dataloader_num_workers: int = described(0, "Threads that decode; 0: the main thread itself.", at_least=0)
    output_dir: str | None = described(None, "Folder to write to.", group="report")
    overwrite: bool = described(False, "Begin anew in an output folder that holds an earlier run.", group="report")
    figure_format: str = described(
        "png", "Format in which figures are written too, for papers.", choices=("png", "pdf", "svg"), group="report"
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.output_dir:
            raise InputError("output_dir: is not set; name the folder to write to")
