"""Converts the published checkpoints of the catalogue that were downloaded, and verifies them."""

import argparse
import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from hub.push import PushError, push_folder
from training.errors import InputError, one_line

from .catalogue import Published, published_name, read_catalogue
from .checkpoint import ConversionError
from .families import FAMILIES
from .options import Options
from .saving import check_target, save

LABEL_LINKS = {
    "class_labels_indices.csv": "https://github.com/YuanGongND/ast/blob/master/egs/audioset/data/class_labels_indices.csv",
    "speechcommands_class_labels_indices.csv": "https://github.com/YuanGongND/ast/blob/master/egs/speechcommands/data/"
    "speechcommands_class_labels_indices.csv",
}
NAME = "build-official"
FINISHED = ("config.json", "model.safetensors", "README.md")  # present in every converted folder
# Saved tensors that are no parameters.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "class_center", "data_center", "teacher_temperature")


@dataclasses.dataclass
class Outcome:
    """Records `status` (missing, left out, converted, kept, failed or pushed) and `message`: the reason, or remarks."""

    published: Published
    status: str
    folder: Path
    message: str = ""


def add_parser(subparsers, text: str):
    parser = subparsers.add_parser(NAME, description=text)
    parser.add_argument("--download-dir", type=Path, required=True, metavar="DIR", help="where the originals lie")
    parser.add_argument("--output-dir", type=Path, default=Path("checkpoints"), metavar="DIR", help="where to write")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the catalogue")
    parser.add_argument("--push", metavar="USER", help="push each to USER/NAME on the Hub")
    parser.add_argument("--private", action="store_true", default=None, help="new repositories are private")
    parser.add_argument("--overwrite", action="store_true", help="convert again what was converted")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    Runs the command; returns the exit status: 1 if a checkpoint failed.

    Raises:
        ConversionError: the folder holds no published file.
    """
    outcomes = build(
        args.download_dir, args.output_dir, args.only, args.push, private=args.private, overwrite=args.overwrite
    )
    print(table(outcomes))
    print_missing(outcomes, args.download_dir)
    if all(outcome.status == "missing" for outcome in outcomes):
        raise ConversionError(
            f"{args.download_dir}: holds none of these files, under their published names; download some"
        )
    return int(any(outcome.status == "failed" for outcome in outcomes))


def build(
    download_dir: Path,
    output_dir: Path,
    only: Sequence[str] | None = None,
    user: str | None = None,
    *,
    private: bool | None = None,
    overwrite: bool = False,
    catalogue: Mapping[str, Published] | None = None,
) -> list[Outcome]:
    """
    Converts the files that exist, one after the other, and prints a line for each. After a failure the others go on.

    Args:
        only: names in the catalogue; all if `None`
        user: owner of the Hub repositories to push to; `None`: no push
        overwrite: convert finished checkpoints again

    Raises:
        ConversionError: no such folder, or an unknown name.
    """
    catalogue = read_catalogue() if catalogue is None else catalogue
    if not download_dir.is_dir():
        raise ConversionError(f"{download_dir}: is no folder; name the one that the downloads are in")
    for name in only or ():
        if name not in catalogue:
            nearest = difflib.get_close_matches(name, catalogue, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(catalogue)}"
            raise ConversionError(f"--only: {name} is not in the catalogue; {hint}")
    outcomes = []
    for name in only or catalogue:
        published = catalogue[name]
        if only is None and not published.is_published and find_file(published, download_dir, catalogue):
            text = f"{published.file} may be anybody's: --only {name} takes it for the original"
            outcome = Outcome(published, "left out", output_dir / name, text)
        else:
            outcome = build_one(published, download_dir, output_dir / name, overwrite, catalogue)
        if user and outcome.status in ("converted", "kept"):
            push(outcome, f"{user}/{name}", private)
        if outcome.status != "missing":
            print(f"{name}: {outcome.status}" + (f"; {outcome.message}" if outcome.message else ""), flush=True)
        outcomes.append(outcome)
    return outcomes


def build_one(
    published: Published, download_dir: Path, folder: Path, overwrite: bool, catalogue: Mapping[str, Published]
) -> Outcome:
    """Converts one checkpoint, unless its folder is finished or its file is missing."""
    if folder.exists() and not overwrite and all((folder / name).is_file() for name in FINISHED):
        return Outcome(published, "kept", folder, "it was converted before; --overwrite converts it again")
    path = find_file(published, download_dir, catalogue)
    if path is None:
        return Outcome(published, "missing", folder)
    try:
        check_target(path, folder, overwrite)
        message = convert(published, path, folder)
    except (ValueError, OSError, InputError) as error:
        return Outcome(published, "failed", folder, one_line(error))
    return Outcome(published, "converted", folder, message)


def convert(published: Published, path: Path, folder: Path) -> str:
    """
    Writes the folder, whole or not at all, and returns remarks to print.

    Raises:
        ConversionError: the file is not the published one.
    """
    wrong = published.wrong_content(path)
    if wrong:
        raise ConversionError(f"{path} {wrong}: download it again from {published.url}")
    options, notes = dict(published.options), []
    if "labels" in options:
        options["labels"] = path.parent / options["labels"]
        if not options["labels"].is_file():
            notes.append(f"{options['labels']} is not there, so its outputs are called LABEL_0, ...")
            del options["labels"]
    converted = FAMILIES[published.family].convert(path, Options(**options))
    wrong = published.wrong_shapes(converted.model.config, converted.feature_extractor)
    if wrong:
        raise ConversionError(f"{path} is another model than {published.name}: {'; '.join(wrong)}")
    count, _ = save(converted, folder, verify=True, source=path, origin=published)
    return "; ".join([f"{count} tensors verified", *notes])


def find_file(published: Published, download_dir: Path, catalogue: Mapping[str, Published]) -> Path | None:
    """Finds the file by its published name, else by its hash among the .pth files without a published name."""
    files = sorted(path for path in download_dir.iterdir() if path.is_file())
    named = next((path for path in files if published.is_named(path)), None)
    if named is not None or not published.is_hashed:
        return named
    names = {other.file for other in catalogue.values()}
    candidates = [path for path in files if path.suffix == ".pth" and published_name(path) not in names]
    return next((path for path in candidates if published.wrong_content(path) is None), None)


def push(outcome: Outcome, repo_id: str, private: bool | None):
    """Pushes a finished folder; records a failure in the outcome."""
    published = outcome.published
    if published.license is None:
        print(f"warning: {published.name}: {published.license_note}", file=sys.stderr)
    try:
        outcome.message = push_folder(outcome.folder, repo_id, private=private)
        outcome.status = "pushed"
    except PushError as error:
        outcome.status, outcome.message = "failed", str(error)


def num_parameters(folder: Path) -> int:
    """Counts the parameters of a saved model, from the headers of its weights."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith(BUFFERS)]  # noqa: SIM118  not a dictionary
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns a line per checkpoint: name, status, parameters, folder."""
    rows = [("name", "status", "parameters", "folder")]
    for outcome in outcomes:
        is_there = outcome.status not in ("missing", "left out", "failed")
        count = f"{num_parameters(outcome.folder):,}" if is_there else ""
        rows.append((outcome.published.name, outcome.status, count, str(outcome.folder) if is_there else ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def print_missing(outcomes: Sequence[Outcome], download_dir: Path):
    """Prints where the missing files come from and where they belong; also for missing label files."""
    for outcome in outcomes:
        published = outcome.published
        if outcome.status == "missing":
            place = published.url or f"{published.repository} ({published.url_note})"
            print(f"missing: {download_dir / published.file}, from {place}")
    wanted = {o.published.options.get("labels") for o in outcomes if o.status not in ("missing", "left out")} - {None}
    for name in sorted(wanted):
        if not (download_dir / name).is_file():
            print(f"missing: {download_dir / name}, which names the outputs, from {LABEL_LINKS[name]}")
