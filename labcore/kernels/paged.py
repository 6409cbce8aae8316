"""Attention over a cache that lies in blocks, and the two copies between blocks and plain tensors.

A layer's pool is one tensor (2, h_kv, num_blocks, block_size, d), keys and then values. Heads come before
blocks: blocks that follow each other in the pool then follow each other in memory for each head, and a
sequence whose blocks were allocated in a row is read as one stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labcore.kernels.attention import attention
from labcore.kernels.on_gpu import takes


def paged_attention(
    q: Tensor, pool: Tensor, block_tables: Tensor, context_lens: Tensor, *, longest: int | None = None
) -> Tensor:
    """Attention of each sequence's newest token over its blocks (Kwon et al. 2023).

    q: (B, h, 1, d). block_tables: (B, max_blocks) int32, unused entries any valid block. context_lens: (B,)
    int32, the token's own position included; 0: the row takes no part and comes back as zeros. longest: the
    largest of them, where the caller knows it (reading it waits for the GPU). Returns (B, h, 1, d).
    """
    longest = int(context_lens.max()) if longest is None else longest
    if takes(q):
        from labcore.kernels.triton.paged_attention import paged_attention as on_gpu

        out: Tensor = on_gpu(q, pool, block_tables, context_lens, longest=longest)
        return out
    return _gathered(q, pool, block_tables, context_lens, longest)


def paged_decode(
    q: Tensor, k: Tensor, v: Tensor, pool: Tensor, block_tables: Tensor, context_lens: Tensor, *, longest: int
) -> Tensor:
    """Store k and v (B, h_kv, 1, d) at position context_lens - 1 of each sequence, then `paged_attention`.

    A row of length 0 stores nothing. One launch on a GPU, or two where sequences are split.
    """
    if takes(q):
        from labcore.kernels.triton.paged_attention import paged_attention as on_gpu

        out: Tensor = on_gpu(q, pool, block_tables, context_lens, longest=longest, new=(k, v))
        return out
    size = pool.shape[3]
    newest = context_lens.long()[:, None] - 1
    blocks = block_tables.long().gather(1, newest.clamp_min(0) // size)
    write_blocks(pool, k, v, torch.where(newest < 0, newest, blocks * size + newest % size))
    return _gathered(q, pool, block_tables, context_lens, longest)


def contiguous_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    store: Tensor,
    lens: Tensor,
    *,
    longest: int,
    starts: Tensor | None = None,
) -> Tensor:
    """The same over a contiguous cache, (2, B, h_kv, capacity, d): blocks of a sequence each, in order.

    lens: (B,) as context_lens. starts: (B,) positions before which a sequence has only padding.
    """
    if takes(q):
        from labcore.kernels.triton.paged_attention import paged_attention as on_gpu

        pool = store.transpose(1, 2)
        out: Tensor = on_gpu(q, pool, None, lens, longest=longest, new=(k, v), starts=starts)
        return out
    rows, newest = torch.arange(len(lens), device=q.device), lens.long() - 1
    for part, new in zip(store, (k, v), strict=True):
        part[rows, :, newest] = new[:, :, 0]
    places = torch.arange(longest, device=q.device)
    seen = places < lens[:, None]
    if starts is not None:
        seen &= places >= starts[:, None]
    return attention(q, *store[:, :, :, :longest], mask=seen[:, None, None])


def write_blocks(pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Put k and v (B, h_kv, n, d) into the pool. slots: (B, n) int64 block * block_size + offset, or -1."""
    if takes(pool):
        from labcore.kernels.triton.paged_attention import write_blocks as on_gpu

        on_gpu(pool, k, v, slots)
        return
    heads, size = pool.shape[1], pool.shape[4]
    stored = slots.flatten() >= 0
    rows = slots.flatten()[stored]
    for part, new in zip(pool, (k, v), strict=True):
        flat = part.view(heads, -1, size)
        flat.index_copy_(1, rows, new.transpose(0, 1).reshape(heads, -1, size)[:, stored])


def gather_blocks(pool: Tensor, block_tables: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The first `length` positions of each sequence as plain keys and values (B, h_kv, length, d), copied."""
    batch, heads, size = block_tables.shape[0], pool.shape[1], pool.shape[4]
    needed = -(-length // pool.shape[3])
    rows = block_tables[:, :needed].flatten().long()
    found = pool.index_select(2, rows).view(2, heads, batch, -1, size)[:, :, :, :length]
    return found[0].transpose(0, 1), found[1].transpose(0, 1)


class Chunks:
    """Chunks of several sequences that lie one behind the other in a step, and attention over their blocks.

    starts: positions before each chunk. lengths: its tokens. block_tables: (chunks, max_blocks) int32.
    """

    def __init__(
        self, starts: Sequence[int], lengths: Sequence[int], block_tables: Tensor, heads: int, kv_heads: int
    ) -> None:
        self.starts, self.lengths, self.tables = starts, lengths, block_tables
        self._tiles: Tensor | None = None
        if takes(block_tables):
            from labcore.kernels.triton.paged_chunks import queries_of, tiles_of

            tiles = tiles_of(starts, lengths, queries_of(heads, kv_heads))
            self._tiles = tiles.to(block_tables.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pool: Tensor, out: Tensor) -> None:
        """q (1, h, N, d), k and v (1, h_kv, N, d) of all chunks, which the pool holds; out: the shape of q.

        One launch on a GPU; elsewhere chunk by chunk, over copies of its blocks where it has a history.
        """
        if self._tiles is not None:
            from labcore.kernels.triton.paged_chunks import paged_chunks as on_gpu

            on_gpu(q, pool, self.tables, self._tiles, out)
            return
        end = 0
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            here, end = slice(end, end + length), end + length
            keys, values = k[:, :, here], v[:, :, here]
            if start:
                keys, values = gather_blocks(pool, self.tables[row : row + 1], start + length)
            out[:, :, here] = attention(q[:, :, here], keys, values, causal=True)


def _gathered(q: Tensor, pool: Tensor, block_tables: Tensor, context_lens: Tensor, longest: int) -> Tensor:
    """All sequences at once: copy their blocks side by side, mask what lies behind each one's end."""
    keys, values = gather_blocks(pool, block_tables, longest)
    seen = torch.arange(longest, device=q.device) < context_lens[:, None]
    for part in (keys, values):  # copies: what others left in the blocks may be NaN, which no mask removes
        part.masked_fill_(~seen[:, None, :, None], 0.0)
    # A sequence of no positions would have nothing to attend to; what it gets is thrown away.
    out = attention(q, keys, values, mask=(seen | (context_lens == 0)[:, None])[:, None, None])
    return out.masked_fill((context_lens == 0)[:, None, None, None], 0.0)
