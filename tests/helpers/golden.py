"""Reference numbers of the originals and checkpoints rebuilt from their recipes; see fixtures/README.md."""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch

from conversion.__main__ import main as convert_command

FIXTURES = Path(__file__).parents[1] / "fixtures"


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of `fixtures/NAME.npz`."""
    with np.load(FIXTURES / f"{name}.npz") as stored:
        return dict(stored)


def settings(name: str) -> dict:
    """What the original was called with: `fixtures/NAME.json`."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


@functools.cache
def _maker():
    spec = importlib.util.spec_from_file_location("make_weights", FIXTURES / "make_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint(recipe: str):
    """The object that the original's torch.save has written: a state dict, or a dictionary around one."""
    return _maker().load_recipe(str(FIXTURES / recipe))


def shrunk_state(recipe: str, divisor: int = 32) -> dict[str, torch.Tensor]:
    """A recipe's state dict with all sizes from 64 on divided, but for mel bins and stored arrays."""
    description = settings(recipe.removesuffix(".json"))
    entries = []
    for entry in description["tensors"]:
        if "shape" in entry and not entry["name"].startswith("bn0"):
            entry = {**entry, "shape": [size // divisor if size >= 64 else size for size in entry["shape"]]}
        entries.append(entry)
    return _maker().make_state_dict(entries, description["seed"], folder=str(FIXTURES))


def write_checkpoint(recipe: str, path: Path) -> Path:
    torch.save(checkpoint(recipe), path)
    return path


def convert(family: str, recipe: str, folder: Path, *options) -> Path:
    """Converts a recipe's checkpoint through the command line's function; returns the saved folder."""
    source = write_checkpoint(recipe, folder / "checkpoint.pth")
    target = folder / "converted"
    status = convert_command([family, str(source), str(target), *(str(option) for option in options)])
    source.unlink()
    if status != 0:
        raise RuntimeError(f"the conversion of {recipe} failed with status {status}")
    return target


def grid_options(max_length: int, frequency_stride: int, time_stride: int) -> list[str]:
    names = {"--max-length": max_length, "--frequency-stride": frequency_stride, "--time-stride": time_stride}
    return [str(word) for pair in names.items() for word in pair]
