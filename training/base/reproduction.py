"""Repeats a run from its `results.json`: its recipe, and the versions, machine and data on which its weights depend."""

import hashlib
import json
import os
import platform

import datasets as huggingface_datasets
import numpy as np
import sklearn
import torch
import transformers
from transformers.utils import logging

import modeling_dual_ssast

from ..data.audio import audio_name
from ..data.columns import audio_of

logger = logging.get_logger(__name__)

ENDS_SIZE = 64 * 1024  # bytes at each end of a file that enter its fingerprint
# Settings that Transformers fills in, with values that differ from this project's.
CHOSEN = ("metric_for_best_model", "greater_is_better")
# Settings of one run only, and `from_sweep`: the recipe already contains the keys that it fills in.
NOT_REPEATED = (
    "logging_dir", "run_name", "overwrite", "resume_from_checkpoint", "from_sweep", "push_to_hub", "hub_model_id",
    "hub_private_repo", "hub_strategy",
)  # fmt: skip


def is_results(recipe: dict) -> bool:
    """Returns whether a recipe is the `results.json` of a run."""
    return isinstance(recipe.get("recipe"), dict) and "versions" in recipe


def recipe_of(results: dict, path: str, known: set[str], defaults: dict) -> dict:
    """
    Returns the keys of a run's recipe with their values, `None` included.

    Args:
        known: keys of this version; the function warns of others
        defaults: values of the keys on this machine; equal values are left out
    """
    recipe = {}
    for part in results["recipe"].values():
        recipe |= part if isinstance(part, dict) else {}
    for key in sorted(recipe.keys() - known):
        if recipe[key] not in (None, False):
            _warn(f"{path}: {key} is unknown to this version, where it was {recipe[key]!r}")
    return {
        key: _as_words(value)
        for key, value in recipe.items()
        if key in known
        and key not in NOT_REPEATED
        and not key.endswith("_token")
        and not (key in defaults and defaults[key] == value and key not in CHOSEN)
    }


def circumstances(splits: dict[str, huggingface_datasets.Dataset], arguments) -> dict:
    """
    Returns versions, machine and data, for `results.json`. If the recipe is a `results.json`, warns where machine or
    data differ. Called by every process; the main one reads the data.
    """
    if arguments.process_index:
        return {}
    now = {"machine": machine(arguments.device, arguments.world_size), "data": describe_data(splits)}
    if arguments.reproduces is not None:
        warn_of_differences(*arguments.reproduces, now)
    return {"versions": versions(), **now}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the metrics depend on."""
    modules = (modeling_dual_ssast, transformers, torch, np, sklearn)
    return {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


def machine(device: torch.device, num_processes: int) -> dict[str, str | int]:
    """Returns the device, its threads and the number of processes: the order of sums depends on them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "processes": num_processes}


def describe_data(splits: dict[str, huggingface_datasets.Dataset]) -> dict[str, dict]:
    """
    Returns split -> number of clips and their fingerprint, from file names without folders, labels, sizes, and the
    first and last 64 KiB of each file. It depends on clips, order, labels and recordings, not on the folder.
    """
    files = {}  # many clips can be parts of one recording
    described = {}
    for split, data in splits.items():
        digest = hashlib.sha256()
        for example in data:
            audio = audio_of(example)
            source = audio["path"] if isinstance(audio, dict) and audio.get("bytes") is None else audio
            if isinstance(source, str):
                content = files.get(source) or files.setdefault(source, _file_fingerprint(source))
            else:
                content = _bytes_fingerprint(source["bytes"])
            name = os.path.basename(audio_name(audio))
            digest.update(json.dumps([name, example["label"], content], ensure_ascii=False).encode() + b"\n")
        described[split] = {"clips": len(data), "sha256": digest.hexdigest()}
    return described


def warn_of_differences(path: str, then: dict, now: dict):
    """Warns of every version, split or property of the machine that differs. then, now: entries of `results.json`"""
    for section in now:
        there, here = then.get(section) or {}, now[section]
        for key in [*there, *(key for key in here if key not in there)] if there and here else ():
            if there.get(key) == here.get(key):
                continue
            if section == "data":
                clips = [side.get(key, {}).get("clips", 0) for side in (there, here)]
                remark = f"of {clips[0]} clips, here of {clips[1]}" if clips[0] != clips[1] else "of other clips"
                _warn(f"{path}: the {key} split was {remark}; the weights will differ")
            else:
                change = f"was {there.get(key)}, here it is {here.get(key)}"
                _warn(f"{path}: {key} {change}; the weights may differ")


def _warn(message: str):
    """Warns in the main process only, since all processes read the recipe."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(message)


def _file_fingerprint(path: str) -> list | None:
    """Returns the size and a hash of both ends; `None` for an unreadable file, which the training reports."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(ENDS_SIZE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(beginning), size - ENDS_SIZE))
            return [size, hashlib.sha256(beginning + file.read()).hexdigest()]
    except OSError:
        return None


def _as_words(value):
    """Returns a value with inner lists as JSON, as on a command line."""
    if not isinstance(value, list):
        return value
    return [json.dumps(item) if isinstance(item, (list, dict)) else item for item in value]


def _bytes_fingerprint(content: bytes) -> list:
    """Returns the `_file_fingerprint` of a file in memory."""
    beginning = content[:ENDS_SIZE]
    end = content[max(len(beginning), len(content) - ENDS_SIZE) :]
    return [len(content), hashlib.sha256(beginning + end).hexdigest()]
