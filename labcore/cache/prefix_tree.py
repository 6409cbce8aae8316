"""A radix tree over blocks: which token prefixes are in the pool, and in which blocks (Zheng et al. 2024).

Each node is one full block and is reached by that block's tokens themselves, so that a hit can never serve
another text's keys. A tree over single tokens would find longer prefixes, but only whole blocks can be
shared.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from labcore.cache.block_pool import BlockPool


@dataclass
class Node:
    """One block of a prefix. last_use: the tree's clock when it was last matched or inserted."""

    tokens: tuple[int, ...]
    block: int
    parent: Node | None
    last_use: int = 0
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Blocks before this one; -1 at the root."""
        return -1 if self.parent is None else self.parent.depth + 1


@dataclass
class PrefixStats:
    """What was asked and what was found. A hit counts the tokens whose keys need not be computed."""

    queries: int = 0
    tokens_asked: int = 0
    tokens_hit: int = 0
    evicted_blocks: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the tokens asked for that were found."""
        return self.tokens_hit / self.tokens_asked if self.tokens_asked else 0.0


class PrefixTree:
    """Holds every block it knows once; gives back those least recently used when the pool runs out."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool, self.stats = pool, PrefixStats()
        self._root = Node((), -1, None)
        self._clock = 0
        self._oldest: list[tuple[int, int, Node]] = []  # a heap of leaves to forget, by last use
        self._order = count()
        pool.reclaim = self.evict

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes())

    def nodes(self) -> Iterator[Node]:
        """All nodes, each before its children."""
        waiting = list(reversed(self._root.children.values()))
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children.values()))

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Blocks of the longest known prefix, in order, each held once more: the caller frees them."""
        blocks, node = [], self._root
        self._clock += 1
        for part in self._parts(tokens):
            if (child := node.children.get(part)) is None:
                break
            child.last_use = self._clock
            blocks.append(child.block)
            node = child
        self.pool.share(blocks)
        return blocks

    def insert(self, tokens: Sequence[int], blocks: Sequence[int]) -> int:
        """Know these tokens by these blocks, as far as they are full; returns how many blocks are new to it.

        A prefix that is known already keeps its own block, and the caller's copy stays the caller's.
        """
        new, node = 0, self._root
        self._clock += 1
        for part, block in zip(self._parts(tokens), blocks, strict=False):
            child = node.children.get(part)
            if child is None:
                self.pool.share([block])
                self.pool.keep(block, True)
                child = node.children[part] = Node(part, block, node)
                new += 1
            child.last_use = self._clock
            node = child
        return new

    def evict(self, n: int) -> int:
        """Forget least recently used leaves that no sequence holds, to free n blocks; returns how many.

        The tree is searched for leaves only when those found before are used up; what sequences let go of
        meanwhile was used later than they were.
        """
        freed = 0
        while freed < n and (self._oldest or self._search()):
            last_use, _, leaf = heapq.heappop(self._oldest)
            if leaf.last_use == last_use and self._idle(leaf):
                self._forget(leaf)
                freed += 1
        return freed

    def _search(self) -> bool:
        """List the leaves that no sequence holds; whether there are any."""
        self._oldest = [(leaf.last_use, next(self._order), leaf) for leaf in self.nodes() if self._idle(leaf)]
        heapq.heapify(self._oldest)
        return bool(self._oldest)

    def _idle(self, node: Node) -> bool:
        return not node.children and node.parent is not None and self.pool.refs(node.block) == 1

    def clear(self) -> None:
        """Forget everything; blocks that sequences hold stay theirs."""
        blocks = [node.block for node in self.nodes()]
        for block in blocks:
            self.pool.keep(block, False)
        self.pool.free(blocks)
        self._root.children.clear()
        self._oldest.clear()

    def _forget(self, leaf: Node) -> None:
        parent, leaf.parent = leaf.parent, None
        assert parent is not None
        del parent.children[leaf.tokens]
        self.pool.keep(leaf.block, False)
        self.pool.free([leaf.block])
        self.stats.evicted_blocks += 1
        if self._idle(parent):
            heapq.heappush(self._oldest, (parent.last_use, next(self._order), parent))

    def _parts(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The tokens of each full block."""
        size = self.pool.block_size
        for end in range(size, len(tokens) + 1, size):
            yield tuple(tokens[end - size : end])
