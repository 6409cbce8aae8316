"""The product of few rows as the engine computes it, for who measures what this machine can do at best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from labcore.kernels.native.layer import MOST_TOKENS, HeadKernel, available


def product(
    device: torch.device, dtype: str, rows: int, inner: int, columns: int
) -> Callable[[], object] | None:
    """(rows, inner) times (inner, columns), to be timed; None where the C kernels do not compute it."""
    if device.type != "cpu" or dtype != "float32" or rows > MOST_TOKENS or not available():
        return None
    fp32: Any = {"dtype": torch.float32, "device": "cpu"}
    kernel = HeadKernel(torch.ones(inner, **fp32), torch.randn(columns, inner, **fp32), 1e-5)
    x = torch.randn(rows, 1, inner, **fp32)
    return lambda: kernel(x)
