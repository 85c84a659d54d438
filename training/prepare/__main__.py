"""Prepares a data set: `python -m training.prepare NAME --from FOLDER`. Nothing is downloaded."""

import sys
from pathlib import Path

from ..console import ArgumentParser, print_table, run_program
from ..errors import InputError
from ..recipe import LARGEST_WHOLE
from . import DATASETS, describe, find, prepare

COLUMNS = ("name", "classes", "--split", "metric", "licence", "source")


def program(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m training.prepare", description=__doc__)
    parser.add_argument("name", nargs="?", help="data set; alone: prints its description")
    parser.add_argument("--from", dest="folder", type=Path, help="folder that it was unpacked to")
    parser.add_argument("--output", type=Path, help="folder for the manifests; unset: prepared/NAME")
    parser.add_argument("--split", default="paper", help="split: paper, or another one of the data set (see --list)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the splits")
    parser.add_argument("--list", action="store_true", help="print all data sets")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.seed <= LARGEST_WHOLE:
        raise InputError(f"--seed: must be from 0 to {LARGEST_WHOLE}, got {arguments.seed}")
    if arguments.list or arguments.name is None:
        print_table(rows(), COLUMNS)
    elif arguments.folder is None:
        print(describe(find(arguments.name)))
    else:
        output = arguments.output or Path("prepared") / arguments.name
        counts = prepare(arguments.name, arguments.folder, output, arguments.split, arguments.seed)
        print(f"{output}: " + ", ".join(f"{name}.csv with {count} clips" for name, count in counts.items()))
        paper = f"paper ({DATASETS[arguments.name].split})"
        print(f"split: {paper if arguments.split == 'paper' else arguments.split}")
        print(f"leaks: {DATASETS[arguments.name].leaks}")


def main() -> int:
    return run_program(program, sys.argv[1:])


def rows() -> list[tuple]:
    """Returns a row per data set."""
    return [
        (info.name, info.num_classes, ", ".join(info.splits), info.metric, info.licence, info.source)
        for info in DATASETS.values()
    ]


if __name__ == "__main__":
    sys.exit(main())
