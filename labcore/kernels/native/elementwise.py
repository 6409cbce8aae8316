"""The C functions of `elementwise.c` on tensors: fp32, contiguous, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.kernels.native.build import functions, library
from labcore.kernels.native.watched import counted, labelled

MIN_NUMBERS = 1 << 14  # below that a call is all overhead, and PyTorch's operators are as fast


def takes(x: Tensor) -> bool:
    """Whether the kernel can run on this tensor, and is worth calling."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() >= MIN_NUMBERS
        and x.is_contiguous()
        and not x.requires_grad
        and not torch.compiler.is_compiling()
        and not counted()
        and library() is not None
    )


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up in one pass. gate_up: (..., 2 * d), gate first -> (..., d)."""
    *lead, wide = gate_up.shape
    out = gate_up.new_empty(*lead, wide // 2)
    rows = gate_up.numel() // wide
    at = (gate_up.data_ptr(), out.data_ptr())
    with labelled("swiglu_native"):
        functions().labcore_swiglu(*at, rows, wide // 2, torch.get_num_threads())
    return out
