"""Figures of lesson 7: weights under a grid, the error's sawtooth, a number's bits, a format's values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from labcore.lab import theme
from labcore.lab.bit_patterns import LEVEL_FORMATS, OVERFLOWS, Pattern, levels_of
from labcore.lab.microscope import Lane, Look
from labcore.quant.formats import Format

BINS, DOTS = 120, 600
LANE_LOOKS = (
    (theme.VERMILLION, "circle", "solid"),
    (theme.GREEN, "diamond", "dash"),
    (theme.PURPLE, "square", "dot"),
)
# The lab's hues, so dark that white digits can be read on them.
BIT_LOOKS = {
    "sign": ("#B34A00", "diamond"),
    "exponent": (theme.BLUE, "square"),
    "mantissa": ("#00775A", "circle"),
    "code": ("#8F3F73", "hexagon"),
}
TICK = "line-ns-open"


def histogram_figure(look: Look) -> go.Figure:
    """How often each weight occurs; below, the numbers that the grid can hold, a line of ticks a grid.

    The levels of the grid with the largest weight are drawn through the histogram too.
    """
    made = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.05)
    lanes = look.lanes()
    centres, counts, width = _binned(look.weight)
    top = float(counts.max()) * 2
    made.add_bar(
        x=centres, y=[count or None for count in counts.tolist()], width=width, name="weights",
        marker={"color": theme.SKY, "line": {"width": 0}, "pattern": {"shape": ""}},
        hovertemplate="%{y:,} near %{x:.4g}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    _lines(made, lanes[0].levels, top)
    for lane, (color, _, _) in zip(lanes, LANE_LOOKS, strict=False):
        made.add_scatter(
            x=_short(lane.levels), y=[_named(lane)] * len(lane.levels), mode="markers", showlegend=False,
            marker={"symbol": TICK, "size": 16, "color": color, "line": {"width": 1.2, "color": color}},
            hovertemplate="%{x:.4g}<extra></extra>", row=2, col=1,
        )  # fmt: skip
    made.update_layout(template=theme.template(), title_text=look.title, height=theme.HEIGHT + 110, bargap=0)
    made.update_layout(margin={"t": 88})
    made.update_yaxes(title_text="how many (log)", type="log", tickformat=",d", dtick=1, row=1, col=1)
    made.update_yaxes(range=[-0.3, _log10(top)], row=1, col=1)
    made.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 11}, row=2, col=1)
    made.update_xaxes(title_text="weight; ticks: what the grid can hold", row=2, col=1)
    return made


def _binned(weight: Tensor) -> tuple[list[float], Tensor, float]:
    """(centres, counts, width) of bins between the extremes."""
    low, high = float(weight.min()), float(weight.max())
    high = high if high > low else low + 1e-6
    width = (high - low) / BINS
    counts = torch.histc(weight.flatten(), BINS, low, high)
    return [low + (i + 0.5) * width for i in range(BINS)], counts, width


def _lines(made: go.Figure, levels: Tensor, top: float) -> None:
    """A thin line through the histogram at each level, as one trace."""
    xs: list[float | None] = [x for level in _short(levels) for x in (level, level, None)]
    ys = [0.5, top, None] * len(levels)
    few = len(levels) <= 32
    made.add_scatter(
        x=xs, y=ys, mode="lines", name="levels of the grid with the largest weight", hoverinfo="skip",
        line={"color": theme.VERMILLION, "width": 1 if few else 0.5}, opacity=0.8 if few else 0.45,
        row=1, col=1,
    )  # fmt: skip


def _named(lane: Lane) -> str:
    return f"{lane.why}<br>{lane.place}" if lane.why else lane.place


def _log10(value: float) -> float:
    return float(torch.tensor(value).log10())


def error_figure(look: Look) -> go.Figure:
    """What rounding adds to a weight: the sawtooth of a grid, and the weights that lie on it.

    Of a matrix with a scale a row or group: the grid with the largest weight and the one in the middle.
    """
    made = theme.figure(look.title, x="weight", y="read back − weight", height=theme.HEIGHT + 100)
    lanes = look.lanes()[:2]
    for lane, (color, symbol, dash) in zip(lanes, LANE_LOOKS, strict=False):
        name = lane.place + (f" ({lane.why})" if lane.why else "")
        x = _corners(lane.levels)
        made.add_scatter(
            x=_short(x), y=_short(lane.error_at(x)), mode="lines", name=f"the grid of {name}",
            line={"color": color, "width": 1, "dash": dash}, opacity=0.6, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        every = -(-len(lane.weights) // DOTS)
        weights, back = lane.weights[::every], lane.back[::every]
        made.add_scatter(
            x=_short(weights), y=_short(back - weights), mode="markers", name=name,
            marker={"color": color, "symbol": symbol, "size": 5},
            hovertemplate="%{x:.4g}: %{y:.3g}<extra></extra>",
        )  # fmt: skip
    if look.format.is_integer:
        _half_steps(made, float(lanes[0].scale))
    made.update_layout(legend={"y": 1.0, "font": {"size": 11}}, margin={"t": 110})
    return made


def _corners(levels: Tensor) -> Tensor:
    """Where a sawtooth has its corners: just before and just after the middle between two levels."""
    gaps = levels.diff()
    middles, beside = levels[:-1] + gaps / 2, gaps * 1e-3
    return torch.cat([levels[:1], levels[-1:], middles - beside, middles + beside]).sort().values


def _short(values: Tensor) -> list[float]:
    """To six digits: what a figure needs, at half the size."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _half_steps(made: go.Figure, step: float) -> None:
    """Lines at plus and minus half a step, which no error inside of the grid exceeds."""
    for sign, text in ((1, "+Δ/2"), (-1, "−Δ/2")):
        made.add_hline(
            y=sign * step / 2, line={"color": theme.GREY, "dash": "dash", "width": 1},
            annotation_text=text, annotation_position="top right" if sign > 0 else "bottom right",
        )  # fmt: skip


def bits_figure(patterns: Sequence[Pattern]) -> go.Figure:
    """A number's bits in each format, highest first: colour, shape and the legend tell what a bit is for."""
    title = f"{patterns[0].value:.7g}, bit by bit"
    coded = [one for one in patterns if one.parts[0][0] == "code"]
    if coded:
        names = ", ".join(one.format for one in coded)
        title += f" ({names}: in a row whose largest number is {coded[0].top:g})"
    made = theme.figure(title, x="bit, highest first", height=150 + 46 * len(patterns))
    made.update_layout(margin={"t": 92})
    for kind, (color, symbol) in BIT_LOOKS.items():
        cells = [cell for one in patterns for cell in _cells(one, kind)]
        made.add_scatter(
            x=[x for x, _, _ in cells], y=[y for _, y, _ in cells], text=[bit for _, _, bit in cells],
            name=kind, mode="markers+text",
            textfont={"color": theme.ink_on(color), "size": 11, "family": "monospace"},
            marker={"symbol": symbol, "color": color, "size": 18},
            hovertemplate=kind + " bit<extra></extra>",
        )  # fmt: skip
    made.update_xaxes(range=[0.2, 32.8], tickvals=[1, 8, 16, 24, 32], showgrid=False)
    made.update_yaxes(
        categoryorder="array", categoryarray=[_held(one) for one in patterns], autorange="reversed",
        showgrid=False, ticks="", tickfont={"size": 12},
    )  # fmt: skip
    return made


def _cells(one: Pattern, kind: str) -> list[tuple[int, str, str]]:
    """(place from 1, row, bit) of a format's bits of one kind."""
    kinds = [(part, bit) for part, bits in one.parts for bit in bits]
    return [(i, _held(one), bit) for i, (part, bit) in enumerate(kinds, start=1) if part == kind]


def _held(one: Pattern) -> str:
    """A row's label: format, what it holds, how far off that is."""
    off = "exact" if one.off_by == "exact" else f"off {one.off_by}"
    return f"<b>{one.format}</b><br>{one.stands_for:.6g} ({'too large' if one.verdict == OVERFLOWS else off})"


def levels_figure(formats: Sequence[str] = LEVEL_FORMATS) -> go.Figure:
    """Every value of each format, the largest made 1: on an even axis, and how far down its magnitudes go."""
    made = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=("on an even axis", "above 0, on a logarithmic axis"),
    )  # fmt: skip
    for i, name in enumerate(formats):
        levels, color = levels_of(name), theme.COLORS[i % 7]
        label = f"<b>{name}</b><br>{len(levels)} values of {2 ** Format(name).bits} codes"
        above = levels[levels > 0]
        for column, shown in ((1, levels), (2, above)):
            style: dict[str, Any] = {"symbol": TICK, "size": 26, "color": color}
            made.add_scatter(
                x=_short(shown), y=[label] * len(shown), mode="markers", name=name, showlegend=False,
                marker=style | {"line": {"width": 1, "color": color}},
                hovertemplate="%{x:.4g}<extra>" + name + "</extra>", row=1, col=column,
            )  # fmt: skip
    made.update_layout(
        template=theme.template(), title_text="All the values of a format, its largest made 1",
        height=150 + 56 * len(formats), margin={"t": 90},
    )  # fmt: skip
    made.update_yaxes(autorange="reversed", showgrid=False, ticks="", row=1)
    made.update_xaxes(title_text="value / largest", range=[-1.03, 1.03], row=1, col=1)
    made.update_xaxes(
        title_text="value / largest", type="log", dtick=2,
        exponentformat="power", tickfont={"size": 11}, row=1, col=2,
    )  # fmt: skip
    return made
