"""C calls go past PyTorch's dispatcher, so whoever watches operators must be told, or given operators."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function

_nobody = nullcontext()


def profiled() -> bool:
    """Whether a profiler runs."""
    return bool(torch.autograd._profiler_enabled())  # type: ignore[attr-defined]


def labelled(name: str) -> AbstractContextManager[object]:
    """A profiler's label around a C call, "labcore::NAME"; nothing where no profiler runs."""
    if profiled():
        return record_function(f"labcore::{name}")
    return _nobody


def counted() -> bool:
    """Whether a dispatch mode counts operators just now, as PyTorch's FLOP counter does."""
    return bool(torch._C._len_torch_dispatch_stack())
