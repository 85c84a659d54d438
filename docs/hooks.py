"""
Writes the command-line reference when the site is built.

A line `<!-- options: -m hub push -->` of a page becomes what `python -m hub push --help` prints.
"""

import contextlib
import io
import logging
import os
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"<!-- options: (.+?) -->")
NAME = re.compile(r"\[(<code>~?[\w.]+</code>)\]")
TYPE = re.compile(r"<code>(`[^<]*?)(?:, \*optional\*)?(?:, defaults? to [^<]*)?</code>")
COLUMNS = "88"  # of the help texts: they fit the page


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Replaces the markers of a page (a hook of MkDocs)."""
    return MARKER.sub(lambda marker: f"```text\n{help_text(marker[1].split())}\n```", markdown)


def on_page_content(html: str, **kwargs) -> str:
    """
    Translates what Transformers' docstrings write in their own way (a hook of MkDocs): [`name`] for the name of a
    class, and "`int`, *optional*, defaults to 768" for a type, beside which the signature's default stands anyway.
    """
    return TYPE.sub(lambda kind: f"<code>{kind[1].replace('`', '')}</code>", NAME.sub(r"\1", html))


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
