"""Runs `python -m conversion` on an object, and checks what it refuses, such as a malicious pickle."""

import os
from pathlib import Path

import torch
from golden import checkpoint

from conversion.__main__ import main


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def run_conversion(family: str, content, folder: Path, capsys, *options):
    """
    Converts an object through `folder/source.pth`.

    Args:
        content: an object of torch, the name of a recipe in the fixtures, or the path of a file

    Returns:
        exit status, stdout, stderr, output folder
    """
    source, target = content, folder / "converted"
    if not isinstance(content, Path):
        source = folder / "source.pth"
        torch.save(checkpoint(content) if isinstance(content, str) else content, source)
    status = main([family, str(source), str(target), *map(str, options)])
    return status, *capsys.readouterr(), target


def assert_refused(result, *words: str):
    """Exit status 1, one line on stderr with all `words`, nothing on stdout and nothing written."""
    status, out, err, target = result
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert [word for word in words if word not in err] == []
    assert [path.name for path in target.parent.iterdir() if target.name in path.name] == []
