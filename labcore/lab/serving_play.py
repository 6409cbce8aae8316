"""A fresh engine plays a list of requests in real time, on a clock that starts at 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from labcore.model import Model
from labcore.serving import LLMEngine, Request, RequestOutput, StepEvent, replay
from labcore.serving.policies import Policy

PLACES = 8  # requests at once


class Watch:
    """A clock in seconds that starts at 0, and what waits on it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Now is 0."""
        self._zero = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._zero

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


def play(
    model: Model,
    requests: Sequence[Request],
    policy: str | Policy,
    *,
    places: int = PLACES,
    watch: Watch | None = None,
    on_step: Callable[[list[RequestOutput]], None] = lambda _: None,
    **engine: Any,
) -> tuple[tuple[StepEvent, ...], dict[str, tuple[int, ...]]]:
    """A fresh engine plays these requests: (events, tokens by id). engine: further settings of LLMEngine."""
    watch = watch or Watch()
    settings = {"prefix_caching": False, **engine}
    made = LLMEngine(model, policy, max_num_seqs=places, clock=watch, **settings)
    watch.restart()
    found = replay(made, requests, sleep=watch.sleep, on_step=on_step)
    return tuple(made.events), {id: tuple(one.tokens) for id, one in found.items()}


def last_event(engine: LLMEngine) -> StepEvent:
    """The newest step of an engine that has made one."""
    event = engine.last_event
    assert event is not None
    return event
