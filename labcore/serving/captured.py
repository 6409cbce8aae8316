"""Decode steps of the serving engine as CUDA graphs: one for each bucket of batch sizes, recorded once.

A step of R rows runs in the graph of the smallest bucket that holds R. The rows left over are of no length:
they write nothing and attend to nothing. All that changes from step to step lies in tensors of fixed places.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from labcore import kernels
from labcore.cache.paged import BlockStore
from labcore.generation.cuda_graph import Replay, capture
from labcore.kernels.on_gpu import triton_ready
from labcore.model import Model
from labcore.serving.flight import Newest
from labcore.serving.sequence import Row
from labcore.serving.step_cache import block_tables

FINE, STEP = 64, 8  # buckets are 1, 2, 4, then every 8 up to 64, then every 32


def bucket_for(rows: int) -> int:
    """Rows of the graph that so many rows are run in."""
    if rows <= STEP:
        return 1 << (rows - 1).bit_length()
    step = STEP if rows <= FINE else 4 * STEP
    return -(-rows // step) * step


def buckets(most: int) -> list[int]:
    """All buckets up to the one that holds so many rows."""
    return sorted({bucket_for(rows) for rows in range(1, most + 1)})


class FixedRows:
    """A batch of single tokens over the pool, as the Transformer meets a cache; at most `most` rows.

    Two sets of pinned memory take turns: a copy to the device may still read one while the next is written.
    """

    def __init__(self, store: BlockStore, most: int, positions: int) -> None:
        self.store, self.positions, device = store, positions, store.device
        self.wide = store.pool.blocks_for(positions)
        pinned = device.type == "cuda"
        self._host = [torch.zeros(3, most, dtype=torch.int64, pin_memory=pinned) for _ in range(2)]
        self._host_tables = [
            torch.zeros(most * self.wide, dtype=torch.int32, pin_memory=pinned) for _ in range(2)
        ]
        self._numbers = torch.zeros(3, most, dtype=torch.int64, device=device)
        self._tables = torch.zeros(most, self.wide, dtype=torch.int32, device=device)
        self._chosen = torch.zeros(most, dtype=torch.int64, device=device)
        self._turn = 0
        self.rows = most  # of the bucket that is recorded or replayed

    def fill(self, rows: Rows[Row], bucket: int, newest: Newest) -> None:
        """Take the rows of a step; those up to the bucket stand empty."""
        count, self._turn = len(rows), 1 - self._turn
        tables = block_tables([row.sequence.blocks for row in rows])
        numbers = self._host[self._turn].numpy()[:, :bucket]
        numbers[:, count:] = -1  # a position of -1: of no length
        numbers[0, :count] = [row.sequence.tokens[row.start] for row in rows]
        numbers[1, :count], numbers[2, :count] = [row.start for row in rows], newest.places(rows)
        self._numbers[:, :bucket].copy_(self._host[self._turn][:, :bucket], non_blocking=True)
        flat, width = self._host_tables[self._turn][: tables.size], tables.shape[1]
        flat.numpy()[:] = tables.reshape(-1)
        self._tables[:count, :width].copy_(flat.view(count, width), non_blocking=True)
        drawn = newest.chosen
        self._chosen[: len(drawn)].copy_(drawn)

    def empty(self, bucket: int) -> None:
        """No rows: all stand empty."""
        self._numbers[:, :bucket] = -1

    def tokens(self) -> Tensor:
        """(R, 1) int64: what the host knows, and what the step before drew on the device."""
        known, place = self._numbers[0, : self.rows].clamp_min(0), self._numbers[2, : self.rows]
        drawn = self._chosen.index_select(0, place.clamp_min(0))
        return torch.where(place < 0, known, drawn.clamp_min(0))[:, None]  # NO_TOKEN has no embedding

    def begin(self, n: int) -> Tensor:
        """Positions (R, 1); lengths are derived from them once a step."""
        at = self._numbers[1, : self.rows]
        self._lens = (at + 1).int()
        return at.clamp_min(0)[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v (R, h_kv, 1, d), return the attention of q (R, h, 1, d)."""
        pool, tables = self.store.layers[layer], self._tables[: self.rows]
        return kernels.paged_decode(q, k, v, pool, tables, self._lens, longest=self.positions)

    def native_step(self) -> None:
        """Nothing for C kernels: it lies on a GPU."""

    def commit(self) -> None:
        """The engine counts."""


class DecodeGraphs:
    """The graphs of one engine. most: rows; positions: of the longest sequence.

    The weights must stay where they are, since a graph has their addresses baked in; else `forget`.
    """

    def __init__(self, model: Model, store: BlockStore, most: int, positions: int) -> None:
        self.transformer, self.device = model.transformer, model.device
        self.most = bucket_for(most)
        self.rows = FixedRows(store, self.most, positions)
        self._graphs: dict[int, tuple[Replay, Tensor]] = {}
        self._pool: object = None  # memory that all graphs share: no two are replayed at once

    def take(self, rows: int) -> bool:
        """Whether a step of so many single tokens is run here."""
        return self.transformer.fast and rows <= self.most

    def __call__(self, rows: Rows[Row], newest: Newest) -> Tensor:
        """Logits (R, vocab) of the step, valid until the next one; recorded first where its bucket is new."""
        bucket = bucket_for(len(rows))
        self.rows.fill(rows, bucket, newest)
        if bucket not in self._graphs:
            self._graphs[bucket] = self._record(bucket)
        replay, logits = self._graphs[bucket]
        replay()
        return logits[: len(rows)]

    def forget(self) -> None:
        """Record anew: the weights are others, or elsewhere."""
        self._graphs.clear()

    def warm_up(self) -> None:
        """Record every bucket now, the largest first: the others then work in its memory."""
        for bucket in reversed(buckets(self.most)):
            if bucket not in self._graphs:
                self.rows.empty(bucket)
                self._graphs[bucket] = self._record(bucket)

    @torch.inference_mode()
    def _record(self, bucket: int) -> tuple[Replay, Tensor]:
        def run() -> Tensor:
            self.rows.rows = bucket
            return self.transformer(self.rows.tokens(), self.rows, logits_to_keep=1)[:, 0]

        replay, logits, self._pool = capture(run, self.device, self._pool)
        return replay, logits


def graphs_for(model: Model, store: BlockStore, most: int, positions: int) -> DecodeGraphs | None:
    """Where steps can be recorded: on a GPU with Triton, whose kernels ask the host nothing."""
    if model.device.type != "cuda" or not triton_ready():
        return None
    return DecodeGraphs(model, store, most, positions)
