"""A walk through a lesson's controls with the keyboard alone: Tab to each, and its own keys to move it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from playwright.sync_api import Locator

from tests.browser.page import CHANGED_MS, Notebook

CONTROL = "select, input, button, [role=slider], [role=tab][aria-selected=true]"
WIDGET = ":is(select, [role=slider], .jupyter-button)"
MOST_STOPS = 40  # no cell has so many controls: the walk would go in circles

_SELECT_CELL = """cell => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = notebook.widgets.findIndex(widget => widget.node === cell);
    notebook.mode = 'command';
    cell.focus();
}"""

# What has the focus: what it is, its name, whether it is at its end, and whether one can see that it has it.
_FOCUSED = """cell => {
    const at = document.activeElement, look = getComputedStyle(at);
    const within = cell.contains(at) && at.closest('.jp-OutputArea-output') && !at.closest('.js-plotly-plot');
    const kinds = {slider: '[role=slider]', choice: 'select', tab: '[role=tab]',
        toggle: '.widget-toggle-button', lock: '.labcore-lock', next: '.labcore-next',
        previous: '.labcore-previous'};
    const kind = Object.keys(kinds).find(kind => at.matches(kinds[kind])) ?? 'other';
    const name = at.getAttribute('aria-label') || at.labels?.[0]?.textContent || at.textContent || '';
    const end = kind === 'slider' ? at.getAttribute('aria-valuenow') === at.getAttribute('aria-valuemax')
        : kind === 'choice' ? at.selectedIndex === at.options.length - 1
        : at.getAttribute('aria-pressed') === 'true';
    if (within) at.dataset.reached = 'yes';
    const outlined = look.outlineStyle !== 'none' && parseFloat(look.outlineWidth) > 0;
    return [within ? kind : '', name.trim(), end, outlined];
}"""

_UNREACHED = """(cell, control) => [...cell.querySelectorAll('.jp-OutputArea-output')]
    .flatMap(output => [...output.querySelectorAll(control)])
    .filter(one => one.offsetParent && !one.disabled && !one.closest('.js-plotly-plot'))
    .filter(one => !one.dataset.reached)
    .map(one => one.getAttribute('aria-label') || one.textContent || one.outerHTML)"""


class Focus(NamedTuple):
    """What has the focus. kind: "" outside of the controls of the cell."""

    kind: str
    name: str
    at_end: bool
    visible: bool


@dataclass
class Walk:
    """Walks cell by cell. moved: the controls that changed what their cell shows. faults: what was wrong."""

    notebook: Notebook
    moved: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def lesson(self) -> None:
        """Every cell that has controls."""
        cells = self.notebook.page.locator(f".jp-CodeCell:has(.jp-OutputArea-output {WIDGET})")
        for index in range(cells.count()):
            self.cell(cells.nth(index))

    def cell(self, cell: Locator) -> None:
        """Tab through a cell once for each of its tabs, each time with the next one open."""
        for turn in range(max(1, cell.get_by_role("tab").count())):
            cell.evaluate(_SELECT_CELL)
            self._stops(cell, turn)
        self.faults += [f"never reached: {name}" for name in cell.evaluate(_UNREACHED, CONTROL)]

    def _stops(self, cell: Locator, turn: int) -> None:
        been = False
        for _ in range(MOST_STOPS):
            focus = self._press("Tab", cell)
            if focus.kind:
                been = True
                self._check(focus)
                self._move(focus, cell, turn)
            elif been:
                return
        self.faults.append("the Tab key does not leave the cell")

    def _press(self, key: str, cell: Locator) -> Focus:
        self.notebook.page.keyboard.press(key)
        return Focus(*cell.evaluate(_FOCUSED))

    def _check(self, focus: Focus) -> None:
        if not focus.name:
            self.faults.append(f"a {focus.kind} without a name")
        if not focus.visible:
            self.faults.append(f"{focus.name}: the focus cannot be seen")

    def _move(self, focus: Focus, cell: Locator, turn: int) -> None:
        keys = {
            "slider": ["ArrowLeft" if focus.at_end else "ArrowRight"],
            "choice": ["ArrowUp" if focus.at_end else "ArrowDown"],
            "next": ["Enter"],
            "previous": [],  # at the first step it has nowhere to go; Next, behind it, comes back to it
            "lock": ["Enter"],
        }
        if focus.kind == "tab" and turn:
            self._press("ArrowRight", cell)
            opened = self._press("Enter", cell)
            self.moved.append(opened.name)
        elif focus.kind == "toggle" and not focus.at_end:
            self._toggle(focus, cell)
        for key in keys.get(focus.kind, []):
            self._changes(focus, key, cell)
        if focus.kind == "next":
            before = self._press("Shift+Tab", cell)
            self._changes(before, "Space", cell)
            self._press("Tab", cell)

    def _toggle(self, focus: Focus, cell: Locator) -> None:
        """A button of a group: in an explorer it changes the figure, in a prediction what will be locked."""
        if cell.locator(".labcore-lock").count():
            self.notebook.page.keyboard.press("Space")
            cell.locator(".widget-toggle-button:focus[aria-pressed=true]").wait_for(timeout=CHANGED_MS)
            self.moved.append(focus.name)
        else:
            self._changes(focus, "Space", cell)

    def _changes(self, focus: Focus, key: str, cell: Locator) -> None:
        """What the cell shows changes. A slider may move, and this step of it alter no number below; a choice
        too, such as a cache reserved whole for requests that fill it, but then the next option does."""
        value = "() => document.activeElement.getAttribute('aria-valuenow') ?? document.activeElement.value"
        before = self.notebook.page.evaluate(value)
        changed = self.notebook.changes_soon(cell, lambda: self.notebook.page.keyboard.press(key))
        took = self.notebook.page.evaluate(value) != before
        if not changed and took and focus.kind == "choice":
            changed = self.notebook.changes_soon(cell, lambda: self.notebook.page.keyboard.press(key))
        if changed:
            self.moved.append(focus.name)
        elif not (took and focus.kind == "slider"):
            self.faults.append(f"{focus.name}: {key} changes nothing")
