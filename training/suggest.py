"""
Suggests the clips to label next: `python -m training.suggest EMBEDDINGS --labels TABLE --count N`. EMBEDDINGS is an
output of embed_hf.py; the labels known so far may be none.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast.classifier_dual_ssast import labels_of_probabilities

from .console import print_table, run_program
from .embeddings.known_labels import KnownLabels, LabelArguments
from .embeddings.linear import scaled
from .embeddings.stored import read_embeddings
from .embeddings.suggesting import STRATEGIES, Suggestions, suggest
from .errors import InputError
from .inference.tables import open_table
from .recipe import described, parse_program

USAGE = "python -m training.suggest EMBEDDINGS [--labels TABLE ...] [--count N] [--key value ...]"
PRINTED = 20


@dataclass
class SuggestArguments(LabelArguments):
    """Defines the options of training.suggest."""

    output: Path | None = described(Path("suggestions.csv"), "Table of the suggestions: .csv, .jsonl or .parquet.")
    count: int = described(20, "Clips to suggest.", at_least=1)
    strategy: str = described(
        STRATEGIES[0],
        "What to go by: doubt (margin), doubt and coverage (herding), or coverage alone (coreset).",
        choices=STRATEGIES,
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.embeddings:
            raise InputError(f"usage: {USAGE}")


def main(argv: list[str]) -> int:
    return run_program(program, argv, "nothing is written")


def program(argv: list[str]):
    """Writes the table of suggestions that the command line asks for, and prints its first rows."""
    arguments = parse_program(argv, SuggestArguments, USAGE, "embeddings")
    arguments.check_output()
    stored = read_embeddings(arguments.embeddings, arguments.column)
    known = arguments.read(stored.names)
    num_open = len(stored.names) - len(known.clips)
    if not num_open:
        raise InputError(
            f"{arguments.embeddings}: all {len(stored.names)} clips are labelled; nothing is left to label"
        )
    found = suggest(scaled(stored.vectors), known, arguments.count, arguments.strategy, arguments.seed)
    columns = columns_of(stored.names, known, found)
    with open_table(arguments.output, arguments.about(stored, "labels", "seed", "strategy", "count")) as write:
        write(columns)
    print(
        f"{len(found.clips)} of {num_open} clips without a label, chosen by {found.reason}; {len(known.clips)} have one"
    )
    is_sample = found.num_compared < num_open
    if is_sample:
        print(f"they were chosen from {found.num_compared} clips, a random sample")
    if len(found.clips) < arguments.count:
        where = "are in it" if is_sample else "are left"
        print(f"no more than these {where}, of {arguments.count} that were asked for")
    shown = {name: list(own[:PRINTED]) for name, own in columns if name != "label"}
    shown["doubt"] = [None if np.isnan(one) else float(one) for one in shown["doubt"]]
    print_table(zip(*shown.values()), list(shown))
    print(f"everything is in {arguments.output}: fill in its column label, and name it among the --labels next time")


def columns_of(names: list[str], known: KnownLabels, found: Suggestions) -> list[tuple]:
    """Returns the columns of the table; `label` is empty, to be filled in."""
    size, labels = len(found.clips), known.labels
    predicted = [None] * size
    if known.has_two:
        predicted = labels_of_probabilities(torch.from_numpy(found.probabilities), labels.names, labels.problem_type)
        predicted = list(map(known.cell, predicted)) if labels.is_multi else predicted
    return [
        ("file_name", [names[place] for place in found.clips]),
        ("label", [None] * size),
        ("rank", np.arange(1, size + 1)),
        ("reason", [found.reason] * size),
        ("doubt", found.doubt.astype(np.float32)),
        ("predicted", predicted),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
