"""Defines the options of the tasks mspm and asit."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..base.arguments import MOST_EPOCHS, SCHEDULES, TrainingArguments
from ..errors import InputError
from ..recipe import described

NO_PLATEAU = (
    "lr_scheduler_type: reduce_lr_on_plateau watches the evaluations, of which there are none; evaluate, or choose "
    "another one, such as constant_with_warmup"
)
NO_EFFECT = "has no effect on this pretraining; leave it out"


@dataclass
class PretrainingArguments(TrainingArguments):
    """Sets up a pretraining, counted in steps: streams have no epochs, so an epoch is `epoch_steps` long."""

    # The published methods prescribe their optimisers.
    refused: ClassVar[dict[str, str]] = {
        **TrainingArguments.refused,
        "data_seed": "has no effect here, for seed decides the order too; leave it out",
        **dict.fromkeys(("optim", "optim_args", "auto_find_batch_size"), NO_EFFECT),
        "features_on_device": "a pretraining makes its features in the workers; leave it out",
    }

    epoch_steps: int | None = described(
        None, "Steps that count as an epoch; unset: as many as the local clips fill.", at_least=1
    )
    eval_strategy: str = described("steps", "Time of the evaluations.", choices=("no", "steps"))
    save_strategy: str = described("steps", "Time of the checkpoints.", choices=("no", "steps"))
    logging_strategy: str = described("steps", "Time of the log lines.", choices=("no", "steps"))
    eval_steps: float | None = described(None, "Steps between evaluations; unset: an epoch.", above=0)
    save_steps: float | None = described(None, "Steps between checkpoints; unset: an epoch.", above=0)
    logging_steps: float | None = described(None, "Steps between log lines; unset: a tenth of an epoch.", above=0)
    load_best_model_at_end: bool = described(False, "Keep the best evaluation's weights instead of the last.")
    ddp_find_unused_parameters: bool | None = False  # every parameter is used
    picture_clips: int = described(
        4, "Validation clips whose reconstruction is drawn at every evaluation.", at_least=0, group="report"
    )

    health_clips: int = described(
        64,
        "Clips on which the features of every layer are measured: of validation, else of the training; 0: none.",
        at_least=0,
        group="report",
    )
    health_steps: int | None = described(
        None,
        "Steps between measurements of the features; unset: eval_steps, or an epoch without evaluations.",
        at_least=1,
        group="report",
    )
    stop_on_collapse: bool = described(
        False, "Stop, with a checkpoint, when the features collapse, instead of a warning alone."
    )
    probe_steps: int | None = described(
        None,
        "Steps between scores on probe_dataset; unset: eval_steps, or an epoch without evaluations.",
        at_least=1,
        group="report",
    )
    html_report: bool = described(True, "Write report.html, a page about the run.", group="report")

    open_steps: list[str] = field(
        default_factory=list, init=False, repr=False
    )  # the numbers that are not set in the recipe

    def __post_init__(self):
        self.keep_given()
        self.ignore_data_skip = True  # the stream itself skips to where a run resumes
        if self.load_best_model_at_end:  # every evaluated step must be saved
            self.eval_steps, self.save_steps = self.eval_steps or self.save_steps, self.save_steps or self.eval_steps
        # Transformers requires numbers; the task replaces the unset ones when the length of an epoch is known.
        self.open_steps = [
            name for name in ("eval_steps", "save_steps", "logging_steps") if getattr(self, name) is None
        ]
        for name in self.open_steps:
            setattr(self, name, 1)
        if self.eval_strategy == "no" and self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise InputError(NO_PLATEAU)
        if self.stop_on_collapse and not self.health_clips:
            raise InputError("stop_on_collapse: needs measurements, but health_clips is 0; set it, such as 64")
        super().__post_init__()


@dataclass
class MspmTrainingArguments(PretrainingArguments):
    """Sets up SSAST's pretraining: Adam, a warm-up of 1000 steps, half the rate when the pretext accuracy stalls."""

    per_device_train_batch_size: int = described(24, "Clips per process and step.", at_least=1)
    num_train_epochs: float = described(10.0, "Epochs, of epoch_steps each.", above=0, at_most=MOST_EPOCHS)
    learning_rate: float = described(1e-4, "Highest learning rate.", at_least=0)
    lr_scheduler_type: str = described("reduce_lr_on_plateau", "Schedule of the learning rate.", choices=SCHEDULES)
    lr_patience: int = described(
        2, "Evaluations in a row without a better accuracy that keep the rate; the next one halves it.", at_least=0
    )
    warmup_steps: float = described(1000, "Steps over which the learning rate rises; below 1: their share.", at_least=0)
    weight_decay: float = described(5e-7, "L2 penalty, added to the gradient as Adam does.", at_least=0)
    adam_beta1: float = described(0.95, "Adam's beta1.", at_least=0, below=1)
    max_grad_norm: float = described(0.0, "Largest norm of the gradient; 0: not clipped.", at_least=0)


@dataclass
class AsitTrainingArguments(PretrainingArguments):
    """Sets up ASiT's pretraining: AdamW with cosine schedules of learning rate, weight decay and teacher momentum."""

    refused: ClassVar[dict[str, str]] = PretrainingArguments.refused | dict.fromkeys(
        ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "lr_decay", "lr_decay_start", "lr_decay_every"),
        NO_EFFECT,
    )

    per_device_train_batch_size: int = described(32, "Clips per process and step.", at_least=1)
    num_train_epochs: float = described(100.0, "Epochs, of epoch_steps each.", above=0, at_most=MOST_EPOCHS)
    learning_rate: float = described(
        5e-4, "Highest learning rate at 256 clips per step; scaled with the clips per step.", above=0
    )
    min_learning_rate: float = described(1e-6, "Learning rate at the end.", at_least=0)
    warmup_epochs: int = described(10, "Epochs over which the learning rate rises.", at_least=0)
    weight_decay: float = described(0.04, "Weight decay at the beginning.", at_least=0)
    final_weight_decay: float = described(0.4, "Weight decay at the end.", at_least=0)
    max_grad_norm: float = described(0.0, "Largest norm of the whole gradient; 0: not clipped.", at_least=0)
    max_parameter_grad_norm: float = described(
        3.0, "Largest norm of each parameter's gradient; 0: not clipped.", at_least=0
    )
    freeze_last_layer_epochs: int = described(0, "Epochs in which the heads' last layers are frozen.", at_least=0)
