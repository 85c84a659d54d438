"""Checks where outputs go, writes files whole, and compares the settings of a run with those of an earlier one."""

import csv
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError, one_line, short

UNFINISHED = ".unfinished"  # ending of a file that is being written; cleaning up and .gitignore go by it
LOCK = ".lock"  # in the output folder of a task, while it runs
ABOUT = "dual_ssast"  # key of the metadata of a Parquet file that say what made a program's table
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that writes alone have
MOST_STEM = 40  # characters of a name that its unfinished file keeps
# A file name that is not UTF-8 holds halves of surrogate pairs, which text files write as \udcXX: JSON reads them back,
# and tables show them.
TEXT_ERRORS = "backslashreplace"


def about_path(table: Path) -> Path:
    """Returns the path of what says what made a program's table that cannot say it itself."""
    return table.with_name(f"{table.name}.about.json")


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """
    Yields the name to write to, and renames it to `path` at the end: a reader never sees half a file, and a write that
    fails leaves an earlier file as it was.

    The name is `.NAME.PID.unfinished.EXT` in the same folder: processes that write the same file do not disturb each
    other, and libraries that go by the extension still find it.
    """
    given, path = path, Path(os.path.realpath(path))  # what a link leads to is replaced, and not the link
    unfinished = _unfinished(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # a write to an open file does not say to which
            error.filename = str(given)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """
    Yields an empty folder to write to, and renames it to `path` at the end. An earlier folder is kept until then.

    Raises:
        InputError: it cannot be renamed; the earlier folder is in its place again.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:MOST_STEM]}."
    with tempfile.TemporaryDirectory(UNFINISHED, prefix, path.parent, ignore_cleanup_errors=True) as stage:
        folder, earlier = Path(stage, "new"), Path(stage, "old")  # other users cannot read the temporary folder itself
        folder.mkdir()
        yield folder
        try:
            if path.exists():
                os.rename(path, earlier)
            os.rename(folder, path)
        except OSError as error:
            if earlier.exists():
                os.rename(earlier, path)
            raise InputError(f"{path}: cannot be written ({error}); name another folder") from error


def _unfinished(path: Path) -> Path:
    stem = path.stem[:MOST_STEM]  # the name as a whole may be as long as the file system allows
    return path.with_name(f".{stem}.{os.getpid()}{UNFINISHED}{path.suffix}")


def check_writable(path: Path, is_folder: bool = False):
    """
    Checks that an output can be written, before the work of hours whose result it takes: makes an empty file in its
    place, under another name, and removes it. The disk may still fill up.

    Args:
        path: a file, whose folder must exist, or a folder, which is made together with those above it

    Raises:
        InputError: there is no such folder, something else stands in its place, or the disk refuses it.
    """
    path, kind = Path(path), "folder" if is_folder else "file"
    try:
        target = Path(os.path.realpath(path))
        above = next((above for above in target.parents if os.path.lexists(above)), target)
        if not is_folder and target.is_dir():
            raise InputError(f"{path}: is a folder; name a file in it")
        if not is_folder and above != target.parent:
            missing = target.parent if path.is_symlink() else path.parent
            raise InputError(f"{path}: the folder {missing} does not exist; make it or name another file")
        if not above.is_dir() or (is_folder and target.exists() and not target.is_dir()):
            raise InputError(f"{path}: {target if above.is_dir() else above} is not a folder; name another {kind}")
        if not is_folder and target.exists() and not target.is_file():
            raise InputError(f"{path}: is a device or a pipe, which a file would replace; name a file")
        for name in target.relative_to(above).parts:
            with suppress(FileNotFoundError):
                (above / name).lstat()  # a name that is too long
        probe = _unfinished(target / "folder" if is_folder and target.is_dir() else above / target.name)
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a character that no name may have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written ({reason}); name another {kind}") from error


def check_apart(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path | None] = ()):
    """
    Checks that outputs are different files, and none of them a file that is read.

    Args:
        outputs: option -> what it names; `None`: nothing
        inputs: files, or other words

    Raises:
        InputError: the same file twice.
    """
    places: dict[str, str] = {}
    for name, path in outputs.items():
        place = None if path is None else real_path(path)
        if place in places:
            raise InputError(f"{name}: {path} is {places[place]}, too; name another file")
        places |= {} if place is None else {place: name}
    for source in inputs:
        name = None if source is None else places.get(real_path(source))
        if name is not None and os.path.isfile(source):
            raise InputError(f"{name}: {outputs[name]} is read here, and would be replaced; name another file")


def check_outside(output: Path, tables: Path):
    """Raises `InputError` if an output lies in a folder of annotations, where the next run would read it as one."""
    if tables.is_dir() and output.resolve().is_relative_to(tables.resolve()):
        raise InputError(f"{output}: lies in {tables}, where all tables are read as annotations; name a place outside")


def real_path(path: str | Path) -> str | None:
    """Returns the absolute path without links; `None` for a name that no file can have."""
    try:
        return os.path.realpath(path)
    except ValueError:  # a character that no name may have
        return None


def write_json(path: Path, value):
    """Writes a value as indented JSON in UTF-8, whole or not at all."""
    with complete_file(path) as unfinished:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        unfinished.write_text(text, encoding="utf-8", errors=TEXT_ERRORS)


def read_json(path: Path, remedy: str) -> dict:
    """
    Reads the JSON object that an earlier run has stored.

    Args:
        remedy: the end of the message: what the user can do

    Raises:
        InputError: the file cannot be read, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is damaged (it holds {short(repr(value), 80)}); {remedy}")
    return value


def storable(text: str) -> str:
    """Returns a text as text files hold it, for formats that take UTF-8 alone."""
    return text.encode(errors=TEXT_ERRORS).decode()


def csv_row(cells: Iterable[str]) -> str:
    """Returns a row of CSV, without its end."""
    row = io.StringIO()
    csv.writer(row, lineterminator="\r\n").writerow(cells)  # it quotes the characters of its line end, and no other
    return row.getvalue().removesuffix("\r\n")


def write_csv(table, path: Path, index: bool = False):
    """
    Writes a `pandas.DataFrame` as CSV in UTF-8, whole or not at all.

    Args:
        index: begin each row with the table's index
    """
    columns = [(name, table.iloc[:, place]) for place, name in enumerate(table.columns)]
    if index:
        columns.insert(0, (table.index.name, table.index))
    arrays = [
        column.to_numpy() if column.dtype.kind in "iuf" else [None if cell is None else str(cell) for cell in column]
        for _, column in columns
    ]
    with complete_file(path) as unfinished, open(unfinished, "wb") as file:
        file.write(csv_header(name for name, _ in columns))
        append_csv(file, arrays)


def csv_header(names: Iterable[str]) -> bytes:
    """Returns the first line of a CSV."""
    return storable(csv_row(names) + "\n").encode()


def append_csv(file, columns: list):
    """
    Writes rows of CSV to a binary file, without a header. Arrow writes ten million numbers in seconds, where pandas
    takes minutes, and quotes carriage returns, at which readers end a row.

    Args:
        columns: arrays of numbers, lists of texts and `None`, or arrays of Arrow
    """
    import pyarrow  # here: a program without a table does not need it
    import pyarrow.csv

    arrays = {str(place): arrow_array(column) for place, column in enumerate(columns)}
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
    pyarrow.csv.write_csv(pyarrow.table(arrays), file, options)


def arrow_array(column):
    """Returns a column for Arrow: numbers, of which NaN stands for none; rows of numbers; or texts in UTF-8."""
    import pyarrow

    if isinstance(column, (pyarrow.Array, pyarrow.ChunkedArray)):
        return column
    if not hasattr(column, "dtype"):
        return pyarrow.array([None if cell is None else storable(cell) for cell in column], pyarrow.string())
    if column.ndim == 2:
        values = pyarrow.array(column.reshape(-1))
        return pyarrow.FixedSizeListArray.from_arrays(values, column.shape[1])
    return pyarrow.array(column, from_pandas=True)


def check_same(source: str | Path, stored: Mapping, wanted: Mapping, remedy: str):
    """
    Compares what a run is asked for with what an earlier one stored, entry by entry of `wanted`.

    Args:
        source: what holds the stored values, such as a checkpoint
        remedy: the end of the message: what the user can do

    Raises:
        InputError: an entry differs; the message names it with both values, within a mapping the part that differs.
    """
    for name, value in wanted.items():
        if name not in stored or stored[name] != value:
            name, before, now = _first_difference(name, stored.get(name), value)
            raise InputError(
                f"{source}: was made with {name} {short(repr(before), 80)}, now {short(repr(now), 80)}; {remedy}"
            )


def fingerprint(names: list[str]) -> str:
    """Returns a short text that changes with the names or their order, for `check_same`."""
    return hashlib.sha256("\n".join(names).encode(errors=TEXT_ERRORS)).hexdigest()[:16]


def _first_difference(name: str, before, now) -> tuple:
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return name, before, now
    key = next(key for key in {**before, **now} if key not in before or key not in now or before[key] != now[key])
    return _first_difference(f"{name}.{key}", before.get(key), now.get(key))
