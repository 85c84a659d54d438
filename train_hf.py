"""Trains and reports: `accelerate launch train_hf.py recipes/quickstart.yaml [--key value ...]`."""

import sys

from training import arguments, classification
from training.errors import InputError, one_line

TASKS = {"classification": classification.run}


def main() -> int:
    try:
        parsed = arguments.parse(sys.argv[1:])
        TASKS[parsed[0].task](*parsed)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
