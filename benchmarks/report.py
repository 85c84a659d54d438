"""Times and reports for all benchmarks: versions, alternating blocks, a table, and the last line of an output."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.utils import is_speech_available

sys.path.insert(0, str(Path(__file__).parent.parent))  # `training` is not installed

from training.base.number_formats import is_emulated

TABLES_VARIABLE = "BENCH_TABLES"  # file to which tables are added, a line of JSON each; see run.py


def versions() -> str:
    """Returns a line with all that the figures depend on."""
    torchaudio = "with torchaudio" if is_speech_available() else "without torchaudio"
    return (
        f"torch {torch.__version__} ({torch.get_num_threads()} threads, {platform.machine()}), transformers "
        f"{transformers.__version__} {torchaudio}, numpy {np.__version__}, Python {platform.python_version()}"
    )


def can_measure_bfloat16() -> bool:
    """Returns whether the CPU has instructions for bfloat16; where it has none, prints that it is left out."""
    if is_emulated(torch.bfloat16, torch.device("cpu")):
        print("bfloat16 is not measured: this processor has no instructions for it\n")
        return False
    return True


def time_in_blocks(
    sides: dict[str, Callable], repeats: int, calls: int, clock: Callable = time.perf_counter
) -> dict[str, list[float]]:
    """
    Returns the seconds of every call of each side. The sides alternate in blocks of `calls` calls, each after an
    untimed one: a library's own threads slow down the first call of the next library, so sides that alternate call by
    call would slow down each other.
    """
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            call()
            for _ in range(calls):
                start = clock()
                call()
                seconds[name].append(clock() - start)
    return seconds


def print_table(header: list[str], rows: list[list[str]]):
    """Prints a table, and adds it to the file that `TABLES_VARIABLE` names."""
    if path := os.environ.get(TABLES_VARIABLE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"header": header, "rows": rows}) + "\n")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print(" | ".join(cells))


def write_figures(path: Path, figures: dict):
    """Writes the figures of a benchmark, and prints where they are."""
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"\nfigures: {path}")


def spread(seconds: list[float]) -> str:
    """Formats median and range in milliseconds, short ones with a decimal."""
    median = statistics.median(seconds)
    digits = 0 if median >= 0.02 else 1
    return f"{1e3 * median:.{digits}f} ({1e3 * min(seconds):.{digits}f}-{1e3 * max(seconds):.{digits}f})"


def last_line(file) -> str:
    """Returns the last line of an open text file: what a program that stopped has to say."""
    file.seek(0)
    return (file.read().strip().splitlines() or ["no message"])[-1]
