"""From what happened to each request to what users felt: latencies, throughput, goodput, concurrency.

Records come from a load test over HTTP or from the engine's own step events; the arithmetic is the same.
TTFT: to the first token. TPOT: mean time of a token after the first (over n - 1 of them; one token has none).
ITL: the single gaps. E2E: to the last token. All from the moment a request was due, not from the moment it
could be sent: a queue in front of a slow server is part of what users wait for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from labcore.serving.events import StepEvent

UNFINISHED = "unfinished"


@dataclass(frozen=True)
class RequestRecord:
    """What happened to one request; seconds on one clock.

    start_s: when it was due. end_s: its last token, or when it failed. token_times: when each token came, or
    each piece of text where a server does not say how many tokens it holds. error: a short kind ("http 429",
    "timeout"), None where all went well; detail: what the server said. sent_s: when it left the client.
    """

    id: str
    start_s: float
    first_token_s: float | None
    end_s: float
    prompt_tokens: int
    output_tokens: int
    token_times: tuple[float, ...] = ()
    error: str | None = None
    detail: str = ""
    sent_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the answer came whole."""
        return self.error is None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first_token_s is None else self.first_token_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for less than two tokens."""
        if self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Inter-token latencies: the gap before each token after the first."""
        return tuple(later - earlier for earlier, later in pairwise(self.token_times))

    @property
    def e2e_s(self) -> float:
        """From due to over."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Slo:
    """What users were promised, in seconds; None: nothing. Both must hold for a request to count."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def met(self, record: RequestRecord) -> bool:
        """Whether a request kept it. A failed one did not; one token keeps any TPOT."""
        pairs = ((record.ttft_s, self.ttft_s), (record.tpot_s, self.tpot_s))
        return record.ok and all(limit is None or value is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles (linear between neighbours) of `count` values, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Little:
    """Little's law, L = λW (Little 1961), between the first end and the last arrival.

    Before, the system fills; afterwards it drains. in_flight_expected = arrivals/s × mean latency of who
    arrived then; in_flight_measured: the mean over that time. They part where the queue only grows.
    """

    arrivals_per_s: float
    latency_s: float
    in_flight_measured: float

    @property
    def in_flight_expected(self) -> float:
        """Requests in flight that rate and latency imply."""
        return self.arrivals_per_s * self.latency_s


@dataclass(frozen=True)
class Summary:
    """One load, in numbers. Latencies and tokens are those of requests that ended well.

    duration_s: from the first request's due time to the last end. goodput: requests/s that kept the SLO (None
    without one); attainment: their share of all, failed ones included. errors: kind -> count. late_s: by how
    much the client sent its latest request after it was due: the generator's own part of the latency.
    """

    requests: int
    completed: int
    errors: dict[str, int]
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    goodput: float | None
    attainment: float
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2e: Spread | None
    concurrency_mean: float
    concurrency_peak: int
    little: Little | None
    late_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        if self.little:
            data["little"]["in_flight_expected"] = self.little.in_flight_expected
        return data


def summarize(records: Sequence[RequestRecord], slo: Slo | None = None) -> Summary:
    """All of it. Raises ValueError where there are no records."""
    if not records:
        raise ValueError("no records to summarize")
    begin, end = min(record.start_s for record in records), max(record.end_s for record in records)
    good = [record for record in records if record.ok]
    kept = sum(slo.met(record) for record in good) if slo else len(good)
    tokens = sum(record.output_tokens for record in good)
    return Summary(
        requests=len(records),
        completed=len(good),
        errors=dict(Counter(record.error for record in records if record.error)),
        duration_s=end - begin,
        prompt_tokens=sum(record.prompt_tokens for record in good),
        output_tokens=tokens,
        output_tokens_per_s=_per_second(tokens, end - begin),
        requests_per_s=_per_second(len(good), end - begin),
        goodput=_per_second(kept, end - begin) if slo else None,
        attainment=kept / len(records),
        ttft=spread(record.ttft_s for record in good),
        tpot=spread(record.tpot_s for record in good),
        itl=spread(gap for record in good for gap in record.itl_s),
        e2e=spread(record.e2e_s for record in good),
        concurrency_mean=mean_in_flight(records, begin, end),
        concurrency_peak=max(count for _, count in in_flight(records)),
        little=little(records),
        late_s=max((r.sent_s - r.start_s for r in records if r.sent_s is not None), default=0.0),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of sorted values lie, linear between neighbours."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and percentiles of the values that exist; None where there are none."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    parts = (percentile(known, share) for share in (0.5, 0.9, 0.95, 0.99))
    return Spread(len(known), math.fsum(known) / len(known), *parts)


def in_flight(records: Sequence[RequestRecord]) -> list[tuple[float, int]]:
    """(when, requests in flight from then on), in order of time. Who ends makes room for who starts."""
    edges = [(r.end_s, -1) for r in records if r.end_s > r.start_s]
    edges += [(r.start_s, 1) for r in records if r.end_s > r.start_s]
    steps, count = [(min(r.start_s for r in records), 0)], 0
    for when, change in sorted(edges):
        count += change
        steps.append((when, count))
    return steps


def mean_in_flight(records: Sequence[RequestRecord], begin_s: float, end_s: float) -> float:
    """Requests in flight between two times, in the mean."""
    inside = (min(r.end_s, end_s) - max(r.start_s, begin_s) for r in records)
    return _per_second(math.fsum(max(seconds, 0.0) for seconds in inside), end_s - begin_s)


def little(records: Sequence[RequestRecord]) -> Little | None:
    """Little's law held against these records; None where nobody arrived after the first had ended."""
    begin, end = min(r.end_s for r in records), max(r.start_s for r in records)
    latencies = [r.e2e_s for r in records if begin < r.start_s <= end]
    if not latencies:
        return None
    return Little(
        arrivals_per_s=len(latencies) / (end - begin),
        latency_s=math.fsum(latencies) / len(latencies),
        in_flight_measured=mean_in_flight(records, begin, end),
    )


def records_from_events(events: Iterable[StepEvent], arrivals: Mapping[str, float]) -> list[RequestRecord]:
    """One record for each id in `arrivals` (id -> when it was due, on the engine's clock), in that order.

    A token's time is the end of the step that drew it. What the events do not show as finished is
    "unfinished"; an aborted request has the error "abort". Ids without an arrival are left out. prompt_tokens
    are as many as were computed or found in the cache before the first token.
    """
    times: dict[str, list[float]] = {id: [] for id in arrivals}
    prompts: dict[str, int] = dict.fromkeys(arrivals, 0)
    ends: dict[str, tuple[float, str | None]] = {}
    last = max(arrivals.values(), default=0.0)
    for event in events:
        last = max(last, event.end_s)
        for row in event.rows:
            if row.id in times:
                if not times[row.id]:  # what is known when the first token is drawn is the prompt
                    prompts[row.id] = max(prompts[row.id], row.start + row.new)
                times[row.id] += [event.end_s] * row.drawn
        for id, reason in event.finished:
            ends[id] = (event.end_s, "abort" if reason == "abort" else None)
    return [
        _record(id, due, times[id], prompts[id], *ends.get(id, (max(last, due), UNFINISHED)))
        for id, due in arrivals.items()
    ]


def _record(
    id: str, due: float, times: list[float], prompt: int, end: float, error: str | None
) -> RequestRecord:
    return RequestRecord(
        id=id,
        start_s=due,
        first_token_s=times[0] if times else None,
        end_s=times[-1] if times and error is None else end,
        prompt_tokens=prompt,
        output_tokens=len(times),
        token_times=tuple(times),
        error=error,
    )


def _per_second(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
