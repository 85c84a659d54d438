"""Turns recipes (YAML or JSON) and command lines into dataclasses; fields declare help, limits and choices."""

import copy
import dataclasses
import json
import math
import operator
import re
import shutil
import sys
import textwrap
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import yaml
from transformers import HfArgumentParser

from .errors import LIBRARY_ERRORS, InputError, nearest, one_line, short, short_words

TRUTH = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")  # of Transformers' parser
UNSET = ("", "none", "null")  # on the command line: unsets a key of the recipe
GROUPS = ("task", "data", "augmentation", "model", "training", "report")  # in the order of --help
COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
HELP_COLUMN = 30
OTHER_NAMES = {  # of options, in other programs -> Transformers' names
    "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "steps": "max_steps", "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size", "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size", "num_workers": "dataloader_num_workers",
    "workers": "dataloader_num_workers", "model": "model_name_or_path", "data": "dataset_name",
    "dataset": "dataset_name", "output": "output_dir",
}  # fmt: skip
LARGEST_WHOLE = 2**31 - 1  # of an option: random generators and tensors take no larger numbers
LARGEST = 1e15  # products of two still fit into float32
MOST_VALUES = 5_000_000  # of a recipe; the log in a results.json is long


def described(default, help_text: str, *, choices: tuple = (), group: str = "", is_label: bool = False, **limits):
    """
    Returns a dataclass field with its help for `--help`, and its choices and limits for `check_limits`.

    Args:
        default: `None`: the option may be unset
        help_text: begins with a noun, names the unit, and gives the effect of an unset option
        choices: allowed values of the option, or of each element of a list
        group: heading in `--help`; empty: the class's `group`
        is_label: labels of the data, which may be called none: only an empty value unsets the option
        limits: at_least, above, at_most, below: bounds of the number, or of each element of a list
    """
    metadata = {"help": help_text, "choices": choices, "group": group, "is_label": is_label, "limits": limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Arguments:
    """Holds options of a program. Construction checks the limits and choices that the fields declare."""

    group: ClassVar[str] = "options"
    stored_as: ClassVar[str] = ""  # name in results.json; empty: the name of the class
    # Keys that are not options here, such as inherited fields -> reason, as the end of a message.
    refused: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self):
        check_limits(self)


def check_limits(arguments):
    """
    Checks the values of a dataclass, and the elements of its lists, against the limits and choices of its fields, and
    against those that every number and text has.

    Raises:
        InputError: a value out of range or not among the choices, or an empty list.
    """
    for option in dataclasses.fields(arguments):
        value = getattr(arguments, option.name, None)
        if value is None:
            continue
        wanted = _wanted(option) if _is_described(option) else ""
        values = value if isinstance(value, list) else [value]
        for one in values or [value]:
            shown = short(repr(one) if isinstance(one, str) else str(one))
            if wanted and (not values or not _is_allowed(one, option)):
                raise InputError(f"{option.name}: must be {wanted}, got {shown}")
            if problem := _impossible(one):
                raise InputError(f"{option.name}: {problem}, got {shown}")


def _impossible(value) -> str:
    """Returns what is wrong with a value that no option takes; empty if nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    largest = LARGEST if isinstance(value, float) else LARGEST_WHOLE
    if isinstance(value, (int, float)) and abs(value) > largest:
        return f"must be a number up to {largest:g}"
    return "must be a text without zero bytes" if isinstance(value, (str, Path)) and "\0" in str(value) else ""


def _is_described(option: dataclasses.Field) -> bool:
    return "limits" in option.metadata  # Transformers' fields have other metadata


def _is_allowed(value, option: dataclasses.Field) -> bool:
    choices, limits = option.metadata["choices"], option.metadata["limits"]
    if choices:
        return value in choices
    return math.isfinite(value) and all(COMPARISONS[name](value, limit) for name, limit in limits.items())


def _wanted(option: dataclasses.Field) -> str:
    """Returns limits and choices in words, such as `from 0 to below 0.5`; empty without limits and choices."""
    choices, limits = option.metadata["choices"], option.metadata["limits"]
    if choices:
        return f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
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
    Prints every option of the classes once, by groups, and ends the program. Options of Transformers' own come last, as
    a list.
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


def default_of(option: dataclasses.Field):
    return option.default_factory() if option.default is dataclasses.MISSING else option.default


def _as_words(option: dataclasses.Field) -> str:
    """Returns the default as written on a command line."""
    default = default_of(option)
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
    no_effect: Mapping[str, object] | None = None,
) -> tuple:
    """
    Parses `--key value ...` into one object per class. Where there is a recipe, an empty value, `null` or `none` unsets
    a key that may be unset; of labels only an empty value does.

    Args:
        source: name of the recipe, for messages
        recipe: values that the words override, as YAML or JSON has them
        defaults: values that recipe and words override, of the fields' types
        refused: keys that are not options here -> reason, as the end of a message
        no_effect: values with which a recipe may hold them all the same, since older versions ignored them

    Raises:
        InputError: an unknown key (with the nearest known one), or a value of the wrong type.
    """
    parser = _Parser(classes, usage=usage)
    texts, written = _texts(classes), getattr(recipe, "written", {})
    written = {
        key: text for key, text in written.items() if key in texts and (texts[key] or not isinstance(text, dict))
    }
    refused, no_effect, recipe = dict(refused or {}), dict(no_effect or {}), dict(recipe or {}) | written
    for cls in classes:
        refused |= cls.refused
        no_effect |= {field.name: default_of(field) for field in dataclasses.fields(cls) if field.name in cls.refused}
    for flag in (word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")):
        known = flag not in parser.known and flag.removeprefix("no_") in parser.known
        parser.check_known(flag.removeprefix("no_") if known else flag, "command line", refused)
    for key, value in list(recipe.items()):
        if key in refused and key not in parser.known and (value is None or _is_same(value, no_effect.get(key))):
            del recipe[key]
        else:
            parser.check_known(str(key), source, refused)
    optional = _optional(classes)
    words, unset = _without_unset(words, optional) if recipe or defaults else (words, {})
    nulls = {key: None for key, value in recipe.items() if value is None and key in optional}
    parser.set_defaults(**{**(defaults or {}), **nulls, **unset})
    words = [*_recipe_words({key: value for key, value in recipe.items() if key not in unset}), *words]
    try:
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except InputError as error:
        raise InputError(short_words(str(error))) from error
    except LIBRARY_ERRORS as error:  # of Transformers about its own options
        text = short(short_words(one_line(error)), 600)
        text = text.replace("Some specified arguments are not used by the HfArgumentParser:", "unexpected words:")
        culprit = _culprit(parser, words, text)
        raise InputError(f"{source}: {culprit}{text}") from error


def _culprit(parser: "_Parser", words: list[str], message: str) -> str:
    """Returns the name and value of the option without which the words can be parsed, unless the message names one."""
    groups = _groups(words)
    given = [group[0].removeprefix("--").partition("=") for group in groups]
    if any(re.search(rf"\b{re.escape(name)}\b", message) for name, *_ in given):
        return ""
    for place, (name, _, value) in enumerate(given):
        others = [word for other in (*groups[:place], *groups[place + 1 :]) for word in other]
        try:
            parser.parse_args_into_dataclasses(others, look_for_args_file=False)
        except (InputError, *LIBRARY_ERRORS):
            continue
        shown = short(" ".join(filter(None, (value, *groups[place][1:]))), 80)
        return f"{name}: {shown!r} cannot be used here; correct it or leave it out: "
    return ""


def _is_same(value, default) -> bool:
    """Compares a recipe's value with a default, which may be a number of another type or a member of an enum."""
    return value == default or str(value) == str(getattr(default, "value", default))


def _groups(words: list[str]) -> list[list[str]]:
    """Divides a command line into options with their values."""
    groups = []
    for word in words:
        groups.append([word]) if word.startswith("--") or not groups else groups[-1].append(word)
    return groups


def _texts(classes: tuple[type, ...]) -> dict[str, bool]:
    """Returns the options that are texts or lists of texts, with whether a mapping of texts may stand for one."""
    found = {}
    for option in (option for cls in classes for option in options(cls)):
        kinds = {*(typing.get_args(option.type) or (option.type,))} - {type(None)}
        if kinds <= {str, list, list[str]}:  # parsing may have changed the types of Transformers' own options
            found[option.name] = kinds == {str} and _is_described(option)
    return found


def _optional(classes: tuple[type, ...]) -> dict[str, tuple]:
    """Returns the options that may be unset, with the words that are values of theirs."""
    return {
        option.name: UNSET[1:] if option.metadata.get("is_label") else option.metadata.get("choices", ())
        for cls in classes
        for option in options(cls)
        if type(None) in typing.get_args(option.type) and option.default not in ("none", True)
    }


def _without_unset(words: list[str], optional: dict[str, tuple]) -> tuple[list[str], dict[str, None]]:
    """Returns the words without the options that they unset, and these options."""
    kept, unset = {}, {}
    for group in _groups(words):
        flag, equals, value = group[0].partition("=")
        name, values = flag[2:].replace("-", "_"), [value, *group[1:]] if equals else group[1:]
        unset.pop(name, None)
        if name in optional and len(values) == 1 and values[0].lower() in {*UNSET} - {*optional[name]}:
            kept.pop(name, None)
            unset[name] = None
        else:
            kept[name] = group  # argparse, too, takes the last one
    return [word for group in kept.values() for word in group], unset


def name_positionals(argv: list[str], cls: type, *names: str) -> list[str]:
    """
    Turns positional words into options: `MODEL FILE FILE --key value`, named model and files, becomes `--model MODEL
    --files FILE FILE --key value`. The words may stand anywhere; the last name takes all that remain.

    Args:
        cls: dataclass of the options, whose types say how many words follow each
    """
    types = {option.name: option.type for option in options(cls)}
    loose, named, index = [], [], 0
    while index < len(argv):
        word, index = argv[index], index + 1
        if word == "--":
            loose += [f"./{rest}" if rest.startswith("-") else rest for rest in argv[index:]]
            break
        if not word.startswith("--"):
            loose.append(word)
            continue
        named.append(word)
        kind = types.get(word[2:].replace("-", "_"))
        is_list = "list" in str(kind)
        while "=" not in word and index < len(argv) and not argv[index].startswith("--"):
            if kind is bool and argv[index].lower() not in TRUTH:
                break
            named.append(argv[index])
            index += 1
            if not is_list:
                break
    positional = []
    for place, name in enumerate(names[: len(loose)]):
        positional += [f"--{name}", *(loose[place:] if name == names[-1] else loose[place : place + 1])]
    return positional + named


def parse_program(argv: list[str], cls: type, usage: str, *positionals: str):
    """
    Parses the words of a program's command line into its options; where help is asked for, prints it and ends.

    Args:
        positionals: options that the words without a name set, see `name_positionals`

    Raises:
        InputError: as `parse_words`.
    """
    if {"-h", "--help"} & set(argv):
        show_help((cls,), usage)
    return parse_words((cls,), name_positionals(argv, cls, *positionals), usage, "command line")[0]


class WrittenRecipe(dict):
    """
    Maps the keys of a recipe to their values.

    written: key -> the text that stands there, or or a list or mapping of such: a class may be called no, 007 or
        2026-05-01
    """

    def __init__(self, values: dict, written: dict | None = None):
        super().__init__(values)
        self.written = written or {}


class _Loader(yaml.SafeLoader):
    """
    Refuses keys that stand there twice; reads 1e-4 as a number and 010 as ten, as YAML 1.2 does, and dates as texts.
    """

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        _check_unique(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return node

    def construct_date(self, node) -> str:
        self.construct_yaml_timestamp(node)  # raises ValueError for a date that does not exist
        return node.value

    def construct_whole(self, node) -> int:
        try:
            return int(node.value)
        except ValueError:  # such as 0x10
            return self.construct_yaml_int(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def _check_unique(keys: Iterable[str]):
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"the key {short(key, 80)} is there {count} times; keep one")


def _as_mapping(pairs: list[tuple]) -> dict:
    _check_unique(key for key, _ in pairs)
    return dict(pairs)


def _read_text(text: str):
    """Returns the value in a text: JSON as such, since YAML reads some of its numbers and characters as others."""
    try:
        value = json.loads(text, object_pairs_hook=_as_mapping)
        return WrittenRecipe(value) if isinstance(value, dict) else value
    except (json.JSONDecodeError, RecursionError):
        return _read_yaml(text)


def _read_yaml(text: str):
    """Returns the value in a text, a mapping as `WrittenRecipe`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        return value
    written = {key.value: _written(own) for key, own in node.value if isinstance(key, yaml.ScalarNode)}
    return WrittenRecipe(value, {key: text for key, text in written.items() if text is not None})


def _written(node: yaml.Node) -> str | list[str] | dict[str, str | None] | None:
    """Returns the texts of a value; `None` for one that is null, or that holds mappings or lists."""
    if isinstance(node, yaml.MappingNode):
        are_texts = all(isinstance(part, yaml.ScalarNode) for pair in node.value for part in pair)
        return {key.value: _written(own) for key, own in node.value} if are_texts else None
    if isinstance(node, yaml.SequenceNode):
        texts = [part.value for part in node.value if isinstance(part, yaml.ScalarNode)]
        return texts if len(texts) == len(node.value) else None
    return node.value if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":null") else None


def read_recipe(path: Path) -> WrittenRecipe:
    """Reads a recipe: key -> value; raises `InputError` unless the file is a mapping in YAML or JSON."""
    if not path.is_file():
        raise InputError(f"{path}: no such recipe; recipes/ holds examples")
    try:
        recipe = _read_text(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML or JSON ({one_line(error)})") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected key: value lines, got {type(recipe).__name__}")
    if _is_endless(recipe):
        raise InputError(f"{path}: holds more than {MOST_VALUES:,} values; references (*name) may be in a circle")
    return recipe


def _is_endless(recipe: dict) -> bool:
    """Returns whether a recipe holds too many values to be written out: references multiply them, or form a circle."""
    count, left = 0, [recipe]
    while left and count <= MOST_VALUES:
        value = left.pop()
        children = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(children)
        left += children
    return count > MOST_VALUES


def _recipe_words(recipe: dict) -> list[str]:
    """Returns a recipe as command-line words, which argparse converts by the fields' types."""
    words = []
    for key, value in recipe.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            texts = [one if isinstance(one, str) else json.dumps(one, default=str) for one in values]
            # A single text may begin with a dash.
            words += [f"--{key}={texts[0]}"] if len(texts) == 1 else [f"--{key}", *texts]
    return words


class _Parser(HfArgumentParser):
    """Extends Transformers' parser: leaves out refused fields and raises `InputError`."""

    def __init__(self, classes: tuple[type, ...], usage: str):
        self.known = {option.name for cls in classes for option in options(cls)}
        super().__init__(classes, allow_abbrev=False, usage=usage)

    def check_known(self, key: str, where: str, refused: Mapping[str, str]):
        if key in self.known:
            return
        if (name := OTHER_NAMES.get(key)) in self.known:
            raise InputError(f"{where}: unknown key {key}; did you mean {name}?")
        if key in refused:
            raise InputError(f"{where}: {key}: {refused[key]}")
        raise InputError(f"{where}: unknown key {short(key, 80)}; {nearest(key, self.known, '--help lists all keys')}")

    def _parse_dataclass_field(self, parser, field: dataclasses.Field):
        if field.name not in self.known:
            self.set_defaults(**{field.name: default_of(field)})
            return
        if _is_described(field):  # HfArgumentParser passes metadata to argparse, which takes only the help
            field = copy.copy(field)
            field.metadata = {"help": field.metadata["help"]}
        HfArgumentParser._parse_dataclass_field(parser, field)

    def error(self, message: str):
        """Raises `InputError`, with the value and the list of choices cut: argparse repeats them whole."""
        problem, listing, choices = message.partition(" (choose from ")
        raise InputError(short(problem, 120) + listing + short(choices, 800))
