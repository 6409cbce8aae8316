"""Four things a step can wait for, each produced here by turning one knob and recognised from a profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.parallel import Workers
from labcore.parallel.measure import profiled_all_reduce
from labcore.perf.costs import elementwise_costs, linear_costs
from labcore.perf.profile import Profile, profile
from labcore.perf.profiling.regime import Work, name_regime
from labcore.perf.roofline import Roofs
from labcore.perf.timing import Timing, measure

DTYPE = "float32"
TERMS = ("compute", "bandwidth", "overhead", "communication")


@dataclass(frozen=True)
class KnobPoint:
    """One position of a knob: what was measured, and the seconds that each term alone would take."""

    value: int
    timing: Timing
    terms: dict[str, float]
    regime: str

    def row(self, knob: str) -> dict[str, Any]:
        """The exact numbers."""
        row: dict[str, Any] = {knob: self.value, "measured (ms)": self.timing.median_s * 1e3}
        row |= {f"{term} (ms)": self.terms[term] * 1e3 for term in TERMS[:3]}
        return row | {"largest term": self.regime}


@dataclass(frozen=True)
class KnobSweep:
    """A knob turned through its positions. label: of the axis; what: the workload in words."""

    knob: str
    label: str
    what: str
    points: tuple[KnobPoint, ...]

    def factor(self) -> float:
        """Time at the last position over time at the first."""
        return self.points[-1].timing.median_s / self.points[0].timing.median_s

    def told(self, at: int) -> str:
        """One position: measured, and what it waits for."""
        point = self.points[at]
        return (
            f"At {point.value:,} {self.label} it takes {as_time(point.timing.median_s)} and waits for "
            f"{point.regime} ({as_time(point.terms[point.regime])} of it, by itself)."
        )

    def finding(self) -> str:
        """Which regime the knob passes through, and what it did to the time."""
        first, last = self.points[0], self.points[-1]
        path = " → ".join(dict.fromkeys(point.regime for point in self.points))
        return (
            f"{self.what}: from {first.value:,} to {last.value:,} ({significant(last.value / first.value)}×) "
            f"the time went from {as_time(first.timing.median_s)} to {as_time(last.timing.median_s)} "
            f"({significant(self.factor())}×). Largest term on the way: {path}."
        )

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        return [point.row(self.label) for point in self.points]


ROWS = (1, 4, 16, 64, 256, 1024)
NUMBERS = (4, 64, 1 << 10, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
PIECES = (1, 4, 16, 64, 256, 1024, 4096)


def turn_rows(roofs: Roofs, rows: Sequence[int] = ROWS, width: int = 2048) -> KnobSweep:
    """Knob: rows of a matrix product with one matrix of width x width."""
    device = torch.device(roofs.device)
    matrix = torch.randn(width, width, device=device)
    points = []
    for n in rows:
        x, out = torch.randn(n, width, device=device), torch.empty(n, width, device=device)
        cost = linear_costs(width, width, n, DTYPE)
        points.append(_point(n, partial(torch.mm, x, matrix, out=out), cost.flops, cost.bytes, 1, roofs))
    return KnobSweep("rows", "rows", f"One product with a matrix of {width} × {width}", tuple(points))


def turn_numbers(roofs: Roofs, numbers: Sequence[int] = NUMBERS) -> KnobSweep:
    """Knob: how many numbers one addition goes over."""
    x = torch.ones(max(numbers), device=torch.device(roofs.device))
    points = []
    for n in numbers:
        part, cost = x[:n], elementwise_costs(n, dtype=DTYPE)
        points.append(_point(n, partial(part.add_, 1.0), 0, cost.bytes, 1, roofs))
    return KnobSweep("numbers", "numbers", "One addition", tuple(points))


def turn_pieces(roofs: Roofs, pieces: Sequence[int] = PIECES, numbers: int = 1 << 20) -> KnobSweep:
    """Knob: into how many operations the same additions are cut."""
    x = torch.ones(numbers, device=torch.device(roofs.device))
    cost = elementwise_costs(numbers, dtype=DTYPE)
    points = [_point(n, _each(list(x.chunk(n))), 0, cost.bytes, n, roofs) for n in pieces]
    return KnobSweep("pieces", "operations", f"{numbers:,} additions, cut into operations", tuple(points))


def _each(parts: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        for part in parts:
            part.add_(1.0)

    return run


def _point(
    value: int, fn: Callable[[], object], flops: float, moved: float, operations: int, roofs: Roofs
) -> KnobPoint:
    timing = measure(fn, warmup=2, repeats=7, device=torch.device(roofs.device))
    work = Work(timing.median_s, flops, moved, operations, communication_s=0.0, gaps_s=0.0)
    found = name_regime(work, _within(roofs, moved), DTYPE)
    return KnobPoint(value, timing, found.terms, found.name)


def _within(roofs: Roofs, size: float) -> Roofs:
    """The roofs with the bandwidth that a working set of this size sees: caches serve small ones."""
    return replace(roofs, read_bandwidth=max(roofs.read_bandwidth, roofs.read_bandwidth_at(int(size))))


# Profiles


def constructed(roofs: Roofs, *, large: bool = False) -> list[Profile]:
    """Three workloads on this device, each made to wait for one thing, profiled."""
    device = torch.device(roofs.device)
    side = 4096 if large else 1024
    left, right = torch.randn(2, side, side, device=device)
    out = torch.empty(side, side, device=device)
    long = torch.ones(1 << (28 if large else 25), device=device)
    one = torch.zeros(1, device=device)

    def chain() -> None:
        for _ in range(3):
            long.add_(1.0)

    def tiny() -> None:
        for _ in range(1000):
            one.add_(1.0)

    workloads: dict[str, Callable[[], object]] = {
        f"one product of {side}² matrices": lambda: torch.mm(left, right, out=out),
        f"three additions to {si(long.numel(), '')} numbers": chain,
        "a thousand additions to one number": tiny,
    }
    return [profile(fn, device=device, label=label, roofs=roofs) for label, fn in workloads.items()]


def talking(workers: Workers, roofs: Roofs, size: int = 4 << 20) -> Profile:
    """The fourth: ranks that add up a vector between them; rank 0's profile."""
    found: list[Profile] = workers.run(profiled_all_reduce, size, roofs)
    return found[0]


def regime_rows(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """What each workload's profile says."""
    rows = []
    for one in profiles:
        row: dict[str, Any] = {
            "workload": one.label,
            "regime": one.regime.name,
            "took (ms)": one.wall_s * 1e3,
        }
        row |= {f"{term} (ms)": one.regime.terms[term] * 1e3 for term in TERMS}
        rows.append(row | {"operations": one.operations})
    return rows


def recognised(profiles: Sequence[Profile]) -> str:
    """Each regime with its evidence."""
    return " ".join(f"{one.label[0].upper()}{one.label[1:]}: {one.regime.sentence}" for one in profiles)


def kind_rows(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """Milliseconds by kind of work."""
    kinds = [kind for kind in profiles[0].by_kind if any(one.by_kind[kind] > 0 for one in profiles)]
    return [
        {"step": one.label, "untraced (ms)": one.wall_s * 1e3}
        | {f"{kind} (ms)": one.by_kind[kind] * 1e3 for kind in kinds}
        for one in profiles
    ]
