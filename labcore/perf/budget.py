"""What one process may take of a machine that many share: a class on one server, several kernels on one GPU.

LABCORE_MEMORY_LIMIT: of the computer's memory; without it JupyterHub's MEM_LIMIT, which a hub sets where it
limits its learners. LABCORE_GPU_MEMORY_LIMIT: of each GPU, "10GiB" or "25%". Limits of control groups hold
besides, whoever set them; `labcore.perf.machine` reads those.
"""

from __future__ import annotations

import functools
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from labcore.errors import DeviceError

MEMORY = "LABCORE_MEMORY_LIMIT"
HUB_MEMORY = "MEM_LIMIT"
GPU_MEMORY = "LABCORE_GPU_MEMORY_LIMIT"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(iB|B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Budget:
    """Bytes that this process may hold on a device, and the variable that says so."""

    limit: int
    source: str

    def __str__(self) -> str:
        return f"the {self.limit / 1e9:.2f} GB that {self.source} allows"


def memory_budget() -> Budget | None:
    """Of the computer's memory; None where nobody set one. Raises DeviceError for what is no size."""
    for source in (MEMORY, HUB_MEMORY):
        if text := os.environ.get(source, "").strip():
            return Budget(_bytes(text, source), source)
    return None


def gpu_budget(total: int) -> Budget | None:
    """Of a GPU with `total` bytes. Raises DeviceError for what is neither a size nor a share."""
    text = os.environ.get(GPU_MEMORY, "").strip()
    if not text:
        return None
    if not text.endswith("%"):
        return Budget(min(total, _bytes(text, GPU_MEMORY)), GPU_MEMORY)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise DeviceError(f"{GPU_MEMORY}={text} is no share of a GPU; give one such as 25%, or 10GiB.")
    return Budget(int(total * share), GPU_MEMORY)


def _bytes(text: str, source: str) -> int:
    """`3GiB`, `3G` and `3072M` count in 1,024s, as JupyterHub counts; `3GB` in thousands; `3` is bytes."""
    found = _SIZE.fullmatch(text)
    if found is None or not (size := float(found[1])):
        raise DeviceError(
            f"{source}={text} is no size of memory; give one such as 3GiB or 512M, or unset it."
        )
    base = 1000 if found[2] and (found[3] or "").upper() == "B" else 1024
    return int(size * base ** _POWERS[found[2].upper()])


def resident_bytes() -> int:
    """What this process holds of the computer's memory, or the most it ever held where only that is told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def hold_to_budget(device: torch.device) -> None:
    """Have PyTorch's allocator refuse what exceeds this process's share of a GPU, whoever asks for it."""
    total = int(torch.cuda.get_device_properties(device).total_memory)
    if (budget := gpu_budget(total)) is not None:
        torch.cuda.set_per_process_memory_fraction(budget.limit / total, device)
