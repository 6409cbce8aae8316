"""Decode attention over blocks on a GPU, split over the sequence (flash-decoding, Dao et al. 2023).

One program reads a share of one sequence's keys and values for one KV head, once for all query heads that
share it, and leaves the weighted values with their maximum and sum. A second kernel merges the shares. How
many shares: enough programs to fill the GPU, and no share shorter than a few tiles. A step's own key and
value come from where they were computed: whose share they end puts them into the cache on the way.
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

TILE = 128  # positions read at once, where there is enough to do
SHORT = 2048  # numbers of a tile where there is not: then a program's own steps are what takes the time
MIN_SHARE = 256  # positions of a share, at least
PROGRAMS_PER_SM = 4
WARPS, STAGES = 4, 3


@triton.jit
def _places(tables, row, t, inside, pool_block, pool_slot, table_row,
            PAGED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Where in a head's part of the pool these positions of a sequence lie."""
    if PAGED:
        block = tl.load(tables + row * table_row + t // BLOCK, mask=inside, other=0).to(tl.int64)
        return block * pool_block + (t % BLOCK) * pool_slot
    return row.to(tl.int64) * pool_block + t * pool_slot


@triton.jit
def _append(k, v, to, pool_side, sizes, mine, SIZE: tl.constexpr):
    """The newest key and value, put into the pool by the program whose share they end."""
    key = tl.load(k + sizes, mask=sizes < SIZE, other=0.0)
    value = tl.load(v + sizes, mask=sizes < SIZE, other=0.0)
    tl.store(to + sizes, key, mask=mine & (sizes < SIZE))
    tl.store(to + pool_side + sizes, value, mask=mine & (sizes < SIZE))
    return key, value


# How many shares there are grows with the context: were it compiled in, decoding would stop to compile again.
# A single share is a case of its own, since its values need no merging.
@triton.jit(do_not_specialize=["shares"])
def _attend(
    q, k, v, pool, tables, lens, starts, into, parts, tops, sums, scale, shares,
    q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head,
    pool_side, pool_head, pool_block, pool_slot, table_row,
    EARLY: tl.constexpr, APPEND: tl.constexpr, PADDED: tl.constexpr, PAGED: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    row, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, first = tl.load(lens + row).to(tl.int32), 0  # known since before the step
    if PADDED:
        first = tl.load(starts + row).to(tl.int32)
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    per_share = tl.cdiv(tl.cdiv(length - first, shares), TILE) * TILE
    begin, end = first + share * per_share, tl.minimum(first + (share + 1) * per_share, length)
    groups, sizes, steps = tl.arange(0, GROUP_PAD), tl.arange(0, SIZE_PAD), tl.arange(0, TILE)
    q_at = q + row * q_row + (head * GROUP + groups)[:, None] * q_head + sizes[None, :]
    real = (groups < GROUP)[:, None] & (sizes < SIZE)[None, :]
    query = tl.load(q_at, mask=real, other=0.0)
    top, total = tl.full([GROUP_PAD], float("-inf"), tl.float32), tl.zeros([GROUP_PAD], tl.float32)
    out = tl.zeros([GROUP_PAD, SIZE_PAD], tl.float32)
    if APPEND:
        newest, stands = length - 1, sizes * 0 + length - 1
        mine = (stands >= begin) & (stands < end)
        to = _places(tables, row, stands, mine, pool_block, pool_slot, table_row, PAGED, BLOCK)
        to += pool + head.to(tl.int64) * pool_head
        k, v = k + row * k_row + head * k_head, v + row * v_row + head * v_head
        new_key, new_value = _append(k, v, to, pool_side, sizes, mine, SIZE)
    for start in range(begin, end, TILE):
        t = start + steps
        at = _places(tables, row, t, t < end, pool_block, pool_slot, table_row, PAGED, BLOCK)
        at += head.to(tl.int64) * pool_head
        held = (t < end)[:, None] & (sizes < SIZE)[None, :]
        if APPEND:  # what was stored just now need not have arrived
            held &= (t < newest)[:, None]
        keys = tl.load(pool + at[:, None] + sizes[None, :], mask=held, other=0.0)
        values = tl.load(pool + pool_side + at[:, None] + sizes[None, :], mask=held, other=0.0)
        if APPEND:
            keys = tl.where((t == newest)[:, None], new_key[None, :], keys)
            values = tl.where((t == newest)[:, None], new_value[None, :], values)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee").to(tl.float32) * scale
        scores = tl.where((t < end)[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        out = out * shrink[:, None] + mixed.to(tl.float32)
        top = new_top
    if WHOLE:
        out = out / tl.where(total > 0, total, 1.0)[:, None]
        at = into + row * out_row + (head * GROUP + groups)[:, None] * out_head + sizes[None, :]
        tl.store(at, out.to(into.dtype.element_ty), mask=real)
    else:
        item = ((row * KV_HEADS + head) * shares + share) * GROUP_PAD + groups
        tl.store(tops + item, top)
        tl.store(sums + item, total)
        tl.store(parts + item[:, None] * SIZE_PAD + sizes[None, :], out)


@triton.jit(do_not_specialize=["shares"])
def _merge(
    parts, tops, sums, out, shares, out_row, out_head, EARLY: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr, SHARES_PAD: tl.constexpr,
):  # fmt: skip
    row, query_head = tl.program_id(0), tl.program_id(1)
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    head, group = query_head // GROUP, query_head % GROUP
    each, sizes = tl.arange(0, SHARES_PAD), tl.arange(0, SIZE_PAD)
    item = ((row * KV_HEADS + head) * shares + each) * GROUP_PAD + group
    top = tl.load(tops + item, mask=each < shares, other=float("-inf"))
    highest = tl.max(top, 0)
    # A row of no positions has -inf everywhere, and -inf less -inf is no number.
    weight = tl.where(top == float("-inf"), 0.0, tl.exp(top - highest))
    total = tl.sum(weight * tl.load(sums + item, mask=each < shares, other=0.0), 0)
    mask = (each < shares)[:, None]
    part = tl.load(parts + item[:, None] * SIZE_PAD + sizes[None, :], mask=mask, other=0.0)
    mixed = tl.sum(part * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    at = out + row * out_row + query_head * out_head + sizes
    tl.store(at, mixed.to(out.dtype.element_ty), mask=sizes < SIZE)


@triton.jit
def _write(
    pool, k, v, slots, pool_side, pool_head, k_row, k_head, k_step, v_row, v_head, v_step, n,
    SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0), tl.program_id(1)
    row, step, sizes = item // n, item % n, tl.arange(0, SIZE_PAD)
    slot = tl.load(slots + item)
    mask = (sizes < SIZE) & (sizes * 0 + slot >= 0)
    at = pool + head.to(tl.int64) * pool_head + slot * SIZE + sizes
    key = tl.load(k + row * k_row + head * k_head + step * k_step + sizes, mask=mask)
    value = tl.load(v + row * v_row + head * v_head + step * v_step + sizes, mask=mask)
    tl.store(at, key, mask=mask)
    tl.store(at + pool_side, value, mask=mask)


def write_blocks(pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """As `kernels.write_blocks`, without asking the GPU which positions are to be stored."""
    batch, kv_heads, n, size = k.shape
    _write[(batch * n, kv_heads)](
        pool, k, v, slots.contiguous(), *pool.stride()[:2], *k.stride()[:3], *v.stride()[:3], n,
        SIZE=size, SIZE_PAD=triton.next_power_of_2(size),
    )  # fmt: skip


def paged_attention(
    q: Tensor,
    pool: Tensor,
    block_tables: Tensor | None,
    context_lens: Tensor,
    *,
    longest: int,
    new: tuple[Tensor, Tensor] | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """As `kernels.paged_attention`, and with new keys and values (B, h_kv, 1, d) as `kernels.paged_decode`.

    q: (B, h, 1, d), pool: (2, h_kv, num_blocks, block_size, d). Without tables sequence b lies in block b.
    """
    batch, heads, _, size = q.shape
    kv_heads, tables = pool.shape[1], context_lens if block_tables is None else block_tables
    shares = _shares(batch * kv_heads, longest, q.device)
    group = heads // kv_heads
    pad = {
        "GROUP_PAD": max(16, triton.next_power_of_2(group)),
        "SIZE_PAD": max(16, triton.next_power_of_2(size)),
    }
    busy = batch * kv_heads * shares >= processors(q.device)
    tile = TILE if busy else max(16, SHORT // pad["SIZE_PAD"])
    common = {"KV_HEADS": kv_heads, "GROUP": group, "SIZE": size, **pad, "EARLY": early(q.device)}
    rows = batch * kv_heads * shares * pad["GROUP_PAD"] if shares > 1 else 1
    parts = torch.empty(rows, pad["SIZE_PAD"], device=q.device, dtype=torch.float32)
    tops, sums = torch.empty(2, rows, device=q.device, dtype=torch.float32)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    k, v = new or (q, q)
    _attend[(batch, kv_heads, shares)](
        q, k, v, pool, tables, context_lens, context_lens if starts is None else starts,
        out, parts, tops, sums, size**-0.5, shares,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2], *pool.stride()[:4],
        tables.stride(0), APPEND=new is not None, PADDED=starts is not None, PAGED=block_tables is not None,
        BLOCK=1 if block_tables is None else pool.shape[3], TILE=tile, WHOLE=shares == 1,
        num_warps=WARPS, num_stages=STAGES, **common, **options(q.device),
    )  # fmt: skip
    if shares == 1:
        return out
    _merge[(batch, heads)](
        parts, tops, sums, out, shares, out.stride(0), out.stride(1),
        SHARES_PAD=triton.next_power_of_2(shares), **common, **options(q.device),
    )  # fmt: skip
    return out


def _shares(items: int, longest: int, device: torch.device) -> int:
    """Into how many parts a sequence is cut: until the GPU is full, or the parts are short."""
    wanted = -(-processors(device) * PROGRAMS_PER_SM // items)
    return max(1, min(wanted, -(-longest // MIN_SHARE)))
