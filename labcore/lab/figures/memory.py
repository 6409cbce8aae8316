"""Lesson 4's pictures: memory as strips, caches on a plane of bytes and recall, a map of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.blocks import BLOCK_SIZE, Moment
from labcore.lab.forgetting import Looks
from labcore.lab.heads import HeadsExperiment
from labcore.perf.memory import MemoryPlan
from labcore.quality import Quality

MOST_STRIPS = 64  # more requests are drawn as one strip


def tetris_figure(found: MemoryPlan) -> go.Figure:
    """One bar: weights, a strip per request with what it wastes, what is free; the memory's end as a line."""
    wanted = found.deployment
    made = theme.figure(f"Memory of {found.machine}", x="GB", height=230)
    made.update_layout(barmode="stack", bargap=0.35)
    _strip(made, "weights", found.weights, theme.BLUE, "", legend=True)
    strips = wanted.batch if wanted.batch <= MOST_STRIPS else 1
    for index in range(strips):
        name = "cache, a strip for each request" if strips > 1 else f"cache of {wanted.batch} requests"
        _strip(made, name, found.cache / strips, theme.GREEN, "/", legend=index == 0)
        if found.waste:
            _strip(made, "allocated, not filled", found.waste / strips, theme.ORANGE, "x", legend=index == 0)
    if found.fits:
        _strip(made, "free", found.free, "#DEDEDA", "", legend=True)
    made.add_vline(x=found.memory_bytes / 1e9, line={"color": theme.BLACK, "width": 2, "dash": "dot"})
    made.update_yaxes(showticklabels=False, showgrid=False)
    return made


def _strip(made: go.Figure, name: str, nbytes: float, color: str, pattern: str, *, legend: bool) -> None:
    made.add_bar(
        x=[nbytes / 1e9], y=[""], orientation="h", name=name, legendgroup=name, showlegend=legend,
        marker={"color": color, "line": {"color": theme.CARD, "width": 1}, "pattern": theme.hatch(pattern)},
        hovertemplate=f"{name}: %{{x:.2f}} GB<extra></extra>",
    )  # fmt: skip


def heads_figure(experiment: HeadsExperiment) -> go.Figure:
    """Measured decode time beside the bandwidth model's, for each sharing."""
    kinds = [run.kind for run in experiment.runs]
    made = theme.figure(
        f"A decode step over {experiment.batch} × {experiment.context:,} tokens", x="attention", y="time (ms)"
    )
    made.add_bar(
        x=kinds, y=[run.predicted_s * 1e3 for run in experiment.runs], name="bandwidth model",
        marker={"color": theme.GREY, "pattern": theme.hatch("/")},
    )  # fmt: skip
    made.add_bar(
        x=kinds, y=[run.seconds * 1e3 for run in experiment.runs], name="measured",
        marker={"color": theme.BLUE, "pattern": theme.hatch("")},
        error_y={"type": "data", "array": [run.spread_s * 1e3 for run in experiment.runs]},
    )  # fmt: skip
    return made


def looks_figure(looks: Looks) -> go.Figure:
    """Each cache's row of attention over the text; what it has forgotten is grey."""
    made = theme.figure(
        "Where the last token can look, and looks", x="position in the text (tokens)", height=330
    )
    made.add_heatmap(
        z=[[None if value != value else value for value in row] for row in looks.weights.tolist()],
        y=list(looks.caches),
        customdata=[list(looks.tokens)] * len(looks.caches),
        hovertemplate="%{y}<br>position %{x}: %{customdata}<br>weight %{z:.3f}<extra></extra>",
        colorscale=[[0, "#FFFFFF"], [0.02, "#CFE3F2"], [0.3, "#56A0D3"], [1, "#003E66"]],
        colorbar={"title": {"text": "weight"}, "thickness": 10},
        zmin=0, hoverongaps=False,
    )  # fmt: skip
    made.update_layout(plot_bgcolor="#DEDEDA")
    made.update_xaxes(showgrid=False)
    made.update_yaxes(autorange="reversed", showgrid=False)
    return made


def pareto_figure(found: Sequence[Quality]) -> go.Figure:
    """Recall against bytes, each with its 95 % interval: up and to the left is better."""
    made = theme.figure(
        "What a byte of cache buys", x="bytes of a sequence of 512 tokens (kB)", y="recall (%)", height=440
    )
    for index, one in enumerate(found):
        color, symbol = theme.COLORS[index % 7], _symbol(index)
        made.add_scatter(
            x=[one.nbytes / 1e3], y=[one.recall.value * 100], name=one.cache, mode="markers",
            marker={"color": color, "symbol": symbol, "size": 12},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1,
                "array": [(one.recall.high - one.recall.value) * 100],
                "arrayminus": [(one.recall.value - one.recall.low) * 100],
            },
            hovertemplate=f"{one.cache}<br>%{{x:.0f}} kB, recall %{{y:.0f}} %, perplexity "
            f"{one.perplexity.value:.2f}<extra></extra>",
        )  # fmt: skip
    made.update_xaxes(**theme.log_ticks([one.nbytes / 1e3 for one in found]))
    made.update_yaxes(range=[-5, 105])
    made.update_layout(legend={"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top"})
    return made


def _symbol(index: int) -> str:
    """A marker for each cache; past the last one they begin again, hollow."""
    return theme.SYMBOLS[index % 7] + ("-open" if index >= 7 else "")


def distance_figure(found: Sequence[Quality]) -> go.Figure:
    """Recall against the distance to the fact, a line for each cache."""
    made = theme.figure(
        "Recall by distance to the fact", x="tokens from the fact to the answer", y="recall (%)", height=400
    )
    for index, one in enumerate(found):
        made.add_scatter(
            x=list(one.by_distance), y=[cell.value * 100 for cell in one.by_distance.values()],
            name=one.cache, mode="lines+markers", line={"color": theme.COLORS[index % 7]},
            marker={"symbol": _symbol(index), "size": 9},
        )  # fmt: skip
    made.update_yaxes(range=[-5, 105])
    made.update_xaxes(type="category")
    made.update_layout(legend={"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top"})
    return made


def block_figure(moment: Moment, columns: int = 8) -> go.Figure:
    """A square for each block: who holds it, and how many of its positions are filled."""
    made = theme.figure(moment.title, height=300)
    users = list(dict.fromkeys(user for block in moment.blocks for user in block.users))
    groups: dict[str, list[Any]] = {}
    for block in moment.blocks:
        groups.setdefault(_group(block.users, block.in_tree), []).append(block)
    looks = _looks(users)
    for name, blocks in groups.items():
        color, symbol = looks.get(name, (theme.PURPLE, "square"))
        made.add_scatter(
            x=[block.block % columns for block in blocks],
            y=[block.block // columns for block in blocks],
            mode="markers+text",
            name=name,
            text=[f"{block.block}<br>{block.filled}/{BLOCK_SIZE}" for block in blocks],
            textfont={"size": 11, "color": theme.ink_on(color)},
            marker={"symbol": symbol, "size": 44, "color": color, "line": {"color": theme.INK, "width": 1}},
            hovertemplate="block %{text}<extra>" + name + "</extra>",
        )
    rows = (len(moment.blocks) - 1) // columns
    made.update_xaxes(visible=False, range=[-0.7, columns - 0.3])
    made.update_yaxes(visible=False, range=[rows + 0.7, -0.7])
    return made


def _group(users: tuple[str, ...], in_tree: bool) -> str:
    if users:
        return " and ".join(users)
    return "kept in the tree" if in_tree else "free"


def _looks(users: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and shape of each holder; what several hold has its own."""
    own = {user: (theme.COLORS[(1, 5, 4, 2)[i % 4]], "square") for i, user in enumerate(users)}
    return own | {"free": ("#F1F1ED", "square"), "kept in the tree": ("#C9C9C4", "hexagon")}
