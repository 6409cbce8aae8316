"""The engine without a server: answer a list of prompts, or play a trace of arrivals in real time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from labcore.errors import ConfigError
from labcore.generation.prompts import encode_batch
from labcore.generation.sampling import SamplingParams
from labcore.generation.stopping import Stopping
from labcore.serving.core import EngineCore
from labcore.serving.requests import Request, RequestOutput
from labcore.serving.workload import Arrival

Prompts = Sequence[str] | Sequence[Sequence[int]]


class Answered:
    """One finished request: its text, its tokens, and why it ended."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.text, self.tokens, self.finish_reason = "", [], ""  # type: tuple[str, list[int], str]
        self.num_cached_tokens = 0

    def add(self, output: RequestOutput) -> None:
        """What one step gave it. Raises the error of a request that could not go on."""
        if output.error is not None:
            raise output.error
        self.text += output.text
        self.tokens += output.tokens
        self.num_cached_tokens = output.num_cached_tokens
        self.finish_reason = output.finish_reason or self.finish_reason


def requests_of(workload: Iterable[Arrival]) -> tuple[Request, ...]:
    """A workload as an engine takes it; every answer has exactly the length that was drawn, greedily."""
    return tuple(
        Request(one.id, one.prompt, stopping=Stopping(one.output_tokens, ignore_eos=True), arrival_s=one.at_s)
        for one in workload
    )


def answer(
    engine: EngineCore,
    prompts: Prompts,
    *,
    max_new_tokens: int = 64,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    **sampling: Any,
) -> list[Answered]:
    """All prompts at once, in their order. Arguments as in `labcore.generate`; prompt i has seed + i.

    Raises as `LLMEngine.add`, with none of them left in the engine; ConfigError where it serves others.
    """
    _ensure_idle(engine)
    params = SamplingParams(**sampling)
    stopping = Stopping(max_new_tokens, stop, ignore_eos)
    found: dict[str, Answered] = {}
    with _none_left(engine, found):
        for index, tokens in enumerate(encode_batch(engine.model, prompts).lists):
            seeded = SamplingParams(**{**sampling, "seed": params.seed + index})
            request = Request(f"answer-{index}", tuple(tokens), seeded, stopping)
            engine.add(request)
            found[request.id] = Answered(request.id)
        while engine.has_work:
            for output in engine.step():
                found[output.id].add(output)
    return list(found.values())


def replay(
    engine: EngineCore,
    requests: Iterable[Request],
    *,
    sleep: Callable[[float], None] = time.sleep,
    on_step: Callable[[list[RequestOutput]], None] = lambda _: None,
) -> dict[str, Answered]:
    """Play requests at their `arrival_s`, seconds from now, and run the engine until all are over.

    Latencies count from the planned arrival, however busy the engine was. Returns the answers by id; the
    engine's events hold the times, on its clock. Raises as `LLMEngine.add`, with none of them left in the
    engine; ConfigError where it serves others.
    """
    _ensure_idle(engine)
    start = engine.clock()
    # From the end; those that arrive together stay in their order.
    waiting = sorted(requests, key=lambda request: request.arrival_s or 0.0)[::-1]
    found = {request.id: Answered(request.id) for request in waiting[::-1]}
    with _none_left(engine, found):
        while waiting or engine.has_work:
            now = engine.clock() - start
            while waiting and (waiting[-1].arrival_s or 0.0) <= now:
                engine.add(_at(waiting.pop(), start))
            engine.scheduler.more_to_come = bool(waiting)
            outputs = engine.step()
            for output in outputs:
                found[output.id].add(output)
            on_step(outputs)
            if engine.idle_step:
                _wait(engine, waiting, start, sleep)
    return found


def _ensure_idle(engine: EngineCore) -> None:
    """Raises ConfigError where somebody else's requests would be answered to nobody."""
    if engine.has_work:
        stats = engine.stats
        raise ConfigError(
            f"The engine has {stats.waiting + stats.running} requests already; step until it has none, or "
            "take another engine."
        )


@contextmanager
def _none_left(engine: EngineCore, found: Iterable[str]) -> Iterator[None]:
    """Whatever happens, leave the engine as it was: no request of these, nobody announced."""
    try:
        yield
    finally:
        for id in found:
            engine.abort(id)
        engine.scheduler.more_to_come = False


def _at(request: Request, start: float) -> Request:
    return replace(request, arrival_s=start + (request.arrival_s or 0.0))


def _wait(engine: EngineCore, waiting: list[Request], start: float, sleep: Callable[[float], None]) -> None:
    """Until the next arrival, or a little where only a policy waits."""
    if not waiting:
        sleep(0.001)
        return
    until = start + (waiting[-1].arrival_s or 0.0) - engine.clock()
    if until > 0:
        sleep(min(until, 0.002) if engine.has_work else until)
