"""The outline is read from the notebooks, and agrees with the registers of exercises and hunts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labcore.errors import LessonError
from labcore.lab import exercises, hunts, runner
from labcore.lab.course import outline

COURSE = outline.course()


@pytest.mark.parametrize("lesson", COURSE, ids=lambda lesson: lesson.name)
def test_a_lesson_has_its_parts_and_asks_what_the_registers_hold(lesson: outline.Outline) -> None:
    assert [part.number for part in lesson.parts] == [1, 2, 3, 4]
    assert lesson.minutes <= 40
    assert set(lesson.ids("exercises")) == {task.id for task in exercises.of_lesson(lesson.number)}
    assert set(lesson.ids("hunts")) == {bug.id for bug in hunts.of_lesson(lesson.number)}
    assert len(lesson.ids("predictions")) >= 4
    assert all(part.predictions for part in lesson.parts)


def test_prerequisites_come_before() -> None:
    assert [lesson.number for lesson in COURSE] == list(outline.PREREQUISITES)
    assert all(before < lesson.number for lesson in COURSE for before in lesson.prerequisites)


def test_calls_are_found_wherever_they_stand() -> None:
    source = 'lab.check("02.2", f)\nguess = lab.predict("02.1", "?")\n\n@lab.hunt("02.A")\ndef f(): pass'
    assert outline.calls(source) == [
        ("exercises", "02.2"),
        ("predictions", "02.1"),
        ("hunts", "02.A"),
    ]


def test_a_part_without_minutes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "09_none.ipynb"
    cell = {"cell_type": "markdown", "source": ["# 9 · None\n", "## Part 1 · Nothing\n"]}
    path.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    with pytest.raises(LessonError, match="Part 1 of 09_none.ipynb does not say its minutes; write"):
        outline.outline(runner.Lesson(path))
