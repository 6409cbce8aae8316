"""The `labcore bench` commands: run a benchmark, print its table, keep its JSON."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.cli_crowd import crowd
from labcore.bench.cli_kernels import kernels
from labcore.bench.cli_predict import parallel, predict
from labcore.bench.cli_prefill import prefill
from labcore.bench.cli_quant import quant, quant_quality
from labcore.bench.cli_serving import serving
from labcore.bench.cli_speculate import speculate
from labcore.bench.cli_suite import everything
from labcore.bench.options import Device, Dtype, Out, Source, keep, packages, peers_named
from labcore.shares import doubt_of, share_text
from labcore.working import lines, working

app = typer.Typer(no_args_is_help=True, help="Measure the engine beside its peers and the machine's limits.")


@app.callback()
def main() -> None:
    """Measure the engine beside its peers and the machine's limits."""


app.command("all")(everything)
app.command()(crowd)
app.command()(prefill)
app.command()(kernels)
app.command()(predict)
app.command()(parallel)
app.command()(quant)
app.command()(serving)
app.command()(speculate)
app.command("quant-quality")(quant_quality)


@app.command()
def generate(
    model: Source = "story",
    against: Annotated[
        list[str] | None,
        typer.Option(help="A peer: transformers, transformers-static. May be given again."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate in each run.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each engine, interleaved.")] = 7,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Greedy decoding: whole runs, interleaved, medians, beside the bandwidth ceiling."""
    import labcore
    from labcore.bench import record
    from labcore.bench.generate import bench_generate

    console = Console()
    loaded = labcore.load(model, device=device, dtype=dtype)
    peers = peers_named(against) or []
    with working(console, "loading") as say:
        result = bench_generate(
            loaded,
            peers,
            batch=batch,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            progress=say,
        )
    data = record.record("generate", result.to_dict(), loaded.device, packages(peers))
    console.print(_generate_table(data))
    keep(console, out, data)


@app.command()
def cache(
    model: Annotated[
        str, typer.Option(help="A model, or shape:NAME with random weights.")
    ] = "shape:smollm2-135m",
    layers: Annotated[int, typer.Option(min=1, help="Layers of it to keep: the cache must outweigh it.")] = 4,
    kind: Annotated[
        list[str] | None, typer.Option(help="A cache, such as int4 or sinks:budget=256. May be given again.")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Positions held. May be given again.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences. May be given again.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each cache, interleaved.")] = 9,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Each kind of cache beside the contiguous one: bytes per token, time per decode step."""
    import labcore
    from labcore.bench import record
    from labcore.bench.cache import SPECS, bench_cache, shortened

    contexts = context or [512, 2048, 8192]
    console = Console()
    loaded = labcore.load(model, device=device, dtype=dtype)
    loaded = shortened(loaded, layers, max(contexts) + 4 * repeats)
    with working(console, "loading") as say:
        result = bench_cache(
            loaded,
            kind or SPECS,
            contexts=contexts,
            batches=batch or [1, 8],
            repeats=repeats,
            progress=say,
        )
    data = record.record("cache", result.to_dict(), loaded.device)
    console.print(_cache_table(data))
    keep(console, out, data)


@app.command("cache-quality")
def cache_quality(
    kind: Annotated[list[str] | None, typer.Option(help="A cache. May be given again.")] = None,
    stories: Annotated[int, typer.Option(min=2, help="Held-out stories for perplexity.")] = 100,
    questions: Annotated[int, typer.Option(min=4, help="Held-out questions for recall.")] = 400,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """What each kind of cache does to the embedded model's text: perplexity and recall, beside its bytes."""
    import labcore
    from labcore.bench import record
    from labcore.bench.cache_quality import SPECS, bench_quality

    console = Console()
    model = labcore.load("story", device=device, dtype="float32")
    say = lines(console)  # on a terminal, each kind has a bar
    result = bench_quality(model, kind or SPECS, stories=stories, questions=questions, progress=say)
    data = record.record("cache-quality", result, model.device)
    console.print(_quality_table(result))
    keep(console, out, data)


def _generate_table(data: dict[str, object]) -> Table:
    result, machine = data["result"], data["machine"]
    assert isinstance(result, dict)
    assert isinstance(machine, dict)
    sizes = f"{result['batch']} × {result['prompt_tokens']} + {result['new_tokens']} tokens"
    table = Table(
        title=f"{result['model']} {result['dtype']} on {machine['name']}, {machine['threads']} threads\n"
        f"{sizes}, median of {result['repeats']} runs",
        caption=f"Ceiling: {result['bytes_per_step'] / 1e6:.1f} MB a step, read at the "
        f"{result['read_bandwidth'] / 1e9:.1f} GB/s measured in turns with the engines, allow "
        f"{result['ceiling_tokens_per_s']:.1f} tok/s.\n"
        "time: whole run over labcore's. equal: tokens that are labcore's. ceiling: share of it reached."
        + doubt_of(row["ceiling_share"] for row in result["rows"]),
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
            share_text(row["ceiling_share"]),
        )
    return table


def _or_dash(value: float | None, scale: float, form: str) -> str:
    return "–" if value is None else f"{value * scale:{form}}"


def _cache_table(data: dict[str, object]) -> Table:
    result, machine = data["result"], data["machine"]
    assert isinstance(result, dict)
    assert isinstance(machine, dict)
    table = Table(
        title=f"{result['model']}, {result['layers']} layers, {result['dtype']} on {machine['name']}, "
        f"{machine['threads']} threads: one decode step, median of {result['repeats']}",
        caption=f"By the formula a token takes {result['formula_bytes_per_token']:,} bytes; weights "
        f"{result['weight_bytes'] / 1e6:.0f} MB, read at the measured "
        f"{result['read_bandwidth'] / 1e9:.1f} GB/s.\ntime: over the contiguous cache's in the same run. "
        "ceiling: share of the time that its bytes take.",
    )
    for name in ("cache", "batch", "context", "bytes/token", "step ms", "IQR ms", "time", "ceiling"):
        table.add_column(name, justify="left" if name == "cache" else "right")
    for row in result["rows"]:
        host = f" + {row['host_bytes_per_token']:,.0f} host" if row["host_bytes_per_token"] else ""
        table.add_row(
            row["cache"],
            str(row["batch"]),
            str(row["context"]),
            f"{row['bytes_per_token']:,.0f}{host}",
            f"{row['seconds'] * 1e3:.2f}",
            f"{row['spread_s'] * 1e3:.2f}",
            f"{row['ratio']:.2f} ×",
            share_text(row["ceiling_share"]),
        )
    return table


def _quality_table(result: dict[str, Any]) -> Table:
    table = Table(
        title=f"{result['stories']} stories, {result['questions']} questions; bytes of a sequence of "
        f"{result['positions']} tokens",
        caption="Δ recall: in points against the contiguous cache, same questions, with its 95 % interval.",
    )
    for name in (
        "cache",
        "kB",
        "kept",
        "perplexity",
        "recall",
        "Δ recall",
        *result["rows"][0]["by_distance"],
    ):
        table.add_column(name, justify="left" if name == "cache" else "right")
    for row in result["rows"]:
        gap = row["difference"]
        table.add_row(
            row["cache"],
            f"{(row['nbytes'] + row['host_nbytes']) / 1e3:.0f}",
            str(row["kept"]),
            f"{row['perplexity']['value']:.3f}",
            f"{row['recall']['value']:.1%}",
            f"{gap['value'] * 100:+.1f} [{gap['low'] * 100:+.1f}, {gap['high'] * 100:+.1f}]",
            *(f"{cell['value']:.0%}" for cell in row["by_distance"].values()),
        )
    return table
