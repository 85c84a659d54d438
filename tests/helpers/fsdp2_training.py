"""
Runs train_hf.py divided by FSDP2, as `accelerate launch` starts it on GPUs, but on CPUs by gloo.

Accelerate would use DDP there: its state is corrected once the processes have found each other.
"""

import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import train_hf

begin = AcceleratorState.__init__


def begin_divided(self, *args, fsdp_plugin=None, **settings):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **settings)
    if fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = begin_divided
    train_hf.train(sys.argv[1:])
