"""The loop that turns a prompt into an answer, and the two kinds of step it is made of.

One rule drives it: the tokens that are *known* (prompt and answer so far) run ahead of those whose keys
and values the cache *holds*, and a step feeds the difference. With a cache that is the whole prompt once
(prefill) and one token ever after (decode); with no cache it is everything, every time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from labcore.cache import CacheChoice, KVCache, create, is_endless
from labcore.errors import NotSupported, PromptError
from labcore.generation.flight import one_ahead
from labcore.generation.prompts import PromptBatch
from labcore.generation.sampling import Sampler, SamplingParams
from labcore.generation.speculation import Drafter, check
from labcore.generation.steps import StepKind, decode_with, ensure_step, room_for
from labcore.generation.stopping import Stopping
from labcore.generation.trace import Recorder, Trace, TraceOptions
from labcore.model import Model


def prefill(model: Model, tokens: Tensor, cache: KVCache) -> Tensor:
    """Process the prompts at once. tokens: (B, p) int64 -> logits of the first new token, (B, vocab) fp32."""
    return _feed(model, tokens, cache)


def decode_step(model: Model, tokens: Tensor, cache: KVCache) -> Tensor:
    """Process what the cache does not hold yet. tokens: (B, t), all known -> logits (B, vocab) fp32.

    With a cache that keeps, t is cache.length + 1 and one position is computed.
    """
    return _feed(model, tokens, cache)


@torch.inference_mode()
def _feed(model: Model, tokens: Tensor, cache: KVCache) -> Tensor:
    unseen = tokens[:, cache.length :]
    if not unseen.shape[1]:
        raise PromptError(
            f"There is nothing to feed: the cache holds {cache.length} positions and {tokens.shape[1]} "
            "tokens are known; append the token that was chosen last before the next step."
        )
    return model.transformer(unseen, cache, logits_to_keep=1)[:, -1].float()


@dataclass(frozen=True)
class BatchStep:
    """One step of a whole batch: each sequence's token, and the seconds until they were known."""

    index: int
    tokens: list[int]
    seconds: float


class Generation:
    """One batch of prompts on its way: iterate for its steps.

    It runs until each sequence has max_new_tokens or is at the end of the model's context; whoever iterates
    may stop before. rooms: how many tokens each sequence may get; new_tokens: the most of them.
    """

    def __init__(
        self,
        model: Model,
        prompts: PromptBatch,
        params: SamplingParams,
        stopping: Stopping,
        cache: CacheChoice,
        trace: TraceOptions | None = None,
        step: StepKind = "eager",
        speculation: Drafter | None = None,
    ) -> None:
        _ensure_step(step, model, trace)
        self.model, self.prompts, self.stopping, self.kind = model, prompts, stopping, step
        length = prompts.tokens.shape[1]
        # Each sequence has its own context: the shorter ones go on where the longest is at its end.
        self.rooms = [stopping.room(model, len(one), is_endless(cache)) for one in prompts.lists]
        self.new_tokens = max(self.rooms)
        # The last token is drawn but never fed, so it needs no room in the cache.
        room = room_for(step, length + self.new_tokens - 1)
        self.cache = new_cache(model, cache, prompts, room)
        self._decode = decode_with(step, model, self.cache, partial(decode_step, model, cache=self.cache))
        self.known = torch.zeros(
            prompts.size, length + self.new_tokens, dtype=torch.int64, device=model.device
        )
        self.known[:, :length] = prompts.tokens
        self.length = length
        self.sampler = Sampler(params, prompts.size)
        self.recorder = Recorder(model, self.cache, trace, prompts.lists[0]) if trace else None
        if speculation is not None:
            ensure_speculation(self)
        self.speculation, self.drafted, self.accepted = speculation, 0, 0

    @property
    def trace(self) -> Trace | None:
        """What was recorded so far, of the first sequence."""
        return self.recorder.trace if self.recorder else None

    def __iter__(self) -> Iterator[BatchStep]:
        self.cache.adopt(self.prompts.tokens, self.model.transformer.weights)
        alone = self.speculation is not None or (self.kind == "graph" and not self.recorder)
        watched = min(1, self.new_tokens) if alone else self.new_tokens
        try:
            for index in range(watched):
                yield self._step(index)
            if self.speculation is not None:
                yield from self._guessed(self.speculation, watched)
                return
            for ahead in one_ahead(self._launch, range(watched, self.new_tokens), self.model.device):
                yield BatchStep(*ahead)
        finally:
            if not sys.is_finalizing():  # tensors made while the interpreter goes would end it by an abort
                self.cache.release(self.known[:, : self.length])

    def _step(self, index: int) -> BatchStep:
        start, held = time.perf_counter(), self.cache.length
        known = self.known[:, : self.length]
        logits = self._logits(index, known)
        chosen = self._draw(known, logits)
        tokens: list[int] = chosen.tolist()  # waits for the device: the step's time is real
        seconds = time.perf_counter() - start
        if self.recorder:
            self.recorder.record(known, logits, tokens[0], held, seconds)
        return BatchStep(index, tokens, seconds)

    def _guessed(self, drafter: Drafter, index: int) -> Iterator[BatchStep]:
        """Steps that check guesses. What one of them brings comes together: its first token has its time."""
        while index < self.new_tokens:
            start = time.perf_counter()
            known = self.known[0, : self.length].tolist()
            guesses = drafter.guess(known, id(self), self.known.shape[1])[: self.new_tokens - index - 1]
            tokens = self._check(known, guesses)
            seconds = time.perf_counter() - start
            for token in tokens:
                yield BatchStep(index, [token], seconds)
                index, seconds = index + 1, 0.0

    @torch.inference_mode()
    def _check(self, known: list[int], guesses: list[int]) -> list[int]:
        """The tokens of one step, one more than were guessed right. The cache forgets the wrong ones."""
        feed = torch.tensor([known[self.cache.length :] + guesses], device=self.model.device)
        logits = self.model.transformer(feed, self.cache, logits_to_keep=len(guesses) + 1)[0].float()
        new = self.length - self.prompts.tokens.shape[1]
        points = [row.of(new, len(guesses) + 1) for row in self.sampler.points]
        tokens = check(guesses, logits, self.sampler.params, points[0] if points else None, lambda: known)
        end = self.length + len(tokens)
        self.known[0, self.length : end] = torch.tensor(tokens).clamp_min(0)
        self.length = end
        if self.cache.length >= end:  # kinds that keep nothing have nothing to take back
            self.cache.truncate(end - 1)
        self.drafted, self.accepted = self.drafted + len(guesses), self.accepted + len(tokens) - 1
        return tokens

    def _launch(self, index: int) -> Tensor:
        """The tokens (B,) of a step that nobody looks into, on the device."""
        known = self.known[:, : self.length]
        return self._draw(known, self._logits(index, known))

    def _logits(self, index: int, known: Tensor) -> Tensor:
        return self._decode(known) if index else prefill(self.model, known, self.cache)

    def _draw(self, known: Tensor, logits: Tensor) -> Tensor:
        chosen = self.sampler(logits, self._history(known))
        self.known[:, self.length] = chosen.clamp_min(0)  # NO_TOKEN has no embedding
        self.length += 1
        return chosen

    def _history(self, known: Tensor) -> Tensor | None:
        """Tokens for the repetition penalty, padding marked -1; None when nobody asks."""
        if self.sampler.params.repetition_penalty == 1.0:
            return None
        slots = torch.arange(known.shape[1], device=known.device)
        return known.masked_fill(slots < self.prompts.padding.to(known.device)[:, None], -1)


def ensure_speculation(run: Generation) -> None:
    """Raises NotSupported where guesses cannot be checked: several sequences, a trace, a compiled step, or a
    cache that cannot take them back."""
    why = {
        "answers one prompt at a time; labcore.serving.LLMEngine guesses for many": run.prompts.size > 1,
        "has steps of several tokens, which no trace tells; leave out trace": run.recorder is not None,
        "needs step='eager', since its steps differ in length": run.kind != "eager",
        f"must take wrong guesses back, which a {run.cache.kind} cache cannot; leave out cache": (
            not run.cache.rewinds
        ),
    }
    for reason, true in why.items():
        if true:
            raise NotSupported(f"Speculation {reason}.")


def _ensure_step(step: StepKind, model: Model, trace: TraceOptions | None) -> None:
    """Raises ConfigError or DeviceError for an impossible step, NotSupported for attention it cannot show."""
    ensure_step(step, model)
    if step != "eager" and trace is not None and trace.attention:
        raise NotSupported(
            f"A trace of attention needs step='eager': with step={step!r} nobody sees between the operations."
        )


def new_cache(model: Model, kind: CacheChoice, prompts: PromptBatch, capacity: int) -> KVCache:
    """An empty cache for these prompts, on the model's device and in its dtype."""
    return create(
        kind,
        model.config,
        batch_size=prompts.size,
        capacity=capacity,
        device=model.device,
        dtype=model.dtype,
        padding=prompts.padding,
    )
