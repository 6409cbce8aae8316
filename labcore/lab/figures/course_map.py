"""The map of the course: which lesson builds on which, how long it takes, and how far the learner is."""

from __future__ import annotations

from collections.abc import Container, Sequence

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.course.outline import Outline
from labcore.lab.course.progress import Progress

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 1.0, 0.72, 1.2, 1.0
# A state is told by a sign and a line, and only besides by colour.
_SIGNS = {"done": "✓ done", "begun": "◐ begun", "not begun": "○ open", "file damaged": "! file damaged"}
_COLORS = {
    "done": theme.GREEN,
    "begun": theme.BLUE,
    "not begun": theme.GREY,
    "file damaged": theme.VERMILLION,
}
_DASHES = {"done": "solid", "begun": "dash", "not begun": "dot", "file damaged": "dashdot"}


def course_map(lessons: Sequence[Progress], *, states: bool = True) -> go.Figure:
    """A box for each lesson, to the right of all that it builds on; arrows say on which.

    states: say how far the learner is; a page for everybody has no learner.
    """
    places = layout([entry.outline for entry in lessons])
    made = theme.figure("The map of the lessons: an arrow says which comes before", height=360)
    columns, rows = (max(place[axis] for place in places.values()) for axis in (0, 1))
    made.update_xaxes(visible=False, range=[-0.1, columns * _GAP_X + _WIDTH + 0.1], fixedrange=True)
    made.update_yaxes(visible=False, range=[-rows * _GAP_Y - 0.15, _HEIGHT + 0.1], fixedrange=True)
    made.update_layout(margin={"l": 8, "r": 8, "t": 48, "b": 8})
    for entry in lessons:
        _box(made, entry, places[entry.outline.number], states)
        for before in _shown(entry.outline, places):
            _arrow(made, places[before], places[entry.outline.number])
    corner = {"x": [0], "y": [0], "mode": "markers", "marker": {"opacity": 0}}
    made.add_trace(go.Scatter(**corner, hoverinfo="skip", showlegend=False))  # axes need a trace to stand on
    return made


def layout(outlines: Sequence[Outline]) -> dict[str, tuple[int, int]]:
    """(column, row) of each lesson: one column behind the last that it builds on, in the first one's row."""
    columns: dict[str, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for outline in outlines:
        before = _shown(outline, columns)
        column = 1 + max((columns[number] for number in before), default=-1)
        row = places[before[0]][1] if before else 0
        while (column, row) in places.values():
            row += 1
        columns[outline.number] = column
        places[outline.number] = (column, row)
    return places


def _shown(outline: Outline, known: Container[str]) -> list[str]:
    """The lessons that it builds on, of those that are on the map; a class may take some only."""
    return [number for number in outline.prerequisites if number in known]


def _corner(place: tuple[int, int]) -> tuple[float, float]:
    """Left and bottom of a box."""
    return place[0] * _GAP_X, -place[1] * _GAP_Y


def _box(made: go.Figure, entry: Progress, place: tuple[int, int], states: bool) -> None:
    x, y = _corner(place)
    color, dash = (_COLORS[entry.state], _DASHES[entry.state]) if states else (theme.BLUE, "solid")
    made.add_shape(
        type="rect", x0=x, y0=y, x1=x + _WIDTH, y1=y + _HEIGHT,
        line={"color": color, "width": 2.5, "dash": dash}, fillcolor="#FFFFFF",
    )  # fmt: skip
    state = f"<br>{_SIGNS[entry.state]}" if states else ""
    number, title = int(entry.outline.number), _wrapped(entry.outline.title)
    made.add_annotation(
        x=x + _WIDTH / 2, y=y + _HEIGHT / 2, showarrow=False, align="center",
        text=f"<b>{number}</b> · {entry.outline.minutes} min{state}<br>{title}",
        font={"size": 11.5, "color": theme.INK},
    )  # fmt: skip


def _wrapped(title: str, width: int = 18) -> str:
    """A title on as many lines as it needs."""
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{word}"
    return "<br>".join(lines)


def _arrow(made: go.Figure, tail: tuple[int, int], head: tuple[int, int]) -> None:
    """From the right side of one box to the left side of another."""
    (x0, y0), (x1, y1) = _corner(tail), _corner(head)
    made.add_annotation(
        x=x1 - 0.02, y=y1 + _HEIGHT / 2, ax=x0 + _WIDTH + 0.02, ay=y0 + _HEIGHT / 2,
        xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True,
        arrowhead=2, arrowwidth=1.6, arrowcolor=theme.INK,
    )  # fmt: skip
