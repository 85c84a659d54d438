"""What programs share on the terminal: errors in one line, an orderly stop on Ctrl-C, tables."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

from .errors import InputError, one_line, short

INTERRUPTED, BROKEN_PIPE = 130, 141  # the shells' exit statuses after Ctrl-C and SIGPIPE


def run_program(program: Callable[[list[str]], int | None], argv: list[str], kept: str = "") -> int:
    """
    Runs a program and returns its exit status: 1 after an `InputError`, which is printed as one line, 130 after Ctrl-C,
    and 141, without a word, when the reader of its output, such as `head`, has ended.

    Args:
        program: takes the words of the command line
        kept: what is kept when the program is interrupted, and how to go on: the end of the line that it then prints;
            a `KeyboardInterrupt` with a message of its own takes its place
    """
    try:
        status = program(argv) or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        if os.environ.get("TRANSFORMERS_VERBOSITY") == "debug":
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        kept = str(stop) or kept
        print(f"\ninterrupted{f'; {kept}' if kept else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at the exit would fail again
        return BROKEN_PIPE
    except OSError as error:  # a name that is too long, a folder without permission, a full disk
        if error.filename is None:
            raise
        print(f"error: {short(os.fsdecode(error.filename))}: {error.strerror}; name another file", file=sys.stderr)
        return 1


def print_table(rows: Iterable[Sequence], columns: Sequence[str]):
    """Prints rows under their column names: texts to the left, numbers to the right; `None` is left blank."""
    rows = [["" if cell is None else cell for cell in row] for row in rows]
    texts = [list(map(str, columns)), *([_as_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts)]
    is_number = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    for row in texts:
        cells = (
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, is_number)
        )
        print("  ".join(cells).rstrip())


def _as_cell(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
