"""Tests what the Makefile checks before it builds an environment."""

import os
import shutil
import subprocess
import sys

import pytest
from audio_files import ROOT


@pytest.mark.skipif("shutil.which('make') is None")
def test_make_stops_at_once_where_python_is_too_old_for_the_constraints(tmp_path):
    for name in ("Makefile", "setup.cfg", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "old"
    code = "import sys; sys.version_info = (3, 10, 14); exec(sys.argv[2])"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    python.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    words = ["make", ".venv/ready", f"PYTHON={python}"]  # without the flags of a `make test` that runs this
    made = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True)
    first = made.stderr.splitlines()[0]
    assert made.returncode and first.startswith(f"constraints.txt: needs Python 3.11 or newer, not {python}; name one")
    assert not made.stdout and not (tmp_path / ".venv").exists()
