"""What the projector gets: one section open, large type, settings and results of its own, and no notes."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import runner, theme
from labcore.lab.course import large_type, outline, presenting
from labcore.lab.display import PLOTLY_MIME, figure_bundle
from labcore.lab.runner import Lesson

each_lesson = pytest.mark.parametrize("lesson", runner.lessons(), ids=lambda lesson: lesson.name)
FOLDED = "jp-MarkdownHeadingCollapsed"


def _stage(
    lesson: Lesson, out: Path, part: int | None = None
) -> tuple[presenting.Stage, nbformat.NotebookNode]:
    stage = presenting.prepare(lesson, out, part=part)
    book = nbformat.read(stage.notebook, as_version=4)
    nbformat.validate(book)
    return stage, book


def _headings(book: nbformat.NotebookNode) -> dict[str, bool]:
    """Each section's heading, and whether it is folded."""
    cells = [cell for cell in book.cells if cell.cell_type == "markdown" and cell.source.startswith("#")]
    return {cell.source: bool(cell.metadata.get(FOLDED)) for cell in cells}


@each_lesson
def test_headings_stand_alone_and_the_beginning_is_open(lesson: Lesson, tmp_path: Path) -> None:
    headings = _headings(_stage(lesson, tmp_path)[1])
    parts = outline.outline(lesson).parts
    titles = [f"## Part {part.number} · {part.title}" for part in parts]
    assert [text for text in headings if "# Part" in text] == titles
    assert all("\n" not in text and text.startswith("## ") for text in headings)
    first = next(iter(headings))
    assert [text for text, folded in headings.items() if not folded] == [first]
    assert int(first.removeprefix("## ").split(" ")[0]) == int(lesson.number)


@each_lesson
@pytest.mark.parametrize("part", [1, 3])
def test_begun_at_a_part_it_is_open_and_what_comes_before_is_folded_into_the_first_section(
    lesson: Lesson, part: int, tmp_path: Path
) -> None:
    headings = _headings(_stage(lesson, tmp_path, part)[1])
    nested = [text for text in headings if text.startswith("### ")]
    assert nested[0] == "### The beginning"
    assert [text.split(" ·")[0] for text in nested[1:]] == [f"### Part {n}" for n in range(1, part + 1)]
    assert [text for text, folded in headings.items() if not folded] == [next(iter(headings)), nested[-1]]


@each_lesson
def test_class_sees_the_learners_lesson_whole_and_no_notes(lesson: Lesson, tmp_path: Path) -> None:
    stage, book = _stage(lesson, tmp_path)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    original = [
        cell.source for cell in nbformat.read(lesson.path, as_version=4).cells if cell.cell_type == "code"
    ]
    assert [source for source in code if "large_type" not in source] == original
    assert "Instructor" not in stage.notebook.read_text(encoding="utf-8")
    assert "For the instructor" in stage.notes.read_text(encoding="utf-8")


def test_settings_and_results_are_its_own(tmp_path: Path) -> None:
    stage, _ = _stage(runner.find(["02"])[0], tmp_path)
    own = presenting.environment(stage)
    for name in ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "LABCORE_RESULTS"):
        assert Path(own[name]).is_relative_to(tmp_path)
    files = sorted((tmp_path / "settings").rglob("*.jupyterlab-settings"))
    assert len(files) == 5
    assert all(json.loads(path.read_text(encoding="utf-8")) for path in files)


def test_address_opens_the_lesson_alone(tmp_path: Path) -> None:
    stage, _ = _stage(runner.find(["02"])[0], tmp_path, 3)
    words = presenting.command(stage, browser=False)
    addresses = [word for word in words if "default_url" in word]
    assert addresses == ["--LabApp.default_url=/doc/tree/02_two_steps.ipynb"]


def test_bad_parts_and_edited_copies_are_one_sentence(tmp_path: Path) -> None:
    (lesson,) = runner.find(["02"])
    for part in (0, 5):
        with pytest.raises(LessonError, match=f"Lesson 2 has no part {part}; choose 1 to 4."):
            presenting.prepare(lesson, tmp_path, part=part)
    assert not list(tmp_path.iterdir())
    stage, book = _stage(lesson, tmp_path)
    presenting.prepare(lesson, tmp_path, part=2)  # not edited: prepared anew
    book.cells[3].source += "\n# mine"
    nbformat.write(book, stage.notebook)
    with pytest.raises(LessonError, match="was edited; give --force to replace it"):
        presenting.prepare(lesson, tmp_path)
    presenting.prepare(lesson, tmp_path, force=True)
    assert "# mine" not in stage.notebook.read_text(encoding="utf-8")


def test_command_says_where_the_notes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[presenting.Stage] = []
    monkeypatch.setattr(presenting, "open_lab", lambda stage, **_: opened.append(stage))
    result = CliRunner().invoke(app, ["lessons", "present", "2", "--part", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "Next part: Alt+N; back: Alt+P." in result.output
    assert str(opened[0].notes) in result.output.replace("\n", "")
    assert "Shift+Enter on a folded heading" in result.output


def test_letters_of_a_figure_are_large_and_its_data_the_same() -> None:
    figure = theme.figure("Title", x="tokens", y="seconds")
    figure.add_trace(go.Scatter(x=[1, 2], y=[3, 4], marker={"size": 7}, textfont={"size": 9}))
    figure.add_annotation(text="here", font={"size": 11}, x=1, y=3)
    before = figure_bundle(figure)[PLOTLY_MIME]
    after = large_type.enlarged(before)
    assert min(_sizes(after)) >= large_type.SMALLEST
    assert after["data"][0]["marker"]["size"] == 7
    assert after["data"][0]["y"] == before["data"][0]["y"]
    assert after["layout"]["height"] > theme.HEIGHT


def _sizes(value: object) -> list[float]:
    """Sizes of all fonts in a figure."""
    if isinstance(value, list):
        return [size for entry in value for size in _sizes(entry)]
    if not isinstance(value, dict):
        return []
    own = [entry["size"] for name, entry in value.items() if "font" in name and "size" in (entry or {})]
    return own + [size for entry in value.values() for size in _sizes(entry)]
