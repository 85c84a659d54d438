"""Writes files whole, and compares the settings of a run with those that an earlier run stored."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

UNFINISHED = ".unfinished"  # ending of a file that is being written; cleaning up and .gitignore go by it


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """
    Yields the name to write to, and renames it to `path` at the end: a reader never sees half a file, and a write that
    fails leaves an earlier file as it was.

    The name is `.NAME.PID.unfinished.EXT` in the same folder: processes that write the same file do not disturb each
    other, and libraries that go by the extension still find it.
    """
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{UNFINISHED}{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value):
    """Writes a value as indented JSON in UTF-8, whole or not at all."""
    with complete_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
            raise InputError(f"{source}: was made with {name} {_short(before)}, now {_short(now)}; {remedy}")


def fingerprint(names: list[str]) -> str:
    """Returns a short text that changes with the names or their order, for `check_same`."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _first_difference(name: str, before, now) -> tuple:
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return name, before, now
    key = next(key for key in {**before, **now} if key not in before or key not in now or before[key] != now[key])
    return _first_difference(f"{name}.{key}", before.get(key), now.get(key))


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
