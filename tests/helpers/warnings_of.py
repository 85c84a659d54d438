"""Collects what a logger warns of."""

import contextlib
import logging


@contextlib.contextmanager
def warnings_of(name: str):
    """Yields a list of the messages of the warnings of a logger and those below it, in order."""
    messages, logger, handler = [], logging.getLogger(name), logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
