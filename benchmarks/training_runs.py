"""Runs train_hf.py for the benchmarks that train."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def train(folder: Path, threads: int, recipe: Path, *words):
    """Runs train_hf.py in its own process unless the folder has a finished run; its output goes to FOLDER.log."""
    if (folder / "results.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train_hf.py", recipe, *words, "--output_dir", folder, "--overwrite", "true"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(
            [str(word) for word in command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code:
        raise SystemExit(f"train_hf.py stopped with {code}; {log} says why")


def train_here(folder: Path, recipe: Path, *words):
    """
    Does what `train` does in this process: the imports cost as much as a short run. Each run sets its own seed, so that
    it gives the same numbers.
    """
    if (folder / "results.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = [recipe, *words, "--output_dir", folder, "--overwrite", "true"]
    log = folder.with_name(f"{folder.name}.log")
    argv, path = sys.argv, sys.path
    try:
        sys.argv = ["train_hf.py", *map(str, words)]
        sys.path = [str(ROOT), *path]
        with (
            open(log, "w", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            runpy.run_path(str(ROOT / "train_hf.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"train_hf.py stopped with {end.code}; {log} says why") from None
    finally:
        sys.argv, sys.path = argv, path


def results_of(folder: Path) -> dict:
    """Reads the `results.json` of a finished run."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_accuracy(folder: Path) -> float:
    return results_of(folder)["metrics"]["test"]["accuracy"]
