"""The command `labcore bench all`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labcore.bench.options import Device, Dtype, Out, Page, keep, packages, peers_named
from labcore.errors import LabError
from labcore.shares import doubt_of, share_text
from labcore.working import working

if TYPE_CHECKING:
    from labcore.bench.suite import Settings, SuiteResult
    from labcore.bench.suite_compare import Change, Comparison
    from labcore.bench.suite_rows import Row


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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what --out has: measure the sections that it lacks.")
    ] = False,
    compare: Annotated[Path | None, typer.Option(help="An earlier --out: show what changed since.")] = None,
    plot: Page = None,
) -> None:
    """Every benchmark of speed in one go: one table, one record, beside an earlier one, one figure.

    Every section is written when it ends, so that Ctrl-C loses none. Ends with code 1 when a section failed;
    the others are shown and kept all the same.
    """
    from labcore.bench import suite, suite_compare, suite_plot

    console = Console()
    earlier = suite_compare.read(compare) if compare else None
    if plot:
        suite_plot.ensure_plotting()
    peers = peers_named(against)
    settings = suite.Settings(
        quick=quick, only=tuple(only or ()), peers=None if peers is None else tuple(peers), model=model,
        device=device, dtype=dtype,
    )  # fmt: skip
    result = _measured(console, settings, out, resume)
    data = _record(settings, result)
    show(console, data, result)
    if earlier:
        show_comparison(console, suite_compare.compare(earlier, data))
    try:
        if plot and result.rows:
            suite_plot.write_page(result.rows, plot)
            console.print(f"Drawn into {plot}", markup=False, highlight=False, soft_wrap=True)
    finally:
        keep(console, out, data)
    if result.failed:
        raise typer.Exit(1)


def _record(settings: Settings, result: SuiteResult) -> dict[str, Any]:
    from labcore.bench import record, suite_compare

    return record.record(suite_compare.BENCHMARK, result.to_dict(), settings.place, packages(result.peers))


def _measured(console: Console, settings: Settings, out: Path | None, resume: bool) -> SuiteResult:
    """All sections, the file written after each. Ctrl-C says where those are that have ended."""
    from labcore.bench import record, suite

    before = _before(console, settings, out) if resume else None
    so_far: list[SuiteResult] = []
    with working(console, "starting") as say:

        def ended(result: SuiteResult) -> None:
            so_far[:] = [result]
            try:
                if out:
                    record.write(out, _record(settings, result))
            except OSError as error:  # it is tried again at the end of the next section
                say(record.refused(out or Path(), error))

        try:
            return suite.bench_all(settings, say, before=before, ended=ended)
        except KeyboardInterrupt:
            interrupted = so_far
    if interrupted:
        _say_what_there_is(console, out, _record(settings, interrupted[0]))
    raise KeyboardInterrupt


def _before(console: Console, settings: Settings, out: Path | None) -> SuiteResult | None:
    """What --resume goes on with. LabError without --out, and for a file of another machine or settings."""
    from labcore.bench import suite, suite_resume

    if out is None:
        raise LabError("--resume goes on with a file; name it with --out.")
    if not out.exists():
        console.print(f"There is no {out} yet: all sections are measured.", markup=False, soft_wrap=True)
        return None
    empty = suite.SuiteResult(settings.quick, list(settings.wanted), settings=settings.stated())
    return suite_resume.read(out, _record(settings, empty))


def _say_what_there_is(console: Console, out: Path | None, data: dict[str, Any]) -> None:
    """At Ctrl-C: which sections have ended, and where they are."""
    from labcore.bench import record

    names = ", ".join(data["result"]["sections"]) or "no section"
    try:
        place = f"it is in {out}, and --resume goes on with it." if out else ""
        if out:
            record.write(out, data)
    except OSError as error:
        place = f"{record.refused(out or Path(), error)}; {record.kept_elsewhere(out or Path(), data)}"
    place = place or record.kept_elsewhere(Path("bench-all.json"), data)
    console.print(f"Measured so far: {names}; {place}", markup=False, highlight=False, soft_wrap=True)


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
