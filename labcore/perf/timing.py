"""Timing that can be trusted: warmed up, synchronised, repeated, with its spread.

A GPU takes work and returns at once, so a clock stopped without waiting measures the asking, not the doing;
and the first calls pay for allocation and for choosing kernels. Both are the caller's usual mistakes, so both
are taken care of here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from labcore.errors import LabError
from labcore.perf.machine import resolve_device

MIN_REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs. spread_s: the interquartile range, which holds the middle half."""

    median_s: float
    spread_s: float
    samples: tuple[float, ...]

    @property
    def best_s(self) -> float:
        """The fastest run: what the hardware can do when nothing else disturbs it."""
        return min(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def measure(
    fn: Callable[[], object],
    *,
    warmup: int = 2,
    repeats: int = 7,
    device: str | torch.device = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `fn()` on a device: `warmup` unmeasured calls, then `repeats` (at least 5) measured ones.

    Waits for the device before the clock starts and before it stops. Raises LabError for too few repeats,
    DeviceError for a device that is not here.
    """
    if repeats < MIN_REPEATS or warmup < 0:
        raise LabError(
            f"measure got repeats={repeats}, warmup={warmup}; it needs at least {MIN_REPEATS} repeats to "
            "state a spread, and warmup >= 0."
        )
    found = resolve_device(device)
    for _ in range(warmup):
        fn()
    samples = []
    for _ in range(repeats):
        synchronize(found)
        start = clock()
        fn()
        synchronize(found)
        samples.append(clock() - start)
    return summarize(samples)


def summarize(samples: list[float]) -> Timing:
    """Median and interquartile range of at least two samples, in seconds."""
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median_s=statistics.median(samples), spread_s=upper - lower, samples=tuple(samples))


def seconds_of(fn: Callable[[], object], device: torch.device) -> float:
    """One run of `fn()`, the device waited for on both sides."""
    synchronize(device)
    start = time.perf_counter()
    fn()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was asked for; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
