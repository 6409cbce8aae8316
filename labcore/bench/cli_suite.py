"""The command `labcore bench all`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labcore.bench.options import Device, Dtype, Out, keep, packages
from labcore.shares import doubt_of, share_text

if TYPE_CHECKING:
    from labcore.bench.suite import SuiteResult
    from labcore.bench.suite_compare import Change, Comparison
    from labcore.bench.suite_rows import Row

NOBODY = "none"  # --against none


def everything(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: a few minutes on two cores.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="decode, prefill, cache, quant, serving, speculate, kernels, predict. Again."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="A peer: transformers, llama.cpp; default: those installed; none: nobody. Again."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="In place of story and shape:smollm2-135m, or shape:llama-3.2-1b on a GPU."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier --out: show what changed since.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw everything into this HTML page.")] = None,
) -> None:
    """Every benchmark of speed in one go: one table, one record, beside an earlier one, one figure.

    Ends with code 1 when a section failed; the others are shown and kept all the same.
    """
    from labcore.bench import record, suite, suite_compare, suite_plot

    console = Console()
    earlier = suite_compare.read(compare) if compare else None
    if plot:
        suite_plot.ensure_plotting()
    settings = suite.Settings(
        quick=quick, only=tuple(only or ()), peers=_peers(against), model=model, device=device, dtype=dtype
    )
    with console.status("starting") as status:
        result = suite.bench_all(settings, progress=status.update)
    data = record.record(suite_compare.BENCHMARK, result.to_dict(), settings.place, packages(result.peers))
    show(console, data, result)
    keep(console, out, data)
    if earlier:
        show_comparison(console, suite_compare.compare(earlier, data))
    if plot and result.rows:
        suite_plot.write_page(result.rows, plot)
        console.print(f"Drawn into {plot}")
    if result.failed:
        raise typer.Exit(1)


def _peers(against: list[str] | None) -> tuple[str, ...] | None:
    """None: those installed."""
    if not against:
        return None
    return tuple(name for name in against if name != NOBODY)


def show(console: Console, data: dict[str, Any], result: SuiteResult) -> None:
    """A table for each section; what failed and what was left out under them."""
    machine = data["machine"]
    console.print(
        f"{machine['name']}, {machine['threads']} threads, torch {machine['torch_version']}", highlight=False
    )
    for section in result.sections:
        rows = [row for row in result.rows if row.section == section]
        console.print(section_table(section, rows, result.seconds[section]))
    for name, reason in result.failed.items():
        console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)
    for one in result.left_out:
        console.print(f"{one.section} without {one.engine}: {one.reason}", markup=False, highlight=False)


def section_table(section: str, rows: list[Row], seconds: float) -> Table:
    """ceiling: share reached of what the machine allows. ours: how many times as fast as this engine."""
    doubt = doubt_of(row.ceiling_share for row in rows).strip()
    shown = Table(title=f"{section}, {seconds:.0f} s", title_justify="left", caption=doubt or None)
    for name in ("what", "engine", "value", "unit", "allowed", "ceiling", "ours"):
        shown.add_column(name, justify="left" if name in ("what", "engine", "unit") else "right")
    before = None
    for row in rows:
        shown.add_row(
            "" if row.what == before else escape(row.what),
            escape(row.engine),
            _number(row.value),
            row.unit,
            "–" if row.ceiling is None else _number(row.ceiling),
            share_text(row.ceiling_share),
            "–" if row.ours_over is None else f"{row.ours_over:.2f} ×",
        )
        before = row.what
    return shown


def _number(value: float) -> str:
    """Three digits, or all of a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show_comparison(console: Console, found: Comparison) -> None:
    """Old beside new; what only one of them has; what else differs."""
    for warning in found.warnings:
        console.print(warning, style="yellow", markup=False, highlight=False)
    console.print(changes_table(found.changes))
    for title, rows in (("Only in the earlier run", found.only_old), ("Only in this run", found.only_new)):
        if rows:
            console.print(f"{title}:", highlight=False)
        for row in rows:
            console.print(f"  {row.section}, {row.what}, {row.engine}", markup=False, highlight=False)


def changes_table(changes: list[Change]) -> Table:
    """new / old: of the values as they are; faster: above 1 is better, whatever the unit."""
    shown = Table(title=f"In both runs: {len(changes)}", title_justify="left")
    for name in ("section", "what", "engine", "old", "new", "unit", "new / old", "faster"):
        shown.add_column(name, justify="left" if name in ("section", "what", "engine", "unit") else "right")
    for one in changes:
        shown.add_row(
            one.new.section,
            escape(one.new.what),
            escape(one.new.engine),
            _number(one.old.value),
            _number(one.new.value),
            one.new.unit,
            f"{one.ratio:.2f}",
            f"{one.faster:.2f} ×",
        )
    return shown
