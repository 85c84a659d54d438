"""Warns where the starting weights may have been trained on clips that a run sets aside."""

from collections.abc import Collection, Mapping
from pathlib import Path

import datasets
from transformers.utils import logging

from ..data.columns import clip_names
from ..errors import printable
from ..files import real_path, storable
from .outputs import earlier_results
from .reproduction import describe_data

logger = logging.get_logger(__name__)
PREDICTIONS = "predictions.csv"


def warn_of_learnt_clips(model: str | None, splits: Mapping[str, datasets.Dataset], named: Collection[str] = ()):
    """
    Warns where the starting weights are those of a finished run that shares clips with this one, and clips that are
    drawn for the validation or test now were not set aside there: another table leads to another draw.

    Args:
        model: what the weights are loaded from; `None`: they are random
        splits: all clips of this run, by split
        named: the splits that the recipe names, which are not drawn
    """
    found = None if model is None else _tested_clips(Path(model))
    if found is None:
        return
    results, kind, tested = found
    names = {split: list(map(_comparable, clip_names(data))) for split, data in splits.items()}
    if tested.isdisjoint(name for own in names.values() for name in own):
        return
    counts = []
    for split in ("test", "validation"):
        if split in named or split not in splits:
            continue
        # Only the clips of one split are listed there; the other one is known by its fingerprint.
        if (results.get("data") or {}).get(split) == describe_data({split: splits[split]})[split]:
            continue
        others = sum(name not in tested for name in names[split])
        counts += [f"{others} of {len(names[split])} {split} clips"] if others else []
    if counts:
        logger.warning(
            f"{printable(model)}: its weights may have been trained on what is set aside now: {' and '.join(counts)} "
            f"were not {kind} clips of that run, which shares clips with this one; name the splits (validation_file "
            "and test_file, or sub-folders), or start from other weights"
        )


def _tested_clips(model: Path) -> tuple[dict, str, set[str]] | None:
    """Returns results of the run that trained a model, the split that it predicted, and the clips of that."""
    import pandas

    for folder in (model, model.parent):  # the parent: of a checkpoint, and of the model of a probe
        results = earlier_results(folder)
        if "clips" not in results or not (folder / PREDICTIONS).is_file():
            continue
        try:
            files = pandas.read_csv(folder / PREDICTIONS, dtype=str, keep_default_na=False)["file"]
        except (OSError, ValueError, KeyError):  # damaged: nothing is known
            return None
        return results, "test" if "test" in results["clips"] else "validation", set(map(_comparable, files))
    return None


def _comparable(name: str) -> str:
    """Returns a clip's name as an absolute path without links, as text files hold it."""
    return storable(real_path(name) or name)
