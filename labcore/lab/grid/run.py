"""Run a grid and keep what it gives: each executed notebook, each lesson's results, and one list of all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from labcore.errors import LessonError
from labcore.lab.grid.cluster import Say, over_cluster
from labcore.lab.grid.jobs import Job, Outcome, perform
from labcore.lab.results import write_whole
from labcore.working import lines


@dataclass(frozen=True)
class Grid:
    """How a grid is run. executor: "dask://HOST:PORT", or None for this machine."""

    out: Path
    executor: str | None = None
    retries: int = 3
    wait_s: float = 60.0
    resume: bool = False


def run_grid(todo: Sequence[Job], grid: Grid, console: Console) -> list[Outcome]:
    """All outcomes, in the order of the jobs. Each is written when it comes in, so that a stop loses none.

    Writes `<out>/<job>.ipynb`, `<out>/<job>.json` and `<out>/grid.json`. With `resume`, jobs that succeeded
    before, with the same notebook and parameters, are not run again. Raises LessonError as `over_cluster`.
    """
    done = _before(todo, grid) if grid.resume else {}
    if done:
        console.print(f"{len(done)} of {len(todo)} are done already and are not run again.")
    rest = [job for job in todo if job.name not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tell = lines(console)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("lessons", total=len(rest))

        def say(text: str) -> None:
            progress.console.print(escape(text))

        for outcome in _outcomes(rest, grid, say):
            done[outcome.job] = outcome
            _keep(outcome, grid.out)
            _list([done[job.name] for job in todo if job.name in done], grid.out)
            progress.advance(task)
            tell(f"{outcome.job}: ended after {outcome.seconds:.0f} s")
            if not outcome.ok:
                say(f"{outcome.job} failed: {outcome.error}")
    return [done[job.name] for job in todo]


def _outcomes(rest: Sequence[Job], grid: Grid, say: Say) -> Iterator[Outcome]:
    if not rest:
        return iter(())
    if grid.executor is None:
        return map(perform, rest)  # one after the other: lessons measure
    return over_cluster(rest, grid.executor, say, retries=grid.retries, wait_s=grid.wait_s)


def _keep(outcome: Outcome, out: Path) -> None:
    """The executed notebook and the results that came back."""
    for suffix, text in ((".ipynb", outcome.executed), (".json", outcome.results)):
        if text:
            write_whole(out / f"{outcome.job}{suffix}", text)


def _list(outcomes: Sequence[Outcome], out: Path) -> None:
    write_whole(out / "grid.json", json.dumps([outcome.summary() for outcome in outcomes], indent=2) + "\n")


def _before(todo: Sequence[Job], grid: Grid) -> dict[str, Outcome]:
    """What succeeded in an earlier run into the same folder. Raises LessonError if its list is damaged."""
    path = grid.out / "grid.json"
    try:
        saved = {entry["job"]: Outcome(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        raise LessonError(f"{path} is damaged ({error}); delete it, or leave --resume away.") from None
    known = {job.name: job.fingerprint for job in todo}
    return {
        name: outcome
        for name, outcome in saved.items()
        if outcome.ok and known.get(name) == outcome.fingerprint and (grid.out / f"{name}.ipynb").exists()
    }


def table(outcomes: Sequence[Outcome]) -> Table:
    """Every run: what, with what, where, how long, and how it went."""
    failures = sum(not outcome.ok for outcome in outcomes)
    made = Table(title=f"{len(outcomes)} runs, {failures} failed", title_justify="left")
    for name in ("lesson", "device", "model", "where"):
        made.add_column(name, overflow="fold")
    made.add_column("cells", justify="right")
    made.add_column("seconds", justify="right")
    made.add_column("result", overflow="fold")
    for run in outcomes:
        result = "[green]ok[/green]" if run.ok else f"[red]{escape(run.error or '')}[/red]"
        cells = f"{run.cells}/{run.code_cells}"
        made.add_row(run.lesson, run.device, run.model, run.where, cells, f"{run.seconds:.1f}", result)
    return made
