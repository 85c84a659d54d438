"""Finds out which half-size number formats the processor has instructions for."""

import torch

from modeling_dual_ssast.attention_dual_ssast import cpu_has

# Of oneDNN, torch's library of matrix products; false on processors with AVX2 at most.
SUPPORTS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def has_bfloat16() -> bool:
    """Returns whether the CPU multiplies bfloat16 faster than float32: AMX or AVX512-BF16."""
    return cpu_has("amx_tile") or cpu_has("avx512_bf16")


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """
    Returns whether matrix products in a number format are computed number by number, without oneDNN.

    On one core with AVX2 a product of two matrices of 1024 x 1024 took 50 times as long in bfloat16 as in float32.
    """
    if device.type != "cpu" or dtype not in SUPPORTS or not torch.backends.mkldnn.is_available():
        return False
    check = getattr(torch.ops.mkldnn, SUPPORTS[dtype], None)  # missing in builds and versions that do not report it
    return check is not None and not check()
