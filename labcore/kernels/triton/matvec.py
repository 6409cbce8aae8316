"""One token times a weight matrix on a GPU: weights are read once, and the product's neighbours go along.

At batch 1 a decode step is the reading of its weights. Each launch between two reads leaves the memory idle
for a microsecond or two, a tenth of what a layer of a small model takes to read. So the norm before a
product, and the residual, the gate or the rotation behind it, are computed by who holds the numbers anyway.

A norm is one number, which can be multiplied in after the product: it costs no second pass. Programs that may
begin while the kernel ahead of them still runs read their first weights, which depend on nothing, and only
then wait for it.

From two tokens on, the libraries' products are the better ones (measured on an H200).
"""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from labcore.kernels.triton.launching import early, options, processors

ADD, GATE, TURN = 1, 2, 3  # what follows a product, besides its bias
# Rows, columns and warps of a program's tile, and how many such programs one multiprocessor runs at once:
# where a few are left for a second round, most of the GPU waits for them.
SMALL, USUAL, HIGH = (4, 2048, 8), (4, 1024, 4), (8, 512, 4)
AT_ONCE = {SMALL: 4, USUAL: 8, HIGH: 6}
RUN = 8  # neighbouring columns that one thread reads at once and sums


@triton.jit
def _rows(ROWS: tl.constexpr, HALF: tl.constexpr, PAIRED: tl.constexpr):
    """A program's matrix rows. Paired: as many of a first half, then their partners of the second."""
    lanes = tl.arange(0, ROWS)
    if PAIRED:
        pair = tl.program_id(0) * (ROWS // 2) + lanes % (ROWS // 2)
        return pair // HALF * 2 * HALF + lanes // (ROWS // 2) * HALF + pair % HALF
    return tl.program_id(0) * ROWS + lanes


@triton.jit
def _linear_one(
    x, scale, weight, bias, more, cos, sin, out, count, columns, eps, turned,
    NORM: tl.constexpr, BIAS: tl.constexpr, THEN: tl.constexpr, HALF: tl.constexpr, PAIRED: tl.constexpr,
    EARLY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    rows, steps = _rows(ROWS, HALF, PAIRED), tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None]
    at = weight + rows.to(tl.int64)[:, None] * columns + steps[None, :]
    part = tl.load(at, mask=inside & (steps < columns)[None, :], other=0.0, eviction_policy="evict_first")
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    # What the end needs is asked for at once: to wait for it then would take as long as a tile.
    extra = tl.zeros((ROWS,), tl.float32)
    if BIAS:
        extra += tl.load(bias + rows, mask=rows < count, other=0.0).to(tl.float32)
    if THEN == 1:
        extra += tl.load(more + rows, mask=rows < count, other=0.0).to(tl.float32)
    pair = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    if THEN == 3:
        head, place = pair // HALF, pair % HALF
        # The second half of each: there the sine carries no minus sign.
        by_cos = tl.load(cos + HALF + place, mask=head < turned, other=1.0).to(tl.float32)
        by_sin = tl.load(sin + HALF + place, mask=head < turned, other=0.0).to(tl.float32)
    sums = tl.zeros((ROWS, COLUMNS // RUN), tl.float32)
    squares = tl.zeros((COLUMNS // RUN,), tl.float32)
    for start in range(0, columns, COLUMNS):
        ahead = start + COLUMNS + steps
        following = tl.load(
            at + start + COLUMNS, mask=inside & (ahead < columns)[None, :], other=0.0,
            eviction_policy="evict_first",
        )  # fmt: skip
        here = start + steps
        v = tl.load(x + here, mask=here < columns, other=0.0).to(tl.float32)
        if NORM:
            squares += tl.sum(tl.reshape(v * v, (COLUMNS // RUN, RUN)), 1)
            v *= tl.load(scale + here, mask=here < columns, other=0.0).to(tl.float32)
        sums += tl.sum(tl.reshape(part.to(tl.float32) * v[None, :], (ROWS, COLUMNS // RUN, RUN)), 2)
        part = following
    total = tl.sum(sums, 1)
    if NORM:
        total *= tl.rsqrt(tl.sum(squares, 0) / columns + eps)
    total += extra
    dtype = out.dtype.element_ty
    if PAIRED:
        first, second = tl.split(total.reshape(2, ROWS // 2).permute(1, 0))
        there = pair < count // 2
        if THEN == 2:
            tl.store(out + pair, (first / (1 + tl.exp(-first)) * second).to(dtype), mask=there)
        else:
            to = out + head * 2 * HALF + place
            tl.store(to, (first * by_cos - second * by_sin).to(dtype), mask=there)
            tl.store(to + HALF, (second * by_cos + first * by_sin).to(dtype), mask=there)
    else:
        tl.store(out + rows, total.to(dtype), mask=rows < count)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    then: int = 0,
    residual: Tensor | None = None,
    half: int = 1,
    angles: tuple[Tensor, Tensor] | None = None,
    turned: int = 0,
) -> Tensor:
    """then(rms_norm(x) Wᵀ + bias) of one token, in fp32 between its reads and its writes.

    x: (1, ..., columns), weight: (rows, columns), both contiguous. norm: the norm's weight (columns,), if
    there is one. then: ADD residual (1, ..., rows); GATE, silu of the first half of the rows times the
    second; TURN the first `turned` heads of 2 * half rows by angles, cos and sin as `Rope` makes them.
    Returns (1, ..., rows), with GATE half as many, in the dtype of x.
    """
    rows, columns = weight.shape
    gated = then == GATE
    out = torch.empty(*x.shape[:-1], rows // 2 if gated else rows, device=x.device, dtype=x.dtype)
    cos, sin = angles or (x, x)
    height, wide, warps = tile_of(rows, processors(x.device))
    _linear_one[(triton.cdiv(rows, height),)](
        x, x if norm is None else norm, weight, x if bias is None else bias,
        x if residual is None else residual, cos, sin, out, rows, columns, eps, turned,
        NORM=norm is not None, BIAS=bias is not None, THEN=then, HALF=rows // 2 if gated else half,
        PAIRED=then in (GATE, TURN), EARLY=early(x.device), ROWS=height, COLUMNS=wide, RUN=RUN,
        num_warps=warps, **options(x.device),
    )  # fmt: skip
    return out


def tile_of(rows: int, multiprocessors: int) -> tuple[int, int, int]:
    """The tile with which a matrix of so many rows is read fastest (as measured on an H200)."""
    if rows <= SMALL[0] * AT_ONCE[SMALL] * multiprocessors:
        return SMALL
    one_round = rows <= USUAL[0] * AT_ONCE[USUAL] * multiprocessors
    two_rounds = rows > HIGH[0] * AT_ONCE[HIGH] * multiprocessors
    return USUAL if one_round or two_rounds else HIGH
