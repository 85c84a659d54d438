"""Runs train_hf.py for the benchmarks that train."""

import json
import os
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


def results_of(folder: Path) -> dict:
    """Reads the `results.json` of a finished run."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_accuracy(folder: Path) -> float:
    return results_of(folder)["metrics"]["test"]["accuracy"]
