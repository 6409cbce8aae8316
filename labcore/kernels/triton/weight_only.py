"""Weights in 8 or 4 bits on a GPU: codes become numbers in registers and are multiplied there.

One token goes as in `coded_matvec.py`. From two on, tiles of tokens and rows go through the tensor cores,
where two tokens cost no more than sixteen.
"""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from labcore.kernels.triton.coded_matvec import (
    FEW_ROWS,
    MANY_ROWS,
    base_of,
    code_kinds,
    code_operands,
    fused_linear,
)
from labcore.kernels.triton.launching import shared_memory

WIDEST, LEAST = 512, 16  # columns of a tile, and of a tensor core's product
SPARE = 2048  # bytes of a program's shared memory for scales and what the compiler adds
NORMAL = tl.constexpr(2.0**127)  # makes a code's bits, taken for those of an fp32 number, code * UNIT
UNIT = tl.constexpr(2.0**-22)


@triton.jit
def _weights(codes, scale, zero, offset, rows, inside, part, first, groups, centre, stride,
             FOUR: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr,
             LATE: tl.constexpr, SIGNED: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr):  # fmt: skip
    """(ROWS, COLUMNS) weights whose codes lie at `part` of each row; `first`: their first column.

    The columns lie within one group, or are whole groups. LATE: a row's only scale is applied to its sum.
    A code's bits become a number as in `coded_matvec.py`: code * 2**-149, which 2**127 makes normal.
    """
    at = rows[:, None].to(tl.int64) * stride + part + tl.arange(0, COLUMNS)[None, :]
    q = tl.load(codes + at, mask=inside[:, None], other=0)
    if FOUR:
        q = (q & 240) if HIGH else (q & 15)
    if SIGNED:
        q ^= 128
    PARTS: tl.constexpr = COLUMNS // GROUP if COLUMNS > GROUP else 1
    grid = rows[:, None] * groups + first // GROUP + tl.arange(0, PARTS)[None, :]
    there = inside[:, None]
    number = q.to(tl.uint32).to(tl.float32, bitcast=True) * (NORMAL / 16 if FOUR and HIGH else NORMAL)
    number = tl.reshape(number, (ROWS, PARTS, COLUMNS // PARTS))
    if ZERO:
        w = number - (centre + tl.load(zero + grid, mask=there, other=0).to(tl.float32)[:, :, None]) * UNIT
    else:
        w = number - centre * UNIT
    if LATE:
        w *= 1 / UNIT
    else:
        w *= tl.load(scale + grid, mask=there, other=0.0).to(tl.float32)[:, :, None] * (1 / UNIT)
    if OFFSET:
        w += tl.load(offset + grid, mask=there, other=0.0).to(tl.float32)[:, :, None]
    return tl.reshape(w, (ROWS, COLUMNS))


@triton.jit
def _tiles(x, codes, scale, zero, offset, out, total, count, columns, stride, groups, centre,
           TOKENS: tl.constexpr, FOUR: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr,
           LATE: tl.constexpr, SIGNED: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
           COLUMNS: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """SPLIT: parts of the columns, each of which a warp of its own multiplies."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside, there = rows < count, tokens < total
    sums = tl.zeros((SPLIT, TOKENS, ROWS) if SPLIT > 1 else (TOKENS, ROWS), tl.float32)
    for part in range(0, stride, COLUMNS):
        for high in tl.static_range(2 if FOUR else 1):
            first = part + high * stride
            w = _weights(codes, scale, zero, offset, rows, inside, part, first, groups, centre, stride,
                         FOUR, high == 1, ZERO, OFFSET, LATE, SIGNED, GROUP, ROWS, COLUMNS)  # fmt: skip
            at = tokens[:, None].to(tl.int64) * columns + first + tl.arange(0, COLUMNS)[None, :]
            v = tl.load(x + at, mask=there[:, None], other=0.0)
            if SPLIT > 1:
                v = tl.permute(tl.reshape(v, (TOKENS, SPLIT, COLUMNS // SPLIT)), (1, 0, 2))
                w = tl.permute(tl.reshape(w, (ROWS, SPLIT, COLUMNS // SPLIT)), (1, 2, 0))
                sums = tl.dot(v, w.to(v.dtype), sums)
            else:
                sums = tl.dot(v, tl.trans(w.to(v.dtype)), sums)
    if SPLIT > 1:
        sums = tl.sum(sums, 0)
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
    return bits in (4, 8) and columns % 2 == 0 and tile_columns(columns, group, bits) >= LEAST


class Tile(NamedTuple):
    """What a program multiplies at once. columns: at most; split: see `_tiles`."""

    tokens: int
    rows: int
    columns: int
    warps: int
    stages: int
    split: int = 1

    def shared(self, size: int, bits: int) -> int:
        """Bytes of shared memory: loads under way, and the weights that they become. size: of a number."""
        x, codes = self.tokens * self.columns * size * (8 // bits), self.rows * self.columns
        return (self.stages - 1) * (x + codes) + codes * size


SAFE = Tile(16, 16, 64, 2, 2)  # for a GPU that has room for nothing larger


def tiles_for(rows: int, tokens: int) -> tuple[Tile, ...]:
    """The quickest first (as measured on an H200)."""
    if tokens > 16:
        large = (Tile(256, 128, 64, 8, 3),) if rows >= MANY_ROWS and tokens > 128 else ()
        return *large, *((Tile(128, 64, 64, 4, 3),) if tokens > 64 else ()), Tile(64, 64, 64, 4, 3), SAFE
    if rows >= MANY_ROWS:
        return Tile(16, 64, 128, 4, 3), SAFE
    if rows > FEW_ROWS:
        return Tile(16, 32, 256, 4, 3, 4), Tile(16, 16, 256, 2, 3, 2), SAFE
    return Tile(16, 16, 512, 4, 3, 4), Tile(16, 16, 256, 2, 3, 2), SAFE


def tile_of(rows: int, tokens: int, size: int, bits: int, room: int) -> Tile:
    """The quickest whose shared memory there is room for. size: bytes of one of x's numbers."""
    found = tiles_for(rows, tokens)
    return next((tile for tile in found if tile.shared(size, bits) + SPARE <= room), SAFE)


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
    if x.numel() == columns:
        return fused_linear(x.contiguous(), codes, bits, scale, centre=centre, zero=zero, offset=offset)
    flat = x.reshape(-1, columns).contiguous()
    total, groups = flat.shape[0], scale.shape[1]
    out = torch.empty(total, rows, device=x.device, dtype=x.dtype)
    group = columns // groups
    tile = tile_of(rows, total, x.element_size(), bits, shared_memory(x.device))
    wide = min(tile.columns, tile_columns(columns, group, bits))
    _tiles[(triton.cdiv(rows, tile.rows), triton.cdiv(total, tile.tokens))](
        flat, codes.view(torch.uint8), *code_operands(scale, zero, offset), out, total, rows, columns,
        codes.shape[1], groups, base_of(codes, centre), **code_kinds(codes, bits, zero, offset),
        LATE=groups == 1 and offset is None, GROUP=group,
        TOKENS=tile.tokens, ROWS=tile.rows, COLUMNS=wide, SPLIT=min(tile.split, wide // LEAST),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out.view(*x.shape[:-1], rows)
