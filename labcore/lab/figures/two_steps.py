"""One step of a recorded generation: its candidates, its attention, its time among the others."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from labcore.generation import Trace, TraceStep
from labcore.lab import theme
from labcore.lab.figures.attention import NOT_COMPUTED, attention_trace

PREFILL, DECODE, CHOSEN = theme.VERMILLION, theme.BLUE, theme.GREEN
LABELLED = 36  # positions up to which the attention panel names every token


def step_figure(trace: Trace, index: int, head: tuple[int, int], tokens: Sequence[str]) -> go.Figure:
    """One step: its best candidates, its attention under one head, and the time of every step.

    tokens: the text of each position of this step's sequence, as many as `context`.
    """
    step = trace.steps[index]
    made = make_subplots(
        rows=2,
        cols=2,
        row_heights=[0.74, 0.26],
        column_widths=[0.42, 0.58],
        vertical_spacing=0.2,
        horizontal_spacing=0.16,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        subplot_titles=(
            "Best candidates for the next token",
            f"Attention of layer {head[0]}, head {head[1]}",
            "Time of each step",
        ),
    )
    made.add_trace(_candidates(step), row=1, col=1)
    made.add_trace(attention_trace(_weights(step, head), tokens), row=1, col=2)
    made.add_trace(_times(trace, index), row=2, col=1)
    _lay_out(made, step, tokens)
    return made


def _weights(step: TraceStep, head: tuple[int, int]) -> Tensor:
    return step.attention[head]


def _candidates(step: TraceStep) -> go.Bar:
    """Logits of the best tokens, best on top; the chosen one is hatched and named."""
    shown = step.top[::-1]
    chosen = [candidate.token == step.token for candidate in shown]
    colors = [CHOSEN if hit else theme.SKY for hit in chosen]
    return go.Bar(
        x=[candidate.logit for candidate in shown],
        y=[
            quoted(candidate.text) + (" ◀ chosen" if hit else "")
            for candidate, hit in zip(shown, chosen, strict=True)
        ],
        orientation="h",
        text=[f"{candidate.probability:.1%}" for candidate in shown],
        textposition="auto",
        insidetextfont={"color": [theme.ink_on(color) for color in colors]},
        marker={
            "color": colors,
            "pattern": {"shape": ["/" if hit else "" for hit in chosen], "solidity": 0.25},
        },
        hovertemplate="%{y}<br>logit %{x:.2f}, probability at temperature 1: %{text}<extra></extra>",
        showlegend=False,
    )


def _times(trace: Trace, index: int) -> go.Bar:
    steps = trace.steps
    return go.Bar(
        x=[step.index for step in steps],
        y=[step.seconds * 1e3 for step in steps],
        marker={
            "color": [PREFILL if step.phase == "prefill" else DECODE for step in steps],
            "opacity": [1.0 if step.index == index else 0.35 for step in steps],
            "line": {"color": theme.BLACK, "width": [2.5 if step.index == index else 0 for step in steps]},
            "pattern": {"shape": ["/" if step.phase == "prefill" else "" for step in steps], "solidity": 0.2},
        },
        customdata=[f"{step.phase}, input {tuple(step.input_shape)}" for step in steps],
        hovertemplate="step %{x}: %{customdata}<br>%{y:.2f} ms<extra></extra>",
        showlegend=False,
    )


def _lay_out(made: go.Figure, step: TraceStep, tokens: Sequence[str]) -> None:
    context = len(tokens)
    title = f"Step {step.index} · {step.phase} · input {tuple(step.input_shape)}"
    made.update_layout(template=theme.template(), title_text=title, height=600, margin={"t": 96})
    made.update_xaxes(title_text="logit", row=1, col=1)
    made.update_yaxes(tickfont={"size": 12}, ticks="", showline=False, row=1, col=1)
    made.update_xaxes(title_text="key position", row=1, col=2, showgrid=False, range=[-0.5, context - 0.5])
    made.update_yaxes(title_text="query position", row=1, col=2, showgrid=False, range=[context - 0.5, -0.5])
    made.update_xaxes(title_text="step (0 is the prefill)", row=2, col=1)
    made.update_yaxes(title_text="ms", row=2, col=1)
    if context <= LABELLED:
        names = {"tickvals": list(range(context)), "ticktext": list(tokens), "tickfont": {"size": 9}}
        made.update_xaxes(**names, tickangle=-90, row=1, col=2)
        made.update_yaxes(**names, row=1, col=2)
    made.add_shape(
        type="rect", x0=0, x1=1, y0=0, y1=1, xref="x2 domain", yref="y2 domain",
        fillcolor=NOT_COMPUTED, line_width=0, layer="below",
    )  # fmt: skip


def quoted(text: str) -> str:
    """A token in quotation marks, so that where it ends can be seen; safe for plotly's labels."""
    return f"‘{safe(text)}’"


def safe(text: str) -> str:
    """Text for a label: plotly reads labels as a kind of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
