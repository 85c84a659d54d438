"""The command line: `python -m hub COMMAND ...`."""

import argparse
import sys

from . import push, space
from .push import PushError

# Each has `add_parser(subparsers)`, which names its `run(args)`.
COMMANDS = (push, space)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hub", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except PushError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
