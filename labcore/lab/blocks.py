"""A day in the life of a block pool: real caches on one store, the pool's state kept after each event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from labcore.cache import KVCache, PrefixStore
from labcore.cache.prefix import PrefixCache
from labcore.errors import CacheFull
from labcore.lab.sweeps import random_tokens
from labcore.model import Model

BLOCKS, BLOCK_SIZE = 16, 4


@dataclass(frozen=True)
class BlockState:
    """One block: which users hold it, whether the tree does, how many hold it in all, positions filled."""

    block: int
    users: tuple[str, ...]
    in_tree: bool
    refs: int
    filled: int


@dataclass(frozen=True)
class Moment:
    """The pool after one event."""

    title: str
    blocks: tuple[BlockState, ...]
    lengths: dict[str, int]
    hit_tokens: int
    asked_tokens: int
    evicted: int

    @property
    def used(self) -> int:
        """Blocks that someone holds."""
        return sum(block.refs > 0 for block in self.blocks)

    @property
    def wasted(self) -> int:
        """Positions allocated to users and not filled."""
        return sum(BLOCK_SIZE - block.filled for block in self.blocks if block.users)

    def rows(self) -> list[dict[str, Any]]:
        """Who holds what; in the end what nobody holds."""
        nobody = {
            name: [block.block for block in self.blocks if not block.users and block.in_tree == in_tree]
            for name, in_tree in (("nobody: kept in the tree", True), ("nobody: free", False))
        }
        held = [
            {
                "user": user,
                "tokens": length,
                "blocks": ", ".join(str(block.block) for block in self.blocks if user in block.users) or "–",
            }
            for user, length in self.lengths.items()
        ]
        return held + [
            {"user": name, "blocks": ", ".join(map(str, blocks))} for name, blocks in nobody.items() if blocks
        ]

    def finding(self) -> str:
        """The state in numbers."""
        shared = sum(len(block.users) > 1 for block in self.blocks)
        return (
            f"{self.title}: {self.used} of {BLOCKS} blocks are held, {shared} of them by several "
            f"users; {self.wasted} "
            f"allocated positions are empty; {self.hit_tokens} of {self.asked_tokens} prompt "
            "tokens so far came from "
            f"the tree, {self.evicted} blocks were evicted."
        )


class PoolDay:
    """Users of one PrefixStore, each a cache that the model fills."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.store = PrefixStore(model.config, BLOCKS, BLOCK_SIZE, model.device, model.dtype)
        self.users: dict[str, PrefixCache] = {}
        self.texts: dict[str, list[int]] = {}
        self.moments: list[Moment] = []
        self.note("An empty pool")

    def begin(self, user: str, tokens: list[int]) -> None:
        """A prompt comes in: what is known of it is shared, the rest computed."""
        cache = self.store(self.model.config, capacity=256, device=self.model.device, dtype=self.model.dtype)
        known = torch.tensor([tokens], device=self.model.device)
        cache.adopt(known)
        hit = cache.length
        self._feed(cache, known[:, hit:])
        self.users[user], self.texts[user] = cache, list(tokens)
        self.note(f"{user} begins with {len(tokens)} tokens, {hit} of them found in the tree")

    def write(self, user: str, tokens: list[int]) -> None:
        """A user's text grows token by token. A full pool is told, and changes nothing."""
        cache = self.users[user]
        for done, token in enumerate(tokens):
            try:
                self._feed(cache, torch.tensor([[token]], device=self.model.device))
            except CacheFull:
                self.note(f"{user} cannot go on after {done} of {len(tokens)} tokens: the pool is full")
                return
            self.texts[user].append(token)
        self.note(f"{user} writes {len(tokens)} tokens")

    def fork(self, user: str, other: str) -> None:
        """A second continuation of the same text."""
        self.users[other] = self.users[user].fork()
        self.texts[other] = list(self.texts[user])
        self.note(f"{other} forks from {user}: no block is copied")

    def finish(self, user: str) -> None:
        """The full blocks stay in the tree, the others are free."""
        cache = self.users.pop(user)
        cache.release(torch.tensor([self.texts.pop(user)]))
        self.note(f"{user} is done: full blocks stay in the tree")

    def note(self, title: str) -> None:
        """Keep the pool's state."""
        tree = {node.block for node in self.store.tree.nodes()}
        filled = dict.fromkeys(tree, BLOCK_SIZE)
        holders: dict[int, list[str]] = {}
        for user, cache in self.users.items():
            for place, block in enumerate(cache.rows[0]):
                holders.setdefault(block, []).append(user)
                filled[block] = max(filled.get(block, 0), min(BLOCK_SIZE, cache.length - place * BLOCK_SIZE))
        pool, stats = self.store.blocks.pool, self.store.tree.stats
        states = [
            BlockState(b, tuple(holders.get(b, ())), b in tree, pool.refs(b), filled.get(b, 0))
            for b in range(BLOCKS)
        ]
        self.moments.append(
            Moment(
                title=title,
                blocks=tuple(states),
                lengths={user: cache.length for user, cache in self.users.items()},
                hit_tokens=stats.tokens_hit,
                asked_tokens=stats.tokens_asked,
                evicted=stats.evicted_blocks,
            )
        )

    @torch.inference_mode()
    def _feed(self, cache: KVCache, tokens: Any) -> None:
        self.model.transformer(tokens, cache, logits_to_keep=1)


def pool_day(model: Model) -> list[Moment]:
    """Two users with one system prompt, a fork, a full pool, and an eviction."""
    text = random_tokens(model, 80)[0].tolist()
    system = text[:8]
    day = PoolDay(model)
    day.begin("Ann", system + text[8:13])
    day.fork("Ann", "Ann's second answer")
    day.write("Ann", text[20:22])
    day.write("Ann's second answer", text[22:24])
    day.finish("Ann")
    day.begin("Ben", system + text[30:35])
    day.write("Ben", text[35:46])
    day.finish("Ann's second answer")
    day.begin("Cleo", text[46:70])
    day.write("Cleo", text[70:80])
    day.write("Ben", text[46:66])
    return day.moments


def block_table_rows(model: Model) -> list[dict[str, Any]]:
    """Every event of the day and the pool's numbers after it."""
    return [
        {
            "event": moment.title,
            "blocks held": moment.used,
            "empty positions": moment.wasted,
            "evicted": moment.evicted,
        }
        for moment in pool_day(model)
    ]
