"""`labcore lessons guides`, `pace`, `copies` and `present`: the instructor's commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Names = Annotated[list[str] | None, typer.Argument(help="Numbers or names, such as 02; none: all lessons.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that somebody has worked in.")]


class Reader(StrEnum):
    learners = "learners"
    instructors = "instructors"


def add_to(app: typer.Typer) -> None:
    """Register the commands in the group `labcore lessons`."""
    app.command("guides")(write_guides)
    app.command("pace")(show_pace)
    app.command("copies")(write_copies)
    app.command("present")(present)


def write_guides(
    names: Names = None,
    out: Annotated[Path | None, typer.Option(help="Where they go; none: notebooks/guides.")] = None,
) -> None:
    """Write the instructor's guide to each lesson, from its notebook and the teaching notes."""
    from labcore.lab import runner
    from labcore.lab.course import guides

    for path in guides.write(runner.find(names) if names else runner.lessons(), out):
        print(path)


def show_pace(
    names: Names = None,
    runs: Annotated[Path, typer.Option("--from", help="Where executed lessons lie.")] = Path("runs"),
    again: Annotated[bool, typer.Option("--again", help="Execute the lessons even if they were.")] = False,
) -> None:
    """Time lessons part by part as a learner takes them, beside the minutes that they state.

    Running is what the cells took in an executed copy; a lesson that was not executed, or that has changed
    since, is executed first.
    """
    from rich.console import Console

    from labcore.lab import runner
    from labcore.lab.course import measured_pace

    console = Console()
    for lesson in runner.find(names) if names else runner.lessons():
        found = measured_pace.of_lesson(lesson, runs, again=again, console=console)
        console.print(measured_pace.table(lesson, found))
    console.print(measured_pace.EXPLANATION)


def write_copies(
    reader: Annotated[Reader, typer.Option("--for", help="Who gets them.")],
    out: Annotated[Path, typer.Option(help="The folder to write them into.")],
    names: Names = None,
    force: Force = False,
) -> None:
    """Copy lessons: as they came for learners; with solutions, hints and notes for instructors.

    A copy that somebody has worked in is kept, and then nothing is written, unless --force is given.
    """
    from labcore.lab import runner
    from labcore.lab.course import copies

    lessons = runner.find(names) if names else runner.lessons()
    for path in copies.write(lessons, reader.value, out, force=force):
        print(path)


def present(
    name: Annotated[str, typer.Argument(help="Number or name of the lesson.")],
    part: Annotated[int | None, typer.Option(help="Begin at this part; none: at the beginning.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    out: Annotated[Path, typer.Option(help="Where the presenting copy lies.")] = Path("runs/presenting"),
    force: Force = False,
) -> None:
    """Open a lesson for the projector: large type, one part at a time; Ctrl-C ends it.

    Your notes are in a file of their own, to be opened on another screen. Your own JupyterLab settings and
    results are not touched.
    """
    from labcore.lab import runner
    from labcore.lab.course import presenting

    stage = presenting.prepare(runner.find([name])[0], out, part=part, force=force)
    print(f"Next part: {presenting.NEXT_KEY}; back: {presenting.PREVIOUS_KEY}.".replace("Alt ", "Alt+"))
    if part:
        print(
            "This part uses what comes before it: Shift+Enter on a folded heading runs all that is under it."
        )
    print(f"Your notes, for another screen: {stage.notes}", flush=True)
    presenting.open_lab(stage, browser=browser, port=port)
