"""Imports the scripts of benchmarks/, which find each other by their bare names."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from audio_files import ROOT

FOLDER = ROOT / "benchmarks"


@contextlib.contextmanager
def imported(*names: str) -> Iterator[SimpleNamespace]:
    """Gives scripts as `python benchmarks/NAME.py` imports them. Afterwards their names are free for other modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for path in FOLDER.glob("*.py"):
        if getattr(sys.modules.get(path.stem), "__file__", None) == str(path):
            del sys.modules[path.stem]
