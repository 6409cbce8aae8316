"""The wall in a notebook: share by a button, and see everybody's figures."""

from __future__ import annotations

import os
from html import escape

import ipywidgets as widgets

from labcore.errors import LabError, LessonError
from labcore.lab.display import Region, html_bundle, note_bundle, publish, show
from labcore.lab.wall import share as sharing
from labcore.lab.wall.entry import Entry, as_text, make_entry
from labcore.lab.wall.figures import panels
from labcore.lab.wall.membership import Membership, join
from labcore.lab.widgets.common import place


def share(to: str = "", name: str = "", code: str = "") -> None:
    """Show exactly what would be shared, and a button that does it. Nothing is sent before it is pressed.

    to: a class folder, or a collector's address; default: the folder of the class server that this is. name:
    shown on the wall; without one you are a number. code: the class code, where the collector asks for one.
    Raises LessonError when there is nothing to share.
    """
    membership = join(to or _class_folder(), code)
    entry = make_entry(membership.id, name)
    publish(html_bundle(_details(as_text(entry)), as_text(entry)))
    place(_button(entry, membership), "a button that shares")


def _button(entry: Entry, membership: Membership) -> widgets.VBox:
    button = widgets.Button(description=f"Share with {membership.to}", layout={"width": "max-content"})
    answer = widgets.Output()

    def pressed(_: object) -> None:
        button.disabled = True  # one press, one entry
        try:
            sharing.share(entry, membership)
        except LabError as error:
            told = note_bundle(str(error), "bad", "Not shared:")
        else:
            back = f"labcore wall withdraw --to {membership.to}"
            told = note_bundle(f"To take it back: {back}", "good", "Shared.")
        button.disabled = False
        answer.clear_output()
        with answer:
            Region().show(told)

    button.on_click(pressed)
    return widgets.VBox([button, answer])


def _class_folder() -> str:
    if found := os.environ.get("LABCORE_CLASS_FOLDER"):
        return found
    raise LessonError(
        "This machine belongs to no class server; say where, as in lab.share('http://HOST:8400')."
    )


def _details(text: str) -> str:
    summary = "What would be shared, all of it"
    return f"<details open><summary>{summary}</summary><pre>{escape(text)}</pre></details>"


def wall(to: str = "") -> None:
    """Everybody's figures from a class folder or a collector, each with its sentence and table.

    Raises LessonError when there is no such wall, or nobody shared anything yet.
    """
    to = to or _class_folder()
    entries, faults = sharing.read(to)
    if not entries:
        raise LessonError(f"Nobody has shared anything with {to} yet; lab.share({to!r}) is the first.")
    for panel in panels(entries):
        show(panel.figure, panel.finding, panel.rows)
    for fault in faults:
        publish(note_bundle(fault, "bad"))
