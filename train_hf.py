"""
Trains and reports: `accelerate launch train_hf.py recipes/quickstart.yaml [--key value ...]`. With the `results.json`
of a run as recipe, it repeats the run.
"""

import sys
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from training import tasks
from training.console import run_program


def main(argv: list[str]) -> int:
    return run_program(train, argv)


def train(argv: list[str]):
    """
    Runs the task of a recipe.

    Raises:
        InputError: bad input.
        KeyboardInterrupt: after Ctrl-C; the message names what is kept.
    """
    logging.disable_progress_bar()  # Transformers' bars for weights: loading takes a second
    task, *parts = tasks.parse(argv)
    try:
        tasks.TASKS[task].run(*parts)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept(parts)) from None


def kept(parts: list) -> str:
    """Returns what an interrupted run leaves, and how to go on."""
    folder = Path(next(part.output_dir for part in parts if hasattr(part, "output_dir")))
    if not any(hasattr(part, "resume_from_checkpoint") for part in parts):
        return "run the same command again"
    if (folder / "cross_validation.json").exists():
        number = len(list(folder.glob("seed-*/results.json")))
        return f"{number} finished runs in {folder} are kept; go on with --resume_from_checkpoint true"
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    if last is None:
        return f"{folder} holds no checkpoint yet; run the same command again"
    return f"{last} is kept; go on with --resume_from_checkpoint true"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
