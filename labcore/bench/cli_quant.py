"""The command `labcore bench quant`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

RECIPES = ("int8", "int4:group=32,head=same")
PYPI = {"llama.cpp": "llama-cpp-python"}


def quant(
    model: Annotated[
        str, typer.Option(help="story, a folder, a Hub id, or shape:NAME.")
    ] = "shape:smollm2-135m",
    recipe: Annotated[
        list[str] | None, typer.Option(help="Such as int8 or gptq-int4:group=64. May be given again.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="A peer: transformers, llama.cpp. May be given again.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=33, help="Length of the prompt of the prefill.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Steps of decode in each run.")] = 48,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences. May be given again.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, interleaved.")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON here.")] = None,
) -> None:
    """Quantized weights: prefill and decode beside full precision, peers and the bandwidth ceiling."""
    from labcore.bench import record
    from labcore.bench.quant import bench_quant
    from labcore.perf.machine import resolve_device

    console = Console()
    peers = against or []
    with console.status("loading") as status:
        result = bench_quant(
            model,
            recipe or list(RECIPES),
            peers,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batches=sorted({1, *(batch or [1, 8])}),
            repeats=repeats,
            device=device,
            dtype=dtype,
            progress=status.update,
        )
    data = record.record("quant", result, resolve_device(device), [PYPI.get(name, name) for name in peers])
    console.print(table(data))
    if out:
        record.write(out, data)
        console.print(f"Written to {out}")


def table(data: dict[str, Any]) -> Table:
    """The rows, with the targets under them."""
    result, machine = data["result"], data["machine"]
    aims = "\n".join(
        f"{aim['what']}: {aim['measured']:.2f} × (aim {aim['wanted']:g} ×, "
        f"{'met' if aim['met'] else 'missed'})"
        for aim in result["targets"]
    )
    shown = Table(
        title=f"{result['model']} on {machine['name']}, {machine['threads']} threads: prompt of "
        f"{result['prompt_tokens']}, {result['new_tokens']} steps of decode, "
        f"median of {result['repeats']} runs",
        caption="ceiling: share of the tokens/s that the weights allow at "
        f"{result['read_bandwidth'] / 1e9:.1f} GB/s. × full: over labcore in full precision, same batch.\n"
        f"{aims}",
    )
    names = ("engine", "batch", "weights MB", "decode tok/s", "IQR µs", "ceiling", "× full", "prefill tok/s")
    for name in names:
        shown.add_column(name, justify="left" if name == "engine" else "right", overflow="fold")
    for row in result["rows"]:
        prefill = row["prefill_tokens_per_s"]
        shown.add_row(
            row["engine"],
            str(row["batch"]),
            f"{row['weight_bytes'] / 1e6:.1f}",
            f"{row['decode_tokens_per_s']:.1f}",
            f"{row['decode_spread_s'] * 1e6:.0f}",
            f"{row['ceiling_share']:.0%}",
            f"{row['times_full_precision']:.2f}",
            f"{prefill:.0f}" if prefill else "–",
        )
    return shown
