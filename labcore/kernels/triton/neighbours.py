"""The parts that products of one token share: which rows a program has, and what stands around them.

The norm before a product, and the residual, the gate or the rotation behind it, are computed by who holds the
numbers anyway; see `kernels.around`.
"""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from labcore.kernels.around import GATE, TURN, Around


@triton.jit
def rows_of(ROWS: tl.constexpr, HALF: tl.constexpr, PAIRED: tl.constexpr):
    """A program's matrix rows. Paired: as many of a first half, then their partners of the second."""
    lanes = tl.arange(0, ROWS)
    if PAIRED:
        pair = tl.program_id(0) * (ROWS // 2) + lanes % (ROWS // 2)
        return pair // HALF * 2 * HALF + lanes // (ROWS // 2) * HALF + pair % HALF
    return tl.program_id(0) * ROWS + lanes


@triton.jit
def needed_behind(rows, count, bias, more, cos, sin, turned,
                  BIAS: tl.constexpr, THEN: tl.constexpr, HALF: tl.constexpr,
                  ROWS: tl.constexpr):  # fmt: skip
    """(what is added to each row, cosines and sines of its pairs), asked for before the product: to wait for
    it at the end would take as long as a tile."""
    extra = tl.zeros((ROWS,), tl.float32)
    if BIAS:
        extra += tl.load(bias + rows, mask=rows < count, other=0.0).to(tl.float32)
    if THEN == 1:
        extra += tl.load(more + rows, mask=rows < count, other=0.0).to(tl.float32)
    by_cos = tl.zeros((ROWS // 2,), tl.float32)
    by_sin = by_cos
    if THEN == 3:
        pair = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        head, place = pair // HALF, pair % HALF
        # The second half of each: there the sine carries no minus sign.
        by_cos = tl.load(cos + HALF + place, mask=head < turned, other=1.0).to(tl.float32)
        by_sin = tl.load(sin + HALF + place, mask=head < turned, other=0.0).to(tl.float32)
    return extra, by_cos, by_sin


@triton.jit
def put(total, rows, out, count, by_cos, by_sin,
        THEN: tl.constexpr, HALF: tl.constexpr, PAIRED: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Writes the rows' sums, after what follows them."""
    dtype = out.dtype.element_ty
    if PAIRED:
        first, second = tl.split(total.reshape(2, ROWS // 2).permute(1, 0))
        pair = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        there = pair < count // 2
        if THEN == 2:
            tl.store(out + pair, (first / (1 + tl.exp(-first)) * second).to(dtype), mask=there)
        else:
            to = out + pair // HALF * 2 * HALF + pair % HALF
            tl.store(to, (first * by_cos - second * by_sin).to(dtype), mask=there)
            tl.store(to + HALF, (second * by_cos + first * by_sin).to(dtype), mask=there)
    else:
        tl.store(out + rows, total.to(dtype), mask=rows < count)


def made_for(x: Tensor, rows: int, around: Around) -> Tensor:
    """(1, ..., what comes out of so many rows), not filled."""
    return torch.empty(*x.shape[:-1], around.rows(rows), device=x.device, dtype=x.dtype)


def operands(x: Tensor, around: Around) -> tuple[Tensor, ...]:
    """norm, bias, more, cos, sin; x in place of what is not there, which no kernel then reads."""
    parts = (around.norm, around.bias, around.residual, *(around.angles or (x, x)))
    return tuple(x if part is None else part for part in parts)


def kinds(rows: int, around: Around) -> dict[str, Any]:
    """What a kernel is compiled for. rows: of the matrix."""
    return {
        "NORM": around.norm is not None, "BIAS": around.bias is not None, "THEN": around.then,
        "HALF": rows // 2 if around.then == GATE else around.half, "PAIRED": around.then in (GATE, TURN),
    }  # fmt: skip
