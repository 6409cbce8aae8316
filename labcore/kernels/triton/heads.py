"""What happens to each query and key head before attention, on a GPU: one launch each instead of three."""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rope(
    x, cos, sin, out, n, heads, x_row, x_head, x_step, angle_row, HALF: tl.constexpr, HALF_PAD: tl.constexpr
):  # fmt: skip
    item, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, step, pair = item // n, item % n, tl.arange(0, HALF_PAD)
    inside = pair < HALF
    x_at = x + row * x_row + head * x_head + step * x_step + pair
    first = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_at + HALF, mask=inside, other=0.0).to(tl.float32)
    # The second half of each: there the sine carries no minus sign.
    angle = row * angle_row + step * 2 * HALF + HALF + pair
    turned_cos = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    turned_sin = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    out_at = out + (item * heads + head) * 2 * HALF + pair
    dtype = out.dtype.element_ty
    tl.store(out_at, (first * turned_cos - second * turned_sin).to(dtype), mask=inside)
    tl.store(out_at + HALF, (second * turned_cos + first * turned_sin).to(dtype), mask=inside)


@triton.jit
def _norm(
    x, q_weight, k_weight, out, n, heads, q_heads, eps, x_row, x_head, x_step,
    SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, step, sizes = item // n, item % n, tl.arange(0, SIZE_PAD)
    inside = sizes < SIZE
    found = tl.load(x + row * x_row + head * x_head + step * x_step + sizes, mask=inside, other=0.0)
    wide = found.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    is_query = sizes * 0 + head < q_heads
    of_query = tl.load(q_weight + sizes, mask=inside & is_query, other=0.0)
    of_key = tl.load(k_weight + sizes, mask=inside & ~is_query, other=0.0)
    made = wide * scale * (of_query + of_key).to(tl.float32)
    tl.store(out + (item * heads + head) * SIZE + sizes, made.to(out.dtype.element_ty), mask=inside)


def _like(x: Tensor) -> Tensor:
    """(B, heads, n, d) with the heads of a position side by side, as the projection leaves them."""
    batch, heads, n, size = x.shape
    return torch.empty(batch, n, heads, size, device=x.device, dtype=x.dtype).transpose(1, 2)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `kernels.apply_rope`: x (B, heads, n, d); cos, sin (B or 1, 1, n, d), contiguous; in fp32."""
    batch, heads, n, size = x.shape
    out, half = _like(x), size // 2
    angle_row = 0 if cos.shape[0] == 1 else n * size
    _rope[(batch * n, heads)](
        x, cos, sin, out, n, heads, *x.stride()[:3], angle_row,
        HALF=half, HALF_PAD=triton.next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    return out


def norm_heads(x: Tensor, q_weight: Tensor, k_weight: Tensor, q_heads: int, eps: float) -> Tensor:
    """As `kernels.norm_heads`: x (B, heads, n, d), the first q_heads of them queries; in fp32."""
    batch, heads, n, size = x.shape
    out = _like(x)
    _norm[(batch * n, heads)](
        x, q_weight, k_weight, out, n, heads, q_heads, eps, *x.stride()[:3],
        SIZE=size, SIZE_PAD=triton.next_power_of_2(size), num_warps=1,
    )  # fmt: skip
    return out
