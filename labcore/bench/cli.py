"""The `labcore bench` commands: run a benchmark, print its table, keep its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Measure the engine beside its peers and the machine's limits.")


@app.callback()
def main() -> None:
    """Measure the engine beside its peers and the machine's limits."""


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="story, a folder, a Hub id, or shape:NAME.")] = "story",
    against: Annotated[
        list[str] | None, typer.Option(help="A peer: transformers. May be given again.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate in each run.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each engine, interleaved.")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON here.")] = None,
) -> None:
    """Greedy decoding of one prompt: whole runs, interleaved, medians, beside the bandwidth ceiling."""
    import labcore
    from labcore.bench import record
    from labcore.bench.generate import bench_generate

    console = Console()
    loaded = labcore.load(model, device=device, dtype=dtype)
    peers = against or []
    with console.status("loading") as status:
        result = bench_generate(
            loaded,
            peers,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            progress=status.update,
        )
    data = record.record("generate", result.to_dict(), loaded.device, peers)
    console.print(_generate_table(data))
    if out:
        record.write(out, data)
        console.print(f"Written to {out}")


def _generate_table(data: dict[str, object]) -> Table:
    result, machine = data["result"], data["machine"]
    assert isinstance(result, dict)
    assert isinstance(machine, dict)
    table = Table(
        title=f"{result['model']} {result['dtype']} on {machine['name']}, {machine['threads']} threads\n"
        f"{result['prompt_tokens']} + {result['new_tokens']} tokens, median of {result['repeats']} runs",
        caption=f"Ceiling: {result['bytes_per_step'] / 1e6:.1f} MB a step, read at the measured "
        f"{result['read_bandwidth'] / 1e9:.1f} GB/s, allow {result['ceiling_tokens_per_s']:.1f} tok/s.\n"
        "time: whole run over labcore's. equal: tokens that are labcore's. ceiling: share of it reached.",
    )
    names = ("engine", "run s", "IQR s", "tok/s", "time", "equal", "TTFT ms", "decode tok/s", "ceiling")
    for name in names:
        table.add_column(name, justify="left" if name == "engine" else "right")
    for row in result["rows"]:
        table.add_row(
            row["engine"],
            f"{row['seconds']:.3f}",
            f"{row['spread_s']:.3f}",
            f"{row['tokens_per_s']:.1f}",
            f"{row['slower_than_ours']:.2f} ×",
            f"{row['agreement']:.0%}",
            _or_dash(row["ttft_s"], 1e3, ".1f"),
            _or_dash(row["decode_tokens_per_s"], 1, ".1f"),
            _or_dash(row["ceiling_share"], 100, ".0f", "%"),
        )
    return table


def _or_dash(value: float | None, scale: float, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value * scale:{form}}{unit}"
