"""One elementwise chain as operators, compiled, and as one kernel: what passes over memory cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from labcore.bench.interleave import interleave
from labcore.kernels import reference
from labcore.kernels.native import elementwise
from labcore.lab.units import significant
from labcore.perf.timing import Timing, measure


@dataclass(frozen=True)
class FusionRun:
    """One way to compute the same. passes: over all numbers of the output's size, read or written."""

    way: str
    passes: int
    timing: Timing | None
    note: str = ""


@dataclass(frozen=True)
class FusionExperiment:
    """silu(gate) * up over (rows, width), several ways."""

    rows_: int
    width: int
    runs: tuple[FusionRun, ...]

    def speedup(self, way: str) -> float:
        """Time of the first way over time of this one."""
        found = {run.way: run.timing for run in self.runs if run.timing}
        first = next(iter(found.values()))
        return first.median_s / found[way].median_s

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        first = self.runs[0]
        return [
            {
                "way": run.way,
                "passes over memory": run.passes,
                "bytes say": f"{significant(first.passes / run.passes)}×",
                "measured (µs)": run.timing.median_s * 1e6 if run.timing else None,
                "faster than operators": f"{significant(self.speedup(run.way))}×" if run.timing else run.note,
            }
            for run in self.runs
        ]

    def finding(self) -> str:
        """What fusing was worth."""
        own = self.runs[-1]
        return (
            f"The same {self.rows_ * self.width:,} results: three operators make {self.runs[0].passes} "
            "passes "
            f"over memory, one kernel {own.passes}; bytes say "
            f"{significant(self.runs[0].passes / own.passes)}×, "
            f"measured {significant(self.speedup(own.way))}×."
        )


def compare_fusion(device: torch.device, *, rows: int = 512, width: int = 1536) -> FusionExperiment:
    """The gated activation as three operators, compiled, and as the engine's own kernel; in turns."""
    x = torch.randn(rows, 2 * width, device=device)
    ways: dict[str, tuple[int, Callable[[], object]]] = {"three operators": (8, lambda: reference.swiglu(x))}
    compiled, why = _compiled(reference.swiglu, x)
    if compiled is not None:
        ways["torch.compile"] = (3, lambda: compiled(x))
    name, own = _own_kernel(device)
    if own is not None:
        ways[name] = (3, lambda: own(x))
    timings = {way: measure(fn, warmup=5, repeats=25, device=device) for way, (_, fn) in ways.items()}
    runs = [FusionRun(way, passes, timings[way]) for way, (passes, _) in ways.items()]
    if compiled is None:
        runs.insert(1, FusionRun("torch.compile", 3, None, why))
    return FusionExperiment(rows, width, tuple(runs))


def _own_kernel(device: torch.device) -> tuple[str, Callable[[torch.Tensor], torch.Tensor] | None]:
    if device.type == "cuda":
        from labcore.kernels.triton.swiglu import swiglu

        return "own kernel (Triton)", swiglu
    probe = torch.zeros(1, 2 * elementwise.MIN_NUMBERS)
    return "own kernel (C)", elementwise.swiglu if elementwise.takes(probe) else None


def _compiled(fn: Callable[..., Any], x: torch.Tensor) -> tuple[Callable[..., Any] | None, str]:
    """The function through torch.compile, or why that cannot be had here."""
    try:
        made = torch.compile(fn)
        with torch.inference_mode():
            made(x)
    except Exception as error:  # whatever the compiler's own compiler says
        return None, f"no compiler here ({type(error).__name__})"
    return made, ""


def many_or_one(device: torch.device, numbers: int = 1 << 20) -> list[dict[str, Any]]:
    """The same additions as one operation and as a thousand, in turns."""
    x = torch.ones(numbers, device=device)
    parts = list(x.chunk(1000))

    def many() -> None:
        for part in parts:
            part.add_(1.0)

    ways: dict[str, Callable[[], object]] = {"one operation": lambda: x.add_(1.0), "a thousand": many}
    runs = {name: partial(measure, fn, warmup=0, repeats=5, device=device) for name, fn in ways.items()}
    samples = interleave(runs, repeats=5)
    medians = {name: found.median(lambda timing: timing.median_s) for name, found in samples.items()}
    return [{"additions as": name, "time (µs)": seconds * 1e6} for name, seconds in medians.items()]
