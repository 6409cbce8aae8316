"""One look for every figure: Okabe-Ito colours, a marker or pattern beside each, units on each axis.

Figures carry their own light card, so that they read the same in JupyterLab's light and dark themes
and on an exported page. Okabe & Ito's palette (jfly.uni-koeln.de/color) keeps apart what the common
kinds of colour blindness mix up; the marker shape carries the same difference once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import plotly.graph_objects as go

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#1A1A1A", "#8A8A8A"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
PATTERNS = ("", "/", "x", ".", "-", "\\", "+")
CARD, GRID, INK = "#FCFCFA", "#E4E4E0", "#2B2B2B"
HEIGHT = 380


def template() -> go.layout.Template:
    """The lab's plotly template. Traces cycle through colour AND marker shape (bars: pattern)."""
    axis = {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "ticks": "outside", "automargin": True}
    layout = {
        "colorway": list(COLORS),
        "paper_bgcolor": CARD,
        "plot_bgcolor": CARD,
        "font": {
            "color": INK,
            "size": 13,
            "family": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
        },
        "title": {"x": 0.01, "xanchor": "left", "font": {"size": 15}},
        "xaxis": {**axis, "showline": True},
        "yaxis": {**axis, "showline": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "margin": {"l": 64, "r": 24, "t": 72, "b": 56},
        "hoverlabel": {"font": {"size": 12}},
    }
    return go.layout.Template(
        layout=layout,
        data={
            "scatter": [go.Scatter(marker={"symbol": symbol, "size": 8}) for symbol in SYMBOLS],
            "bar": [go.Bar(marker={"pattern": hatch(shape)}) for shape in PATTERNS],
        },
    )


def ink_on(ground: str) -> str:
    """Black or white: which of them reads better on a colour "#RRGGBB", with a contrast of at least 4.5.

    By WCAG 2's relative luminance; at 0.179 both read alike.
    """
    parts = [int(ground[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#FFFFFF"


def hatch(shape: str) -> dict[str, object]:
    """A bar's pattern: light lines over its own colour, so that both carry the difference."""
    return {"shape": shape, "fillmode": "overlay", "fgcolor": CARD, "solidity": 0.2}


def log_ticks(values: Iterable[float]) -> dict[str, object]:
    """Settings of a logarithmic axis over `values`, labelled at 1, 2, 5, 10, 20 … as plain numbers."""
    known = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    marks = [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": marks, "ticktext": [f"{mark:,g}" for mark in marks]}


def figure(title: str, *, x: str = "", y: str = "", height: int = HEIGHT) -> go.Figure:
    """An empty figure in the lab's look. `x` and `y` are axis titles and should name their units."""
    made = go.Figure()
    made.update_layout(template=template(), title_text=title, height=height)
    made.update_xaxes(title_text=x)
    made.update_yaxes(title_text=y)
    return made
