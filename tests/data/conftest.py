"""Collects the warnings of training/data for its tests."""

import logging

import pytest


@pytest.fixture
def warnings():
    """Messages of the warnings of all modules of training/data, in order."""
    messages, logger = [], logging.getLogger("training.data")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
