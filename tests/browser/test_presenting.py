"""A lesson on a projector: large type, one part at a time from the keyboard, and controls that work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from labcore.lab import jupyter, runner
from labcore.lab.course import large_type, presenting
from tests.browser.conftest import Server, _free_port
from tests.browser.page import Notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.xdist_group("presenting")]

# Texts of the lesson that are on the screen, with the size of their letters in pixels.
_TEXTS = """() => [...document.querySelectorAll('.jp-Notebook .jp-Cell *')].filter(node =>
    [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())
    && !node.closest('.jp-InputPrompt, .jp-OutputPrompt, .jp-cell-toolbar, style, script, .modebar')
    && node.getClientRects().length && node.getBoundingClientRect().width > 1)
    .map(node => [node.textContent.trim().slice(0, 40), parseFloat(getComputedStyle(node).fontSize)])"""
# Headings on the screen whose section is open, below the title.
_OPEN = """() => window.jupyterapp.shell.currentWidget.content.widgets.slice(1)
    .filter(cell => cell.headingInfo?.level > 1 && !cell.headingCollapsed && !cell.isHidden)
    .map(cell => cell.headingInfo.text)"""
# As from the menu Run: everything before a heading, which is selected.
_RUN_BEFORE = """heading => {
    const book = window.jupyterapp.shell.currentWidget.content;
    book.activeCellIndex = book.widgets.findIndex(cell => cell.headingInfo?.text.startsWith(heading));
    return window.jupyterapp.commands.execute('notebook:run-all-above');
}"""
_ALL_RAN = (
    "() => ![...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.innerText.includes('*'))"
)


@dataclass
class PresentingServer(Server):
    """JupyterLab as `labcore lessons present` starts it, with everything of its own under `home`."""

    stage: presenting.Stage | None = None

    @property
    def notebooks(self) -> Path:
        assert self.stage is not None
        return self.stage.folder

    def environment(self) -> dict[str, str]:
        assert self.stage is not None
        return super().environment() | presenting.environment(self.stage)

    def address(self) -> str:
        assert self.stage is not None
        return self.url(presenting.address(self.stage).lstrip("/"))


@pytest.fixture
def presented(chromium: str, tmp_path: Path) -> Iterator[PresentingServer]:
    """Lesson 2, to be presented from its first part on, with the beginning folded."""
    stage = presenting.prepare(runner.find(["02"])[0], tmp_path / "presenting", part=1)
    server = PresentingServer(tmp_path, _free_port(), stage=stage)
    jupyter.trust([stage.notebook], server.environment())
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_parts_open_from_the_keyboard_in_letters_for_the_last_row(
    presented: PresentingServer, browser: BrowserContext
) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": 1920, "height": 1080})
    notebook = Notebook(page)
    notebook.open(presented.address())
    assert page.evaluate(_OPEN) == ["Part 1 · One pass, one token"]
    page.evaluate(_RUN_BEFORE, "Part 2")
    page.wait_for_function("() => document.querySelectorAll('.labcore-note').length > 3")
    page.wait_for_function(_ALL_RAN)
    cell = notebook.cell_of(page.get_by_role("button", name="Next"))
    following = cell.get_by_role("button", name="Next").first
    cell.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert notebook.changes(cell, lambda: following.click())
    texts = page.evaluate(_TEXTS)
    assert len(texts) > 100
    assert [text for text in texts if text[1] < large_type.SMALLEST] == []
    page.keyboard.press("Escape")
    page.keyboard.press(presenting.NEXT_KEY.replace(" ", "+"))
    page.wait_for_function(f"() => ({_OPEN})()[0].startsWith('Part 2')")
    assert page.evaluate(_OPEN) == ["Part 2 · Why the first token is late"]
    assert page.get_by_text("The prompt goes through the network at once").last.is_visible()
    page.keyboard.press(presenting.PREVIOUS_KEY.replace(" ", "+"))
    page.wait_for_function(f"() => ({_OPEN})()[0].startsWith('Part 1')")
    assert page.evaluate(_OPEN) == ["Part 1 · One pass, one token"]
    assert not page.get_by_text("Instructor").count()
    assert notebook.errors() == []
    assert notebook.problems == []
