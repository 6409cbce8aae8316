"""Reset puts aside and deletes nothing; notebooks come back as they were."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import notebook_files, runner
from labcore.lab.course import reset
from labcore.lab.results import Results


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def copy_of(original: runner.Lesson, folder: Path) -> runner.Lesson:
    """A lesson's two files outside of any clone."""
    copy = folder / "notebooks" / original.path.name
    copy.parent.mkdir()
    shutil.copy(original.path, copy)
    shutil.copy(original.path.with_suffix(".py"), copy.with_suffix(".py"))
    return runner.Lesson(copy)


@pytest.fixture
def lesson(tmp_path: Path) -> runner.Lesson:
    """A copy of lesson 2 that may be spoiled."""
    return copy_of(runner.find(["02"])[0], tmp_path)


@pytest.fixture
def committed(lesson: runner.Lesson) -> runner.Lesson:
    """The same in a clone, or no test where there is no git."""
    if shutil.which("git") is None:
        pytest.skip("there is no git here")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "as it came"]):
        subprocess.run(["git", "-C", str(lesson.path.parent), *words], check=True)
    return lesson


@pytest.mark.parametrize("original", [runner.front_page(), *runner.lessons()], ids=lambda lesson: lesson.name)
def test_every_page_comes_back_byte_for_byte_without_git(original: runner.Lesson, tmp_path: Path) -> None:
    lesson = copy_of(original, tmp_path)
    assert reset.pristine(lesson.path) == original.path.read_text(encoding="utf-8")


def test_kept_outputs_that_somebody_changed_come_back_from_git(committed: runner.Lesson) -> None:
    before = committed.path.read_text(encoding="utf-8")
    book = nbformat.read(committed.path, as_version=4)
    kept = [cell for cell in book.cells if notebook_files.KEEP_TAG in cell.metadata.get("tags", [])]
    kept[0].source, kept[1].outputs = "print(1)", []
    book.metadata["language_info"]["version"] = "3.99"
    nbformat.write(book, committed.path)
    reset.reset([committed], notebooks=True)
    assert committed.path.read_text(encoding="utf-8") == before
    committed.path.with_suffix(".py").unlink()
    committed.path.write_text("gone", encoding="utf-8")
    reset.reset([committed], notebooks=True)
    assert committed.path.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("text", ["{half", "[]", "{}", '{"nbformat": 4, "cells": 3}', ""])
def test_a_damaged_notebook_comes_back_without_outputs_and_is_kept(lesson: runner.Lesson, text: str) -> None:
    lesson.path.write_text(text, encoding="utf-8")
    aside, moved = reset.reset([lesson], notebooks=True)
    assert moved == [lesson.path.name]
    assert (aside / lesson.path.name).read_text(encoding="utf-8") == text
    assert notebook_files.disagreements(lesson.path) == []


def test_a_deleted_notebook_comes_back(
    results: Path, lesson: runner.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "notebooks_dir", lambda: lesson.path.parent)
    lesson.path.unlink()
    assert [found.path for found in reset.resettable()] == [lesson.path]
    assert reset.reset(reset.resettable(), notebooks=True)[1] == []
    assert notebook_files.disagreements(lesson.path) == []
    assert not results.exists()


def test_without_script_and_git_nothing_moves(results: Path, lesson: runner.Lesson) -> None:
    Results("02").save()
    lesson.path.with_suffix(".py").unlink()
    with pytest.raises(LessonError, match=r"02_two_steps\.py beside it is gone and there is no git"):
        reset.reset([lesson], notebooks=True)
    assert [path.name for path in results.iterdir()] == ["lesson-02.json"]


def test_results_move_aside_and_nothing_is_lost(results: Path) -> None:
    for number, mode in (("01", "learner"), ("02", "learner"), ("02", "solution")):
        made = Results(number, mode)
        made.record("exercises", f"{number}.1", passed=True)
        made.save()
    aside, moved = reset.reset(runner.find(["02"]))
    assert moved == ["lesson-02.json", "lesson-02-solution.json"]
    assert json.loads((aside / "lesson-02.json").read_text(encoding="utf-8"))["exercises"]["02.1"]["passed"]
    assert sorted(path.name for path in results.iterdir()) == [aside.name, "lesson-01.json"]
    assert Results.open("02").exercises == {}


def test_all_begins_anew_on_class_walls_too(results: Path) -> None:
    """The next learner at this machine must not replace the entry of the one before."""
    results.mkdir()
    (results / "wall.json").write_text('{"classes": []}')
    said = CliRunner().invoke(app, ["lessons", "reset", "01", "--yes"])
    assert (results / "wall.json").exists(), said.output
    said = CliRunner().invoke(app, ["lessons", "reset", "--all", "--yes"])
    assert "wall.json" in said.output
    assert not (results / "wall.json").exists()
    assert [path.parent.parent for path in results.rglob("wall.json")] == [results]


def test_two_resets_keep_both(results: Path) -> None:
    folders = []
    for value in (1, 2):
        made = Results("01")
        made.record("measurements", "x", value=value)
        made.save()
        folders.append(reset.reset(runner.find(["01"]))[0])
    kept = [json.loads((each / "lesson-01.json").read_text(encoding="utf-8")) for each in folders]
    values = [data["measurements"]["x"] for data in kept]
    assert values == [{"value": 1}, {"value": 2}]


def test_an_edited_and_run_notebook_comes_back_and_is_kept(lesson: runner.Lesson) -> None:
    before = lesson.path.read_text(encoding="utf-8")
    book = nbformat.read(lesson.path, as_version=4)
    book.cells[2].source = "print('mine')"
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="mine\n")]
    book.metadata["widgets"] = {"state": {}}
    del book.cells[5]
    nbformat.write(book, lesson.path)
    aside, moved = reset.reset([lesson], notebooks=True)
    assert moved == [lesson.path.name]
    assert lesson.path.read_text(encoding="utf-8") == before
    assert "print('mine')" in (aside / lesson.path.name).read_text(encoding="utf-8")


def test_nothing_to_reset_makes_no_folder(results: Path, lesson: runner.Lesson) -> None:
    _, moved = reset.reset([lesson], notebooks=True)
    assert moved == []
    assert not results.exists()


def test_a_folder_that_refuses_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Results("01").save()

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(reset.os, "replace", refuse)
    with pytest.raises(LessonError, match=r"stopped at .*lesson-01\.json \(Permission denied\); 0 files"):
        reset.reset(runner.find(["01"]))
    assert (results / "lesson-01.json").exists()


def test_command_asks_first(results: Path) -> None:
    Results("01").save()
    said = CliRunner().invoke(app, ["lessons", "reset", "1"], input="n\n")
    assert said.exit_code == 1
    assert (results / "lesson-01.json").exists()
    done = CliRunner().invoke(app, ["lessons", "reset", "1", "--yes"])
    assert "Put aside into" in done.output
    assert "lesson-01.json. If one of these" in " ".join(done.output.split())
    assert "as new" in CliRunner().invoke(app, ["lessons", "reset", "--all", "--yes"]).output


def test_unknown_lessons_are_answered_with_the_nearest() -> None:
    said = CliRunner().invoke(app, ["lessons", "reset", "two_step", "--yes"])
    assert said.exit_code == 2
    assert "did you mean 02_two_steps?" in said.output
