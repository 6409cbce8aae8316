"""One part of the wall: a figure with its sentence and its table; and marks, by device."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from labcore.lab import tables, theme

HEIGHT = 480
TEXT, TITLE = 17, 19  # legible from the back of a room


@dataclass(frozen=True)
class Panel:
    """One figure with the sentence that states its finding, and the same data as a table."""

    title: str
    figure: go.Figure
    finding: str
    rows: tables.Rows


def canvas(title: str, x: str, y: str) -> go.Figure:
    """An empty figure for a projector."""
    made = theme.figure(title, x=x, y=y, height=HEIGHT)
    return made.update_layout(font_size=TEXT, title_font_size=TITLE, legend_font_size=TEXT - 2)


def logarithmic(axis: Callable[..., go.Figure]) -> None:
    """A logarithmic axis with a tick at each power of ten, written as 10k, 1M, 1G."""
    axis(type="log", dtick=1, tickformat="~s")


def wrapped(device: str) -> str:
    """A device's name in lines that leave room for the figure."""
    return "<br>".join(textwrap.wrap(device, 18))


def marks(
    place: int, name: str, x: Sequence[float], y: Sequence[float | str], text: Sequence[str]
) -> go.Scatter:
    """One series of points, in the colour and shape of its place."""
    marker = {
        "symbol": theme.SYMBOLS[place % len(theme.SYMBOLS)],
        "color": theme.COLORS[place % len(theme.COLORS)],
        "size": 12,
        "line": {"width": 1, "color": theme.CARD},
    }
    return go.Scatter(x=list(x), y=list(y), mode="markers", name=name, marker=marker, text=list(text))


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 learner", "2 learners"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
