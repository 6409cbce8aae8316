"""Attention of many chunks of prompts over blocks on a GPU, in one launch (after FlashAttention-2, Dao 2023).

One program computes a tile of one chunk's queries, all query heads that share a KV head side by side, and
walks through that sequence's blocks up to its last query's own position.
"""

# Triton reads annotations of its own kind, and its language has no types that mypy knows.
# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 128  # queries times heads of a group that one program computes
TILE = 64  # positions read at once


@triton.jit
def _attend(
    q, pool, tables, tiles, out, scale, q_head, q_step, out_head, out_step,
    pool_side, pool_head, pool_block, pool_slot, table_row,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tile = tiles + tl.program_id(0) * 4
    # Of this tile: its table, its first query in the step, that query's position, and how many there are.
    row, first, position, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    lines, sizes, steps = tl.arange(0, QUERIES * GROUP_PAD), tl.arange(0, SIZE_PAD), tl.arange(0, TILE)
    query, group = lines // GROUP_PAD, lines % GROUP_PAD
    real = ((query < count) & (group < GROUP))[:, None] & (sizes < SIZE)[None, :]
    at = (first + query).to(tl.int64)[:, None], (head * GROUP + group)[:, None], sizes[None, :]
    asked = tl.load(q + at[0] * q_step + at[1] * q_head + at[2], mask=real, other=0.0)
    stands = position + query
    end = position + count
    top = tl.full([QUERIES * GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES * GROUP_PAD], tl.float32)
    mixed = tl.zeros([QUERIES * GROUP_PAD, SIZE_PAD], tl.float32)
    for start in range(0, end, TILE):
        t = start + steps
        block = tl.load(tables + row * table_row + t // BLOCK, mask=t < end, other=0).to(tl.int64)
        key_at = head.to(tl.int64) * pool_head + block * pool_block + (t % BLOCK) * pool_slot
        held = (t < end)[:, None] & (sizes < SIZE)[None, :]
        keys = tl.load(pool + key_at[:, None] + sizes[None, :], mask=held, other=0.0)
        values = tl.load(pool + pool_side + key_at[:, None] + sizes[None, :], mask=held, other=0.0)
        scores = tl.dot(asked, tl.trans(keys), input_precision="ieee").to(tl.float32) * scale
        # Every query sees position 0, so no row is without a finite score from the first tile on.
        scores = tl.where(t[None, :] <= stands[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        part = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        mixed = mixed * shrink[:, None] + part.to(tl.float32)
        top = new_top
    mixed = mixed / total[:, None]
    tl.store(out + at[0] * out_step + at[1] * out_head + at[2], mixed.to(out.dtype.element_ty), mask=real)


def tiles_of(starts: Sequence[int], lengths: Sequence[int], queries: int) -> Tensor:
    """(tiles, 4) int32 for chunks that lie one behind the other: row, first query, its position, queries."""
    made, first = [], 0
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for at in range(0, length, queries):
            made.append((row, first + at, start + at, min(queries, length - at)))
        first += length
    return torch.tensor(made, dtype=torch.int32)


def queries_of(heads: int, kv_heads: int) -> int:
    """Queries of a tile: as many as fill ROWS with their group of heads."""
    return max(1, ROWS // triton.next_power_of_2(heads // kv_heads))


def paged_chunks(q: Tensor, pool: Tensor, block_tables: Tensor, tiles: Tensor, out: Tensor) -> None:
    """As `kernels.Chunks.attend`. q, out: (1, h, N, d), tiles: as `tiles_of` makes them, on the GPU."""
    _, heads, _, size = q.shape
    kv_heads, block = pool.shape[1], pool.shape[3]
    group = heads // kv_heads
    _attend[(tiles.shape[0], kv_heads)](
        q, pool, block_tables, tiles, out, size**-0.5, *q.stride()[1:3], *out.stride()[1:3],
        *pool.stride()[:4], block_tables.stride(0),
        GROUP=group, GROUP_PAD=triton.next_power_of_2(group), QUERIES=queries_of(heads, kv_heads), SIZE=size,
        SIZE_PAD=max(16, triton.next_power_of_2(size)), BLOCK=block, TILE=TILE, num_warps=8,
    )  # fmt: skip
