"""What working together costs: an all-reduce by its size, a step by its number of ranks, in real processes.

The functions with a leading underscore run inside of the workers; the others are asked for from outside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labcore import cache as caches
from labcore.config import ModelConfig
from labcore.errors import ParallelError
from labcore.model import Model, Transformer, load
from labcore.model.device import resolve_dtype
from labcore.parallel.collectives import all_reduce, clocked
from labcore.parallel.shard import shard
from labcore.parallel.workers import Workers
from labcore.perf.costs import ring_bytes
from labcore.perf.profile import Profile, profile
from labcore.perf.roofline import Roofs
from labcore.perf.timing import summarize, synchronize

WARMUP = 3
SIZES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)


@dataclass(frozen=True)
class AllReduceTime:
    """One size. Seconds: of the slowest rank, median and interquartile range over the repeats.

    bus_bandwidth: 2 (R - 1) / R * bytes / seconds, what a link carries in a ring, as NCCL's tests state it.
    """

    bytes: int
    ranks: int
    seconds: float
    spread_s: float

    @property
    def bus_bandwidth(self) -> float:
        """Bytes/s; 0 for one rank, which talks to nobody."""
        return ring_bytes(self.bytes, self.ranks) / self.seconds


@dataclass(frozen=True)
class StepOnRanks:
    """One step of a model split over so many ranks. Seconds of the slowest rank.

    communication_s: spent in collectives, waiting for the others included; calls and bytes: of one rank.
    """

    ranks: int
    batch: int
    context: int
    new_tokens: int
    step_s: float
    spread_s: float
    communication_s: float
    calls: int
    bytes: int

    @property
    def communication_share(self) -> float:
        """Of the step's time."""
        return self.communication_s / self.step_s

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"communication_share": self.communication_share}


def all_reduce_times(
    workers: Workers, sizes: Sequence[int] = SIZES, *, repeats: int = 9
) -> list[AllReduceTime]:
    """Seconds of an all-reduce of so many bytes of fp32. Raises ParallelError for sizes below 4 bytes."""
    if not sizes or min(sizes) < 4:
        raise ParallelError(
            f"An all-reduce of {min(sizes, default=0)} bytes holds no number; take 4 or more."
        )
    by_rank = workers.run(_all_reduce_times, list(sizes), repeats)
    rows = []
    for index, size in enumerate(sizes):
        slowest = [max(times) for times in zip(*(samples[index] for samples in by_rank), strict=True)]
        timing = summarize(slowest)
        rows.append(AllReduceTime(size - size % 4, workers.ranks, timing.median_s, timing.spread_s))
    return rows


def _all_reduce_times(rank: int, sizes: list[int], repeats: int) -> list[list[float]]:
    device = _device(rank)
    found = []
    for size in sizes:
        x = torch.ones(size // 4, device=device)
        samples = []
        for repeat in range(WARMUP + repeats):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(x)
            synchronize(device)
            samples.append(time.perf_counter() - start)
            if repeat == 0 and float(x[0]) != dist.get_world_size():
                raise ParallelError(f"An all-reduce of ones gave {float(x[0])}.")
            x.fill_(1.0)
        found.append(samples[WARMUP:])
    return found


def step_times(
    workers: Workers,
    source: str | ModelConfig,
    *,
    batch: int = 1,
    context: int = 64,
    new_tokens: int = 1,
    dtype: str = "float32",
    repeats: int = 9,
) -> StepOnRanks:
    """A step of `new_tokens` positions of a model split over all workers; context: once the step is done.

    source: what `labcore.load` takes, or a configuration, for random weights. Every rank loads the model
    whole, then keeps its part: made for models that one process can hold. Raises ParallelError where a rank
    fails (a model that so many ranks cannot share, for one).
    """
    by_rank = workers.run(_step_times, source, batch, context, new_tokens, dtype, repeats)
    steps = [max(seconds) for seconds in zip(*(found["seconds"] for found in by_rank), strict=True)]
    timing = summarize(steps)
    return StepOnRanks(
        ranks=workers.ranks,
        batch=batch,
        context=context,
        new_tokens=new_tokens,
        step_s=timing.median_s,
        spread_s=timing.spread_s,
        communication_s=statistics.median(statistics.median(found["communication"]) for found in by_rank),
        calls=by_rank[0]["calls"],
        bytes=by_rank[0]["bytes"],
    )


@torch.inference_mode()
def _step_times(
    rank: int, source: str | ModelConfig, batch: int, context: int, new: int, dtype: str, repeats: int
) -> dict[str, Any]:
    device = _device(rank)
    model = _part(source, device, dtype)
    cache = _filled(model, batch, context - new, context)
    tokens = torch.zeros(batch, new, dtype=torch.int64, device=device)
    found: dict[str, Any] = {"seconds": [], "communication": []}
    for repeat in range(WARMUP + repeats):
        cache.truncate(context - new)
        dist.barrier()
        synchronize(device)
        start = time.perf_counter()
        with clocked() as clock:
            model.transformer(tokens, cache, logits_to_keep=1)
        synchronize(device)
        if repeat >= WARMUP:
            found["seconds"].append(time.perf_counter() - start)
            found["communication"].append(clock.seconds)
    return found | {"calls": clock.calls, "bytes": clock.bytes}


def profiled_all_reduce(rank: int, size: int, roofs: Roofs) -> Profile:
    """Run inside of the workers: a profile of one all-reduce of `size` bytes, alike on every rank."""
    x = torch.ones(size // 4, device=_device(rank))
    label = f"an all-reduce of {size / 1e6:.3g} MB over {dist.get_world_size()} ranks"
    return profile(lambda: all_reduce(x), device=x.device, label=label, roofs=roofs)


def logits_on_ranks(workers: Workers, source: str, tokens: Tensor, *, dtype: str = "float32") -> Tensor:
    """Logits (B, n, vocab) fp32 of all positions: all but the last as a prompt, the last as a decode step."""
    answers: list[Tensor] = workers.run(_logits, source, tokens, dtype)
    return answers[0]


@torch.inference_mode()
def _logits(rank: int, source: str, tokens: Tensor, dtype: str) -> Tensor:
    device = _device(rank)
    model = _part(source, device, dtype)
    tokens = tokens.to(device)
    cache = _filled(model, tokens.shape[0], 0, tokens.shape[1])
    prompt = model.transformer(tokens[:, :-1], cache)
    last = model.transformer(tokens[:, -1:], cache)
    return torch.cat([prompt, last], dim=1).float().cpu()


def cache_bytes_on_ranks(workers: Workers, source: str, capacity: int) -> list[int]:
    """Bytes that each rank's contiguous cache takes."""
    return workers.run(_cache_bytes, source, capacity)


def _cache_bytes(rank: int, source: str, capacity: int) -> int:
    return _filled(_part(source, _device(rank), "float32"), 1, 0, capacity).nbytes


def _device(rank: int) -> torch.device:
    return torch.device("cuda", rank) if dist.get_backend() == "nccl" else torch.device("cpu")


_parts: dict[tuple[object, str], Model] = {}  # of this worker: loading takes longer than a step


def _part(source: str | ModelConfig, device: torch.device, dtype: str) -> Model:
    """This rank's part of a model. One rank alone has the whole, on the same readable path."""
    key = (source, dtype)
    if key not in _parts:
        _parts.clear()
        _parts[key] = shard(_whole(source, device, dtype))
    return _parts[key]


def _whole(source: str | ModelConfig, device: torch.device, dtype: str) -> Model:
    if isinstance(source, str):
        return load(source, device=device, dtype=dtype, progress=False)
    torch.manual_seed(0)  # the same weights on every rank
    transformer = Transformer(source).to(device, resolve_dtype(dtype, device)).eval().requires_grad_(False)
    transformer.reset_rope()
    return Model("random", source, transformer, None, random_weights=True)


@torch.inference_mode()
def _filled(model: Model, batch: int, held: int, room: int) -> caches.KVCache:
    """A contiguous cache that holds so many random positions."""
    cache = caches.create(
        "contiguous", model.config, batch_size=batch, capacity=room, device=model.device, dtype=model.dtype
    )
    config = model.config
    if held:
        cache.begin(held)
        for layer in range(config.num_hidden_layers):
            shape = (batch, config.num_key_value_heads, held, config.head_dim)
            cache.update(layer, *torch.randn(2, *shape, device=model.device, dtype=model.dtype))
        cache.commit()
    return cache


__all__ = [
    "AllReduceTime",
    "StepOnRanks",
    "all_reduce_times",
    "cache_bytes_on_ranks",
    "logits_on_ranks",
    "profiled_all_reduce",
    "step_times",
]
