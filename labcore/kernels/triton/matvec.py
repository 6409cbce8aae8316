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

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from labcore.kernels.around import NOTHING, Around
from labcore.kernels.triton.launching import early, options, processors
from labcore.kernels.triton.neighbours import kinds, made_for, needed_behind, operands, put, rows_of

# Rows, columns and warps of a program's tile, and how many such programs one multiprocessor runs at once:
# where a few are left for a second round, most of the GPU waits for them.
SMALL, USUAL, HIGH = (4, 2048, 8), (4, 1024, 4), (8, 512, 4)
AT_ONCE = {SMALL: 4, USUAL: 8, HIGH: 6}
RUN = 8  # neighbouring columns that one thread reads at once and sums


@triton.jit
def _linear_one(
    x, weight, scale, bias, more, cos, sin, out, count, columns, eps, turned,
    NORM: tl.constexpr, BIAS: tl.constexpr, THEN: tl.constexpr, HALF: tl.constexpr, PAIRED: tl.constexpr,
    EARLY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    rows, steps = rows_of(ROWS, HALF, PAIRED), tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None]
    at = weight + rows.to(tl.int64)[:, None] * columns + steps[None, :]
    part = tl.load(at, mask=inside & (steps < columns)[None, :], other=0.0, eviction_policy="evict_first")
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    extra, by_cos, by_sin = needed_behind(rows, count, bias, more, cos, sin, turned, BIAS, THEN, HALF, ROWS)
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
    put(total + extra, rows, out, count, by_cos, by_sin, THEN, HALF, PAIRED, ROWS)


def fused_linear(x: Tensor, weight: Tensor, around: Around = NOTHING) -> Tensor:
    """then(rms_norm(x) Wᵀ + bias) of one token, in fp32 between its reads and its writes.

    x: (1, ..., columns), weight: (rows, columns), both contiguous. around: what the product stands between.
    Returns (1, ..., rows), with GATE half as many, in the dtype of x.
    """
    rows, columns = weight.shape
    out = made_for(x, rows, around)
    height, wide, warps = tile_of(rows, processors(x.device))
    _linear_one[(triton.cdiv(rows, height),)](
        x, weight, *operands(x, around), out, rows, columns, around.eps, around.turned,
        **kinds(rows, around), EARLY=early(x.device), ROWS=height, COLUMNS=wide, RUN=RUN,
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
