"""Defines the record of a finished training or evaluation, from which its outputs are written."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig
from transformers.trainer_utils import PredictionOutput

from ..data.dataset import ClipDataset
from ..data.labels import LabelSet
from .arguments import ClassificationTrainingArguments, EvaluationArguments


@dataclass
class FinishedRun:
    """
    Records a finished training or evaluation.

    datasets: split -> clips
    outcomes: split -> logits (clips, labels), targets and metrics; the last split is the reported one
    recipe: argument class -> its values
    """

    model: torch.nn.Module
    extractor: object
    arguments: ClassificationTrainingArguments | EvaluationArguments
    datasets: dict[str, ClipDataset]
    labels: LabelSet
    outcomes: dict[str, PredictionOutput]
    recipe: dict

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def folder(self) -> Path:
        return Path(self.arguments.output_dir)

    @property
    def figure_format(self) -> str:
        return self.arguments.figure_format

    @property
    def split(self) -> str | None:
        """Returns the reported split; `None` if no clips were held out."""
        return list(self.outcomes)[-1] if self.outcomes else None

    @property
    def data(self) -> dict:
        """Returns the values of the recipe's `DataArguments` or `EvaluationDataArguments`."""
        return next(part for part in self.recipe.values() if "dataset_name" in part)

    @property
    def data_name(self) -> str:
        """Returns the name of the data set: that of its folder, or of the folder of its table."""
        data = self.data
        return Path(data["dataset_name"] or Path(data.get("train_file") or data["test_file"]).parent).resolve().name

    @property
    def num_parameters(self) -> int:
        return self.model.num_parameters()
