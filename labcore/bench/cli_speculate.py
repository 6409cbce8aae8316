"""The command `labcore bench speculate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.options import Device, Dtype, Out, Source, keep
from labcore.working import working


def speculate(
    model: Source = "story",
    draft: Annotated[
        str | None, typer.Option(help="A smaller model of the same vocabulary; story has story-draft.")
    ] = None,
    quantize: Annotated[
        str, typer.Option(help="Measure the draft with its weights so as well; none: only as it is.")
    ] = "int8",
    guesses: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens guessed at most: 1, 2, 4, 6, 8. Again.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 96,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the draws.")] = 1.0,
    together: Annotated[int, typer.Option(min=2, help="Requests at once, of the batch.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, interleaved.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Speculative decoding: what is accepted, what it gains by how many are guessed, and where it loses."""
    import labcore
    from labcore.bench import record
    from labcore.bench.speculate import DRAFTS, GUESSES, bench_speculate, drafts_of

    console = Console()
    with working(console, "loading") as say:
        loaded = labcore.load(model, device=device, dtype=dtype)
        drafts = drafts_of(loaded, draft or DRAFTS.get(model), None if quantize == "none" else quantize)
        result = bench_speculate(
            loaded, drafts, guesses=guesses or GUESSES, new_tokens=new_tokens, temperature=temperature,
            together=together, repeats=repeats, progress=say,
        )  # fmt: skip
    data = record.record("speculate", result, loaded.device)
    console.print(table(data))
    keep(console, out, data)


def table(data: dict[str, Any]) -> Table:
    """A row for each way, under the kind of work."""
    result, machine = data["result"], data["machine"]
    shown = Table(
        title=f"{result['model']} {result['dtype']} on {machine['name']}, {machine['threads']} threads: "
        f"{result['new_tokens']} tokens behind each prompt, median of {result['repeats']} runs",
        caption="most: tokens guessed at once. right: share of the checked guesses. a step: tokens of an "
        "answer. IQR: of a run, in ms. faster: than without guesses. same: the same tokens.",
    )
    shown.add_column("what guesses", no_wrap=True)
    for name in ("most", "right", "a step", "tok/s", "IQR", "faster", "same"):
        shown.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in result["rows"]:
        if row["work"] != before:
            shown.add_section()
            shown.add_row(row["work"], style="bold")
        shown.add_row(*_cells(row))
        before = row["work"]
    return shown


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"  {row['engine'].removeprefix('labcore').strip() or 'nothing'}",
        str(row["guesses"]),
        "–" if row["accepted"] is None else f"{row['accepted']:.0%}",
        f"{row['tokens_per_step']:.2f}",
        f"{row['tokens_per_s']:,.0f}",
        f"{row['spread_s'] * 1e3:.0f}",
        f"{row['faster']:.2f} ×",
        {True: "yes", False: "NO", None: "–"}[row["same"]],
    ]
