"""The lesson runner, on small notebooks made for the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from rich.console import Console

from labcore.errors import LessonError
from labcore.lab import runner
from labcore.lab.runner import Lesson, Settings

PARAMETERS = (
    'MODEL: str = "story"\nDEVICE: str = "auto"\nSCALE: str = "auto"\nMODE: str = "learner"\nSEED: int = 0'
)


def _lesson(folder: Path, name: str, *sources: str) -> Lesson:
    cells = [
        new_markdown_cell(f"# Lesson {name}"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
    ]
    book = new_notebook(cells=[*cells, *map(new_code_cell, sources)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return Lesson(path)


@pytest.fixture
def course(tmp_path: Path) -> list[Lesson]:
    names = ("01_introduction", "02_two_steps", "03_kv_caching")
    return [_lesson(tmp_path, name, "print(MODE)") for name in names]


@pytest.mark.parametrize(
    "name", ["1", "01", "01_introduction", "introduction", "notebooks/01_introduction.ipynb"]
)
def test_a_lesson_goes_by_number_or_name(course: list[Lesson], name: str) -> None:
    assert runner.find([name], course) == [course[0]]


def test_unknown_lesson_offers_the_nearest(course: list[Lesson]) -> None:
    with pytest.raises(LessonError, match=r"'kv_cashing'; did you mean 03_kv_caching\?"):
        runner.find(["01", "kv_cashing"], course)


def test_unlike_name_lists_what_there_is(course: list[Lesson]) -> None:
    with pytest.raises(LessonError, match="there are 01_introduction, 02_two_steps, 03_kv_caching"):
        runner.find(["99"], course)


def test_lessons_come_in_order_and_by_suffix(course: list[Lesson], tmp_path: Path) -> None:
    (tmp_path / "02_two_steps.py").touch()
    (tmp_path / "helper.py").touch()
    assert runner.lessons(tmp_path) == course
    assert [lesson.name for lesson in runner.lessons(tmp_path, suffix=".py")] == ["02_two_steps"]


def test_title_is_the_first_heading(course: list[Lesson]) -> None:
    assert course[1].title == "Lesson 02_two_steps"


@pytest.mark.parametrize("change", [{"mode": "teacher"}, {"scale": "huge"}])
def test_impossible_settings_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(LessonError, match="choose"):
        Settings(**change)


def test_only_given_parameters_are_overridden() -> None:
    assert Settings(mode="solution", seed=7).parameters() == {"MODE": "solution", "SCALE": "quick", "SEED": 7}


def test_run_injects_parameters_and_keeps_results_apart(tmp_path: Path) -> None:
    code = "import os\nprint(MODE, SCALE, SEED, os.environ['LABCORE_RESULTS'])"
    lesson = _lesson(tmp_path, "04_deeper", code, "import os; print(os.getcwd())")
    out = tmp_path / "runs"
    seen: list[tuple[int, int]] = []
    run = runner.run_lesson(
        lesson, Settings(mode="solution", seed=5), out, on_cell=lambda *at: seen.append(at)
    )
    assert run.ok
    assert (run.cells, run.code_cells) == (4, 4)  # papermill adds the cell that injects
    assert seen[-1] == (5, 5)
    printed = [cell["outputs"][0]["text"] for cell in _cells(run) if cell["source"].startswith("import os")]
    assert printed == [f"solution quick 5 {out / 'executed'}\n", f"{tmp_path}\n"]


def _cells(run: runner.LessonRun) -> list[dict]:
    cells = json.loads(run.executed.read_text())["cells"]
    return [{**cell, "source": "".join(cell["source"]), "outputs": _joined(cell)} for cell in cells]


def _joined(cell: dict) -> list[dict]:
    return [{**output, "text": "".join(output.get("text", ""))} for output in cell.get("outputs", [])]


def test_kernel_is_this_interpreter(tmp_path: Path) -> None:
    lesson = _lesson(tmp_path, "05_kernel", "import sys; print(sys.prefix)")
    run = runner.run_lesson(lesson, Settings(), tmp_path / "runs")
    assert _cells(run)[-1]["outputs"][0]["text"].strip() == sys.prefix


def test_failing_lesson_leaves_its_notebook_and_the_next_one_runs(
    tmp_path: Path, course: list[Lesson]
) -> None:
    failing = _lesson(tmp_path, "00_failing", "print('before')", "1 / 0", "print('after')")
    console = Console(record=True, width=200)
    runs = runner.run_lessons([failing, course[0]], Settings(), tmp_path / "runs", console=console)
    assert [run.ok for run in runs] == [False, True]
    assert "ZeroDivisionError: division by zero" in (runs[0].error or "")
    assert (runs[0].cells, runs[0].code_cells) == (4, 5)  # papermill adds the cell that injects
    assert "before" in runs[0].executed.read_text()
    console.print(runner.summary_table(runs))
    shown = console.export_text()
    assert "2 lessons, 1 failed" in shown
    assert "s  00_failing: begins" in shown  # on a line of its own, since this console is no terminal
    assert "ZeroDivisionError" in shown


def test_dead_kernel_fails_the_lesson(tmp_path: Path) -> None:
    lesson = _lesson(tmp_path, "06_dies", "import os; os._exit(1)")
    run = runner.run_lesson(lesson, Settings(), tmp_path / "runs")
    assert "kernel died" in (run.error or "")
    assert run.executed.exists()


def test_endless_cell_fails_the_lesson(tmp_path: Path) -> None:
    lesson = _lesson(tmp_path, "07_waits", "import time; time.sleep(60)")
    run = runner.run_lesson(lesson, Settings(), tmp_path / "runs", cell_timeout_s=1)
    assert run.error == "a cell ran for more than 1 s"
