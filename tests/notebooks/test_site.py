"""Each lesson's page of the static edition in a real browser, from the execution that other tests made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from labcore.lab import runner
from labcore.lab.display import PLOTLY_MIME
from labcore.lab.runner import Lesson, LessonRun
from labcore.lab.site import build
from tests.browser.conftest import FLAGS, chromium  # noqa: F401

pytestmark = [pytest.mark.notebook, pytest.mark.browser, pytest.mark.timeout(900)]
Execute = Callable[[Lesson, str], LessonRun]


@pytest.mark.parametrize(
    "lesson",
    [
        pytest.param(lesson, id=lesson.name, marks=pytest.mark.xdist_group(lesson.name))
        for lesson in runner.lessons()
    ],
)
def test_every_figure_is_drawn_without_a_kernel_or_a_network(
    lesson: Lesson, execute: Execute, tmp_path: Path, chromium: str  # noqa: F811
) -> None:
    run = execute(lesson, "learner")
    cells = json.loads(run.executed.read_text(encoding="utf-8"))["cells"]
    plots = sum(PLOTLY_MIME in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    site = tmp_path / "site"
    assert build.build(site, run.executed.parent, [lesson]) == plots + 1  # and the map on the front page
    page_text = (site / f"{lesson.name}.html").read_text(encoding="utf-8")
    assert str(run.executed.parent) not in page_text
    asked: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto((site / f"{lesson.name}.html").as_uri())
        page.emulate_media(media="print")
        page.evaluate("drawAll()")  # as a printer has it done; else those far below wait to be scrolled to
        page.wait_for_function(f"document.querySelectorAll('.plot .main-svg').length >= {plots}")
        drawn = page.locator("figure.plot.drawn:has(.main-svg)").count()
        browser.close()
    assert drawn == plots > 0
    assert complaints == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
