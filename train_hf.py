"""Trains and reports: `accelerate launch train_hf.py recipes/quickstart.yaml [--key value ...]`."""

import sys

from training import arguments, asit, classification, mspm, probe, sweep
from training.errors import InputError, one_line

TASKS = {
    "classification": classification.run,
    "mspm": mspm.run,
    "asit": asit.run,
    "sweep": sweep.run,
    "probe": probe.run,
}


def main() -> int:
    try:
        task, *parts = arguments.parse(sys.argv[1:])
        TASKS[task](*parts)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
