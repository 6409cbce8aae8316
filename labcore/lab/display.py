"""Putting things on the page: figures, findings, tables, notes.

Everything is published as an ordinary output of its cell (a MIME bundle with a plain-text form), also
what a widget changes: a `Region` is replaced in place and stays in the saved notebook. So a page that
was exported, or that is read without a kernel, still shows the last figure and its table.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from html import escape, unescape
from typing import Any

import plotly.graph_objects as go
import plotly.io
from IPython.core.getipython import get_ipython
from IPython.display import display, update_display

from labcore.errors import LabError, LessonError
from labcore.lab import tables

Bundle = dict[str, Any]
PLOTLY_MIME = "application/vnd.plotly.v1+json"
# The bar over a plot without the button that would send its data to plotly's servers, the link to them, and
# two tools for selecting, which select nothing here: each is a stop on the Tab key's way.
_PLOT_SETTINGS = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}

_drawing_code_sent = False  # once per kernel, that is per page
_TONES = {"good": "#009E73", "bad": "#D55E00", "note": "#0072B2", "quiet": "#8A8A8A"}


class Shown(str):
    """Text that is on the page already; as the last value of a cell it is not repeated."""

    def _ipython_display_(self) -> None:
        return None


class Region:
    """A place in the page whose content can be replaced as often as one likes."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._placed = False

    def show(self, bundle: Bundle) -> None:
        """Put `bundle` here, in place of what was here before."""
        if get_ipython() is None:
            print(bundle["text/plain"])
        elif self._placed:
            if PLOTLY_MIME in bundle:
                update_display(_blank(bundle), display_id=self._id, raw=True)
            update_display(bundle, display_id=self._id, raw=True)
        else:
            display(bundle, display_id=self._id, raw=True)
        self._placed = True


def _blank(figure: Bundle) -> Bundle:
    """Empty space as high as `figure`.

    JupyterLab hands an update of the same MIME type to the renderer that is there, and plotly's draws only
    once. Something else in between makes it take a new renderer; the height keeps the page from jumping.
    """
    height = figure[PLOTLY_MIME]["layout"].get("height", 450)
    return html_bundle(f'<div style="height:{height}px"></div>', "")


def html_bundle(html: str, text: str) -> Bundle:
    """HTML with the plain text that stands for it where HTML is not shown."""
    return {"text/html": html, "text/plain": text}


def figure_bundle(figure: go.Figure) -> Bundle:
    """A figure as data, which JupyterLab draws, with its title as plain text.

    Where PLOTLY_RENDERER names "notebook", the page is for export and has to draw by itself: HTML is added,
    and to the first figure plotly's 5 MB of code.
    """
    global _drawing_code_sent
    data = {**json.loads(figure.to_json()), "config": dict(_PLOT_SETTINGS)}  # a copy: to_html takes some out
    bundle = {PLOTLY_MIME: data, "text/plain": f"[figure] {title_of(figure)}"}
    if "notebook" in os.environ.get("PLOTLY_RENDERER", ""):
        code = not _drawing_code_sent
        bundle["text/html"] = plotly.io.to_html(
            figure, config=dict(_PLOT_SETTINGS), full_html=False, include_plotlyjs=code
        )
        _drawing_code_sent = True
    return bundle


def title_of(figure: go.Figure | str) -> str:
    """A figure's title in plain words; a drawing in HTML has none."""
    title = "" if isinstance(figure, str) else str(figure.layout.title.text or "figure")
    return unescape(re.sub(r"<[^>]*>", " ", title))


def note_bundle(text: str, tone: str = "note", label: str = "") -> Bundle:
    """A sentence beside a coloured bar. tone: good, bad, note or quiet; the label repeats it in words."""
    bold = f"<b>{escape(label)}</b> " if label else ""
    style = f"border-left:4px solid {_TONES[tone]};padding:4px 10px;margin:4px 0;line-height:1.45"
    body = escape(text).replace("\n", "<br>")
    return html_bundle(
        f'<div class="labcore-note" style="{style}">{bold}{body}</div>', f"{label} {text}".strip()
    )


def finding_bundle(text: str, rows: tables.Rows = (), of: str = "") -> Bundle:
    """The sentence under a figure and, where there are rows, the exact table below it.

    of: the figure's title.
    """
    note = note_bundle(text)
    if not rows:
        return note
    return html_bundle(note["text/html"] + tables.as_html(rows, of), f"{text}\n\n{tables.as_text(rows)}")


def publish(bundle: Bundle) -> None:
    """Show `bundle` once, as an output of the running cell."""
    Region().show(bundle)


def note(text: str, tone: str = "note", label: str = "") -> Shown:
    """Show one sentence; returns it."""
    publish(note_bundle(text, tone, label))
    return Shown(text)


def show(figure: go.Figure, finding: str, rows: tables.Rows = ()) -> None:
    """A figure, under it one sentence that states the finding, under that the same data as a table."""
    publish(figure_bundle(figure))
    publish(finding_bundle(finding, rows, title_of(figure)))


def finding(text: str, rows: tables.Rows = ()) -> Shown:
    """One sentence that states what was seen, with its numbers, and the exact table where there is one."""
    publish(finding_bundle(text, rows))
    return Shown(text)


def table(rows: tables.Rows) -> None:
    """Exact numbers; `rows` is a list of dicts from column name (with unit) to value."""
    publish(html_bundle(tables.as_html(rows), tables.as_text(rows)))


def text_table(rows: tables.Rows) -> None:
    """The same as plain printed text, for numbers that are the same on every machine."""
    print(tables.as_text(rows))


def expect_error(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Shown:
    """Call what labcore should refuse, and show the sentence it refuses with.

    Raises LessonError when the call succeeds: then the lesson's claim is false. Anything that is not a
    LabError is a bug and passes through.
    """
    try:
        run(*args, **kwargs)
    except LabError as error:
        return note(str(error), "bad", f"{type(error).__name__}:")
    raise LessonError("This call was expected to be refused, and it succeeded; please report it as a bug.")
