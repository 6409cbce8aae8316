"""The pace of a lesson on this machine: seconds from an executed copy, or measured now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labcore.errors import LessonError
from labcore.lab import runner
from labcore.lab.course import outline as outlines
from labcore.lab.course import pace
from labcore.lab.course.pace import PartPace
from labcore.lab.runner import Lesson

EXPLANATION = (
    f"Minutes. {pace.ASSUMPTIONS} Running is what the cells took on this machine, at quick scale. "
    '"in all" is the core, to be held against "stated"; "besides" are the other exercises and the hunts.'
)


def of_lesson(lesson: Lesson, runs: Path, *, again: bool, console: Console) -> list[PartPace]:
    """The lesson's pace. It is executed into `runs` where no executed copy of its present state lies there.

    Raises LessonError when it fails.
    """
    outline, executed = outlines.outline(lesson), runs / f"{lesson.name}.learner.ipynb"
    if executed.is_file() and not again:
        try:
            return pace.of_lesson(outline, lesson.path, pace.measured_running(outline, lesson.path, executed))
        except LessonError as stale:
            console.print(f"{stale} Running it now.", style="dim", markup=False, soft_wrap=True)
    (run,) = runner.run_lessons([lesson], runner.Settings(), runs, console=console)
    if not run.ok:
        raise LessonError(f"The pace of {lesson.name} cannot be told, because it failed: {run.error}.")
    return pace.of_lesson(outline, lesson.path, pace.measured_running(outline, lesson.path, run.executed))


def table(lesson: Lesson, found: Sequence[PartPace]) -> Table:
    """One row a part, and the sum."""
    rows = [part.row() for part in found]
    made = Table(title=f"{int(lesson.number)} · {outlines.outline(lesson).title}", title_justify="left")
    for name in rows[0]:
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(*map(str, row.values()))
    sums = [sum(float(row[name]) for row in rows) for name in rows[0] if name != "part"]
    made.add_section()
    made.add_row("all", *(f"{value:.1f}" for value in sums))
    return made
