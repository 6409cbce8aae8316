"""A lesson on the projector: one part at a time in large type, and the instructor's notes somewhere else.

A presenting copy of the lesson has its beginning and its parts as sections that fold; one of them is open.
A key, and a button in the toolbar, fold that one and open the next: both are chains of JupyterLab's own
commands, bound in the settings of a folder of its own, so that the user's JupyterLab stays as it is. Begun
at a later part, the first section holds all up to there, folded but that part. What the class sees is a
learner's lesson; results go into that folder, too.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from labcore.errors import LessonError
from labcore.lab import jupyter
from labcore.lab.course import copies, guides
from labcore.lab.course import outline as outlines
from labcore.lab.results import write_whole
from labcore.lab.runner import Lesson

NEXT_KEY, PREVIOUS_KEY = "Alt N", "Alt P"
_COLLAPSED = "jp-MarkdownHeadingCollapsed"
_HEADING = re.compile(r"^(?=## )", re.MULTILINE)
_PART = re.compile(r"## Part (\d+) ")

# From anywhere in the open section to the heading of the next, which is folded; from there to the heading
# above, of the open one; fold that; then down to the next, or up to the one before, and open it.
_BELOW = "notebook:move-cursor-heading-below-or-expand"
_ABOVE = "notebook:move-cursor-heading-above-or-collapse"
_NEXT = [_BELOW, _ABOVE, _ABOVE, "notebook:move-cursor-down", _BELOW]
_PREVIOUS = [_BELOW, _ABOVE, _ABOVE, _ABOVE, _BELOW]
_CHAIN = "apputils:run-all-enabled"


@dataclass(frozen=True)
class Stage:
    """Where a lesson is presented from: the notebook to open, and the notes to keep off the projector."""

    notebook: Path
    notes: Path

    @property
    def folder(self) -> Path:
        """All that JupyterLab reads and writes of its own lies here."""
        return self.notebook.parent


def prepare(lesson: Lesson, out: Path, *, part: int | None = None, force: bool = False) -> Stage:
    """Write the presenting copy, the settings and the notes into `out`. part: None opens at the beginning.

    Raises LessonError for a part that the lesson does not have, and, with nothing written, where somebody
    edited the copy that is there; with `force` it is replaced.
    """
    numbers = [each.number for each in outlines.outline(lesson).parts]
    if part is not None and part not in numbers:
        known = f"{numbers[0]} to {numbers[-1]}"
        raise LessonError(f"Lesson {int(lesson.number)} has no part {part}; choose {known}.")
    target = out / lesson.path.name
    if target.exists() and not force and copies.is_edited(target):
        raise LessonError(f"{target} was edited; give --force to replace it, or another --out.")
    stage = Stage(target.resolve(), (out / "notes" / f"{lesson.name}.md").resolve())
    for plugin, settings in _settings().items():
        write_whole(out / "settings" / plugin, json.dumps(settings, indent=2) + "\n")
    write_whole(stage.notes, guides.markdown(lesson))
    write_whole(target, copies.sealed(staged(copies.original(lesson), part), "presenting"))
    return stage


def staged(book: NotebookNode, part: int | None = None) -> NotebookNode:
    """The lesson with each section's heading in a cell of its own, all folded but the one to begin with."""
    cells: list[NotebookNode] = []
    for cell in book.cells:
        cells += _sections(cell) if cell.cell_type == "markdown" else [cell]
    cells.insert(1, _setup())
    cells.append(new_markdown_cell("## The end"))
    for cell in cells[1:]:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            cell.metadata[_COLLAPSED] = True
    if part is not None:
        cells = _up_to(cells, part)
    for index, cell in enumerate(cells):
        cell.id = f"stage-{index:03d}"
    book.cells = cells
    return book


def _up_to(cells: list[NotebookNode], part: int) -> list[NotebookNode]:
    """The same with all up to a part in the first section: the part open, what comes before it folded."""
    for cell in cells:
        found = _PART.match(cell.source) if cell.cell_type == "markdown" else None
        if found and int(found.group(1)) <= part:
            cell.source = f"#{cell.source}"
            if int(found.group(1)) == part:
                del cell.metadata[_COLLAPSED]
    beginning = new_markdown_cell("### The beginning")
    beginning.metadata[_COLLAPSED] = True
    return [cells[0], beginning, *cells[1:]]


def _setup() -> NotebookNode:
    """The one cell that is not the lesson's: it makes figures and tables large. Its code is folded away."""
    cell = new_code_cell("from labcore.lab.course.large_type import large_type\n\nlarge_type()")
    cell.metadata = NotebookNode(jupyter=NotebookNode(source_hidden=True), tags=["labcore-presenting"])
    return cell


def _sections(cell: NotebookNode) -> list[NotebookNode]:
    """A text cut before its headings, and after them. The title becomes a section like the parts."""
    found = []
    for piece in _HEADING.split(re.sub(r"\A# ", "## ", cell.source)):
        heading, _, rest = piece.partition("\n") if piece.startswith("## ") else ("", "", piece)
        found += [new_markdown_cell(text.strip()) for text in (heading, rest) if text.strip()]
    return found


def command(stage: Stage, *, browser: bool = True, port: int | None = None) -> list[str]:
    """The command line that opens the lesson alone in the window."""
    words = jupyter.command(stage.notebook, browser=browser, port=port)
    option = "--LabApp.default_url="
    return [f"{option}{address(stage)}" if word.startswith(option) else word for word in words]


def address(stage: Stage) -> str:
    """The lesson's path in JupyterLab, without files and tabs around it."""
    return f"/doc/tree/{stage.notebook.name}"


def environment(stage: Stage) -> dict[str, str]:
    """JupyterLab's environment with settings, workspaces and results in the stage's folder."""
    own = {
        "JUPYTERLAB_SETTINGS_DIR": str(stage.folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(stage.folder / "workspaces"),
        "LABCORE_RESULTS": str(stage.folder / "results"),
    }
    return jupyter.environment() | own


def open_lab(stage: Stage, *, browser: bool = True, port: int | None = None) -> None:
    """Turn this process into the JupyterLab that presents."""
    words = command(stage, browser=browser, port=port)
    jupyter.trust([stage.notebook])
    os.execve(words[0], words, environment(stage))


def _settings() -> dict[str, dict[str, Any]]:
    """JupyterLab's settings by file: large type, no autosave, no line of tools, one key for the next part."""
    sizes = {"content-font-size1": "23px", "code-font-size": "20px", "ui-font-size1": "20px"}
    chains = {"next": ("Next part", NEXT_KEY, _NEXT), "previous": ("Previous part", PREVIOUS_KEY, _PREVIOUS)}
    shortcuts = [
        {"command": _CHAIN, "args": {"commands": chain}, "keys": [key], "selector": "body"}
        for _, key, chain in chains.values()
    ]
    buttons: list[dict[str, Any]] = [
        {
            "name": f"labcore-{name}-part",
            "command": _CHAIN,
            "args": {"commands": chain},
            "label": f"{label} ({key.replace(' ', '+')})",
            "caption": f"Fold this part and open the {name} one",
            "icon": "",
            "rank": 200 + rank,
        }
        for rank, (name, (label, key, chain)) in enumerate(chains.items())
    ]
    hidden = ("insert", "cut", "copy", "paste", "cellType", "save")
    return {
        "@jupyterlab/apputils-extension/themes.jupyterlab-settings": {"overrides": sizes},
        "@jupyterlab/shortcuts-extension/shortcuts.jupyterlab-settings": {"shortcuts": shortcuts},
        "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
        "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {
            "windowingMode": "none",
            "codeCellConfig": {"lineNumbers": False, "lineWrap": True},
        },
        "@jupyterlab/notebook-extension/panel.jupyterlab-settings": {
            "toolbar": [
                *({"name": name, "disabled": True} for name in hidden),
                *buttons,
            ]
        },
    }
