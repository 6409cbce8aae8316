"""When Triton's kernels take over on a GPU."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor


def takes(x: Tensor) -> bool:
    """Whether a Triton kernel without a backward pass may compute this: on a GPU, outside of training, and
    not while a compiler, which fuses these operations itself, traces them."""
    if not x.is_cuda or torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return False
    return triton_ready()


@cache
def triton_ready() -> bool:
    """Whether Triton is installed; where it is not, says once what that costs."""
    try:
        import triton  # noqa: F401
    except ImportError:
        warnings.warn(
            "Triton is not installed: on this GPU paged attention copies its blocks at every step, at about "
            "three times the traffic, and small operations take several launches each; pip install triton.",
            stacklevel=4,
        )
        return False
    return True
