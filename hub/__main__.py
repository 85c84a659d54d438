"""Pushes finished folders and demo pages to the Hub: `python -m hub COMMAND ...`."""

import sys

from training.console import ArgumentParser, run_program

from . import push, space
from .push import PushError

COMMANDS = (push, space)  # each has `add_parser(subparsers)`, and sets `run(args)` as its default
KEPT = "the Hub has all of a commit or nothing of it: give the same command again"


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit status: 0, 1 with one line on stderr, or 130 after Ctrl-C."""
    return run_program(program, argv, KEPT, errors=(PushError,))


def program(argv: list[str]):
    parser = ArgumentParser(prog="python -m hub", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
