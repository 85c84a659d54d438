"""Arguments of the tasks sweep and probe."""

from dataclasses import dataclass, field

from ..errors import InputError
from ..recipe import described


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
    figure_format: str = field(
        default="png",
        metadata={"help": "Also write the figures as pdf or svg.", "choices": ("png", "pdf", "svg")},
    )

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
