"""GET /metrics: what the engine says of its steps, in Prometheus' format and under the field's names.

Gauges and counters are read from the engine's own statistics when somebody asks; the histograms are filled by
what each step gave. All times are on the engine's clock, from the moment a request was handed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from labcore.serving.events import EngineStats, StepEvent
from labcore.serving.requests import Request, RequestOutput

PREFIX = "labcore:"
# upper ends of the histograms' buckets, in seconds
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
NEXT_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
WHOLE_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)

_GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_requests_running": ("Requests that are being computed.", lambda now: now.running),
    "num_requests_waiting": ("Requests in the queue.", lambda now: now.waiting),
    "kv_cache_usage_perc": ("Share of the blocks in use, from 0 to 1.", lambda now: _share(now)),
}
_COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_preemptions": ("Requests made to wait again.", lambda now: now.preemptions),
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", lambda now: now.prefix_queries),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda now: now.prefix_hits),
    "prompt_tokens": ("Tokens of prompts whose answers have begun.", lambda now: now.prompt_tokens),
    "generation_tokens": ("Tokens generated.", lambda now: now.output_tokens),
}
_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "abort": "abort"}


@dataclass
class _Times:
    """Of one request: when it came, and when its last token did."""

    arrived: float
    last: float | None = None


class Metrics:
    """One server's metrics, in a registry of their own. A `Watcher`: hand it to AsyncLLMEngine."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Standing(model_name, stats))
        self._times: dict[str, _Times] = {}
        self._now = 0.0

        def histogram(name: str, what: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(PREFIX + name, what, ["model_name"], registry=self.registry, buckets=buckets)
            return made.labels(model_name)

        self._first = histogram("time_to_first_token_seconds", "Until the first token.", FIRST_TOKEN_S)
        self._next = histogram("inter_token_latency_seconds", "Between outputs of one answer.", NEXT_TOKEN_S)
        self._whole = histogram("e2e_request_latency_seconds", "Until the last token.", WHOLE_S)
        success = Counter(
            PREFIX + "request_success", "Answers by how they ended.", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self._ended = {why: success.labels(model_name, why) for why in sorted(set(_REASONS.values()))}

    def arrived(self, request: Request) -> None:
        """Begin to time a request."""
        self._times[request.id] = _Times(request.arrival_s or 0.0)

    def stepped(self, event: StepEvent | None, outputs: Sequence[RequestOutput]) -> None:
        """Count what a step gave. An aborted request ends without a time."""
        self._now = event.end_s if event else self._now
        for output in outputs:
            if (times := self._times.get(output.id)) is None:
                continue
            if output.tokens:
                self._token(times)
            if output.finish_reason is not None:
                del self._times[output.id]
                self._ended[_REASONS[output.finish_reason]].inc()
                if output.finish_reason != "abort":
                    self._whole.observe(self._now - times.arrived)

    def _token(self, times: _Times) -> None:
        if times.last is None:
            self._first.observe(self._now - times.arrived)
        else:
            self._next.observe(self._now - times.last)
        times.last = self._now

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)


def _share(now: EngineStats) -> float:
    return now.blocks_used / now.blocks_total


class _Standing:
    """Reads the engine's statistics whenever the registry is asked."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self._model_name = model_name
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """The gauges and counters of this moment."""
        now = self._stats()
        for name, (what, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, what, labels=["model_name"])
            gauge.add_metric([self._model_name], value(now))
            yield gauge
        for name, (what, value) in _COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, what, labels=["model_name"])
            counter.add_metric([self._model_name], value(now))
            yield counter
