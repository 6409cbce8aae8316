"""The map of the lab: the way of a prompt, and which lesson changes which term of its time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.live import Reading
from labcore.lab.units import seconds, si
from labcore.model import Model
from labcore.perf.costs import kv_bytes_per_token


class _Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    title: str
    text: str
    color: str


@dataclass(frozen=True)
class MapNumbers:
    """What one run fills into the map: tokens in and out, seconds, bytes."""

    prompt: int
    tokens: int
    ttft_s: float
    tpot_s: float
    weight_bytes: int
    kv_bytes: int

    @classmethod
    def of(cls, model: Model, reading: Reading) -> MapNumbers:
        """Take them from a model and a stream it gave."""
        m = reading.metrics
        kv_bytes = kv_bytes_per_token(model.config, model.dtype)
        tpot = m.tpot_s if m.tpot_s is not None else float("nan")
        return cls(reading.prompt_tokens, m.tokens, m.ttft_s, tpot, model.weight_bytes, kv_bytes)


def lab_map(n: MapNumbers) -> go.Figure:
    """The whole map as one drawing: boxes, arrows, and under each box its lesson."""
    made = theme.figure("The way of a prompt, with the numbers of the run above", height=520)
    made.update_xaxes(visible=False, range=[0, 100], fixedrange=True)
    made.update_yaxes(visible=False, range=[0, 70], fixedrange=True)
    made.update_layout(margin={"l": 8, "r": 8, "t": 48, "b": 8})
    for box in _boxes(n):
        _draw(made, box)
    for tail, head in _ARROWS:
        _arrow(made, tail, head)
    # an invisible trace gives the drawing axes to stand on
    made.add_trace(
        go.Scatter(
            x=[0, 100], y=[0, 70], mode="markers", marker={"opacity": 0}, hoverinfo="skip", showlegend=False
        )
    )
    return made


_ARROWS = (
    ((13, 58), (20, 58)),  # prompt -> prefill
    ((44, 58), (52, 58)),  # prefill -> decode
    ((78, 58), (86, 58)),  # decode -> text
    ((36, 49), (44, 43)),  # prefill writes the cache
    ((54, 43), (60, 49)),  # the cache is read by decode
    ((68, 49), (60, 41)),  # decode writes it too
)


def _boxes(n: MapNumbers) -> tuple[_Box, ...]:
    total = n.kv_bytes * (n.prompt + n.tokens - 1)
    return (
        _Box(0, 49, 13, 18, "Prompt", f"{n.prompt} tokens", theme.GREY),
        _Box(20, 49, 24, 18, "Prefill · lesson 2",
             f"one step, input (1, {n.prompt})<br>gives token 1<br>TTFT {seconds(n.ttft_s)}",
             theme.VERMILLION),
        _Box(52, 49, 26, 18, "Decode · lesson 2",
             f"{n.tokens - 1} steps, input (1, 1)<br>one token each<br>TPOT {seconds(n.tpot_s)}", theme.BLUE),
        _Box(86, 49, 14, 18, "Text", f"{n.tokens} tokens", theme.GREY),
        _Box(34, 29, 36, 14, "KV cache · lessons 3, 4",
             f"{si(n.kv_bytes, 'B')} a token; {si(total, 'B')} at the end", theme.ORANGE),
        _Box(0, 3, 31, 20, "Hardware · lessons 5, 6",
             "every step waits for<br>arithmetic F or memory BW:<br>TPOT ≥ (W + B·t·kv) / BW", theme.GREEN),
        _Box(34.5, 3, 31, 20, "Quantization · lesson 7",
             f"fewer bytes for the same<br>weights: W is {si(n.weight_bytes, 'B')} here,<br>"
             "int4 makes it a fraction",
             theme.PURPLE),
        _Box(69, 3, 31, 20, "Serving · lesson 8",
             "many users share a step:<br>throughput = B / TPOT,<br>$ per token falls with B", theme.SKY),
    )  # fmt: skip


def _draw(made: go.Figure, box: _Box) -> None:
    x, y, width, height = box[:4]
    made.add_shape(
        type="rect", x0=x, y0=y, x1=x + width, y1=y + height, layer="below",
        line={"color": box.color, "width": 2.5}, fillcolor=box.color, opacity=0.16,
    )  # fmt: skip
    made.add_shape(
        type="rect", x0=x, y0=y, x1=x + width, y1=y + height, line={"color": box.color, "width": 2}
    )
    made.add_annotation(
        x=x + width / 2, y=y + height / 2, showarrow=False, align="center",
        text=f"<b>{box.title}</b><br>{box.text}", font={"size": 13, "color": theme.INK},
    )  # fmt: skip


def _arrow(made: go.Figure, tail: tuple[float, float], head: tuple[float, float]) -> None:
    made.add_annotation(
        x=head[0], y=head[1], ax=tail[0], ay=tail[1], xref="x", yref="y", axref="x", ayref="y",
        text="", showarrow=True, arrowhead=2, arrowsize=1.2, arrowwidth=1.8, arrowcolor=theme.INK,
    )  # fmt: skip
