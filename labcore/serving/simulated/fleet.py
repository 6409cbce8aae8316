"""Several engines on one clock: replicas behind a router, or replicas that only prefill beside those that
only decode (Zhong et al. 2024, DistServe)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle
from typing import Literal

from labcore.errors import ConfigError
from labcore.serving.requests import Request
from labcore.serving.simulated.engine import SimulatedEngine

Router = Literal["least-loaded", "round-robin"]
NETWORK = 50e9  # bytes/s: one network port of 400 Gbit/s a replica


@dataclass(frozen=True)
class Fleet:
    """Replicas of one model, each on tensor_parallel devices.

    replicas: that do everything; with prefill > 0 they only decode, and so many others only compute prompts
    and first tokens. router: to the replica with the fewest requests, or to each in turn. link: bytes/s at
    which a prefill replica sends caches, one after another. Raises ConfigError for sizes below 1.
    """

    replicas: int = 1
    prefill: int = 0
    tensor_parallel: int = 1
    router: Router = "least-loaded"
    link: float = NETWORK

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.tensor_parallel < 1 or self.prefill < 0 or self.link <= 0:
            raise ConfigError(
                f"A fleet of {self.replicas} replicas on {self.tensor_parallel} devices each, {self.prefill} "
                f"more for prefill, links of {self.link:g} bytes/s: give at least one replica, one device "
                "and a link, and no negative number."
            )
        if self.router not in ("least-loaded", "round-robin"):
            raise ConfigError(f"There is no router {self.router!r}; choose least-loaded or round-robin.")

    @property
    def gpus(self) -> int:
        """Devices in all."""
        return (self.replicas + self.prefill) * self.tensor_parallel


@dataclass(frozen=True, order=True)
class _Coming:
    """Somebody who will be at a replica's door. handed: with the cache of the prompt."""

    at_s: float
    order: int
    request: Request
    handed: bool = False


@dataclass(frozen=True)
class Handover:
    """A cache on its way: from a prefill replica when the prompt was done, to a decode replica."""

    id: str
    nbytes: int
    ready_s: float
    sent_s: float
    arrived_s: float


class Cluster:
    """Plays requests on engines, each of which has its own clock; always the one that is behind goes on.

    engines: that do everything, or decode what prefill engines hand over. cache_bytes: of a prompt of so many
    tokens. A step's results count from its end; a router asked during it sees what will be then. A prefill
    replica's blocks are free once its prompt is computed, while what it holds is still on the link.
    """

    def __init__(
        self,
        engines: Sequence[SimulatedEngine],
        prefill: Sequence[SimulatedEngine] = (),
        *,
        router: Router = "least-loaded",
        cache_bytes: Callable[[int], int] = lambda tokens: 0,
        link: float = NETWORK,
    ) -> None:
        self.engines, self.prefill = list(engines), list(prefill)
        self.cache_bytes, self.link = cache_bytes, link
        self.handovers: list[Handover] = []
        self._doors = {False: _chooser(self.prefill or self.engines, router), True: _chooser(engines, router)}
        self._coming: list[_Coming] = []
        self._order = count()
        self._requests: dict[str, Request] = {}
        self._link_free = [0.0] * len(self.prefill)
        self._arrivals = 0

    def play(self, requests: Iterable[Request]) -> None:
        """Until all are over; their arrival_s are seconds from 0 on. Raises as `LLMEngine.add`."""
        for request in requests:
            self._requests[request.id] = request
            self._arrivals += 1
            self._comes(request.arrival_s or 0.0, request, handed=False)
        while True:
            working = [engine for engine in (*self.prefill, *self.engines) if engine.has_work]
            behind = min(working, key=lambda engine: engine.time.now, default=None)
            if self._coming and (behind is None or self._coming[0].at_s <= behind.time.now):
                self._let_in(heapq.heappop(self._coming))
            elif behind is not None:
                self._step(behind, working)
            else:
                return

    def _comes(self, at_s: float, request: Request, handed: bool) -> None:
        heapq.heappush(self._coming, _Coming(at_s, next(self._order), request, handed))

    def _let_in(self, who: _Coming) -> None:
        engine = self._doors[who.handed]()
        if not engine.has_work:
            engine.time.now = max(engine.time.now, who.at_s)
        if who.handed:
            engine.receive(who.request)
            return
        self._arrivals -= 1
        request = replace(who.request, arrival_s=who.at_s)
        if self.prefill:
            only_first = replace(request.stopping, max_new_tokens=1)
            request = replace(request, stopping=only_first)
        engine.add(request)

    def _step(self, engine: SimulatedEngine, working: Sequence[SimulatedEngine]) -> None:
        """One step of one engine, or its waiting until something happens."""
        later = self._arrivals > 0
        if self.prefill and engine in self.engines:
            later = later or bool(self._coming) or any(one.has_work for one in self.prefill)
        engine.scheduler.more_to_come = later
        outputs = engine.step()
        if engine.idle_step:
            engine.time.now = self._next_event(engine, working)
        elif engine in self.prefill:
            for output in outputs:
                if output.finished:
                    self._hand_over(engine, output.id)

    def _next_event(self, engine: SimulatedEngine, working: Sequence[SimulatedEngine]) -> float:
        """When something happens that may end a policy's waiting."""
        times = [one.time.now for one in working if one is not engine and one.time.now > engine.time.now]
        if self._coming:
            times.append(self._coming[0].at_s)
        if (wake := engine.wake_s()) is not None:
            times.append(wake)
        if not times and len(working) > 1:
            return engine.time.now  # others are as far as this one and go first
        return min(times)

    def _hand_over(self, engine: SimulatedEngine, id: str) -> None:
        """Send its cache to a decode replica, unless the first token was all that it may have."""
        request, index = self._requests[id], self.prefill.index(engine)
        length = len(request.prompt)
        if min(length + request.stopping.max_new_tokens, engine.max_model_len) <= length + 1:
            return
        nbytes = self.cache_bytes(length)
        sent = max(engine.time.now, self._link_free[index])
        self._link_free[index] = arrived = sent + nbytes / self.link
        self.handovers.append(Handover(id, nbytes, engine.time.now, sent, arrived))
        self._comes(arrived, request, handed=True)


def _chooser(engines: Sequence[SimulatedEngine], router: Router) -> Callable[[], SimulatedEngine]:
    if router == "round-robin":
        turns = cycle(engines)
        return lambda: next(turns)
    return lambda: min(engines, key=lambda engine: engine.load)
