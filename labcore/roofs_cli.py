"""`labcore roofs`: what this machine can do at best, beside what its data sheet says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from labcore.shares import DOUBT, is_trusted, share_text
from labcore.working import working

if TYPE_CHECKING:
    from labcore.catalog import GPU
    from labcore.perf import Roofs

ABOVE_SHEET = (
    f"{DOUBT}: more than the data sheet states, also when it was measured again; one of the two is wrong: "
    "shares of such a roof cannot be trusted."
)


def roofs(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    refresh: Annotated[bool, typer.Option(help="Measure again, whatever was measured before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Measure matrix products, memory, launches and the link to the host; kept until --refresh."""
    from labcore.catalog import gpu_reported_as
    from labcore.perf import roofs as measured

    console = Console()
    with working(Console(stderr=True), "measuring, some ten seconds") as say:
        found = measured(device, refresh=refresh)
        spec = gpu_reported_as(found.device_name)
        if not (refresh or all(map(is_trusted, _shares(found, spec)))):
            say("more than the data sheet states: measuring again")
            found = measured(device, refresh=True)
    trusted = all(map(is_trusted, _shares(found, spec)))
    if as_json:
        print(json.dumps(found.to_dict() | {"trusted": trusted}, indent=2))
        return
    for table in (_peaks(found, spec), _by_size(found), _by_rows(found)):
        console.print(table)
    sheet = f"Data sheet: {spec.source}." if spec else "No data sheet under this name in the catalogue."
    console.print(f"Measured {found.measured_at} in {found.seconds:.1f} s. {sheet}", highlight=False)
    if not trusted:
        console.print(ABOVE_SHEET, style="yellow", highlight=False)


def _shares(found: Roofs, spec: GPU | None) -> list[float]:
    """What is measured of each rate that the data sheet states."""
    if spec is None:
        return []
    rates = [(rate, spec.flops.get(name)) for name, rate in found.matmul_flops.items()]
    rates += [(found.read_bandwidth, spec.bandwidth), (found.copy_bandwidth, spec.bandwidth)]
    return [rate / stated for rate, stated in rates if stated]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right")
    return table


def _peaks(found: Roofs, spec: GPU | None) -> Table:
    table = _table(f"{found.device_name}, {found.threads} threads", "roof", "measured", "data sheet", "share")
    rows = [
        (f"matmul {name}", rate, spec.flops.get(name) if spec else None, 1e9, "GFLOP/s")
        for name, rate in found.matmul_flops.items()
    ]
    stated = spec.bandwidth if spec else None
    rows += [("read", found.read_bandwidth, stated, 1e9, "GB/s")]
    rows += [("copy (read + written)", found.copy_bandwidth, stated, 1e9, "GB/s")]
    for name, link in (("host to device", found.host_to_device), ("device to host", found.device_to_host)):
        if link is not None:
            rows.append((name, link, None, 1e9, "GB/s"))
    for name, rate, sheet, scale, unit in rows:
        beside = (f"{sheet / scale:,.0f} {unit}", share_text(rate / sheet)) if sheet else ("–", "–")
        table.add_row(name, f"{rate / scale:,.1f} {unit}", *beside)
    table.add_row("launch of one operation", f"{found.launch_overhead_s * 1e6:.2f} µs", "–", "–")
    return table


def _by_size(found: Roofs) -> Table:
    table = _table("Memory, by the size of what is used again and again", "working set", "read", "copy")
    for size, read, copy in found.bandwidth_by_size:
        table.add_row(f"{size / 2**20:g} MiB", f"{read / 1e9:,.1f} GB/s", f"{copy / 1e9:,.1f} GB/s")
    return table


def _by_rows(found: Roofs) -> Table:
    table = _table("Products, by their number of rows (GFLOP/s)", "rows", *found.matmul_by_rows)
    rates = {name: dict(points) for name, points in found.matmul_by_rows.items()}
    for rows in sorted({rows for points in rates.values() for rows in points}):
        cells = [f"{points[rows] / 1e9:,.1f}" if rows in points else "–" for points in rates.values()]
        table.add_row(str(rows), *cells)
    return table
