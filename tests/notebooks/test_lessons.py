"""Lessons from top to bottom: in both modes, against their stored outputs, and as an exported page."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from labcore.lab import notebook_files, runner
from labcore.lab.jupyter import kernel_environment
from labcore.lab.runner import Lesson, LessonRun

# A lesson's own tests stay on one worker, where they share its executions.
pytestmark = [pytest.mark.notebook, pytest.mark.timeout(900)]

LESSONS = [
    pytest.param(lesson, id=lesson.name, marks=pytest.mark.xdist_group(lesson.name))
    for lesson in runner.lessons()
]
each_lesson = pytest.mark.parametrize("lesson", LESSONS)
# nbval executes a lesson once more: one of them here, all in `make test-long`.
BY_NBVAL = [
    one if place == 0 else pytest.param(*one.values, id=one.id, marks=[*one.marks, pytest.mark.long])
    for place, one in enumerate(LESSONS)
]
PLOT = "application/vnd.plotly.v1+json"
Execute = Callable[[Lesson, str], LessonRun]


@pytest.mark.parametrize("mode", runner.MODES)
@each_lesson
def test_runs_whole(
    lesson: Lesson, mode: str, execute: Execute, record_property: Callable[[str, object], None]
) -> None:
    """The seconds are reported, not judged: the machine may be busy with other tests."""
    run = execute(lesson, mode)
    assert run.error is None
    assert run.cells == run.code_cells
    record_property("seconds", round(run.seconds, 1))
    print(f"{lesson.name} ({mode}): {run.cells} cells in {run.seconds:.1f} s")


@each_lesson
def test_exercises_stay_open_for_the_learner_and_pass_in_the_solution(
    lesson: Lesson, execute: Execute
) -> None:
    learner, solution = (_shown(execute(lesson, mode)) for mode in runner.MODES)
    assert "not attempted" in learner
    assert "not attempted" not in solution


def _shown(run: LessonRun) -> str:
    """All text that the cells of an executed lesson put out."""
    outputs = [output for cell in _code_cells(run) for output in cell.outputs]
    return "\n".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs
    )


def _code_cells(run: LessonRun) -> list[NotebookNode]:
    return [cell for cell in nbformat.read(run.executed, as_version=4).cells if cell.cell_type == "code"]


@each_lesson
def test_exported_page_draws_every_plot(lesson: Lesson, execute: Execute) -> None:
    book = nbformat.read(execute(lesson, "learner").executed, as_version=4)
    plots = sum(PLOT in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", []))
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(book)
    drawn = re.findall(r"Plotly\.newPlot\(\s*[\"']([0-9a-f-]{36})", page)
    assert plots > 0
    assert len(set(drawn)) == plots


@each_lesson
def test_stored_outputs_are_reproduced(lesson: Lesson, execute: Execute) -> None:
    """What nbval would compare, in the execution that is there already: cells are found by their ids."""
    made = {cell.id: _compared(cell) for cell in _code_cells(execute(lesson, "learner"))}
    stored = {
        cell.id: _compared(cell)
        for cell in nbformat.read(lesson.path, as_version=4).cells
        if notebook_files.COMPARE_TAG in cell.metadata.get("tags", [])
    }
    assert len(stored) >= 5
    assert all(stored.values())
    assert {id: made[id] for id in stored} == stored


def _compared(cell: NotebookNode) -> str:
    """The text that a cell put out, in however many pieces it came."""
    return "".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs
    )


@pytest.mark.parametrize("lesson", BY_NBVAL)
def test_nbval_finds_outputs_reproduced_and_a_spoiled_one_wrong(lesson: Lesson, tmp_path: Path) -> None:
    """One run of nbval over the lesson, in which each compared cell is followed by a spoiled twin.

    The originals must pass and the twins must fail: nbval really compares, and finds what differs.
    """
    book = nbformat.read(lesson.path, as_version=4)
    twins = _with_spoiled_twins(book)
    path = tmp_path / lesson.path.name
    nbformat.write(book, path)
    outcome = _nbval(path)
    expected = {index: ("FAILED" if index in twins else "PASSED") for index in outcome}
    assert outcome == expected
    assert len(outcome) == sum(cell.cell_type == "code" for cell in book.cells)
    assert Counter(outcome.values())["FAILED"] == len(twins) >= 5


def _with_spoiled_twins(book: NotebookNode) -> set[int]:
    """Insert the twins; return their places among the code cells."""
    cells: list[NotebookNode] = []
    twins: set[int] = set()
    for cell in book.cells:
        cells.append(cell)
        compared = notebook_files.COMPARE_TAG in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and compared:
            twin = copy.deepcopy(cell)
            twin.id = f"{cell.id}-spoiled"
            _spoil(twin)
            twins.add(sum(each.cell_type == "code" for each in cells))
            cells.append(twin)
    book.cells = cells
    return twins


def _spoil(cell: NotebookNode) -> None:
    """Change one character of the stored text."""
    output = cell.outputs[0]
    holder, key = (output, "text") if "text" in output else (output["data"], "text/plain")
    text = holder[key]
    holder[key] = ("x" if text[0] != "x" else "y") + text[1:]


def _nbval(path: Path) -> dict[int, str]:
    """What nbval says of each code cell, by its number."""
    words = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "-v"]
    quiet = ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null", "--rootdir", str(path.parent)]
    with kernel_environment(path.parent / "results"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words, *quiet, str(path)],
            capture_output=True,
            text=True,
            cwd=path.parent,
        )
    outcome = dict(re.findall(r"::Cell (\d+) (PASSED|FAILED|SKIPPED|XFAIL)", done.stdout))
    assert outcome, done.stdout + done.stderr
    return {int(number): verdict for number, verdict in outcome.items()}
