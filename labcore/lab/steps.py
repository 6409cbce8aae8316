"""Where a step's time goes: profiles of one model's steps, and ways to run the same step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from labcore import cache as caches
from labcore.bench.interleave import interleave
from labcore.generation import generate, warm_up
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model, Transformer
from labcore.perf.costs import step_costs
from labcore.perf.profile import Profile, profile
from labcore.perf.roofline import Roofs
from labcore.perf.timing import summarize


def step_fn(model: Model, *, held: int, new: int, kind: str = "contiguous") -> Callable[[], None]:
    """A step of `new` positions behind `held` ones, to be called again and again."""
    cache = caches.create(kind, model.config, capacity=held + new, device=model.device, dtype=model.dtype)
    tokens = torch.arange(held + new, device=model.device)[None] % model.config.vocab_size

    @torch.inference_mode()
    def run() -> None:
        cache.truncate(min(held, cache.length))
        model.transformer(tokens[:, cache.length :], cache, logits_to_keep=1)

    if kind != "none" and held:
        with torch.inference_mode():
            model.transformer(tokens[:, :held], cache, logits_to_keep=1)
    return run


def readable(model: Model) -> Model:
    """The same weights on the readable path: one PyTorch operator after another."""
    twin = Transformer.__new__(Transformer)
    twin.__dict__.update(vars(model.transformer))
    twin.fast, twin._native = False, None
    return Model(model.name, model.config, twin, model.tokenizer, model.random_weights)


def profile_steps(model: Model, roofs: Roofs, *, prompt: int = 256, held: int = 64) -> list[Profile]:
    """A prefill, and a decode step on the readable path and as the engine runs it."""
    dtype = model.dtype
    decode = step_costs(model.config, 1, held + 1, dtype=dtype)
    plain = readable(model)
    steps = {
        f"prefill of {prompt}": (
            step_fn(model, held=0, new=prompt), step_costs(model.config, 1, prompt, prompt, dtype=dtype),
        ),
        "decode, operator by operator": (step_fn(plain, held=held, new=1), decode),
    }  # fmt: skip
    if model.transformer._native:
        steps["decode, native layers"] = (step_fn(model, held=held, new=1), decode)
    return [
        profile(fn, device=model.device, label=label, costs=costs, roofs=roofs, dtype=dtype)
        for label, (fn, costs) in steps.items()
    ]


# Ways to run the same step


@dataclass(frozen=True)
class WayRun:
    """One way to run decode steps.

    warm_up_s: before the first one could run; same: the tokens are the same.
    """

    way: str
    seconds: float
    spread_s: float
    warm_up_s: float
    same: bool


def compare_ways(model: Model, *, held: int = 48, new: int = 12, repeats: int = 5) -> list[WayRun]:
    """Decode the same tokens operator by operator, compiled, as a graph (GPU), and as the engine does it.

    Seconds are medians over all decode steps but the first of each run, runs in turns.
    """
    plain = readable(model)
    prompt = [i % model.config.vocab_size for i in range(held)]
    ways: dict[str, tuple[Model, str]] = {
        "operator by operator": (plain, "eager"), "compiled": (plain, "compiled"),
    }  # fmt: skip
    if model.device.type == "cuda":
        ways["CUDA graph"] = (plain, "graph")
    if model.transformer._native:
        ways["native layers"] = (model, "eager")
    ready = {way: warm_up(one, step, context=held + new) for way, (one, step) in ways.items()}  # type: ignore[arg-type]
    runs = {
        way: partial(generate, one, prompt, max_new_tokens=new, ignore_eos=True, step=step)
        for way, (one, step) in ways.items()
    }
    samples = interleave(runs, repeats=repeats)
    base = samples["operator by operator"].results[0].tokens
    found = []
    for way, sample in samples.items():
        steps = summarize([gap for out in sample.results for gap in out.step_seconds[1:]])
        same = sample.results[0].tokens == base
        found.append(WayRun(way, steps.median_s, steps.spread_s, ready[way].seconds, same))
    return found


def way_rows(runs: list[WayRun]) -> list[dict[str, Any]]:
    """The exact numbers."""
    first = runs[0]
    return [
        {
            "decode steps": run.way,
            "step (ms)": run.seconds * 1e3,
            "spread, IQR (ms)": run.spread_s * 1e3,
            "faster": f"{significant(first.seconds / run.seconds)}×",
            "warm-up (s)": run.warm_up_s,
            "same tokens": run.same,
        }
        for run in runs
    ]


def way_finding(runs: list[WayRun]) -> str:
    """What not asking operator by operator is worth."""
    first, compiled, last = runs[0], runs[1], runs[-1]
    return (
        f"Operator by operator a step takes {as_time(first.seconds)}, compiled {as_time(compiled.seconds)} "
        f"({significant(first.seconds / compiled.seconds)}×, after a warm-up of "
        f"{significant(compiled.warm_up_s)} s), {last.way} {as_time(last.seconds)} "
        f"({significant(first.seconds / last.seconds)}×)."
    )
