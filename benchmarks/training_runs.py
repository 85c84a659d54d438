"""Runs train_hf.py for the benchmarks that train."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def train(folder: Path, threads: int, recipe: Path, *words):
    """Runs train_hf.py in its own process unless the folder has a finished run; its output goes to FOLDER.log."""

    def run(words: list[str], file) -> int:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, "train_hf.py", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode

    _train(folder, recipe, words, run)


def train_here(folder: Path, recipe: Path, *words):
    """
    Does what `train` does in this process: the imports cost as much as a short run. Each run sets its own seed, so that
    it gives the same numbers.
    """
    _train(folder, recipe, words, _run_here)


def _train(folder: Path, recipe: Path, words: tuple, run: Callable):
    """Calls `run` with the words after train_hf.py and the file of its output; it returns the exit status."""
    if (folder / "results.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "w", encoding="utf-8") as file:
        code = run([str(word) for word in (recipe, *words, "--output_dir", folder, "--overwrite", "true")], file)
    if code:
        raise SystemExit(f"train_hf.py stopped with {code}; {log} says why")


def _run_here(words: list[str], file) -> int | str | None:
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return _program_here("train_hf.py", words)


def _program_here(program: str, words: list[str]) -> int | str | None:
    argv, path = sys.argv, sys.path
    try:
        sys.argv = [program, *words]
        sys.path = [str(ROOT), *path]
        runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv, sys.path = argv, path
    return None


def embed(model: str | Path, tables: list[Path], path: Path, *words):
    """Embeds the clips of tables by embed_hf.py in this process, unless `path` exists; prints to standard error."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [model, *tables, "--output", path, "--dtype", "float32", *words]
    with contextlib.redirect_stdout(sys.stderr):
        code = _program_here("embed_hf.py", [str(word) for word in words])
    if code:
        raise SystemExit(f"embed_hf.py stopped with {code}")


def results_of(folder: Path) -> dict:
    """Reads the `results.json` of a finished run."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_accuracy(folder: Path) -> float:
    return results_of(folder)["metrics"]["test"]["accuracy"]
