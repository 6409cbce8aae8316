"""The rows of `labcore bench all` as one figure: ours beside peers and the ceiling, a panel for each section.

plotly is imported here and nowhere else of the benchmarks, and only when a figure is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labcore.atomic import replacing
from labcore.bench.suite_rows import Row
from labcore.errors import LabError
from labcore.serving.load.plots import OFFLINE
from labcore.shares import share_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

TITLE = "labcore beside its peers and what the machine allows"
CEILING = "what the machine allows"
EXCEEDED = "a ceiling that was exceeded, not to be trusted"
EDGE = 0.02  # of a factor of ten: room for the points at the ends of an axis
# Pixels: of a line of points, of a panel beside its lines, between two panels, above and below all of them,
# of a line of the legend, which lies above them and holds about so many engines.
LINE, FRAME, GAP, ABOVE, BELOW, LEGEND_LINE, ENGINES = 24, 30, 100, 100, 60, 28, 4


def suite_figure(rows: Sequence[Row], *, title: str = TITLE, a_line: int = ENGINES) -> go.Figure:
    """A panel for each section, a line for each thing measured, a point for each engine; logarithmic.

    a_line: how many engines' names a line of the legend holds. Raises LabError where plotly is not installed,
    and where there are no rows.
    """
    theme, make_subplots = _plotting()
    if not rows:
        raise LabError("There is nothing to draw: no section gave a row; see why each of them failed.")
    panels = list(dict.fromkeys((row.section, row.unit) for row in rows))
    heights = [LINE * len(_lines(rows, panel)) + FRAME for panel in panels]
    area = sum(heights) + GAP * (len(panels) - 1)
    made = make_subplots(
        rows=len(panels), cols=1, subplot_titles=[_title(rows, panel) for panel in panels],
        row_heights=heights, vertical_spacing=GAP / area if len(panels) > 1 else 0,
    )  # fmt: skip
    looks = _looks([row.engine for row in rows], theme)
    for place, panel in enumerate(panels, start=1):
        _draw(made, place, [row for row in rows if (row.section, row.unit) == panel], looks, theme)
    above = ABOVE + LEGEND_LINE * (1 + len(looks) // a_line)
    made.update_layout(
        template=theme.template(), height=area + above + BELOW, margin={"t": above, "b": BELOW},
        title={"text": title, "y": 1, "yanchor": "top", "pad": {"t": 16}},
        legend={"y": 1 + 36 / area},
    )  # fmt: skip
    return made


def write_page(rows: Sequence[Row], path: Path) -> None:
    """The figure as a page that needs no network. LabError as `suite_figure`, or for a full disk."""
    figure = suite_figure(rows)
    try:
        with replacing(path) as part:
            figure.write_html(part, config=dict(OFFLINE), include_plotlyjs=True, full_html=True)
    except OSError as error:
        raise LabError(
            f"{path} could not be written ({error.strerror or error}); what was there before is unchanged: "
            "make room or choose another file for --plot."
        ) from None


def ensure_plotting() -> None:
    """Raises LabError where plotly is not installed: before anything is measured for a figure."""
    _plotting()


def _plotting() -> tuple[Any, Any]:
    """(the lab's theme, plotly's make_subplots)."""
    try:
        from plotly.subplots import make_subplots

        from labcore.lab import theme
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        raise LabError(
            f"A figure needs the package {package}, which is not installed; pip install {package}, or leave "
            "--plot out."
        ) from None
    return theme, make_subplots


def _lines(rows: Sequence[Row], panel: tuple[str, str]) -> list[str]:
    return list(dict.fromkeys(row.what for row in rows if (row.section, row.unit) == panel))


def _title(rows: Sequence[Row], panel: tuple[str, str]) -> str:
    better = next(row.higher_is_better for row in rows if (row.section, row.unit) == panel)
    return panel_title(*panel, better)


def panel_title(section: str, unit: str, higher_is_better: bool | None) -> str:
    """ "decode: tokens/s, higher is better"."""
    better = {True: "higher is better", False: "lower is better", None: ""}[higher_is_better]
    told = ", ".join(filter(None, (unit, better)))
    return f"{section}: {told}" if told else section


def _looks(engines: Sequence[str], theme: Any) -> dict[str, tuple[str, str]]:
    """Colour and marker of each engine; both change, so that more engines than colours stay apart."""
    colors, symbols = theme.COLORS, theme.SYMBOLS
    return {
        engine: (colors[n % len(colors)], symbols[(n + n // len(colors)) % len(symbols)])
        for n, engine in enumerate(dict.fromkeys(engines))
    }


def _draw(
    made: go.Figure, place: int, rows: Sequence[Row], looks: dict[str, tuple[str, str]], theme: Any
) -> None:
    """One panel: a trace for each engine, named once in the legend, and one for ceilings."""
    named = {trace.name for trace in made.data}
    for engine in dict.fromkeys(row.engine for row in rows):
        color, symbol = looks[engine]
        mine = [row for row in rows if row.engine == engine]
        made.add_scatter(
            x=[row.value for row in mine], y=[row.what for row in mine], name=engine, mode="markers",
            marker={"color": color, "symbol": symbol, "size": 10}, legendgroup=engine,
            showlegend=engine not in named, text=[_told(row) for row in mine], hoverinfo="text",
            row=place, col=1,
        )  # fmt: skip
    exceeded = {row.what for row in rows if not row.trusted}
    ceilings = {row.what: row.ceiling for row in rows if row.ceiling}
    shown = [row.value for row in rows] + list(ceilings.values())
    made.update_xaxes(title_text=rows[0].unit, **_axis(shown, theme), row=place, col=1)
    made.update_yaxes(autorange="reversed", row=place, col=1)
    for name, symbol, drawn in (
        (CEILING, "line-ns-open", ceilings.keys() - exceeded),
        (EXCEEDED, "x-thin-open", ceilings.keys() & exceeded),
    ):
        if not drawn:
            continue
        y = [what for what in ceilings if what in drawn]
        made.add_scatter(
            x=[ceilings[what] for what in y], y=y, name=name, mode="markers",
            marker={"color": theme.BLACK, "symbol": symbol, "size": 16, "line": {"width": 2}},
            legendgroup=name, showlegend=name not in named, row=place, col=1,
        )  # fmt: skip


def _axis(values: Sequence[float], theme: Any) -> dict[str, Any]:
    """Logarithmic, from a labelled number to a labelled number, however near to each other the values are.

    A value of 0 or below has no logarithm: such an axis is even.
    """
    if min(values) <= 0:
        return {}
    ticks = theme.log_ticks(values)
    low = max(mark for mark in ticks["tickvals"] if mark <= min(values))
    high = min(mark for mark in ticks["tickvals"] if mark >= max(values))
    return {**ticks, "range": [math.log10(low) - EDGE, math.log10(high) + EDGE], "tickangle": 0}


def _told(row: Row) -> str:
    share = f", {share_text(row.ceiling_share)} of what the machine allows" if row.ceiling_share else ""
    share += "" if row.trusted else ", which cannot be trusted"
    ratio = "" if row.ours_over is None else f", ours is {row.ours_over:.2f} times as fast"
    return f"{row.what}<br>{row.engine}: {row.value:,.4g} {row.unit}{share}{ratio}"
