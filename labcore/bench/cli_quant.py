"""The commands `labcore bench quant` and `labcore bench quant-quality`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.options import Device, Dtype, Out, Peers, Source, keep, packages, peers_named
from labcore.shares import doubt_of, share_text
from labcore.working import working


def quant(
    model: Source = "shape:smollm2-135m",
    recipe: Annotated[
        list[str] | None, typer.Option(help="Such as int8 or gptq-int4:group=64. May be given again.")
    ] = None,
    against: Peers = None,
    prompt_tokens: Annotated[int, typer.Option(min=33, help="Length of the prompt of the prefill.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Steps of decode in each run.")] = 48,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences. May be given again.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, interleaved.")] = 7,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Quantized weights: prefill and decode beside full precision, peers and the bandwidth ceiling."""
    from labcore.bench import record
    from labcore.bench.quant import bench_quant
    from labcore.bench.usual import RECIPES
    from labcore.perf.machine import resolve_device

    console = Console()
    peers = peers_named(against) or []
    with working(console, "loading") as say:
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
            progress=say,
        )
    data = record.record("quant", result, resolve_device(device), packages(peers))
    console.print(table(data))
    keep(console, out, data)


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
        f"{aims}{doubt_of(row['ceiling_share'] for row in result['rows'])}",
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
            share_text(row["ceiling_share"]),
            f"{row['times_full_precision']:.2f}",
            f"{prefill:.0f}" if prefill else "–",
        )
    return shown


def quant_quality(
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="Instead of all methods at all bits: such as awq-int3. May be given again."),
    ] = None,
    stories: Annotated[int, typer.Option(min=2, help="Held-out stories for perplexity.")] = 100,
    questions: Annotated[int, typer.Option(min=0, help="Held-out questions for recall; 0: none.")] = 200,
    planted: Annotated[
        bool, typer.Option(help="Also a table of the model with outliers planted in its activations.")
    ] = True,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """What quantized weights do to the embedded model's text: perplexity and recall, per method and bits."""
    from labcore.bench import record
    from labcore.bench.quant_quality import PLANTED, RECIPES, bench_quant_quality
    from labcore.perf.machine import resolve_device

    console = Console()
    with working(console, "loading") as say:
        result = bench_quant_quality(
            recipe or RECIPES,
            PLANTED if planted else (),
            stories=stories,
            questions=questions,
            device=device,
            progress=say,
        )
    data = record.record("quant-quality", result, resolve_device(device))
    console.print(quality_table(result, "rows"))
    if planted:
        console.print(quality_table(result, "planted"))
    keep(console, out, data)


def quality_table(result: dict[str, Any], which: str) -> Table:
    """One of the two tables ("rows", "planted"); the claims stand under the first."""
    names = ["recipe", "bits", "perplexity", "Δ %", "served", "KL"]
    names += ["recall"] if result["questions"] else []
    planted = ", outliers planted" if which == "planted" else ""
    claims = "" if planted else "".join(f"\n{_claim(claim)}" for claim in result["claims"])
    shown = Table(
        title=f"{result['model']}{planted}: {result['stories']} stories of {result['tokens']} scored tokens, "
        f"{result['questions']} questions; 95 % intervals",
        caption="Δ: perplexity against full precision, and recall in points, over the same texts and "
        "questions.\nBy definition; served: Δ through this machine's fast paths. bits: of a weight, with "
        f"scales and the head. KL: nats a token.{claims}",
    )
    for name in names:
        shown.add_column(name, justify="left" if name == "recipe" else "right", overflow="fold")
    for row in result[which]:
        shown.add_row(*_quality_cells(row))
    return shown


def _quality_cells(row: dict[str, Any]) -> list[str]:
    perplexity = row["perplexity"]
    cells = [
        row["recipe"],
        f"{row['bits_per_weight']:.2f}",
        f"{perplexity['value']:.4g}",
        _percent(row["perplexity_change"]),
        _percent(row["served"]["perplexity_change"], interval=False),
        f"{row['divergence']['value']:.2g}",
    ]
    if row["recall"]:
        cells.append(f"{row['recall']['value']:.1%}")
    return cells


def _percent(estimate: dict[str, Any], interval: bool = True) -> str:
    """Times 100, with its interval; as many digits as can matter."""
    digits = 2 if abs(estimate["value"]) < 1 else 0
    value, low, high = (f"{estimate[name] * 100:+z,.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if interval else value


def _claim(claim: dict[str, Any]) -> str:
    met = "met" if claim["met"] else "missed"
    noise = "outside the noise" if claim["outside_noise"] else "within the noise"
    return f"{claim['what']}: {_percent(claim['measured'])} %, {met}, {noise}"
