"""Copies: with everything for instructors, free of solutions for learners, never written over unasked."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import exercises, hunts, runner
from labcore.lab.course import copies, outline, solutions, teaching
from labcore.lab.exercises.desk import source_of
from labcore.lab.hunts.registry import same_code
from labcore.lab.runner import Lesson, Settings

each_lesson = pytest.mark.parametrize("lesson", runner.lessons(), ids=lambda lesson: lesson.name)


def _copy(lesson: Lesson, reader: str, out: Path) -> NotebookNode:
    (path,) = copies.write([lesson], reader, out)
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    return book


def _tagged(book: NotebookNode, tag: str) -> list[str]:
    return [cell.source for cell in book.cells if tag in cell.metadata.get("tags", [])]


def _functions(book: NotebookNode) -> list[str]:
    """The source of each function that a cell defines."""
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    trees = [node for source in code for node in ast.parse(source).body]
    return [ast.unparse(node) for node in trees if isinstance(node, ast.FunctionDef)]


@each_lesson
def test_learners_get_the_lesson_and_nothing_of_its_solutions(lesson: Lesson, tmp_path: Path) -> None:
    book = _copy(lesson, "learners", tmp_path)
    original = nbformat.read(lesson.path, as_version=4)
    assert [cell.source for cell in book.cells] == [cell.source for cell in original.cells]
    functions = _functions(book)
    text = "\n".join(cell.source for cell in book.cells)
    for task in exercises.of_lesson(lesson.number):
        if callable(task.solution):
            assert not any(same_code(one, source_of(task.solution)) for one in functions), task.id
        assert not any(hint in text for hint in task.hints)
    for bug in hunts.of_lesson(lesson.number):
        assert not any(same_code(one, source_of(bug.original)) for one in functions), bug.id
    assert "Instructor" not in text
    notes = teaching.of_lesson(lesson.number)
    said = [wrong.say for expected in notes.predictions.values() for wrong in expected.wrong]
    assert not any(one in text for one in [*said, *(talk.good for talk in notes.discussions)])


@each_lesson
def test_instructors_find_solution_hints_notes_and_discussion_where_they_are_needed(
    lesson: Lesson, tmp_path: Path
) -> None:
    book, known = _copy(lesson, "instructors", tmp_path), outline.outline(lesson)
    asked = [
        (index, outline.calls(cell.source))
        for index, cell in enumerate(book.cells)
        if cell.cell_type == "code"
    ]
    cells = book.cells
    for index, calls in asked:
        tags = cells[index].metadata.get("tags", [])
        for kind, id in calls:
            if kind == "predictions":
                before = "\n".join(cell.source for cell in cells[max(0, index - 2) : index])
                assert f"**Instructor, prediction {id}.**" in before
            elif copies.SOLUTION not in tags:
                note, code = cells[index + 1], cells[index + 2]
                assert all(hint in note.source for hint in solutions.hints(id))
                assert (code.source, code.metadata.tags) == (solutions.cell_of(id), [copies.SOLUTION])
    assert len(_tagged(book, copies.SOLUTION)) == len(known.ids("exercises")) + len(known.ids("hunts"))
    assert len(_tagged(book, copies.DISCUSSION)) == len(known.parts)
    assert 'MODE: str = "solution"' in "\n".join(_tagged(book, "parameters"))


def test_copy_comes_from_the_lesson_as_it_came_whatever_was_done_to_it(tmp_path: Path) -> None:
    (lesson,) = runner.find(["01"])
    edited = tmp_path / "notebooks" / lesson.path.name
    edited.parent.mkdir()
    edited.with_suffix(".py").write_bytes(lesson.path.with_suffix(".py").read_bytes())
    book = nbformat.read(lesson.path, as_version=4)
    book.cells[-1].source = "the_answer = 42"
    nbformat.write(book, edited)
    copy = _copy(Lesson(edited), "learners", tmp_path / "out")
    assert "the_answer" not in "\n".join(cell.source for cell in copy.cells)


def test_a_copy_that_somebody_worked_in_is_kept_and_nothing_is_written(tmp_path: Path) -> None:
    lessons = runner.find(["01", "02"])
    first, second = copies.write(lessons, "learners", tmp_path)
    copies.write(lessons, "learners", tmp_path)  # untouched: written again
    book = nbformat.read(second, as_version=4)
    next(cell for cell in book.cells if "lab.TODO" in cell.source).source += "\nmy_answer = 1"
    nbformat.write(book, second)
    edited, before = second.read_bytes(), first.stat().st_mtime_ns
    with pytest.raises(LessonError, match=r"holds 1 files .* \(02_two_steps.ipynb\); nothing was written"):
        copies.write(lessons, "instructors", tmp_path)
    assert (second.read_bytes(), first.stat().st_mtime_ns) == (edited, before)
    copies.write(lessons, "instructors", tmp_path, force=True)
    assert b"my_answer" not in second.read_bytes()


def test_a_run_counts_as_work_and_a_strange_file_too(tmp_path: Path) -> None:
    (path,) = copies.write(runner.find(["01"]), "learners", tmp_path)
    book = nbformat.read(path, as_version=4)
    code = next(cell for cell in book.cells if cell.cell_type == "code")
    code.outputs = [nbformat.v4.new_output("stream", text="measured here")]
    nbformat.write(book, path)
    assert not copies.is_edited(path)
    with pytest.raises(LessonError, match="somebody has worked in"):
        copies.write(runner.find(["01"]), "learners", tmp_path)
    path.write_text("no notebook", encoding="utf-8")
    with pytest.raises(LessonError, match="somebody has worked in"):
        copies.write(runner.find(["01"]), "learners", tmp_path)


def test_command_answers_bad_input_in_one_sentence(tmp_path: Path) -> None:
    words = ["lessons", "copies", "2", "--for", "learners", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    (tmp_path / "02_two_steps.ipynb").write_text("mine", encoding="utf-8")
    refused = CliRunner().invoke(app, words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--force" in refused.stderr
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0
    assert CliRunner().invoke(app, ["lessons", "copies", "--for", "parents", "--out", "x"]).exit_code == 2
    with pytest.raises(LessonError, match="for learners or instructors, not for 'parents'"):
        copies.write([], "parents", tmp_path)


@pytest.mark.notebook
@pytest.mark.timeout(600)
def test_instructors_copy_runs_whole_and_every_solution_is_right(tmp_path: Path) -> None:
    (path,) = copies.write(runner.find(["03"]), "instructors", tmp_path)
    run = runner.run_lesson(Lesson(path), Settings(mode="solution"), tmp_path / "runs")
    assert run.error is None
    book = nbformat.read(run.executed, as_version=4)
    solved = [cell for cell in book.cells if copies.SOLUTION in cell.metadata.get("tags", [])]
    shown = ["".join(o.get("data", {}).get("text/plain", "") for o in cell.outputs) for cell in solved]
    assert len(shown) == 6
    assert all(text.startswith("✓") for text in shown)
