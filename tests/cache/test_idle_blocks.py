"""Blocks that only the prefix tree holds are counted as they come and go, and forgotten oldest first."""

from __future__ import annotations

import random

import pytest

from labcore.cache.block_pool import BlockPool
from labcore.cache.prefix_tree import PrefixTree
from labcore.errors import CacheFull


def walked(tree: PrefixTree) -> int:
    return sum(tree.pool.refs(node.block) == 1 for node in tree.nodes())


@pytest.mark.parametrize("seed", range(8))
def test_the_count_is_what_a_walk_finds(seed: int) -> None:
    source = random.Random(seed)
    pool = BlockPool(24, 2)
    tree = PrefixTree(pool)
    held: list[list[int]] = []
    for _ in range(400):
        act = source.random()
        if held and act < 0.45:
            pool.free(held.pop(source.randrange(len(held))))
        elif act < 0.98:
            tokens = [source.randrange(2) for _ in range(source.randrange(2, 16))]
            found = tree.match(tokens)
            try:
                found += pool.allocate(pool.blocks_for(len(tokens)) - len(found))
            except CacheFull:
                assert pool.num_free + walked(tree) < pool.blocks_for(len(tokens))
            else:
                tree.insert(tokens, found)
            held.append(found)
        else:
            tree.clear()
        assert pool.num_idle == walked(tree)
        pool.check()
    assert tree.stats.evicted_blocks > 20
    for blocks in held:
        pool.free(blocks)
    assert pool.num_free + pool.num_idle == pool.num_blocks


def test_what_was_used_again_since_the_search_stays() -> None:
    pool = BlockPool(6, 1)
    tree = PrefixTree(pool)
    for tokens in ([1, 2], [3], [4], [5]):
        blocks = pool.allocate(len(tokens))
        tree.insert(tokens, blocks)
        pool.free(blocks)
    assert tree.evict(1) == 1  # the leaf 2; its parent 1 is as old
    pool.free(tree.match([1]))
    pool.free(tree.match([4]))
    assert tree.evict(2) == 2
    assert sorted(node.tokens for node in tree.nodes()) == [(1,), (4,)]
    kept = tree.match([1])
    assert tree.evict(5) == 1
    assert [node.tokens for node in tree.nodes()] == [(1,)]
    pool.free(kept)
    assert tree.evict(5) == 1
    assert len(tree) == 0
