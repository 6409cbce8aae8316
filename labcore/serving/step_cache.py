"""The cache as one step of many requests sees it: rows of different lengths over one pool of blocks.

The Transformer meets it as it meets any cache. When every row has one new token, rows are a batch, (R, 1),
and attention is the paged decode kernel's. Else all new tokens of all rows lie one behind the other in a
single row, (1, N), so that no product computes padding, and attention takes them apart: single tokens to the
decode kernel, chunks of prompts to causal attention behind their history.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from labcore import kernels
from labcore.cache.paged import BlockStore
from labcore.serving.sequence import Row


class StepCache:
    """rows: single tokens first, as `arranged` puts them. Knows nothing of requests but starts and blocks."""

    def __init__(self, store: BlockStore, rows: Rows[Row]) -> None:
        self.store, self.rows = store, rows
        starts = np.array([row.start for row in rows])
        new = np.array([row.new for row in rows])
        self.ends = np.cumsum(new)
        self.singles = int((new == 1).sum())
        self.batched = self.singles == len(rows)
        # Positions and places of all new tokens at once: row by row would be a loop over tokens.
        of_row = np.repeat(np.arange(len(rows)), new)
        at = np.arange(self.ends[-1]) - np.repeat(self.ends - new, new) + starts[of_row]
        size = store.pool.block_size
        tables = _tables([row.sequence.blocks for row in rows])
        slots = tables[of_row, at // size].astype(np.int64) * size + at % size
        device = store.device
        self._positions = torch.from_numpy(at).to(device)
        self._slots = torch.from_numpy(slots).to(device)
        self._tables = torch.from_numpy(tables).to(device)
        self._lens = torch.from_numpy((starts + new).astype(np.int32)).to(device)
        self._longest = int((starts + new)[: self.singles].max()) if self.singles else 0

    def tokens(self) -> Tensor:
        """(R, 1) or (1, N) int64: what is computed."""
        flat: list[int] = []
        for row in self.rows:
            known = row.sequence.tokens
            part = known[row.start : row.start + row.new]
            flat += part
            if len(part) < row.new:
                flat += row.sequence.drafted[: row.new - len(part)]
        made = torch.tensor(flat, device=self.store.device)
        return made[:, None] if self.batched else made[None]

    def last_of(self, rows: Rows[int]) -> Tensor:
        """Where in the packed step the last token of each of these rows lies."""
        return torch.from_numpy(self.ends[list(rows)] - 1).to(self.store.device)

    def begin(self, n: int) -> Tensor:
        """Positions, (R, 1) or (1, N)."""
        return self._positions[:, None] if self.batched else self._positions[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (R, h, 1, d) or (1, h, N, d), k and v with h_kv heads -> the shape of q."""
        pool = self.store.layers[layer]
        if self.batched:
            return self._decode(layer, pool, q, k, v, self._slots[:, None])
        out = torch.empty_like(q)
        if self.singles:
            one, keys, values = (_as_batch(part[:, :, : self.singles]) for part in (q, k, v))
            mixed = self._decode(layer, pool, one, keys, values, self._slots[: self.singles, None])
            out[:, :, : self.singles] = mixed.permute(2, 1, 0, 3)
        rest = slice(self.singles, None) if self.singles else slice(None)
        at = int(self.ends[self.singles - 1]) if self.singles else 0
        kernels.write_blocks(pool, k[:, :, at:], v[:, :, at:], self._slots[None, at:])
        for index, row in enumerate(self.rows[rest], start=self.singles):
            here = slice(int(self.ends[index]) - row.new, int(self.ends[index]))
            out[:, :, here] = self._chunk(pool, index, row, q[:, :, here], k[:, :, here], v[:, :, here])
        return out

    def _decode(self, layer: int, pool: Tensor, q: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
        tables, lens = self._tables[: self.singles], self._lens[: self.singles]
        if self.store.decode and self.store.decode[layer].takes(q, k, v):
            return self.store.decode[layer](q, k, v, tables, lens, self._longest)
        kernels.write_blocks(pool, k, v, slots)
        return kernels.paged_attention(q, pool, tables, lens, longest=self._longest)

    def _chunk(self, pool: Tensor, index: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One row's new tokens over its own history; without one they see each other only."""
        if row.start:
            k, v = kernels.gather_blocks(pool, self._tables[index : index + 1], row.start + row.new)
        return kernels.attention(q, k, v, causal=True)

    def commit(self) -> None:
        """The runner counts."""


def arranged(rows: Rows[Row]) -> list[Row]:
    """Single tokens first, then chunks, each in the order they were planned."""
    return sorted(rows, key=lambda row: row.new > 1)


def _tables(blocks: Rows[Rows[int]]) -> np.ndarray:
    """(R, longest) int32, short rows filled up with block 0."""
    width = max(1, *map(len, blocks))
    made = np.zeros((len(blocks), width), dtype=np.int32)
    for row, table in enumerate(blocks):
        made[row, : len(table)] = table
    return made


def _as_batch(x: Tensor) -> Tensor:
    """(1, h, D, d) -> (D, h, 1, d), laid out as the decode kernel reads it."""
    return x.permute(2, 1, 0, 3).contiguous()
