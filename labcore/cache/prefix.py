"""Shared prefixes: sequences that begin with the same tokens read the same blocks (SGLang's RadixAttention).

A PrefixStore outlives its caches. When a generation ends, its full blocks go into the store's tree; when
another begins, it takes from there what its prompt shares with any text before, and computes only the rest.
What other weights computed (another model's, or those from before `quantize`) is forgotten then.
Blocks that no sequence holds stay until the pool needs them: least recently used first.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

import torch
from torch import Tensor

from labcore.cache.base import Weights
from labcore.cache.paged import BlockStore, PagedCache
from labcore.cache.prefix_tree import PrefixTree
from labcore.config import ModelConfig


class PrefixStore:
    """A pool of blocks and the tree of what is in them. Hand it in as `cache`: generate(model, prompt,
    cache=store).

    Raises ConfigError for sizes below 1, OutOfMemory before the pool would not fit.
    """

    endless = False

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.blocks = BlockStore(config, num_blocks, block_size, device, dtype)
        self.tree = PrefixTree(self.blocks.pool)
        self.weights: Hashable = None  # that computed what the tree knows

    def ensure_of(self, weights: Hashable) -> None:
        """Forget what other weights computed: their keys mean nothing to these."""
        if weights != self.weights:
            self.tree.clear()
            self.weights = weights

    def __call__(
        self,
        config: ModelConfig,
        *,
        batch_size: int = 1,
        capacity: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        padding: Tensor | None = None,
    ) -> PrefixCache:
        """A cache for one batch, in this store's blocks."""
        limit = capacity or config.max_position_embeddings
        return PrefixCache(config, batch_size, limit, torch.device(device), dtype, padding, store=self)


class PrefixCache(PagedCache):
    """block_size, num_blocks: of a store of its own; store: a PrefixStore that outlives it."""

    kind: ClassVar[str] = "prefix"
    settings: ClassVar[tuple[str, ...]] = ("block_size", "num_blocks", "store")

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        padding: Tensor | None = None,
        *,
        block_size: int = 16,
        num_blocks: int | None = None,
        store: PrefixStore | None = None,
    ) -> None:
        private = store is None
        if store is None:
            enough = batch_size * -(-capacity // max(1, block_size))
            store = PrefixStore(config, num_blocks or enough, block_size, device, dtype)
        self.prefixes = store
        common: dict[str, Any] = {"padding": padding, "pool": store.blocks}
        super().__init__(config, batch_size, capacity, device, dtype, **common)
        self._shares = not private
        self._weights: Hashable = None

    def adopt(self, tokens: Tensor, weights: Weights | None = None) -> None:
        """Take the blocks of the longest known prefixes, and stand behind them.

        A batch stands at one place, so every row takes what the row with the shortest hit allows. The last
        token of a prompt is always computed: its logits choose the first token of the answer.
        """
        if self._length:
            return
        self._weights = weights() if weights is not None else None
        self.prefixes.ensure_of(self._weights)
        tree, pool = self.prefixes.tree, self.store.pool
        prompts = [row[pad:] for row, pad in zip(tokens.tolist(), self._pads, strict=True)]
        found = [tree.match(prompt[:-1]) for prompt in prompts]
        common = min(pad + len(hit) * pool.block_size for pad, hit in zip(self._pads, found, strict=True))
        self._length = common if any(found) else 0
        for row, hit in enumerate(found):
            keep = pool.blocks_for(self._real(row))
            pool.free(hit[keep:])
            self.rows[row] += hit[:keep]
        tree.stats.queries += len(prompts)
        tree.stats.tokens_asked += sum(map(len, prompts))
        tree.stats.tokens_hit += sum(map(self._real, range(self.batch_size)))
        self._room = 0
        self._upload()

    def release(self, tokens: Tensor) -> None:
        """Leave the full blocks to the store, for whoever begins with the same tokens and weights."""
        if self._begun:
            self.trim()
        wanted = tokens.tolist() if self.prefixes.weights == self._weights else []
        for row, known in enumerate(wanted):
            held = known[self._pads[row] : self._length]
            self.prefixes.tree.insert(held, self.rows[row])
        self.close()
        self._length = 0
        self._adopt_rows([[] for _ in range(self.batch_size)])
