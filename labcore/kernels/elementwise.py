"""Normalisation, rotary embedding and the gated activation: few FLOPs, all memory traffic and overhead.

At batch 1 these cost more in launches than in arithmetic, so each is written in as few tensor operations
as its reference allows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labcore.kernels.native import elementwise as native
from labcore.kernels.on_gpu import takes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019). Any shape (..., d)."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rope_angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of every position times every frequency, in fp32.

    positions: (B or 1, n) int64, frequencies: (d,) fp32. Returns two tensors (B or 1, 1, n, d) in `dtype`.
    """
    if takes(positions):
        from labcore.kernels.triton.heads import rope_angles as on_gpu

        found: tuple[Tensor, Tensor] = on_gpu(positions, frequencies, dtype)
        return found
    angles = positions.view(-1, 1, positions.shape[1], 1) * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2) of each head by its position's angles (Su et al. 2021, RoFormer).

    x: (B, heads, n, d). cos, sin: (B or 1, 1, n, d) as `Rope` makes them: `sin` carries the minus sign of
    the first half, so that one roll and one multiply-add replace the usual negate-and-concatenate.
    """
    if takes(x):
        from labcore.kernels.triton.heads import apply_rope as on_gpu

        turned: Tensor = on_gpu(x, cos, sin)
        return turned
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def norm_heads(x: Tensor, q_weight: Tensor, k_weight: Tensor, q_heads: int, eps: float) -> Tensor:
    """RMSNorm of each query and key head by itself (Qwen3). x: (B, heads, n, d), the queries' heads first;
    the weights (d,) are the queries' and the keys'."""
    if takes(x):
        from labcore.kernels.triton.heads import norm_heads as on_gpu

        normed: Tensor = on_gpu(x, q_weight, k_weight, q_heads, eps)
        return normed
    q, k = x.split((q_heads, x.shape[1] - q_heads), dim=1)
    return torch.cat([rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)], dim=1)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for a fused (..., 2 * d) input whose first half is the gate (Shazeer 2020).

    One pass over memory with the native kernels on a CPU and with Triton on a GPU; two operators elsewhere.
    """
    if takes(gate_up) and gate_up.is_contiguous():
        from labcore.kernels.triton.swiglu import swiglu as on_gpu

        product: Tensor = on_gpu(gate_up)
        return product
    if native.takes(gate_up):
        return native.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
