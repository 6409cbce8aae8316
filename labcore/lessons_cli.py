"""`labcore lessons …`: list, open, run and rebuild the lessons."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from labcore import teach_cli

app = typer.Typer(no_args_is_help=True, help="List, open, run and rebuild the lessons.")
teach_cli.add_to(app)


class Mode(StrEnum):
    learner = "learner"
    solution = "solution"


class Scale(StrEnum):
    auto = "auto"
    quick = "quick"
    full = "full"


@app.command("list")
def list_lessons() -> None:
    """Show the lessons that this clone holds, their minutes, and how far you are."""
    from labcore.lab.course import progress

    for entry in progress.of_course():
        outline = entry.outline
        print(f"{outline.number}  {outline.title}  ({outline.minutes} min, {entry.state})")
    if hint := progress.misplaced():
        print(hint)


@app.command("run")
def run_lessons(
    names: Annotated[list[str] | None, typer.Argument(help="Numbers or names, such as 01 2.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Run every lesson.")] = False,
    mode: Annotated[Mode, typer.Option(help="learner: exercises open; solution: filled.")] = Mode.learner,
    scale: Annotated[Scale, typer.Option(help="quick, full, or auto (by device).")] = Scale.quick,
    device: Annotated[
        list[str] | None, typer.Option(help="Override the lesson's DEVICE; again: a grid over devices.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Override the lesson's MODEL; again: a grid over models.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Override the lesson's SEED.")] = None,
    out: Annotated[Path, typer.Option(help="Where executed notebooks go.")] = Path("runs"),
    executor: Annotated[
        str | None, typer.Option(help="Run on the workers of a dask cluster: dask://HOST:PORT.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Grid: skip what succeeded before.")] = False,
    retries: Annotated[int, typer.Option(help="Grid: workers that may die over one lesson.", min=0)] = 3,
    wait: Annotated[float, typer.Option(help="Grid: seconds to wait for a worker.", min=0)] = 60.0,
) -> None:
    """Execute lessons from top to bottom; one that fails does not stop the others.

    Several devices or models, or an executor, make a grid of lessons × devices × models. Ends with code 1
    when a lesson failed.
    """
    from labcore.lab import grid, runner

    if bool(names) == all_:
        raise typer.BadParameter("name the lessons to run, such as 01 02, or give --all.")
    chosen = runner.find(names) if names else runner.lessons()
    devices, models, console = device or [], model or [], Console()
    settings = runner.Settings(mode=mode.value, scale=scale.value, seed=seed)
    if executor or resume or len(devices) > 1 or len(models) > 1:
        todo = grid.jobs(chosen, settings, devices, models)
        outcomes = grid.run_grid(todo, grid.Grid(out, executor, retries, wait, resume), console)
        console.print(grid.table(outcomes))
        ok = all(outcome.ok for outcome in outcomes)
    else:
        one = replace(settings, device=next(iter(devices), None), model=next(iter(models), None))
        runs = runner.run_lessons(chosen, one, out, console=console)
        console.print(runner.summary_table(runs))
        ok = all(run.ok for run in runs)
    if not ok:
        raise typer.Exit(1)


@app.command("open")
def open_lesson(
    name: Annotated[str | None, typer.Argument(help="Number or name; none: the front page.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Open the front page or a lesson in JupyterLab on this machine; Ctrl-C ends it."""
    from labcore.lab import jupyter, runner

    lesson = runner.front_page() if name is None else runner.find([name])[0]
    jupyter.trust([known.path for known in (runner.front_page(), *runner.lessons())])
    jupyter.become(jupyter.command(lesson.path, browser=browser, port=port))


@app.command("sync")
def sync_lessons(
    names: Annotated[
        list[str] | None, typer.Argument(help="Lessons to rebuild, or index; none named: all.")
    ] = None,
    from_notebook: Annotated[
        bool, typer.Option("--from-notebook", help="Write the scripts from the notebooks instead.")
    ] = False,
) -> None:
    """Rebuild notebooks from their percent scripts: execute, keep `keep_output` cells, strip the rest."""
    from labcore.lab import notebook_files, runner

    if from_notebook:
        pages = [runner.front_page(), *runner.lessons()]
        for lesson in runner.find(names, pages) if names else pages:
            print(notebook_files.write_script(lesson.path))
        return
    scripts = [runner.front_page(suffix=".py"), *runner.lessons(suffix=".py")]
    for lesson in runner.find(names, scripts) if names else scripts:
        print(notebook_files.build(lesson.path))


@app.command("reset")
def reset_lessons(
    names: Annotated[list[str] | None, typer.Argument(help="Numbers or names, such as 01 2.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Reset every lesson, and who you are on class walls.")
    ] = False,
    notebook: Annotated[
        bool, typer.Option("--notebook", help="Restore the notebooks as well, with --all the front page too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Begin lessons anew: your answers and measurements are put aside, and nothing is deleted."""
    from labcore.lab import runner
    from labcore.lab.course import progress, reset

    if bool(names) == all_:
        raise typer.BadParameter("name the lessons to reset, such as 02, or give --all.")
    known = reset.resettable(notebooks=notebook)
    chosen = runner.find(names, known) if names else known
    if not yes:
        what = "results and notebooks" if notebook else "results"
        titles = ", ".join(lesson.number for lesson in chosen)
        typer.confirm(f"Put the {what} of {titles} aside and begin anew?", abort=True)
    aside, moved = reset.reset(chosen, notebooks=notebook, membership=all_)
    if moved:
        print(f"Put aside into {aside}: {', '.join(moved)}.")
        print("If one of these lessons is open, close its tab, restart its kernel, and open it again.")
    else:
        print(progress.misplaced() or "There was nothing to put aside; these lessons are as new.")
