"""Random histories of sequences over block pool and prefix tree, every rule checked after each step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from labcore.cache.block_pool import BlockPool
from labcore.cache.prefix_tree import PrefixTree
from labcore.errors import CacheFull, ConfigError

SIZE, BLOCKS = 3, 9


class Histories(RuleBasedStateMachine):
    """Sequences as a paged cache keeps them: tokens, and the blocks that hold them.

    `written` is what really lies in each block; a sequence that reads its blocks must read its own tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, SIZE)
        self.tree = PrefixTree(self.pool)
        self.written: dict[int, list[int]] = {}
        self.sequences: list[tuple[list[int], list[int]]] = []

    def _pick(self, data: Any) -> tuple[list[int], list[int]]:
        return data.draw(st.sampled_from(self.sequences))

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=10))
    def begin(self, tokens: list[int]) -> None:
        """A new prompt takes what is known of it, then appends the rest."""
        blocks = self.tree.match(tokens[:-1])
        hit = tokens[: len(blocks) * SIZE]
        assert [token for block in blocks for token in self.written[block]] == hit, "a wrong token was served"
        sequence = (list(hit), blocks)
        self.sequences.append(sequence)
        self._append(sequence, tokens[len(hit) :])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def append(self, data: Any, tokens: list[int]) -> None:
        self._append(self._pick(data), tokens)

    def _append(self, sequence: tuple[list[int], list[int]], tokens: list[int]) -> None:
        known, blocks = sequence
        torn = bool(len(known) % SIZE) and self.pool.refs(blocks[-1]) > 1
        need = self.pool.blocks_for(len(known) + len(tokens)) - len(blocks) + torn
        before = self.pool.num_free + sum(self.pool.refs(node.block) == 1 for node in self.tree.nodes())
        try:
            fresh = self.pool.allocate(need)
        except CacheFull:
            assert need > self.pool.num_free
            assert need > before - sum(1 for _ in self.tree.nodes()) or not before
            return  # as it was
        if torn:
            copy = fresh.pop(0)
            self.written[copy] = list(self.written[blocks[-1]])
            self.pool.free([blocks[-1]])
            blocks[-1] = copy
        blocks += fresh
        for token in tokens:
            block = blocks[len(known) // SIZE]
            assert self.pool.refs(block) == 1, "a shared block is written"
            self.written[block] = [*self.written.get(block, [])[: len(known) % SIZE], token]
            known.append(token)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data: Any) -> None:
        known, blocks = self._pick(data)
        self.pool.share(blocks)
        self.sequences.append((list(known), list(blocks)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data: Any, share: float) -> None:
        known, blocks = self._pick(data)
        keep = int(len(known) * share)
        del known[keep:]
        self.pool.free(blocks[self.pool.blocks_for(keep) :])
        del blocks[self.pool.blocks_for(keep) :]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), remember=st.booleans())
    def finish(self, data: Any, remember: bool) -> None:
        sequence = self._pick(data)
        if remember:
            self.tree.insert(*sequence)
        self.pool.free(sequence[1])
        self.sequences = [other for other in self.sequences if other is not sequence]

    @rule(n=st.integers(0, 4))
    def evict(self, n: int) -> None:
        free = self.pool.num_free
        evicted = self.tree.evict(n)
        assert self.pool.num_free == free + evicted

    @invariant()
    def nothing_leaks(self) -> None:
        self.pool.check()
        held = [node.block for node in self.tree.nodes()]
        held += [block for _, blocks in self.sequences for block in blocks]
        for block in range(BLOCKS):
            assert self.pool.refs(block) == held.count(block)

    @invariant()
    def everyone_reads_their_own_tokens(self) -> None:
        for known, blocks in self.sequences:
            assert [token for block in blocks for token in self.written[block]][: len(known)] == known
        for node in self.tree.nodes():
            assert tuple(self.written[node.block][:SIZE]) == node.tokens


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
test_random_histories = Histories.TestCase


@pytest.mark.parametrize("sizes", [(0, 16), (4, 0), (4, -1), (2.5, 16)])
def test_sizes_that_mean_nothing(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="needs a whole number of at least 1"):
        BlockPool(*sizes)


def test_a_full_pool_says_so_and_takes_nothing() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(3)
    sentence = r"has 1 of 4 blocks free and 2 more are needed .* at least 5 blocks large"
    with pytest.raises(CacheFull, match=sentence):
        pool.allocate(2)
    assert pool.num_free == 1


def test_a_block_is_not_freed_twice() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool.share([block])
    pool.free([block, block])
    with pytest.raises(ValueError, match="held 0 times and would be freed once more"):
        pool.free([block])
    with pytest.raises(ValueError, match="is free; only a block that is held can be shared"):
        pool.share([block])
    pool.check()


def test_the_least_recently_used_leaf_goes_first() -> None:
    pool = BlockPool(6, 2)
    tree = PrefixTree(pool)
    for tokens in ([1, 1, 2, 2], [1, 1, 3, 3]):
        shared = tree.match(tokens)
        own = pool.allocate(2 - len(shared))
        tree.insert(tokens, [*shared, *own])
        pool.free([*shared, *own])
    assert len(tree) == 3
    pool.free(tree.match([1, 1, 2, 2]))  # used just now
    assert tree.evict(1) == 1
    assert [node.tokens for node in tree.nodes()] == [(1, 1), (2, 2)]
    held = tree.match([1, 1, 2, 2])
    assert tree.evict(5) == 0, "what a sequence holds stays"
    pool.free(held)
    assert tree.evict(5) == 2
    assert tree.stats.evicted_blocks == 3
    assert pool.num_free == 6


def test_a_known_prefix_keeps_its_own_block() -> None:
    pool = BlockPool(4, 2)
    tree = PrefixTree(pool)
    first, second = pool.allocate(1), pool.allocate(1)
    assert tree.insert([5, 6], first) == 1
    assert tree.insert([5, 6], second) == 0
    pool.free([*first, *second])
    assert (pool.num_free, tree.match([5, 6, 7])) == (3, first)
    tree.clear()
    pool.free(first)
    assert pool.num_free == 4
