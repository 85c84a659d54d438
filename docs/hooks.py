"""
Writes the command-line reference when the site is built.

A line `<!-- options: -m hub push -->` of a page becomes the usage and the tables of options that
`python -m hub push --help` would print.
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import re
import runpy
import sys
from html import escape
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"<!-- options: (.+?) -->")
MARKUP = re.compile(r"[\\*_`\[\]|{}#]")  # what Markdown would read as more than a character
NAME = re.compile(r"\[(<code>~?[\w.]+</code>)\]")
TYPE = re.compile(r"<code>(`[^<]*?)(?:, \*optional\*)?(?:, defaults? to [^<]*)?</code>")
LONGEST_DEFAULT = 60


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Replaces the markers of a page (a hook of MkDocs)."""
    return MARKER.sub(lambda marker: describe(find_parser(marker[1].split())), markdown)


def on_page_content(html: str, **kwargs) -> str:
    """
    Translates what Transformers' docstrings write in their own way (a hook of MkDocs): [`name`] for the name of a
    class, and "`int`, *optional*, defaults to 768" for a type, beside which the signature's default stands anyway.
    """
    return TYPE.sub(lambda kind: f"<code>{kind[1].replace('`', '')}</code>", NAME.sub(r"\1", html))


def find_parser(words: list[str]) -> argparse.ArgumentParser:
    """
    Runs a program with `--help` and returns the parser that would print it. Programs share this process, so that
    torch is imported once.

    Args:
        words: a command line without `python`, such as `["-m", "hub", "push"]`
    """
    parsers = []
    module, arguments = (words[1], words[2:]) if words[0] == "-m" else (None, words[1:])
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser)),
        mock.patch.object(sys, "argv", [words[0], *arguments, "--help"]),
        mock.patch.object(sys, "path", [str(ROOT), *sys.path]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    if not parsers:
        raise LookupError(f"{' '.join(words)} --help printed no options")
    return parsers[-1]


def describe(parser: argparse.ArgumentParser) -> str:
    """Returns Markdown: the usage, a table for each group of options, and Transformers' own options folded away."""
    inherited = transformers_options()
    tables, folded = [], []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if is_shown(action)]
        own = [action for action in actions if not is_inherited(action, inherited)]
        folded += [action for action in actions if is_inherited(action, inherited)]
        if own:
            title = {"options": "", "positional arguments": ""}.get(group.title, f"**{as_text(group.title)}**\n\n")
            tables.append(title + table(parser, own))
    if folded:
        rows = table(parser, folded).replace("\n", "\n    ")
        tables.append(f'??? note "Options of Transformers\' `TrainingArguments`"\n\n    {rows}')
    words = [parser.prog, *(name(action) for action in parser._get_positional_actions()), "[options]"]
    return "\n\n".join([f"```text\n{parser.usage or ' '.join(words)}\n```", *tables])


def transformers_options() -> dict[str, str]:
    """Returns name -> help of every option that Transformers gives a training."""
    from transformers import TrainingArguments

    return {field.name: field.metadata.get("help", "") for field in dataclasses.fields(TrainingArguments)}


def is_shown(action: argparse.Action) -> bool:
    """Whether the option has a row: neither `--help`, nor the `--no_x` of a switch, nor a command."""
    is_negation = isinstance(action, argparse._StoreFalseAction) and action.option_strings[0].startswith("--no_")
    return not (is_negation or action.dest == "help" or isinstance(action, argparse._SubParsersAction))


def is_inherited(action: argparse.Action, inherited: dict[str, str]) -> bool:
    """Whether the option has Transformers' own help; where this project redefines one, the help is its own."""
    return bool(action.option_strings) and inherited.get(action.dest) == action.help


def table(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    """Returns a Markdown table with a row for each option."""
    rows = [f"| `{name(action)}` | {explanation(parser, action)} {default(action)} |" for action in actions]
    lines = ["| option | meaning |", "|---|---|", *rows]
    return "\n".join(['<div class="options" markdown="block">', "", *lines, "", "</div>"])


def name(action: argparse.Action) -> str:
    """Returns the option as people write it. Where both spellings are accepted, `--top_k` stands for `--top-k` too."""
    if not action.option_strings:
        return action.metavar if isinstance(action.metavar, str) else action.dest
    longest = [option for option in action.option_strings if option.startswith("--")] or action.option_strings
    return longest[0]


def default(action: argparse.Action) -> str:
    """Returns a sentence with the default, or nothing where there is none."""
    value = action.default
    if not action.option_strings or value is None or value is False or value in ("", [], argparse.SUPPRESS):
        return ""
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(getattr(value, "value", value))
    return f"Default: `{text}`." if len(text) <= LONGEST_DEFAULT else ""


def explanation(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Returns help and choices as a sentence."""
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    text = as_text(re.sub(r"\s*\(default: .*\)$", "", text.strip(), flags=re.DOTALL))
    if action.choices and not all(str(choice) in text for choice in action.choices):
        text = f"{text.rstrip('.')}. One of {', '.join(f'`{choice}`' for choice in action.choices)}"
    return f"{text.strip().rstrip('.')}." if text else ""


def as_text(text: str) -> str:
    """Returns text that Markdown leaves as it is."""
    return MARKUP.sub(r"\\\g<0>", escape(" ".join(text.split()), quote=False))


logging.getLogger("transformers").setLevel(logging.ERROR)
