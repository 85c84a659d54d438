"""
Compares finished runs on the clips that all of them have tested: `python -m training.compare RUN RUN ...`.

A run is the output folder of a classification, evaluation, cross-validation or probe. Each method of a probe counts as
a run of its own. A folder that holds runs of the same clips in `seed-0`, `seed-1` and so on counts as one run with
several seeds. Intervals are those of a paired bootstrap, p-values those of permutation tests, corrected for the
number of pairs (Holm). Clips of one group are drawn and exchanged together.

A program above the wings: it needs the metrics of `classification`, and reads what `embeddings` writes.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..base.paired_tests import ALPHA
from ..base.reproduction import versions
from ..console import print_table, run_program
from ..errors import InputError, nearest
from ..files import check_writable
from ..recipe import Arguments, described, parse_program
from .comparison import check_metric, compare
from .outputs import write_outputs
from .runs import Run, align, names_of, read_runs

USAGE = "python -m training.compare RUN RUN ... [--key value ...]"
KEPT = "nothing was written; give the same command again"

logger = logging.get_logger(__name__)


@dataclass
class CompareArguments(Arguments):
    """Defines the options of training.compare."""

    runs: list[str] | None = described(None, "Output folders of finished runs; the first words.")
    metric: str | None = described(
        None, "Metric to compare; unset: accuracy, mean_average_precision, or mean_squared_error of numbers."
    )
    baseline: str | None = described(None, "Run to compare the others with: its folder or name; unset: all pairs.")
    output_dir: Path | None = described(None, "Folder for tables and figure; unset: they are printed only.")
    figure_format: str = described(
        "png", "Format in which the figure is written too, for papers.", choices=("png", "pdf", "svg")
    )
    seed: int = described(0, "Random seed of resamples and permutations.", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.runs:
            raise InputError(f"usage: {USAGE}")


def print_rows(rows: list[dict]):
    cells = [[None if isinstance(cell, float) and np.isnan(cell) else cell for cell in row.values()] for row in rows]
    print_table(cells, list(rows[0]))


def name_of_baseline(baseline: str, by_folder: dict[Path, list[Run]]) -> str:
    """
    Returns the name of the run that `baseline` means: its own name, its folder, or the last part of that.

    Args:
        by_folder: the runs of each folder

    Raises:
        InputError: the folder holds several runs.
    """
    if any(run.name == baseline for runs in by_folder.values() for run in runs):
        return baseline
    path = Path(baseline)
    own = [folder for folder in by_folder if folder.resolve() == path.resolve()]
    own = own or [folder for folder in by_folder if folder.name == path.name]
    names = [run.name for folder in own for run in by_folder[folder]]
    if len(names) > 1:
        raise InputError(f"baseline: {baseline} is several runs; name one of them: {'; '.join(names)}")
    return names[0] if names else baseline


def choose_pairs(runs: list[Run], baseline: str | None) -> list[tuple[int, int]]:
    """Returns the indices of all pairs of runs, or of the baseline's; raises `InputError` if there is no such run."""
    if baseline is None:
        return list(itertools.combinations(range(len(runs)), 2))
    names = [run.name for run in runs]
    if baseline not in names:
        known = "the runs are " + "; ".join(names)
        raise InputError(f"baseline: {baseline} is no run; {nearest(Path(baseline).name, names, known)}")
    return [(place, names.index(baseline)) for place in range(len(runs)) if names[place] != baseline]


def program(argv: list[str]):
    arguments = parse_program(argv, CompareArguments, USAGE, "runs")
    folder = arguments.output_dir
    if folder is not None:
        check_writable(folder, is_folder=True)
    folders = list(dict.fromkeys(Path(run).absolute() for run in arguments.runs))
    names = names_of(folders)
    by_folder = {path: read_runs(path, names[path]) for path in folders}
    runs = [run for path in folders for run in by_folder[path]]
    if len(runs) < 2:
        raise InputError(f"{arguments.runs[0]}: is a single run; name two or more")
    metric = check_metric(arguments.metric, runs[0].labels.problem_type)
    baseline = None if arguments.baseline is None else name_of_baseline(arguments.baseline, by_folder)
    pairs = choose_pairs(runs, baseline)
    found = compare(align(runs), metric, pairs, arguments.seed)
    print(f"{metric} on {found['clips']} clips that all {len(runs)} runs have tested:")
    print_rows(found["scores"])
    print(f"differences, with p-values corrected for {len(pairs)} pairs:")
    print_rows(found["differences"])
    if 2 * len(pairs) / (found["permutations"] + 1) >= ALPHA:
        text = f"{found['permutations']} permutations tell none of {len(pairs)} pairs apart"
        logger.warning(f"{text}; name fewer runs, or a baseline")
    if folder is not None:
        described_runs = {"runs": list(map(str, folders)), "seed": arguments.seed, "versions": versions()}
        write_outputs(found | described_runs, folder, arguments.figure_format)
        print(f"everything is in {folder}")


def main(argv: list[str]) -> int:
    return run_program(program, argv, KEPT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
