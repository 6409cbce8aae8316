"""Memory of the host in large pages, where the system has them to give: for what is read over and over.

Of pages of 4 KiB a core looks up a new one every 64 lines, and its prefetcher stops at each page's end:
reading weights is about a tenth slower than in pages of 2 MiB. Linux gives these on request (madvise).
"""

from __future__ import annotations

import math
import mmap
import threading
from contextlib import suppress

import torch
from torch import Tensor

CHUNK = 32 << 20  # bytes that are asked for at once; only what is written to is ever taken
SMALLEST = 16 << 10  # bytes of a tensor that is worth it
_LINE = 64  # bytes that tensors begin at multiples of

_lock = threading.Lock()
_chunk: mmap.mmap | None = None
_used = 0


def empty(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """As torch.empty on the CPU. Small ones lie side by side; memory goes back when the last of them is gone.

    Raises OSError where the system has none left.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    if size >= CHUNK:
        return _view(_mapped(size), 0, shape, dtype)
    with _lock:
        return _view(*_room(size), shape, dtype)


def like(tensor: Tensor) -> Tensor:
    """A copy in such memory; the tensor itself where it is not on the CPU."""
    if tensor.device.type != "cpu":
        return tensor
    return empty(tensor.shape, tensor.dtype).copy_(tensor)


def _room(size: int) -> tuple[mmap.mmap, int]:
    """A place in the chunk that is being filled, or in a new one."""
    global _chunk, _used
    if _chunk is None or _used + size > CHUNK:
        _chunk, _used = _mapped(CHUNK), 0
    at, _used = _used, -(-(_used + size) // _LINE) * _LINE
    return _chunk, at


def _mapped(size: int) -> mmap.mmap:
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them gives small ones
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


def _view(memory: mmap.mmap, at: int, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=at).view(shape)
