"""Hunts of lesson 5: a stopwatch that does not wait, and contestants that are timed cold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labcore.lab.exercises.checking import Verdict, of_faults
from labcore.lab.hunts.registry import planted

ASKING, WORKING = 1e-4, 1e-2  # seconds that a launch and the launched work take on the make-believe device


class _Device:
    """A device that takes work and returns at once, and the clock beside it."""

    def __init__(self) -> None:
        self.now, self.busy_until = 0.0, 0.0

    def launch(self) -> None:
        self.now += ASKING
        self.busy_until = max(self.busy_until, self.now) + WORKING

    def clock(self) -> float:
        return self.now

    def synchronize(self, _: object) -> None:
        self.now = max(self.now, self.busy_until)


@contextmanager
def _waiting_for(device: _Device, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, the function's `synchronize` waits for this device."""
    names = function.__globals__
    kept = names["synchronize"]
    names["synchronize"] = device.synchronize
    try:
        yield
    finally:
        names["synchronize"] = kept


@planted(
    "05.A",
    title="The clock that did not wait",
    target="labcore.perf.timing:measure",
    bug=(
        (
            "        fn()\n        synchronize(found)\n        samples.append",
            "        fn()\n        samples.append",
        ),
    ),
    minutes=5,
    hints=(
        "A GPU takes work and returns at once. What has happened when fn() returns?",
        "Before the clock is read, the device has to be done: at the start, and once more.",
    ),
)
def _check_waits(suspect: Callable[..., Any]) -> Verdict:
    """On a device that works behind the caller's back every sample must hold the work."""
    faults, counts = [], (5, 8, 11)
    for repeats in counts:
        device = _Device()
        with _waiting_for(device, suspect):
            timing = suspect(device.launch, warmup=1, repeats=repeats, device="cpu", clock=device.clock)
        short = [sample for sample in timing.samples if sample < WORKING]
        if short:
            faults.append(
                f"{len(short)} of {repeats} runs were said to take {short[0] * 1e3:.1f} ms; the device "
                f"worked {WORKING * 1e3:.0f} ms on each."
            )
    return of_faults(faults, len(counts), "measurements", "every sample holds the device's work")


@planted(
    "05.B",
    title="The first call pays",
    target="labcore.bench.interleave:interleave",
    bug=(("        for _ in range(warmup):", "        for _ in range(0):"),),
    minutes=4,
    hints=(
        "Compilers, caches and memory pools are set up in the first call. Is that part of the contest?",
        "`warmup` says how many calls of each contestant do not count. Who makes them?",
    ),
)
def _check_warm(suspect: Callable[..., Any]) -> Verdict:
    """Contestants whose first calls take a second must be sampled warm."""
    faults, counts = [], (1, 2, 3)
    for cold in counts:
        calls: dict[str, int] = {"A": 0, "B": 0}

        def run(name: str, cold: int = cold, calls: dict[str, int] = calls) -> float:
            calls[name] += 1
            return 1.0 if calls[name] <= cold else 0.01

        contestants = {name: lambda name=name: run(name) for name in calls}
        found = suspect(contestants, repeats=4, warmup=cold)
        worst = max(max(samples.results) for samples in found.values())
        if worst > 0.01:
            faults.append(
                f"With warmup={cold} a sample of {worst:g} s was kept; warm, every call takes 0.01 s."
            )
    return of_faults(faults, len(counts), "contests", "only warm calls count")
