"""What a phase of a soak showed, and whether that is good enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from labcore.serving.soak.crowd import Stream

CALM = "calm before: "  # what the name of a load without an attack begins with
GAP_S = 0.3  # no client waits longer for its first or next token while another misbehaves,
RATIO = 1.5  # or not so many times as long as without that


@dataclass(frozen=True)
class Spread:
    """Of waits, in seconds; None where there are none."""

    median: float | None
    p99: float | None
    most: float | None


@dataclass(frozen=True)
class Standing:
    """Of a server's process: bytes of memory, open file descriptors, bytes of log; None: not known."""

    memory: int | None = None
    descriptors: int | None = None
    log: int | None = None


@dataclass(frozen=True)
class Phase:
    """One load. gap, ttft: what clients waited for tokens. wrong: answers with a wrong word. calm_gap_s,
    calm_ttft_s: the longest of the same load without an attack. faults: why it is not good enough; empty: it
    is."""

    name: str
    streams: int
    left: int
    wrong: int
    errors: dict[str, int]
    gap: Spread
    ttft: Spread
    before: Standing = Standing()
    after: Standing = Standing()
    calm_gap_s: float | None = None
    calm_ttft_s: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def is_calm(self) -> bool:
        """Whether it is there only to compare with, and went well."""
        return self.name.startswith(CALM) and not self.faults

    @property
    def ratio(self) -> float | None:
        """Of the longest gap to that without the attack."""
        return self.gap.most / self.calm_gap_s if self.gap.most and self.calm_gap_s else None

    @property
    def log_bytes(self) -> int:
        """By which the server's log grew."""
        return (self.after.log or 0) - (self.before.log or 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "ratio": self.ratio, "log_bytes": self.log_bytes, "passed": not self.faults}

    def blamed(self, *faults: str) -> Phase:
        """With more faults; empty ones do not count."""
        return replace(self, faults=self.faults + tuple(fault for fault in faults if fault))


def judged(
    name: str,
    streams: Sequence[Stream],
    known: Sequence[str],
    *,
    before: Standing = Standing(),
    after: Standing = Standing(),
    notes: Mapping[str, Any] | None = None,
) -> Phase:
    """A load of which every answer must have come whole, word for word."""
    gaps = [gap for stream in streams for gap in stream.gaps_s]
    firsts = [stream.ttft_s for stream in streams if stream.ttft_s is not None]
    wrong = sum(stream.is_wrong(known) for stream in streams)
    errors = Counter(stream.error for stream in streams if stream.error)
    faults = (
        f"{wrong} answers have wrong words" if wrong else "",
        f"{errors.total()} answers failed" if errors else "",
        "" if any(stream.times for stream in streams) else "no answer came",
    )
    phase = Phase(
        name, len(streams), sum(stream.left for stream in streams), wrong, dict(errors), spread(gaps),
        spread(firsts), before, after, notes=dict(notes or {}),
    )  # fmt: skip
    return phase.blamed(*faults)


def attacked(phase: Phase, calm: Phase, answered: int) -> Phase:
    """A load beside an attack, against the same one without. answered: requests that had to be refused."""
    phase = replace(phase, calm_gap_s=calm.gap.most, calm_ttft_s=calm.ttft.most)
    return phase.blamed(
        wait_fault("gap", calm.gap.most, phase.gap.most),
        wait_fault("first token", calm.ttft.most, phase.ttft.most),
        f"{answered} foreign requests were answered" if answered else "",
    )


def wait_fault(what: str, calm_s: float | None, most_s: float | None) -> str:
    """What is wrong with the longest wait; empty: it is within GAP_S, or within RATIO of the calm one."""
    if calm_s is None or most_s is None:
        return f"{what}: there is nothing to compare"
    if most_s <= GAP_S or most_s <= RATIO * calm_s:
        return ""
    return f"{what}: {most_s * 1e3:,.0f} ms, {most_s / calm_s:.1f} times that without"


def spread(values: Sequence[float]) -> Spread:
    """Median, 99th percentile and largest."""
    if not values:
        return Spread(None, None, None)
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return Spread(at(0.5), at(0.99), ordered[-1])
