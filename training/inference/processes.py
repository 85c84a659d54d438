"""Lets several processes share a run: started by `accelerate launch`, or by hand on machines that share a folder."""

import datetime
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..console import leave_processes
from ..errors import InputError, one_line

LONGEST_WAIT = datetime.timedelta(days=7)  # for other processes, because their clips may be longer
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """
    Says which part of the work is this process's own.

    Args:
        index, count: this process, and the number of those that `accelerate launch` started
        share, num_shares: this launch, from 0, and the number of launches that do not know of each other
        device: the device that Accelerate gives to this process; `None`: it is alone
    """

    index: int = 0
    count: int = 1
    share: int = 0
    num_shares: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        return self.index == 0

    @property
    def is_alone(self) -> bool:
        return self.count == self.num_shares == 1

    def owns(self, shard: int) -> bool:
        """Returns whether this process computes a shard: they are dealt out like cards."""
        return shard % (self.count * self.num_shares) == self.share * self.count + self.index

    def together(self, work: Callable[[], T]) -> T:
        """Does `work` in every process and waits for all; raises an `InputError` of one process in all of them."""
        result = message = None
        try:
            result = work()
        except InputError as error:
            message = one_line(error)
        messages = [message]
        if self.count > 1:
            from accelerate.utils import gather_object  # here: a process alone starts faster without

            messages = gather_object(messages)
        if any(messages):
            leave_processes()  # all of them: none waits for another any more
            raise InputError(next(filter(None, messages)))
        return result


def start_processes(share: str | None = None, device: str | None = None, overwrite: bool = False) -> Processes:
    """
    Joins the processes of a launch.

    Args:
        share: I/N, the option of the programs
        device: the user's choice
        overwrite: whether the launch removes what is stored

    Raises:
        InputError: not a share, or one that would remove the others.
    """
    number, num_shares = 1, 1
    if share is not None:
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", share)
        number, num_shares = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= num_shares:
            raise InputError(f"share: must be I/N with I from 1 to N, such as 2/5, got {share!r}")
        if overwrite and num_shares > 1:
            raise InputError("share: with overwrite it would remove what other machines have stored; leave one out")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Processes(share=number - 1, num_shares=num_shares)
    from accelerate import PartialState

    is_cpu = not torch.accelerator.is_available() or (device or "").startswith("cpu")
    state = PartialState(cpu=is_cpu, timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, number - 1, num_shares, state.device)
