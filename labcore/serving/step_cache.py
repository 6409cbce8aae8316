"""The cache as one step of many requests sees it: rows of different lengths over one pool of blocks.

The Transformer meets it as it meets any cache. When every row has one new token, rows are a batch, (R, 1),
and attention is the paged decode kernel's. Else all new tokens of all rows lie one behind the other in a
single row, (1, N), so that no product computes padding, and attention takes them apart: single tokens to the
decode kernel, chunks of prompts to causal attention behind their history.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from labcore import kernels
from labcore.cache.paged import BlockStore
from labcore.kernels import native
from labcore.serving.flight import Newest
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
        self.packed = not self.batched  # tokens of several sequences, one behind the other
        # Positions and places of all new tokens at once: row by row would be a loop over tokens.
        of_row = np.repeat(np.arange(len(rows)), new)
        at = np.arange(self.ends[-1]) - np.repeat(self.ends - new, new) + starts[of_row]
        tables = block_tables([row.sequence.blocks for row in rows])
        slots = slots_of(tables, of_row, at, store.pool.block_size)
        device = store.device
        self._positions = torch.from_numpy(at).to(device)
        self._of_row = of_row
        self._slots = torch.from_numpy(slots).to(device)
        self._tables = torch.from_numpy(tables).to(device)
        self._lens = torch.from_numpy((starts + new).astype(np.int32)).to(device)
        self._longest = int((starts + new)[: self.singles].max()) if self.singles else 0
        if not self.batched:
            chunks, config = slice(self.singles, None), store.config
            self._chunks = kernels.Chunks(
                starts[chunks].tolist(),
                new[chunks].tolist(),
                self._tables[chunks],
                config.num_attention_heads,
                config.num_key_value_heads,
            )

    def tokens(self, newest: Newest) -> Tensor:
        """(R, 1) or (1, N) int64: what is computed. newest: where tokens lie that the host does not know."""
        flat: list[int] = []
        for row in self.rows:
            known = row.sequence.tokens
            part = known[row.start : row.start + row.new]
            flat += part
            if len(part) < row.new:
                flat += row.sequence.drafted[: row.new - len(part)]
        made = torch.tensor(flat, device=self.store.device)
        newest.fill(made, self.rows, self.ends.tolist())
        return made[:, None] if self.batched else made[None]

    def begin(self, n: int) -> Tensor:
        """Positions, (R, 1) or (1, N)."""
        return self._positions[:, None] if self.batched else self._positions[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (R, h, 1, d) or (1, h, N, d), k and v with h_kv heads -> the shape of q."""
        pool = self.store.layers[layer]
        if self.batched:
            return self._decode(layer, q, k, v)
        at = self.singles
        # Heads beside each other, as the projection behind it takes them.
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        kernels.write_blocks(pool, k[:, :, at:], v[:, :, at:], self._slots[None, at:])
        self._chunks.attend(q[:, :, at:], k[:, :, at:], v[:, :, at:], pool, out[:, :, at:])
        if at:
            one, keys, values = (_as_batch(part[:, :, :at]) for part in (q, k, v))
            single = self._decode(layer, one, keys, values)
            out[:, :, :at] = single.permute(2, 1, 0, 3)
        return out

    def _decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tables, lens = self._tables[: self.singles], self._lens[: self.singles]
        return self.store.step(layer, q, k, v, tables, lens, self._longest)

    def native_step(self) -> tuple[native.KVMemory, native.NewTokens] | None:
        """As in a KV cache's contract: every new token is an item, whichever row it belongs to."""
        memory = self.store.memory
        if memory is None:
            return None
        if self.batched:
            return memory, native.NewTokens(self._lens, self._longest, self._tables)
        lengths = (self._positions + 1).int()
        rows = torch.from_numpy(self._of_row.astype(np.int32))
        return memory, native.NewTokens(lengths, int(lengths.max()), self._tables, sequences=rows)

    def commit(self) -> None:
        """The runner counts."""


def arranged(rows: Rows[Row]) -> list[Row]:
    """Single tokens first, then chunks, each in the order they were planned."""
    return sorted(rows, key=lambda row: row.new > 1)


def block_tables(blocks: Rows[Rows[int]]) -> np.ndarray:
    """(R, longest) int32, short rows filled up with block 0."""
    counts = np.fromiter(map(len, blocks), np.int64, len(blocks))
    made = np.zeros((len(blocks), max(1, counts.max())), dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(blocks), np.int32, counts.sum())
    made[np.arange(made.shape[1]) < counts[:, None]] = flat
    return made


def slots_of(tables: np.ndarray, rows: np.ndarray, at: np.ndarray, block_size: int) -> np.ndarray:
    """(N,) int64: where in the pool position `at` of the sequence in row `rows` of the tables lies."""
    found: np.ndarray = tables[rows, at // block_size].astype(np.int64) * block_size + at % block_size
    return found


def _as_batch(x: Tensor) -> Tensor:
    """(1, h, D, d) -> (D, h, 1, d), laid out as the decode kernel reads it."""
    return x.permute(2, 1, 0, 3).contiguous()
