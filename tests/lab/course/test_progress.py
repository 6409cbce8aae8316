"""Progress is read from saved files; a damaged one is named and hides no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from labcore.lab import results
from labcore.lab.course import outline, progress
from labcore.lab.results import Results


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def finish(number: str, mode: str = "learner", exercises: int = 99) -> outline.Outline:
    """Save results as a learner who got the first `exercises` right and locked every prediction."""
    (lesson,) = [entry for entry in outline.course() if entry.number == number]
    saved = Results(number, mode)
    for id in lesson.ids("exercises")[:exercises]:
        saved.record("exercises", id, passed=True)
    for id in lesson.ids("predictions"):
        saved.record("predictions", id, value=3, locked=True, measured=4.0)
    saved.save()
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
    old = Results("01")
    old.record("exercises", "01.99", passed=True)
    old.save()
    assert progress.of_course()[0].right == frozenset()


BAD = [
    "{half",
    "[]",
    '{"exercises": 3}',
    '{"exercises": {"01.1": 3}}',
    '{"machine": "x"}',
    '{"saved_at": 5}',
    "[" * 9999,
]


@pytest.mark.parametrize("text", BAD)
def test_a_damaged_file_is_named_and_hides_no_other(folder: Path, text: str) -> None:
    finish("02")
    (folder / "lesson-01.json").write_text(text, encoding="utf-8")
    lessons = progress.of_course()
    assert lessons[0].state == "file damaged"
    assert "lesson-01.json is damaged" in progress.what_next(lessons)
    assert lessons[1].is_done


def test_a_file_that_is_no_text_is_damaged(folder: Path) -> None:
    folder.mkdir()
    (folder / "lesson-01.json").write_bytes(b"\xff\xfe\x00")
    assert progress.of_course()[0].state == "file damaged"


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "lesson-01.json").mkdir(parents=True)
    problem = progress.of_course()[0].problem
    assert "lesson-01.json could not be read (Is a directory); mend its permissions" in problem


def test_a_command_given_elsewhere_is_pointed_to_the_results(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    monkeypatch.setattr(results, "__file__", str(clone / "labcore" / "lab" / "results.py"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LABCORE_RESULTS")
    monkeypatch.chdir(tmp_path)
    assert progress.misplaced() == ""
    saved = clone / "runs" / "results" / "lesson-01.json"
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert f"but there are in {saved.parent}: give the command in {clone}." in progress.misplaced()
    monkeypatch.setenv("LABCORE_RESULTS", str(folder))
    assert progress.misplaced() == ""


def test_all_done_points_to_the_report() -> None:
    for number in outline.PREREQUISITES:
        finish(number)
    assert "labcore report" in progress.what_next(progress.of_course())
