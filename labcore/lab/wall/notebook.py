"""The wall in a notebook: share by a button, and see everybody's figures."""

from __future__ import annotations

from html import escape
from pathlib import Path

import ipywidgets as widgets

from labcore.errors import LabError, LessonError
from labcore.lab.display import Region, html_bundle, note_bundle, publish, show
from labcore.lab.wall import share as sharing
from labcore.lab.wall.entry import as_text, make_entry
from labcore.lab.wall.figures import panels
from labcore.lab.wall.folder import Folder
from labcore.lab.widgets.common import place


def share(to: str, name: str = "", code: str = "") -> None:
    """Show exactly what would be shared, and a button that does it. Nothing is sent before it is pressed.

    to: a class folder, or a collector's address. Raises LessonError when there is nothing to share.
    """
    entry = make_entry(name)
    publish(html_bundle(_details(as_text(entry)), as_text(entry)))
    button = widgets.Button(description=f"Share this with {to}", layout=widgets.Layout(width="max-content"))
    answer = Region()

    def pressed(_: object) -> None:
        try:
            sharing.share(entry, to, code)
        except LabError as error:
            answer.show(note_bundle(str(error), "bad"))
        else:
            answer.show(note_bundle("Shared. `labcore wall withdraw` takes it back.", "good"))

    button.on_click(pressed)
    place(button, "a button that shares")


def _details(text: str) -> str:
    return f"<details><summary>What would be shared, all of it</summary><pre>{escape(text)}</pre></details>"


def wall(folder: str) -> None:
    """Everybody's figures from a class folder, each with its sentence and table. Raises LessonError."""
    entries, faults = Folder(Path(folder).expanduser()).entries()
    if not entries:
        raise LessonError(f"Nobody has shared anything in {folder} yet; lab.share({folder!r}) is the first.")
    for panel in panels(entries):
        show(panel.figure, panel.finding, panel.rows)
    for fault in faults:
        publish(note_bundle(fault, "bad"))
