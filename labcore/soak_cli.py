"""`labcore soak`: what clients of a server feel while it is loaded, attacked, stopped and ended."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labcore.bench.options import Out, keep
from labcore.working import working

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from labcore.serving.soak import Phase

WIDTH = 100  # a table that is cut says nothing
FAILED = 1  # the code it ends with where a phase was not good enough


def soak(
    model: Annotated[str, typer.Argument(help="What `labcore serve` is started with.")] = "story",
    url: Annotated[
        str | None,
        typer.Option(help="A server on this machine that runs already; it is not stopped or ended."),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Of the first load; half of them leave.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the first load.")] = 120.0,
    beside: Annotated[int, typer.Option(min=1, help="Clients beside each attack.")] = 8,
    attack_seconds: Annotated[float, typer.Option(min=0.1, help="Of each attack.")] = 15.0,
    only: Annotated[list[str] | None, typer.Option(help="An attack by its name; may be given again.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A minute that shows that all works.")] = False,
    out: Out = None,
) -> None:
    """Load a server with many clients, attack it, stop it, end it: longest gaps, wrong words, memory.

    Starts `labcore serve` on a free port of this machine, or takes one that runs. No client of a phase may
    wait longer than 300 ms for a token, or 1.5 times as long as without the attack. Ends with code 1 where
    one does.
    """
    from rich.console import Console

    from labcore.bench import record
    from labcore.perf.machine import resolve_device

    run_soak, plan_of, names = _parts()
    plan = replace(plan_of(), clients=clients, seconds=seconds, beside=beside, attack_s=attack_seconds)
    plan = replace(plan.quick() if quick else plan, names=_chosen(only, names))
    console = Console()
    with working(console, "starting") as say:
        phases = run_soak(plan, model, url, lambda phase: say(f"done: {phase.name}"))
    shown = [phase for phase in phases if not phase.is_calm]
    console.print(table(shown), width=max(console.width, WIDTH))
    console.print("\n".join(map(sentence, shown)), markup=False, highlight=False, soft_wrap=True)
    rows = [phase.to_dict() for phase in phases]
    result = {"model": model, "url": url, "settings": asdict(plan), "phases": rows}
    keep(console, out, record.record("soak", result, resolve_device("cpu")))
    if any(phase.faults for phase in phases):
        raise typer.Exit(FAILED)


def table(phases: Sequence[Phase]) -> Table:
    """A row for each load; waits in ms, memory in MB; calm: the longest one without the attack."""
    from rich.table import Table
    from rich.text import Text

    shown = Table()
    for name in ("", "gap p50", "p99", "max", "calm", "TTFT max", "calm", "MB", "fds"):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    for one in phases:
        waits = (one.gap.median, one.gap.p99, one.gap.most, one.calm_gap_s, one.ttft.most, one.calm_ttft_s)
        shown.add_row(
            Text(one.name), *map(_ms, waits), _change(one.before.memory, one.after.memory, 1e6),
            _change(one.before.descriptors, one.after.descriptors, 1),
        )  # fmt: skip
    return shown


def sentence(phase: Phase) -> str:
    """What a phase showed, in one line."""
    parts = ["; ".join(phase.faults) or "good", f"{phase.streams:,} answers, {phase.wrong:,} wrong"]
    parts += [f"{count:,} left" for count in (phase.left,) if count]
    parts += [f"{count:,} × {kind}" for kind, count in phase.errors.items()]
    parts += [f"{what}: {count}" for what, count in phase.notes.items()]
    parts += [f"{size:,} bytes of log" for size in (phase.log_bytes,) if size > 0]
    return f"{phase.name}: {'; '.join(parts)}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.0f}"


def _change(before: int | None, after: int | None, unit: float) -> str:
    return "→".join(f"{value / unit:,.0f}" for value in (before, after) if value is not None)


def _chosen(only: list[str] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    from labcore.errors import ConfigError

    for name in only or ():
        if name not in names:
            raise ConfigError(f"{name!r} is no attack; choose from: {', '.join(names)}.")
    return tuple(only or names)


def _parts() -> tuple[Any, Any, tuple[str, ...]]:
    try:
        from labcore.serving.soak import Soak, run_soak
    except ModuleNotFoundError as missing:
        from labcore.errors import LabError

        raise LabError(
            f"A soak needs the package {missing.name}, which the extra 'serve' brings: "
            "pip install 'labcore[serve]'."
        ) from None
    return run_soak, Soak, Soak().names
