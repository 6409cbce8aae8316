"""A reference GPU's results beside the learner's: shares of a roof, and gains over full precision."""

from __future__ import annotations

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.reference_gains import WeightGain, WeightsBeside
from labcore.lab.reference_runs import Decode, DecodeBeside, subject, told

_TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def shares_figure(beside: DecodeBeside) -> go.Figure:
    """What one user's decode steps reached of each device's memory bandwidth."""
    made = theme.figure(
        "One user's decode steps, of what memory allows", x="share of the measured bandwidth (%)", height=340
    )
    for own in (True, False):
        shown = [beside.own] if own else list(beside.others)
        made.add_bar(
            y=[f"{one.subject}<br>{one.run.device}" for one in shown], x=[100 * one.share for one in shown],
            name="yours, this run" if own else f"reference: {told(shown[0].run)}", orientation="h",
            text=[_share(one) for one in shown], textposition="auto", marker=_look(own),
            insidetextfont={"color": theme.ink_on(_color(own))},
        )  # fmt: skip
    made.add_vline(x=100, line={"color": theme.BLACK, "width": 2, "dash": "dot"})
    made.update_yaxes(autorange="reversed")
    made.update_xaxes(rangemode="tozero")
    return made


def _share(one: Decode) -> str:
    return f"{100 * one.share:.0f} %{one.doubt}"


def weight_gains_figure(beside: WeightsBeside) -> go.Figure:
    """How many times smaller and faster than full precision, here and there; what lost hangs below 1."""
    made = theme.figure(
        "Narrower weights against full precision, here and on the reference",
        y="times smaller or faster (log)", height=480,
    )  # fmt: skip
    shades = {True: (theme.BLUE, theme.SKY), False: (theme.VERMILLION, theme.ORANGE)}
    for own, ways in ((True, beside.own), (False, beside.others)):
        for place, (one, color) in enumerate(zip(ways, shades[own], strict=False)):
            gains = list(one.gains.values())
            made.add_bar(
                x=list(one.gains), y=[gain - 1 for gain in gains], base=1, name=_named(one, own),
                text=[f"{gain:.2g}×" for gain in gains], textposition="outside",
                customdata=gains, hovertemplate="%{x}: %{customdata:.3g}×",
                marker={"color": color, "pattern": theme.hatch(theme.PATTERNS[place + 2 * (not own)])},
            )  # fmt: skip
    made.add_hline(y=1, line={"color": theme.BLACK, "width": 2, "dash": "dot"})
    made.update_yaxes(type="log", tickvals=_TICKS, ticktext=[f"{tick:g}×" for tick in _TICKS])
    made.update_layout(
        barmode="group", legend={"orientation": "v", "x": 0, "y": -0.12, "yanchor": "top"}, margin={"b": 130}
    )
    return made


def _named(one: WeightGain, own: bool) -> str:
    where = "yours" if own else f"reference, {told(one.run)}"
    return f"{one.bits}, {subject(one.run)} ({where})"


def _look(own: bool) -> dict[str, object]:
    """Colour and pattern."""
    return {"color": _color(own), "pattern": theme.hatch(theme.PATTERNS[0 if own else 1])}


def _color(own: bool) -> str:
    return theme.BLUE if own else theme.VERMILLION
