"""Keeps the computations of tiny models in one thread, and collects warnings."""

import pytest
import torch
from warnings_of import warnings_of


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
    with warnings_of("modeling_dual_ssast") as messages:
        yield messages
