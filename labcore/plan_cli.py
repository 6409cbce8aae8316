"""`labcore plan`: the memory of a deployment, whether it fits, and what would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from labcore.perf import memory

GPU_HELP = "A catalogued device, such as a10 or h100-sxm; all of them when left out."


def plan(
    model: Annotated[str, typer.Argument(help="A catalogued shape, such as llama-2-7b.")],
    gpu: Annotated[str | None, typer.Option(help=GPU_HELP)] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens each of them holds.")] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the weights: float16, int8, int4, …")] = "float16",
    weight_bits: Annotated[
        float | None, typer.Option(help="Bits of a weight in the layers' matrices, scales included.")
    ] = None,
    cache_bits: Annotated[
        float | None, typer.Option(help="Bits of a number in the cache, scales included.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Page the cache in blocks of so many positions.")
    ] = None,
    reserve: Annotated[int | None, typer.Option(help="Reserve so many positions a sequence instead.")] = None,
    shared_prefix: Annotated[int, typer.Option(help="Tokens that all sequences begin with, kept once.")] = 0,
) -> None:
    """How much memory a deployment takes, whether it fits, and what would. Exit code 2 where it does not."""
    from labcore import catalog
    from labcore.perf import memory

    config = catalog.architecture(model)
    wanted: dict[str, Any] = {
        "context": context, "dtype": dtype, "weight_bits": weight_bits, "cache_bits": cache_bits,
        "block_size": block_size, "reserve": reserve, "shared_prefix": shared_prefix,
    }  # fmt: skip
    console = Console()
    if gpu is None:
        rows = memory.what_fits(config, map(catalog.gpu, catalog.gpus()), lean=False, **wanted)
        console.print(_fits_table(model, context, rows))
        return
    found = memory.plan(config, catalog.gpu(gpu), batch=batch, **wanted)
    console.print(_plan_table(model, found))
    memory.refuse_if_too_big(found)
    console.print(
        f"It fits. Up to {memory.largest_batch(found)} sequences of {context:,} tokens would, or {batch} of "
        f"{memory.largest_context(found):,}.",
        highlight=False,
    )


def _plan_table(model: str, found: memory.MemoryPlan) -> Table:
    wanted = found.deployment
    table = Table(title=f"{model}, {wanted.batch} × {wanted.context:,} tokens on {found.machine}")
    table.add_column("part")
    table.add_column("GB", justify="right")
    table.add_column("share", justify="right")
    parts = {
        f"weights, {_stored(wanted)}": found.weights,
        f"cache, {wanted.bits:g} bits": found.cache,
        "allocated and not filled": found.waste,
        "activations": found.activations,
        "logits": found.workspace,
        "together": found.total,
        "free" if found.fits else "missing": abs(found.free),
    }
    for name, value in parts.items():
        table.add_row(name, f"{value / 1e9:.2f}", f"{value / found.memory_bytes:.0%}")
    return table


def _stored(wanted: memory.Deployment) -> str:
    return wanted.dtype if wanted.weight_bits is None else f"{wanted.weight_bits:g} bits"


def _fits_table(model: str, context: int, rows: list[memory.Fit]) -> Table:
    table = Table(title=f"{model}: what fits")
    for name in ("device", "GB", "weights fit", "tokens in one sequence", f"sequences of {context:,}"):
        table.add_column(name, justify="left" if name == "device" else "right")
    for row in sorted(rows, key=lambda row: row.memory_bytes):
        fits = "yes" if row.weights_fit else "no"
        table.add_row(
            row.machine, f"{row.memory_bytes / 1e9:.0f}", fits, f"{row.tokens:,}", f"{row.sequences:,}"
        )
    return table
