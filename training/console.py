"""What programs share on the terminal: streams that outlast their reader, errors in one line, Ctrl-C, and tables."""

import argparse
import contextlib
import errno
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

from safetensors import SafetensorError

from .errors import InputError, one_line, printable, says_others_stopped, short

INTERRUPTED, BROKEN_PIPE = 130, 141  # the shells' exit statuses after Ctrl-C and SIGPIPE
DISK_ERRORS = {
    getattr(errno, name): remedy
    for name, remedy in (
        ("ENOSPC", "free some space"), ("EDQUOT", "free some space"), ("EFBIG", "free some space"),
        ("EROFS", "name a place that can be written to"), ("EACCES", "correct the permissions"),
        ("EPERM", "correct the permissions"), ("EIO", "check the disk"),
    )
    if hasattr(errno, name)
}  # fmt: skip
# What `torch.save` raises when a write fails: it loses the system's error.
TORCH_WRITER = re.compile(r"inline_container\.cc.* unexpected pos|PytorchStreamWriter failed|iostream error", re.DOTALL)
# oneDNN, torch's library on CPUs, keeps code and buffers for each shape that it has met, 1024 of them, up to gigabytes
# where every batch has another length. A step has a few dozen shapes.
ONEDNN_CACHE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class ArgumentParser(argparse.ArgumentParser):
    """
    Parses the words of a program, for which an option of several words is the same with `-` as with `_`: `--batch-size`
    and `--batch_size`. Options are not abbreviated.
    """

    def __init__(self, *args, **keywords):
        super().__init__(*args, **{"allow_abbrev": False} | keywords)

    def add_argument(self, *names, **keywords):
        long = [name[2:] for name in names if name.startswith("--")]
        spellings = [f"--{text}" for name in long for text in (name.replace("_", "-"), name.replace("-", "_"))]
        return super().add_argument(*dict.fromkeys((*names, *spellings)), **keywords)


def run_program(
    program: Callable[[list[str]], int | None],
    argv: list[str],
    kept: str = "",
    errors: tuple[type[Exception], ...] = (InputError,),
) -> int:
    """
    Runs a program and returns its exit status: 1 after one of `errors`, a fault of the disk or the end of another
    process of the launch, which are printed as one line, 130 after Ctrl-C, and 141, without a word, when the reader of
    its output, such as `head`, has ended. The work itself is done before.

    Args:
        program: takes the words of the command line
        kept: what is kept when the program is interrupted, and how to go on: the end of the line that it then prints;
            a `KeyboardInterrupt` with a message of its own takes its place
        errors: classes of the errors whose message is complete by itself
    """
    os.environ.setdefault(*ONEDNN_CACHE)  # read at the first product or convolution
    with lasting_streams() as output:
        try:
            status = program(argv) or 0
            leave_processes()
        except errors as error:
            if os.environ.get("TRANSFORMERS_VERBOSITY") == "debug":
                traceback.print_exc()
            return fail(error)
        except OSError as error:
            name = error.filename2 or error.filename  # the second one is written, as by a copy
            place = f"{short(os.fsdecode(name))}: " if isinstance(name, (str, bytes)) else ""
            if error.errno in DISK_ERRORS:
                return fail(f"{place}{error.strerror}; {DISK_ERRORS[error.errno]}, and give the same command again")
            if not place:
                raise
            return fail(f"{place}{error.strerror}; name another file")  # such as a name that is too long
        except SafetensorError as error:  # it hides the system's error in its text
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None or int(number[1]) not in DISK_ERRORS:
                raise
            number = int(number[1])
            return fail(f"weights: {os.strerror(number)}; {DISK_ERRORS[number]}, and give the same command again")
        except RuntimeError as error:
            if says_others_stopped(error):
                return fail("another process of this run has stopped or does not answer; see its own message")
            if TORCH_WRITER.search(str(error)) is None:
                raise
            reason = short(one_line(error))
            return fail(
                f"the disk took only a part of a file of torch, such as optimizer.pt ({reason}); free some space or "
                "check the disk, and give the same command again"
            )
        except KeyboardInterrupt as stop:
            kept = str(stop) or kept
            print(f"\ninterrupted{f'; {kept}' if kept else ''}", file=sys.stderr)
            return INTERRUPTED
        return status or output.status()


def leave_processes():
    """Leaves the process group of a launch, if there is one: its threads can abort a process that ends with them."""
    distributed = sys.modules.get("torch.distributed")  # not imported: nobody has joined one
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # a trainer refers to itself, and the model that it holds keeps the group and its threads


def fail(error: Exception | str) -> int:
    """Prints an error in one line; returns the exit status."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def lasting_streams() -> Iterator["LastingStream"]:
    """
    Makes standard output and standard error outlast their reader, and take any text: what their encoding lacks is
    written as an escape. Yields the output.
    """
    # A file that is opened later would take the place of a closed stream, and get what libraries write to it.
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    originals = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(LastingStream, originals)
    output = sys.stdout
    try:
        yield output
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError):  # a stream that somebody else put there
                stream.flush()
        sys.stdout, sys.stderr = originals


class LastingStream:
    """Writes to a stream; drops text once that fails, because the work must go on. `None`: a stream that is closed."""

    def __init__(self, stream):
        # It is open as long as the process.
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.error: OSError | ValueError | None = None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self):
        self._attempt(self.stream.flush)

    def status(self) -> int:
        """Returns the exit status of a program whose work is done: not 0 if some of its output was lost."""
        self.flush()
        if self.error is None:
            return 0
        if getattr(self.error, "errno", None) in DISK_ERRORS:
            return fail(f"standard output: {self.error.strerror}; {DISK_ERRORS[self.error.errno]}")
        return BROKEN_PIPE

    def _attempt(self, write: Callable):
        if self.error is not None:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.error = error
            with contextlib.suppress(OSError, ValueError):  # or the flush at the exit would fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def print_table(rows: Iterable[Sequence], columns: Sequence[str]):
    """Prints rows under their column names: texts to the left, numbers to the right; `None` is left blank."""
    rows = [["" if cell is None else cell for cell in row] for row in rows]
    texts = [list(map(printable, columns)), *([_as_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts)]
    is_number = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    for row in texts:
        cells = (
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, is_number)
        )
        print("  ".join(cells).rstrip())


def _as_cell(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else printable(value)
