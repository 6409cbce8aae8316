"""Beam search: keep the `num_beams` likeliest beginnings of an answer instead of one.

Scores are sums of log-probabilities; finished answers are ranked by score / length**length_penalty, as in
Wu et al. 2016 (simplified) and transformers. It ends when enough answers are finished that no running one can
still overtake the worst of them at its present length.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from labcore.cache import CacheChoice, is_endless
from labcore.errors import SamplingError
from labcore.generation.answer import not_finite
from labcore.generation.loop import decode_step, new_cache, prefill
from labcore.generation.output import FinishReason, Output
from labcore.generation.prompts import PromptBatch
from labcore.generation.stopping import Stopping
from labcore.model import Model


@dataclass(frozen=True)
class BeamParams:
    """num_beams: beginnings kept; length_penalty: 0 ranks by total, 1 by mean log-probability.

    Raises SamplingError for a number of beams that cannot be searched.
    """

    num_beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.num_beams, int) or self.num_beams < 1:
            raise SamplingError(f"num_beams is {self.num_beams!r}; it must be a whole number of at least 1.")


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer: its tokens, the sum of their log-probabilities, and why it ended."""

    tokens: list[int]
    score: float
    finish_reason: FinishReason


def beam_search(
    model: Model, prompt: PromptBatch, params: BeamParams, stopping: Stopping, cache: CacheChoice
) -> Output:
    """The best answer to one prompt. Raises SamplingError for more beams than the vocabulary can feed."""
    vocab = model.config.vocab_size
    most = vocab // 2
    if params.num_beams > most:
        raise SamplingError(
            f"num_beams is {params.num_beams}; a vocabulary of {vocab} allows at most {most}."
        )
    return _Search(model, prompt, params, stopping, cache).run()


class _Search:
    """The state of one search. `known`: (beams, t) tokens; `scores`: (beams,) fp32."""

    def __init__(
        self, model: Model, prompt: PromptBatch, params: BeamParams, stopping: Stopping, cache: CacheChoice
    ) -> None:
        self.model, self.prompt = model, prompt
        self.beams, self.penalty = params.num_beams, params.length_penalty
        self.start = prompt.tokens.shape[1]
        self.new_tokens = stopping.room(model, self.start, is_endless(cache))
        self.eos = stopping.eos_of(model)
        self.cache = new_cache(model, cache, prompt, self.start + self.new_tokens - 1)
        self.known = prompt.tokens
        self.scores = torch.zeros(1, device=model.device, dtype=torch.float32)
        self.finished: list[Hypothesis] = []

    def run(self) -> Output:
        """Search to the end and return the best hypothesis as an Output."""
        seconds: list[float] = []
        for index in range(self.new_tokens):
            begun = time.perf_counter()
            logits = (decode_step if index else prefill)(self.model, self.known, self.cache)
            self._extend(logits.log_softmax(-1))
            seconds.append(time.perf_counter() - begun)
            if self._done():
                break
        else:
            self._finish_running()
        best = max(self.finished, key=self._rank)
        return Output(
            prompt_tokens=self.prompt.lists[0],
            tokens=best.tokens,
            text=self._text(best),
            finish_reason=best.finish_reason,
            step_seconds=seconds,
            score=self._rank(best),
        )

    def _extend(self, logprobs: Tensor) -> None:
        """Pick the best continuations of all beams; those that end are set aside.

        Twice as many candidates as beams are looked at, since up to `beams` of them may be an end.
        """
        vocab = logprobs.shape[1]
        totals = (self.scores[:, None] + logprobs).flatten()
        best = totals.topk(min((1 + len(self.eos)) * self.beams, totals.numel()))
        if math.isnan(best.values[0]):  # the largest of all, where there is one
            raise not_finite(self.model, self.known.shape[1] - self.start)
        rows: list[int] = []
        tokens: list[int] = []
        scores: list[float] = []
        for rank, (score, flat) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            row, token = divmod(flat, vocab)
            if token in self.eos:
                if rank < self.beams:
                    self._finish(row, token, score)
            elif len(rows) < self.beams:
                rows.append(row)
                tokens.append(token)
                scores.append(score)
        self._continue(rows, tokens, scores)

    def _continue(self, rows: list[int], tokens: list[int], scores: list[float]) -> None:
        device = self.known.device
        picked = torch.tensor(rows, device=device)
        if rows != list(range(self.known.shape[0])):
            self.cache.select(picked)
        new = torch.tensor(tokens, device=device)[:, None]
        self.known = torch.cat([self.known[picked], new], dim=1)
        self.scores = torch.tensor(scores, device=device, dtype=torch.float32)

    def _finish(self, row: int, token: int, score: float) -> None:
        tokens = [*self.known[row, self.start :].tolist(), token]
        self.finished.append(Hypothesis(tokens, score, "eos"))

    def _finish_running(self) -> None:
        for tokens, score in zip(self.known[:, self.start :].tolist(), self.scores.tolist(), strict=True):
            self.finished.append(Hypothesis(tokens, score, "length"))

    def _done(self) -> bool:
        """Whether no running beam can still beat the worst of the `beams` best finished answers."""
        if len(self.finished) < self.beams:
            return False
        worst = sorted(map(self._rank, self.finished), reverse=True)[self.beams - 1]
        length = self.known.shape[1] - self.start
        return worst >= float(self.scores[0]) / length**self.penalty

    def _text(self, answer: Hypothesis) -> str:
        tokenizer = self.model.tokenizer
        shown = answer.tokens[:-1] if answer.finish_reason == "eos" else answer.tokens
        return tokenizer.continuation(self.prompt.lists[0], shown) if tokenizer else ""

    def _rank(self, answer: Hypothesis) -> float:
        return answer.score / len(answer.tokens) ** self.penalty
