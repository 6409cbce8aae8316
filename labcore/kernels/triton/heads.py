"""What happens to each query and key head before attention, on a GPU: one launch each instead of three."""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# One program takes all heads of a position: with one for each, starting programs would take most of the time.


@triton.jit
def _rope(
    x, cos, sin, out, n, heads, x_row, x_head, x_step, angle_row,
    HEADS_PAD: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    row, step = item // n, item % n
    pair, head = tl.arange(0, HALF_PAD), tl.arange(0, HEADS_PAD)[:, None]
    inside = (pair < HALF)[None, :] & (head < heads)
    x_at = x + row * x_row + head * x_head + step * x_step + pair[None, :]
    first = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_at + HALF, mask=inside, other=0.0).to(tl.float32)
    # The second half of each: there the sine carries no minus sign.
    angle = row * angle_row + step * 2 * HALF + HALF + pair
    turned_cos = tl.load(cos + angle, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    turned_sin = tl.load(sin + angle, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    out_at = out + (item * heads + head) * 2 * HALF + pair[None, :]
    dtype = out.dtype.element_ty
    tl.store(out_at, (first * turned_cos - second * turned_sin).to(dtype), mask=inside)
    tl.store(out_at + HALF, (second * turned_cos + first * turned_sin).to(dtype), mask=inside)


@triton.jit
def _norm(
    x, q_weight, k_weight, out, n, heads, q_heads, eps, x_row, x_head, x_step,
    HEADS_PAD: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    row, step = item // n, item % n
    sizes, head = tl.arange(0, SIZE_PAD), tl.arange(0, HEADS_PAD)[:, None]
    inside = (sizes < SIZE)[None, :] & (head < heads)
    at = x + row * x_row + head * x_head + step * x_step + sizes[None, :]
    wide = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / SIZE + eps)[:, None]
    of_query = tl.load(q_weight + sizes, mask=sizes < SIZE, other=0.0).to(tl.float32)[None, :]
    of_key = tl.load(k_weight + sizes, mask=sizes < SIZE, other=0.0).to(tl.float32)[None, :]
    made = wide * scale * tl.where(head < q_heads, of_query, of_key)
    out_at = out + (item * heads + head) * SIZE + sizes[None, :]
    tl.store(out_at, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _angles(positions, frequencies, cos, sin, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr):
    item, sizes = tl.program_id(0), tl.arange(0, SIZE_PAD)
    position = tl.load(positions + item).to(tl.float32)
    angle = position * tl.load(frequencies + sizes, mask=sizes < SIZE, other=0.0)
    at = item * SIZE + sizes
    tl.store(cos + at, tl.cos(angle).to(cos.dtype.element_ty), mask=sizes < SIZE)
    tl.store(sin + at, tl.sin(angle).to(sin.dtype.element_ty), mask=sizes < SIZE)


def rope_angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `kernels.rope_angles`."""
    (batch, n), size = positions.shape, frequencies.shape[0]
    cos, sin = torch.empty(2, batch, 1, n, size, device=positions.device, dtype=dtype)
    _angles[(batch * n,)](
        positions.contiguous(), frequencies, cos, sin, SIZE=size, SIZE_PAD=triton.next_power_of_2(size)
    )
    return cos, sin


def _like(x: Tensor) -> Tensor:
    """(B, heads, n, d) with the heads of a position side by side, as the projection leaves them."""
    batch, heads, n, size = x.shape
    return torch.empty(batch, n, heads, size, device=x.device, dtype=x.dtype).transpose(1, 2)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `kernels.apply_rope`: x (B, heads, n, d); cos, sin (B or 1, 1, n, d), contiguous; in fp32."""
    batch, heads, n, size = x.shape
    out, half = _like(x), size // 2
    angle_row = 0 if cos.shape[0] == 1 else n * size
    _rope[(batch * n,)](
        x, cos, sin, out, n, heads, *x.stride()[:3], angle_row,
        HEADS_PAD=triton.next_power_of_2(heads), HALF=half, HALF_PAD=triton.next_power_of_2(half),
    )  # fmt: skip
    return out


def norm_heads(x: Tensor, q_weight: Tensor, k_weight: Tensor, q_heads: int, eps: float) -> Tensor:
    """As `kernels.norm_heads`: x (B, heads, n, d), the first q_heads of them queries; in fp32."""
    batch, heads, n, size = x.shape
    out = _like(x)
    _norm[(batch * n,)](
        x, q_weight, k_weight, out, n, heads, q_heads, eps, *x.stride()[:3],
        HEADS_PAD=triton.next_power_of_2(heads), SIZE=size, SIZE_PAD=triton.next_power_of_2(size),
    )  # fmt: skip
    return out
