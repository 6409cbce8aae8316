"""How decode steps are run: eagerly, compiled or as CUDA graphs; and all of it made ready beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from labcore.cache import ContiguousCache, KVCache, create
from labcore.errors import ConfigError, DeviceError, NotSupported
from labcore.generation import compiled, cuda_graph
from labcore.generation.static_step import SHORTEST
from labcore.model import Model

StepKind = Literal["eager", "compiled", "graph"]
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class WarmUp:
    """What was made ready. buckets: how many positions the prepared steps span; seconds: what it took.

    step: as asked for, or "eager" where nothing could be compiled.
    """

    step: StepKind
    batch: int
    buckets: tuple[int, ...]
    seconds: float


def ensure_step(step: str, model: Model) -> None:
    """Raises ConfigError for a kind of step that there is not, DeviceError for a CUDA graph without CUDA."""
    if step not in get_args(StepKind):
        raise ConfigError(f"There is no step {step!r}; choose one of {', '.join(get_args(StepKind))}.")
    if step == "graph" and not _has_graphs(model.device):
        raise DeviceError(
            f"step='graph' records CUDA graphs and model {model.name!r} is on {model.device}; "
            "step='compiled' speeds up decoding there."
        )


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def room_for(step: str, positions: int) -> int:
    """The capacity to reserve for so many positions: compiled steps and graphs span whole buckets."""
    if step == "compiled":
        # One more than is ever spanned: a span to a store's very end would be a layout, and a program, apart.
        return compiled.bucket_for(positions) + 1
    return cuda_graph.bucket_for(positions) if step == "graph" else positions


def decode_with(step: str, model: Model, cache: KVCache, eager: Run) -> Run:
    """What makes the decode steps over this empty cache. eager: the plain way to make one.

    Raises NotSupported for a kind of cache that only plain steps can use.
    """
    if step == "eager":
        return eager
    if type(cache) is not ContiguousCache:
        raise NotSupported(
            f"step={step!r} writes into a contiguous cache and this one is {cache.kind}; "
            "leave out cache=… or use step='eager'."
        )
    if step == "graph":
        return cuda_graph.GraphSteps(model, cache, eager)
    return compiled.CompiledSteps(model, cache, eager)


def warm_up(model: Model, step: StepKind = "compiled", batch: int = 1, context: int = 256) -> WarmUp:
    """Make ready what generations of this batch size, up to `context` positions long, would else wait for.

    Raises ConfigError, DeviceError as `generate` does, and ConfigError for a batch or context below 1.
    """
    ensure_step(step, model)
    if batch < 1 or context < 1:
        raise ConfigError(f"warm_up was asked for batch {batch} and context {context}; both are at least 1.")
    start = time.perf_counter()
    if step == "eager":
        return WarmUp("eager", batch, (), 0.0)
    cache = create(
        "contiguous", model.config, batch_size=batch, capacity=room_for(step, context),
        device=model.device, dtype=model.dtype,
    )  # fmt: skip
    assert isinstance(cache, ContiguousCache)
    buckets = _buckets(step, context)
    for store in cache.store:
        store.zero_()  # no prompt is computed: as if there had been one of zeros
    ready = _run_each(step, model, cache, buckets)
    return WarmUp(step if ready else "eager", batch, buckets if ready else (), time.perf_counter() - start)


def _buckets(step: StepKind, context: int) -> tuple[int, ...]:
    """The buckets to run through. A compiled program serves all of them, so that two show whether it does."""
    if step == "compiled":
        return tuple(sorted({SHORTEST, compiled.bucket_for(context)}))
    sizes = range((cuda_graph.bucket_for(context) // SHORTEST).bit_length())
    return tuple(SHORTEST << n for n in sizes)


def _run_each(step: StepKind, model: Model, cache: ContiguousCache, buckets: tuple[int, ...]) -> bool:
    """One step at the end of each bucket; whether they were run the way that was asked for."""

    def not_ready(known: Tensor) -> Tensor:
        return torch.zeros(0)

    if step == "graph":
        run: Run = cuda_graph.GraphSteps(model, cache, not_ready)
    else:
        run = compiled.CompiledSteps(model, cache, not_ready, quiet=True)
    known = torch.zeros(cache.batch_size, buckets[-1], dtype=torch.int64, device=model.device)
    done = []
    for bucket in buckets:
        cache._length = bucket - 1
        done.append(run(known[:, :bucket]).numel())
    return all(done)
