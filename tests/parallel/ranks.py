"""Functions that the tests run inside of worker processes."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist


def total(rank: int, numbers: list[float]) -> list[float]:
    """The sum over ranks of numbers times rank + 1."""
    x = torch.tensor(numbers) * (rank + 1)
    dist.all_reduce(x)
    return x.tolist()


def fail_while_others_wait(rank: int, how: str) -> None:
    """The last rank fails; the others stand in an all-reduce."""
    if rank == dist.get_world_size() - 1:
        time.sleep(0.5)
        if how == "raise":
            raise ValueError("a made-up mistake")
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1000))


def sleep(rank: int, seconds: float) -> None:
    """Keep busy."""
    time.sleep(seconds)


def number(rank: int) -> int:
    """Which one this is."""
    return rank
