"""Loads reference numbers of the originals, rebuilds checkpoints from recipes; see fixtures/README.md."""

import functools
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import torch

from conversion.__main__ import main as convert_command

FIXTURES = Path(__file__).parents[1] / "fixtures"
EPS = 2.0**-23  # spacing of float32 numbers, relative to their size
FROM_WAVEFORM = 1e-3  # absolute, for networks with a waveform as input; see assert_filter_bank_close


def assert_close(actual, expected: np.ndarray, atol: float = 1e-5, share: float = 16 * EPS):
    """
    Checks that a network's states or outputs equal the original's: within `atol`, or within `share` of the largest
    expected value if that is more.

    One absolute number does not fit all arrays, because a float32 number is rounded relative to its size. A state of a
    transformer is the sum of its embedding and up to 24 outputs of sub-layers. Each addition rounds by up to EPS / 2 of
    the sum, and each sub-layer adds a few EPS of its own. The order of the additions inside a matrix product differs
    between processors, so these errors are independent: about sqrt(24) EPS together, on both sides. A computation in
    float64 differs from the stored arrays by at most 4 EPS of the largest value, one on other instruction sets by 5.
    Hence 16 EPS.
    """
    actual, expected = _arrays(actual, expected)
    largest = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, atol=max(atol, share * largest), rtol=0)


def assert_gradients_close(actual, expected: np.ndarray):
    """
    Checks gradients relative to the array's largest value: a gradient adds up to 49152 terms here, the pixels of a
    batch, in an order that differs between libraries. The rounding of so many additions grows with their square root,
    to sqrt(49152) * EPS / 2 = 1.3e-5 of the largest value. Four times that is allowed. The originals' own repetitions
    differ by 7e-6, and this project without oneDNN by 1.1e-5.
    """
    assert_close(actual, expected, atol=0.0, share=5e-5)


def assert_filter_bank_close(actual, expected: np.ndarray, num_fft: int, nats: float, atol: float = 1e-4):
    """
    Checks log energies (..., mel) with tolerances that follow from float32 and hold for every FFT.

    A Fourier transform of n points mixes log2(n) times, and each time rounds relative to the largest values. Its error
    is therefore the same in all bins, at most EPS * log2(n) of the loudest bin's amplitude; the samples' own rounding
    before it (mean, pre-emphasis, window) spreads over all bins in the same way and stays below. The square root of a
    mel bin's energy is a norm of the spectrum, so it inherits this bound d by the triangle inequality. A floor under
    the logarithm only makes errors smaller.

    In a bin whose amplitude is r times the loudest of its frame, d is a relative error d / r in amplitude and 2 d / r
    in the natural logarithm of energy. So there are two parts:

    - Bins with 2 d / r below `atol` are compared in the logarithm, within `atol`. The remaining error is the rounding
      of the mel filters in float32. With 512 points, a standard deviation of 4.57 and 1e-4, these are the bins within
      53 dB of the loudest.
    - The others contain more and more rounding noise, and their logarithms can differ by any amount. They are compared
      in amplitude relative to the loudest bin, within d. At their border both parts allow the same.

    The outputs of a network on such features differ too. Features computed in float64 change them by up to 5e-6. Errors
    of the full allowed size, with a random sign in every quiet bin, change them by 1e-3 (FROM_WAVEFORM), and no Fourier
    transform has errors near this size.

    Args:
        actual, expected: log energies, (..., mel): the last axis has all bins of a frame
        num_fft: points of the Fourier transform
        nats: natural logarithms of energy per unit of the arrays: 1 for Kaldi's, 2 * std after normalisation,
            ln(10) / 10 for dB
        atol: in units of the arrays
    """
    actual, expected = _arrays(actual, expected)
    assert actual.shape == expected.shape
    loudest = expected.max(axis=-1, keepdims=True)
    actual_amplitude, amplitude = (np.exp(nats / 2 * (values - loudest)) for values in (actual, expected))
    rounding = EPS * math.log2(num_fft)
    near = amplitude >= rounding / (nats / 2 * atol)
    np.testing.assert_allclose(actual[near], expected[near], atol=atol, rtol=0)
    np.testing.assert_allclose(actual_amplitude[~near], amplitude[~near], atol=rounding, rtol=0)


def _arrays(*values) -> list[np.ndarray]:
    """Returns tensors and arrays as float64 arrays."""
    return [
        np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, dtype=np.float64) for value in values
    ]


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """Loads all arrays of `fixtures/NAME.npz`."""
    with np.load(FIXTURES / f"{name}.npz") as stored:
        return dict(stored)


def settings(name: str) -> dict:
    """Reads the arguments of the original's call: `fixtures/NAME.json`."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


@functools.cache
def _maker():
    spec = importlib.util.spec_from_file_location("make_weights", FIXTURES / "make_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint(recipe: str):
    """Rebuilds the object that the original saved by torch.save: a state dict, or a dictionary around one."""
    return _maker().load_recipe(str(FIXTURES / recipe))


def shrunk_state(recipe: str, divisor: int = 32) -> dict[str, torch.Tensor]:
    """Returns a recipe's state dict with all sizes from 64 on divided, except mel bins and stored arrays."""
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
