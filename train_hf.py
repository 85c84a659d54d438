"""
Trains and reports: `accelerate launch train_hf.py recipes/quickstart.yaml [--key value ...]`. The `results.json` of a
run, as the recipe, repeats it.
"""

import sys

import torch

from training import tasks
from training.errors import InputError, one_line


def main(argv: list[str]) -> int:
    try:
        task, *parts = tasks.parse(argv)
        tasks.TASKS[task].run(*parts)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # a thread that is left running can abort the process as it ends
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
