"""The front page: its files agree with each other and with the lessons, and it runs from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from labcore.lab import notebook_files, runner
from labcore.lab.course import outline, progress
from labcore.lab.figures import course_map
from labcore.lab.results import Results

PAGE = runner.front_page()
COURSE = outline.course()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def test_notebook_and_script_agree_and_hold_no_output() -> None:
    assert notebook_files.disagreements(PAGE.path) == [], "run `make notebooks`"
    book = nbformat.read(PAGE.path, as_version=4)
    assert all(not cell.outputs for cell in book.cells if cell.cell_type == "code")


def test_its_table_says_what_the_lessons_say() -> None:
    text = "\n".join(cell.source for cell in nbformat.read(PAGE.path, as_version=4).cells)
    found = re.findall(r"\| \[(\d) · ([^\]]+)\]\(([^)]+)\) \| (\d+) \| ([^|]+) \|", text)
    wanted = [
        (
            str(int(lesson.number)),
            lesson.title,
            f"{lesson.name}.ipynb",
            str(lesson.minutes),
            ", ".join(str(int(before)) for before in lesson.prerequisites) or "–",
        )
        for lesson in COURSE
    ]
    assert found == wanted


def test_a_lesson_stands_to_the_right_of_what_it_builds_on() -> None:
    places = course_map.layout(COURSE)
    assert len(set(places.values())) == len(COURSE)
    for lesson in COURSE:
        assert all(places[before][0] < places[lesson.number][0] for before in lesson.prerequisites)


def test_the_map_says_states_in_words() -> None:
    results = Results("01")
    results.record("exercises", "01.1", passed=True)
    results.save()
    texts = [note.text for note in course_map.course_map(progress.of_course()).layout.annotations]
    boxes = [text for text in texts if text]
    assert len(boxes) == 8
    assert "◐ begun" in boxes[0]
    assert all("○ open" in text for text in boxes[1:])
    assert len(texts) - len(boxes) == sum(len(lesson.prerequisites) for lesson in COURSE)


@pytest.mark.notebook
def test_it_runs_and_shows_map_and_table(folder: Path) -> None:
    book = notebook_files.execute(notebook_files.read_script(PAGE.path.with_suffix(".py")), PAGE.path.parent)
    shown = [output.data for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("application/vnd.plotly.v1+json" in data for data in shown)
    assert any("Begin lesson 1" in data.get("text/plain", "") for data in shown)
