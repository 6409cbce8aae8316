"""The front page in a real browser: the map, progress read again, and a way into a lesson."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from labcore.lab import runner
from tests.browser import axe
from tests.browser.conftest import Server
from tests.browser.page import Notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.xdist_group("front page")]


def test_shows_the_map_reads_progress_again_and_leads_into_a_lesson(server: Server, browser: Any) -> None:
    shutil.copy(runner.front_page().path, server.notebooks / "index.ipynb")
    notebook = Notebook(browser.new_page())
    notebook.open(server.url("lab/tree/index.ipynb") + "&reset")
    notebook.run_all()
    assert notebook.errors() == []
    assert notebook.plots() == 1
    button = notebook.button("Refresh my progress")
    cell = notebook.cell_of(button)
    saved = server.home / "labcore_results" / "lesson-01.json"
    saved.parent.mkdir(exist_ok=True)
    saved.write_text(json.dumps({"exercises": {"01.1": {"passed": True}}}), encoding="utf-8")
    assert notebook.changes(cell, lambda: button.click())
    assert "Go on with lesson 1" in cell.inner_text()
    for theme in reversed(axe.THEMES):
        axe.use_theme(notebook.page, theme)
        assert axe.violations(notebook.page) == [], theme
    notebook.page.get_by_role("link", name="2 · The two-step process").click()
    notebook.page.get_by_role("tab", name="02_two_steps.ipynb").first.wait_for()
    assert notebook.problems == []
