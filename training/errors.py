"""The error that users see: bad input, in one line that names the file, the value and the remedy."""

import difflib
import re
from collections.abc import Iterable, Mapping

# Control characters, line breaks, marks that reverse the direction of what follows, and the halves of surrogate pairs
# that stand for the bytes of file names that are not UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(Exception):
    """Bad input. The message is complete by itself: programs print it without a traceback and exit with status 1."""


def one_line(error: Exception) -> str:
    """Returns the message of an error on one line, without the traceback that a data-loader worker wraps around it."""
    text = str(error).strip()
    text = text.rsplit("InputError: ", 1)[-1] if "Traceback" in text else text
    return printable(" ".join(text.split()))


def printable(text) -> str:
    """Returns a text on one line that can be shown anywhere: characters without a shape become escapes, as in `\\n`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """
    Returns the end of an error message: `did you mean X?`, or `otherwise` where no known name is similar.

    Args:
        known: names, or a mapping of names to what the message shows, such as paths
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    shown = known if isinstance(known, Mapping) else {}
    return f"did you mean {shown.get(found[0], found[0])}?" if found else otherwise
