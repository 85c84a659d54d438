"""The error that users see: bad input, in one line that names the file, the value and the remedy."""

import difflib
from collections.abc import Iterable, Mapping


class InputError(Exception):
    """Bad input. The message is complete by itself: programs print it without a traceback and exit with status 1."""


def one_line(error: Exception) -> str:
    """Returns the message of an error on one line, without the traceback that a data-loader worker wraps around it."""
    text = str(error).strip()
    text = text.rsplit("InputError: ", 1)[-1] if "Traceback" in text else text
    return " ".join(text.split())


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """
    Returns the end of an error message: `did you mean X?`, or `otherwise` where no known name is similar.

    Args:
        known: names, or a mapping of names to what the message shows, such as paths
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    shown = known if isinstance(known, Mapping) else {}
    return f"did you mean {shown.get(found[0], found[0])}?" if found else otherwise
