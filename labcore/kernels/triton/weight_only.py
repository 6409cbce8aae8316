"""Weights in 8 or 4 bits on a GPU: codes become numbers in registers and are multiplied there.

One token goes as in `matvec.py`. Up to MANY a program holds some rows' sums for all tokens and walks along
the columns, each code read once; beyond, tiles of tokens and rows go through the tensor cores.
"""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from labcore.kernels.triton.launching import early, options

MANY = 8
WIDEST = 256  # columns of a tile
ROWS, BYTES, RUN = 4, 2048, 16  # of one token: a program's rows, bytes of each, neighbours of a thread


@triton.jit
def _weights(codes, scale, zero, offset, rows, inside, part, first, group, groups, centre, stride,
             FOUR: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr,
             COLUMNS: tl.constexpr):  # fmt: skip
    """(ROWS, COLUMNS) weights whose codes lie at `part` of each row; `first`: their first column."""
    at = rows[:, None].to(tl.int64) * stride + part + tl.arange(0, COLUMNS)[None, :]
    q = tl.load(codes + at, mask=inside[:, None], other=0)
    if FOUR:
        q = (q >> 4) if HIGH else (q & 15)
    grid = rows * groups + first // group  # a tile lies within one group
    w = q.to(tl.float32) - centre
    if ZERO:
        w -= tl.load(zero + grid, mask=inside, other=0).to(tl.float32)[:, None]
    w *= tl.load(scale + grid, mask=inside, other=0.0).to(tl.float32)[:, None]
    if OFFSET:
        w += tl.load(offset + grid, mask=inside, other=0.0).to(tl.float32)[:, None]
    return w


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
def _few(x, codes, scale, zero, offset, out, total, count, columns, stride, group, groups, centre,
         TOKENS: tl.constexpr, FOUR: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr,
         ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    tokens = tl.arange(0, TOKENS)
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for part in range(0, stride, COLUMNS):
        for high in tl.static_range(2 if FOUR else 1):
            first = part + high * stride
            w = _weights(codes, scale, zero, offset, rows, inside, part, first, group, groups, centre, stride,
                         FOUR, high == 1, ZERO, OFFSET, COLUMNS)  # fmt: skip
            for token in tl.static_range(TOKENS):
                at = token * columns + first + tl.arange(0, COLUMNS)
                v = tl.load(x + at, mask=at < total * columns, other=0.0).to(tl.float32)
                dot = tl.sum(w * v[None, :], axis=1)
                sums += tl.where(tokens[:, None] == token, dot[None, :], 0.0)
    to = out + tokens[:, None] * count + rows[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside[None, :] & (tokens[:, None] < total))


@triton.jit
def _tiles(x, codes, scale, zero, offset, out, total, count, columns, stride, group, groups, centre,
           TOKENS: tl.constexpr, FOUR: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr,
           ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside, there = rows < count, tokens < total
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for part in range(0, stride, COLUMNS):
        for high in tl.static_range(2 if FOUR else 1):
            first = part + high * stride
            w = _weights(codes, scale, zero, offset, rows, inside, part, first, group, groups, centre, stride,
                         FOUR, high == 1, ZERO, OFFSET, COLUMNS)  # fmt: skip
            at = tokens[:, None].to(tl.int64) * columns + first + tl.arange(0, COLUMNS)[None, :]
            v = tl.load(x + at, mask=there[:, None], other=0.0)
            sums += tl.dot(v, tl.trans(w.to(v.dtype)))
    to = out + tokens[:, None].to(tl.int64) * count + rows[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside[None, :] & there[:, None])


def tile_columns(columns: int, group: int, bits: int) -> int:
    """The widest power of two, up to 256, that divides a group and the columns that share a byte's half."""
    whole = math.gcd(group, columns // 2 if bits == 4 else columns)
    return min(WIDEST, whole & -whole)


def takes(bits: int, columns: int, group: int) -> bool:
    """Whether there is a kernel here for such a matrix."""
    return bits in (4, 8) and columns % 2 == 0 and tile_columns(columns, group, bits) >= 16


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
    shared = (columns, codes.shape[1], group, groups, centre)
    kinds = {"FOUR": bits == 4, "ZERO": zero is not None, "OFFSET": offset is not None}
    wide = tile_columns(columns, group, bits)
    at = (flat, codes, scale, scale if zero is None else zero, scale if offset is None else offset, out)
    if total == 1:
        _one[(triton.cdiv(rows, ROWS),)](
            *at, rows, *shared[1:], EARLY=early(x.device), ROWS=ROWS, BYTES=BYTES, RUN=RUN,
            **kinds, **options(x.device),
        )  # fmt: skip
    elif total <= MANY:
        height = max(4, min(32, 2048 // wide))
        grid = (triton.cdiv(rows, height),)
        _few[grid](*at, total, rows, *shared, TOKENS=_power(total), ROWS=height, COLUMNS=wide, **kinds)
    else:
        wide = min(wide, 64)
        tokens = 16 if total <= 16 else 64
        grid = (triton.cdiv(rows, 64), triton.cdiv(total, tokens))
        _tiles[grid](*at, total, rows, *shared, TOKENS=tokens, ROWS=64, COLUMNS=wide, **kinds)
    return out.view(*x.shape[:-1], rows)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()
