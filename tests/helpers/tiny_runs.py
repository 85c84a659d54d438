"""Provides recipes that train in seconds, and runs the task classification in this process."""

import json
import os
from pathlib import Path

from training import tasks
from training.classification import train as classification

TINY = {
    "config_overrides": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "max_length": 32,
    "mean": -6.0,
    "std": 4.0,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "disable_tqdm": True,
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
    "seed": 1,
}
# A detector that learns the tones of `annotated_tones`.
TINY_DETECTION = {
    "task": "detection",
    "config_overrides": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "max_length": 100,
    "frequency_stride": 16,
    "time_stride": 4,
    "compute_statistics": True,
    "crops_per_epoch": 32,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "disable_tqdm": True,
    "validation_fraction": 0.25,
    "test_fraction": 0.25,
    "seed": 1,
}


def write_recipe(folder: Path, values: dict, name: str = "run") -> tuple[str, Path]:
    """Writes the recipe of a run that has a name, and returns its path and the output folder."""
    path, output = folder / f"{name}.json", folder / name
    path.write_text(json.dumps({"output_dir": output, **values}, default=os.fspath))
    return str(path), output


def train(path: str, *words: str):
    classification.run(*tasks.parse([path, *words])[1:])
