"""Where the time of one step goes, by kind of work, and which of four regimes it is in.

    step = profile(lambda: model.transformer(tokens, cache), label="decode")
    step.by_kind          {"matmul": 0.0021, "attention": 0.0004, ..., "launch gaps": 0.0003}
    step.regime.sentence  "bandwidth: 29.8 MB at this device's 21 GB/s take 1.42 ms, of a step of ..."

A profiler slows what it watches, so the step is timed without it first; `overhead` says how much slower the
traced call was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from labcore.errors import DeviceError
from labcore.perf import roofline
from labcore.perf.counting import count
from labcore.perf.dtypes import rate_for
from labcore.perf.machine import resolve_device
from labcore.perf.profiling.attribution import Segment, device_segments, host_segments, seconds_by_kind
from labcore.perf.profiling.events import Traced, trace
from labcore.perf.profiling.kinds import COMMUNICATION, GAPS, KINDS
from labcore.perf.profiling.regime import Regime, Work, name_regime
from labcore.perf.roofline import Roofs
from labcore.perf.timing import Timing, measure

__all__ = ["KINDS", "Costs", "Event", "Operation", "Profile", "Regime", "name_regime", "profile"]


class Costs(Protocol):
    """What a step has to do, as `costs.step_costs` and `counting.count` say it, and perhaps in what dtype."""

    @property
    def flops(self) -> int:
        """FLOPs of its matrix products."""

    @property
    def bytes(self) -> int:
        """Bytes it moves."""


@dataclass(frozen=True)
class Event:
    """One bar of a timeline. lane: "host", "host 3" (another thread) or "stream 7"; seconds from start."""

    name: str
    kind: str
    start_s: float
    duration_s: float
    lane: str


@dataclass(frozen=True)
class Operation:
    """One row of the table of operations: all calls of one name and kind."""

    name: str
    kind: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """One step of a function. by_kind is of the traced call and adds up to traced_s; see `KINDS`.

    wall_s: median seconds untraced. operations: leaf operators (CPU) or kernels (GPU) that ran. host_s and
    device_s: for how long of traced_s each was busy (device_s is 0 on a CPU). top: the operations that took
    longest, calls that overlapped counted in full. flops, bytes: what the regime was named with.
    """

    label: str
    device: str
    wall_s: float
    spread_s: float
    traced_s: float
    by_kind: dict[str, float]
    operations: int
    host_s: float
    device_s: float
    flops: int
    bytes: int
    top: tuple[Operation, ...]
    events: tuple[Event, ...]
    regime: Regime

    @property
    def shares(self) -> dict[str, float]:
        """by_kind as parts of 1."""
        return {kind: seconds / self.traced_s for kind, seconds in self.by_kind.items()}

    @property
    def overhead(self) -> float:
        """How many times as long the traced call took as an untraced one."""
        return self.traced_s / self.wall_s

    def to_dict(self) -> dict[str, Any]:
        """All fields, shares and overhead as plain data."""
        return asdict(self) | {"shares": self.shares, "overhead": self.overhead}


def profile(
    fn: Callable[[], object],
    *,
    device: str | torch.device = "cpu",
    label: str = "",
    warmup: int = 2,
    repeats: int = 5,
    costs: Costs | None = None,
    roofs: Roofs | None = None,
    dtype: object | None = None,
    trace_path: str | Path | None = None,
) -> Profile:
    """Time `fn()`, then trace the least disturbed of three calls: where its time went, and what limits it.

    Calls it warmup + repeats + 3 times, and once more to count its work where no costs are handed in; each
    call must do the same step again. costs: what the step has to do, needed for kernels outside of PyTorch's
    operators. roofs: of the device (default: measured once and kept). dtype: of the matrix products (default:
    the costs'). trace_path: a file for the Chrome trace (chrome://tracing, Perfetto).
    Raises DeviceError for a device that is not here or that PyTorch cannot trace, LabError when a profiler is
    active already, when the GPU's driver refuses, or when the trace cannot be written. What `fn` raises
    passes through.
    """
    found = resolve_device(device)
    if found.type not in ("cpu", "cuda"):
        raise DeviceError(
            f"PyTorch's profiler sees 0 kernels on {found.type} devices; profile with device='cpu' or 'cuda'."
        )
    timing = measure(fn, warmup=warmup, repeats=repeats, device=found)
    traced = trace(fn, found, trace_path)
    work = costs or count(fn)
    steps = _Attributed(traced, on_device=found.type == "cuda")
    form = dtype or getattr(work, "dtype", "float32")
    ceilings = roofs or _roofs_for(found, form, bool(work.flops))
    note = "" if costs else _unseen(steps.host)
    return Profile(
        label=label,
        device=str(found),
        wall_s=timing.median_s,
        spread_s=timing.spread_s,
        traced_s=traced.seconds,
        by_kind=steps.by_kind,
        operations=steps.operations,
        host_s=steps.host_s,
        device_s=steps.device_s,
        flops=work.flops,
        bytes=work.bytes,
        top=_top(steps.working),
        events=_timeline(steps.all),
        regime=name_regime(_work(timing, steps, work), ceilings, form, note),
    )


class _Attributed:
    """A traced call with its time given to kinds. working: the segments that the kinds are made of."""

    def __init__(self, traced: Traced, on_device: bool) -> None:
        self.seconds = traced.seconds
        self.host = host_segments(traced)
        device = device_segments(traced) if on_device else []
        self.working, self.all = (device if on_device else self.host), [*self.host, *device]
        self.by_kind = seconds_by_kind(self.working, self.seconds)
        self.operations = sum(segment.operations for segment in self.working)
        asking = [segment for segment in self.host if segment.lane == "host"]
        self.host_s = self.seconds - seconds_by_kind(asking, self.seconds)[GAPS]
        self.device_s = self.seconds - self.by_kind[GAPS] if on_device else 0.0


def _work(timing: Timing, steps: _Attributed, work: Costs) -> Work:
    """What was seen of the traced call, shortened to the pace of an untraced one."""
    pace = min(1.0, timing.median_s / steps.seconds)
    return Work(
        wall_s=timing.median_s,
        flops=work.flops,
        bytes=work.bytes,
        operations=steps.operations,
        communication_s=steps.by_kind[COMMUNICATION] * pace,
        gaps_s=steps.by_kind[GAPS] * pace,
    )


def _roofs_for(device: torch.device, dtype: object, needed: bool) -> Roofs:
    """The device's usual roofs, or those of a dtype that has none there."""
    usual = roofline.roofs(device)
    try:
        rate_for(dtype, usual.matmul_flops)
    except DeviceError:
        return roofline.roofs(device, dtype=dtype) if needed else usual
    return usual


def _unseen(host: Sequence[Segment]) -> str:
    """What counting could not see: the engine's own kernels are called past PyTorch's operators."""
    names = sum(segment.name.startswith("labcore::") and "_native" in segment.name for segment in host)
    if not names:
        return ""
    return f"; the work of {names} native calls is not counted in that, so hand in costs=step_costs(...)"


def _top(segments: Sequence[Segment], rows: int = 20) -> tuple[Operation, ...]:
    calls: Counter[tuple[str, str]] = Counter()
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for segment in segments:
        row = (segment.name, segment.kind)
        calls[row] += segment.first
        seconds[row] += segment.end - segment.start
    longest = sorted(seconds, key=lambda row: -seconds[row])[:rows]
    return tuple(Operation(*row, calls=calls[row], seconds=seconds[row]) for row in longest)


def _timeline(segments: Sequence[Segment]) -> tuple[Event, ...]:
    ordered = sorted(segments, key=lambda segment: (segment.lane, segment.start))
    return tuple(Event(one.name, one.kind, one.start, one.end - one.start, one.lane) for one in ordered)
