"""Runs train_hf.py for the benchmarks that train."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def train(folder: Path, threads: int, recipe: Path, *words):
    """
    Runs train_hf.py in its own process unless the folder has a finished run; its output goes to FOLDER.log, and what it
    is made with to FOLDER.words.json.

    Raises:
        SystemExit: it failed, or the finished run was made with another recipe or other words.
    """

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
    settings, path = _settings(recipe, words), folder.with_name(f"{folder.name}.words.json")
    if (folder / "results.json").exists():
        _check_settings(folder, path, settings)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "w", encoding="utf-8") as file:
        code = run([str(word) for word in (recipe, *words, "--output_dir", folder, "--overwrite", "true")], file)
    if code:
        raise SystemExit(f"train_hf.py stopped with {code}; {log} says why")


def _settings(recipe: Path, words: tuple) -> dict[str, str]:
    """Returns name -> values of what a recipe and the words after it set, which replace the recipe's."""
    found = (yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.exists() else None) or {}
    name = ""
    for word in map(str, words):
        if word.startswith("--"):
            name = word[2:]
            found[name] = []
        else:
            found[name].append(word)
    return {name: " ".join(map(str, own if isinstance(own, list) else [own])) for name, own in found.items()}


def _check_settings(folder: Path, path: Path, settings: dict[str, str]):
    """Stops where a finished run was made with other settings than these, or with unknown ones."""
    if not path.exists():
        unknown = f"{folder}: what this finished run was made with is unknown ({path.name} is missing)"
        if "recipe" in results_of(folder):  # train_hf.py made it, before words were kept
            raise SystemExit(f"{unknown}; remove it or name another --output")
        print(unknown, file=sys.stderr)
        return
    made = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name in {**made, **settings} if made.get(name) != settings.get(name)]
    if other:
        texts = (f"{name} {made.get(name, 'unset')}, not {settings.get(name, 'unset')}" for name in other)
        raise SystemExit(f"{folder}: was made with {'; '.join(texts)}: remove it or name another --output")


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
