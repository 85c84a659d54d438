"""Collects the warnings of training/data for its tests."""

import pytest
from warnings_of import warnings_of


@pytest.fixture
def warnings():
    """Messages of the warnings of all modules of training/data, in order."""
    with warnings_of("training.data") as messages:
        yield messages
