"""Reads recipes: YAML or JSON and the command line become dataclasses."""

import dataclasses
import difflib
import json
import sys
from dataclasses import field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from .errors import InputError


def show_help(classes: tuple[type, ...], usage: str, note: str = ""):
    """Prints every key of the classes with its help, and ends the program."""
    HfArgumentParser(classes, usage=usage).print_help()
    print(f"\n{note}" if note else "")
    sys.exit(0)


def parse_words(
    classes: tuple[type, ...],
    words: list[str],
    usage: str,
    source: str,
    recipe: dict | None = None,
    defaults: dict | None = None,
) -> tuple:
    """
    `--key value ...` -> one object per class.

    Args:
        source: what to name where a value is wrong
        recipe: values that the words override
        defaults: the same, of the types that the fields have

    Raises:
        InputError: an unknown key (with the nearest known one), or a value of the wrong kind.
    """
    parser = HfArgumentParser(classes, allow_abbrev=False, usage=usage)
    parser.error = _raise_input_error
    known = {f.name for cls in classes for f in dataclasses.fields(cls) if f.init}
    for flag in (word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")):
        _check_known(flag.removeprefix("no_") if flag not in known else flag, known, "command line")
    parser.set_defaults(**(defaults or {}))
    words = [*_recipe_words(source, recipe or {}, known), *words]
    try:
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error


def read_recipe(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path}: no such recipe; recipes/ holds examples")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML or JSON ({' '.join(str(error).split())})") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected key: value lines, got {type(recipe).__name__}")
    return recipe


def _recipe_words(path: str, recipe: dict, known: set[str]) -> list[str]:
    """A recipe as command-line words: `1e-4` is a text to YAML, and argparse knows the type of every field."""
    words = []
    for key, value in recipe.items():
        _check_known(str(key), known, path)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return words


def _check_known(key: str, known: set[str], where: str):
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; --help lists all keys"
        raise InputError(f"{where}: unknown key {key}{hint}")


def _raise_input_error(message: str):
    raise InputError(message)


def described(default, help_text: str):
    """A field with a default and the help that `train_hf.py --help` shows."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})
