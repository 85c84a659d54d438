"""Arguments of the tasks mspm and asit."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from ..base.arguments import TrainingArguments
from ..errors import InputError
from ..recipe import described

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
        fields = {f.name: f for f in dataclasses.fields(self)}
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
