"""A load on a real server over HTTP, watched while it runs: this lesson's, or any that speaks OpenAI's API.

Requests come at random at a given rate and do not wait for each other. What happens inside of the server is
read from its GET /metrics, as a monitoring system would (vLLM and others use the same names); what users feel
is timed by the client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from labcore.lab.serving_runs import as_ms
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.serving.load.client import LOOPBACK, Client
from labcore.serving.load.runner import TICK_S, finish, open_loop, opened
from labcore.serving.metrics import RequestRecord, Slo, Summary, summarize
from labcore.serving.workload import LengthSpec, Workload, make_workload

FEWEST = 8  # requests of a run
LONGEST = 5  # means: longer draws are cut
_NAMES = {
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "kv_cache_usage_perc": "blocks",
    "generation_tokens_total": "tokens",
}


@dataclass(frozen=True)
class Sample:
    """One look. at_s: since the load began. sent, ended: requests so far, as the client counts them.

    The others as the server says (None where it does not): requests that run and wait, share of blocks in use
    (0..1), tokens generated since it started.
    """

    at_s: float
    sent: int
    ended: int
    running: float | None = None
    waiting: float | None = None
    blocks: float | None = None
    tokens: float | None = None


@dataclass(frozen=True)
class LiveRun:
    """One load. rate: requests/s offered; seconds: for how long; samples, records: times since it began."""

    url: str
    rate: float
    seconds: float
    samples: tuple[Sample, ...]
    records: tuple[RequestRecord, ...]
    slo: Slo = field(default_factory=Slo)

    @cached_property
    def summary(self) -> Summary:
        """Throughput, percentiles, goodput."""
        return summarize(self.records, self.slo)

    @property
    def longest_queue(self) -> float:
        """The most requests that waited in the server when somebody looked."""
        return max((one.waiting or 0 for one in self.samples), default=0)

    def row(self) -> dict[str, Any]:
        """The run in one line; Little's law in the last two columns."""
        found = self.summary
        law = found.little
        return {
            "offered (requests/s)": self.rate,
            "requests": found.requests,
            "failed": found.requests - found.completed,
            "answered (requests/s)": found.requests_per_s,
            "goodput (requests/s)": found.goodput,
            "TTFT p50 (ms)": as_ms(found.ttft, "p50"),
            "TTFT p99 (ms)": as_ms(found.ttft, "p99"),
            "longest queue": self.longest_queue,
            "in flight": law and law.in_flight_measured,
            "rate × latency": law and law.in_flight_expected,
        }

    def finding(self) -> str:
        """The load in one sentence."""
        found = self.summary
        waits = ""
        if found.ttft:
            waits = f"Half of the first tokens came within {as_time(found.ttft.p50)}, 99 of 100 within "
            waits += f"{as_time(found.ttft.p99)}; "
        law = ""
        if found.little:
            rate, stay = significant(found.little.arrivals_per_s), as_time(found.little.latency_s)
            law = f" Little's law: {rate}/s × {stay} = {found.little.in_flight_expected:.1f} in flight; "
            law += f"counted: {found.little.in_flight_measured:.1f}."
        return (
            f"{found.requests} requests at {significant(self.rate)}/s to {self.url}: "
            f"{significant(found.requests_per_s)}/s answered. {waits}{100 * found.attainment:.0f} % kept the "
            f"promise; {self.longest_queue:.0f} waited at worst.{law}{_late(found)}"
        )


def _late(found: Summary) -> str:
    """Named where the client could not send in time: then it, not the server, was slow."""
    return f" The client itself was up to {as_time(found.late_s)} late." if found.late_s > 0.05 else ""


def load_url(
    url: str,
    rate: float,
    *,
    seconds: float = 4.0,
    prompt: float = 32,
    output: float = 24,
    vocab_size: int = 1000,
    slo: Slo | None = None,
    seed: int = 0,
    model: str | None = None,
    api_key: str | None = None,
    on_sample: Callable[[Sequence[Sample]], None] = lambda _: None,
) -> LiveRun:
    """Offer `rate` requests/s for some seconds to any server of OpenAI's completions API.

    prompt, output: tokens in the mean, exponential up to 5 means. on_sample: told every 0.2 s of all samples
    so far, on this thread. Interrupting it closes all connections. Raises LoadTestError where nobody answers
    or no load is possible.
    """
    workload = make_workload(
        max(FEWEST, round(rate * seconds)), rate=rate, prompt=_exponential(prompt),
        output=_exponential(output), vocab_size=vocab_size, seed=seed,
        prompt_seed=time.perf_counter_ns(),  # nothing of an earlier run is in the server's prefix cache
    )  # fmt: skip
    client = Client(url, model=model, api_key=api_key)
    samples: list[Sample] = []
    records = finish(_load(client, workload, samples), tick=lambda: on_sample(samples))
    where = client.url.removesuffix("/v1/")
    return LiveRun(where, rate, seconds, tuple(samples), tuple(records), slo or Slo())


def _exponential(mean: float) -> LengthSpec:
    return LengthSpec.exponential(mean, 1, max(1, round(LONGEST * mean)))


async def _load(client: Client, workload: Workload, samples: list[Sample]) -> list[RequestRecord]:
    ended: list[RequestRecord] = []
    async with opened(client, workload) as clock, _standing(client.url) as standing:

        async def look() -> None:
            now = await standing()
            at = clock()
            sent = sum(arrival.at_s <= at for arrival in workload)
            samples.append(replace(now, at_s=at, sent=sent, ended=len(ended)))

        async def watch() -> None:
            while True:
                await look()
                await asyncio.sleep(TICK_S)

        watching = asyncio.create_task(watch())
        try:
            records = await open_loop(client, workload, clock, ended.append)
        finally:
            watching.cancel()
        await look()
        return records


@asynccontextmanager
async def _standing(url: str) -> AsyncIterator[Callable[[], Coroutine[Any, Any, Sample]]]:
    """What asks a server how it stands; one without metrics says nothing."""
    where = httpx.URL(url).join("/metrics")
    async with httpx.AsyncClient(trust_env=where.host not in LOOPBACK, timeout=2.0) as http:

        async def ask() -> Sample:
            with suppress(httpx.HTTPError, ValueError):  # no answer, or none in Prometheus' format
                answer = await http.get(where)
                if answer.status_code == httpx.codes.OK:
                    return Sample(0.0, 0, 0, **read_metrics(answer.text))
            return Sample(0.0, 0, 0)

        yield ask


def read_metrics(text: str) -> Mapping[str, float]:
    """Of Prometheus' text format the four numbers that `Sample` holds; what is not there is left out. What
    stands before a colon (vLLM's "vllm:") does not matter."""
    samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
    named = ((one.name.rpartition(":")[2], one.value) for one in samples)
    return {_NAMES[name]: value for name, value in named if name in _NAMES}
