"""Lesson 8's pictures of memory: blocks in use over the steps, and who holds which of them at one step."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.serving_runs import PolicyRun
from labcore.lab.serving_spans import Holding, events_and_arrivals, holdings
from labcore.serving import StepEvent

MOST_NAMED = 8  # requests with a colour of their own; with more, the total is drawn
FREE, SHARED = "free, or kept for its prefix", "held by several"


def looks_of(ids: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, pattern and symbol of each request."""
    return {
        id: (theme.COLORS[i % 7], theme.PATTERNS[(i + i // 7) % 7], ("square", "circle", "diamond")[i % 3])
        for i, id in enumerate(ids)
    }


def block_figure(run: PolicyRun | Sequence[StepEvent], at: int | None = None) -> go.Figure:
    """Blocks in use over the steps: stacked by request where those are few, else in all; the pool's size.

    Blocks that several share are a layer of their own. at: a step to mark.
    """
    events, _ = events_and_arrivals(run)
    found = holdings(events)
    made = theme.figure("Blocks in use", x="step", y="blocks", height=340)
    steps = [holding.step for holding in found]
    ids = list(dict.fromkeys(id for holding in found for id in holding.blocks))
    if len(ids) <= MOST_NAMED:
        _stack(made, found, steps, ids)
    else:
        made.add_scatter(
            x=steps, y=[holding.used for holding in found], name="held by requests", mode="lines",
            line={"shape": "hv", "color": theme.BLUE, "width": 2}, fill="tozeroy",
        )  # fmt: skip
    total = found[0].total
    made.add_scatter(
        x=[steps[0], steps[-1]], y=[total, total], name=f"the pool: {total} blocks", mode="lines",
        line={"color": theme.BLACK, "dash": "dash", "width": 2},
    )  # fmt: skip
    if at is not None:
        made.add_vline(x=at, line={"color": theme.VERMILLION, "dash": "dot"})
    made.update_yaxes(rangemode="tozero")
    made.update_layout(bargap=0, barmode="stack")
    return made


def _stack(made: go.Figure, found: Sequence[Holding], steps: Sequence[int], ids: Sequence[str]) -> None:
    counted = [_by_owner(holding) for holding in found]
    looks = looks_of(ids) | {SHARED: (theme.GREY, "", "hexagon")}
    for id in (*ids, SHARED):
        heights = [counts.get(id, 0) for counts in counted]
        if any(heights):
            color, pattern, _ = looks[id]
            made.add_bar(
                x=list(steps), y=heights, name=id, width=1,
                marker={"color": color, "pattern": theme.hatch(pattern), "line": {"width": 0}},
                hovertemplate=f"step %{{x}}: {id} %{{y}} blocks<extra></extra>",
            )  # fmt: skip


def _by_owner(holding: Holding) -> dict[str, int]:
    counts: dict[str, int] = {}
    for who in holding.holders.values():
        owner = who[0] if len(who) == 1 else SHARED
        counts[owner] = counts.get(owner, 0) + 1
    return counts


def map_figure(holding: Holding, ids: Sequence[str] | None = None) -> go.Figure:
    """A mark for each block at one step: who holds it. ids: all requests of the run, for steady colours."""
    columns, size = (16, 32) if holding.total <= 64 else (24, 24)
    named = list(ids if ids is not None else holding.blocks)
    holders = holding.holders
    groups: dict[str, list[int]] = {}
    for block in range(holding.total):
        who = holders.get(block, ())
        groups.setdefault(FREE if not who else who[0] if len(who) == 1 else SHARED, []).append(block)
    rows = -(-holding.total // columns)
    made = theme.figure(f"Blocks at step {holding.step}", height=110 + (size + 14) * rows)
    looks = looks_of(named) | {FREE: ("#F1F1ED", "", "square"), SHARED: (theme.GREY, "", "hexagon")}
    for name in sorted(groups, key=lambda name: [*named, SHARED, FREE].index(name)):
        color, _, symbol = looks[name]
        blocks = groups[name]
        made.add_scatter(
            x=[block % columns for block in blocks],
            y=[block // columns for block in blocks],
            mode="markers+text",
            name=name,
            text=[str(block) for block in blocks],
            textfont={"size": 11 if size > 24 else 9, "color": theme.ink_on(color)},
            marker={"symbol": symbol, "size": size, "color": color, "line": {"color": theme.INK, "width": 1}},
            customdata=[", ".join(holders.get(block, ())) or "nobody" for block in blocks],
            hovertemplate="block %{text}: %{customdata}<extra></extra>",
        )
    made.update_xaxes(visible=False, range=[-0.7, columns - 0.3])
    made.update_yaxes(visible=False, range=[rows - 0.3, -0.7])
    made.update_layout(legend={"itemsizing": "constant"}, margin={"b": 12})
    return made
