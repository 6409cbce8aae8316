"""The command `labcore bench serving`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.options import Device, Dtype, Out, Peers, Source, keep, packages, peers_named
from labcore.shares import doubt_of, share_text
from labcore.working import working


def serving(
    model: Source = "shape:smollm2-135m",
    against: Peers = None,
    workload: Annotated[
        list[str] | None, typer.Option(help="uniform, exponential, constant, long. May be given again.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests, all there at the start.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once, and of a static batch.")] = 16,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a step; default: 512 on a CPU, 8192 on a GPU.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, interleaved.")] = 3,
    seed: Annotated[int, typer.Option(help="Of lengths and tokens.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """One list of requests through continuous and static batching, and through peers: tokens a second."""
    from labcore.bench import record
    from labcore.bench.serving import USUAL, bench_serving
    from labcore.perf.machine import resolve_device

    console = Console()
    peers = peers_named(against) or []
    with working(console, "loading") as say:
        result = bench_serving(
            model,
            peers,
            workloads=workload or USUAL,
            requests=requests,
            batch=batch,
            token_budget=token_budget,
            repeats=repeats,
            seed=seed,
            device=device,
            dtype=dtype,
            progress=say,
        )
    data = record.record("serving", result, resolve_device(device), packages(peers))
    console.print(table(data))
    keep(console, out, data)


def table(data: dict[str, Any]) -> Table:
    """A row for each contestant on each workload."""
    result, machine = data["result"], data["machine"]
    shown = Table(
        title=f"{result['model']} {result['dtype']} on {machine['name']}, {machine['threads']} threads: "
        f"{result['requests']} requests, {result['batch']} at once, median of {result['repeats']} runs",
        caption="time: over our continuous batching's. scheduling: median share of a step beside the model. "
        "roofline: share of it that the steps would take if each only read its weights and cache at "
        f"{result['bandwidth'] / 1e9:,.0f} GB/s or only multiplied at {result['flops'] / 1e12:,.1f} TFLOP/s."
        + doubt_of(row["roofline"] for row in result["rows"]),
    )
    for name in ("workload", "engine", "s", "IQR s", "output tok/s", "time", "scheduling", "roofline"):
        shown.add_column(name, justify="left" if name in ("workload", "engine") else "right")
    for row in result["rows"]:
        shown.add_row(
            row["workload"],
            row["engine"],
            f"{row['seconds']:.1f}",
            f"{row['spread_s']:.2f}",
            f"{row['tokens_per_s']:.1f}",
            f"{row['over']:.2f} ×",
            "–" if row["scheduling"] is None else f"{row['scheduling']:.1%}",
            share_text(row["roofline"], 1),
        )
    return shown
