"""Chooses device, number format and threads of a network that only reads."""

import sys
from dataclasses import dataclass

import torch

from hub.finite import non_finite_weights

from ..base.number_formats import has_bfloat16, is_emulated
from ..errors import InputError, blamed
from ..recipe import Arguments, described

FORMATS = ("auto", "float32", "bfloat16", "float16")


@dataclass
class HardwareArguments(Arguments):
    """Holds the options of the hardware; a program takes them among its own."""

    dtype: str = described(
        "auto",
        "Number format of the weights. auto: bfloat16 on accelerators and CPUs with AMX or AVX512-BF16, else float32.",
        choices=FORMATS,
    )
    device: str | None = described(None, "Device, such as cpu or cuda:1; unset: the accelerator, if there is one.")
    compile: bool = described(False, "Compile the network: a minute at the start, faster from then on.")
    threads: int | None = described(None, "CPU threads of the network; unset: all cores.", at_least=1)


@dataclass(frozen=True)
class Hardware:
    """Says what was chosen: device and number format."""

    device: torch.device
    dtype: torch.dtype
    is_compiled: bool = False

    def __str__(self) -> str:
        return f"{self.dtype_name} on {self.device.type}{', compiled' if self.is_compiled else ''}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_hardware(arguments: HardwareArguments, own_device: torch.device | None = None) -> Hardware:
    """
    Chooses device and number format, and sets the number of threads.

    Args:
        own_device: that of one of several processes

    Raises:
        InputError: there is no such device.
    """
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.device is not None and own_device is None:
        with blamed(f"device {arguments.device}", "name another one, or leave it out"):
            own_device = torch.zeros(1, device=arguments.device).device
        if own_device.type == "meta":
            raise InputError(
                "device meta: cannot be used here (it holds no numbers); name another one, or leave it out"
            )
    elif own_device is None:
        own_device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device, name = torch.device(own_device), arguments.dtype
    if name == "auto":
        name = "bfloat16" if device.type != "cpu" or has_bfloat16() else "float32"
    hardware = Hardware(device, getattr(torch, name), arguments.compile)
    if is_emulated(hardware.dtype, device):
        print(
            f"dtype {name}: this processor has no instructions for it, and takes tens of times as long as in float32; "
            "leave it out",
            file=sys.stderr,
        )
    return hardware


def place(model: torch.nn.Module, hardware: Hardware) -> torch.nn.Module:
    """
    Moves a network to its device and number format, and compiles it if that was chosen.

    Raises:
        InputError: the weights overflow in float16.
    """
    model = model.to(hardware.device, hardware.dtype)
    problem = hardware.dtype == torch.float16 and non_finite_weights(model.state_dict())
    if problem:
        raise InputError(f"dtype float16: cannot hold the weights ({problem}); take bfloat16 or float32")
    if hardware.is_compiled:
        model.compile()
    return model
