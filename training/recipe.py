"""Turns recipes (YAML or JSON) and command lines into dataclasses; fields declare help, limits and choices."""

import argparse
import copy
import dataclasses
import functools
import json
import math
import operator
import shutil
import sys
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import yaml
from transformers import HfArgumentParser

from .errors import InputError, nearest

UNSET = ("", "none", "null")  # on the command line: removes a key of the recipe
GROUPS = ("task", "data", "augmentation", "model", "training", "report")  # the order in which --help shows them
COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
HELP_COLUMN = 30


def described(default, help_text: str, *, choices: tuple = (), group: str = "", **limits):
    """
    Returns a dataclass field with what `--help` shows and `check_limits` checks.

    Args:
        default: `None`: the option may be unset
        help_text: begins with a noun, names the unit, and says what happens when the option is unset
        choices: the values that the option, or each element of a list, may have
        group: heading in `--help`; the class's `group` where it is empty
        limits: at_least, above, at_most, below: of the number, or of each element of a list
    """
    metadata = {"help": help_text, "choices": choices, "group": group, "limits": limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Arguments:
    """Options of a program. Construction checks the limits and choices that the fields declare."""

    group: ClassVar[str] = "options"
    stored_as: ClassVar[str] = ""  # name in results.json; the class's own where it is empty
    # Keys that are no options here, inherited fields among them -> why, as the end of a message.
    refused: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self):
        check_limits(self)


def check_limits(arguments):
    """
    Compares the values of a dataclass, and the elements of its lists, with the limits and choices of its fields.

    Raises:
        InputError: a value is out of range, is no choice, or a list is empty.
    """
    for option in filter(_is_described, dataclasses.fields(arguments)):
        wanted, value = _wanted(option), getattr(arguments, option.name)
        if not wanted or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        for one in values or [value]:
            if not values or not _is_allowed(one, option):
                shown = repr(one) if isinstance(one, str) else one
                raise InputError(f"{option.name}: must be {wanted}, got {shown}")


def _is_described(option: dataclasses.Field) -> bool:
    return "limits" in option.metadata  # Transformers' fields have other metadata


def _is_allowed(value, option: dataclasses.Field) -> bool:
    choices, limits = option.metadata["choices"], option.metadata["limits"]
    if choices:
        return value in choices
    return math.isfinite(value) and all(COMPARISONS[name](value, limit) for name, limit in limits.items())


def _wanted(option: dataclasses.Field) -> str:
    """Returns limits and choices in words, such as `from 0 to below 0.5`; empty where there are none."""
    choices, limits = option.metadata["choices"], option.metadata["limits"]
    if choices:
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    words = {name: f"{name.replace('at_', 'at ')} {limit:g}" for name, limit in limits.items()}
    lowest, highest = words.get("above", ""), words.get("at_most", words.get("below", ""))
    if "at_least" in limits:
        lowest = f"from {limits['at_least']:g}" if highest else f"{limits['at_least']:g} or more"
        return f"{lowest} to {highest.removeprefix('at most ')}" if highest else lowest
    return " and ".join(filter(None, (lowest, highest)))


def options(cls: type) -> list[dataclasses.Field]:
    """Returns the fields of a dataclass that a recipe can set."""
    return [option for option in dataclasses.fields(cls) if option.init and option.name not in cls.refused]


def show_help(classes: tuple[type, ...], usage: str, note: str = ""):
    """
    Prints every option of the classes once, by groups, and ends the program. Options that only Transformers describes
    come last, as a list.
    """
    groups, others = {name: [] for name in GROUPS}, []
    for cls in classes:
        for option in options(cls):
            is_ours = _is_described(option)
            own = groups.setdefault(option.metadata["group"] or cls.group, []) if is_ours else others
            own.append(option)
    width = min(shutil.get_terminal_size().columns, 120)
    print(f"usage: {usage}")
    for name, members in groups.items():
        if members:
            print(f"\n{name}:", *(_help_line(option, width) for option in members), sep="\n")
    if others:
        listed = ", ".join(f"{option.name} ({_as_words(option)})" for option in others)
        print("\nother options of Transformers' TrainingArguments (defaults), see its documentation:")
        print(textwrap.fill(listed, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    print(f"\n{note}" if note else "")
    sys.exit(0)


def _help_line(option: dataclasses.Field, width: int) -> str:
    default = _as_words(option)
    facts = "; ".join(filter(None, (_wanted(option), f"default: {default}" if default != "unset" else "")))
    text = option.metadata["help"] + (f" ({facts})" if facts else "")
    indent = " " * HELP_COLUMN
    lines = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    name = f"  --{option.name}"
    return name + lines[len(name) :] if len(name) < HELP_COLUMN else f"{name}\n{lines}"


def _as_words(option: dataclasses.Field) -> str:
    """Returns the default as a command line would have it."""
    is_made = option.default is dataclasses.MISSING
    default = option.default_factory() if is_made else option.default
    if default is None or default == "":
        return "unset"
    if isinstance(default, list):
        return " ".join(map(str, default)) or "none"
    return str(default).lower() if isinstance(default, bool) else str(getattr(default, "value", default))


def parse_words(
    classes: tuple[type, ...],
    words: list[str],
    usage: str,
    source: str,
    recipe: dict | None = None,
    defaults: dict | None = None,
    refused: Mapping[str, str] | None = None,
) -> tuple:
    """
    `--key value ...` -> one object per class. An empty value, `null` or `none` unsets a key that may be unset.

    Args:
        source: what to name where a value is wrong
        recipe: values that the words override
        defaults: the same, of the types that the fields have
        refused: keys that are no options here -> why, as the end of a message

    Raises:
        InputError: an unknown key (with the nearest known one), or a value of the wrong kind.
    """
    parser = _Parser(classes, usage=usage)
    for cls in classes:
        refused = {**(refused or {}), **cls.refused}
    for flag in (word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")):
        known = flag not in parser.known and flag.removeprefix("no_") in parser.known
        parser.check_known(flag.removeprefix("no_") if known else flag, "command line", refused)
    for key in recipe or {}:
        parser.check_known(str(key), source, refused)
    parser.set_defaults(**(defaults or {}))
    try:
        return parser.parse_args_into_dataclasses([*_recipe_words(recipe or {}), *words], look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error


def read_recipe(path: Path) -> dict:
    """
    Reads a recipe.

    Raises:
        InputError: no such file, not YAML or JSON, or no mapping.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such recipe; recipes/ holds examples")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML or JSON ({' '.join(str(error).split())})") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected key: value lines, got {type(recipe).__name__}")
    return recipe


def _recipe_words(recipe: dict) -> list[str]:
    """Returns a recipe as command-line words: YAML reads `1e-4` as a text, argparse converts by the field's type."""
    words = []
    for key, value in recipe.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return words


class _Parser(HfArgumentParser):
    """Transformers' parser, without refused fields, with options that can be unset, and with `InputError`."""

    def __init__(self, classes: tuple[type, ...], usage: str):
        self.known = {option.name for cls in classes for option in options(cls)}
        super().__init__(classes, allow_abbrev=False, usage=usage)

    def check_known(self, key: str, where: str, refused: Mapping[str, str]):
        if key in self.known:
            return
        if key in refused:
            raise InputError(f"{where}: {key}: {refused[key]}")
        raise InputError(f"{where}: unknown key {key}; {nearest(key, self.known, '--help lists all keys')}")

    def _parse_dataclass_field(self, parser, field: dataclasses.Field):
        if field.name not in self.known:
            self.set_defaults(**{field.name: field.default})
            return
        plain = copy.copy(field)  # argparse takes no metadata but the help
        plain.metadata = {"help": field.metadata.get("help", "")}
        if type(None) in typing.get_args(field.type) and field.default not in ("none", True):
            unset = tuple(word for word in UNSET if word not in field.metadata.get("choices", ()))
            plain.metadata["action"] = functools.partial(_StoreOrUnset, unset=unset)
        HfArgumentParser._parse_dataclass_field(parser, plain)

    def error(self, message: str):
        raise InputError(message)


class _StoreOrUnset(argparse.Action):
    """Stores a value, or `None` for one of the words that unset an option."""

    def __init__(self, *args, type, unset: tuple[str, ...], **kwargs):
        @functools.wraps(type)  # argparse names it where a value is of the wrong kind
        def convert(text: str):
            return None if text.lower() in unset else type(text)

        super().__init__(*args, type=convert, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, None if values == [None] else values)
