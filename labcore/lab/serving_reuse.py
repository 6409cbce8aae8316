"""What need not be computed again, and what must: prefixes that requests share, and preempted requests."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labcore.generation.stopping import Stopping
from labcore.lab.serving_play import Watch, last_event, play
from labcore.lab.serving_runs import PolicyRun
from labcore.lab.sweeps import random_tokens
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.serving import LLMEngine, Request
from labcore.serving.swapping import Preemption

# Prefixes


@dataclass(frozen=True)
class PrefixRun:
    """Requests with one beginning, with or without a prefix cache. ttft_s: of each; hits: tokens found."""

    caching: bool
    asked: int
    computed: int
    hits: int
    ttft_s: tuple[float, ...]
    answers: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class PrefixGain:
    """The same requests without and with."""

    shared: int
    without: PrefixRun
    cached: PrefixRun

    def rows(self) -> list[dict[str, Any]]:
        """A line each."""
        return [
            {
                "prefix cache": run.caching,
                "prompt tokens": run.asked,
                "computed": run.computed,
                "found": run.hits,
                "first TTFT (ms)": run.ttft_s[0] * 1e3,
                "later TTFT, median (ms)": statistics.median(run.ttft_s[1:]) * 1e3,
            }
            for run in (self.without, self.cached)
        ]

    def finding(self) -> str:
        """Tokens saved, and what that did to the first token."""
        slow, fast = (statistics.median(run.ttft_s[1:]) for run in (self.without, self.cached))
        same = "the same tokens" if self.without.answers == self.cached.answers else "OTHER tokens: a bug"
        return (
            f"{len(self.cached.ttft_s)} prompts that begin with the same {self.shared} tokens: "
            f"{self.cached.hits:,} of {self.cached.asked:,} prompt tokens were found, "
            f"{self.cached.computed:,} computed. From the second request on the first token came after "
            f"{as_time(fast)} instead of {as_time(slow)} ({significant(slow / fast)}×), with {same}."
        )


def prefix_gain(
    model: Model,
    *,
    shared: int = 512,
    own: int = 16,
    output: int = 8,
    n: int = 8,
    seed: int = 0,
    watch: Watch | None = None,
) -> PrefixGain:
    """n requests, each behind the one before, whose prompts begin with the same `shared` tokens."""
    system = tuple(random_tokens(model, shared, seed=seed)[0].tolist())
    prompts = [
        system + tuple(random_tokens(model, own, seed=seed + index + 1)[0].tolist()) for index in range(n)
    ]
    clock = watch or Watch()
    _prefix_run(model, prompts[:1], False, output, clock)  # warms up
    without, cached = (_prefix_run(model, prompts, caching, output, clock) for caching in (False, True))
    return PrefixGain(shared, without, cached)


def _prefix_run(
    model: Model, prompts: Sequence[tuple[int, ...]], caching: bool, output: int, watch: Watch
) -> PrefixRun:
    engine = LLMEngine(model, prefix_caching=caching, clock=watch)
    ttft, answers = [], {}  # type: tuple[list[float], dict[str, tuple[int, ...]]]
    for index, prompt in enumerate(prompts):
        id, came, first = f"r{index}", watch(), None
        answers[id] = ()
        engine.add(Request(id, prompt, stopping=Stopping(output, ignore_eos=True)))
        while engine.has_work:
            for given in engine.step():
                answers[id] += given.tokens
                first = last_event(engine).end_s if first is None else first
        assert first is not None
        ttft.append(first - came)
    computed = sum(row.new for event in engine.events for row in event.rows if row.kind == "prefill")
    stats = engine.stats
    return PrefixRun(caching, sum(map(len, prompts)), computed, stats.prefix_hits, tuple(ttft), answers)


# Preemption


@dataclass(frozen=True)
class PreemptionStory:
    """The same requests on a pool that cannot hold them all; way of preempting -> its run.

    alone: what each answered with the engine to itself.
    """

    num_blocks: int
    needed: int
    runs: dict[str, PolicyRun]
    alone: dict[str, tuple[int, ...]]

    def again(self, way: str, id: str) -> int:
        """Tokens that were computed more than once for a request."""
        run = self.runs[way]
        once = len(self.alone[id]) - 1 + len(next(one.prompt for one in run.requests if one.id == id))
        return sum(row.new for event in run.events for row in event.rows if row.id == id) - once

    def times(self, way: str, id: str) -> int:
        """How often a request was preempted."""
        return sum(event.preempted.count(id) for event in self.runs[way].events)

    @property
    def same(self) -> bool:
        """Whether every request got the tokens that it gets alone, in every run."""
        return all(run.answers == self.alone for run in self.runs.values())

    def rows(self) -> list[dict[str, Any]]:
        """A line for each way and request."""
        return [
            {
                "preempted by": way,
                "request": request.id,
                "times": self.times(way, request.id),
                "in steps": ", ".join(str(e.index) for e in run.events if request.id in e.preempted) or "–",
                "computed again (tokens)": self.again(way, request.id),
                "same tokens as alone": run.answers[request.id] == self.alone[request.id],
            }
            for way, run in self.runs.items()
            for request in run.requests
        ]

    def finding(self) -> str:
        """Who was preempted, what it cost, and that nobody's answer changed."""
        told = []
        for way, run in self.runs.items():
            ids = [request.id for request in run.requests]
            total, again = (sum(count(way, id) for id in ids) for count in (self.times, self.again))
            told.append(
                f"by {way} {total} preemptions, {again} tokens computed again, {len(run.events)} steps in "
                f"{as_time(run.summary.duration_s)}"
            )
        same = "Every request got the tokens that it gets alone." if self.same else "Answers changed: a bug."
        return f"{self.num_blocks} blocks for requests that grow to {self.needed}: {'; '.join(told)}. {same}"


def preemption_story(
    model: Model,
    ways: Sequence[Preemption] = ("recompute", "swap"),
    *,
    n: int = 4,
    prompt: int = 24,
    output: int = 40,
    num_blocks: int | None = None,
    block_size: int = 8,
    seed: int = 0,
    watch: Watch | None = None,
) -> PreemptionStory:
    """n requests, all there at the start, on num_blocks blocks (default: 5/8 of what they grow to need)."""
    requests = [
        Request(
            f"r{index}",
            tuple(random_tokens(model, prompt, seed=seed + index)[0].tolist()),
            stopping=Stopping(output, ignore_eos=True),
            arrival_s=index * 1e-6,  # whose turn is last is told by the arrival
        )
        for index in range(n)
    ]
    alone = {one.id: play(model, [one], "one-by-one", watch=watch)[1][one.id] for one in requests}
    needed = n * -(-(prompt + output) // block_size)
    blocks = num_blocks or needed * 5 // 8
    settings: dict[str, Any] = {"num_blocks": blocks, "block_size": block_size, "places": n, "watch": watch}
    runs: dict[str, PolicyRun] = {}
    for way in ways:
        events, answers = play(model, requests, "continuous", preemption=way, **settings)
        runs[way] = PolicyRun(way, n, tuple(requests), events, answers)
    return PreemptionStory(blocks, needed, runs, alone)
