"""The command `labcore bench kernels`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.options import Device, Dtype, OptionalSource, Out, keep
from labcore.shares import doubt_of, share_text
from labcore.working import working


def kernels(
    model: OptionalSource = None,
    prompt: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a prompt; default: 512, on a GPU 2048.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Positions held in decode; default: 512, on a GPU 2048.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences in decode; default: 16, on a GPU 32.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Samples of each kernel, its reference in between.")
    ] = 9,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Every fast kernel beside its plain reference and beside what memory and arithmetic allow."""
    from dataclasses import replace

    import labcore
    from labcore.bench import record
    from labcore.bench.kernels import SIZES, bench_kernels
    from labcore.bench.usual import usual_model

    console = Console()
    given = {"prompt": prompt, "context": context, "batch": batch}
    with working(console, "loading") as say:
        loaded = labcore.load(model or usual_model(device), device=device, dtype=dtype)
        usual = SIZES["cuda" if loaded.device.type == "cuda" else "cpu"]
        sizes = replace(usual, **{name: value for name, value in given.items() if value is not None})
        result = bench_kernels(loaded, sizes, repeats=repeats, progress=say)
    data = record.record("kernels", result.to_dict(), loaded.device)
    console.print(table(data))
    for one in result.left_out:
        console.print(f"Left out: {one.name}: {one.reason}", markup=False, highlight=False)
    keep(console, out, data)


def table(data: dict[str, Any]) -> Table:
    """A row for each kernel and shape."""
    result, machine = data["result"], data["machine"]
    rates = ", ".join(f"{rate / 1e12:.3g} in {name}" for name, rate in result["flops"].items())
    shown = Table(
        title=f"Kernels on shapes of {result['model']}, {result['dtype']}, on {machine['name']}, "
        f"{machine['threads']} threads: median of {result['repeats']} samples",
        caption="ceiling: share of the time that its bytes take at the memory's bandwidth in those minutes "
        f"({result['bandwidth'] / 1e9:,.1f} GB/s), or its products at the roof (TFLOP/s: {rates}), the "
        "longer. speed-up: over the plain reference. "
        "difference: the largest from it, over the largest number."
        + doubt_of(row["ceiling_share"] for row in result["rows"]),
    )
    names = ("kernel", "shape", "by", "µs", "IQR µs", "bound", "ceiling", "speed-up", "difference")
    for name in names:
        shown.add_column(name, justify="left" if name in ("kernel", "shape", "by", "bound") else "right")
    for row in result["rows"]:
        shown.add_row(
            row["kernel"],
            row["shape"],
            row["path"],
            f"{row['seconds'] * 1e6:,.1f}",
            f"{row['spread_s'] * 1e6:,.1f}",
            row["bound"],
            share_text(row["ceiling_share"]),
            f"{row['speed_up']:.1f} ×",
            f"{row['difference']:.1e}",
        )
    return shown
