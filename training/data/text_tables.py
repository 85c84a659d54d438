"""
Reads text files and tables of text: encodings, line ends, separators, quotes and cells that are too many or too few.

Rows are counted from 1 without the header, blank lines and comments; lines are those of the file.
"""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from transformers.utils import logging

from ..errors import InputError

logger = logging.get_logger(__name__)

# UTF-32 first: its mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SUFFIX = re.compile(r"\S\.\w{2,5}$")
NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]+)?")  # 1.5 or 1,5; no thousands


def read_text(path: Path) -> str:
    """
    Reads a text file: UTF-8, UTF-16 or UTF-32 by its mark, else UTF-8, else Windows-1252 with a warning. All line ends
    become "\\n".

    Raises:
        InputError: the file cannot be read, is no text, or mixes encodings.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; correct the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise InputError(
                f"{path}: is not {encoding}, as its first bytes say ({error.reason}); copy it again"
            ) from None
        text = _decode_old(path, data, error.start)
    if "\0" in text:
        raise InputError(f"{path}: holds NUL characters, so it is no text, or UTF-16 without a mark; save it as UTF-8")
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _decode_old(path: Path, data: bytes, first: int) -> str:
    """Decodes a text that is not UTF-8. One bad byte among letters of UTF-8 is damage, not another encoding."""
    if any(
        character > "\x7f" and not "\udc80" <= character <= "\udcff"
        for character in data.decode(errors="surrogateescape")
    ):
        line = re.sub(rb"\r\n?", b"\n", data[:first]).count(b"\n") + 1
        raise InputError(f"{path}: line {line} holds bytes that are not UTF-8, unlike the rest; save it as UTF-8")
    logger.warning(f"{path}: is not UTF-8 and is read as Windows-1252 (Latin-1); save it as UTF-8 if names look wrong")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_rows(
    path: Path, separator: str, known: Iterable[str] = (), text: str | None = None
) -> tuple[list[str], list[list[str]], list[int]]:
    """
    Reads a table of text.

    Tables with tabs have no quotes, as in Common Voice and `datasets`, unless their header is quoted; all others have
    those of CSV. Lines before the header that begin with # and hold no known column are comments.

    Args:
        separator: usual separator of this kind of file; another is taken if the header is evidently separated by it
        known: usual names of columns
        text: what `read_text` gave; `None`: it is read

    Returns:
        names of the columns, rows of texts, and the line at which each row begins

    Raises:
        InputError: unreadable, quotes that are not closed, or rows with too many or too few cells; names the line.
    """
    lines, first, separator = _layout(path, read_text(path) if text is None else text, separator, known)
    header = lines[first] if first < len(lines) else ""
    records = _records(
        path, lines, first, separator, separator != "\t" or path.suffix.lower() == ".csv" or header[:1] == '"'
    )
    return check_rows(path, records, SEPARATORS.get(separator, repr(separator)))


def find_separator(path: Path, text: str, usual: str, known: Iterable[str] = ()) -> str:
    """Returns what separates the cells of a table in `read_rows`, which takes the same arguments."""
    return _layout(path, text, usual, known)[2]


def _layout(path: Path, text: str, separator: str, known: Iterable[str]) -> tuple[list[str], int, str]:
    """Returns the lines of a table, the place of its header among them, and its separator."""
    lines, known = text.split("\n"), {name.casefold() for name in known}
    first = next((index for index, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: is empty; write a header and a row per clip")
    stated = re.fullmatch(r"sep=(.)", lines[first].strip("\ufeff "))  # Excel's
    if stated:
        return lines, first + 1, stated[1]
    while first < len(lines) and _is_comment(lines[first], known):
        first += 1
    return lines, first, _find_separator(lines[first] if first < len(lines) else "", separator, known)


def _is_comment(line: str, known: set[str]) -> bool:
    return not line.strip() or (line.startswith("#") and not any(_num_known(line, mark, known) for mark in SEPARATORS))


def _num_known(header: str, separator: str, known: set[str]) -> int:
    return sum(cell.strip(' "#').casefold() in known for cell in header.split(separator))


def _find_separator(header: str, usual: str, known: set[str]) -> str:
    """Returns the separator that gives the most known names, else the usual one if it is there, else any other."""
    return max((usual, *SEPARATORS), key=lambda mark: (_num_known(header, mark, known), mark in header, mark == usual))


def _records(
    path: Path, lines: list[str], first: int, separator: str, is_quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yields the line and the cells of each record."""
    if not is_quoted:
        for number, line in enumerate(lines[first:], start=first + 1):
            yield number, line.split(separator) if line.strip(" ") else []
        return
    # A blank before a quote, as in AudioSet's lists, would make the quote a part of the cell.
    has_blanks = any(f'{separator} "' in line for line in lines)
    text = io.StringIO("\n".join(lines[first:]))
    reader = csv.reader(text, delimiter=separator, strict=True, skipinitialspace=has_blanks)
    records = []
    while True:
        start = first + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise InputError(
                f"{path}: line {start} has a quote that is not closed or not doubled ({error}, line "
                f'{first + reader.line_num}); close it, and write "" for a quote inside quotes'
            ) from None
        records.append((start, cells))
    _check_quotes(path, lines, first + reader.line_num, separator, records)
    yield from records


def _check_quotes(path: Path, lines: list[str], last: int, separator: str, records: list[tuple[int, list[str]]]):
    """
    Raises `InputError` where a quoted cell goes on over lines that look like rows: two quotes that were never closed
    swallow the rows between them. Such a line has as many cells as the header, and file names where all rows have them;
    or the record has an odd number of quotes.
    """
    ends = [start - 1 for start, _ in records[1:]] + [last]
    spans = [(start, end) for (start, _), end in zip(records, ends) if end > start and any(lines[start:end])]
    if not spans:
        return
    fewest, width = _num_filled(records[0][1]), len(records[0][1])
    columns = zip(*(cells for _, cells in records[1:] if len(cells) >= fewest))
    suffixes = [_suffixes([cell for cell in column if "\n" not in cell]) for column in columns]
    for start, end in spans:
        is_odd = sum(line.count('"') for line in lines[start - 1 : end]) % 2 == 1
        for number in range(start + 1, end + 1):
            cells = lines[number - 1].split(separator)
            if (
                is_odd
                or fewest == 1
                or start == records[0][0]
                or (  # names of files and of columns have no lines
                    _fits(cells, fewest, width)
                    and all(not found or _suffixes([cell.strip('" ')]) & found for cell, found in zip(cells, suffixes))
                )
            ):
                raise InputError(
                    f"{path}: line {start} has a quote that is not closed: its cell goes on over line {number}, which "
                    'looks like a row; close it, and write "" for a quote inside quotes'
                )


def _suffixes(cells: list[str]) -> set[str]:
    """Returns the extensions of cells that are all names of files; else nothing."""
    return {Path(cell).suffix.lower() for cell in cells} if all(map(SUFFIX.search, cells)) else set()


def check_rows(
    path: Path, records: Iterable[tuple[int, list]], separated: str = ""
) -> tuple[list[str], list[list], list[int]]:
    """
    Divides the records of a table into header and rows, all with the same number of cells. Empty cells at the end of a
    record count as absent; records without any filled cell are left out, with a warning if they have separators.

    Args:
        records: (line, cells); empty cells are "" or `None`
        separated: how cells are separated, for messages

    Raises:
        InputError: no header, no rows, or rows with too many or too few cells.
    """
    filled, empty = [], []
    for line, cells in records:
        if _num_filled(cells):
            filled.append((line, cells))
        elif cells:
            empty.append(line)
    if not filled:
        raise InputError(f"{path}: is empty; write a header and a row per clip")
    (_, header), *filled = filled
    fewest, width = _num_filled(header), len(header)
    rows, lines, wrong = [], [], []
    for line, cells in filled:
        if not _fits(cells, fewest, width):
            wrong.append((len(rows) + len(wrong) + 1, line, len(cells)))
            continue
        rows.append((cells + [""] * width)[:width])
        lines.append(line)
    if wrong:
        row, line, count = wrong[0]
        remedy = f", or quote cells that hold {separated}" if separated else ""
        remedy += f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        raise InputError(
            f"{path}: row {row} (line {line}) has {count} cells and the header {fewest}; correct the row{remedy}"
        )
    if empty:
        logger.warning(f"{path}: {len(empty)} rows without any filled cell are left out, the first in line {empty[0]}")
    names = [" ".join(str(name or "").split()).removeprefix("# ") for name in header]
    names = [name or f"column {index}" for index, name in enumerate(names, start=1)]
    used = max(map(_num_filled, rows), default=0)
    width = max(fewest, used)  # columns without name and cells
    return names[:width], [row[:width] for row in rows], lines


def _fits(cells: list, fewest: int, width: int) -> bool:
    """Returns whether a record has as many cells as the header: `fewest` with a name, `width` with nameless ones."""
    return fewest <= len(cells) and _num_filled(cells) <= width


def _num_filled(cells: list) -> int:
    """Returns the number of cells without the empty ones at the end."""
    return max((index for index, cell in enumerate(cells, start=1) if not is_empty(cell)), default=0)


def is_empty(cell) -> bool:
    """Returns whether a cell holds nothing: `None`, NaN, or a text of blanks."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and cell != cell)


def as_number(cell: str) -> float | None:
    """Returns the number in a cell, also with a decimal comma; `None` if it is another text."""
    cell = cell.strip()
    return float(cell.replace(",", ".")) if NUMBER.fullmatch(cell) else None


def as_numbers(
    source,
    column: str,
    values: Iterable,
    row_of: Callable[[int], str],
    kind: str = "number of seconds",
    has_commas: bool = False,
) -> list[float | None]:
    """
    Returns the numbers of a column; `None` for an empty cell.

    Args:
        kind: what the cells should hold, for the message
        has_commas: whether 1,5 is a number too, as programs write it in many countries

    Raises:
        InputError: a cell holds another text, or a number that is not finite.
    """
    numbers = []
    for index, value in enumerate(values):
        try:
            if isinstance(value, bool):
                raise TypeError
            number = as_number(value) if has_commas and isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        numbers.append(None if is_empty(value) else number)
        if not is_empty(value) and (number is None or not math.isfinite(number)):
            is_comma = isinstance(value, str) and "," in value and as_number(value) is not None
            remedy = "write it with a point" if is_comma else "correct it"
            raise InputError(f"{source}: {row_of(index)} has {value!r} in {column}, not a {kind}; {remedy}")
    return numbers


def find_column(source, table: Iterable, wanted: str | None, known: Iterable[str]) -> str | None:
    """
    Returns the column with a wanted or else a known name, as it stands or whatever its case and the blanks around it;
    `None` without a known one. Raises `InputError` if the wanted one is missing, or several have the name.
    """
    names = [str(name) for name in table]
    for name in known if wanted is None else (wanted,):
        plain = name.strip().casefold()
        found = [own for own in names if own == name] or [own for own in names if own.strip().casefold() == plain]
        if len(found) > 1:
            raise InputError(f"{source}: {len(found)} columns are called {name}; rename all but one")
        if found:
            return found[0]
    if wanted is not None:
        raise InputError(f"{source}: no column {wanted!r}; it has {', '.join(names)}")
    return None


def read_json_lines(path: Path) -> tuple[list, list[int]]:
    """
    Reads a file with a JSON value per line.

    Returns:
        values, and their lines in the file

    Raises:
        InputError: the file cannot be read, or a line is not JSON.
    """
    rows, lines = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is not JSON ({getattr(error, 'msg', error)}); correct or remove it"
            ) from None
        lines.append(number)
    return rows, lines
