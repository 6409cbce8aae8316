"""What a Gantt chart and a block map show of a run, computed from its step events."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labcore.lab.serving_runs import PolicyRun
from labcore.lab.units import seconds as as_time
from labcore.serving import RowEvent, StepEvent

WAITING, PREFILL, DECODE, HELD, AGAIN, LINGERING = (
    "waiting",
    "prefill",
    "decode",
    "held up by others' prompts",
    "waiting again",
    "over, place still computed",
)
PHASES = (WAITING, PREFILL, DECODE, HELD, AGAIN, LINGERING)


@dataclass(frozen=True)
class Span:
    """A request in one phase, from start_s to end_s."""

    id: str
    phase: str
    start_s: float
    end_s: float


def arrivals_in(events: Sequence[StepEvent]) -> dict[str, float]:
    """For events without a list of requests: each is taken to arrive with its first step."""
    found: dict[str, float] = {}
    for event in events:
        for row in event.rows:
            found.setdefault(row.id, event.start_s)
    return found


def events_and_arrivals(
    run: PolicyRun | Sequence[StepEvent],
) -> tuple[Sequence[StepEvent], Mapping[str, float]]:
    """Of a run, or of an engine's bare events."""
    if isinstance(run, PolicyRun):
        return run.events, run.arrivals
    return list(run), arrivals_in(list(run))


def spans(events: Iterable[StepEvent], arrivals: Mapping[str, float]) -> list[Span]:
    """Every request's phases, in order of time. A phase lasts until the step that ends it begins."""
    tracks = {id: _Track(id, due) for id, due in arrivals.items()}
    end = 0.0
    for event in events:
        rows, ended, end = {row.id: row for row in event.rows}, dict(event.finished), event.end_s
        for id, track in tracks.items():
            if track.begins <= event.start_s:
                track.step(event, rows.get(id), id in event.preempted)
            if id in ended:
                track.finish(event.end_s)
    return [span for track in tracks.values() for span in track.closed(end)]


class _Track:
    """One request's phases as steps go by."""

    def __init__(self, id: str, due: float) -> None:
        self.id, self.begins = id, due
        self._spans: list[Span] = []
        self._phase, self._since, self._last, self._over = WAITING, due, due, False

    def step(self, event: StepEvent, row: RowEvent | None, preempted: bool) -> None:
        if self._over:
            if row is not None:
                self._last = event.end_s
            return
        phase = self._next(row, preempted)
        if phase != self._phase:
            self._turn(phase, event.start_s)

    def _next(self, row: RowEvent | None, preempted: bool) -> str:
        if row is not None:
            return PREFILL if row.kind == "prefill" else DECODE
        if preempted:
            return AGAIN
        return self._phase if self._phase in (WAITING, AGAIN) else HELD

    def _turn(self, phase: str, at: float) -> None:
        if at > self._since:
            self._spans.append(Span(self.id, self._phase, self._since, at))
        self._phase, self._since = phase, at

    def finish(self, at: float) -> None:
        self._turn(LINGERING, at)
        self._over, self._last = True, at

    def closed(self, end: float) -> list[Span]:
        """All of them; what is still open ends with the last step."""
        self._turn(LINGERING, self._last if self._over else end)
        return self._spans


def queue_over_time(run: PolicyRun) -> list[tuple[float, int]]:
    """(when, how many wait from then on): up where one is due, down where a step takes it in."""
    found = [span for span in spans(run.events, run.arrivals) if span.phase in (WAITING, AGAIN)]
    edges = [(span.start_s, 1) for span in found] + [(span.end_s, -1) for span in found]
    points, count = [(0.0, 0)], 0
    for at, change in sorted(edges):
        count += change
        points.append((at, count))
    return points


def queue_rows(runs: Mapping[str, PolicyRun]) -> list[dict[str, Any]]:
    """The queue of each policy: how long it was, and how long requests stood in it."""
    rows = []
    for run in runs.values():
        waits = [
            span.end_s - span.start_s for span in spans(run.events, run.arrivals) if span.phase == WAITING
        ]
        rows.append(
            {
                "policy": run.policy,
                "longest queue": max(count for _, count in queue_over_time(run)),
                "in it, mean": sum(waits) / run.summary.duration_s,
                "waited, median (ms)": statistics.median(waits) * 1e3 if waits else 0.0,
                "waited, most (ms)": max(waits, default=0.0) * 1e3,
            }
        )
    return rows


def queue_finding(runs: Mapping[str, PolicyRun]) -> str:
    """The longest queue of each policy, and half of the waits."""
    told = [
        f"{row['policy']} {row['longest queue']} (half of all waited over "
        f"{as_time(row['waited, median (ms)'] / 1e3)})"
        for row in queue_rows(runs)
    ]
    return f"The same arrivals, the longest queue: {', '.join(told)}."


def preemptions(events: Iterable[StepEvent]) -> list[tuple[str, float, bool]]:
    """(who, when, whether its blocks were copied to the host)."""
    return [(id, event.start_s, id in event.swapped) for event in events for id in event.preempted]


def span_rows(found: Sequence[Span]) -> list[dict[str, Any]]:
    """Milliseconds of each phase, a line a request."""
    present = [phase for phase in PHASES if any(span.phase == phase for span in found)]
    sums: dict[str, dict[str, float]] = {}
    for span in found:
        phases = sums.setdefault(span.id, dict.fromkeys(present, 0.0))
        phases[span.phase] += span.end_s - span.start_s
    return [
        {"request": id} | {f"{phase} (ms)": seconds * 1e3 for phase, seconds in phases.items()}
        for id, phases in sums.items()
    ]


# Blocks


@dataclass(frozen=True)
class Holding:
    """Who holds which blocks during one step."""

    step: int
    total: int
    blocks: dict[str, tuple[int, ...]]

    @property
    def holders(self) -> dict[int, tuple[str, ...]]:
        """Block -> who holds it."""
        found: dict[int, tuple[str, ...]] = {}
        for id, blocks in self.blocks.items():
            for block in blocks:
                found[block] = (*found.get(block, ()), id)
        return found

    @property
    def used(self) -> int:
        """Blocks that requests hold; one that several share counts once."""
        return len(self.holders)

    def finding(self) -> str:
        """The map in numbers."""
        shared = sum(len(who) > 1 for who in self.holders.values())
        return (
            f"Step {self.step}: {len(self.blocks)} requests hold {self.used} of {self.total} blocks, "
            f"{shared} of them together; {self.total - self.used} are free or kept for their prefix."
        )

    def rows(self) -> list[dict[str, Any]]:
        """A line a request."""
        return [
            {"request": id, "blocks held": len(blocks), "which": ", ".join(map(str, blocks)) or "–"}
            for id, blocks in self.blocks.items()
        ]


def holdings(events: Iterable[StepEvent]) -> list[Holding]:
    """One for each step. A request that runs and has no part in a step keeps what it held before."""
    found: list[Holding] = []
    held: dict[str, tuple[int, ...]] = {}
    over: set[str] = set()
    for event in events:
        gone = over | set(event.preempted)  # in a fixed batch, who is over keeps its blocks as it keeps a row
        held = {id: blocks for id, blocks in held.items() if id not in gone}
        held |= {row.id: row.blocks for row in event.rows}
        found.append(Holding(event.index, event.blocks_total, dict(held)))
        over |= {id for id, _ in event.finished}
    return found


def turning_points(found: Sequence[Holding]) -> list[Holding]:
    """Of steps in a row with the same holders of the same blocks, the first."""
    return [
        holding
        for index, holding in enumerate(found)
        if not index or holding.blocks != found[index - 1].blocks
    ]
