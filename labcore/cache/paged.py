"""The paged cache: keys and values in blocks of a pool, a table of blocks for each sequence (Kwon et al.
2023).

Nothing is reserved but the block that is being filled, padding is not stored at all, and sequences that begin
alike hold the same blocks until one of them writes: then it copies the block it writes to.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from labcore import kernels
from labcore.cache.base import KVCache
from labcore.cache.block_pool import BlockPool
from labcore.config import ModelConfig
from labcore.errors import ConfigError, OutOfMemory
from labcore.kernels import native, reference
from labcore.perf.costs import CacheTraffic, kv_bytes_per_token
from labcore.perf.machine import available_memory, within_budget


class BlockStore:
    """The pool's bookkeeping and, for each layer, its memory (2, h_kv, num_blocks, block_size, d).

    Several caches may share one. Raises ConfigError for sizes below 1, OutOfMemory before it would not fit.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.block_bytes = block_size * kv_bytes_per_token(config, dtype)
        _refuse_too_many(self.block_bytes, num_blocks, self.device)
        self.pool = BlockPool(num_blocks, block_size)
        shape = (2, config.num_key_value_heads, num_blocks, block_size, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.layers = [torch.zeros(shape, device=self.device, dtype=dtype) for _ in layers]
        self.memory = native.KVMemory.bind(self.layers, config.num_attention_heads, paged=True)

    def step(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, tables: Tensor, lens: Tensor, longest: int
    ) -> Tensor:
        """One token of each sequence, arguments as in `kernels.paged_decode`; natively where it is bound."""
        if self.memory is not None and self.memory.takes(q, k, v):
            return self.memory.attend(layer, q, k, v, native.NewTokens(lens, longest, tables))
        return kernels.paged_decode(q, k, v, self.layers[layer], tables, lens, longest=longest)

    def ensure_fits(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        """Raises ConfigError for a model whose keys are of another shape or dtype, or on another device."""
        mine, asked = _described(self.config, self.device, self.dtype), _described(config, device, dtype)
        if mine != asked:
            raise ConfigError(
                f"This pool of blocks is for {mine}; the model has {asked}, so make one for it."
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, free ones included."""
        return sum(layer.nbytes for layer in self.layers)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks, given as (from, to), in every layer."""
        sources, targets = (torch.tensor(part, device=self.device) for part in zip(*pairs, strict=True))
        for layer in self.layers:
            layer.index_copy_(2, targets, layer.index_select(2, sources))


def _described(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Of what shape its keys and values are, and where."""
    heads = f"{config.num_attention_heads} query and {config.num_key_value_heads} key/value heads"
    kind = f"{config.head_dim}, {str(dtype)[6:]} on {device.type}"
    return f"{config.num_hidden_layers} layers of {heads} of {kind}"


@dataclass(frozen=True)
class BlockInfo:
    """One block as the block map shows it. rows: sequences of this cache that hold it; filled: positions."""

    block: int
    refs: int
    rows: tuple[int, ...]
    filled: int


class PagedCache(KVCache):
    """block_size: positions a block. num_blocks: blocks of its own pool (default: enough for the capacity).

    pool: a BlockStore to share with others instead. Raises ConfigError for one of another model's shape.
    """

    kind: ClassVar[str] = "paged"
    settings: ClassVar[tuple[str, ...]] = ("block_size", "num_blocks", "pool")

    def __init__(
        self,
        *args: Any,
        block_size: int = 16,
        num_blocks: int | None = None,
        pool: BlockStore | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._shares = pool is not None
        if pool is None:
            enough = self.batch_size * -(-self._limit // max(1, block_size))
            blocks = enough if num_blocks is None else num_blocks
            pool = BlockStore(self.config, blocks, block_size, self.device, self.dtype)
        pool.ensure_fits(self.config, self.device, self.dtype)
        self.store = pool
        self._adopt_rows([[] for _ in range(self.batch_size)])

    def _adopt_rows(self, rows: list[list[int]]) -> None:
        """Make these the tables, and have them freed when nobody knows this cache any more."""
        self.rows = rows
        self._room = 0  # positions that every row can take without a new or a copied block
        self._begun = False
        self._pads = [0] * len(rows) if self.padding is None else self.padding.tolist()
        self._padding = torch.tensor(self._pads, device=self.device)
        self._finalizer = weakref.finalize(self, _free_all, self.store.pool, rows)
        self._upload()

    # What it answers

    @property
    def traffic(self) -> CacheTraffic:
        """Positions are found through the block table."""
        return CacheTraffic(block_size=self.store.pool.block_size)

    @property
    def nbytes(self) -> int:
        """Bytes of its pool and tables; of a shared pool, the blocks that it holds."""
        held = len({block for row in self.rows for block in row}) * self.store.block_bytes
        return (held if self._shares else self.store.nbytes) + self._tables.nbytes

    @property
    def capacity(self) -> int:
        """Positions a sequence may reach, if the pool has blocks for them."""
        return self._limit

    @property
    def wasted(self) -> int:
        """Positions that are allocated and not filled, over all sequences."""
        held = sum(len(row) for row in self.rows) * self.store.pool.block_size
        return held - sum(map(self._real, range(self.batch_size)))

    def block_map(self) -> list[BlockInfo]:
        """Every block of the pool: how many hold it, which of these sequences, and how full it is."""
        pool = self.store.pool
        rows: dict[int, list[int]] = {}
        filled: dict[int, int] = {}
        for row, table in enumerate(self.rows):
            for place, block in enumerate(table):
                rows.setdefault(block, []).append(row)
                here = min(pool.block_size, self._real(row) - place * pool.block_size)
                filled[block] = max(filled.get(block, 0), here)
        return [
            BlockInfo(block, pool.refs(block), tuple(rows.get(block, ())), filled.get(block, 0))
            for block in range(pool.num_blocks)
        ]

    def _real(self, row: int, length: int | None = None) -> int:
        """Positions of a row without its padding."""
        return max(0, (self._length if length is None else length) - self._pads[row])

    # A step

    def begin(self, n: int) -> Tensor:
        """As in the contract. Raises CacheFull when the pool has no block left, with nothing changed."""
        if self._begun:
            self.trim()  # blocks of a step that did not come to its end
        positions = super().begin(n)
        if n > self._room:
            self._make_room(n)
        self._begun = True
        self._lens = (self._length + n - self._padding).clamp_min(0).int()
        self._longest = max(1, self._length + n - min(self._pads))
        self._slots: Tensor | None = None
        return positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One token a sequence goes through the decode kernel, a first prompt through plain attention."""
        if self._new == 1 and self._length > 0:
            return self._attend_one(layer, q, k, v)
        kernels.write_blocks(self.store.layers[layer], k, v, self._places())
        if self._length == 0:
            return super().attend(layer, q, k, v)
        keys, values = kernels.gather_blocks(self.store.layers[layer], self._tables, self._longest)
        self._show(layer, q, keys, self._chunk_mask())
        return kernels.attention(q, keys, values, mask=self._chunk_mask())

    @property
    def packed(self) -> bool:
        """One sequence without padding."""
        single = self.batch_size == 1 and self.padding is None
        return single and self.store.memory is not None and self.observer is None

    def native_step(self) -> tuple[native.KVMemory, native.NewTokens] | None:
        """As in the contract: one new token of each sequence, or several of a single one."""
        memory, tables = self.store.memory, self._tables
        if memory is None or self.observer is not None:
            return None
        if self._new == 1:
            return memory, native.NewTokens(self._lens, self._longest, tables)
        if not self.packed:
            return None
        lengths = torch.arange(self._length + 1, self._longest + 1, dtype=torch.int32)
        return memory, native.NewTokens(lengths, self._longest, tables, sequences=torch.zeros_like(lengths))

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A first prompt attends to itself; its keys and values are in the blocks already."""
        return k, v

    def commit(self) -> None:
        """Count the step."""
        super().commit()
        self._room -= self._new
        self._begun = False

    def _attend_one(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pool = self.store.layers[layer]
        if self.observer is None:
            return self.store.step(layer, q, k, v, self._tables, self._lens, self._longest)
        kernels.write_blocks(pool, k, v, self._places())
        seen = torch.arange(self._longest, device=self.device) < self._lens[:, None]
        keys, _ = kernels.gather_blocks(pool, self._tables, self._longest)
        self._show(layer, q, keys, (seen | (self._lens == 0)[:, None])[:, None, None])
        return kernels.paged_attention(q, pool, self._tables, self._lens, longest=self._longest)

    def _show(self, layer: int, q: Tensor, keys: Tensor, mask: Tensor) -> None:
        if self.observer is not None:
            stands = torch.arange(keys.shape[2], device=self.device) + self._pads[0]
            self.observer(layer, lambda: reference.attention_weights(q, keys, mask), stands)

    def _places(self) -> Tensor:
        """(B, n) int64: where in the pool each new position goes, -1 for padding. Computed once a step."""
        if self._slots is None:
            size = self.store.pool.block_size
            real = (
                torch.arange(self._length, self._length + self._new, device=self.device)
                - self._padding[:, None]
            )
            at = real.clamp_min(0)
            blocks = self._tables.long().gather(1, at // size)
            self._slots = torch.where(real < 0, -1, blocks * size + at % size)
        return self._slots

    def _chunk_mask(self) -> Tensor:
        """(B, 1, n, T) for a chunk behind a history; a row's keys begin with its first real position."""
        real = (
            torch.arange(self._length, self._length + self._new, device=self.device) - self._padding[:, None]
        )
        keys = torch.arange(self._longest, device=self.device)
        return (keys <= real.clamp_min(0)[:, :, None])[
            :, None
        ]  # padding sees one, so that its softmax is defined

    # Blocks

    def _make_room(self, n: int) -> None:
        """Blocks for n more positions of every row, all or none; shared ones to be written are copied."""
        pool = self.store.pool
        ends = [self._real(row, self._length + n) for row in range(self.batch_size)]
        missing = [pool.blocks_for(end) - len(table) for end, table in zip(ends, self.rows, strict=True)]
        torn = self._shared_and_written(ends)
        fresh = pool.allocate(sum(missing) + len(torn))
        for row, count in enumerate(missing):
            self.rows[row] += [fresh.pop(0) for _ in range(count)]
        if torn:
            self._split(torn, fresh)
        size = pool.block_size
        self._room = min(
            len(table) * size + pad - self._length for table, pad in zip(self.rows, self._pads, strict=True)
        )
        self._upload()

    def _shared_and_written(self, ends: list[int]) -> list[tuple[int, int]]:
        """(row, place in its table) of blocks that hold something, will be written, and are held by others
        too.

        Of sequences that hold a block together, the last one left holds it alone and need not copy.
        """
        pool, found = self.store.pool, []
        left: dict[int, int] = {}
        for row, table in enumerate(self.rows):
            place, offset = divmod(self._real(row), pool.block_size)
            if offset and ends[row] > self._real(row):
                block = table[place]
                left.setdefault(block, pool.refs(block))
                if left[block] > 1:
                    left[block] -= 1
                    found.append((row, place))
        return found

    def _split(self, torn: list[tuple[int, int]], fresh: list[int]) -> None:
        """Copy on write."""
        old = [self.rows[row][place] for row, place in torn]
        self.store.copy(list(zip(old, fresh, strict=True)))
        for (row, place), block in zip(torn, fresh, strict=True):
            self.rows[row][place] = block
        self.store.pool.free(old)

    def trim(self) -> None:
        """Free what lies behind the positions that count."""
        pool = self.store.pool
        for row, table in enumerate(self.rows):
            keep = pool.blocks_for(self._real(row))
            pool.free(table[keep:])
            del table[keep:]
        self._room, self._begun = 0, False

    def _upload(self) -> None:
        """The tables as the kernels read them, (B, longest) int32."""
        width = max(1, *(len(row) for row in self.rows)) if self.rows else 1
        rows = [row + [0] * (width - len(row)) for row in self.rows]
        self._tables = torch.tensor(rows, dtype=torch.int32, device=self.device)

    # Histories

    def truncate(self, n: int) -> None:
        """Forget everything from position n on, and free its blocks."""
        super().truncate(n)
        self.trim()
        self._upload()

    def select(self, rows: Tensor) -> None:
        """Continue with these sequences: only tables are copied, the blocks are shared until written."""
        picked = [list(self.rows[row]) for row in rows.tolist()]
        self.store.pool.share([block for row in picked for block in row])
        self.close()
        self.padding = self.padding[rows] if self.padding is not None else None
        self.batch_size = len(picked)
        self._adopt_rows(picked)

    def fork(self) -> Self:
        """The same content, sharing every block until one of the two writes to it."""
        if self._begun:
            self.trim()
        twin = copy.copy(self)
        twin.observer = None
        twin._shares = self._shares = True  # neither owns the pool alone from now on
        self.store.pool.share([block for row in self.rows for block in row])
        twin._adopt_rows([list(row) for row in self.rows])
        self._room = 0
        return twin

    def close(self) -> None:
        """Free all blocks now rather than when the last reference to this cache is gone."""
        self._finalizer()


def _free_all(pool: BlockPool, rows: list[list[int]]) -> None:
    pool.free([block for row in rows for block in row])
    rows.clear()


def _refuse_too_many(block_bytes: int, num_blocks: int, device: torch.device) -> None:
    free = available_memory(device)
    if block_bytes * num_blocks > free:
        raise OutOfMemory(
            f"A pool of {num_blocks} blocks needs {block_bytes * num_blocks / 1e9:.2f} GB and "
            f"{free / 1e9:.2f} GB{within_budget(device)} are free on {device}; "
            f"ask for at most {free // block_bytes} blocks."
        )
