"""The command `labcore bench crowd`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.options import Device, Dtype, Out, Source, keep
from labcore.errors import LabError
from labcore.working import working


def crowd(
    model: Source = "shape:smollm2-135m",
    counts: Annotated[str, typer.Option(help="How many at once, beside one alone: 2,4,8.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(min=0.1, help="That each generates for in a round.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Of every count, in turns.")] = 3,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Generations at once in processes of their own, as in a class: together, and each beside a lone one."""
    from labcore.bench import record
    from labcore.bench.crowd import bench_crowd
    from labcore.perf.machine import resolve_device

    console = Console()
    with working(console, "starting") as say:
        result = bench_crowd(
            model, _numbers(counts), seconds=seconds, rounds=rounds, device=device, dtype=dtype, progress=say
        )
    data = record.record("crowd", result.to_dict(), resolve_device(device))
    console.print(table(data))
    keep(console, out, data)


def _numbers(counts: str) -> list[int]:
    try:
        return [int(count) for count in counts.split(",")]
    except ValueError:
        raise LabError(
            f"--counts {counts!r} is no list of numbers; write them with commas, as in 1,2,4,8."
        ) from None


def table(data: dict[str, Any]) -> Table:
    """A row for each count."""
    result, machine = data["result"], data["machine"]
    said = ", ".join(f"{name}={value}" for name, value in result["waiting"].items() if value)
    shown = Table(
        title=f"{result['model']} {result['dtype']} on {machine['name']}: generations at once on "
        f"{result['cores']} cores, {result['threads']} threads each",
        caption=f"Medians of {result['rounds']} rounds of {result['seconds']:g} s, lowest and highest beside "
        "them. together: all of them, over one alone in the same round. share: what each has of one alone. "
        f"Threads wait as set: {said or 'by default'}.",
    )
    for name in ("at once", "tok/s", "range", "together", "range", "share", "range"):
        shown.add_column(name, justify="right")
    for row in result["rows"]:
        shown.add_row(
            str(row["count"]),
            f"{row['tokens_per_s']:.1f}",
            "{:.1f}–{:.1f}".format(*row["tokens_per_s_range"]),
            f"{row['together']:.2f} ×",
            "{:.2f}–{:.2f}".format(*row["together_range"]),
            f"{row['share']:.0%}",
            "{:.0%}–{:.0%}".format(*row["share_range"]),
        )
    return shown
