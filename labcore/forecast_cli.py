"""`labcore forecast`: what a machine will do with a load, from costs and roofs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from labcore.perf.forecast import Forecast


def forecast(
    model: Annotated[str, typer.Argument(help="A catalogued shape, such as llama-2-7b.")],
    gpu: Annotated[str | None, typer.Option(help="A catalogued device; left out: this machine.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Tokens each of them holds.")] = 1024,
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt (default: the context).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float16, float32, int8, int4, …")] = "float16",
    weight_bits: Annotated[float | None, typer.Option(help="Bits of a weight, scales included.")] = None,
    cache_bits: Annotated[float | None, typer.Option(help="Bits of a number in the cache.")] = None,
    activation_dtype: Annotated[
        str | None,
        typer.Option(help="Round activations too (w8a8): int8 or float8. Left out: products in 16 bits."),
    ] = None,
    tpot_ms: Annotated[
        float | None, typer.Option(help="Find the best batch within so many ms a token.")
    ] = None,
) -> None:
    """TTFT, TPOT, throughput, price and the largest batch: expected, with the bracket around it."""
    from labcore import catalog
    from labcore.perf import forecast as room

    config = catalog.architecture(model)
    machine: Any = catalog.gpu(gpu) if gpu else _this_machine()
    wanted: dict[str, Any] = {
        "batch": batch, "context": context, "prompt": prompt, "dtype": dtype,
        "weight_bits": weight_bits, "cache_bits": cache_bits, "activation_dtype": activation_dtype,
    }  # fmt: skip
    if tpot_ms is None:
        found = room.forecast(config, machine, **wanted)
    else:
        del wanted["batch"]
        found = room.best_batch(config, machine, tpot_s=tpot_ms / 1e3, **wanted)
    Console().print(_table(model, found))


def _this_machine() -> Any:
    from labcore.perf import machine_from_roofs, roofs
    from labcore.perf.machine import resolve_device, total_memory

    device = resolve_device("auto")
    return machine_from_roofs(roofs(device), total_memory(device))


def _table(model: str, found: Forecast) -> Table:
    load = found.load
    table = Table(title=f"{model}, {load.batch} × {load.context:,} tokens on {found.machine}")
    for name in ("", "expected", "at least", "at most", "waits for"):
        table.add_column(name, justify="left" if not name else "right")
    for name, step in (("TTFT", found.prefill), ("TPOT", found.decode)):
        times = (f"{seconds * 1e3:,.2f} ms" for seconds in (step.expected_s, step.low_s, step.high_s))
        table.add_row(name, *times, step.bound)
    table.add_row("throughput", f"{found.tokens_per_s:,.0f} tok/s")
    price = found.usd_per_million
    table.add_row("per million tokens", "–" if price is None else f"${price:,.2f}")
    table.add_row("fits", "yes" if found.fits else "no")
    table.add_row("largest batch", f"{found.max_batch:,}")
    return table
