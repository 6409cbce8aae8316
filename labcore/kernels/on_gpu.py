"""When Triton's kernels take over on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

_plainly: ContextVar[bool] = ContextVar("plainly", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Here nothing goes to Triton: every operation is PyTorch's, as the readable path promises."""
    before = _plainly.set(True)
    try:
        yield
    finally:
        _plainly.reset(before)


def takes(x: Tensor) -> bool:
    """Whether a Triton kernel without a backward pass may compute this: on a GPU, outside of training, not
    where all is done plainly, and not while a compiler, which fuses these operations itself, traces them."""
    if not x.is_cuda or torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return False
    return not _plainly.get() and triton_ready()


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
