"""Memory that runs out in the middle of a step: told as a sentence, and the engine goes on serving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from labcore.errors import OutOfMemory
from labcore.model import Model
from labcore.perf.machine import available_memory, within_budget

# What PyTorch's CPU allocator says; a GPU's raises torch.OutOfMemoryError.
_SAYINGS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


@contextmanager
def memory_told(model: Model) -> Iterator[None]:
    """Turn a failed allocation into OutOfMemory, and hand back what was reserved for it.

    Raised outside of the handler: an exception that remembers the failed one would keep its frames alive, and
    with them every tensor of the step.
    """
    failed = ""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        failed = _first_line(error)
        if not failed:
            raise
    if failed:
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(
            f"Memory ran out on {model.device} ({failed}); {available_memory(model.device) / 1e9:.1f} GB"
            f"{within_budget(model.device)} are free again: ask for fewer or shorter sequences, "
            "or for a smaller cache such as cache='int8'."
        )


def _first_line(error: Exception) -> str:
    """The failure in one line; empty when it is not about memory."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    about_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return text if about_memory or any(saying in str(error) for saying in _SAYINGS) else ""
