"""Guesses for the next tokens, which the model then checks in one step (Leviathan et al. 2023).

Where decode waits for weights, checking four tokens takes hardly longer than computing one. A drafter only
guesses; what is accepted is decided in `check`, exactly.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from labcore.cache import KVCache, create
from labcore.errors import ConfigError
from labcore.generation.sampling import SamplingParams, best, draw, process_logits
from labcore.model import Model, load

KEPT = 64  # sequences whose draft caches are kept


class Drafter(Protocol):
    """What guesses."""

    def guess(self, known: Sequence[int], key: Hashable, limit: int) -> list[int]:
        """Tokens that may follow the known ones; none where nothing suggests any.

        key: the same for the same sequence, for what is kept of it. limit: tokens that it may have in all.
        """


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

    def guess(self, known: Sequence[int], key: Hashable, limit: int) -> list[int]:
        """What followed the latest earlier place with the same ending, the longest ending first."""
        before = array("i", known[:-1]).tobytes()  # searching bytes is a hundred times searching a list
        for size in range(min(self.longest, len(known) - 1), self.shortest - 1, -1):
            if end := _latest_end(before, array("i", known[-size:]).tobytes()):
                return list(known[end : end + self.tokens])
        return []


def _latest_end(text: bytes, part: bytes) -> int:
    """Tokens up to the end of the latest place of these tokens; 0 for none."""
    size, end = array("i").itemsize, len(text)
    while (at := text.rfind(part, 0, end)) >= 0:
        if at % size == 0:
            return (at + len(part)) // size
        end = at + len(part) - 1  # across the bytes of two tokens: no such place
    return 0


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
        self._caches: OrderedDict[Hashable, tuple[KVCache, list[int]]] = OrderedDict()

    def guess(self, known: Sequence[int], key: Hashable, limit: int) -> list[int]:
        """The draft's own greedy continuation."""
        if self.draft.config.max_position_embeddings - len(known) <= self.tokens:
            return []
        cache, held = self._cache_of(key, limit)
        cache.truncate(_common(held, known[:-1]))
        guesses = self.draft.transformer.greedy(list(known[cache.length :]), self.tokens, cache)
        self._caches[key] = (cache, [*known, *guesses[:-1]])
        return guesses

    def _cache_of(self, key: Hashable, limit: int) -> tuple[KVCache, list[int]]:
        """This sequence's, or a fresh one; the least recently used are dropped. A key that was used before
        may have a cache that is too small for who has it now."""
        model = self.draft
        room = min(limit + self.tokens, model.config.max_position_embeddings)
        if key in self._caches and (self._caches[key][0].capacity or 0) >= room:
            self._caches.move_to_end(key)
            return self._caches[key]
        while len(self._caches) >= KEPT:
            self._caches.popitem(last=False)
        cache = create("contiguous", model.config, capacity=room, device=model.device, dtype=model.dtype)
        return cache, []


LOOKUP = "lookup"


def drafter(name: str | None, model: Model, tokens: int = 4) -> Drafter | None:
    """As commands name it: "lookup" or a smaller model's name; None for None. Raises what load does."""
    if name is None or name == LOOKUP:
        return None if name is None else PromptLookup(tokens)
    return DraftModel(load(name, device=model.device, dtype=model.dtype), model, tokens)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(at for at in range(shorter) if one[at] != other[at])


# What is right


def check(
    guesses: Sequence[int],
    logits: Tensor,
    params: SamplingParams,
    stream: torch.Generator | None,
    known: Callable[[], Sequence[int]],
) -> list[int]:
    """Accept guesses one after another and draw one token more; exact (Leviathan et al. 2023).

    logits: (guesses + 1, vocab) fp32, behind the newest known token and behind each guess. A guess x is taken
    with probability p(x); else the token is drawn from p without x. So every token has the distribution that
    it would have had alone, and greedy ones are the same tokens. stream: where draws come from. known: the
    tokens before, for the repetition penalty.
    """
    if params.greedy and params.repetition_penalty == 1.0:
        return _right(guesses, best(logits).tolist())
    tokens: list[int] = []
    for place, guess in enumerate([*guesses, None]):
        history = None
        if params.repetition_penalty != 1.0:
            history = torch.tensor([[*known(), *tokens]], device=logits.device)
        processed = process_logits(logits[place : place + 1], params, history)[0]
        tokens.append(_take_or_draw(processed, guess, params, stream))
        if tokens[-1] != guess:
            break
    return tokens


def _right(guesses: Sequence[int], greedy: list[int]) -> list[int]:
    """The model's own tokens up to the first that was not guessed."""
    wrong = next((at for at, guess in enumerate(guesses) if guess != greedy[at]), len(guesses))
    return greedy[: wrong + 1]


def _take_or_draw(
    logits: Tensor, guess: int | None, params: SamplingParams, stream: torch.Generator | None
) -> int:
    if params.greedy:
        return int(best(logits[None]))
    if guess is not None:
        accepted = torch.rand(1, generator=stream).item() < logits.softmax(-1)[guess].item()
        if accepted:
            return guess
        logits = logits.index_fill(0, torch.tensor(guess, device=logits.device), -torch.inf)
    point = torch.rand(1, generator=stream)
    return int(draw(logits[None], point.to(logits.device)))
