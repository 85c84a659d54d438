"""What programs share on the terminal: errors in one line, an orderly stop on Ctrl-C, tables."""

import sys
from collections.abc import Callable, Iterable, Sequence

from .errors import InputError, one_line

INTERRUPTED = 130  # the shells' exit status after Ctrl-C


def run_program(program: Callable[[list[str]], int | None], argv: list[str], kept: str = "") -> int:
    """
    Runs a program and returns its exit status: 1 after an `InputError`, which is printed as one line, and 130 after
    Ctrl-C.

    Args:
        program: takes the words of the command line
        kept: what is kept when the program is interrupted, and how to go on: the end of the line that it then prints;
            a `KeyboardInterrupt` with a message of its own takes its place
    """
    try:
        return program(argv) or 0
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        kept = str(stop) or kept
        print(f"\ninterrupted{f'; {kept}' if kept else ''}", file=sys.stderr)
        return INTERRUPTED


def print_table(rows: Iterable[Sequence], columns: Sequence[str]):
    """Prints rows under their column names: texts to the left, numbers to the right; `None` is left blank."""
    rows = [["" if cell is None else cell for cell in row] for row in rows]
    texts = [list(map(str, columns)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts)]
    is_number = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    for row in texts:
        cells = (
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, is_number)
        )
        print("  ".join(cells).rstrip())
