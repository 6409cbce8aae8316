"""This machine's own roofs, measured in the lesson, beside its data sheet where one is known."""

from __future__ import annotations

from typing import Any

from labcore.catalog import GPU, gpu_reported_as
from labcore.lab import session as sessions
from labcore.lab.display import note
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.perf import roofline
from labcore.perf.roofline import Roofs
from labcore.shares import share_text


def measure_roofs() -> tuple[Roofs, GPU | None]:
    """Measure them anew for the running lesson, which goes on with them; and the device's data sheet."""
    session = sessions.current()
    note("Measuring matrix products, memory and launches; some ten seconds …", "quiet")
    found = roofline.roofs(session.device, refresh=True)
    session.__dict__["roofs"] = found  # what the session keeps of an earlier measurement gives way
    return found, gpu_reported_as(found.device_name)


def measured_roof_rows(roofs: Roofs, spec: GPU | None = None) -> list[dict[str, Any]]:
    """Every roof, with the data sheet's value and the share of it that can be had."""
    rows = [
        _row(f"matrix products in {dtype}", rate, spec.flops.get(dtype) if spec else None, "FLOP/s")
        for dtype, rate in roofs.matmul_flops.items()
    ]
    rows.append(_row("reading memory", roofs.read_bandwidth, spec.bandwidth if spec else None, "B/s"))
    rows.append(_row("copying memory", roofs.copy_bandwidth, spec.bandwidth if spec else None, "B/s"))
    for name, rate in (("to the device", roofs.host_to_device), ("back to the host", roofs.device_to_host)):
        if rate is not None:
            rows.append(_row(f"copying {name}", rate, None, "B/s"))
    rows.append({"roof": "launching one operation", "measured": as_time(roofs.launch_overhead_s)})
    return rows


def _row(roof: str, rate: float, stated: float | None, unit: str) -> dict[str, Any]:
    return {
        "roof": roof,
        "measured": si(rate, unit),
        "data sheet": si(stated, unit) if stated else None,
        "share": share_text(rate / stated) if stated else None,
    }


def measured_roof_finding(roofs: Roofs, spec: GPU | None = None) -> str:
    """Ridge, caches, and where the data sheet is from."""
    dtype, rate = next(iter(roofs.matmul_flops.items()))
    fastest = max(read for _, read, _ in roofs.bandwidth_by_size)
    told = (
        f"{roofs.device_name}, {roofs.threads} threads, measured in {significant(roofs.seconds)} s. Ridge in "
        f"{dtype}: {significant(rate / roofs.read_bandwidth)} FLOP/byte. What fits the caches is read up to "
        f"{significant(fastest / roofs.read_bandwidth)}× as fast as memory."
    )
    if roofs.disturbed:
        told += f" Other programs kept {significant(roofs.busy_cores, 2)} cores busy meanwhile."
    if spec is None:
        return f"{told} The catalogue has no data sheet under this name; the measured roofs are enough."
    return f"{told} Dashed: {spec.source}; on a CPU that is the whole socket."


def size_rows(roofs: Roofs) -> list[dict[str, Any]]:
    """Bandwidth by working set."""
    return [
        {"working set": f"{size / 2**20:g} MiB", "read (GB/s)": read / 1e9, "copy (GB/s)": copy / 1e9}
        for size, read, copy in roofs.bandwidth_by_size
    ]


def row_rows(roofs: Roofs) -> list[dict[str, Any]]:
    """Arithmetic by the rows of the product, GFLOP/s."""
    found: dict[int, dict[str, Any]] = {}
    for dtype, points in roofs.matmul_by_rows.items():
        for rows, rate in points:
            found.setdefault(rows, {"rows": rows})[f"{dtype} (GFLOP/s)"] = rate / 1e9
    return [found[rows] for rows in sorted(found)]
