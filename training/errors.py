"""The error that users see: bad input, in one line that names the file, the value and the remedy."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError

from safetensors import SafetensorError

# Control characters, line breaks, marks that reverse the direction of what follows, and the halves of surrogate pairs
# that stand for the bytes of file names that are not UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(Exception):
    """Bad input. The message is complete by itself: programs print it without a traceback and exit with status 1."""


# What torch says of another process that has ended or does not answer; other files of Gloo report its own settings.
LOST_PEER = re.compile(r"gloo/transport/\w+/(pair|unbound_buffer)|remote process exit|remote server shutdown")
# What libraries raise about arguments that they cannot take. ImportError: a package is missing or too old.
LIBRARY_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError,
    SafetensorError, TypeError, UnpicklingError, ValueError,
)  # fmt: skip


@contextmanager
def blamed(option: str, remedy: str) -> Iterator[None]:
    """
    Turns a library's error about an option into a message; only around what fails for no other reason.

    Args:
        option: its name and value

    Raises:
        InputError: `OPTION: cannot be used here (reason); REMEDY`
    """
    try:
        yield
    except LIBRARY_ERRORS as error:
        if "out of memory" in str(error) or says_others_stopped(error):  # RuntimeErrors of torch
            raise
        raise InputError(f"{option}: cannot be used here ({short(one_line(error))}); {remedy}") from error


def says_others_stopped(error: Exception) -> bool:
    """Returns whether an error says that another process of the launch has ended or does not answer: torch's texts."""
    return LOST_PEER.search(str(error)) is not None


def short(text: str, length: int = 300) -> str:
    """Returns a text cut to `length` characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def short_words(text: str, length: int = 300) -> str:
    """Returns a text whose words are cut to `length` characters, such as a value of thousands of letters."""
    return re.sub(rf"\S{{{length},}}", lambda word: short(word[0], length), text)


def one_line(error: Exception | str) -> str:
    """
    Returns the message of an error on one line, without the traceback that a data-loader worker wraps around it; the
    name of its class if it has no message.
    """
    text = str(error).strip() or type(error).__name__
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
