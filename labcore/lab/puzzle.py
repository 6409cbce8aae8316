"""Lesson 3's open puzzle: why a cache can save nothing at all. Measured on a model and on its thin twin."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from labcore.bench.interleave import interleave
from labcore.bench.overhead import thin
from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.lab.steps import readable, step_fn
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model, Transformer
from labcore.perf.costs import step_costs
from labcore.perf.counting import count
from labcore.perf.predict import step_time
from labcore.perf.timing import Timing, summarize, synchronize

WAYS = {"cache off": "none", "cache on": "contiguous"}
PUZZLE = {"cache off": 26.0, "cache on": 25.0}  # published tok/s of a 0.6B model on an A100


@dataclass(frozen=True)
class PuzzlePoint:
    """Steps of one token at one length: seconds by the cache, of a model and of its thin twin."""

    length: int
    model: dict[str, Timing]
    thin: dict[str, Timing]

    @property
    def ratio(self) -> float:
        """Time without a cache over time with one."""
        return self.model["cache off"].median_s / self.model["cache on"].median_s


@dataclass(frozen=True)
class Puzzle:
    """Both models at several lengths. operators: that a step launches, by the cache."""

    name: str
    points: tuple[PuzzlePoint, ...]
    operators: dict[str, int]

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        rows = []
        for point in self.points:
            row: dict[str, Any] = {"tokens": point.length}
            for name, timings in ((self.name, point.model), ("thin twin", point.thin)):
                row |= {f"{name}, {way} (ms)": one.median_s * 1e3 for way, one in timings.items()}
            rows.append(row | {"the cache saves": f"{significant(point.ratio)}×"})
        return rows

    def finding(self) -> str:
        """What a cache is worth while launches take longer than the work."""
        first, last = self.points[0], self.points[-1]
        floor = first.thin["cache on"].median_s
        return (
            f"At {first.length} tokens the cache makes a step {significant(first.ratio)}× as fast, at "
            f"{last.length} tokens {significant(last.ratio)}×. A step launches {self.operators['cache off']} "
            f"operators without a cache and {self.operators['cache on']} with one; launching them over next "
            f"to nothing (the thin twin) takes {as_time(floor)} already, which no cache saves."
        )


def solve_puzzle(model: Model, lengths: Sequence[int] = (8, 32, 128, 512), *, repeats: int = 11) -> Puzzle:
    """Measure both models both ways at each length, in turns, on the readable path."""
    plain, twin = readable(model), thin_twin(model)
    points = []
    for length in lengths:
        steps = {
            (which, way): step_fn(one, held=length - 1, new=1, kind=kind)
            for which, one in (("model", plain), ("thin", twin))
            for way, kind in WAYS.items()
        }
        runs = {" ".join(key): partial(_once, fn, model.device) for key, fn in steps.items()}
        samples = interleave(runs, repeats=repeats, warmup=3)
        timings = {
            which: {way: summarize(samples[f"{which} {way}"].results) for way in WAYS}
            for which in ("model", "thin")
        }
        points.append(PuzzlePoint(length, timings["model"], timings["thin"]))
    operators = {way: count(steps["model", way]).operations for way in WAYS}
    return Puzzle(model.name, tuple(points), operators)


def thin_twin(model: Model) -> Model:
    """As many layers and operators, with next to nothing to compute or to read."""
    config = thin(model.config)
    transformer = Transformer(config).to(model.device, model.dtype).eval().requires_grad_(False)
    transformer.reset_rope()
    transformer.fast = False
    return Model(f"{model.name}, thin", config, transformer, None, random_weights=True)


def puzzle_peaks(config: ModelConfig, gpu: GPU, context: int = 512) -> dict[str, float]:
    """Tokens per second that a GPU's two peaks allow such a model in fp16, by the cache."""
    return {
        way: 1 / step_time(step_costs(config, 1, context, cached=kind != "none"), gpu).low_s
        for way, kind in WAYS.items()
    }


def published_rows(config: ModelConfig, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """The published table of lesson 3, divided by the operators that such a model's step launches.

    config: of the published model; peaks: tok/s that its GPU's two peaks would allow, by the cache.
    """
    model = thin_twin(Model("published", config, Transformer(thin(config)), None))
    rows = []
    for way, kind in WAYS.items():
        operators = count(step_fn(model, held=63, new=1, kind=kind)).operations
        rate = PUZZLE[way]
        rows.append(
            {
                "cache": way.removeprefix("cache "),
                "published (tok/s)": rate,
                "peaks allow (tok/s)": round(peaks[way]),
                "step (ms)": 1e3 / rate,
                "of it at the peaks (ms)": 1e3 / peaks[way],
                "operators, here": operators,
                "µs an operator": 1e6 / rate / operators,
            }
        )
    return rows


def _once(fn: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    fn()
    synchronize(device)
    return time.perf_counter() - start
