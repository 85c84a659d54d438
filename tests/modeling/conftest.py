"""Keeps the computations of tiny models in one thread, and collects warnings."""

import logging

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Threads wait for each other longer than such models compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def warnings_of_models():
    """Messages of the models' warnings, which do not reach pytest's own log."""
    logger, messages = logging.getLogger("modeling_dual_ssast"), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
