"""A notebook in JupyterLab, used as a learner uses it: menus, sliders, buttons; and what it then shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import ConsoleMessage, Locator, Page, TimeoutError

LOADED_MS, RAN_MS, CHANGED_MS = 60_000, 300_000, 15_000

# Console messages that are no fault of the lessons: a pattern, and why it may appear.
ALLOWED: dict[str, str] = {}

_MODEL = "window.jupyterapp?.shell?.currentWidget?.content?.model"
_CODE_CELLS = f"[...({_MODEL}?.cells ?? [])].filter(cell => cell.type === 'code')"
_KERNEL_IDLE = "window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status === 'idle'"

_OUTPUTS = "[...Array(cell.outputs?.length ?? 0).keys()].map(i => cell.outputs.get(i).toJSON())"
_HAS_ERROR = f"cell => {_OUTPUTS}.some(output => output.output_type === 'error')"
_ERRORS = f"""cell => {_OUTPUTS}.filter(output => output.output_type === 'error')
    .map(output => `cell [${{cell.executionCount}}] ${{output.ename}}: ${{output.evalue}}`)"""

# What a learner can see below the controls of a cell: the data of its plots, its text and its drawings.
_SEEN = """cell => JSON.stringify({
    plots: [...cell.querySelectorAll('.js-plotly-plot')].map(plot => [plot.data, plot.layout.title?.text,
        plot.layout.annotations?.map(note => note.text), plot.layout.shapes]),
    text: [...cell.querySelectorAll('.jp-RenderedHTMLCommon')].map(part => part.innerHTML),
})"""


class Notebook:
    """One lesson in one browser tab. `problems` collects what the page and its console complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(re.search(known, message.text) for known in ALLOWED):
            self.problems.append(f"console: {message.text} ({message.location})")

    def _request(self, request: Any) -> None:
        """The lab is offline: the page may ask its own server and nobody else."""
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", request.url):
            self.problems.append(f"request to elsewhere: {request.url}")

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_function(f"() => {_CODE_CELLS}.length > 0", timeout=LOADED_MS)
        self.page.wait_for_function(f"() => {_KERNEL_IDLE}", timeout=LOADED_MS)

    def run_all(self) -> None:
        """Run > Run All Cells, and wait until each has run or one has failed."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        done = f"{_CODE_CELLS}.every(cell => cell.executionCount !== null || !cell.sharedModel.source.trim())"
        failed = f"{_CODE_CELLS}.some({_HAS_ERROR})"
        self.page.wait_for_function(f"() => ({done} || {failed}) && {_KERNEL_IDLE}", timeout=RAN_MS)

    def errors(self) -> list[str]:
        """Error outputs of all cells."""
        return self.page.evaluate(f"() => {_CODE_CELLS}.flatMap({_ERRORS})")  # type: ignore[no-any-return]

    def cell_of(self, inside: Locator) -> Locator:
        """The cell that holds an element."""
        return self.page.locator(".jp-CodeCell", has=inside).first

    def slider(self, label: str | re.Pattern[str] | None = None) -> Locator:
        """The handle of the first slider, or of the first whose visible label matches."""
        boxes = self.page.locator(".widget-slider")
        return (boxes.filter(has_text=label) if label else boxes).first.get_by_role("slider")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name).first

    def tab(self, name: str) -> Locator:
        """The tab of a group of controls."""
        return self.page.get_by_role("tab", name=name).first

    def plots(self) -> int:
        """Plots that are drawn on the page."""
        return self.page.locator(".js-plotly-plot:has(.main-svg)").count()

    def seen(self, cell: Locator) -> str:
        return str(cell.evaluate(_SEEN))

    def changes(self, cell: Locator, act: Callable[[], None]) -> bool:
        """Whether what `cell` shows changes after `act`, within the time a learner would wait."""
        cell.scroll_into_view_if_needed()
        before = self.seen(cell)
        act()
        handle = cell.element_handle()
        other = f"([cell, before]) => ({_SEEN})(cell) !== before"
        self.page.wait_for_function(other, arg=[handle, before], timeout=CHANGED_MS)
        self._settle(cell)
        return self.seen(cell) != before

    def changes_soon(self, cell: Locator, act: Callable[[], None]) -> bool:
        """The same without waiting for what it shows to stand still."""
        before = self.seen(cell)
        act()
        other = f"([cell, before]) => ({_SEEN})(cell) !== before"
        try:
            self.page.wait_for_function(other, arg=[cell.element_handle(), before], timeout=CHANGED_MS)
        except TimeoutError:
            return False
        return True

    def _settle(self, cell: Locator) -> None:
        """Wait until the kernel is idle and what the cell shows stands still: it changes in parts."""
        before = ""
        for _ in range(CHANGED_MS // 250):
            self.page.wait_for_function(f"() => {_KERNEL_IDLE}", timeout=CHANGED_MS)
            now = self.seen(cell)
            if now == before:
                return
            before = now
            self.page.wait_for_timeout(250)

    def move(self, slider: Locator, by: int = 1) -> None:
        """One step with the keyboard: right (by=-1: left), or back where it stands at an end."""
        slider.scroll_into_view_if_needed()
        slider.focus()
        end = slider.get_attribute("aria-valuemax" if by > 0 else "aria-valuemin")
        at_end = slider.get_attribute("aria-valuenow") == end
        self.page.keyboard.press("ArrowLeft" if at_end == (by > 0) else "ArrowRight")

    def execute(self, code: str) -> None:
        """Run code in the notebook's kernel, beside its cells."""
        reply = self.page.evaluate(
            """async code => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                return (await kernel.requestExecute({code}).done).content;
            }""",
            code,
        )
        assert reply["status"] == "ok", reply
