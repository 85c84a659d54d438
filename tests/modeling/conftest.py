"""Keeps the computations of tiny models in one thread."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Threads wait for each other longer than such models compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
