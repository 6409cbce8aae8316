"""Who holds which block of a paged cache: reference counts and a free list, no tensors (Kwon et al. 2023).

A block is held by every sequence whose table names it, and by the prefix tree. It is free when nobody holds
it, and it may be written only by who holds it alone: everyone else copies it first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from labcore.errors import CacheFull, ConfigError


class BlockPool:
    """`num_blocks` blocks of `block_size` positions. Every call happens whole or not at all.

    reclaim: asked for so many blocks when too few are free, before anyone is refused; returns how many it
    freed. Raises ConfigError for sizes below 1.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; a paged cache needs a whole number of at least 1.")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.reclaim: Callable[[int], int] | None = None
        self._refs = [0] * num_blocks
        self._kept, self._idle = bytearray(num_blocks), 0
        self._free = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that someone holds."""
        return self.num_blocks - len(self._free)

    @property
    def num_idle(self) -> int:
        """Blocks that nobody holds but who keeps them findable. A count, so that asking costs no walk."""
        return self._idle

    def keep(self, block: int, kept: bool) -> None:
        """Say that one hold on this block keeps it findable (or does so no longer) and needs it for nothing
        else."""
        if kept != self._kept[block] and self._refs[block] == 1:
            self._idle += 1 if kept else -1
        self._kept[block] = kept

    def refs(self, block: int) -> int:
        """How many hold this block."""
        return self._refs[block]

    def blocks_for(self, positions: int) -> int:
        """Blocks that so many positions fill, the last one perhaps in part."""
        return -(-positions // self.block_size)

    def allocate(self, n: int) -> list[int]:
        """n free blocks, each held once. Raises CacheFull, with nothing taken, when fewer are left."""
        if n > len(self._free) and self.reclaim is not None:
            self.reclaim(n - len(self._free))
        if n > len(self._free):
            raise CacheFull(
                f"The pool has {self.num_free} of {self.num_blocks} blocks free and {n} more are needed "
                f"({self.block_size} positions each); free a sequence, or make the pool at least "
                f"{self.num_used + n} blocks large."
            )
        blocks = [self._free.popleft() for _ in range(n)]
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Hold these once more. Raises ValueError for a block that nobody holds."""
        blocks = list(blocks)
        if free := [block for block in blocks if not self._refs[block]]:
            raise ValueError(f"Block {free[0]} is free; only a block that is held can be shared.")
        for block in blocks:
            self._idle -= self._kept[block] and self._refs[block] == 1
            self._refs[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Let go of these, one hold for each time they are named. Raises ValueError for one hold too many."""
        blocks = list(blocks)
        if over := [block for block in set(blocks) if blocks.count(block) > self._refs[block]]:
            raise ValueError(
                f"Block {over[0]} is held {self._refs[over[0]]} times and would be freed once more."
            )
        for block in blocks:
            self._refs[block] -= 1
            self._idle += self._kept[block] and self._refs[block] == 1
            if not self._refs[block]:
                self._free.append(block)

    def check(self) -> None:
        """Raise AssertionError when the free list and the counts disagree."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        idle = sum(kept and refs == 1 for kept, refs in zip(self._kept, self._refs, strict=True))
        assert idle == self._idle, f"{idle} blocks are only kept findable and {self._idle} are counted"
        for block, refs in enumerate(self._refs):
            assert refs >= 0, f"block {block} is held {refs} times"
            assert (refs == 0) == (block in free), (
                f"block {block} has {refs} holders and free={block in free}"
            )
