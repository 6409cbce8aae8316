"""The command `labcore bench prefill`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.options import Device, Dtype, OptionalSource, Out, Peers, keep, packages, peers_named
from labcore.shares import doubt_of, share_text
from labcore.working import working


def prefill(
    model: OptionalSource = None,
    against: Peers = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Length of a prompt; default: 128, 512, 2048, on a GPU 512, 4096. Again."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each engine, interleaved.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Prompts processed at once, by length: tokens a second beside peers and the roof of matrix products."""
    import labcore
    from labcore.bench import record
    from labcore.bench.prefill import bench_prefill
    from labcore.bench.usual import usual_model

    console = Console()
    peers = peers_named(against) or []
    with working(console, "loading") as say:
        loaded = labcore.load(model or usual_model(device), device=device, dtype=dtype)
        result = bench_prefill(loaded, peers, tokens=tokens, repeats=repeats, progress=say)
    data = record.record("prefill", result.to_dict(), loaded.device, packages(peers))
    console.print(table(data))
    keep(console, out, data)


def table(data: dict[str, Any]) -> Table:
    """A row for each engine at each length; memory where it was measured."""
    result, machine = data["result"], data["machine"]
    measured = any(row["peak_bytes"] for row in result["rows"])
    shown = Table(
        title=f"{result['model']} {result['dtype']} on {machine['name']}, {machine['threads']} threads: "
        f"prompts at once, median of {result['repeats']} runs",
        caption="ceiling: share of the tokens/s that the prompt's products allow at the measured "
        f"{result['matmul_flops'] / 1e12:.3g} TFLOP/s. time: over labcore's, same length."
        + (" peak: weights and the prompt; plan: what the planner says of them." if measured else "")
        + doubt_of(row["ceiling_share"] for row in result["rows"]),
    )
    names = ["tokens", "engine", "ms", "IQR ms", "tok/s", "time", "ceiling"]
    for name in names + (["peak GB", "plan GB"] if measured else []):
        shown.add_column(name, justify="left" if name == "engine" else "right")
    for row in result["rows"]:
        shown.add_row(*_cells(row), *(_memory(row) if measured else []))
    return shown


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['tokens']:,}",
        row["engine"],
        f"{row['seconds'] * 1e3:,.1f}",
        f"{row['spread_s'] * 1e3:,.1f}",
        f"{row['tokens_per_s']:,.0f}",
        f"{row['slower_than_ours']:.2f} ×",
        share_text(row["ceiling_share"]),
    ]


def _memory(row: dict[str, Any]) -> list[str]:
    peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
    return [peak, f"{row['planned_bytes'] / 1e9:.2f}"]
