"""Minutes that a lesson states are those that its words, cells, figures and core exercises take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import runner
from labcore.lab.course import guides, measured_pace, outline, pace
from labcore.lab.runner import Lesson

TOLERANCE = 1.0  # minutes, of a part and of a lesson

each_lesson = pytest.mark.parametrize("lesson", runner.lessons(), ids=lambda lesson: lesson.name)


@each_lesson
def test_stated_minutes_hold(lesson: Lesson) -> None:
    parts = guides.static_pace(lesson)
    off = {part.number: (part.total_s - part.stated_s) / 60 for part in parts}
    assert {number: minutes for number, minutes in off.items() if abs(minutes) > TOLERANCE} == {}
    assert abs(sum(off.values())) <= TOLERANCE
    assert sum(part.stated_s for part in parts) <= 40 * 60


@each_lesson
def test_lesson_says_what_its_minutes_count(lesson: Lesson) -> None:
    text = lesson.path.read_text(encoding="utf-8")
    assert "Minutes count reading, running and the exercises marked ●●●." in text
    table = [f"| {part.minutes} |" for part in outline.outline(lesson).parts]
    assert lesson.number == "01" or all(minutes in text for minutes in table)


def _markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str, duration: float | None = None, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    ran = {} if duration is None else {"papermill": {"duration": duration}}
    return {"cell_type": "code", "metadata": {"tags": list(tags), **ran}, "source": text, "outputs": []}


def _book(tmp_path: Path, name: str, *cells: dict[str, Any]) -> Path:
    path = tmp_path / name
    path.write_text(json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")
    return path


def _lesson(tmp_path: Path, *durations: float | None) -> tuple[Lesson, Path]:
    """A small lesson, and how it was executed."""
    text = "# 1 · One\n" + " word" * 86  # with the title's two and the heading's two: 90
    head = _markdown(f"{text}\n\n## Part 1 · Two three\n*5 minutes*")
    sources = (
        'lab.predict("01.1", "?")',
        "a = 1\n\nb = 2\nlab.napkin(a)",
        'lab.show(b)\nlab.check("01.1", a)',
    )
    first = _book(tmp_path, "01_one.ipynb", head, *map(_code, sources))
    ran = [_code(source, duration) for source, duration in zip(sources, durations, strict=True)]
    injected = _code("MODE = 1", 9.0, ("injected-parameters",))
    return Lesson(first), _book(tmp_path, "01_one.learner.ipynb", head, injected, *ran)


def test_seconds_come_from_words_lines_names_badges_and_papermill(tmp_path: Path) -> None:
    lesson, executed = _lesson(tmp_path, 1.5, 2.0, 0.5)
    known = outline.outline(lesson)
    (part,) = pace.of_lesson(known, lesson.path, pace.measured_running(known, lesson.path, executed))
    text = json.loads(lesson.path.read_text(encoding="utf-8"))["cells"][0]["source"]
    read = 60 * len(pace.words(text)) / pace.WORDS_PER_MINUTE
    assert part.running_s == 4.0  # the injected cell is not the lesson's
    assert part.predicting_s == pace.PREDICTION_S
    assert part.looking_s == pace.CONTROL_S + pace.FIGURE_S
    assert part.reading_s == pytest.approx(
        read + 4 * pace.LINE_S
    )  # not the cell of the exercise, nor blank lines
    assert (part.core_s, part.more_s) == (3 * 60, 0)
    assert part.total_s == part.reading_s + part.predicting_s + part.looking_s + 4.0 + 180


def test_words_of_exercises_and_marks_are_not_counted() -> None:
    tasks = "**Exercise 01.1** · ★☆☆ · 3 min. Write it.\n\n**Hunt 01.A** · 5 min. Mend."
    text = f"Two words.\n\n{tasks}\n\n| a | 5 |\n|---|---|"
    assert pace.words(text) == ["Two", "words.", "a", "5"]


def test_executed_copy_of_another_state_or_of_a_failed_run_is_named(tmp_path: Path) -> None:
    lesson, executed = _lesson(tmp_path, 1.0, None, 1.0)
    known = outline.outline(lesson)
    with pytest.raises(LessonError, match="did not run to its end; run the lesson again"):
        pace.measured_running(known, lesson.path, executed)
    other = _book(tmp_path, "other.ipynb", _markdown("# 1 · Another"))
    with pytest.raises(LessonError, match=r"other.ipynb was made from another state of 01_one.ipynb"):
        pace.measured_running(known, lesson.path, other)


def test_lesson_that_fails_has_no_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson, _ = _lesson(tmp_path, 1.0, 1.0, 1.0)
    failed = runner.LessonRun(lesson, "learner", tmp_path / "x.ipynb", 1, 3, 0.1, "cell 2: NameError: b")
    monkeypatch.setattr(runner, "run_lessons", lambda *_, **__: [failed])
    with pytest.raises(LessonError, match="pace of 01_one cannot be told, because it failed: cell 2"):
        measured_pace.of_lesson(lesson, tmp_path, again=True, console=Console())


@pytest.mark.notebook
@pytest.mark.xdist_group("01_introduction")
def test_command_executes_a_lesson_once_and_holds_it_against_its_minutes(tmp_path: Path) -> None:
    words = ["lessons", "pace", "01", "--from", str(tmp_path)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    executed = tmp_path / "01_introduction.learner.ipynb"
    changed = executed.stat().st_mtime_ns
    second = CliRunner().invoke(app, words)
    assert executed.stat().st_mtime_ns == changed
    assert "stated" in second.output
    assert pace.ASSUMPTIONS.split(";")[0] in " ".join(second.output.split())
