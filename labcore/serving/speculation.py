"""Guesses for the next tokens, which the model then checks in one step (Leviathan et al. 2023).

Where decode waits for weights, checking four tokens takes hardly longer than computing one. A drafter only
guesses; what is accepted is decided in `drawing.check_guesses`, exactly.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import torch

from labcore.cache import KVCache, create
from labcore.errors import ConfigError
from labcore.model import Model
from labcore.serving.sequence import Sequence

KEPT = 64  # sequences whose draft caches are kept


class Drafter(Protocol):
    """What guesses."""

    def guess(self, sequence: Sequence) -> list[int]:
        """Tokens that may follow the known ones; none where nothing suggests any."""


class PromptLookup:
    """What followed the last time that the newest tokens stood in a row (Saxena 2023, prompt lookup).

    No model: it copies, which answers about a given text do a lot. tokens: guessed at most; longest,
    shortest: how many newest tokens are looked for. Raises ConfigError for sizes below 1.
    """

    def __init__(self, tokens: int = 4, longest: int = 3, shortest: int = 1) -> None:
        if min(tokens, shortest) < 1 or longest < shortest:
            raise ConfigError(
                f"Prompt lookup with tokens={tokens}, longest={longest}, shortest={shortest} cannot guess; "
                "take at least 1 token, and longest >= shortest >= 1."
            )
        self.tokens, self.longest, self.shortest = tokens, longest, shortest

    def guess(self, sequence: Sequence) -> list[int]:
        """What followed the latest earlier place with the same ending, the longest ending first."""
        known = sequence.tokens
        for size in range(min(self.longest, len(known) - 1), self.shortest - 1, -1):
            ending = known[-size:]
            for end in range(len(known) - 1, size - 1, -1):
                if known[end - size : end] == ending:
                    return known[end : end + self.tokens]
        return []


class DraftModel:
    """A smaller model of the same vocabulary guesses greedily, with a cache of its own for each sequence.

    tokens: guessed each time. Raises ConfigError for another vocabulary or fewer than one token.
    """

    def __init__(self, draft: Model, target: Model, tokens: int = 4) -> None:
        if draft.config.vocab_size != target.config.vocab_size:
            raise ConfigError(
                f"{draft.name!r} knows {draft.config.vocab_size} tokens and {target.name!r} "
                f"{target.config.vocab_size}; a draft needs the same vocabulary."
            )
        if tokens < 1:
            raise ConfigError(f"tokens is {tokens}; a draft guesses at least 1.")
        self.draft, self.tokens = draft, tokens
        self._caches: OrderedDict[str, tuple[KVCache, list[int]]] = OrderedDict()

    @torch.inference_mode()
    def guess(self, sequence: Sequence) -> list[int]:
        """The draft's own greedy continuation."""
        room = self.draft.config.max_position_embeddings - len(sequence.tokens)
        if room <= self.tokens:
            return []
        cache, held = self._cache_of(sequence)
        known = list(sequence.tokens)
        common = _common(held, known[:-1])
        cache.truncate(common)
        guesses: list[int] = []
        for _ in range(self.tokens):
            feed = torch.tensor([known[cache.length :]], device=self.draft.device)
            token = int(self.draft.transformer(feed, cache, logits_to_keep=1)[0, -1].argmax())
            guesses.append(token)
            known.append(token)
        self._caches[sequence.id] = (cache, known[: cache.length])
        return guesses

    def _cache_of(self, sequence: Sequence) -> tuple[KVCache, list[int]]:
        """This sequence's, or a fresh one; the least recently used are dropped. An id that was used before
        may have a cache that is too small for who has it now."""
        model = self.draft
        room = min(sequence.limit + self.tokens, model.config.max_position_embeddings)
        if sequence.id in self._caches and (self._caches[sequence.id][0].capacity or 0) >= room:
            self._caches.move_to_end(sequence.id)
            return self._caches[sequence.id]
        while len(self._caches) >= KEPT:
            self._caches.popitem(last=False)
        cache = create("contiguous", model.config, capacity=room, device=model.device, dtype=model.dtype)
        return cache, []


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
