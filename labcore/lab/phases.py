"""Prefill and decode side by side, with and without a cache: what is fed, what it costs, how long it takes.

Positions and shapes are counted from real traces; times are medians over repeats.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from labcore.errors import LessonError
from labcore.generation import Trace, TraceStep, decode_step, prefill
from labcore.generation.api import generate, stream
from labcore.lab.sweeps import Point, Work, new_cache, random_tokens, roof_of
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.model import Model
from labcore.perf.costs import positions_processed, step_costs
from labcore.perf.roofline import Roofs
from labcore.perf.timing import MIN_REPEATS, Timing, summarize, synchronize

CACHED, UNCACHED = "contiguous", "none"


def prompt_for(model: Model, text: str) -> str | list[int]:
    """The text itself, or as many token ids as it has words where the model has no tokenizer."""
    if model.tokenizer is not None:
        return text
    return [i % model.config.vocab_size for i in range(1, len(text.split()) + 1)]


def positions_through(trace: Trace) -> int:
    """Positions that went through the network: the sum of all steps' inputs."""
    return sum(batch * new for batch, new in (step.input_shape for step in trace.steps))


def step_rows(trace: Trace) -> list[dict[str, Any]]:
    """What each step was fed and what the cache then held; nothing that depends on weights or on time."""
    return [
        {
            "step": step.index,
            "phase": step.phase,
            "input shape": str(tuple(step.input_shape)),
            "first position": step.position,
            "sequence length": step.context,
            "cache holds after": step.cache_length,
        }
        for step in trace.steps
    ]


def count_positions(
    model: Model, cases: Sequence[tuple[int, int]], *, at_most: int = 128
) -> list[dict[str, Any]]:
    """Generate for each (prompt, new tokens) with and without cache; count passes and positions.

    Cases of more than `at_most` tokens in all take long without a cache and are left uncounted (None).
    """
    limit = min(at_most, model.config.max_position_embeddings)
    return [_counted(model, prompt, new, limit) for prompt, new in cases]


def _counted(model: Model, prompt: int, new: int, limit: int) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt p": prompt, "new n": new, "forward passes": None}
    for label, kind in (("cache off", UNCACHED), ("cache on", CACHED)):
        counted = None
        if prompt + new <= limit:
            trace = traced(model, prompt, new, kind)
            counted, row["forward passes"] = positions_through(trace), len(trace.steps)
        row[f"{label}: counted"] = counted
        row[f"{label}: formula"] = positions_processed(prompt, new, cached=kind != UNCACHED)
    return row


def traced(model: Model, prompt: int, new: int, kind: str = CACHED) -> Trace:
    """The trace of `new` tokens behind a prompt of `prompt` tokens (the same ones each time)."""
    tokens = random_tokens(model, prompt)[0].tolist()
    out = generate(model, tokens, max_new_tokens=new, ignore_eos=True, cache=kind, trace=True)
    assert out.trace is not None
    return out.trace


@dataclass(frozen=True)
class CacheRuns:
    """The same answer written with and without a cache. times: kind -> one timing a step."""

    prompt_length: int
    traces: dict[str, Trace]
    times: dict[str, tuple[Timing, ...]]

    @property
    def new_tokens(self) -> int:
        """Tokens written in each run."""
        return len(self.traces[CACHED].steps)

    def positions(self, kind: str) -> list[int]:
        """Positions fed at each step."""
        return [step.input_shape[1] for step in self.traces[kind].steps]

    def total_s(self, kind: str) -> float:
        """The sum of the steps' median times."""
        return sum(timing.median_s for timing in self.times[kind])

    @property
    def ratio(self) -> float:
        """Time without cache over time with."""
        return self.total_s(UNCACHED) / self.total_s(CACHED)

    @property
    def work_ratio(self) -> float:
        """FLOPs without cache over FLOPs with."""
        return _flops(self.traces[UNCACHED].steps) / _flops(self.traces[CACHED].steps)

    def rows(self) -> list[dict[str, Any]]:
        """Totals of both runs."""
        return [
            {
                "cache": "on" if kind == CACHED else "off",
                "forward passes": len(trace.steps),
                "positions": positions_through(trace),
                "FLOP": si(_flops(trace.steps), ""),
                "first step (ms)": self.times[kind][0].median_s * 1e3,
                "last step (ms)": self.times[kind][-1].median_s * 1e3,
                "all (ms)": self.total_s(kind) * 1e3,
            }
            for kind, trace in self.traces.items()
        ]

    def finding(self) -> str:
        """What the cache saved, in work and in time."""
        off, on = positions_through(self.traces[UNCACHED]), positions_through(self.traces[CACHED])
        last_off, last_on = self.times[UNCACHED][-1].median_s, self.times[CACHED][-1].median_s
        return (
            f"Prompt {self.prompt_length}, {self.new_tokens} new tokens: without the cache {off:,} "
            f"positions went "
            f"through the network instead of {on:,}, {significant(self.work_ratio)}× the FLOPs, and it took "
            f"{significant(self.ratio)}× the time. The last step alone: {as_time(last_off)} against "
            f"{as_time(last_on)}."
        )


def compare_caches(
    model: Model, *, prompt_length: int = 16, new_tokens: int = 48, repeats: int = MIN_REPEATS
) -> CacheRuns:
    """Write the same answer with the cache on and off, in turns, `repeats` times each after a warm-up.

    Raises LessonError for fewer than five repeats or more tokens than the model's context holds.
    """
    limit = model.config.max_position_embeddings
    if repeats < MIN_REPEATS or prompt_length + new_tokens > limit:
        raise LessonError(
            f"{repeats} repeats of {prompt_length} + {new_tokens} tokens cannot be compared; "
            f"take at least {MIN_REPEATS} repeats and at most {limit} tokens in all."
        )
    samples: dict[str, list[list[float]]] = {CACHED: [], UNCACHED: []}
    for kind in samples:
        _step_seconds(model, prompt_length, min(new_tokens, 8), kind)  # warms up
    desc = "cache on, cache off"
    for _ in tqdm(range(repeats), desc=desc, unit="pair", leave=False, ncols=80, file=sys.stdout):
        for kind, runs in samples.items():
            runs.append(_step_seconds(model, prompt_length, new_tokens, kind))
    times = {
        kind: tuple(summarize(list(step)) for step in zip(*runs, strict=True))
        for kind, runs in samples.items()
    }
    traces = {kind: traced(model, prompt_length, new_tokens, kind) for kind in samples}
    return CacheRuns(prompt_length, traces, times)


def _step_seconds(model: Model, prompt: int, new: int, kind: str) -> list[float]:
    tokens = random_tokens(model, prompt)[0].tolist()
    return [step.seconds for step in stream(model, tokens, max_new_tokens=new, ignore_eos=True, cache=kind)]


def _flops(steps: Sequence[TraceStep]) -> float:
    return float(sum(step.flops for step in steps))


@dataclass(frozen=True)
class PhasePoint:
    """One way to get the next token of the same text: what was fed, what it cost, how long it took."""

    name: str
    shape: tuple[int, int]
    point: Point

    def row(self) -> dict[str, Any]:
        """The exact numbers."""
        work = self.point.work
        return {
            "step": self.name,
            "input shape": str(self.shape),
            "FLOP": si(work.flops, ""),
            "bytes": si(work.nbytes, "B"),
            "FLOP per byte": work.flops / work.nbytes,
            "median (ms)": self.point.seconds * 1e3,
            "of matmul roof (%)": self.point.flops_share * 100,
            "of bandwidth roof (%)": self.point.bandwidth_share * 100,
        }


def same_work(
    model: Model, length: int = 256, *, repeats: int = MIN_REPEATS, roofs: Roofs | None = None
) -> list[PhasePoint]:
    """Compute the next token of one text of `length` tokens in three ways, and time each.

    As a prefill of all of it; as a decode step without a cache; as a decode step with a cache that holds all
    but the last token. All three give the same logits. Raises LessonError when `length` leaves no room.
    """
    if not 2 <= length <= model.config.max_position_embeddings:
        raise LessonError(f"length is {length}; it must be from 2 to {model.config.max_position_embeddings}.")
    roof = roof_of(model, roofs)
    known = random_tokens(model, length)
    ways = (
        ("prefill", CACHED, 0),
        ("decode, cache off", UNCACHED, 0),
        ("decode, cache on", CACHED, length - 1),
    )
    runs = [_way(model, name, known, kind, held) for name, kind, held in ways]
    timings = _in_turns(runs, max(repeats, MIN_REPEATS), model.device)
    points = []
    for (name, kind, held), timing in zip(ways, timings, strict=True):
        new, cached = length - held, kind != UNCACHED
        work = Work.of(step_costs(model.config, 1, length, new, dtype=model.dtype, cached=cached))
        points.append(PhasePoint(name, (1, new), Point(length, timing, work, roof)))
    return points


def _way(model: Model, name: str, known: torch.Tensor, kind: str, held: int) -> Callable[[], Any]:
    """The step itself, over a cache that holds the first `held` tokens each time it starts."""
    cache = new_cache(model, kind, known.shape[1])
    if held:
        prefill(model, known[:, :held], cache)
    step: Callable[..., Any] = prefill if name == "prefill" else decode_step

    def run() -> Any:
        cache.truncate(min(held, cache.length))
        return step(model, known, cache)

    return run


def _in_turns(runs: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> list[Timing]:
    """Time several things in turns, so that a disturbance meets all of them; two rounds warm up."""
    rounds = [[measure_once(run, device) for run in runs] for _ in range(repeats + 2)][2:]
    return [summarize(list(samples)) for samples in zip(*rounds, strict=True)]


def measure_once(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device waited for before and after."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def same_work_finding(points: Sequence[PhasePoint]) -> str:
    """What the three ways have in common, and what splits off."""
    whole, off, on = points
    return (
        f"The same next token, three ways. Without a cache the decode step is the prefill over again: input "
        f"{off.shape} against {whole.shape}, "
        f"{significant(off.point.work.flops / whole.point.work.flops)}× its FLOPs, "
        f"{significant(off.point.seconds / whole.point.seconds)}× its time. With the cache it is fed "
        f"{on.shape}: "
        f"{significant(whole.point.work.flops / on.point.work.flops)}× fewer FLOPs, "
        f"{significant(whole.point.seconds / on.point.seconds)}× less time, and "
        f"{significant(on.point.work.flops / on.point.work.nbytes, 2)} FLOP per byte instead of "
        f"{significant(whole.point.work.flops / whole.point.work.nbytes, 2)}."
    )


def cost_rows(config: Any, prompt: int, dtype: str = "float16") -> list[dict[str, Any]]:
    """Prefill of `prompt` tokens and the decode step after it, by the cost model."""
    steps = (
        ("prefill", (1, prompt), step_costs(config, 1, prompt, prompt, dtype=dtype)),
        ("decode", (1, 1), step_costs(config, 1, prompt + 1, dtype=dtype)),
    )
    return [
        {
            "phase": name,
            "input shape": str(shape),
            "FLOP": step.flops,
            "weight bytes": step.weight_bytes,
            "all bytes": step.bytes,
            "FLOP per byte": round(step.intensity, 2),
        }
        for name, shape, step in steps
    ]
