"""Weights in 8 or 4 bits on a GPU: codes become numbers in registers and are multiplied there.

One token goes as in `matvec.py`; from two on, tiles of tokens and rows go through the tensor cores, where two
tokens cost no more than sixteen.
"""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from labcore.kernels.triton.launching import early, options

WIDEST = 256  # columns of a tile
RUN = 16  # of one token: neighbours that a thread sums
MANY_ROWS = 8192  # from here on every multiprocessor has several programs


@triton.jit
def _weights(codes, scale, zero, offset, rows, inside, part, first, groups, centre, stride,
             FOUR: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr,
             LATE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """(ROWS, COLUMNS) weights whose codes lie at `part` of each row; `first`: their first column.

    The columns lie within one group, or are whole groups. LATE: a row's only scale is applied to its sum.
    """
    at = rows[:, None].to(tl.int64) * stride + part + tl.arange(0, COLUMNS)[None, :]
    q = tl.load(codes + at, mask=inside[:, None], other=0)
    if FOUR:
        q = (q >> 4) if HIGH else (q & 15)
    PARTS: tl.constexpr = COLUMNS // GROUP if COLUMNS > GROUP else 1
    grid = rows[:, None] * groups + first // GROUP + tl.arange(0, PARTS)[None, :]
    there = inside[:, None]
    w = tl.reshape(q.to(tl.float32) - centre, (ROWS, PARTS, COLUMNS // PARTS))
    if ZERO:
        w -= tl.load(zero + grid, mask=there, other=0).to(tl.float32)[:, :, None]
    if not LATE:
        w *= tl.load(scale + grid, mask=there, other=0.0).to(tl.float32)[:, :, None]
    if OFFSET:
        w += tl.load(offset + grid, mask=there, other=0.0).to(tl.float32)[:, :, None]
    return tl.reshape(w, (ROWS, COLUMNS))


@triton.jit
def _one(x, codes, scale, zero, offset, out, count, stride, group, groups, centre,
         FOUR: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr, EARLY: tl.constexpr,
         ROWS: tl.constexpr, BYTES: tl.constexpr, RUN: tl.constexpr):  # fmt: skip
    """A run of codes lies within a group, so that its scale is applied to its sum."""
    LOWEST: tl.constexpr = 128 if codes.dtype.element_ty == tl.int8 else 0  # added, so that none is negative
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, steps, runs = (rows < count)[:, None], tl.arange(0, BYTES), tl.arange(0, BYTES // RUN) * RUN
    at = codes + rows.to(tl.int64)[:, None] * stride + steps[None, :]
    part = tl.load(at, mask=inside & (steps < stride)[None, :], other=0, eviction_policy="evict_first")
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    sums = tl.zeros((ROWS, BYTES // RUN), tl.float32)
    for start in range(0, stride, BYTES):
        ahead = start + BYTES + steps
        following = tl.load(
            at + start + BYTES, mask=inside & (ahead < stride)[None, :], other=0,
            eviction_policy="evict_first",
        )  # fmt: skip
        there = inside & (start + runs < stride)[None, :]
        for high in tl.static_range(2 if FOUR else 1):
            q = part
            if FOUR:
                q = (part >> 4) if high == 1 else (part & 15)
            v = tl.load(x + high * stride + start + steps, mask=start + steps < stride, other=0.0)
            v = v.to(tl.float32)
            v = tl.reshape(v, (1, BYTES // RUN, RUN))
            grid = rows[:, None] * groups + ((high * stride + start + runs) // group)[None, :]
            # A code's bits, put where they mean units behind 2**23, cost less than a conversion of it.
            base = tl.zeros((ROWS, BYTES // RUN), tl.float32) + (8388608.0 + LOWEST + centre)
            if ZERO:
                base += tl.load(zero + grid, mask=there, other=0).to(tl.float32)
            number = ((q.to(tl.int32) + LOWEST) | 0x4B000000).to(tl.float32, bitcast=True)
            number = tl.reshape(number, (ROWS, BYTES // RUN, RUN)) - base[:, :, None]
            sums += tl.sum(number * v, 2) * tl.load(scale + grid, mask=there, other=0.0).to(tl.float32)
            if OFFSET:
                sums += tl.sum(v, 2) * tl.load(offset + grid, mask=there, other=0.0).to(tl.float32)
        part = following
    tl.store(out + rows, tl.sum(sums, 1).to(out.dtype.element_ty), mask=rows < count)


@triton.jit
def _tiles(x, codes, scale, zero, offset, out, total, count, columns, stride, groups, centre,
           TOKENS: tl.constexpr, FOUR: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr,
           LATE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside, there = rows < count, tokens < total
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for part in range(0, stride, COLUMNS):
        for high in tl.static_range(2 if FOUR else 1):
            first = part + high * stride
            w = _weights(codes, scale, zero, offset, rows, inside, part, first, groups, centre, stride,
                         FOUR, high == 1, ZERO, OFFSET, LATE, GROUP, ROWS, COLUMNS)  # fmt: skip
            at = tokens[:, None].to(tl.int64) * columns + first + tl.arange(0, COLUMNS)[None, :]
            v = tl.load(x + at, mask=there[:, None], other=0.0)
            sums += tl.dot(v, tl.trans(w.to(v.dtype)))
    if LATE:
        sums *= tl.load(scale + rows, mask=inside, other=0.0).to(tl.float32)[None, :]
    to = out + tokens[:, None].to(tl.int64) * count + rows[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside[None, :] & there[:, None])


def tile_columns(columns: int, group: int, bits: int) -> int:
    """The widest power of two, up to WIDEST, that divides the columns that share a byte's half, and that
    divides a group or is whole groups."""
    span = columns // 2 if bits == 4 else columns
    wide = min(WIDEST, span & -span)
    if group % wide and wide % group:  # neither
        wide = min(wide, group & -group)
    return wide


def takes(bits: int, columns: int, group: int) -> bool:
    """Whether there is a kernel here for such a matrix."""
    return bits in (4, 8) and columns % 2 == 0 and tile_columns(columns, group, bits) >= 16


def strip_of(rows: int, stride: int) -> tuple[int, int]:
    """Rows of a program for one token, and bytes of each that it reads at once (as measured on an H200)."""
    if rows >= MANY_ROWS:
        return 8, min(1024, triton.next_power_of_2(stride))
    return 4, min(2048, triton.next_power_of_2(stride))


def tile_of(rows: int, tokens: int) -> tuple[int, int, int, int, int]:
    """Tokens, rows, columns at most, warps and stages of a tile (as measured on an H200)."""
    if tokens > 16:
        return 64, 64, 64, 4, 3
    return (16, 64, 128, 4, 3) if rows >= MANY_ROWS else (16, 16, 256, 2, 3)


def linear(
    x: Tensor,
    codes: Tensor,
    bits: int,
    scale: Tensor,
    *,
    centre: int,
    zero: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """x W of weights scale * (code - centre - zero) + offset.

    x: (..., columns) fp32, fp16 or bf16. codes: (rows, columns) uint8, or (rows, columns / 2) as packed by
    `kernels.packing.pack`. scale, zero, offset: (rows, groups). Returns (..., rows) in the dtype of x.
    """
    rows, columns = codes.shape[0], x.shape[-1]
    flat = x.reshape(-1, columns).contiguous()
    total, groups = flat.shape[0], scale.shape[1]
    out = torch.empty(total, rows, device=x.device, dtype=x.dtype)
    group = columns // groups
    kinds = {"FOUR": bits == 4, "ZERO": zero is not None, "OFFSET": offset is not None}
    at = (flat, codes, scale, scale if zero is None else zero, scale if offset is None else offset, out)
    if total == 1:
        height, wide = strip_of(rows, codes.shape[1])
        _one[(triton.cdiv(rows, height),)](
            *at, rows, codes.shape[1], group, groups, centre, EARLY=early(x.device), ROWS=height, BYTES=wide,
            RUN=RUN, **kinds, **options(x.device),
        )  # fmt: skip
    else:
        tokens, height, wide, warps, stages = tile_of(rows, total)
        _tiles[(triton.cdiv(rows, height), triton.cdiv(total, tokens))](
            *at, total, rows, columns, codes.shape[1], groups, centre, TOKENS=tokens, GROUP=group,
            ROWS=height, COLUMNS=min(wide, tile_columns(columns, group, bits)),
            LATE=groups == 1 and offset is None,
            num_warps=warps, num_stages=stages, **kinds,
        )  # fmt: skip
    return out.view(*x.shape[:-1], rows)
