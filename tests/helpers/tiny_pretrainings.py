"""Holds the recipes of tiny pretrainings, and runs them in this process."""

from training import tasks
from training.pretraining import asit, mspm

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
HEADS = {
    "class_dim": 12,
    "data_dim": 8,
    "head_hidden_size": 16,
    "head_bottleneck_size": 8,
    "reconstruction_hidden_size": 16,
    "reconstruction_bottleneck_size": 8,
}
COMMON = {
    "max_length": 48,
    "mean": -6.0,
    "std": 4.0,
    "per_device_train_batch_size": 4,
    "max_steps": 6,
    "eval_steps": 3,
    "save_steps": 3,
    "logging_steps": 1,
    "validation_clips": 4,
    "picture_clips": 2,
    "disable_tqdm": True,
    "seed": 1,
}
OWN = {
    "mspm": {"config_overrides": SIZES, "learning_rate": 1e-2, "warmup_steps": 3},
    "asit": {"config_overrides": SIZES | HEADS, "learning_rate": 0.5, "warmup_epochs": 1},
}
TASKS = {"mspm": mspm, "asit": asit}


def train(path: str, *words: str):
    task, *parts = tasks.parse([path, *words])
    TASKS[task].run(*parts)
