"""Normalisation, rotary embedding and the gated activation: few FLOPs, all memory traffic and overhead.

At batch 1 these cost more in launches than in arithmetic, so each is written in as few tensor operations
as its reference allows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labcore.kernels.native import elementwise as native


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019). Any shape (..., d)."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2) of each head by its position's angles (Su et al. 2021, RoFormer).

    x: (B, heads, n, d). cos, sin: (B or 1, 1, n, d) as `Rope` makes them: `sin` carries the minus sign of
    the first half, so that one roll and one multiply-add replace the usual negate-and-concatenate.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for a fused (..., 2 * d) input whose first half is the gate (Shazeer 2020).

    One pass over memory on a CPU with the native kernels; two operators elsewhere.
    """
    if native.takes(gate_up):
        return native.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
