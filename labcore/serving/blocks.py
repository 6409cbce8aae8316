"""Blocks for sequences: taken, given back, found again by their prefix, or set aside in host memory.

It stands between the scheduler, which counts, and the pool of `labcore.cache`, which holds. Without a store
of tensors (a simulation) the same counting goes on over nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.cache.block_pool import BlockPool
from labcore.cache.paged import BlockStore
from labcore.cache.prefix_tree import PrefixTree
from labcore.serving.sequence import Sequence


class BlockManager:
    """The blocks of all sequences of one engine. prefix_caching: finished prompts stay findable."""

    def __init__(
        self, pool: BlockPool, store: BlockStore | None = None, *, prefix_caching: bool = True
    ) -> None:
        self.pool, self.store = pool, store
        self.tree = PrefixTree(pool) if prefix_caching else None

    @property
    def free(self) -> int:
        """Blocks that could be had: free ones, and those that only the tree holds."""
        return self.pool.num_free + self.pool.num_idle

    @property
    def in_use(self) -> int:
        """Blocks that sequences hold."""
        return self.pool.num_blocks - self.free

    def missing(self, sequence: Sequence, positions: int) -> int:
        """Blocks that a sequence lacks to hold so many positions."""
        return max(0, self.pool.blocks_for(positions) - len(sequence.blocks))

    def can_take(self, sequence: Sequence, positions: int) -> bool:
        """Whether the pool has them."""
        missing = self.missing(sequence, positions)
        return missing <= self.pool.num_free or missing <= self.free

    def take(self, sequence: Sequence, positions: int) -> None:
        """Make room for so many positions. Raises CacheFull, with nothing taken."""
        if missing := self.missing(sequence, positions):
            sequence.blocks += self.pool.allocate(missing)

    def give_back(self, sequence: Sequence) -> None:
        """Let go of everything; full blocks stay findable as long as nobody needs their room."""
        if self.tree is not None and not sequence.lingers:
            self.tree.insert(sequence.tokens[: sequence.computed], sequence.blocks)
        self.pool.free(sequence.blocks)
        sequence.blocks.clear()
        sequence.computed = 0

    def remember(self, sequence: Sequence) -> None:
        """Make the computed full blocks findable. Where another computed the same before, its blocks take the
        place of this one's own: who holds a block of the tree holds all before it, so that a block that only
        the tree holds has only such behind it and can be had."""
        if self.tree is None or sequence.lingers:
            return
        known = sequence.tokens[: sequence.computed]
        self.tree.insert(known, sequence.blocks)
        shared = self.tree.match(known)
        own, sequence.blocks[: len(shared)] = sequence.blocks[: len(shared)], shared
        self.pool.free(own)

    def adopt(self, sequence: Sequence) -> int:
        """Begin behind the longest known prefix; returns its tokens. The last known token is always computed:
        its logits choose the next one."""
        if self.tree is None:
            return 0
        found = self.tree.match(sequence.tokens[:-1])
        sequence.blocks = found
        sequence.computed = len(found) * self.pool.block_size
        return sequence.computed

    def count(self, sequence: Sequence) -> None:
        """Count what was asked of the tree and what it had: when a sequence first joins, however often it was
        tried. What a preempted one finds later is its own and no prefix that requests share."""
        if self.tree is not None:
            self.tree.stats.queries += 1
            self.tree.stats.tokens_asked += len(sequence.tokens)
            self.tree.stats.tokens_hit += sequence.computed

    def trim(self, sequence: Sequence) -> None:
        """Free blocks behind what is computed, such as those of rejected guesses."""
        keep = self.pool.blocks_for(sequence.computed)
        self.pool.free(sequence.blocks[keep:])
        del sequence.blocks[keep:]

    # Set aside in host memory

    def set_aside(self, sequence: Sequence) -> None:
        """Copy a sequence's blocks to the host and free them."""
        assert self.store is not None
        held = torch.tensor(sequence.blocks, device=self.store.device)
        copies = [layer.index_select(2, held).to("cpu", copy=True) for layer in self.store.layers]
        sequence.swapped = (copies, sequence.computed)
        self.pool.free(sequence.blocks)
        sequence.blocks.clear()
        sequence.computed = 0

    def fetch(self, sequence: Sequence) -> None:
        """Copy them back into free blocks. Raises CacheFull, with nothing taken."""
        assert self.store is not None
        copies: list[Tensor]
        copies, computed = sequence.swapped
        blocks = self.pool.allocate(copies[0].shape[2])
        at = torch.tensor(blocks, device=self.store.device)
        for layer, copied in zip(self.store.layers, copies, strict=True):
            layer.index_copy_(2, at, copied.to(layer.device))
        sequence.blocks, sequence.computed, sequence.swapped = blocks, computed, None

    def check(self, sequences: list[Sequence]) -> None:
        """Raise AssertionError where counts disagree: every block is held by sequences and tree, or free."""
        self.pool.check()
        holds = [0] * self.pool.num_blocks
        for sequence in sequences:
            for block in sequence.blocks:
                holds[block] += 1
        if self.tree is not None:
            for node in self.tree.nodes():
                holds[node.block] += 1
        for block, count in enumerate(holds):
            assert self.pool.refs(block) == count, (
                f"block {block}: {self.pool.refs(block)} holds, {count} holders"
            )
