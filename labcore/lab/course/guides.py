"""An instructor's guide to each lesson, as Markdown: from the notebook, the registers and teaching notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from labcore.lab import exercises, hunts, runner
from labcore.lab.course import outline as outlines
from labcore.lab.course import pace, questions, teaching
from labcore.lab.course.outline import Outline
from labcore.lab.course.pace import PartPace
from labcore.lab.results import write_whole
from labcore.lab.runner import Lesson

_TEMPLATE = Path(teaching.__file__).with_name("guide.md.j2")


def folder() -> Path:
    """Where the guides lie: beside the notebooks."""
    return runner.notebooks_dir() / "guides"


def write(lessons: Sequence[Lesson], out: Path | None = None) -> list[Path]:
    """Write the guides of these lessons; returns their paths. Raises LessonError where notes are missing."""
    return [write_whole((out or folder()) / f"{lesson.name}.md", markdown(lesson)) for lesson in lessons]


def markdown(lesson: Lesson) -> str:
    """One guide. Raises LessonError where a lesson has no teaching notes."""
    outline, notes = outlines.outline(lesson), teaching.of_lesson(lesson.number)
    paces = static_pace(lesson)
    return (
        _template().render(
            outline=outline,
            notes=notes,
            paces=paces,
            besides=round(sum(part.more_s for part in paces) / 60),
            assumptions=pace.ASSUMPTIONS,
            questions=questions.of_notebook(lesson.path),
            exercise=exercises.find,
            hunt=hunts.find,
        )
        + "\n"
    )


def static_pace(lesson: Lesson) -> list[PartPace]:
    """The pace with the teaching notes' seconds for running; the same on every machine."""
    running = teaching.of_lesson(lesson.number).running
    return pace.of_lesson(outlines.outline(lesson), lesson.path, running)


def planned_minutes(plan: teaching.Plan, outline: Outline, paces: Sequence[PartPace]) -> float:
    """What a short plan takes: its parts with every exercise and hunt that it does not skip."""
    seconds = 0.0
    for part, spent in zip(outline.parts, paces, strict=True):
        if part.number in plan.parts:
            tasks = [exercises.find(id).minutes for id in part.exercises if id not in plan.skip]
            tasks += [hunts.find(id).minutes for id in part.hunts if id not in plan.skip]
            seconds += spent.total_s - spent.core_s + 60 * sum(tasks)
    return seconds / 60


def _template() -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["minutes"] = lambda seconds: f"{round(seconds / 30) / 2:g}"
    environment.filters["cell"] = lambda text: text.replace("|", "\\|")
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
