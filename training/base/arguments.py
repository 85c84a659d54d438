"""Arguments of every encoder and every training."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import transformers
from transformers.integrations import get_available_reporting_integrations

from ..errors import InputError
from ..recipe import described


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
    figure_format: str = described("png", "png; or pdf or svg: every figure is written in that format too, for papers.")
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
