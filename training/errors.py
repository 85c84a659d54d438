"""The one error that people see: bad input, told in one line that names the file, the value and the remedy."""


class InputError(Exception):
    """Bad input. The message is complete by itself: programs print it without a traceback and exit with status 1."""


def one_line(error: InputError) -> str:
    """The message of an error, also of one that crossed a data-loader worker, which wraps it in a traceback."""
    text = str(error).strip()
    text = text.rsplit("InputError: ", 1)[-1] if "Traceback" in text else text
    return " ".join(text.split())
