"""Prepares a data set: `python -m training.prepare NAME --from FOLDER`. Nothing is downloaded."""

import argparse
import sys
from pathlib import Path

from ..errors import InputError, one_line
from . import DATASETS, describe, find, prepare


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.prepare", description=__doc__)
    parser.add_argument("name", nargs="?", help="the data set; alone, its description is printed")
    parser.add_argument("--from", dest="folder", type=Path, help="the folder that it was unpacked to")
    parser.add_argument("--output", type=Path, help="the folder for the manifests; prepared/NAME if unset")
    parser.add_argument("--split", default="paper", help="paper, or another one that the data set has (see --list)")
    parser.add_argument("--seed", type=int, default=0, help="of random splits")
    parser.add_argument("--list", action="store_true", help="print all data sets")
    arguments = parser.parse_args()
    try:
        if arguments.list or arguments.name is None:
            print(table())
        elif arguments.folder is None:
            print(describe(find(arguments.name)))
        else:
            output = arguments.output or Path("prepared") / arguments.name
            counts = prepare(arguments.name, arguments.folder, output, arguments.split, arguments.seed)
            print(f"{output}: " + ", ".join(f"{name}.csv with {count} clips" for name, count in counts.items()))
            paper = f"paper ({DATASETS[arguments.name].split})"
            print(f"split: {paper if arguments.split == 'paper' else arguments.split}")
            print(f"leaks: {DATASETS[arguments.name].leaks}")
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def table() -> str:
    """A line per data set."""
    header = ("name", "classes", "--split", "metric", "licence", "source")
    rows = [
        (info.name, str(info.num_classes), ", ".join(info.splits), info.metric, info.licence, info.source)
        for info in DATASETS.values()
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in (header, *rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
