"""This device's own roofs: what it achieves when only arithmetic, or only reading, is asked of it.

Spec sheets state peaks that no program reaches. These are the ceilings a practitioner finds: the best matmul
over a scan of shapes, the best way of reading memory, a copy, both by the size of what is read, the link to
the host, the time to launch an operation that does nothing. `roof_measuring.py` measures them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from labcore import atomic
from labcore.perf import roof_measuring as measuring
from labcore.perf.dtypes import canonical
from labcore.perf.machine import Neighbours, cache_folder, device_name, resolve_device

_FORMAT = "3"  # of the cache file: changes with what is measured
# What is multiplied in unless asked otherwise, as far as the device offers it.
_DEFAULT = {
    "cpu": ("float32", "bfloat16", "int8"),
    "mps": ("float32", "float16"),
    "cuda": ("float32", "bfloat16", "float16", "int8", "float8"),
}


@dataclass(frozen=True)
class Roofs:
    """Measured ceilings of one device.

    matmul_flops: FLOP/s by dtype; matmul_shapes: the (rows, inner, columns) that reached it; matmul_by_rows:
    (rows, FLOP/s) of products with so few rows, by dtype. Bandwidths in bytes/s: read is memory to processor,
    copy counts bytes read plus bytes written; bandwidth_by_size: (bytes, read, copy) by working set.
    host_to_device, device_to_host: over the link to a GPU, from pinned memory; None on a CPU.
    launch_overhead_s: time per operation on one number. working_set_bytes: how much was read for the
    bandwidths. measured_at: ISO 8601, UTC. busy_cores: cores that other programs kept busy meanwhile.
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
    matmul_by_rows: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    bandwidth_by_size: tuple[tuple[int, float, float], ...] = ()
    host_to_device: float | None = None
    device_to_host: float | None = None

    def read_bandwidth_at(self, size: int) -> float:
        """Bytes/s of reading a working set of so many bytes again and again, between the measured sizes."""
        points = [(bytes_, read) for bytes_, read, _ in self.bandwidth_by_size]
        return between(points, size) if points else self.read_bandwidth

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

    dtype: one number format or several whose matmul is measured (default: float32, bfloat16 and int8 on a
    CPU; float16 and float8 beside them on a GPU; what the device does not offer is left out). refresh:
    measure again. The cache keeps one file per device, PyTorch version, number of threads and formats; a
    measurement that other programs disturbed lasts for this process only.
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
    threads = f"{torch.get_num_threads()}t"
    parts = (_FORMAT, device_name(device), str(device), torch.__version__, threads, *dtypes)
    return cache_folder("roofs") / (re.sub(r"[^a-z0-9.+]+", "-", "_".join(parts).lower()) + ".json")


def measure_roofs(device: torch.device, dtypes: Sequence[str]) -> Roofs:
    """Measure all roofs of a device, without the cache. Takes some ten seconds.

    Raises DeviceError for a format that the device does not multiply in.
    """
    started, neighbours = time.perf_counter(), Neighbours()
    size = measuring.working_set(device)
    best = {name: measuring.scan(device, name) for name in dtypes}
    by_rows = {name: measuring.scan_rows(device, name) for name in dtypes}
    overhead = measuring.launch_overhead(device)
    buffer = measuring.to_read((size // 4,), torch.float32, device)
    down, back = measuring.host_bandwidth(device)
    return Roofs(
        device=str(device),
        device_name=device_name(device),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        matmul_flops={name: rate for name, (rate, _) in best.items()},
        matmul_shapes={name: shape for name, (_, shape) in best.items()},
        read_bandwidth=measuring.read_bandwidth(buffer, dtypes[0]),
        copy_bandwidth=measuring.copy_bandwidth(buffer),
        launch_overhead_s=overhead,
        working_set_bytes=size,
        matmul_by_rows=by_rows,
        bandwidth_by_size=measuring.bandwidth_by_size(buffer, overhead),
        host_to_device=down,
        device_to_host=back,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        busy_cores=neighbours.busy_cores(),
    )


def between(points: Sequence[tuple[int, float]], at: float) -> float:
    """The rate at a size, linear in log(size) between measured points (size, rate), level beyond them."""
    if at <= points[0][0]:
        return points[0][1]
    for (low, slow), (high, fast) in itertools.pairwise(points):
        if at <= high:
            share = math.log(at / low) / math.log(high / low)
            return slow + share * (fast - slow)
    return points[-1][1]


def _dtype_names(device: torch.device, dtype: object | Sequence[object]) -> tuple[str, ...]:
    if dtype is None:
        return measuring.offered(device, _DEFAULT[device.type])
    several = dtype if isinstance(dtype, (list, tuple)) else (dtype,)
    return tuple(canonical(one) for one in several)


def _load(path: Path) -> Roofs | None:
    """The measurement in a cache file, or None where there is none or it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["matmul_shapes"] = {name: tuple(shape) for name, shape in data["matmul_shapes"].items()}
        rows = data.get("matmul_by_rows", {}).items()
        data["matmul_by_rows"] = {name: tuple(map(tuple, points)) for name, points in rows}
        data["bandwidth_by_size"] = tuple(map(tuple, data.get("bandwidth_by_size", ())))
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
        atomic.write_text(path, json.dumps(result.to_dict(), indent=2))
    except OSError as error:
        warnings.warn(
            f"The measured roofs could not be kept ({error}); they will be measured again.", stacklevel=3
        )
