"""Provides a recipe that trains in a second, and runs the task classification in this process."""

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


def train(path: str, *words: str):
    classification.run(*tasks.parse([path, *words])[1:])
