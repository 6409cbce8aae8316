"""Measured sweeps of the two phases: time against length, beside what this machine's roofs allow.

Each sweep warms up, repeats at least five times and keeps median and spread (see `perf.timing`). What the
work costs comes from the cost model, what the machine can do from its measured roofs; the two together
give a bracket for the time: the longer of "all arithmetic" and "all bytes" when they overlap fully, their
sum when they do not overlap at all. Time above the bracket is neither arithmetic nor traffic.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from labcore import cache as caches
from labcore.errors import LessonError
from labcore.generation import decode_step, prefill
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.model import Model
from labcore.perf.costs import StepCosts, step_costs
from labcore.perf.dtypes import rate_for
from labcore.perf.roofline import Roofs
from labcore.perf.roofline import roofs as measured_roofs
from labcore.perf.timing import MIN_REPEATS, Timing, measure, summarize, synchronize
from labcore.shares import DOUBT, IN_CACHE, doubt_of, is_trusted


class Work(NamedTuple):
    """FLOPs and bytes moved."""

    flops: float
    nbytes: float

    @classmethod
    def of(cls, *steps: StepCosts) -> Work:
        """The sum of some steps."""
        return cls(sum(step.flops for step in steps), sum(step.bytes for step in steps))


class Roof(NamedTuple):
    """What the machine does at best: FLOP/s in the model's dtype, bytes/s read."""

    flops: float
    bandwidth: float

    def bracket(self, work: Work) -> tuple[float, float]:
        """Seconds for `work` with arithmetic and traffic overlapped fully, and not at all."""
        arithmetic, traffic = work.flops / self.flops, work.nbytes / self.bandwidth
        return max(arithmetic, traffic), arithmetic + traffic


@dataclass(frozen=True)
class Point:
    """One length: its measured time, its work, and what share of each roof that time reaches."""

    length: int
    timing: Timing
    work: Work
    roof: Roof

    @property
    def seconds(self) -> float:
        """The median."""
        return self.timing.median_s

    @property
    def flops_share(self) -> float:
        """Achieved FLOP/s as a share of the measured matmul roof (MFU, the peak measured here)."""
        return self.work.flops / self.seconds / self.roof.flops

    @property
    def bandwidth_share(self) -> float:
        """Achieved bytes/s as a share of the measured read bandwidth (MBU)."""
        return self.work.nbytes / self.seconds / self.roof.bandwidth

    def row(self, what: str) -> dict[str, Any]:
        """The exact numbers, for the table."""
        low, high = self.roof.bracket(self.work)
        return {
            what: self.length,
            "median (ms)": self.seconds * 1e3,
            "spread, IQR (ms)": self.timing.spread_s * 1e3,
            "roofs allow (ms)": f"{significant(low * 1e3)} – {significant(high * 1e3)}",
            "FLOP": si(self.work.flops, ""),
            "bytes": si(self.work.nbytes, "B"),
            "of matmul roof (%)": self.flops_share * 100,
            "of bandwidth roof (%)": self.bandwidth_share * 100,
        }


@dataclass(frozen=True)
class Sweep:
    """Time of one phase at several lengths, shortest first."""

    phase: Literal["prefill", "decode"]
    model: str
    machine: str
    points: tuple[Point, ...]

    @property
    def shortest(self) -> Point:
        """The first point."""
        return self.points[0]

    @property
    def longest(self) -> Point:
        """The last point."""
        return self.points[-1]

    @property
    def ratio(self) -> float:
        """Time of the longest over time of the shortest."""
        return self.longest.seconds / self.shortest.seconds

    def at(self, length: int) -> Point:
        """The point of this length. Raises LessonError when it was not measured."""
        for point in self.points:
            if point.length == length:
                return point
        raise LessonError(f"Length {length} was not measured; there are {[p.length for p in self.points]}.")

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers, one row a length."""
        what = "prompt (tokens)" if self.phase == "prefill" else "output (tokens)"
        return [point.row(what) for point in self.points]

    def finding(self) -> str:
        """One sentence with the numbers that matter."""
        first, last = self.shortest, self.longest
        head = (
            f"{first.length} → {last.length} tokens: {significant(last.length / first.length)}× the "
            f"tokens in "
            f"{significant(self.ratio)}× the time ({as_time(first.seconds)} → {as_time(last.seconds)})."
        )
        if self.phase == "decode":
            early, late = first.seconds / first.length, last.seconds / last.length
            return (
                f"{head} A token took {as_time(early)} on average over the first {first.length} and "
                f"{as_time(late)} over all {last.length}; {_shares(last)}.{_doubt(last)}"
            )
        return (
            f"{head} At {first.length} tokens it reached {_percent(first.flops_share)} of the matmul roof, "
            f"at {last.length} {_percent(last.flops_share)}."
            + doubt_of([first.flops_share, last.flops_share], IN_CACHE)
        )


def sweep_prefill(
    model: Model, prompt_lengths: Sequence[int], *, repeats: int = MIN_REPEATS, roofs: Roofs | None = None
) -> Sweep:
    """Time the prefill of prompts of these lengths (random tokens: the time does not depend on which).

    Raises LessonError for lengths outside of the model's context or fewer than five repeats.
    """
    lengths = _checked(model, prompt_lengths, 0, repeats)
    roof = roof_of(model, roofs)
    points = []
    for length in _progress(lengths, "prefill"):
        work = Work.of(step_costs(model.config, 1, length, length, dtype=model.dtype))
        run = _prefill_run(model, length)
        points.append(Point(length, measure(run, warmup=2, repeats=repeats, device=model.device), work, roof))
    return Sweep("prefill", model.name, machine_name(model, roofs), tuple(points))


def sweep_decode(
    model: Model,
    output_lengths: Sequence[int],
    *,
    prompt_length: int = 16,
    repeats: int = MIN_REPEATS,
    roofs: Roofs | None = None,
) -> Sweep:
    """Time the writing of so many tokens, one decode step each, behind a prompt whose prefill is not counted.

    One run writes the longest output and is read off at each length. Raises LessonError as `sweep_prefill`.
    """
    lengths = _checked(model, output_lengths, prompt_length, repeats)
    roof = roof_of(model, roofs)
    _decode_run(model, prompt_length, lengths[:1])  # warms up
    runs = [_decode_run(model, prompt_length, lengths) for _ in _progress(range(repeats), "decode")]
    points = []
    for i, length in enumerate(lengths):
        contexts = range(prompt_length + 1, prompt_length + length + 1)
        work = Work.of(*(step_costs(model.config, 1, context, dtype=model.dtype) for context in contexts))
        points.append(Point(length, summarize([run[i] for run in runs]), work, roof))
    return Sweep("decode", model.name, machine_name(model, roofs), tuple(points))


def phases_finding(reading: Sweep, writing: Sweep) -> str:
    """Reading against writing at the longest length that both sweeps have."""
    length = max({p.length for p in reading.points} & {p.length for p in writing.points})
    read, written = reading.at(length), writing.at(length)
    return (
        f"{length} tokens: read in {as_time(read.seconds)}, written in {as_time(written.seconds)}, "
        f"{significant(written.seconds / read.seconds)}× the time for "
        f"{significant(written.work.flops / read.work.flops)}× the FLOPs and "
        f"{significant(written.work.nbytes / read.work.nbytes)}× the bytes. Prefill reached "
        f"{_percent(read.flops_share)} of the matmul roof and {_percent(read.bandwidth_share)} of "
        f"the bandwidth roof, decode {_percent(written.flops_share)} and {_percent(written.bandwidth_share)}."
        f"{_doubt(read, written)}"
    )


def phases_rows(reading: Sweep, writing: Sweep) -> list[dict[str, Any]]:
    """What each phase makes of the roofs at its longest length."""
    return [
        {
            "phase": f"{sweep.phase}, {sweep.longest.length} tokens",
            "of the matmul roof (%)": sweep.longest.flops_share * 100,
            "of the bandwidth roof (%)": sweep.longest.bandwidth_share * 100,
        }
        for sweep in (reading, writing)
    ]


def roof_of(model: Model, roofs: Roofs | None = None) -> Roof:
    """The roofs that hold for this model here. Raises DeviceError when its dtype has none."""
    found = roofs or measured_roofs(model.device)
    return Roof(rate_for(model.dtype, dict(found.matmul_flops)), found.read_bandwidth)


def machine_name(model: Model, roofs: Roofs | None = None) -> str:
    """What the numbers were measured on."""
    return (roofs or measured_roofs(model.device)).device_name


def random_tokens(model: Model, length: int, seed: int = 0) -> Tensor:
    """(1, length) tokens on the model's device, the same for the same seed."""
    stream = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(model.config.vocab_size, (1, length), generator=stream).to(model.device)


def new_cache(model: Model, kind: str, capacity: int) -> caches.KVCache:
    """An empty cache for one sequence on the model's device."""
    return caches.create(kind, model.config, capacity=capacity, device=model.device, dtype=model.dtype)


def _prefill_run(model: Model, length: int) -> Callable[[], Any]:
    tokens, cache = random_tokens(model, length), new_cache(model, "contiguous", length)

    def run() -> Any:
        cache.reset()
        return prefill(model, tokens, cache)

    return run


def _decode_run(model: Model, prompt_length: int, lengths: Sequence[int]) -> list[float]:
    """Seconds from the first decode step's start to the end of step n, for each n in `lengths`."""
    known = random_tokens(model, prompt_length + lengths[-1])
    cache = new_cache(model, "contiguous", known.shape[1])
    prefill(model, known[:, :prompt_length], cache)
    synchronize(model.device)
    elapsed, start = [], time.perf_counter()
    for step in range(1, lengths[-1] + 1):
        decode_step(model, known[:, : prompt_length + step], cache)
        if step in lengths:
            synchronize(model.device)
            elapsed.append(time.perf_counter() - start)
    return elapsed


def _checked(model: Model, lengths: Sequence[int], before: int, repeats: int) -> list[int]:
    limit = model.config.max_position_embeddings - before
    ordered = sorted(set(lengths))
    if not ordered or ordered[0] < 1 or ordered[-1] > limit:
        raise LessonError(
            f"Lengths {list(lengths)} must be one or more whole numbers from 1 to {limit}, the room "
            f"in {model.name!r}."
        )
    if repeats < MIN_REPEATS:
        raise LessonError(f"{repeats} repeats say too little about noise; take at least {MIN_REPEATS}.")
    return ordered


def _progress(items: Sequence[Any] | range, what: str) -> Any:
    unit = "size" if what == "prefill" else "run"
    return tqdm(items, desc=f"measuring {what}", unit=unit, leave=False, ncols=80, file=sys.stdout)


def _shares(point: Point) -> str:
    return (
        f"decode reached {_percent(point.flops_share)} of the matmul roof and "
        f"{_percent(point.bandwidth_share)} of the bandwidth roof"
    )


def _percent(share: float) -> str:
    return f"{significant(share * 100, 2)} %" + ("" if is_trusted(share) else f" {DOUBT}")


def _doubt(*points: Point) -> str:
    return doubt_of([share for one in points for share in (one.flops_share, one.bandwidth_share)], IN_CACHE)
