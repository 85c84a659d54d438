"""Defines the options of every encoder and every training."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import transformers
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging

from modeling_dual_ssast.configuration_dual_ssast import (
    CLASSIFIERS,
    FUSION_NORMS,
    FUSIONS,
    POOLING_COMBINATIONS,
    POOLINGS,
    PUBLISHED_MLP_LAYERS,
)

from ..errors import InputError, blamed, short
from ..recipe import Arguments, check_limits, default_of, described
from .number_formats import is_emulated

logger = logging.get_logger(__name__)
STRATEGIES = ("no", "steps", "epoch")
SCHEDULES = tuple(kind.value for kind in SchedulerType)
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flex_attention")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
MOST_EPOCHS = 1_000_000
# Options that a run sets by others, by its clips and by its machine.
DERIVED = (
    "max_steps", "epoch_steps", "eval_strategy", "save_strategy", "logging_strategy", "eval_steps", "save_steps",
    "logging_steps", "eval_on_start", "load_best_model_at_end", "ignore_data_skip", "use_cpu",
)  # fmt: skip
TRUTH_OF_YAML = {"yes": "true", "on": "true", "no": "false", "off": "false"}  # texts in a recipe stay as written
# Set by `accelerate launch`.
LAUNCHED_FORMAT, LAUNCHED_DEEPSPEED = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED"
# Reasons why Trainer's options are refused.
FOR_TEXTS = "has no effect on recordings; leave it out"
DEFAULT_NEEDED = "the evaluation here needs its default; leave it out"
CHECKPOINTING = {"use_reentrant", "preserve_rng_state", "determinism_check", "early_stop"}  # of torch.utils.checkpoint
# Fields of a configuration that follow from the data or the checkpoint.
FOLLOWING = {
    "num_labels", "id2label", "label2id", "problem_type", "model_type", "architectures", "auto_map", "dtype",
    "torch_dtype",
}  # fmt: skip


@dataclass
class EncoderArguments(Arguments):
    """Names a checkpoint and the changes of its configuration. Unset fields keep the checkpoint's value."""

    group: ClassVar[str] = "model"

    model_name_or_path: str | None = described(None, "Folder or Hub name of a checkpoint; unset: random weights.")
    model_revision: str = described("main", "Branch, tag or commit of a checkpoint on the Hub.")
    config_overrides: dict | str | None = described(None, "Fields of the configuration as JSON, such as hidden_size.")
    max_length: int | None = described(
        None, "Most frames (10 ms) per clip; positions are resized by SSAST's rule.", at_least=1
    )
    attn_implementation: str | None = described(
        None, "Attention; unset: the fastest that is installed.", choices=ATTENTIONS
    )

    def __post_init__(self):
        super().__post_init__()
        self.config_overrides = _as_dict("config_overrides", self.config_overrides)
        for name in sorted(self.config_overrides.keys() & FOLLOWING):
            raise InputError(f"config_overrides: {name} follows from the data or the checkpoint; leave it out")

    def overrides(self) -> dict:
        """Returns the configuration fields that the recipe sets."""
        others = ("model_name_or_path", "model_revision", "config_overrides", "from_sweep")
        fields = (f.name for f in dataclasses.fields(self) if f.name not in others)
        return {
            **self.config_overrides,
            **{name: value for name in fields if (value := getattr(self, name)) is not None},
        }


@dataclass
class ModelArguments(EncoderArguments):
    """Describes a classifier: the encoder's options, and those of fusion and classifier."""

    from_sweep: str | None = described(
        None, "Folder of a sweep: its encoder, and the best layers and poolings, where they are unset."
    )
    fusion_layers: list[int] | None = described(None, "Hidden states to fuse: 0 the embedding, -1 the last block.")
    fusion_norm: str | None = described(None, "Layer norm of the fused states.", choices=FUSION_NORMS)
    readout: str | None = described(
        None, "Tokens to pool: patches, prefix, frames, or tokens (PretrainedSED's ASiT); of CNN14 composed or panns."
    )
    pooling: list[str] | None = described(
        None, f"Statistics over the tokens: some of {', '.join(POOLINGS)}; or one list per layer, as JSON."
    )
    pooling_combination: str | None = described(None, "Combination of several poolings.", choices=POOLING_COMBINATIONS)
    num_pooling_heads: int | None = described(None, "Queries of the pooling attention.", at_least=1)
    fusion: str | None = described(None, "Combination of several layers.", choices=FUSIONS)
    classifier: str | None = described(
        None, "Classifier: linear, on the pooled vector, or prototypes, on the tokens.", choices=CLASSIFIERS
    )
    prototypes_per_class: int | None = described(None, "Prototypes of each class.", at_least=1)
    binary_prototypes: bool | None = described(None, "Make prototypes of -1 and +1 alone.")
    classifier_hidden_sizes: list[int] | None = described(
        None, "Sizes of the classifier's hidden layers; unset: a linear classifier.", at_least=1
    )
    mlp_layers: int | None = described(
        None, "Classifier of the published Dual SSAST: its number of layers.", choices=PUBLISHED_MLP_LAYERS
    )
    classifier_dropout: float | None = described(None, "Dropout rate in the classifier.", at_least=0, below=1)
    label_smoothing: float | None = described(None, "Label smoothing of the cross-entropy.", at_least=0, below=1)
    frequency_stride: int | None = described(None, "Patch stride in mel bins; positions are resized.", at_least=1)
    time_stride: int | None = described(None, "Patch stride in frames (10 ms); positions are resized.", at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.pooling and self.pooling[0].startswith("["):
            with blamed(f"pooling: {short(' '.join(self.pooling))}", "give names, or one list per layer as JSON"):
                self.pooling = [json.loads(entry) for entry in self.pooling]
        if self.from_sweep:
            self._take_from_sweep(_read_sweep(Path(self.from_sweep))["model"])

    def _take_from_sweep(self, chosen: dict):
        unset = {option.name: default_of(option) for option in dataclasses.fields(self)}
        given = {name: getattr(self, name) for name in chosen if getattr(self, name) not in (unset[name], {})}
        if given.get("model_name_or_path", chosen["model_name_or_path"]) != chosen["model_name_or_path"]:
            chosen.pop("model_revision", None)  # of another model
        own = {name: given[name] for name in chosen if name in given and given[name] != chosen[name]}
        for name in chosen.keys() - own.keys():
            setattr(self, name, chosen[name])
        if own and os.environ.get("RANK", "0") == "0":
            shown = ", ".join(f"{name} {short(json.dumps(value))}" for name, value in own.items())
            others = ", ".join(short(json.dumps(chosen[name])) for name in own)
            logger.warning(
                f"from_sweep: recipe or command line set {shown}; the sweep has chosen {others}, which is not taken; "
                f"{' '.join(f'--{name} null' for name in own)} takes it"
            )

    def divide_like_sweep(self, data):
        """Makes `data` (`FrozenDataArguments`) set the same clips aside as the sweep: it has chosen with the others."""
        if self.from_sweep and data.split_seed is None:
            data.split_seed = _read_sweep(Path(self.from_sweep)).get("split_seed", 0)  # of older sweeps always 0


@dataclass
class TrainingArguments(transformers.TrainingArguments, Arguments):
    """Extends Transformers' TrainingArguments by this project's defaults and options."""

    group: ClassVar[str] = "training"
    refused: ClassVar[dict[str, str]] = {
        "label_smoothing_factor": "set label_smoothing instead, which takes mixed labels too",
        "hub_token": "does not belong in a recipe; run hf auth login, or set HF_TOKEN",  # checkpoints would contain it
        "hub_revision": "has no effect here; leave it out",
        "hub_always_push": "has no effect here; leave it out",
        "remove_unused_columns": "has no effect here; leave it out",
        "restore_callback_states_from_checkpoint": "is not needed: a resumption goes on as it was; leave it out",
        "debug": "is not needed: a loss or gradient that is not finite stops the training; leave it out",
        "logging_nan_inf_filter": "would hide a loss that is not finite, which stops a training; leave it out",
        **dict.fromkeys(
            ("neftune_noise_alpha", "use_liger_kernel", "liger_kernel_config", "use_cache", "length_column_name"),
            FOR_TEXTS,
        ),
        **dict.fromkeys(
            (
                "prediction_loss_only",
                "eval_do_concat_batches",
                "batch_eval_metrics",
                "include_for_metrics",
                "label_names",
            ),
            DEFAULT_NEEDED,
        ),
    }

    num_train_epochs: float = described(3.0, "Epochs to train.", above=0, at_most=MOST_EPOCHS)
    max_steps: int = described(-1, "Steps to train, instead of num_train_epochs where it is above 0.", at_least=-1)
    per_device_train_batch_size: int = described(8, "Clips per process and step.", at_least=1)
    per_device_eval_batch_size: int = described(8, "Clips per process and evaluation step.", at_least=1)
    gradient_accumulation_steps: int = described(1, "Batches per optimiser step.", at_least=1)
    learning_rate: float = described(5e-5, "Highest learning rate.", at_least=0)
    lr_scheduler_type: str = described("linear", "Schedule of the learning rate.", choices=SCHEDULES)
    warmup_steps: float = described(0, "Steps over which the learning rate rises; below 1: their share.", at_least=0)
    lr_decay: float | None = described(
        None,
        "Factor of a constant learning rate from the end of epoch lr_decay_start on, as in SSAST and AST.",
        above=0,
        at_most=1,
    )
    lr_decay_start: int = described(1, "Epochs with the full learning rate.", at_least=1)
    lr_decay_every: int = described(1, "Epochs between one lr_decay and the next.", at_least=1)
    weight_decay: float = described(0.0, "Weight decay of AdamW.", at_least=0)
    max_grad_norm: float = described(1.0, "Largest norm of the gradient; 0: not clipped.", at_least=0)
    epoch_steps: int | None = described(None, "Steps that count as an epoch, of streamed clips.", at_least=1)
    early_stopping_patience: int | None = described(
        None, "Evaluations without improvement after which the training stops; unset: it does not.", at_least=1
    )
    eval_strategy: str = described("epoch", "Time of the evaluations.", choices=STRATEGIES)
    save_strategy: str = described("epoch", "Time of the checkpoints.", choices=(*STRATEGIES, "best"))
    logging_strategy: str = described("epoch", "Time of the log lines.", choices=STRATEGIES)
    save_total_limit: int | None = described(2, "Checkpoints to keep; unset: all.", at_least=1)
    eval_steps: float | None = described(
        None, "Steps between evaluations; below 1: a share of all steps; unset: logging_steps.", above=0
    )
    save_steps: float = described(500, "Steps between checkpoints; below 1: a share of all steps.", above=0)
    logging_steps: float = described(500, "Steps between log lines; below 1: a share of all steps.", above=0)
    eval_delay: float = described(0, "Epochs or steps before the first evaluation.", at_least=0)
    eval_accumulation_steps: int | None = described(
        None, "Evaluation steps after which results leave the GPU; unset: all.", at_least=1
    )
    adam_beta1: float = described(0.9, "Adam's beta1.", at_least=0, below=1)
    adam_beta2: float = described(0.999, "Adam's beta2.", at_least=0, below=1)
    adam_epsilon: float = described(1e-8, "Adam's epsilon.", at_least=0)
    load_best_model_at_end: bool = described(True, "Use the weights of the best evaluation.")
    metric_for_best_model: str | None = described(None, "Metric that chooses the best evaluation; unset: the task's.")
    dataloader_num_workers: int = described(0, "Processes that decode; 0: the training process itself.", at_least=0)
    dataloader_prefetch_factor: int | None = described(
        None, "Batches that each process decodes ahead; unset: 2.", at_least=1
    )
    seed: int = described(42, "Random seed.", at_least=0)
    data_seed: int | None = described(None, "Random seed of the clips' order; unset: seed.", at_least=0)
    torch_compile_mode: str | None = described(None, "Mode of torch.compile, which it turns on.", choices=COMPILE_MODES)
    torch_empty_cache_steps: int | None = described(
        None, "Steps between two releases of the GPU's unused memory; unset: none.", at_least=1
    )
    ddp_bucket_cap_mb: int | None = described(None, "MB of gradients that processes send at once.", at_least=1)
    ddp_timeout: int = described(1800, "Seconds that a process waits for the others.", at_least=1)
    remove_unused_columns: bool = False  # its filter drops entries that `forward` does not take
    logging_nan_inf_filter: bool = False  # `AudioTrainer` stops instead
    output_dir: str | None = described(None, "Folder to write to.", group="report")
    overwrite: bool = described(False, "Begin anew in an output folder that holds a run.", group="report")
    resume_from_checkpoint: str | None = described(
        None, "Checkpoint to resume from, or true for the last one of output_dir.", group="report"
    )
    report_to: None | str | list[str] = described(  # noqa: RUF036  HfArgumentParser needs this order
        "none", "Trackers to log to: none, tensorboard, trackio, wandb, ...", group="report"
    )
    figure_format: str = described(
        "png", "Format in which figures are written too, for papers.", choices=("png", "pdf", "svg"), group="report"
    )
    license: str | None = described(
        None, "Licence of the model as the Hub spells it, such as mit, for the model card.", group="report"
    )
    language: list[str] | None = described(
        None, "Languages of the recordings, such as en fr, for the model card.", group="report"
    )
    push_to_hub: bool = described(False, "Push the finished run to the Hub.", group="report")
    hub_model_id: str | None = described(None, "Repository to push to: user/name.", group="report")
    hub_private_repo: bool | None = described(None, "Make the repository private.", group="report")
    hub_strategy: str = described(
        "end",
        "Time of the pushes: the end, or each checkpoint too, without optimiser states.",
        choices=("end", "every_save"),
        group="report",
    )

    # The recipe's value before Transformers fills it in; path and content of a recipe that is a results.json.
    chosen_metric: str | None = field(default=None, init=False, repr=False)
    chosen_direction: bool | None = field(default=None, init=False, repr=False)
    given: dict = field(default_factory=dict, init=False, repr=False)  # those of `DERIVED`
    reproduces: tuple[str, dict] | None = field(default=None, init=False, repr=False)

    def as_given(self) -> dict:
        """Returns the values for `results.json`, without what a run derives from others: a repeat derives it."""
        return self.to_dict() | self.given

    def keep_given(self):
        """Keeps the options of `DERIVED` as they are, the first time that it is called."""
        values = {name: getattr(self, name) for name in DERIVED}
        self.given = self.given or {name: getattr(value, "value", value) for name, value in values.items()}

    def __post_init__(self):
        self.keep_given()
        if isinstance(self.resume_from_checkpoint, str):
            word = self.resume_from_checkpoint
            self.resume_from_checkpoint = TRUTH_OF_YAML.get(word.lower(), word)
        check_limits(self)
        self._check_decay()
        if self.output_dir:  # else trackio invents two names, for training and evaluation
            self.run_name = self.run_name or Path(self.output_dir).name
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it two CPU processes train independently into one folder
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False
        if self.save_strategy == "best" and self.eval_strategy == "no":
            raise InputError("save_strategy: best needs evaluations; set eval_strategy, or save_strategy to epoch")
        self._check_card()
        if self.push_to_hub and (self.hub_model_id or "").count("/") != 1:
            raise InputError(
                f"hub_model_id: must be user/name, the repository to push to, got {self.hub_model_id!r}; set it, or "
                "leave out push_to_hub"
            )
        self.chosen_metric, self.chosen_direction = self.metric_for_best_model, self.greater_is_better
        self.max_steps = self.max_steps or -1  # Trainer would train for 0 steps
        self._follow_launcher()
        if self.use_cpu:
            self._check_half()
        super().__post_init__()
        if (count := super().n_gpu) > 1:
            logger.warning(
                f"{count} GPUs: this process trains on the first one; accelerate launch --multi_gpu --num_processes "
                f"{count} trains on all"
            )
        self._check_mappings()
        for name in sorted(set(self.report_to) - {"none", *get_available_reporting_integrations()}):
            raise InputError(f"report_to: {name} is unknown or not installed; install its package, or set none")

    @property
    def n_gpu(self) -> int:
        """Returns at most 1: with more, Trainer would take that many batches per step, by nn.DataParallel."""
        return min(super().n_gpu, 1)

    def _follow_launcher(self):
        """Takes the launcher's format where the recipe has none: DeepSpeed, unlike Trainer, wants both to name it."""
        launched, is_deepspeed = os.environ.get(LAUNCHED_FORMAT), os.environ.get(LAUNCHED_DEEPSPEED) == "true"
        if is_deepspeed and launched in ("bf16", "fp16") and not (self.bf16 or self.fp16):
            setattr(self, launched, True)

    def _check_half(self):
        """Refuses float16 on a CPU, and takes float32 in place of bfloat16 on one that has no instructions for it."""
        is_slow = is_emulated(torch.bfloat16, torch.device("cpu"))
        for name in ("fp16", "fp16_full_eval"):
            if getattr(self, name):
                remedy = "leave it out" if is_slow else "leave it out, or take bf16"
                raise InputError(f"{name}: needs a GPU, and there is none; {remedy}")
        is_launched = os.environ.get(LAUNCHED_FORMAT) == "bf16"  # by `accelerate launch`, which Trainer obeys
        if is_slow and (self.bf16 or self.bf16_full_eval or is_launched):
            self.bf16 = self.bf16_full_eval = False
            os.environ[LAUNCHED_FORMAT] = "no"
            logger.warning(
                "bf16: this processor has no instructions for bfloat16, and would take tens of times as long; the "
                "training is in float32"
            )

    def _check_mappings(self):
        checkpointing = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
        for name in ("lr_scheduler_kwargs", *checkpointing):
            value = getattr(self, name, None) or {}  # Transformers has read JSON
            if not isinstance(value, dict):
                raise InputError(f"{name}: must be a mapping, in JSON such as {{}}, got {short(repr(value))}")
            for key in sorted(value.keys() - CHECKPOINTING) if name in checkpointing else ():
                raise InputError(f"{name}: {key} is unknown; known are {', '.join(sorted(CHECKPOINTING))}")

    def _check_card(self):
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(
                f"license: must be a name of the Hub's list, such as apache-2.0 or cc-by-4.0, or other, got "
                f"{self.license!r}"
            )
        for name in self.language or ():
            if name != "multilingual" and not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", name):
                raise InputError(
                    f"language: must be codes such as en or swa (ISO 639), or multilingual, got {name!r}; "
                    "recipes of earlier versions hold false for Norwegian, which was no without quotes"
                )

    def _check_decay(self):
        kind = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        if self.lr_decay is not None and not kind.startswith("constant"):
            raise InputError(
                f"lr_decay: lowers a constant rate, but lr_scheduler_type is {kind}; set constant_with_warmup"
            )


@dataclass
class FineTuningArguments(TrainingArguments):
    """Adds the learning rates of what lies above an encoder."""

    head_learning_rate: float | None = described(
        None, "Learning rate of the classifier; unset: the encoder's.", at_least=0
    )
    fusion_learning_rate: float = described(
        1e-2, "Learning rate of the layers' weights where fusion is weighted or gated.", at_least=0
    )
    features_on_device: bool = described(
        False,
        "Make log-mels, masks and noise in batches on the device that trains; the workers read and augment waveforms.",
        group="data",
    )


@dataclass
class ReportArguments(Arguments):
    """Sets up the page about a run."""

    html_report: bool = described(
        True, "Write report.html, a page about the run that holds recordings of the test.", group="report"
    )
    report_clips: int = described(
        12,
        "Clips with the highest loss, or minutes with the most missed events and false alarms, to show and play in "
        "report.html.",
        at_least=0,
        group="report",
    )


@dataclass
class TrainedWeightsArguments(Arguments):
    """Selects the weights that a fine-tuning trains, and their averages."""

    group: ClassVar[str] = "training"

    freeze_layers: int = described(
        0, "Frozen blocks, counted from the input; above 0 the embedding is frozen too.", at_least=0
    )
    freeze_encoder: bool = described(False, "A linear probe: only the classifier and learned fusion are trained.")
    layer_decay: float | None = described(
        None, "Each block's learning rate over that of the next higher one (BEiT).", above=0, at_most=1
    )
    lora_rank: int | None = described(
        None, "Rank of the updates that are trained instead of the encoder (LoRA; PEFT); unset: no LoRA.", at_least=1
    )
    lora_alpha: float = described(16.0, "Scale of the updates: they are multiplied by lora_alpha / lora_rank.", above=0)
    lora_dropout: float = described(0.0, "Dropout rate before the updates.", at_least=0, below=1)
    lora_target_modules: list[str] | None = described(
        None, "Names of linear or convolutional layers; unset: q_proj and v_proj, every convolution of a CNN."
    )
    ema_decay: float | None = described(
        None, "Decay of a moving average of the weights, which is evaluated and saved, such as 0.999.", above=0, below=1
    )
    average_from_epoch: int | None = described(
        None,
        "First epoch of a mean of the weights at the ends of the epochs, which is evaluated and saved, as in PSLA.",
        at_least=1,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.freeze_encoder and self.lora_rank:
            raise InputError("lora_rank: has nothing to train where freeze_encoder is set; leave one of them out")
        if self.ema_decay and self.average_from_epoch:
            raise InputError("average_from_epoch: ema_decay is another average; leave one of them out")
        if self.lora_target_modules and not self.lora_rank:
            raise InputError("lora_target_modules: has no effect without lora_rank; set it, such as 8")


def _read_sweep(folder: Path) -> dict:
    """Reads what a sweep has chosen: `model`, the best configuration as fields of `ModelArguments`, and more."""
    path = folder / "best.json"
    with blamed(f"from_sweep: {short(str(path))}", "name the output folder of a finished sweep"):
        best = json.loads(path.read_text(encoding="utf-8"))
        return best | {"model": dict(best["model"])}


def _as_dict(name: str, value) -> dict:
    try:
        value = json.loads(value) if isinstance(value, str) else value or {}
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{name}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a mapping, got {short(repr(value))}")
    return value
