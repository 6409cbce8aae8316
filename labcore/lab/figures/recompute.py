"""The grid of positions that a step computes, and what both ways cost as the text grows."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from labcore.generation import Trace, TraceStep
from labcore.lab import theme
from labcore.lab.recompute import Copies, Growth
from labcore.lab.units import si

# What a cell of the grid is, and how it looks: colour and letter.
FUTURE, HELD, AGAIN, NEW = range(4)
_LOOK = {
    HELD: ("#DEDEDA", "", "read from the cache"),
    AGAIN: (theme.ORANGE, "×", "computed again"),
    NEW: (theme.BLUE, "", "computed for the first time"),
}


def step_cells(step: TraceStep, computed_before: int) -> list[list[int]]:
    """What each (query, key) of the step is. computed_before: positions that earlier steps have computed."""
    first = step.context - step.input_shape[1]
    return [
        [_cell(query, key, first, computed_before) for key in range(step.context)]
        for query in range(step.context)
    ]


def _cell(query: int, key: int, first: int, computed_before: int) -> int:
    if key > query:
        return FUTURE
    if query < first:
        return HELD
    return AGAIN if query < computed_before else NEW


def grid_figure(trace: Trace, index: int, way: str) -> go.Figure:
    """One step: a row for each query, a column for each key it attends to; recomputed rows are marked."""
    step = trace.steps[index]
    before = trace.steps[index - 1].context if index else 0
    cells = step_cells(step, before)
    made = theme.figure(
        f"Step {index}, cache {way}: which attention rows are computed",
        x="key (position)", y="query (position)", height=430,
    )  # fmt: skip
    for kind, (color, letter, name) in _LOOK.items():
        points = [
            (key, query) for query, row in enumerate(cells) for key, cell in enumerate(row) if cell == kind
        ]
        made.add_scatter(
            x=[key for key, _ in points],
            y=[query for _, query in points],
            mode="markers+text",
            text=[letter] * len(points),
            textfont={"size": 11, "color": theme.ink_on(color)},
            marker={"symbol": "square", "size": _size(step.context), "color": color, "line": {"width": 0}},
            name=f"{name} ({len({query for _, query in points})} rows)",
            hovertemplate="query %{y}, key %{x}<extra>" + name + "</extra>",
        )
    longest = trace.steps[-1].context
    made.update_xaxes(range=[-0.6, longest - 0.4], constrain="domain", showgrid=False)
    made.update_yaxes(range=[longest - 0.4, -0.6], scaleanchor="x", showgrid=False)
    return made


def _size(context: int) -> int:
    return max(4, min(14, 300 // context))


def counter_rows(traces: dict[str, Trace], index: int) -> list[dict[str, Any]]:
    """FLOPs so far and bytes held, both ways, up to a step."""
    rows = []
    for way, trace in traces.items():
        done = trace.steps[: index + 1]
        fed = sum(step.input_shape[1] for step in done)
        rows.append(
            {
                "cache": way,
                "positions computed": fed,
                "of them again": fed - done[-1].context,
                "FLOP so far": si(sum(step.flops for step in done), ""),
                "bytes held": si(done[-1].cache_bytes, "B") if done[-1].cache_bytes else "0 B",
            }
        )
    return rows


def growth_figure(growth: Growth, *, predicted: float | None = None) -> go.Figure:
    """Time of the next token against length, both ways, beside what the roofs allow; the guess as a star."""
    made = theme.figure(f"The next token of {growth.model}", x="tokens so far", y="time (ms)", height=420)
    on = growth.points["on"]
    low = [point.roof.bracket(point.work)[0] * 1e3 for point in on]
    made.add_scatter(
        x=growth.lengths, y=low, mode="lines", name="bandwidth model, cache on",
        line={"dash": "dash", "color": theme.GREY},
    )  # fmt: skip
    for way, color, symbol in (("off", theme.VERMILLION, "square"), ("on", theme.BLUE, "circle")):
        points = growth.points[way]
        made.add_scatter(
            x=growth.lengths,
            y=[point.seconds * 1e3 for point in points],
            error_y={"type": "data", "array": [point.timing.spread_s * 1e3 for point in points]},
            mode="lines+markers",
            marker={"symbol": symbol, "size": 9, "color": color},
            line={"color": color},
            name=f"cache {way}, measured",
        )
    if predicted is not None:
        made.add_scatter(
            x=[growth.lengths[-1]],
            y=[growth.points["off"][0].seconds * 1e3 * predicted],
            mode="markers",
            marker={"symbol": "star", "size": 14, "color": theme.GREEN},
            name="your prediction, cache off",
        )
    made.update_xaxes(**theme.log_ticks(growth.lengths))
    values = [point.seconds * 1e3 for points in growth.points.values() for point in points] + low
    made.update_yaxes(**theme.log_ticks(values))
    return made


def copies_figure(copies: Copies) -> go.Figure:
    """Bytes copied against length, beside the bytes that are held."""
    made = theme.figure("Bytes copied to let the cache grow", x="tokens", y="MB", height=400)
    made.add_scatter(
        x=copies.lengths, y=[held / 1e6 for held in copies.held], mode="lines+markers",
        name="held: keys and values", marker={"symbol": "circle", "color": theme.BLUE},
        line={"color": theme.BLUE},
    )  # fmt: skip
    looks = {"growing": (theme.VERMILLION, "square"), "contiguous": (theme.GREEN, "diamond")}
    for kind, (color, symbol) in looks.items():
        made.add_scatter(
            x=copies.lengths,
            y=[copied / 1e6 for copied in copies.copied[kind]],
            mode="lines+markers",
            name=f"copied so far: {kind}",
            marker={"symbol": symbol, "color": color},
            line={"color": color},
        )
    return made
