"""`labcore compare`: runs beside each other, in a table and on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labcore.bench.options import Page

if TYPE_CHECKING:
    from labcore.bench.compare import Measurement
    from labcore.bench.compare_runs import Run

RUNS_HELP = (
    "A file of `labcore bench … --out`, a lesson's results, a folder of such, or a reference run's name."
)


def compare(
    runs: Annotated[list[str], typer.Argument(help=RUNS_HELP, metavar="RUN...")],
    plot: Page = None,
) -> None:
    """Set runs beside each other: what they measured in common, on which device, with which versions, when.

    Of different models only the shares of what each machine allows are compared. Reference runs lie in
    data/reference_runs and go by their names, such as generate-llama-3.1-8b-h200.
    """
    from labcore.bench import compare as comparing
    from labcore.bench import compare_figures, compare_runs, suite_plot

    if plot:
        suite_plot.ensure_plotting()
    console = Console()
    found, passed_over = compare_runs.find(runs)
    compared = comparing.compare(found)
    console.print(runs_table(found))
    panels: dict[str, list[Measurement]] = {}
    for one in compared.measurements:
        panels.setdefault(compare_figures.panel_title(one), []).append(one)
    for title, measured in panels.items():
        console.print(measurements_table(title, measured))
    for note in (*compared.notes, *passed_over):
        console.print(note, style="yellow", markup=False, highlight=False)
    if plot:
        compare_figures.write_page(compared, plot)
        console.print(f"Drawn into {plot}", markup=False, highlight=False)


def runs_table(runs: list[Run]) -> Table:
    """What each run is."""
    made = Table(title=f"{len(runs)} runs", title_justify="left")
    for name in ("run", "of", "device", "versions", "measured"):
        made.add_column(name, overflow="fold")
    for run in runs:
        about = ", ".join(filter(None, (run.kind, run.subject)))
        made.add_row(*map(escape, (run.name, about, run.device, run.software, run.date)))
    return made


def measurements_table(title: str, measured: list[Measurement]) -> Table:
    """One panel: every run's value, and how many times the first run's that is."""
    from labcore.lab.units import significant

    made = Table(title=escape(title), title_justify="left")
    made.add_column("what", overflow="fold", ratio=3)
    made.add_column("run", overflow="fold", ratio=2)
    made.add_column("value", justify="right")
    made.add_column("times the first", justify="right")
    for one in measured:
        several = len({point.model for point in one.points}) > 1
        for place, point in enumerate(one.points):
            ratio = one.ratio(point)
            made.add_row(
                escape(one.name) if place == 0 else "",
                escape(f"{point.run.name} ({point.model})" if several else point.run.name),
                significant(point.value),
                "–" if ratio is None else f"{significant(ratio)} ×",
                end_section=place == len(one.points) - 1,
            )
    return made
