"""Speculative decoding on the real engine: tokens a step, steps saved, seconds, and the same answers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labcore.generation.speculation import Drafter
from labcore.generation.stopping import Stopping
from labcore.lab.serving_play import Watch, play
from labcore.lab.serving_runs import PolicyRun
from labcore.lab.sweeps import random_tokens
from labcore.lab.units import significant
from labcore.model import Model
from labcore.quality.feeding import encode
from labcore.quality.heldout import stories
from labcore.serving import DraftModel, PromptLookup, Request, StepEvent

NONE = "no guesses"


def expected_tokens(accepted: float, guesses: int) -> float:
    """Tokens a step of speculation gives in the mean: (1 - a^(k+1)) / (1 - a), where each of k guesses is
    accepted with probability a if those before it were (Leviathan et al. 2023)."""
    return float(sum(accepted**k for k in range(guesses + 1)))


@dataclass(frozen=True)
class Guessed:
    """One way of guessing, with at most `guesses` tokens a step."""

    name: str
    guesses: int
    run: PolicyRun

    @property
    def checks(self) -> list[tuple[int, int]]:
        """(guesses, accepted) of every step of a request that had guesses."""
        return [
            (row.new - 1, row.drawn - 1)
            for event in self.run.events
            for row in event.rows
            if row.kind == "decode" and row.new > 1
        ]

    @property
    def accepted(self) -> float:
        """Of the guesses that were looked at, the share that was right: those behind a wrong one are not."""
        right = sum(accepted for _, accepted in self.checks)
        looked_at = sum(accepted + (accepted < guessed) for guessed, accepted in self.checks)
        return right / looked_at if looked_at else 0.0

    @property
    def tokens_per_check(self) -> float:
        """Tokens that a step with guesses gave, in the mean."""
        return 1 + sum(accepted for _, accepted in self.checks) / len(self.checks) if self.checks else 1.0

    def step_cost(self, reference: PolicyRun) -> float:
        """How many times as long as a step without guesses one with guesses takes; medians."""
        plain = [event.seconds for event in reference.events if _decodes(event)]
        guessed = [
            event.seconds for event in self.run.events if _decodes(event) and event.tokens > len(event.rows)
        ]
        return statistics.median(guessed) / statistics.median(plain) if guessed and plain else 1.0

    def row(self, reference: PolicyRun) -> dict[str, Any]:
        """Beside the run without guesses."""
        tokens, seconds = self.run.summary.output_tokens, self.run.summary.duration_s
        return {
            "guesses by": self.name,
            "tokens": tokens,
            "steps": len(self.run.events),
            "guesses accepted (%)": 100 * self.accepted if self.checks else None,
            "tokens a step with guesses": self.tokens_per_check if self.checks else None,
            "by the formula": expected_tokens(self.accepted, self.guesses) if self.checks else None,
            "such a step (× one without)": self.step_cost(reference) if self.checks else None,
            "took (s)": seconds,
            "times as fast": reference.summary.duration_s / seconds,
            "same tokens": self.run.answers == reference.answers,
        }


@dataclass(frozen=True)
class SpeculationGain:
    """The same requests, one after another, without guesses and with."""

    plain: PolicyRun
    ways: tuple[Guessed, ...]

    @property
    def same(self) -> bool:
        """Whether no answer changed."""
        return all(way.run.answers == self.plain.answers for way in self.ways)

    def rows(self) -> list[dict[str, Any]]:
        """A line a way."""
        return [Guessed(NONE, 0, self.plain).row(self.plain)] + [way.row(self.plain) for way in self.ways]

    def finding(self) -> str:
        """Steps and seconds of each way against none."""
        told = []
        for way in self.ways:
            steps = len(self.plain.events) / len(way.run.events)
            faster = self.plain.summary.duration_s / way.run.summary.duration_s
            told.append(
                f"{way.name}: {100 * way.accepted:.0f} % of the guesses right, "
                f"{significant(steps)}× fewer steps, each {significant(way.step_cost(self.plain))}× as long "
                f"where it guesses: {significant(faster)}× as fast"
            )
        same = "No token changed." if self.same else "Answers changed: that is a bug."
        return f"{len(self.plain.events)} steps without guesses. {'; '.join(told)}. {same}"


def speculation_gain(
    model: Model,
    draft: Model | None = None,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    output: int = 96,
    guesses: int = 4,
    watch: Watch | None = None,
) -> SpeculationGain:
    """Greedy answers without guesses, with prompt look-up, and with a draft model where there is one.

    One request at a time: that is where decode waits for weights. prompts: token ids (default: the beginnings
    of four stories). guesses: tokens guessed at most each time. Raises ConfigError for a draft with another
    vocabulary.
    """
    asked = [
        Request(f"r{index}", tuple(prompt), stopping=Stopping(output, ignore_eos=True))
        for index, prompt in enumerate(prompts or _beginnings(model))
    ]
    drafters: dict[str, Drafter] = {"prompt look-up": PromptLookup(guesses)}
    if draft is not None:
        drafters[f"draft model {draft.name}"] = DraftModel(draft, model, guesses)
    _run(model, asked[:1], NONE, None, watch)  # warms up
    plain = _run(model, asked, NONE, None, watch)
    ways = [Guessed(name, guesses, _run(model, asked, name, one, watch)) for name, one in drafters.items()]
    return SpeculationGain(plain, tuple(ways))


def _beginnings(model: Model, count: int = 4, tokens: int = 48) -> list[list[int]]:
    if model.tokenizer is None:
        return [random_tokens(model, tokens // 2, seed=seed)[0].tolist() for seed in range(count)]
    return [encode(model, story)[:tokens] for story in stories(count)]


def _decodes(event: StepEvent) -> bool:
    return all(row.kind == "decode" for row in event.rows)


def _run(
    model: Model, requests: Sequence[Request], name: str, drafter: Drafter | None, watch: Watch | None
) -> PolicyRun:
    events, answers = play(model, requests, "one-by-one", places=1, watch=watch, speculation=drafter)
    return PolicyRun(name, 1, tuple(requests), events, answers)
