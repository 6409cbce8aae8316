"""How the roofs are measured: each ceiling by the plainest program that is bound by it, the best of a few.

`roofline.py` says what is kept of it. Rates are the fastest of several runs, as in STREAM (McCalpin 1995):
disturbance only ever makes a run slower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional

from labcore.errors import DeviceError, OutOfMemory
from labcore.perf import pages
from labcore.perf.dtypes import bytes_per_element
from labcore.perf.machine import available_memory, last_level_cache_bytes, within_budget
from labcore.perf.timing import measure, seconds_of, synchronize

GIB = 1 << 30
COLUMNS = 4096  # of the matrices read: the width of a 7B model
# rows, inner, columns. Larger ones first: they are the likelier winners, and the clock may stop the scan.
SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (512, 2048, 2048), (256, 4096, 4096)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (2048, 2048, 2048), (8192, 4096, 4096)),
}
_SCAN_SECONDS = 2.0  # per dtype
# A step's matrices have as many rows as it computes positions; few rows leave arithmetic units idle.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Modules with a `product` of their own, which computes few rows faster than PyTorch does. Named and not
# imported: these instruments need nothing of the engine.
WAYS = ("labcore.kernels.native.few_rows",)
_ROWS_SHAPE = {"cpu": (1024, 512), "cuda": (4096, 4096)}  # inner, columns: small enough to stay in a cache


def best_seconds(fn: Callable[[], object], device: torch.device, warmup: int = 1) -> float:
    """The fastest of five runs."""
    return measure(fn, warmup=warmup, repeats=5, device=device).best_s


def working_set(device: torch.device) -> int:
    """Bytes to read: well beyond the last cache, within an eighth of the free memory, at most 1 GiB; on a GPU
    4 GiB, since it takes a millisecond to reach its full rate.

    Raises OutOfMemory where less than 256 MiB are free.
    """
    cache = (last_level_cache_bytes() if device.type == "cpu" else None) or 64 << 20
    room = available_memory(device) // 8
    if room < 32 << 20:
        raise OutOfMemory(
            f"Only {8 * room / 2**20:.0f} MiB are free on {device}; measuring its roofs needs 256 MiB. "
            "Free some memory first."
        )
    wanted = min(max(4 * cache, 256 << 20), GIB) if device.type == "cpu" else 4 * GIB
    size = min(wanted, room)
    return size - size % (COLUMNS * 8)  # whole rows, in any format


# Arithmetic


def product(device: torch.device, dtype: str, rows: int, inner: int, columns: int) -> Callable[[], object]:
    """One matrix product to be timed, its operands made. Raises DeviceError where it cannot be done."""
    make = _PRODUCTS.get(dtype, _plain_product)
    try:
        run = make(device, dtype, rows, inner, columns)
        run()
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"{device} multiplies no matrices in {dtype} here ({reason}).") from None
    return run


def _plain_product(
    device: torch.device, dtype: str, rows: int, inner: int, columns: int
) -> Callable[[], object]:
    kind = getattr(torch, dtype)
    left = torch.randn(rows, inner, device=device).to(kind)
    right = torch.randn(columns, inner, device=device).to(kind).t()  # as torch.nn.Linear keeps it
    out = torch.empty(rows, columns, device=device, dtype=kind)
    return lambda: torch.mm(left, right, out=out)


def _int8_product(
    device: torch.device, dtype: str, rows: int, inner: int, columns: int
) -> Callable[[], object]:
    """8-bit integers, summed in 32 bits."""
    left = torch.randint(-8, 8, (rows, inner), dtype=torch.int8, device=device)
    right = torch.randint(-8, 8, (columns, inner), dtype=torch.int8, device=device).t()
    return lambda: torch._int_mm(left, right)


def _float8_product(
    device: torch.device, dtype: str, rows: int, inner: int, columns: int
) -> Callable[[], object]:
    left = torch.randn(rows, inner, device=device).to(torch.float8_e4m3fn)
    right = torch.randn(columns, inner, device=device).to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


_PRODUCTS = {"int8": _int8_product, "float8": _float8_product}


def scan(device: torch.device, dtype: str) -> tuple[float, tuple[int, int, int]]:
    """The best FLOP/s over the shapes, and the shape that reached it."""
    best = (0.0, (0, 0, 0))
    deadline = time.perf_counter() + _SCAN_SECONDS
    for shape in SHAPES["cpu" if device.type == "cpu" else "cuda"]:
        rows, inner, columns = shape
        seconds = best_seconds(product(device, dtype, *shape), device)
        best = max(best, (2 * rows * inner * columns / seconds, shape))
        if time.perf_counter() > deadline:
            break
    return best


def multiplying(device: torch.device, dtype: str) -> Callable[[], float]:
    """Measures, whenever it is called, the FLOP/s of one product of the shape that does best now.

    Raises DeviceError for a format that the device does not multiply in.
    """
    _, shape = scan(device, dtype)
    run = product(device, dtype, *shape)
    return lambda: 2 * math.prod(shape) / seconds_of(run, device)


def few_rows_shape(device: torch.device) -> tuple[int, int]:
    """(inner, columns) of the products with few rows: their matrix stays in a cache."""
    return _ROWS_SHAPE["cpu" if device.type == "cpu" else "cuda"]


def scan_rows(device: torch.device, dtype: str) -> tuple[tuple[int, float], ...]:
    """(rows, FLOP/s) of products with few rows, their matrix read out of a cache, by the fastest way.

    Formats whose kernels ask for more rows than that have fewer entries.
    """
    inner, columns = few_rows_shape(device)
    found = []
    for rows in ROWS:
        if runs := few_rows_products(device, dtype, rows, inner, columns):
            seconds = min(best_seconds(run, device, warmup=3) for run in runs)
            found.append((rows, 2 * rows * inner * columns / seconds))
    return tuple(found)


def few_rows_products(
    device: torch.device, dtype: str, rows: int, inner: int, columns: int
) -> list[Callable[[], object]]:
    """The ways there are to compute such a product, each to be timed; none where there is none."""
    shape = (device, dtype, rows, inner, columns)
    try:
        found = [product(*shape)]
    except DeviceError:
        return []
    return found + [run for name in WAYS if (run := import_module(name).product(*shape)) is not None]


# Memory


def reading(device: torch.device, size: int, dtype: str) -> Callable[[], float]:
    """Measures, whenever it is called, the bytes/s of reading so many bytes over and over, in the fastest way
    there is: what memory gives just now, in the mean, as an engine finds it.

    Raises OutOfMemory where they are not free.
    """
    if size > (free := available_memory(device)):
        raise OutOfMemory(
            f"Reading {size / 1e9:.2f} GB needs as much memory, and {free / 1e9:.2f} "
            f"GB{within_budget(device)} are free on {device}; free some first, or measure a smaller model."
        )
    rows = max(1, round(size / (COLUMNS * bytes_per_element(dtype))))
    buffer = to_read((rows, COLUMNS), getattr(torch, dtype), device)
    ways = _ways_to_read(buffer, dtype)
    seconds = [best_seconds(way, device) for way in ways]
    fastest = ways[seconds.index(min(seconds))]
    times = max(8, round(_READING_SECONDS / min(seconds)))

    def measure_again() -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            fastest()
        synchronize(device)
        return times * buffer.nbytes / (time.perf_counter() - start)

    return measure_again


_READING_SECONDS = 0.1


def to_read(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory as weights lie in it, written to: pages that never were are all the same one."""
    if device.type == "cpu":
        return pages.empty(shape, dtype).fill_(1)
    return torch.ones(shape, dtype=dtype, device=device)


def read_bandwidth(buffer: Tensor, dtype: str) -> float:
    """Bytes/s, the better of summing everything and of one matrix-vector product, as decode does."""
    return buffer.nbytes / min(best_seconds(way, buffer.device) for way in _ways_to_read(buffer, dtype))


def _ways_to_read(buffer: Tensor, dtype: str) -> list[Callable[[], Tensor]]:
    kind = getattr(torch, dtype) if bytes_per_element(dtype) >= 2 else buffer.dtype
    matrix = buffer.view(kind).view(-1, COLUMNS)
    vector = torch.ones(COLUMNS, dtype=kind, device=buffer.device)
    row = vector.view(1, -1)
    return [
        lambda: buffer.sum(),
        lambda: torch.mv(matrix, vector),
        lambda: functional.linear(row, matrix),
    ]


def copy_bandwidth(buffer: Tensor) -> float:
    """Bytes/s of copying one half of the buffer to the other, read and written bytes both counted."""
    source, target = buffer.chunk(2)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), buffer.device)


def bandwidth_by_size(buffer: Tensor, overhead_s: float) -> tuple[tuple[int, float, float], ...]:
    """(bytes, read bytes/s, copy bytes/s) of parts of the buffer, from 256 KiB up: caches show as steps.

    A small part takes hardly longer than the launch of its operation, whose time is taken off.
    """
    rows = []
    size = 256 << 10
    while size <= buffer.nbytes:
        part = buffer[: size // buffer.element_size()]
        source, target = part.chunk(2)
        calls = max(1, (4 << 20) // size)

        def read(part: Tensor = part, calls: int = calls) -> None:
            for _ in range(calls):
                part.sum()

        def copy(source: Tensor = source, target: Tensor = target, calls: int = calls) -> None:
            for _ in range(calls):
                target.copy_(source)

        rates = []
        for run in (read, copy):
            seconds = best_seconds(run, buffer.device, warmup=2) / calls
            rates.append(size / max(seconds - overhead_s, 0.25 * seconds))
        rows.append((size, rates[0], rates[1]))
        size *= 4
    return tuple(rows)


def host_bandwidth(device: torch.device, size: int = 256 << 20) -> tuple[float | None, float | None]:
    """Bytes/s from pinned host memory to the device and back; None on a CPU, which has no such way."""
    if device.type != "cuda":
        return None, None
    size = min(size, available_memory(torch.device("cpu")) // 8)
    host = torch.empty(size, dtype=torch.uint8).pin_memory()
    there = torch.empty(size, dtype=torch.uint8, device=device)
    down = best_seconds(lambda: there.copy_(host, non_blocking=True), device)
    back = best_seconds(lambda: host.copy_(there, non_blocking=True), device)
    return size / down, size / back


# Overhead


def launch_overhead(device: torch.device, operations: int = 1000) -> float:
    """Seconds per in-place addition to a single number, launched back to back."""
    number = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(operations):
            number.add_(1)

    return best_seconds(many, device) / operations


def offered(device: torch.device, names: Sequence[str]) -> tuple[str, ...]:
    """Those of these formats that the device multiplies in."""
    found = []
    for name in names:
        try:
            product(device, name, 32, 64, 64)
        except DeviceError:
            continue
        found.append(name)
    return tuple(found)
