"""The command line: `python -m conversion FAMILY SRC OUT [options]`, and the way back, `export-ssast`."""

import argparse
import dataclasses
import math
import sys
from pathlib import Path

from transformers.utils import logging

from modeling_dual_ssast.feature_extraction_panns_cnn14 import VARIANTS

from . import asit, export_ssast, official, saving
from .catalogue import recognise
from .families import AUTO_CLASSES, FAMILIES, GRID_HELP, LABELLED, SOURCES, STATISTICS, TASKS, TRANSFORMERS
from .options import Options
from .result import Converted

DESCRIPTION = "Converts an original checkpoint into a folder that from_pretrained loads, with its code."
EXPORT = "export-ssast"
EXPORT_HELP = "the way back: a saved folder -> a .pth file that the SSAST repository loads"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m conversion", description=DESCRIPTION, allow_abbrev=False)
    families = parser.add_subparsers(dest="family", metavar="FAMILY", required=True)
    for family, description in SOURCES.items():
        sub = families.add_parser(family, help=description, description=description, allow_abbrev=False)
        sub.add_argument("source", metavar="SRC", type=Path, help=description)
        sub.add_argument("target", metavar="OUT", type=Path, help="the folder to write")
        if family in TASKS:
            choices, explanation = TASKS[family]
            sub.add_argument("--task", choices=choices, help=explanation)
        if family == "asit":
            sub.add_argument("--weights", choices=asit.NETWORKS, help="the network to take; default: both, or teacher")
        if family in TRANSFORMERS:
            add_grid(sub, family)
        if family == "panns-cnn14":
            sub.add_argument(
                "--sampling-rate", type=int, choices=tuple(VARIANTS), help="if the file does not tell, in Hz"
            )
        if family in LABELLED:
            sub.add_argument(
                "--labels", type=Path, metavar="FILE", help="one label per line, or index,mid,display_name"
            )
        if family in TRANSFORMERS:
            add_statistics(sub, family)
        sub.add_argument("--verify", action="store_true", help="read the result back and compare every tensor")
        sub.add_argument("--overwrite", action="store_true", help="replace OUT once the new folder is complete")
    add_export(families)
    official.add_parser(families)
    return parser


def add_grid(sub: argparse.ArgumentParser, family: str):
    sub.add_argument("--max-length", type=positive_int, metavar="FRAMES", help=f"length; {GRID_HELP[family]}")
    sub.add_argument("--frequency-stride", type=positive_int, metavar="BINS", help=f"patch step; {GRID_HELP[family]}")
    sub.add_argument("--time-stride", type=positive_int, metavar="FRAMES", help=f"patch step; {GRID_HELP[family]}")


def add_statistics(sub: argparse.ArgumentParser, family: str):
    default = STATISTICS.get(family, "AudioSet's")
    sub.add_argument("--mean", type=finite, help=f"of the log-mels, for the feature extractor; default: {default}")
    sub.add_argument("--std", type=positive, help=f"of the log-mels, undoubled; default: {default}")


def add_export(families):
    sub = families.add_parser(EXPORT, help=EXPORT_HELP, description=EXPORT_HELP, allow_abbrev=False)
    sub.add_argument("source", metavar="SRC", help="a saved folder, or the name of a Hub repository")
    sub.add_argument("target", metavar="OUT", type=Path, help="the .pth file to write")
    sub.add_argument("--verify", action="store_true", help="read the file back and compare every tensor")
    sub.add_argument("--overwrite", action="store_true", help="replace OUT once the new file is complete")


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def positive(text: str) -> float:
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


Facts = list[tuple[str, str]]  # what the user has to know: a word and the rest of its line


def describe(converted: Converted, source: Path, target: Path, verified: tuple[int, float] | None) -> Facts:
    auto_class = AUTO_CLASSES.get(type(converted.model), "AutoModelForAudioClassification")
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
    return [
        *lines,
        ("saved", f"{target} ({type(converted.model).__name__})"),
        ("load", f"transformers.{auto_class}.from_pretrained({str(target)!r}, trust_remote_code=True)"),
    ]


def convert(args: argparse.Namespace) -> Facts:
    saving.check_target(args.source, args.target, args.overwrite)
    names = (field.name for field in dataclasses.fields(Options) if hasattr(args, field.name))
    options = Options(**{name: getattr(args, name) for name in names})
    converted = FAMILIES[args.family](args.source, options)
    origin = recognise(args.family, args.source, converted.model.config, converted.feature_extractor)
    verified = saving.save(converted, args.target, args.verify, source=args.source, origin=origin)
    return describe(converted, args.source, args.target, verified)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 with one line on stderr. Wrong options exit with 2 through argparse."""
    args = make_parser().parse_args(argv)
    logging.disable_progress_bar()
    try:
        if args.family == official.NAME:
            return official.run(args)
        if args.family == EXPORT:
            facts = export_ssast.export(args.source, args.target, args.verify, args.overwrite)
        else:
            facts = convert(args)
    except (ValueError, OSError) as error:  # every check here and in the configuration raises ValueError
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    print("\n".join(f"{word:<9} {text}" for word, text in facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
