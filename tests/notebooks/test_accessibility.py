"""What a lesson shows can be read without its pictures, without telling colours apart, in any theme."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import nbformat
import pytest

from labcore.lab import theme
from labcore.lab.display import PLOTLY_MIME
from labcore.lab.runner import Lesson, LessonRun, lessons
from tests.notebooks.contrast import ENOUGH, colour, faint_in_html, ratio
from tests.notebooks.marks import faint_in_figure, only_by_colour

Execute = Callable[[Lesson, str], LessonRun]
Bundle = dict[str, Any]

# A lesson's own tests stay on one worker, where they share its executions.
each_lesson = pytest.mark.parametrize(
    "lesson",
    [
        pytest.param(
            lesson,
            id=lesson.name,
            marks=[pytest.mark.notebook, pytest.mark.timeout(900), pytest.mark.xdist_group(lesson.name)],
        )
        for lesson in lessons()
    ],
)


def _cells(run: LessonRun) -> Iterator[list[Bundle]]:
    """The outputs of each code cell."""
    for cell in nbformat.read(run.executed, as_version=4).cells:
        yield [output.get("data", {}) for output in cell.get("outputs", [])]


@each_lesson
def test_every_figure_has_a_sentence_and_a_table_under_it(lesson: Lesson, execute: Execute) -> None:
    lacking, figures = [], 0
    for outputs in _cells(execute(lesson, "learner")):
        for figure, below in pairwise([*outputs, {}]):
            if PLOTLY_MIME in figure:
                figures += 1
                lacking += [
                    f"{figure['text/plain']} has no {what}"
                    for what, mark in (("sentence", "labcore-note"), ("table", "labcore-table"))
                    if mark not in below.get("text/html", "")
                ]
    assert figures > 0
    assert lacking == []


@each_lesson
def test_drawings_and_tables_say_what_they_are(lesson: Lesson, execute: Execute) -> None:
    """Drawings are named pictures; tables have a label, and headers that say what they head."""
    html = "\n".join(
        data.get("text/html", "") for cell in _cells(execute(lesson, "learner")) for data in cell
    )
    tables = re.findall(r'<table class="labcore-table"[^>]*>', html)
    assert tables
    assert [table for table in tables if not re.search(r'aria-label="[^"]+"', table)] == []
    assert re.findall(r'<th(?! scope="(?:col|row)")[ >]', html) == []
    drawings = re.findall(r"<svg[^>]*>", "".join(_own_html(html)))
    assert [one for one in drawings if not re.search(r'role="img" aria-label="[^"]+"', one)] == []


def _own_html(html: str) -> Iterator[str]:
    """The lab's own drawings; what plotly adds for an exported page is a script."""
    yield re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


@each_lesson
def test_nothing_is_told_by_colour_alone(lesson: Lesson, execute: Execute) -> None:
    found = [
        f"{output['text/plain']}: {fault}"
        for mode in ("learner", "solution")
        for outputs in _cells(execute(lesson, mode))
        for output in outputs
        for fault in only_by_colour(output.get(PLOTLY_MIME, {"data": [], "layout": {}}))
    ]
    assert found == []


@each_lesson
def test_text_stands_out_from_what_is_behind_it(lesson: Lesson, execute: Execute) -> None:
    """In figures on their card, and in HTML on the page of either theme."""
    faint = []
    for outputs in _cells(execute(lesson, "learner")):
        for output in outputs:
            if PLOTLY_MIME in output:
                faint += [
                    f"{output['text/plain']}: {fault}" for fault in faint_in_figure(output[PLOTLY_MIME])
                ]
            else:
                faint += faint_in_html(output.get("text/html", ""))
    assert faint == []


@pytest.mark.parametrize("ground", [*theme.COLORS, theme.GREY, theme.CARD, "#767676", "#777777"])
def test_ink_is_readable_on_any_colour(ground: str) -> None:
    ink = theme.ink_on(ground)
    other = "#FFFFFF" if ink == "#000000" else "#000000"
    assert ratio(colour(ink), colour(ground)) >= max(ENOUGH, ratio(colour(other), colour(ground)))


def test_the_checks_find_what_they_are_for() -> None:
    """Two lines that differ in hue only, white on sky blue, and pale grey text on either page."""
    line = {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1]}
    hues = [
        {**line, "name": name, "line": {"color": hue}} for name, hue in zip("ab", theme.COLORS, strict=False)
    ]
    figure = {"data": hues, "layout": {}}
    assert len(only_by_colour(figure)) == 1
    dashed = {**hues[1], "line": {**hues[1]["line"], "dash": "dash"}}
    assert only_by_colour({**figure, "data": [hues[0], dashed]}) == []
    bars = {"type": "bar", "x": [1], "y": ["one"], "text": ["white"], "marker": {"color": theme.SKY}}
    layout = {"template": theme.template().to_plotly_json()}
    assert faint_in_figure({"data": [bars], "layout": layout}) == ["None: white: #FFFFFF on #56B4E9"]
    assert len(faint_in_html('<p style="opacity:.4">pale</p><p>clear</p>')) == 2
    assert len(faint_in_html('<div style="background:#FFFFFF;color:#999999">pale</div>')) == 2
