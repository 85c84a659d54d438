"""What a recipe may say: the fields of each part, and how YAML or JSON and the command line become values."""

import dataclasses
import difflib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import get_last_checkpoint

from .base import reproduction
from .data.augmentation import AugmentationArguments
from .errors import InputError
from .fields import described

TASKS = ("classification", "cross_validation", "evaluation", "mspm", "asit", "sweep", "probe")


@dataclass
class TaskArguments:
    """Which module of training/ runs the recipe."""

    task: str = described("classification", f"One of {', '.join(TASKS)}.")

    def __post_init__(self):
        if self.task not in TASKS:
            raise InputError(f"task: {self.task!r} is unknown; known are {', '.join(TASKS)}")


@dataclass
class EncoderArguments:
    """The checkpoint, and what to change in its configuration. Unset fields keep the checkpoint's value."""

    model_name_or_path: str | None = described(None, "Folder or Hub name of a checkpoint; none: random weights.")
    model_revision: str = described("main", "Branch, tag or commit of a checkpoint on the Hub.")
    config_overrides: dict | str | None = described(None, "Any fields of the configuration, such as hidden_size.")
    max_length: int | None = described(None, "Most frames (10 ms) per clip; positions are resized by SSAST's rule.")
    attn_implementation: str | None = described(None, "sdpa, eager, flash_attention_2, flex_attention.")

    def __post_init__(self):
        self.config_overrides = _as_dict("config_overrides", self.config_overrides)

    def overrides(self) -> dict:
        """The configuration fields that the recipe sets."""
        others = ("model_name_or_path", "model_revision", "config_overrides", "from_sweep")
        fields = (f.name for f in dataclasses.fields(self) if f.name not in others)
        return {
            **self.config_overrides,
            **{name: value for name in fields if (value := getattr(self, name)) is not None},
        }


@dataclass
class ModelArguments(EncoderArguments):
    """The encoder's arguments, and those of fusion and classifier."""

    from_sweep: str | None = described(None, "Folder of a sweep: its encoder, and the best layers and poolings.")
    fusion_layers: list[int] | None = described(None, "States to fuse: 0 the embedding, -1 the last block.")
    fusion_norm: str | None = described(None, "shared, separate or none.")
    readout: str | None = described(None, "patches, prefix or frames; of CNN14 composed or panns.")
    pooling: list[str] | None = described(None, "Some of mean, max, min; or one list per layer, as JSON.")
    pooling_combination: str | None = described(None, "sum, mean or concat.")
    fusion: str | None = described(None, "concat, sum or weighted.")
    classifier_hidden_sizes: list[int] | None = described(None, "Hidden layers of the classifier.")
    classifier_dropout: float | None = described(None, "Dropout in the classifier.")
    label_smoothing: float | None = described(None, "Label smoothing of the cross-entropy.")
    frequency_stride: int | None = described(None, "Step of the patches in mel bins; positions are resized.")
    time_stride: int | None = described(None, "Step of the patches in frames; positions are resized.")

    def __post_init__(self):
        super().__post_init__()
        if self.pooling and self.pooling[0].startswith("["):
            self.pooling = [json.loads(entry) for entry in self.pooling]
        if self.from_sweep:
            for name, value in _read_sweep(Path(self.from_sweep)).items():
                if getattr(self, name) in (None, {}):
                    setattr(self, name, value)


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


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Transformers' TrainingArguments with this project's defaults, and what it adds to them."""

    reproduces: ClassVar[tuple[str, dict] | None] = None  # path and content of the results.json that is the recipe

    report_to: None | str | list[str] = described(  # noqa: RUF036  HfArgumentParser needs this order
        "none", "none, tensorboard, trackio, wandb, ..."
    )
    eval_strategy: str = described("epoch", "no, steps or epoch.")
    save_strategy: str = described("epoch", "no, steps or epoch.")
    logging_strategy: str = described("epoch", "no, steps or epoch.")
    save_total_limit: int | None = described(2, "Checkpoints to keep.")
    load_best_model_at_end: bool = described(True, "Use the weights of the best evaluation.")
    # The collator turns the examples into tensors itself; a column filter would look for them in forward.
    remove_unused_columns: bool = described(False, "Leave this off.")
    head_learning_rate: float | None = described(None, "Learning rate of the classifier; as the encoder's when unset.")
    fusion_learning_rate: float = described(1e-2, "Learning rate of the layers' weights where fusion is weighted.")
    lr_decay: float | None = described(
        None, "Factor of a constant learning rate from the end of epoch lr_decay_start on, as in SSAST and AST."
    )
    lr_decay_start: int = described(1, "Epochs with the full learning rate.")
    lr_decay_every: int = described(1, "Epochs between one lr_decay and the next.")
    epoch_steps: int | None = described(None, "Steps that count as an epoch, of streamed clips.")
    early_stopping_patience: int | None = described(None, "Stop after so many evaluations without improvement.")
    overwrite: bool = described(False, "Begin anew in an output folder that holds a run.")
    calibrate: bool = described(True, "Choose temperature and thresholds on the validation split after the training.")
    html_report: bool = described(True, "Write report.html, a page about the run that holds recordings of the test.")
    report_clips: int = described(12, "Clips with the highest loss to show and hear in report.html.")
    license: str | None = described(None, "For the model card: the model's licence as the Hub spells it, such as mit.")
    language: list[str] | None = described(None, "For the model card: languages of the recordings, such as en fr.")
    hub_strategy: str = described("end", "What push_to_hub pushes: end, or every_save for each checkpoint too.")

    def __post_init__(self):
        if self.report_clips < 0:
            raise InputError(f"report_clips: must be 0 or more, got {self.report_clips}")
        for name in ("epoch_steps", "lr_decay_start", "lr_decay_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}: must be positive, got {getattr(self, name)}")
        self._check_decay()
        if self.output_dir:  # else trackio calls training and evaluation by two names of its own
            self.run_name = self.run_name or Path(self.output_dir).name
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it two CPU processes train independently into one folder
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False
        if self.label_smoothing_factor:
            raise InputError("label_smoothing_factor: set label_smoothing instead, which takes mixed labels too")
        self._check_card()
        self._check_push()
        # Transformers fills these in; what the recipe said decides.
        self.chosen_metric, self.chosen_direction = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()
        for name in set(self.report_to) - {"none", *get_available_reporting_integrations()}:
            raise InputError(f"report_to: {name} is unknown or not installed; install its package, or set none")

    def _check_card(self):
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(
                f"license: must be a name of the Hub's list, such as apache-2.0 or cc-by-4.0, or other, got "
                f"{self.license!r}"
            )
        for name in self.language or ():
            if name != "multilingual" and not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", name):
                raise InputError(
                    f"language: must be codes such as en or swa (ISO 639), or multilingual, got {name!r}; in YAML, "
                    'Norwegian is "no" in quotes'
                )

    def _check_push(self):
        if self.hub_token:  # it would be in the shell's history and in every checkpoint
            raise InputError("hub_token: does not belong in a recipe; run hf auth login, or set HF_TOKEN")
        for name in ("hub_revision", "hub_always_push"):
            if getattr(self, name):
                raise InputError(f"{name}: has no effect here; leave it out")
        if not self.push_to_hub:
            return
        if (self.hub_model_id or "").count("/") != 1:
            raise InputError(f"hub_model_id: must be user/name, the repository to push to, got {self.hub_model_id!r}")
        strategy = getattr(self.hub_strategy, "value", self.hub_strategy)
        if strategy not in ("end", "every_save"):
            raise InputError(
                f"hub_strategy: must be end or every_save, got {strategy!r}; optimiser states are not pushed"
            )

    def _check_decay(self):
        if self.lr_decay is None:
            return
        if not 0 < self.lr_decay <= 1:
            raise InputError(f"lr_decay: must be above 0 and at most 1, got {self.lr_decay}")
        kind = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        if not kind.startswith("constant"):
            raise InputError(
                f"lr_decay: lowers a constant rate, but lr_scheduler_type is {kind}; set constant_with_warmup"
            )


@dataclass
class TuningArguments:
    """What of a classifier is trained, with which loss, and how often a class is heard."""

    freeze_layers: int = described(0, "Blocks that stay as they are, counted from the input, with the embedding.")
    freeze_encoder: bool = described(False, "A linear probe: only the classifier and learned fusion are trained.")
    layer_decay: float | None = described(None, "Each block's learning rate over that of the next higher one (BEiT).")
    lora_rank: int | None = described(None, "Trains low-rank updates of this rank instead of the encoder (LoRA; PEFT).")
    lora_alpha: float = described(16.0, "The updates are scaled by lora_alpha / lora_rank.")
    lora_dropout: float = described(0.0, "Dropout before the updates.")
    lora_target_modules: list[str] | None = described(
        None, "Names of linear or convolutional layers; q_proj and v_proj if unset, of a CNN every convolution."
    )
    ema_decay: float | None = described(None, "Evaluate and save a moving average of the weights, such as 0.999.")
    average_from_epoch: int | None = described(
        None, "Evaluate and save the mean of the weights at the ends of the epochs from this one on, as in PSLA."
    )
    class_weights: str = described(
        "none", "none, or balanced: rare classes count as much as frequent ones in the loss."
    )
    loss: str = described(
        "cross_entropy", "cross_entropy, binary_cross_entropy (per class), or focal (Lin et al., 2017)."
    )
    focal_gamma: float = described(2.0, "How much the focal loss favours clips that are not yet known.")
    sampler: str = described("uniform", "uniform, or balanced: clips of rare classes are drawn more often.")

    def __post_init__(self):
        choices = {"class_weights": ("none", "balanced"), "loss": ("cross_entropy", "binary_cross_entropy", "focal")}
        choices["sampler"] = ("uniform", "balanced")
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}: must be {' or '.join(known)}, got {getattr(self, name)!r}")
        limits = {
            "freeze_layers": (self.freeze_layers >= 0, "0 or more"),
            "layer_decay": (self.layer_decay is None or 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            "lora_rank": (self.lora_rank is None or self.lora_rank >= 1, "1 or more"),
            "lora_alpha": (self.lora_alpha > 0, "above 0"),
            "lora_dropout": (0 <= self.lora_dropout < 1, "from 0 to below 1"),
            "ema_decay": (self.ema_decay is None or 0 < self.ema_decay < 1, "above 0 and below 1"),
            "average_from_epoch": (self.average_from_epoch is None or self.average_from_epoch >= 1, "1 or more"),
            "focal_gamma": (self.focal_gamma >= 0, "0 or more"),
        }
        for name, (is_possible, wanted) in limits.items():
            if not is_possible:
                raise InputError(f"{name}: must be {wanted}, got {getattr(self, name)}")
        if self.freeze_encoder and self.lora_rank:
            raise InputError("lora_rank: has nothing to train where freeze_encoder is set; leave one of them out")
        if self.ema_decay and self.average_from_epoch:
            raise InputError("average_from_epoch: ema_decay is another average; leave one of them out")
        if self.lora_target_modules and not self.lora_rank:
            raise InputError("lora_target_modules: has no effect without lora_rank; set it, such as 8")


NO_PLATEAU = (
    "lr_scheduler_type: reduce_lr_on_plateau watches the evaluations, of which there are none; evaluate, or choose "
    "another one, such as constant_with_warmup"
)


@dataclass
class PretrainingArguments(TrainingArguments):
    """TrainingArguments counted in steps, since streams have no epochs: one is `epoch_steps` long."""

    # The published methods bring their own: what has no effect is refused.
    WITHOUT_EFFECT: ClassVar = (
        "head_learning_rate", "fusion_learning_rate", "optim", "optim_args", "auto_find_batch_size", "html_report",
        "report_clips", "calibrate",
    )  # fmt: skip

    epoch_steps: int | None = described(None, "Steps that count as an epoch; as many as the local clips fill if unset.")
    eval_strategy: str = described("steps", "no or steps.")
    save_strategy: str = described("steps", "no or steps.")
    logging_strategy: str = described("steps", "no or steps.")
    eval_steps: float | None = described(None, "Steps between evaluations; an epoch if unset.")
    save_steps: float | None = described(None, "Steps between checkpoints; an epoch if unset.")
    logging_steps: float | None = described(None, "Steps between log lines; a tenth of an epoch if unset.")
    load_best_model_at_end: bool = described(False, "Keep the best evaluation's weights instead of the last.")
    ddp_find_unused_parameters: bool | None = described(False, "Every parameter takes part.")
    picture_clips: int = described(4, "Validation clips whose reconstruction is drawn at every evaluation.")

    def __post_init__(self):
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name in self.WITHOUT_EFFECT:
            if getattr(self, name) != fields[name].default:
                raise InputError(f"{name}: has no effect on this pretraining; remove it")
        for name, lowest in (("per_device_train_batch_size", 1), ("picture_clips", 0)):
            if getattr(self, name) < lowest:
                raise InputError(f"{name}: must be {lowest} or more, got {getattr(self, name)}")
        if self.num_train_epochs <= 0:
            raise InputError(f"num_train_epochs: must be above 0, got {self.num_train_epochs}")
        self.ignore_data_skip = True  # the stream itself jumps to the place of a resumption
        if self.load_best_model_at_end:  # what is evaluated must be saved
            self.eval_steps, self.save_steps = self.eval_steps or self.save_steps, self.save_steps or self.eval_steps
        # Transformers wants numbers; the task replaces those that the recipe leaves open when it knows the epoch.
        self.open_steps = [
            name for name in ("eval_steps", "save_steps", "logging_steps") if getattr(self, name) is None
        ]
        for name in self.open_steps:
            setattr(self, name, 1)
        if self.eval_strategy == "no" and self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise InputError(NO_PLATEAU)
        super().__post_init__()
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            if getattr(self, name) == "epoch":
                raise InputError(f"{name}: pretraining counts in steps; set steps, and {name.split('_')[0]}_steps")


@dataclass
class MspmTrainingArguments(PretrainingArguments):
    """SSAST's pretraining: Adam, a warm-up of 1000 steps, and half the rate when the pretext accuracy stalls."""

    learning_rate: float = described(1e-4, "The highest learning rate.")
    weight_decay: float = described(5e-7, "L2 penalty, added to the gradient as Adam does.")
    adam_beta1: float = described(0.95, "Of Adam.")
    warmup_steps: float = described(1000, "Steps over which the learning rate rises.")
    max_grad_norm: float = described(0.0, "Largest norm of the gradient; 0: not clipped.")
    lr_scheduler_type: str = described("reduce_lr_on_plateau", "Any of Transformers'.")
    lr_patience: int = described(2, "Evaluations without a better accuracy before the rate is halved.")
    per_device_train_batch_size: int = described(24, "Clips per process and step.")
    num_train_epochs: float = described(10.0, "Epochs, of epoch_steps each.")


@dataclass
class AsitTrainingArguments(PretrainingArguments):
    """ASiT's pretraining: AdamW with cosine schedules of learning rate, weight decay and teacher momentum."""

    WITHOUT_EFFECT: ClassVar = (
        *PretrainingArguments.WITHOUT_EFFECT,
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
    )

    learning_rate: float = described(5e-4, "At a batch of 256 clips; scaled with the true batch, as in the original.")
    min_learning_rate: float = described(1e-6, "At the end.")
    weight_decay: float = described(0.04, "At the beginning.")
    final_weight_decay: float = described(0.4, "At the end.")
    warmup_epochs: int = described(10, "Epochs over which the learning rate rises.")
    max_grad_norm: float = described(0.0, "Largest norm of the whole gradient; 0: not clipped.")
    max_parameter_grad_norm: float = described(3.0, "Largest norm of each parameter's gradient; 0: not clipped.")
    freeze_last_layer_epochs: int = described(0, "Epochs in which the heads' last layers stay as they are.")
    per_device_train_batch_size: int = described(32, "Clips per process and step.")
    num_train_epochs: float = described(100.0, "Epochs, of epoch_steps each.")


@dataclass
class CrossValidationArguments:
    """How a classification is repeated."""

    num_folds: int = described(5, "Folds, where the data set has none of its own (fold_column).")
    num_seeds: int = described(1, "Trainings per fold, from seed on; the folds stay.")

    def __post_init__(self):
        for name, lowest in (("num_folds", 2), ("num_seeds", 1)):
            if getattr(self, name) < lowest:
                raise InputError(f"{name}: must be at least {lowest}, got {getattr(self, name)}")


@dataclass
class SweepArguments:
    """How the layers and poolings of an encoder are searched."""

    output_dir: str | None = described(None, "Folder to write to.")
    overwrite: bool = described(False, "Begin anew in an output folder that holds a sweep.")
    readouts: list[str] | None = described(None, "Some of patches, prefix, frames (a CNN: composed); unset, all.")
    ridge: list[float] = described([0.1], "Penalty times the number of features; of several, the best.")
    num_folds: int = described(5, "Folds of the cross-validation, where the data set has none of its own.")
    num_repeats: int = described(1, "Cross-validations, each with folds of its own.")
    max_clips: int = described(1000, "Clips to score with; of larger data sets a sample with the same classes.")
    storage_dtype: str = described("float32", "float32 or float16, of the stored representations.")
    shard_clips: int = described(128, "Clips per file of stored representations: what a stopped run may lose.")
    per_device_eval_batch_size: int = described(16, "Clips per encoder pass.")
    dataloader_num_workers: int = described(0, "Processes that decode.")
    seed: int = described(0, "Of the folds.")

    def __post_init__(self):
        if not self.output_dir:
            raise InputError("output_dir: is not set; name the folder that the sweep writes to")
        if not self.ridge or min(self.ridge) <= 0:
            raise InputError(f"ridge: must be positive numbers, got {self.ridge}")
        for name, lowest in (("num_folds", 2), ("num_repeats", 1), ("max_clips", 10), ("shard_clips", 1)):
            if getattr(self, name) < lowest:
                raise InputError(f"{name}: must be at least {lowest}, got {getattr(self, name)}")
        if self.storage_dtype not in ("float32", "float16"):
            raise InputError(f"storage_dtype: must be float32 or float16, got {self.storage_dtype!r}")


@dataclass
class EvaluationArguments:
    """How a finished classifier is evaluated. Features, classes and calibration are the model's."""

    model_name_or_path: str | None = described(None, "Folder or Hub name of a classifier.")
    model_revision: str = described("main", "Branch, tag or commit of a classifier on the Hub.")
    output_dir: str | None = described(None, "Folder to write to.")
    overwrite: bool = described(False, "Begin anew in an output folder that holds results.")
    per_device_eval_batch_size: int = described(16, "Clips per pass.")
    dataloader_num_workers: int = described(0, "Processes that decode.")
    html_report: bool = described(True, "Write report.html, a page that holds recordings of the test.")
    report_clips: int = described(12, "Clips with the highest loss to show and hear in report.html.")

    def __post_init__(self):
        if not self.output_dir:
            raise InputError("output_dir: is not set; name the folder to write to")
        for name in ("per_device_eval_batch_size", "dataloader_num_workers", "report_clips"):
            lowest = 1 if name == "per_device_eval_batch_size" else 0
            if getattr(self, name) < lowest:
                kind = "positive" if lowest else "0 or more"
                raise InputError(f"{name}: must be {kind}, got {getattr(self, name)}")


@dataclass
class ProbeArguments:
    """How a frozen encoder is evaluated: a linear layer as in EVAR (Niizumi et al.), neighbours, a few labels."""

    output_dir: str | None = described(None, "Folder to write to.")
    overwrite: bool = described(False, "Begin anew in an output folder that holds a probe.")
    methods: list[str] = described(["linear", "neighbours", "few_shot"], "Some of linear, neighbours, few_shot.")
    learning_rates: list[float] = described([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "Of the linear layer, to choose from.")
    num_seeds: int = described(3, "Linear layers, each with its own seed; and draws of few labels.")
    num_epochs: int = described(200, "Most epochs of a linear layer.")
    patience: int = described(20, "Epochs without a better validation score after which a linear layer stops.")
    batch_size: int = described(256, "Clips per step of a linear layer.")
    neighbours: list[int] = described([1, 5, 10, 20], "Numbers of neighbours to choose from.")
    few_shot: list[int] = described([1, 5, 10], "Labelled clips per class.")
    shard_clips: int = described(128, "Clips per file of stored embeddings: what a stopped run may lose.")
    per_device_eval_batch_size: int = described(16, "Clips per encoder pass.")
    dataloader_num_workers: int = described(0, "Processes that decode.")
    seed: int = described(0, "The first seed.")

    def __post_init__(self):
        if not self.output_dir:
            raise InputError("output_dir: is not set; name the folder that the probe writes to")
        unknown = [name for name in self.methods if name not in ("linear", "neighbours", "few_shot")]
        if unknown or not self.methods:
            raise InputError(f"methods: {self.methods} must name some of linear, neighbours, few_shot")
        for name in ("learning_rates", "neighbours", "few_shot"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise InputError(f"{name}: must be positive numbers, got {getattr(self, name)}")
        for name in ("num_seeds", "num_epochs", "patience", "batch_size", "shard_clips"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be positive, got {getattr(self, name)}")


ARGUMENT_CLASSES = {
    "classification": (ModelArguments, DataArguments, AugmentationArguments, TuningArguments, TrainingArguments),
    "cross_validation": (
        ModelArguments,
        DataArguments,
        AugmentationArguments,
        TuningArguments,
        TrainingArguments,
        CrossValidationArguments,
    ),
    "evaluation": (EvaluationDataArguments, EvaluationArguments),
    "mspm": (EncoderArguments, UnlabelledDataArguments, MspmTrainingArguments),
    "asit": (EncoderArguments, UnlabelledDataArguments, AsitTrainingArguments),
    "sweep": (EncoderArguments, DataArguments, SweepArguments),
    "probe": (ModelArguments, DataArguments, ProbeArguments),
}


def parse(argv: list[str]) -> tuple:
    """
    `RECIPE.yaml [--key value ...]` -> the task's name and one object per class of its `ARGUMENT_CLASSES`. The recipe
    may be the `results.json` of a run.

    Raises:
        InputError: no recipe, an unknown key (with the nearest known one), or a value of the wrong kind.
    """
    asks_for_help = bool({"-h", "--help"} & set(argv))
    if not asks_for_help and (not argv or argv[0].startswith("-")):
        raise InputError("usage: train_hf.py RECIPE.yaml [--key value ...]")
    recipe = _read_recipe(Path(argv[0])) if argv and not argv[0].startswith("-") else {}
    results = recipe if reproduction.is_results(recipe) else None
    task = _find_task(recipe if results is None else results["recipe"], argv[1:])
    classes = (TaskArguments, *ARGUMENT_CLASSES[task])
    usage = "train_hf.py RECIPE [--key value ...]"
    if asks_for_help:
        show_help(
            classes, usage, f"These are the keys of task {task}; --task NAME --help lists those of {', '.join(TASKS)}."
        )
    if results is None:
        arguments, *parts = parse_words(classes, argv[1:], usage, argv[0], recipe)
        return arguments.task, *parts
    stored = _stored_recipe(argv[0], results, classes)
    _, *parts = parse_words(classes, argv[1:], usage, argv[0], defaults=stored)
    reproduction.warn_of_differences(argv[0], results, {"versions": reproduction.versions()})
    for part in parts:
        if isinstance(part, TrainingArguments):
            part.reproduces = (argv[0], results)
    return task, *parts


def _stored_recipe(path: str, results: dict, classes: tuple[type, ...]) -> dict:
    """What the recipe of a `results.json` sets."""
    known = {f.name for cls in classes for f in dataclasses.fields(cls) if f.init}
    training = next((cls for cls in classes if issubclass(cls, TrainingArguments)), None)
    return reproduction.recipe_of(results, path, known, {} if training is None else training().to_dict())


def show_help(classes: tuple[type, ...], usage: str, note: str = ""):
    """Prints every key of the classes with its help, and ends the program."""
    HfArgumentParser(classes, usage=usage).print_help()
    print(f"\n{note}" if note else "")
    sys.exit(0)


def parse_words(
    classes: tuple[type, ...],
    words: list[str],
    usage: str,
    source: str,
    recipe: dict | None = None,
    defaults: dict | None = None,
) -> tuple:
    """
    `--key value ...` -> one object per class.

    Args:
        source: what to name where a value is wrong
        recipe: values that the words override
        defaults: the same, of the types that the fields have

    Raises:
        InputError: an unknown key (with the nearest known one), or a value of the wrong kind.
    """
    parser = HfArgumentParser(classes, allow_abbrev=False, usage=usage)
    parser.error = _raise_input_error
    known = {f.name for cls in classes for f in dataclasses.fields(cls) if f.init}
    for flag in (word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")):
        _check_known(flag.removeprefix("no_") if flag not in known else flag, known, "command line")
    parser.set_defaults(**(defaults or {}))
    words = [*_recipe_words(source, recipe or {}, known), *words]
    try:
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error


def check_output_folder(arguments: TrainingArguments) -> str | None:
    """
    The checkpoint to resume from, or `None` for a new run.

    Raises:
        InputError: the folder holds a run, and neither resume_from_checkpoint nor overwrite is set.
    """
    if not arguments.output_dir:
        raise InputError("output_dir: is not set; name the folder that the run writes to")
    folder = Path(arguments.output_dir)
    resume = arguments.resume_from_checkpoint
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    if resume and str(resume).lower() not in ("true", "false"):
        if not Path(resume).is_dir():
            raise InputError(f"resume_from_checkpoint: {resume} is no folder; name a checkpoint-N folder, or true")
        return str(resume)
    if resume and str(resume).lower() == "true":
        if last is None and (folder / "results.json").exists():
            raise InputError(f"{folder}: holds a finished run without checkpoints; set overwrite to begin anew")
        return last  # a run that was stopped before its first checkpoint begins anew
    if not arguments.overwrite and (last or (folder / "results.json").exists()):
        raise InputError(
            f"{folder}: holds a run already; add --resume_from_checkpoint true to go on with it, --overwrite true to "
            "begin anew, or choose another output_dir"
        )
    return None


def _read_recipe(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path}: no such recipe; recipes/ holds examples")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML or JSON ({' '.join(str(error).split())})") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected key: value lines, got {type(recipe).__name__}")
    return recipe


def _find_task(recipe: dict, command_line: list[str]) -> str:
    """The task decides which keys there are: the command line's, else the recipe's."""
    task = recipe.get("task") or TaskArguments().task
    for word, following in zip(command_line, [*command_line[1:], ""]):
        if word == "--task" or word.startswith("--task="):
            task = following if word == "--task" else word.split("=", 1)[1]
    return TaskArguments(str(task)).task


def _recipe_words(path: str, recipe: dict, known: set[str]) -> list[str]:
    """A recipe as command-line words: `1e-4` is a text to YAML, and argparse knows the type of every field."""
    words = []
    for key, value in recipe.items():
        _check_known(str(key), known, path)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return words


def _check_known(key: str, known: set[str], where: str):
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; --help lists all keys"
        raise InputError(f"{where}: unknown key {key}{hint}")


def _raise_input_error(message: str):
    raise InputError(message)


def _read_sweep(folder: Path) -> dict:
    """The best configuration that a sweep has found, as fields of `ModelArguments`."""
    path = folder / "best.json"
    if not path.is_file():
        raise InputError(f"from_sweep: {path} does not exist; name the output folder of a finished sweep")
    return json.loads(path.read_text(encoding="utf-8"))["model"]


def _as_dict(name: str, value) -> dict:
    try:
        value = json.loads(value) if isinstance(value, str) else value or {}
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a mapping, got {value!r}")
    return value
