"""Runs the command line: `python -m conversion FAMILY SRC OUT [options]`, `export-ssast` and `build-official`."""

import argparse
import sys
from pathlib import Path

from transformers.utils import logging

from training.console import ArgumentParser, run_program
from training.errors import InputError

from . import export_ssast, hf_ast, official, saving
from .catalogue import recognise, recognise_port
from .families import FAMILIES
from .options import Options
from .result import Converted

DESCRIPTION = "Converts an original checkpoint into a folder that from_pretrained loads, with its code."
EXPORT = "export-ssast"
COMMANDS = {
    EXPORT: "the way back: a saved folder -> a .pth file that the SSAST (or Dual SSAST) repository loads",
    official.NAME: "converts the published checkpoints that lie in a folder, with their cards",
}
KEPT = "what is finished is kept, nothing is half written: give the same command again"

Facts = list[tuple[str, str]]  # printed lines: a word and the rest of its line


def make_parser() -> ArgumentParser:
    sources = {family.name: family.source for family in FAMILIES.values()}
    parser = ArgumentParser(
        prog="python -m conversion",
        description=DESCRIPTION,
        epilog=f"families:\n{list_names(sources)}\n\nother commands:\n{list_names(COMMANDS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="family", metavar="FAMILY", required=True, help="a name of those below")
    for family in FAMILIES.values():
        sub = subparsers.add_parser(family.name, description=family.source)
        sub.add_argument("source", metavar="SRC", type=Path, help=family.source)
        sub.add_argument("target", metavar="OUT", type=Path, help="the folder to write")
        for name, keywords in family.options.items():
            sub.add_argument(f"--{name.replace('_', '-')}", **keywords)
        sub.add_argument("--verify", action="store_true", help="read the result back and compare every tensor")
        sub.add_argument("--overwrite", action="store_true", help="replace OUT once the new folder is complete")
        sub.set_defaults(run=convert)
    add_export(subparsers)
    official.add_parser(subparsers, COMMANDS[official.NAME])
    return parser


def list_names(texts: dict[str, str]) -> str:
    return "\n".join(f"  {name:<15} {text}" for name, text in texts.items())


def add_export(subparsers):
    sub = subparsers.add_parser(EXPORT, description=COMMANDS[EXPORT])
    sub.add_argument("source", metavar="SRC", help="a saved folder, or the name of a Hub repository")
    sub.add_argument("target", metavar="OUT", type=Path, help="the .pth file to write")
    sub.add_argument("--verify", action="store_true", help="read the file back and compare every tensor")
    sub.add_argument("--overwrite", action="store_true", help="replace OUT once the new file is complete")
    sub.set_defaults(run=export)


def describe(converted: Converted, source: Path, target: Path, verified: tuple[int, float] | None) -> Facts:
    model_class = type(converted.model)
    lines = [
        ("source", str(source)),
        ("holds", converted.title),
        *converted.facts,
        *(("note", note) for note in converted.notes),
        *(("dropped", f"{names}: {reason}") for names, reason in converted.dropped),
        *(("new", note) for note in converted.new),
    ]
    if verified:
        lines.append(("verified", f"{verified[0]} tensors read back, largest difference {verified[1]:g}"))
    load = f"transformers.{model_class._auto_class}.from_pretrained({str(target)!r}, trust_remote_code=True)"
    return [*lines, ("saved", f"{target} ({model_class.__name__})"), ("load", load)]


def convert(args: argparse.Namespace) -> int:
    saving.check_target(args.source, args.target, args.overwrite)
    family = FAMILIES[args.family]
    converted = family.convert(args.source, Options(**{name: getattr(args, name) for name in family.options}))
    found = converted.model.config, converted.feature_extractor
    origin = recognise(args.family, args.source, *found)
    port_of = recognise_port(args.source, *found) if args.family == hf_ast.FAMILY.name else None
    verified = saving.save(converted, args.target, args.verify, source=args.source, origin=origin, port_of=port_of)
    return print_facts(describe(converted, args.source, args.target, verified))


def export(args: argparse.Namespace) -> int:
    return print_facts(export_ssast.export(args.source, args.target, args.verify, args.overwrite))


def print_facts(facts: Facts) -> int:
    print("\n".join(f"{word:<9} {text}" for word, text in facts))
    return 0


def main(argv: list[str] | None = None) -> int:
    """
    Runs a command; returns the exit status: 0, 1 with one line on stderr, or 130 after Ctrl-C. Wrong options exit with
    2 through argparse.
    """
    # All checks, also those of the configuration, raise ValueError.
    return run_program(program, sys.argv[1:] if argv is None else argv, KEPT, errors=(ValueError, OSError, InputError))


def program(argv: list[str]) -> int:
    args = make_parser().parse_args(argv)
    logging.disable_progress_bar()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
