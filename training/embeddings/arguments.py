"""Defines the options of the tasks sweep and probe."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from ..recipe import Arguments, default_of, described, options

HEADS = ("linear", "mlp", "attentive", "multilayer_attentive", "prototypes", "gated")  # of `heads.METHODS`
UNTRAINED = ("neighbours", "few_shot")
CHOICES = ("best", "one_standard_error")  # rules of `choice.choose`


@dataclass
class FrozenEncoderArguments(Arguments):
    """Sets how a frozen encoder encodes the clips, and the output folder."""

    group: ClassVar[str] = "training"
    written_folders: ClassVar[tuple[str, ...]] = ()  # in output_dir; a run must not read what lies in them

    shard_clips: int = described(128, "Clips per file of stored representations.", at_least=1)
    per_device_eval_batch_size: int = described(16, "Clips per encoder pass.", at_least=1)
    dataloader_num_workers: int = described(0, "Threads that decode; 0: the main thread itself.", at_least=0)
    output_dir: str | None = described(None, "Folder to write to.", group="report")
    overwrite: bool = described(False, "Begin anew in an output folder that holds an earlier run.", group="report")

    def __post_init__(self):
        super().__post_init__()
        if not self.output_dir:
            raise InputError("output_dir: is not set; name the folder to write to")


@dataclass
class SweepArguments(FrozenEncoderArguments):
    """Sets up the search for layers and poolings of an encoder."""

    written_folders: ClassVar[tuple[str, ...]] = ("representations",)

    readouts: list[str] | None = described(
        None, "Some of patches, prefix, frames (CNN: composed); unset: all of the model."
    )
    ridge: list[float] = described(
        [0.1], "L2 penalty per feature; if several, the one with the best mean score.", above=0
    )
    num_folds: int = described(
        5, "Folds of the cross-validation, where the data set has none of its own (fold_column).", at_least=2
    )
    num_repeats: int = described(1, "Cross-validations, each with folds of its own.", at_least=1)
    unlabelled: bool = described(
        False, "Rank layers by the geometry of their features alone; dataset_name or train_file needs no labels."
    )
    nested: bool = described(
        True, "Also score the whole choice on clips that take no part in it (nested cross-validation)."
    )
    choice: str = described(
        "best",
        "Candidate for the fine-tuning: best; or one_standard_error, the simplest one within one standard error of it.",
        choices=CHOICES,
    )
    max_clips: int = described(
        1000, "Clips to score with; larger data sets are sampled with the same shares of the classes.", at_least=10
    )
    storage_dtype: str = described(
        "float32", "Number format of the stored representations.", choices=("float32", "float16")
    )
    seed: int = described(0, "Random seed of the folds.", at_least=0)
    figure_format: str = described(
        "png", "Format in which figures are written too, for papers.", choices=("png", "pdf", "svg"), group="report"
    )


# What EVAR's lineareval.py and its classifier set; the rest of its rules is in evar.py.
EVAR = {
    "methods": ["linear"], "learning_rates": [3e-4], "num_epochs": 200, "patience": 20, "batch_size": 200, "seed": 42,
    "num_seeds": 3,
}  # fmt: skip


@dataclass
class ProbeArguments(FrozenEncoderArguments):
    """Sets up the evaluation of a frozen encoder: trained heads, neighbours, few labels."""

    written_folders: ClassVar[tuple[str, ...]] = ("model", "embeddings")

    protocol: str = described(
        "tuned",
        "Rules: tuned, heads with the best of several learning rates; or evar, EVAR's linear layer to the letter.",
        choices=("tuned", "evar"),
    )
    clip_s: float | None = described(
        None, "Seconds to which evar cuts clips or pads them with zeros; unset: clips as they are.", above=0
    )
    methods: list[str] = described(
        ["linear", "neighbours", "few_shot"],
        "Heads to train, and evaluations without training, all from one encoding of the clips.",
        choices=(*HEADS, *UNTRAINED),
    )
    learning_rates: list[float] = described(
        [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "Learning rates of every head, to choose from.", above=0
    )
    weight_decays: list[float] = described(
        [0.0], "Weight decays of every head (AdamW), to choose from with each learning rate.", at_least=0
    )
    num_seeds: int = described(3, "Heads of each method, each with its own seed; and draws of few labels.", at_least=1)
    num_epochs: int = described(200, "Most epochs of a head.", at_least=1)
    patience: int = described(20, "Epochs without a better validation score after which a head stops.", at_least=1)
    batch_size: int = described(256, "Clips per step of a head.", at_least=1)
    max_feature_gb: float = described(
        8.0, "Most gigabytes of stored tokens, on the disk and in memory, which some heads read.", above=0
    )
    neighbours: list[int] = described([1, 5, 10, 20], "Numbers of neighbours to choose from.", at_least=1)
    few_shot: list[int] = described([1, 5, 10], "Labelled clips per class.", at_least=1)
    seed: int = described(0, "First random seed.", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        for name in ("methods", "learning_rates", "weight_decays", "neighbours", "few_shot"):
            setattr(self, name, list(dict.fromkeys(getattr(self, name))))  # a repeat is no run of its own
        if self.protocol != "evar":
            if self.clip_s is not None:
                raise InputError("clip_s: has an effect with protocol evar alone; leave it out")
            return
        if self.weight_decays != [0.0]:
            raise InputError("weight_decays: the protocol evar has a weight decay of its own; leave it out")
        defaults = {option.name: default_of(option) for option in options(ProbeArguments)}
        for name, value in EVAR.items():
            if getattr(self, name) not in (value, defaults[name]):
                raise InputError(f"{name}: is {value} in the protocol evar, got {getattr(self, name)}; leave it out")
            setattr(self, name, value)
