"""One workload on one fleet, in numbers; and the smallest fleet that keeps a promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.peaks import Machine, as_machine
from labcore.perf.predict import cost_per_million
from labcore.perf.sizes import kv_bytes
from labcore.serving.events import StepEvent
from labcore.serving.metrics import RequestRecord, Slo, Summary, records_from_events, summarize
from labcore.serving.offline import requests_of
from labcore.serving.policies import Policy
from labcore.serving.requests import Request
from labcore.serving.simulated.costs import Numbers, RooflineCost, StepCost, cache_blocks
from labcore.serving.simulated.engine import SimulatedEngine
from labcore.serving.simulated.fleet import Cluster, Fleet, Handover
from labcore.serving.workload import Arrival


@dataclass(frozen=True)
class Settings:
    """Of every engine of a fleet. num_blocks: default as many as fit beside the weights. max_model_len:
    default the model's context. overhead_s: of each step; see `RooflineCost`."""

    policy: str | Policy = "continuous"
    num_blocks: int | None = None
    max_num_seqs: int = 256
    token_budget: int = 512
    chunked: bool = True
    prefix_caching: bool = True
    max_model_len: int | None = None
    overhead_s: float = 0.0
    numbers: Numbers = field(default_factory=Numbers)


@dataclass(frozen=True)
class Simulation:
    """What happened. engines: name ("replica 0", "prefill 0", "decode 0") -> its steps.

    usd_per_million: output tokens, over the whole duration, queue and drain included; None without a price.
    """

    fleet: Fleet
    machine: str
    engines: dict[str, tuple[StepEvent, ...]]
    records: tuple[RequestRecord, ...]
    handovers: tuple[Handover, ...]
    summary: Summary
    usd_per_hour: float | None
    usd_per_million: float | None

    @property
    def events(self) -> list[StepEvent]:
        """The steps of all engines, in order of their ends."""
        return sorted((event for steps in self.engines.values() for event in steps), key=lambda e: e.end_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without records and events."""
        return {
            "fleet": asdict(self.fleet) | {"gpus": self.fleet.gpus},
            "machine": self.machine,
            "steps": {name: len(steps) for name, steps in self.engines.items()},
            "handovers": len(self.handovers),
            "summary": self.summary.to_dict(),
            "usd_per_hour": self.usd_per_hour,
            "usd_per_million": self.usd_per_million,
        }


def simulate(
    config: ModelConfig,
    machine: Machine | GPU,
    workload: Iterable[Arrival | Request],
    *,
    fleet: Fleet | None = None,
    settings: Settings | None = None,
    slo: Slo | None = None,
    cost: StepCost | None = None,
) -> Simulation:
    """Play a workload on a fleet of engines whose steps take what they would cost on this machine.

    cost: seconds of a step (default: `RooflineCost` of model, machine and settings). Requests come at
    arrival_s, seconds from 0. Raises ConfigError, OutOfMemory where the weights do not fit, PromptError and
    CacheFull for a request that no replica could hold.
    """
    fleet, settings = fleet or Fleet(), settings or Settings()
    found, numbers = as_machine(machine), settings.numbers
    requests = [one if isinstance(one, Request) else requests_of([one])[0] for one in workload]
    if not requests:
        raise ConfigError("A workload of no requests takes no time; give at least one.")
    if cost is None:
        shared = fleet.tensor_parallel
        cost = RooflineCost(config, found, numbers, shared, overhead_s=settings.overhead_s)
    blocks = settings.num_blocks or cache_blocks(config, found, numbers, fleet.tensor_parallel)
    prefill, engines = (
        [_engine(config, settings, cost, blocks) for _ in range(size)]
        for size in (fleet.prefill, fleet.replicas)
    )
    cluster = Cluster(
        engines,
        prefill,
        router=fleet.router,
        cache_bytes=lambda tokens: kv_bytes(config, tokens, bits=numbers.stored_bits),
        link=fleet.link,
    )
    cluster.play(requests)
    steps = {f"prefill {index}": tuple(one.events) for index, one in enumerate(prefill)}
    role = "decode" if prefill else "replica"
    steps |= {f"{role} {index}": tuple(one.events) for index, one in enumerate(engines)}
    return _told(fleet, found, steps, requests, cluster.handovers, slo)


def _engine(config: ModelConfig, settings: Settings, cost: StepCost, blocks: int) -> SimulatedEngine:
    return SimulatedEngine(
        cost,
        settings.policy,
        num_blocks=blocks,
        max_model_len=settings.max_model_len or config.max_position_embeddings,
        block_size=settings.numbers.block_size,
        max_num_seqs=settings.max_num_seqs,
        token_budget=settings.token_budget,
        chunked=settings.chunked,
        prefix_caching=settings.prefix_caching,
        vocab_size=config.vocab_size,
        config=config if config.windowed_layers else None,
    )


def _told(
    fleet: Fleet,
    machine: Machine,
    steps: dict[str, tuple[StepEvent, ...]],
    requests: list[Request],
    handovers: list[Handover],
    slo: Slo | None,
) -> Simulation:
    events = sorted((event for each in steps.values() for event in each), key=lambda event: event.end_s)
    due = {request.id: request.arrival_s or 0.0 for request in requests}
    records = records_from_events(events, due)
    summary = summarize(records, slo)
    price = None if machine.usd_per_hour is None else machine.usd_per_hour * fleet.gpus
    return Simulation(
        fleet=fleet,
        machine=machine.name,
        engines=steps,
        records=tuple(records),
        handovers=tuple(handovers),
        summary=summary,
        usd_per_hour=price,
        usd_per_million=None if price is None else cost_per_million(price, summary.output_tokens_per_s),
    )


@dataclass(frozen=True)
class Capacity:
    """The smallest fleet that keeps an SLO. tried: (replicas, attainment) in the order of the search."""

    fleet: Fleet
    simulation: Simulation
    tried: tuple[tuple[int, float], ...]

    @property
    def gpus(self) -> int:
        """Devices needed."""
        return self.fleet.gpus

    @property
    def usd_per_hour(self) -> float | None:
        """Their price; None where the machine has none."""
        return self.simulation.usd_per_hour


def capacity(
    config: ModelConfig,
    machine: Machine | GPU,
    workload: Iterable[Arrival | Request],
    slo: Slo,
    *,
    attainment: float = 0.9,
    most: int = 256,
    fleet: Fleet | None = None,
    settings: Settings | None = None,
    cost: StepCost | None = None,
) -> Capacity:
    """How many replicas until `attainment` of all requests keep the SLO: doubled, then bisected.

    fleet: what one replica is; with prefill replicas, their number stays and that of the others is searched.
    Takes it that more replicas never keep it less often (with prefix caching a router may break that by a
    few requests). Raises ConfigError where `most` replicas, or one a request, do not keep it either.
    """
    base, requests = fleet or Fleet(), list(workload)
    if not 0 < attainment <= 1:
        raise ConfigError(f"An attainment of {attainment:g} is no share; give a number above 0, 1 at most.")
    tried: list[tuple[int, float]] = []

    def run(replicas: int) -> Simulation | None:
        """Its simulation where so many are enough; the others' many events are let go."""
        wanted = replace(base, replicas=replicas)
        found = simulate(config, machine, requests, fleet=wanted, settings=settings, slo=slo, cost=cost)
        tried.append((replicas, found.summary.attainment))
        return found if found.summary.attainment >= attainment else None

    limit, low, high = max(1, min(most, len(requests))), 0, 1
    while (best := run(high)) is None:
        if high >= limit:
            raise ConfigError(_too_few(*tried[-1], attainment))
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        if (found := run(middle)) is None:
            low = middle
        else:
            best, high = found, middle
    return Capacity(best.fleet, best, tuple(tried))


def _too_few(replicas: int, reached: float, wanted: float) -> str:
    return (
        f"{replicas} replicas keep the promise for {reached:.0%} of the requests, not for {wanted:.0%}, and "
        "more are not allowed or would stand idle; promise less, shorten the requests, or take a faster "
        "machine or more devices a replica."
    )
