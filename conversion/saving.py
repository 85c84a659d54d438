"""Saves a converted model, whole or not at all, and reads it back."""

from pathlib import Path

import torch
from huggingface_hub import ModelCard

from model_cards.card import converted_card
from training.files import check_writable, complete_folder

from .catalogue import ORIGIN, Published, weights_of
from .checkpoint import ConversionError, shorten
from .result import Converted


def check_target(source: Path, target: Path, overwrite: bool):
    """
    Checks the folder to write to.

    Raises:
        InputError: the folder cannot be written.
        ConversionError: `target` is not empty and may not be replaced, or replacing it would delete the source.
    """
    resolved, origin = target.resolve(), source.resolve()
    if resolved == origin or resolved in origin.parents:
        raise ConversionError(f"{target} holds the source {source}: choose another output folder")
    check_writable(target, is_folder=True)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ConversionError(f"{target} exists and is not empty: choose another folder or add --overwrite")


def save(
    converted: Converted,
    target: Path,
    verify: bool = False,
    *,
    source: Path,
    origin: Published | None = None,
    port_of: Published | None = None,
) -> tuple[int, float] | None:
    """
    Saves the model, its code, its feature extractor and its card beside `target`, and moves them there when they are
    complete. An earlier `target` is kept until then.

    Args:
        source: the original file, for the card
        origin: the catalogue's entry, if the checkpoint is a published one
        port_of: the same, if it is a published one in the format of Transformers

    Returns:
        with `verify`, the number of compared tensors that were read back, and their largest difference

    Raises:
        InputError: `target` cannot be replaced.
        ConversionError: the tensors that were read back differ.
    """
    with complete_folder(target) as folder:
        converted.model.save_pretrained(folder)
        converted.feature_extractor.save_pretrained(folder)
        outcome = compare_saved(converted, folder) if verify else None
        card = make_card(converted, target.resolve().name, source, outcome, origin)
        if (known := origin or port_of) is not None:
            card.data[ORIGIN] = {"checkpoint": known.name, "sha256": weights_of(folder)}
        (folder / "README.md").write_text(str(card), encoding="utf-8")
    return outcome


def make_card(
    converted: Converted, name: str, source: Path, verified: tuple[int, float] | None, origin: Published | None
) -> ModelCard:
    model, auto_class = converted.model, type(converted.model)._auto_class
    return converted_card(
        name,
        model.config,
        converted.feature_extractor,
        title=converted.title,
        file_name=source.name,
        is_classifier=auto_class in ("AutoModelForAudioClassification", "AutoModelForAudioFrameClassification"),
        is_detector=auto_class == "AutoModelForAudioFrameClassification",
        is_pretraining=auto_class == "AutoModelForPreTraining",
        num_parameters=model.num_parameters(),
        notes=converted.notes,
        dropped=converted.dropped,
        new=converted.new,
        verified=verified,
        origin=origin,
    )


def compare_saved(converted: Converted, folder: Path) -> tuple[int, float]:
    """
    Reads a saved folder through `from_pretrained` and compares every tensor.

    Returns:
        number of tensors, largest absolute difference (always 0)

    Raises:
        ConversionError: a tensor is missing, new or different, or the feature extractor's settings are.
    """
    model, info = type(converted.model).from_pretrained(folder, output_loading_info=True)
    expected, actual = converted.model.state_dict(), model.state_dict()
    outcome = compare_states(expected, actual, wrong=set(info["missing_keys"]) | set(info["unexpected_keys"]))
    extractor = type(converted.feature_extractor).from_pretrained(folder)
    if extractor.to_dict() != converted.feature_extractor.to_dict():
        raise ConversionError("verification failed: the feature extractor's settings differ after reading back")
    return outcome


def compare_states(expected: dict, actual: dict, wrong: frozenset | set = frozenset()) -> tuple[int, float]:
    """
    Compares two state dicts; returns the number of tensors and their largest absolute difference (always 0).

    Args:
        wrong: names that already failed to match

    Raises:
        ConversionError: a tensor is missing, new or different.
    """
    lost = sorted(wrong | (set(expected) ^ set(actual)))
    if lost:
        raise ConversionError(f"verification failed: {shorten(lost)} are not the same names after reading back")
    differences = {name: _difference(tensor, actual[name]) for name, tensor in expected.items()}
    worst = max(differences, key=differences.get)
    if differences[worst] != 0:
        raise ConversionError(f"verification failed: {worst} differs by {differences[worst]:g} after reading back")
    return len(expected), differences[worst]


def _difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Returns the largest absolute difference; infinity for another shape, and for NaN or infinity on one side."""
    if expected.shape != actual.shape:
        return float("inf")
    expected, actual = expected.double(), actual.double()
    is_equal = (expected == actual) | (expected.isnan() & actual.isnan())
    differences = (expected - actual)[~is_equal].abs()
    # NaN is not larger than any other difference, so that a maximum would hide it.
    return differences.nan_to_num(float("inf"), float("inf")).max().item() if differences.numel() else 0.0
