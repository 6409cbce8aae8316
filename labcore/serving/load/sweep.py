"""Rate against goodput: the knee is the highest rate that a server still carries.

Below it more requests mean more answers. Above it they only mean a longer queue: goodput (or throughput,
where nothing was promised) stops rising, and the promise is broken for more and more users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labcore.serving.metrics import RequestRecord, Slo, Summary, summarize

ATTAINMENT = 0.9
GAIN = 0.1


@dataclass(frozen=True)
class Point:
    """One rate, in requests/s. carried: whether the promise held and the rate paid."""

    rate: float
    summary: Summary
    carried: bool


@dataclass(frozen=True)
class Sweep:
    """What was tried, in order of the rate."""

    points: tuple[Point, ...]
    slo: Slo | None

    @property
    def knee(self) -> float | None:
        """Requests/s: the last rate carried before the first that was not; None where there is none."""
        below = []
        for point in self.points:
            if not point.carried:
                break
            below.append(point.rate)
        return below[-1] if below else None

    @property
    def found(self) -> bool:
        """Whether some rate was too much; otherwise the knee lies higher than what was tried."""
        return any(not point.carried for point in self.points)

    @property
    def sentence(self) -> str:
        """The finding."""
        if self.knee is None:
            return f"Even {self.points[0].rate:g} requests/s are too much."
        if not self.found:
            return f"{self.knee:g} requests/s are carried; the knee lies higher."
        first = next(point.rate for point in self.points if not point.carried)
        return f"The knee lies between {self.knee:g} and {first:g} requests/s."

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        points = [{"rate": p.rate, "carried": p.carried, **p.summary.to_dict()} for p in self.points]
        return {"knee": self.knee, "found": self.found, "points": points}


def sweep(
    run: Callable[[float], Sequence[RequestRecord]],
    rates: Sequence[float],
    slo: Slo | None = None,
    *,
    refine: int = 0,
    attainment: float = ATTAINMENT,
    gain: float = GAIN,
    on_point: Callable[[Point], None] | None = None,
) -> Sweep:
    """Try rising rates until one is too much, then halve the gap around the knee `refine` times.

    run: rate in requests/s -> what happened. A rate is too much where less than `attainment` of the requests
    kept the SLO (without one: ended well), or where goodput (without: output tokens/s) grew over the last
    rate carried by less than the share `gain` of what the rate grew. Raises ValueError for rates that are
    none, not above 0, or do not rise.
    """
    if not rates or rates[0] <= 0 or any(b <= a for a, b in zip(rates, rates[1:], strict=False)):
        raise ValueError(f"rates must be above 0 and rise, not {list(rates)}")
    points: list[Point] = []

    def tried(rate: float, below: Point | None) -> Point:
        summary = summarize(run(rate), slo)
        carried = summary.attainment >= attainment and (below is None or _paid(rate, summary, below, gain))
        point = Point(rate, summary, carried)
        points.append(point)
        if on_point:
            on_point(point)
        return point

    low: Point | None = None
    for rate in rates:
        point = tried(rate, low)
        if not point.carried:
            break
        low = point
    if points[-1].carried:
        refine = 0
    high = points[-1].rate
    for _ in range(refine):
        point = tried((high + (low.rate if low else 0.0)) / 2, low)
        low, high = (point, high) if point.carried else (low, point.rate)
    return Sweep(tuple(sorted(points, key=lambda point: point.rate)), slo)


def _paid(rate: float, summary: Summary, below: Point, gain: float) -> bool:
    return _yield(summary) / _yield(below.summary) - 1 >= gain * (rate / below.rate - 1)


def _yield(summary: Summary) -> float:
    return summary.output_tokens_per_s if summary.goodput is None else summary.goodput
