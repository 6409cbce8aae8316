"""What a lesson's files must look like, without running them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import NotebookNode

from labcore.lab import notebook_files, runner
from labcore.lab.runner import Lesson

LESSONS = runner.lessons()
PARAMETERS = {"MODEL": "'story'", "DEVICE": "'auto'", "SCALE": "'auto'", "MODE": "'learner'", "SEED": "0"}
TYPES = {"MODEL": "str", "DEVICE": "str", "SCALE": "str", "MODE": "str", "SEED": "int"}

each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


def _code(lesson: Lesson) -> list[NotebookNode]:
    return [cell for cell in nbformat.read(lesson.path, as_version=4).cells if cell.cell_type == "code"]


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _tagged(lesson: Lesson, tag: str) -> list[NotebookNode]:
    return [cell for cell in _code(lesson) if tag in _tags(cell)]


def test_lessons_are_numbered_from_one_without_a_gap() -> None:
    numbers = [lesson.number for lesson in LESSONS]
    assert numbers == [f"{i:02d}" for i in range(1, len(numbers) + 1)]
    assert {"01", "02"} <= set(numbers)


def test_every_script_has_its_notebook() -> None:
    assert [lesson.name for lesson in runner.lessons(suffix=".py")] == [lesson.name for lesson in LESSONS]


@each_lesson
def test_is_a_valid_notebook_of_our_kernel(lesson: Lesson) -> None:
    book = nbformat.read(lesson.path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert "papermill" not in book.metadata
    assert "widgets" not in book.metadata


@each_lesson
def test_agrees_with_its_script(lesson: Lesson) -> None:
    found = notebook_files.disagreements(lesson.path)
    assert found == [], "run `make notebooks`"


@each_lesson
def test_is_small(lesson: Lesson) -> None:
    assert lesson.path.stat().st_size < 200_000


@each_lesson
def test_only_kept_outputs_are_stored(lesson: Lesson) -> None:
    stored = [
        cell.source for cell in _code(lesson) if cell.outputs and notebook_files.KEEP_TAG not in _tags(cell)
    ]
    assert stored == []


@each_lesson
def test_at_least_five_cells_are_really_compared(lesson: Lesson) -> None:
    """nbval compares nothing in a cell without an execution count, or without an output."""
    compared = [
        cell
        for cell in _tagged(lesson, notebook_files.COMPARE_TAG)
        if cell.execution_count is not None and cell.outputs and notebook_files.KEEP_TAG in _tags(cell)
    ]
    assert len(compared) >= 5


@each_lesson
def test_kept_outputs_are_plain_text(lesson: Lesson) -> None:
    for cell in _tagged(lesson, notebook_files.KEEP_TAG):
        for output in cell.outputs:
            kinds = set(output.get("data", {"text/plain": ""}))
            assert kinds == {"text/plain"}, cell.source


@each_lesson
def test_parameters_are_the_five_as_annotated_literals_with_a_comment(lesson: Lesson) -> None:
    (cell,) = _tagged(lesson, "parameters")
    statements = ast.parse(cell.source).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in statements)
    found = {ast.unparse(node.target): ast.unparse(node.value) for node in statements}  # type: ignore[attr-defined]
    assert found == PARAMETERS
    assert {ast.unparse(node.target): ast.unparse(node.annotation) for node in statements} == TYPES  # type: ignore[attr-defined]
    assert all("#" in line for line in cell.source.splitlines() if ":" in line.split("#")[0])


@each_lesson
def test_papermill_can_explain_the_parameters(lesson: Lesson) -> None:
    help_ = papermill.inspect_notebook(str(lesson.path))
    assert set(help_) == set(PARAMETERS)
    assert all(entry["help"] for entry in help_.values())


@each_lesson
def test_no_cell_hides_installs_or_fetches(lesson: Lesson) -> None:
    forbidden = re.compile(
        r"%%capture|pip install|conda install|apt-get|cdn\.|https?://[^\s)\"']+\.js|raises-exception"
    )
    for cell in nbformat.read(lesson.path, as_version=4).cells:
        assert not forbidden.search(cell.source), cell.source
        assert "raises-exception" not in _tags(cell)


@each_lesson
def test_no_line_of_code_ends_with_a_semicolon(lesson: Lesson) -> None:
    for cell in _code(lesson):
        assert not [line for line in cell.source.splitlines() if line.rstrip().endswith(";")]


@each_lesson
def test_starts_and_finishes_the_session(lesson: Lesson) -> None:
    code = "\n".join(cell.source for cell in _code(lesson))
    assert "lab.start(" in code
    assert "lab.finish()" in code


@each_lesson
def test_pictures_are_there(lesson: Lesson, root: Path) -> None:
    for cell in nbformat.read(lesson.path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", cell.source):
                assert (root / "notebooks" / target).is_file(), target
