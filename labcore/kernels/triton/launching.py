"""How kernels are launched: on how many processors, and whether before the one ahead of them has ended.

Programmatic dependent launch hides the microsecond that lies between two launches. A kernel that begins early
may do at once what depends on nothing, and must wait before it reads what others wrote, and before it writes
where others may still read.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; 1 where an interpreter runs one program after the other."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of fast memory that one program may have; no bound where an interpreter runs it."""
    if device.type != "cuda":
        return 1 << 62
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 << 10))


@cache
def early(device: torch.device) -> bool:
    """Whether this GPU can launch early: Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def options(device: torch.device) -> dict[str, Any]:
    """What Triton is told at such a launch."""
    return {"launch_pdl": True} if early(device) else {}
