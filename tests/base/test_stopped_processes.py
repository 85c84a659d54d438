"""Tests what a process says when another one of its launch has stopped."""

import os
import re
import signal

import pytest
import torch
from audio_files import free_port

from training.console import run_program
from training.errors import InputError, blamed

LINE = "error: another process of this run has stopped or does not answer; see its own message\n"
CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:36779."


@pytest.mark.parametrize("text", [CLOSED, "ncclRemoteError: A call failed possibly due to a remote process exiting"])
def test_it_is_one_line_and_not_about_an_option(capsys, text):
    def program(words):
        with blamed("options of the training", "correct them"):
            raise RuntimeError(text)

    assert run_program(program, []) == 1
    assert capsys.readouterr().err == LINE


@pytest.mark.parametrize(
    "text", ["mat1 and mat2 shapes cannot be multiplied", "[gloo/transport/tcp/device.cc:84] Unable to find address"]
)
def test_other_errors_are_not_taken_for_it(text):
    def program(words):
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=re.escape(text)):
        run_program(program, [])
    with pytest.raises(InputError, match="^options: cannot be used here"), blamed("options", "correct them"):
        program([])


def test_torch_says_so(capsys):
    """With a second process, which is killed instead of taking part in the sum."""
    port = free_port()

    def join(rank: int):
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)

    other = os.fork()
    if not other:
        join(1)
        torch.distributed.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        join(0)
        torch.distributed.barrier()
        os.waitpid(other, 0)
        assert run_program(lambda words: torch.distributed.all_reduce(torch.ones(2)), []) == 1
        assert capsys.readouterr().err == LINE
    finally:
        torch.distributed.destroy_process_group()
