"""
Finds labels that are probably wrong: `python -m training.suspects EMBEDDINGS --labels TABLE`. EMBEDDINGS is an output
of embed_hf.py. Every labelled clip is judged by a classifier that was fitted without it (confident learning).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .console import print_table, run_program
from .embeddings.known_labels import KnownLabels, LabelArguments
from .embeddings.label_errors import NUM_FOLDS, NUM_REPEATS, Judged, find_label_errors
from .embeddings.stored import read_embeddings
from .errors import InputError, printable, short
from .inference.tables import open_table
from .recipe import described, parse_program

USAGE = "python -m training.suspects EMBEDDINGS --labels TABLE [--key value ...]"
PRINTED = 20


@dataclass
class SuspectArguments(LabelArguments):
    """Defines the options of training.suspects."""

    output: Path | None = described(Path("suspects.csv"), "Table of all labelled clips: .csv, .jsonl or .parquet.")
    num_folds: int = described(NUM_FOLDS, "Folds: a clip is judged by classifiers fitted without its fold.", at_least=2)
    num_repeats: int = described(NUM_REPEATS, "Divisions into folds, whose mean is taken.", at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if not self.embeddings or not self.labels:
            raise InputError(f"usage: {USAGE}")


def main(argv: list[str]) -> int:
    return run_program(find, argv, "nothing is written")


def find(argv: list[str]):
    """Writes the table of judged labels that the command line asks for, and prints the worst ones."""
    arguments = parse_program(argv, SuspectArguments, USAGE, "embeddings")
    arguments.check_output()
    stored = read_embeddings(arguments.embeddings, arguments.column)
    known = arguments.read(stored.names)
    if not known.has_two:
        raise InputError(f"{arguments.labels[0]}: no two classes to take for each other; label clips of another one")
    judged = find_label_errors(
        stored.vectors[known.clips], known, arguments.num_folds, arguments.num_repeats, arguments.seed
    )
    if np.isnan(judged.quality).all():
        raise InputError(f"{arguments.labels[0]}: fewer than two classes have two labelled clips or more; label more")
    rows = rows_of(stored.names, known, judged)
    columns = [(name, [row[name] for row in rows]) for name in rows[0]]
    columns = [(name, np.array(own, dtype=np.float32) if name == "quality" else own) for name, own in columns]
    about = arguments.about(stored, "labels", "seed", "num_folds", "num_repeats")
    with open_table(arguments.output, about) as write:
        write(columns)
    print_summary(arguments, known, rows)


def rows_of(names: list[str], known: KnownLabels, judged: Judged) -> list[dict]:
    """
    Returns a row per labelled clip, the most doubtful first: suspected ones before others, then by quality. Labels that
    cannot be judged have no quality and stand at the end.
    """
    rows = []
    for place, clip in enumerate(known.clips):
        own = {"file_name": names[clip]}
        rows.append(own | (_of_several if known.labels.is_multi else _of_one)(known, judged, place))
    order = {"yes": 0, "no": 1, "": 2}
    return sorted(rows, key=lambda row: (order[row["suspected"]], row["quality"] or 0.0, row["file_name"]))


def _of_one(known: KnownLabels, judged: Judged, place: int) -> dict:
    """Returns the cells of a clip of one class."""
    names, quality, proposed = known.labels.names, judged.quality[place], judged.proposed[place]
    return {
        "label": names[known.targets[place]],
        "quality": None if np.isnan(quality) else float(quality),
        "suspected": "" if np.isnan(quality) else ("no", "yes")[int(judged.suspected[place])],
        "proposed": None if np.isnan(quality) else names[proposed],
    }


def _of_several(known: KnownLabels, judged: Judged, place: int) -> dict:
    """Returns the cells of a clip of several labels: its quality is that of its most doubtful label."""
    names, qualities, suspected = known.labels.names, judged.quality[place], judged.suspected[place]
    has = known.targets[place] > 0
    is_known = ~np.isnan(qualities)
    missing, wrong = suspected & ~has, suspected & has
    worst = np.nanargmin(qualities) if is_known.any() else None

    def joined(mask) -> str:
        return known.cell(name for name, is_one in zip(names, mask) if is_one)

    return {
        "label": joined(has),
        "quality": None if worst is None else float(qualities[worst]),
        "suspected": "" if worst is None else ("no", "yes")[int(suspected.any())],
        "proposed": joined(has ^ suspected),
        "doubtful": None if worst is None else names[worst],
        "wrong": joined(wrong),
        "missing": joined(missing),
    }


def print_summary(arguments: SuspectArguments, known: KnownLabels, rows: list[dict]):
    """Prints the first suspects, and the labels with too few clips."""
    suspects = [row for row in rows if row["suspected"] == "yes"]
    shown = f"; the first {PRINTED}" if len(suspects) > PRINTED else ""
    print(f"{len(suspects)} of {len(rows)} labelled clips are suspected, the most doubtful first{shown}:")
    if suspects:
        print_table([list(row.values()) for row in suspects[:PRINTED]], list(rows[0]))
    counts = known.counts()
    rare = {name: n for name, n in counts.items() if 1 < n < arguments.num_folds}
    if rare:
        listed = short(", ".join(f"{printable(name)} ({n})" for name, n in rare.items()))
        print(f"fewer clips than {arguments.num_folds} folds, so that their quality is rough: {listed}")
    alone = [name for name, n in counts.items() if n < 2]
    if alone:
        print(f"with too few clips to be judged: {short(', '.join(map(printable, alone)))}")
    print(f"everything is in {arguments.output}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
