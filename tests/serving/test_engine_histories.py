"""Random histories through the real scheduler: arrivals, ends, aborts, tiny pools; every rule each step.

The runner is a shadow: it writes, in the place of keys, what stands there, so that a block that was shared,
trimmed, set aside or given away wrongly is read by somebody who notices.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from labcore.errors import CacheFull
from labcore.serving import Continuous, Dynamic, LLMEngine, OneByOne, Request, Static
from tests.serving.helpers import (
    Clock,
    Heard,
    check,
    empty,
    follow,
    followed,
    request,
    shadowed,
    small_model,
)

MODEL = small_model()
LONGEST, MOST_NEW, ALIVE = 14, 9, 7
STEPS = 1500  # more than any of these histories needs, even one token at a time
POLICIES = [
    Continuous(), OneByOne(), Static(1), Static(3), Static(8), Dynamic(3, 0.5), Dynamic(2, 0.0),
]  # fmt: skip


class Oracle:
    """Guesses right for a while, then wrong, and more than anybody asked for."""

    def __init__(self, right: int, length: int) -> None:
        self.right, self.length = right, length

    def guess(self, known: list[int], key: str, limit: int) -> list[int]:
        tokens = list(known)
        for place in range(self.length):
            true = follow(tokens)
            tokens.append(true if place < self.right else (true + 1) % 15)
        return tokens[len(known) :]


class Histories(RuleBasedStateMachine):
    """One engine with settings of its own, and whoever comes and goes."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        block_size=st.integers(1, 5),
        num_blocks=st.integers(1, 12),
        max_num_seqs=st.integers(1, 5),
        token_budget=st.one_of(st.integers(1, 6), st.integers(7, 40)),
        chunked=st.booleans(),
        prefix_caching=st.booleans(),
        preemption=st.sampled_from(["recompute", "swap", "auto"]),
        guesses=st.none() | st.builds(Oracle, st.integers(0, 3), st.integers(1, 5)),
        tick=st.sampled_from([0.0, 0.25]),
    )
    def begin(self, policy: Any, guesses: Oracle | None, tick: float, **settings: Any) -> None:
        self.clock = Clock(tick)
        self.engine: LLMEngine = shadowed(
            MODEL, policy, speculation=guesses, clock=self.clock, max_model_len=LONGEST + 6, **settings
        )
        self.requests: dict[str, Request] = {}
        self.heard: dict[str, Heard] = {}
        self.aborted: set[str] = set()
        self.aside: dict[str, int] = {}
        self.drawn = self.preemptions = 0
        self.finished: list[str] = []

    @precondition(lambda self: len(self.engine.scheduler.waiting) < ALIVE)
    @rule(
        length=st.integers(1, LONGEST),
        text=st.integers(0, 2),
        new=st.integers(1, MOST_NEW),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        endless=st.booleans(),
    )
    def arrive(self, length: int, text: int, new: int, priority: int, endless: bool) -> None:
        """Prompts of the same text begin alike."""
        tokens = [(3 * place * place + place * text) % 15 for place in range(length)]
        one = request(f"r{len(self.requests)}", tokens, new, priority=priority, ignore_eos=endless)
        before = self.engine.stats
        try:
            self.engine.add(one)
        except CacheFull:
            assert self.engine.stats == before
            return
        self.requests[one.id] = one
        self.heard[one.id] = Heard()

    @precondition(lambda self: len(self.engine.scheduler.waiting) < ALIVE)
    @rule(lengths=st.lists(st.integers(1, LONGEST), min_size=2, max_size=4), text=st.integers(0, 2))
    def crowd(self, lengths: list[int], text: int) -> None:
        """Several at once that begin alike: each may compute for itself what the others compute."""
        for length in lengths:
            self.arrive(length, text, 1 + length % MOST_NEW, 0, True)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        """Somebody goes, wherever it stands."""
        id = data.draw(st.sampled_from(sorted(self.requests)))
        over = self.heard[id].reason is not None
        output = self.engine.abort(id)
        assert (output is None) == over
        if output is not None:
            self.heard[id].hear(output)
            self.aborted.add(id)
        assert self.engine.abort(id) is None

    @rule(more=st.booleans())
    def announce(self, more: bool) -> None:
        self.engine.scheduler.more_to_come = more

    @rule(seconds=st.sampled_from([0.2, 0.6]))
    def wait(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule(times=st.integers(1, 6))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()

    def step(self) -> None:
        engine = self.engine
        before = engine.stats
        was = {one.id for one in engine.scheduler.running}
        outputs = engine.step()
        for output in outputs:
            self.heard[output.id].hear(output)
        check(engine)
        assert len({output.id for output in outputs}) == len(outputs)
        if engine.stats.steps == before.steps:
            assert not outputs
            assert engine.idle_step
            assert not engine.scheduler.running, "somebody runs and nothing is computed"
            return
        event = engine.last_event
        assert event is not None
        self.drawn += event.drawn
        self.preemptions += len(event.preempted)
        self.finished += [id for id, reason in event.finished if reason != "abort"]
        assert event.drawn == sum(len(output.tokens) for output in outputs)
        assert set(event.swapped) <= set(event.preempted) <= was
        assert {row.id for row in event.rows} <= was | {id for id, _ in event.admitted}
        starts = {row.id: row.start for row in event.rows}
        for id, found in event.admitted:  # what was set aside is not what the prefix cache had
            assert found == (0 if id in self.aside else starts[id])
            assert starts[id] == self.aside.pop(id, starts[id]), "what was set aside is lost"
        swapped = [one for one in engine.scheduler.waiting if one.id in event.swapped]
        self.aside |= {one.id: one.swapped[1] for one in swapped}
        self._in_turn()
        if not engine.scheduler.limits.chunked:
            prompts = [row for row in event.rows if row.kind == "prefill"]
            assert event.tokens <= engine.scheduler.limits.token_budget or len(prompts) == len(event.rows)

    def _in_turn(self) -> None:
        """Nobody was admitted before somebody whose turn was earlier."""
        event, waiting = self.engine.last_event, self.engine.scheduler.waiting
        assert [one.turn for one in waiting] == sorted(one.turn for one in waiting)
        assert event is not None
        joined = {id for id, _ in event.admitted}
        if waiting and not event.preempted:
            running = [one for one in self.engine.scheduler.running if one.id in joined]
            assert all(one.turn < waiting[0].turn for one in running)

    @invariant()
    def stats_agree(self) -> None:
        stats = self.engine.stats
        assert stats.output_tokens == self.drawn == sum(len(one.tokens) for one in self.heard.values())
        assert stats.preemptions == self.preemptions

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.scheduler.more_to_come = False
        for _ in range(STEPS):
            if not self.engine.has_work:
                break
            self.step()
        else:
            raise AssertionError(f"no end after {STEPS} steps: {self.engine.stats}")
        limit = self.engine.max_model_len
        for id, one in self.requests.items():
            expected = followed(one, limit)
            tokens = self.heard[id].tokens
            if id in self.aborted:
                assert tokens == expected[: len(tokens)]
                assert self.heard[id].reason == "abort"
            else:
                assert tokens == expected
        assert sorted(self.finished) == sorted(set(self.requests) - self.aborted)
        empty(self.engine)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=400, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
