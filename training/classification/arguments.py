"""Arguments of the tasks classification, cross_validation and evaluation."""

from dataclasses import dataclass

from ..errors import InputError
from ..recipe import described


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
    figure_format: str = described("png", "png; or pdf or svg: every figure is written in that format too, for papers.")

    def __post_init__(self):
        if not self.output_dir:
            raise InputError("output_dir: is not set; name the folder to write to")
        for name in ("per_device_eval_batch_size", "dataloader_num_workers", "report_clips"):
            lowest = 1 if name == "per_device_eval_batch_size" else 0
            if getattr(self, name) < lowest:
                kind = "positive" if lowest else "0 or more"
                raise InputError(f"{name}: must be {kind}, got {getattr(self, name)}")
