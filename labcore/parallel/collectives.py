"""The two collectives of tensor parallelism, with a clock that can be read.

`record_function` names them in a profile; the clock adds up their seconds, calls and bytes while it is on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from labcore.perf.timing import synchronize


@dataclass
class Clock:
    """Seconds this rank spent in collectives, how many they were, and the bytes it put into them."""

    seconds: float = 0.0
    calls: int = 0
    bytes: int = 0


_running: Clock | None = None


@contextmanager
def clocked() -> Iterator[Clock]:
    """Count the collectives of this process inside of the block."""
    global _running
    before, _running = _running, Clock()
    try:
        yield _running
    finally:
        _running = before


def all_reduce(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of all ranks' x, in place, on every rank."""
    with record_function("labcore::all_reduce"):
        _timed(lambda: dist.all_reduce(x, group=group), x)
    return x


def all_gather_last(x: Tensor, sizes: list[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """All ranks' x side by side along the last dimension, which has sizes[rank] numbers on each rank."""
    widest = max(sizes)
    padded = torch.nn.functional.pad(x, (0, widest - x.shape[-1])).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    with record_function("labcore::all_gather"):
        _timed(lambda: dist.all_gather(parts, padded, group=group), padded)
    return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)


def _timed(collective: Callable[[], object], x: Tensor) -> None:
    if _running is None:
        collective()
        return
    synchronize(x.device)  # what came before is not communication
    start = time.perf_counter()
    collective()
    synchronize(x.device)
    _running.seconds += time.perf_counter() - start
    _running.calls += 1
    _running.bytes += x.nbytes
