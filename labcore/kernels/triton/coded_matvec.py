"""One token times a matrix of 8- or 4-bit codes on a GPU, its neighbours along with it, as in `matvec.py`.

Half or a quarter of the bytes leave half or a quarter of the time for as many numbers, so what is done to
each code decides: converting one takes as long as reading two bytes. But the bits of a code alone, taken for
those of an fp32 number, are that code times 2**-149. That is below the normal numbers, and these processors
multiply such numbers as fast as others. So of a word of four bytes each code is cut out by one instruction,
where it lies, and goes into a sum by a second one. Powers of two, centre and scale are left for that sum.

A thread has two words of codes of each row, and the eight numbers of x that go with them: 16 bytes of a
16-bit format. Both loads then give the same threads the same columns, and the loop passes nothing between
threads.
"""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from labcore.kernels.around import NOTHING, Around
from labcore.kernels.triton.launching import early, options
from labcore.kernels.triton.neighbours import kinds, made_for, needed_behind, operands, put, rows_of

THREADS = 32  # of a warp; each has two words of codes, whose columns are neighbours within a group
MANY_ROWS = 8192  # from here on every multiprocessor has several programs
FEW_ROWS = 2560  # up to here the warps of a program, of which there are few, share its columns out
LIFT = tl.constexpr(2.0**64)  # of x before a product, which for x from 1e-11 to 1e17 then is a normal number
LOWER = tl.constexpr(2.0**85)  # of a sum behind it: 2**149 = LIFT * LOWER


@triton.jit
def _four(x, at, inside, PACKED: tl.constexpr, DTYPE: tl.constexpr):
    """Columns 4 * at, and the three next to each, in fp32. PACKED: x is read as words of four numbers."""
    if PACKED:
        word = tl.load(x + at, mask=inside, other=0)
        a = (word & 65535).to(tl.uint16).to(DTYPE, bitcast=True)
        b = ((word >> 16) & 65535).to(tl.uint16).to(DTYPE, bitcast=True)
        c = ((word >> 32) & 65535).to(tl.uint16).to(DTYPE, bitcast=True)
        d = ((word >> 48) & 65535).to(tl.uint16).to(DTYPE, bitcast=True)
    else:
        a = tl.load(x + 4 * at, mask=inside, other=0.0)
        b = tl.load(x + 4 * at + 1, mask=inside, other=0.0)
        c = tl.load(x + 4 * at + 2, mask=inside, other=0.0)
        d = tl.load(x + 4 * at + 3, mask=inside, other=0.0)
    return a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)


@triton.jit
def _add_products(sums, q, a, b, c, d, LOWEST: tl.constexpr, LIFTED: tl.constexpr):
    """sums of words + code * x * LIFTED * 2**-149; LOWEST: where the codes of the first column lie in q."""
    NEXT: tl.constexpr = LOWEST * 256
    above = q >> 16
    sums += (q & LOWEST).to(tl.float32, bitcast=True) * (a * LIFTED)[None, :]
    sums += (q & NEXT).to(tl.float32, bitcast=True) * (b * (LIFTED / 256))[None, :]
    sums += (above & LOWEST).to(tl.float32, bitcast=True) * (c * LIFTED)[None, :]
    sums += (above & NEXT).to(tl.float32, bitcast=True) * (d * (LIFTED / 256))[None, :]
    return sums


@triton.jit
def _normed(x, norm, squares, at, inside, NORM: tl.constexpr, PACKED: tl.constexpr, NORM_PACKED: tl.constexpr,
            DTYPE: tl.constexpr):  # fmt: skip
    """`_four` of x, times the norm's weight if there is a norm, whose root comes last; and the squares."""
    a, b, c, d = _four(x, at, inside, PACKED, DTYPE)
    if NORM:
        squares += a * a + b * b + c * c + d * d
        e, f, g, h = _four(norm, at, inside, NORM_PACKED, DTYPE)
        a, b, c, d = a * e, b * f, c * g, d * h
    return a, b, c, d, squares


@triton.jit
def _scaled(sums, whole, scale, zero, offset, at, held, base, ZERO: tl.constexpr, OFFSET: tl.constexpr):
    """Sums of lifted products, as the numbers that scale, zero point and offset at `at` make of them.

    whole: the sum of the x that went in.
    """
    below = base
    if ZERO:
        below += tl.load(zero + at, mask=held, other=0).to(tl.float32)
    made = (sums * LOWER - whole * below) * tl.load(scale + at, mask=held, other=0.0).to(tl.float32)
    if OFFSET:
        made += whole * tl.load(offset + at, mask=held, other=0.0).to(tl.float32)
    return made


@triton.jit
def _coded_one(
    x, codes, scale, zero, offset, norm, bias, more, cos, sin, out, count, words, groups, base, eps, turned,
    FOUR: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr,
    LATE: tl.constexpr, PACKED: tl.constexpr, NORM_PACKED: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, THEN: tl.constexpr, HALF: tl.constexpr, PAIRED: tl.constexpr, EARLY: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """LATE: a row's only scale is applied to its sum. High halves of bytes are columns half a row on."""
    RUNS: tl.constexpr = WORDS // 2
    DTYPE: tl.constexpr = out.dtype.element_ty
    rows, steps = rows_of(ROWS, HALF, PAIRED), tl.max_contiguous(tl.arange(0, WORDS), 2)
    inside = (rows < count)[:, None]
    at = codes + rows.to(tl.int64)[:, None] * words + steps[None, :]
    part = tl.load(at, mask=inside & (steps < words)[None, :], other=0, eviction_policy="evict_first")
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    extra, by_cos, by_sin = needed_behind(rows, count, bias, more, cos, sin, turned, BIAS, THEN, HALF, ROWS)
    sums = tl.zeros((ROWS, WORDS if LATE else RUNS), tl.float32)
    wholes = tl.zeros((WORDS,), tl.float32)
    squares = tl.zeros((WORDS,), tl.float32)
    for start in range(0, words, WORDS):
        ahead = start + WORDS + steps
        following = tl.load(
            at + start + WORDS, mask=inside & (ahead < words)[None, :], other=0,
            eviction_policy="evict_first",
        )  # fmt: skip
        if SIGNED:
            part ^= -2139062144  # 0x80808080: as if 128 had been added to each
        for high in tl.static_range(2 if FOUR else 1):
            here, there = high * words + start + steps, start + steps < words
            a, b, c, d, squares = _normed(x, norm, squares, here, there, NORM, PACKED, NORM_PACKED, DTYPE)
            whole = (a + b) + (c + d)
            each = sums if LATE else tl.zeros((ROWS, WORDS), tl.float32)
            if high:
                each = _add_products(each, part, a, b, c, d, 240, LIFT / 16)
            else:
                each = _add_products(each, part, a, b, c, d, 15 if FOUR else 255, LIFT)
            if LATE:
                wholes += whole
                sums = each
            else:
                run = start // 2 + tl.arange(0, RUNS)
                grid = rows[:, None] * groups + ((high * words * 4 + run * 8) // GROUP)[None, :]
                held = inside & (run < words // 2)[None, :]
                each = tl.sum(tl.reshape(each, (ROWS, RUNS, 2)), 2)
                whole = tl.sum(tl.reshape(whole, (RUNS, 2)), 1)[None, :]
                sums += _scaled(each, whole, scale, zero, offset, grid, held, base, ZERO, OFFSET)
        part = following
    total = tl.sum(sums, 1)
    if LATE:
        whole = tl.sum(wholes, 0)
        total = _scaled(total, whole, scale, zero, offset, rows, rows < count, base, ZERO, OFFSET)
    if NORM:
        total *= tl.rsqrt(tl.sum(squares, 0) / (words * (8 if FOUR else 4)) + eps)
    put(total + extra, rows, out, count, by_cos, by_sin, THEN, HALF, PAIRED, ROWS)


def code_operands(scale: Tensor, zero: Tensor | None, offset: Tensor | None) -> tuple[Tensor, ...]:
    """scale, zero, offset; the scale in place of what is not there, which no kernel then reads."""
    return scale, scale if zero is None else zero, scale if offset is None else offset


def code_kinds(codes: Tensor, bits: int, zero: Tensor | None, offset: Tensor | None) -> dict[str, bool]:
    """What a kernel is compiled for."""
    signed = codes.dtype == torch.int8
    return {"FOUR": bits == 4, "SIGNED": signed, "ZERO": zero is not None, "OFFSET": offset is not None}


def base_of(codes: Tensor, centre: int) -> float:
    """What is taken from each code: a kernel adds 128 to signed ones, so that none is negative."""
    return float(centre + (128 if codes.dtype == torch.int8 else 0))


def fused_linear(
    x: Tensor,
    codes: Tensor,
    bits: int,
    scale: Tensor,
    *,
    centre: int,
    zero: Tensor | None = None,
    offset: Tensor | None = None,
    around: Around = NOTHING,
) -> Tensor:
    """then(rms_norm(x) Wᵀ + bias) of one token and weights scale * (code - centre - zero) + offset.

    x: (1, ..., columns) contiguous. codes: (rows, columns) uint8 or int8, or (rows, columns / 2) as packed by
    `kernels.packing.pack`. scale, zero, offset: (rows, groups) contiguous, whole runs in each group. around:
    what the product stands between. Returns (1, ..., rows), with GATE half as many, in the dtype of x.
    """
    (rows, stride), columns, groups = codes.shape, x.shape[-1], scale.shape[1]
    out = made_for(x, rows, around)
    height, warps = strip_of(rows, stride)
    norm, *behind = operands(x, around)
    norm_packed = _packs(norm) and norm.dtype == x.dtype
    _coded_one[(triton.cdiv(rows, height),)](
        _in_words(x), codes.view(torch.int32), *code_operands(scale, zero, offset),
        _in_words(norm) if norm_packed else norm, *behind, out, rows, stride // 4, groups,
        base_of(codes, centre), around.eps, around.turned, **code_kinds(codes, bits, zero, offset),
        GROUP=columns // groups if groups > 1 else 1, LATE=groups == 1, PACKED=_packs(x),
        NORM_PACKED=norm_packed, **kinds(rows, around), EARLY=early(x.device), ROWS=height,
        WORDS=2 * THREADS * warps, num_warps=warps, **options(x.device),
    )  # fmt: skip
    return out


def _packs(x: Tensor) -> bool:
    """Whether four of its numbers are a word."""
    return x.element_size() == 2


def _in_words(x: Tensor) -> Tensor:
    """(..., n) -> (..., n / 4) words of four 16-bit numbers; numbers of another size as they are."""
    return x.view(torch.int64) if _packs(x) else x


def strip_of(rows: int, stride: int) -> tuple[int, int]:
    """Rows of a program, and its warps: each reads 256 bytes of the rows at once (as measured on an H200)."""
    warps = 1 if rows >= MANY_ROWS else 4 if rows > FEW_ROWS else 8
    return 8, min(warps, 1 << (max(1, stride // 256).bit_length() - 1))
