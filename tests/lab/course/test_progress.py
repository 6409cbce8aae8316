"""Progress is read from saved files; a damaged one is named and hides no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from labcore.lab.course import outline, progress
from labcore.lab.results import Results


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def finish(number: str, mode: str = "learner", exercises: int = 99) -> outline.Outline:
    """Save results as a learner who got the first `exercises` right and locked every prediction."""
    (lesson,) = [entry for entry in outline.course() if entry.number == number]
    results = Results(number, mode)
    for id in lesson.ids("exercises")[:exercises]:
        results.record("exercises", id, passed=True)
    for id in lesson.ids("predictions"):
        results.record("predictions", id, value=3, locked=True, measured=4.0)
    results.save()
    return lesson


def test_nothing_saved_begins_with_lesson_one() -> None:
    lessons = progress.of_course()
    assert {entry.state for entry in lessons} == {"not begun"}
    assert progress.what_next(lessons).startswith("Begin lesson 1, ")


def test_what_is_done_counts_and_the_next_lesson_is_named() -> None:
    lesson = finish("01")
    lessons = progress.of_course()
    assert (lessons[0].state, lessons[0].is_done) == ("done", True)
    done, of_all = lessons[0].of_all
    assert done == of_all - len(lesson.ids("hunts"))
    assert progress.what_next(lessons).startswith("Begin lesson 2, ")
    finish("02", exercises=1)
    lessons = progress.of_course()
    assert progress.what_next(lessons).startswith("Go on with lesson 2, ")
    row = progress.rows(lessons)[1]
    assert row["exercises right"] == "1 of 5"
    assert row["state"] == "begun"


def test_solution_mode_counts_nothing() -> None:
    finish("01", mode="solution")
    assert progress.of_course()[0].of_all[0] == 0


def test_an_id_that_the_lesson_no_longer_asks_counts_nothing() -> None:
    results = Results("01")
    results.record("exercises", "01.99", passed=True)
    results.save()
    assert progress.of_course()[0].right == frozenset()


@pytest.mark.parametrize("text", ["{half", "[]", '{"exercises": 3}'])
def test_a_damaged_file_is_named_and_hides_no_other(folder: Path, text: str) -> None:
    finish("02")
    (folder / "lesson-01.json").write_text(text, encoding="utf-8")
    lessons = progress.of_course()
    assert lessons[0].state == "file damaged"
    assert "lesson-01.json is damaged" in progress.what_next(lessons)
    assert lessons[1].is_done


def test_all_done_points_to_the_report() -> None:
    for number in outline.PREREQUISITES:
        finish(number)
    assert "labcore report" in progress.what_next(progress.of_course())
