"""The stall: what those who decode wait while somebody's long prompt is computed, whole or in chunks."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tqdm import tqdm

from labcore.errors import LessonError
from labcore.generation.stopping import Stopping
from labcore.lab.serving_play import PLACES, Watch, last_event
from labcore.lab.sweeps import random_tokens
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.serving import LLMEngine, Request, StepEvent

BEFORE, AFTER = 12, 6  # steps of decode shown on both sides


@dataclass(frozen=True)
class Stall:
    """One way of letting a long prompt join. gaps: (seconds since it joined, seconds of the gap that ended
    then) for tokens of those who were there; before_s: their median gap until then; ttft_s: of the new one.
    chunks: steps that computed its prompt."""

    name: str
    gaps: tuple[tuple[float, float], ...]
    before_s: float
    ttft_s: float
    chunks: int

    @property
    def worst_s(self) -> float:
        """The longest gap that began before the prompt was computed and ended after it joined."""
        return max(gap for at, gap in self.gaps if at > 0 and at - gap < self.ttft_s)


@dataclass(frozen=True)
class ChunkStall:
    """stalls: unchunked first, then by falling budget."""

    prompt: int
    decodes: int
    stalls: tuple[Stall, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A line a way."""
        return [
            {
                "prompt goes": stall.name,
                "steps for it": stall.chunks,
                "gap before (ms)": stall.before_s * 1e3,
                "worst gap (ms)": stall.worst_s * 1e3,
                "worst / before": stall.worst_s / stall.before_s,
                "its first token (ms)": stall.ttft_s * 1e3,
            }
            for stall in self.stalls
        ]

    def finding(self) -> str:
        """The stall whole and in the smallest chunks, and what the new one pays for it."""
        whole, small = self.stalls[0], self.stalls[-1]
        return (
            f"A prompt of {self.prompt:,} tokens joins {self.decodes} who decode, a token each "
            f"{as_time(whole.before_s)}. Whole, it lets them wait {as_time(whole.worst_s)} once, "
            f"{significant(whole.worst_s / whole.before_s)} steps' time; with {small.name} at most "
            f"{as_time(small.worst_s)}. Its own first token comes after {as_time(whole.ttft_s)} and "
            f"{as_time(small.ttft_s)}."
        )


def chunk_stall(
    model: Model,
    budgets: Sequence[int] = (256, 64),
    *,
    prompt: int = 768,
    decodes: int = PLACES,
    repeats: int = 3,
    watch: Watch | None = None,
) -> ChunkStall:
    """Some requests decode, then a long prompt joins: whole, and in chunks under each budget (tokens a step).

    Each way runs `repeats` times; kept is the run with the median of the worst gaps. Raises LessonError for a
    budget that leaves nothing beside the decodes, or a prompt that the model cannot hold.
    """
    if min(budgets) <= decodes or prompt + 1 > model.config.max_position_embeddings:
        raise LessonError(
            f"A prompt of {prompt} tokens beside {decodes} decodes under budgets {list(budgets)} cannot be "
            f"run: budgets must exceed the decodes, and {model.name!r} holds "
            f"{model.config.max_position_embeddings} tokens."
        )
    ways: list[tuple[str, dict[str, Any]]] = [("whole", {"chunked": False, "token_budget": max(budgets)})]
    ways += [
        (f"a budget of {budget}", {"token_budget": budget}) for budget in sorted(set(budgets), reverse=True)
    ]
    stalls = []
    for name, settings in tqdm(ways, desc="long prompt", unit="way", leave=False, ncols=80, file=sys.stdout):
        runs = [_stall(model, name, prompt, decodes, watch or Watch(), settings) for _ in range(repeats + 1)]
        stalls.append(sorted(runs[1:], key=lambda stall: stall.worst_s)[repeats // 2])  # the first warms up
    return ChunkStall(prompt, decodes, tuple(stalls))


def _stall(
    model: Model, name: str, prompt: int, decodes: int, watch: Watch, settings: dict[str, Any]
) -> Stall:
    engine = LLMEngine(model, max_num_seqs=decodes + 1, prefix_caching=False, clock=watch, **settings)
    room = model.config.max_position_embeddings - 8
    for index in range(decodes):
        tokens = tuple(random_tokens(model, 8, seed=index)[0].tolist())
        engine.add(Request(f"user {index}", tokens, stopping=Stopping(room, ignore_eos=True)))
    while sum(event.drawn for event in engine.events) < decodes * BEFORE:
        engine.step()
    long = tuple(random_tokens(model, prompt, seed=decodes)[0].tolist())
    engine.add(Request("long", long, stopping=Stopping(1, ignore_eos=True)))
    joined = watch()
    while not any(id == "long" for id, _ in last_event(engine).finished):
        engine.step()
    done = last_event(engine).end_s
    for _ in range(AFTER):
        engine.step()
    gaps = tuple((at - joined, gap) for at, gap in token_gaps(engine.events))
    before = [gap for at, gap in gaps if at < 0][-decodes * (BEFORE // 2) :]
    chunks = sum(any(row.id == "long" for row in event.rows) for event in engine.events)
    return Stall(name, gaps, statistics.median(before), done - joined, chunks)


def token_gaps(events: Iterable[StepEvent]) -> list[tuple[float, float]]:
    """(when, seconds since the same request's token before) of every token but each first."""
    times: dict[str, list[float]] = {}
    for event in events:
        for row in event.rows:
            if row.drawn:
                times.setdefault(row.id, []).append(event.end_s)
    return sorted((later, later - earlier) for one in times.values() for earlier, later in pairwise(one))
