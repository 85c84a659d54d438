"""Describes a family of original checkpoints, and the options of a conversion."""

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Options:
    """
    Holds the options of a conversion.

    task: `pretraining`, `classification` or `encoder`; `None`: the task of the file
    pooling: of a Dual SSAST, by its paper's name
    readout: tokens that the classifier reads, for a folder of Transformers' AST; `None`: AST's own
    weights: `teacher` or `student`, for a file with two networks; `None` for both, or the better one
    max_length, frequency_stride, time_stride: frames, mel bins, frames. They describe a file that does not store its
        own grid; other models are resized to them.
    labels: path of a label file
    sampling_rate: in Hz, of the training audio; `None` if the file contains its front end
    mean, std: of the feature extractor's log-mels; `None` for the source's or AudioSet's
    """

    task: str | None = None
    pooling: str | None = None
    readout: str | None = None
    weights: str | None = None
    max_length: int | None = None
    frequency_stride: int | None = None
    time_stride: int | None = None
    labels: Path | None = None
    sampling_rate: int | None = None
    mean: float | None = None
    std: float | None = None

    @property
    def grid(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in ("max_length", "frequency_stride", "time_stride")}

    @property
    def statistics(self) -> dict[str, float]:
        """Returns those of `mean` and `std` that are given."""
        return {name: value for name in ("mean", "std") if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True)
class Family:
    """
    Describes a family of original checkpoints.

    name: on the command line
    source: description of its files or folders
    convert: (source, options) -> `result.Converted`; raises `ConversionError`
    options: names of the fields of `Options` that it supports -> keywords of `argparse.add_argument`
    """

    name: str
    source: str
    convert: Callable
    options: dict[str, dict]


LARGEST = 1_000_000  # frames, mel bins or Hz: memory does not hold models of longer clips


def positive_int(text: str) -> int:
    if not text.isdecimal() or len(text) > 7 or not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(f"expected a positive integer up to {LARGEST}, got {text[:80]!r}")
    return int(text)


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def positive(text: str) -> float:
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


# ---- options of several families ----

LABELS = {"labels": {"type": Path, "metavar": "FILE", "help": "one label per line, or index,mid,display_name"}}


def task(*choices: str, text: str) -> dict[str, dict]:
    """Returns the option of the task to convert to; `text` is its help."""
    return {"task": {"choices": choices, "help": text}}


def grid(text: str) -> dict[str, dict]:
    """Returns the options of the patch grid; `text` ends the help of each."""
    return {
        "max_length": {"type": positive_int, "metavar": "FRAMES", "help": f"length; {text}"},
        "frequency_stride": {"type": positive_int, "metavar": "BINS", "help": f"patch step; {text}"},
        "time_stride": {"type": positive_int, "metavar": "FRAMES", "help": f"patch step; {text}"},
    }


def statistics(default: str = "AudioSet's") -> dict[str, dict]:
    """Returns the options of the features' mean and standard deviation; `default` is for the help."""
    return {
        "mean": {"type": finite, "help": f"of the log-mels, for the feature extractor; default: {default}"},
        "std": {"type": positive, "help": f"of the log-mels, undoubled; default: {default}"},
    }
