"""
Writes the command-line reference when the site is built.

A line `<!-- options: -m hub push -->` of a page becomes what `python -m hub push --help` prints, as tables.
"""

import contextlib
import io
import logging
import os
import re
import runpy
import sys
from html import escape
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"<!-- options: (.+?) -->")
NAME = re.compile(r"\[(<code>~?[\w.]+</code>)\]")
TYPE = re.compile(r"<code>(`[^<]*?)(?:, \*optional\*)?(?:, defaults? to [^<]*)?</code>")
MARKUP = re.compile(r"[\\*_`\[\]|{}#]")  # what Markdown would read as more than a character
ENTRY = re.compile(r"  (?P<name>\S.*?)(?:  +(?P<text>\S.*)|$)")  # of an option: its names, then its help
COLUMNS = "120"  # of the help texts


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Replaces the markers of a page (a hook of MkDocs)."""
    return MARKER.sub(lambda marker: as_tables(help_text(marker[1].split())), markdown)


def on_page_content(html: str, **kwargs) -> str:
    """
    Translates what Transformers' docstrings write in their own way (a hook of MkDocs): [`name`] for the name of a
    class, and "`int`, *optional*, defaults to 768" for a type, beside which the signature's default stands anyway.
    """
    return TYPE.sub(lambda kind: f"<code>{kind[1].replace('`', '')}</code>", NAME.sub(r"\1", html))


def as_tables(printed: str) -> str:
    """Returns a help text as Markdown: a paragraph stays, a list of options becomes a table under its heading."""
    found = []
    for paragraph in printed.split("\n\n"):
        heading, *lines = paragraph.splitlines()
        if heading.startswith("usage:"):
            found.append(f"```text\n{' '.join(paragraph.removeprefix('usage:').split())}\n```")
        elif lines and heading.endswith(":") and ENTRY.fullmatch(lines[0]):
            rows = []
            for line in lines:
                entry = ENTRY.fullmatch(line)
                if entry and not line.startswith("   "):
                    rows.append([entry["name"], entry["text"] or ""])
                else:
                    rows[-1][1] += f" {line.strip()}"
            table = "\n".join(f"| {spelling(name)} | {as_text(text)} |" for name, text in rows if "--help" not in name)
            table = f'<div class="options" markdown="block">\n\n| option | meaning |\n|---|---|\n{table}\n\n</div>'
            found.append(f"**{heading[:-1]}**\n\n{table}")
        else:
            found.append(f"```text\n{paragraph}\n```" if "   " in paragraph else as_text(paragraph))
    return "\n\n".join(filter(None, found))


def spelling(text: str) -> str:
    """Returns the first spelling of an option, without the word that stands for its value."""
    long = [name.split()[0] for name in text.split(", ") if name.startswith("--")]
    return f"`{long[0] if long else text}`"


def as_text(text: str) -> str:
    """Returns text that Markdown leaves as it is."""
    return MARKUP.sub(r"\\\g<0>", escape(" ".join(text.split()), quote=False))


def help_text(words: list[str]) -> str:
    """
    Runs a program with `--help` and returns what it prints. Programs share this process: torch is imported once.

    Args:
        words: a command line without `python`, such as `["-m", "hub", "push"]`
    """
    printed = io.StringIO()
    module, arguments = (words[1], words[2:]) if words[0] == "-m" else (None, words[1:])
    with (
        mock.patch.object(sys, "argv", [words[0], *arguments, "--help"]),
        mock.patch.object(sys, "path", [str(ROOT), *sys.path]),
        mock.patch.dict(os.environ, COLUMNS=COLUMNS),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        if module:
            sys.modules.pop(module, None)  # a page before this one may have imported it
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    if "--" not in printed.getvalue():
        raise LookupError(f"{' '.join(words)} --help printed no options")
    return printed.getvalue().strip()


logging.getLogger("transformers").setLevel(logging.ERROR)
