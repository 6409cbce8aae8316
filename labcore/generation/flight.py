"""Steps that are launched before the one ahead of them was read, so that a GPU never waits for the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Landing:
    """What a step will have drawn, (B,) int64 on the device, and the moment at which the host has it."""

    def __init__(self, chosen: Tensor) -> None:
        self._tokens = chosen
        if chosen.is_cuda:
            self._tokens = torch.empty(chosen.shape, dtype=chosen.dtype, pin_memory=True)
            self._tokens.copy_(chosen, non_blocking=True)
        self.landed = mark(chosen.device)

    def tokens(self) -> list[int]:
        """Waits for them."""
        if isinstance(self.landed, torch.cuda.Event):
            self.landed.synchronize()
        found: list[int] = self._tokens.tolist()
        return found


def mark(device: torch.device) -> Any:
    """This place in the device's work: a GPU's event, or the time where nothing runs behind the host."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(earlier: Any, later: Any) -> float:
    """Of two marks that the device has passed."""
    if isinstance(earlier, torch.cuda.Event):
        return float(earlier.elapsed_time(later)) / 1e3
    return float(later - earlier)


def one_ahead(
    launch: Callable[[int], Tensor], steps: range, device: torch.device
) -> Iterator[tuple[int, list[int], float]]:
    """(index, tokens, seconds since the step before) of each step, the next one launched already.

    Who stops early has had one step launched for nothing.
    """
    before, flying = mark(device), None
    for index in steps:
        landing = Landing(launch(index))
        if flying is not None:
            tokens = flying.tokens()
            yield index - 1, tokens, seconds_between(before, flying.landed)
            before = flying.landed
        flying = landing
    if flying is not None:
        tokens = flying.tokens()
        yield steps[-1], tokens, seconds_between(before, flying.landed)
