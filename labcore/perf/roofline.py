"""This device's own roofs: what it achieves when only arithmetic, or only reading, is asked of it.

Spec sheets state peaks that no program reaches. These are the ceilings a practitioner finds: the best matmul
over a few shapes, the best way of reading memory, a copy, the time to launch an operation that does nothing.
Each is the fastest of several runs, as in STREAM (McCalpin 1995): disturbance only ever makes a run slower.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from labcore.errors import OutOfMemory
from labcore.perf.dtypes import canonical
from labcore.perf.machine import (
    Neighbours,
    available_memory,
    cache_folder,
    device_name,
    last_level_cache_bytes,
    resolve_device,
)
from labcore.perf.timing import measure

GIB = 1 << 30
_COLUMNS = 4096  # of the matrices read: the width of a 7B model
# rows, inner, columns. Larger ones first: they are the likelier winners, and the clock may stop the scan.
_SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (512, 2048, 2048), (256, 4096, 4096)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (2048, 2048, 2048), (8192, 4096, 4096)),
}
_SCAN_SECONDS = 2.5  # per dtype


@dataclass(frozen=True)
class Roofs:
    """Measured ceilings of one device.

    matmul_flops: FLOP/s by dtype; matmul_shapes: the (rows, inner, columns) that reached it. Bandwidths in
    bytes/s: read is memory to processor, copy counts bytes read plus bytes written. launch_overhead_s: time
    per operation on one number. working_set_bytes: how much was read. measured_at: ISO 8601, UTC.
    busy_cores: cores that other programs kept busy meanwhile.
    """

    device: str
    device_name: str
    threads: int
    torch_version: str
    matmul_flops: dict[str, float]
    matmul_shapes: dict[str, tuple[int, int, int]]
    read_bandwidth: float
    copy_bandwidth: float
    launch_overhead_s: float
    working_set_bytes: int
    measured_at: str
    seconds: float
    busy_cores: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Other programs left this one, on a CPU, less than three quarters of the cores it computes on."""
        spare = (os.cpu_count() or 1) - self.busy_cores
        return self.device == "cpu" and spare < 0.75 * self.threads

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


_disturbed: dict[Path, Roofs] = {}  # good for this process only


def roofs(
    device: str | torch.device = "auto", *, dtype: object | Sequence[object] = None, refresh: bool = False
) -> Roofs:
    """The device's roofs, measured now or read from the cache of an earlier measurement.

    dtype: one number format or several whose matmul is measured (default: float32 on a CPU; float32, bfloat16
    and float16 on a GPU). refresh: measure again. The cache keeps one file per device, PyTorch version,
    number of threads and formats; a measurement that other programs disturbed lasts for this process only.
    Raises DeviceError for a device or dtype that is not there, OutOfMemory when too little memory is free to
    measure in.
    """
    found = resolve_device(device)
    names = _dtype_names(found, dtype)
    path = cache_path(found, names)
    if not refresh and (cached := _load(path) or _disturbed.get(path)) is not None:
        return cached
    result = measure_roofs(found, names)
    if result.disturbed:
        _disturbed[path] = result
    else:
        _store(path, result)
    return result


def known(device: str | torch.device = "auto", *, dtype: object | Sequence[object] = None) -> Roofs | None:
    """The roofs as measured earlier, or None; measures nothing. Raises DeviceError as `roofs` does."""
    found = resolve_device(device)
    path = cache_path(found, _dtype_names(found, dtype))
    return _load(path) or _disturbed.get(path)


def cache_path(device: torch.device, dtypes: Sequence[str]) -> Path:
    """The file in the user's cache that holds this measurement."""
    parts = (device_name(device), str(device), torch.__version__, f"{torch.get_num_threads()}t", *dtypes)
    return cache_folder("roofs") / (re.sub(r"[^a-z0-9.+]+", "-", "_".join(parts).lower()) + ".json")


def measure_roofs(device: torch.device, dtypes: Sequence[str]) -> Roofs:
    """Measure all roofs of a device, without the cache. Takes a few seconds."""
    started, neighbours = time.perf_counter(), Neighbours()
    size = _working_set(device)
    best = {name: _matmul(device, getattr(torch, name)) for name in dtypes}
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    read = max(_reduction(buffer), _matrix_vector(buffer, getattr(torch, dtypes[0])))
    return Roofs(
        device=str(device),
        device_name=device_name(device),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        matmul_flops={name: rate for name, (rate, _) in best.items()},
        matmul_shapes={name: shape for name, (_, shape) in best.items()},
        read_bandwidth=read,
        copy_bandwidth=_copy(buffer),
        launch_overhead_s=_launch(device),
        working_set_bytes=size,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        busy_cores=neighbours.busy_cores(),
    )


def _dtype_names(device: torch.device, dtype: object | Sequence[object]) -> tuple[str, ...]:
    if dtype is None:
        return ("float32",) if device.type == "cpu" else ("float32", "bfloat16", "float16")
    several = dtype if isinstance(dtype, (list, tuple)) else (dtype,)
    return tuple(canonical(one) for one in several)


def _working_set(device: torch.device) -> int:
    """Bytes to read: well beyond the last cache, within an eighth of the free memory, at most 1 GiB."""
    cache = (last_level_cache_bytes() if device.type == "cpu" else None) or 64 << 20
    room = available_memory(device) // 8
    if room < 32 << 20:
        raise OutOfMemory(
            f"Only {8 * room / 2**20:.0f} MiB are free on {device}; measuring its roofs needs 256 MiB. "
            "Free some memory first."
        )
    size = min(max(4 * cache, 256 << 20), GIB, room)
    return size - size % (_COLUMNS * 8)  # whole rows, in any format


def _best_seconds(fn: Callable[[], object], device: torch.device, warmup: int = 1) -> float:
    return measure(fn, warmup=warmup, repeats=5, device=device).best_s


def _matmul(device: torch.device, dtype: torch.dtype) -> tuple[float, tuple[int, int, int]]:
    """The best FLOP/s over the scan, and the shape that reached it."""
    best = (0.0, (0, 0, 0))
    deadline = time.perf_counter() + _SCAN_SECONDS
    for shape in _SHAPES["cpu" if device.type == "cpu" else "cuda"]:
        rows, inner, columns = shape
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        seconds = _best_seconds(lambda a=left, b=right, o=out: torch.mm(a, b, out=o), device)  # type: ignore[misc]
        best = max(best, (2 * rows * inner * columns / seconds, shape))
        if time.perf_counter() > deadline:
            break
    return best


def _reduction(buffer: Tensor) -> float:
    """Bytes/s of summing everything."""
    return buffer.nbytes / _best_seconds(lambda: buffer.sum(), buffer.device)


def _matrix_vector(buffer: Tensor, dtype: torch.dtype) -> float:
    """Bytes/s of one matrix-vector product over the buffer, which is what decode does with its weights."""
    matrix = buffer.view(dtype).view(-1, _COLUMNS)
    vector = torch.ones(_COLUMNS, dtype=dtype, device=buffer.device)
    row = vector.view(1, -1)
    ways = (lambda: torch.mv(matrix, vector), lambda: functional.linear(row, matrix))
    return buffer.nbytes / min(_best_seconds(way, buffer.device) for way in ways)


def _copy(buffer: Tensor) -> float:
    """Bytes/s of copying one half of the buffer to the other, read and written bytes both counted."""
    source, target = buffer.chunk(2)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), buffer.device)


def _launch(device: torch.device, operations: int = 1000) -> float:
    """Seconds per in-place addition to a single number, launched back to back."""
    number = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(operations):
            number.add_(1)

    return _best_seconds(many, device) / operations


def _load(path: Path) -> Roofs | None:
    """The measurement in a cache file, or None where there is none or it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["matmul_shapes"] = {name: tuple(shape) for name, shape in data["matmul_shapes"].items()}
        found = Roofs(**data)
        rates = (
            *found.matmul_flops.values(),
            found.read_bandwidth,
            found.copy_bandwidth,
            found.launch_overhead_s,
        )
        sound = bool(found.matmul_flops) and all(math.isfinite(rate) and rate > 0 for rate in rates)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if sound else None


def _store(path: Path, result: Roofs) -> None:
    """Write whole or not at all: another process may be reading the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(result.to_dict(), file, indent=2)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(
            f"The measured roofs could not be kept ({error}); they will be measured again.", stacklevel=3
        )
