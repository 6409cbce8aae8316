"""One forward pass over n new tokens: time for its arithmetic, time for its bytes, and where they cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from labcore import catalog
from labcore.config import ModelConfig
from labcore.lab import theme
from labcore.lab.units import seconds, significant
from labcore.perf.costs import step_costs
from labcore.perf.dtypes import bytes_per_element
from labcore.perf.peaks import machine_from_gpu

LENGTHS = tuple(2**i for i in range(14))


@dataclass(frozen=True)
class Crossing:
    """Seconds per pass at each number of new tokens, by the cost model and a machine's two roofs.

    by_weights: the crossing if only weights were read: peak / bandwidth * bytes per weight / 2.
    """

    lengths: tuple[int, ...]
    arithmetic_s: tuple[float, ...]
    traffic_s: tuple[float, ...]
    by_weights: float

    @property
    def at(self) -> float | None:
        """New tokens from which arithmetic takes longer than traffic, interpolated; None: never here."""
        gaps = [a / t for a, t in zip(self.arithmetic_s, self.traffic_s, strict=True)]
        for i, gap in enumerate(gaps):
            if gap >= 1:
                if i == 0:
                    return float(self.lengths[0])
                before, step = gaps[i - 1], self.lengths[i] - self.lengths[i - 1]
                return self.lengths[i - 1] + step * (1 - before) / (gap - before)
        return None

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        return [
            {
                "new tokens in one pass": n,
                "arithmetic (ms)": a * 1e3,
                "bytes (ms)": t * 1e3,
                "bound by": "compute" if a > t else "bandwidth",
            }
            for n, a, t in zip(self.lengths, self.arithmetic_s, self.traffic_s, strict=True)
        ]


def cross(
    config: ModelConfig, peak_flops: float, bandwidth: float, dtype: str, bytes_per_weight: float
) -> Crossing:
    """Both times for prefills of 1 … 8192 tokens, as far as the model's context goes."""
    lengths = tuple(n for n in LENGTHS if n <= max(config.max_position_embeddings, 1))
    steps = [step_costs(config, 1, n, n, dtype=dtype) for n in lengths]
    return Crossing(
        lengths,
        tuple(step.flops / peak_flops for step in steps),
        tuple(step.bytes / bandwidth for step in steps),
        peak_flops / bandwidth * bytes_per_weight / 2,
    )


def crossing_rows(gpus: Sequence[str], dtype: str = "float16") -> list[dict[str, Any]]:
    """Where catalogued devices turn, by their data sheets: peak / bandwidth * bytes per weight / 2."""
    rows = []
    for gpu in map(catalog.gpu, gpus):
        machine = machine_from_gpu(gpu)
        ridge = machine.ridge(machine.product_dtype(dtype))
        turn = ridge * bytes_per_element(dtype) / 2
        rows.append(
            {"device": gpu.title, "FLOP per byte": round(ridge, 1), "turns at (tokens)": round(turn, 1)}
        )
    return rows


def crossing_figure(crossing: Crossing, title: str) -> go.Figure:
    """Two lines on log axes, the pass's bound drawn thick, the crossing marked."""
    made = theme.figure(title, x="new tokens in one pass (1 is decode)", y="time (ms)")
    bound = [max(pair) for pair in zip(crossing.arithmetic_s, crossing.traffic_s, strict=True)]
    lines: Sequence[tuple[str, Sequence[float], str, str, float]] = (
        ("the pass takes at least", bound, theme.GREY, "circle", 9),
        ("moving its bytes", crossing.traffic_s, theme.GREEN, "square", 2.5),
        ("doing its arithmetic", crossing.arithmetic_s, theme.PURPLE, "diamond", 2.5),
    )
    for name, values, color, symbol, width in lines:
        thick = width > 3
        made.add_scatter(
            x=crossing.lengths,
            y=[value * 1e3 for value in values],
            name=name,
            mode="lines" if thick else "lines+markers",
            opacity=0.35 if thick else 1.0,
            line={"color": color, "width": width},
            marker={"symbol": symbol, "size": 7},
        )
    if crossing.at is not None:
        _mark(made, crossing.at, bound, crossing.lengths)
    made.update_xaxes(type="log", tickvals=crossing.lengths, ticktext=[f"{n:,}" for n in crossing.lengths])
    made.update_yaxes(type="log", dtick=1, exponentformat="none")
    return made


def _mark(made: go.Figure, at: float, bound: Sequence[float], lengths: Sequence[int]) -> None:
    """A star where the lines cross, between two computed lengths."""
    right = next(i for i, n in enumerate(lengths) if n >= at)
    left = max(right - 1, 0)
    share = (at - lengths[left]) / max(lengths[right] - lengths[left], 1)
    height = bound[left] + share * (bound[right] - bound[left])
    made.add_scatter(
        x=[at],
        y=[height * 1e3],
        mode="markers+text",
        name="they cross",
        text=[f"{significant(at)} tokens"],
        textposition="top left",
        marker={
            "symbol": "star",
            "size": 16,
            "color": theme.ORANGE,
            "line": {"color": theme.BLACK, "width": 1},
        },
    )


def crossing_finding(crossing: Crossing, title: str) -> str:
    """Where the pass turns from waiting for memory to computing."""
    one, last = crossing.traffic_s[0], crossing.lengths[-1]
    if crossing.at is None:
        share = crossing.arithmetic_s[-1] / crossing.traffic_s[-1]
        turn = (
            f"bytes stay the longer part to {last:,} tokens, where arithmetic takes {share:.0%} of their time"
        )
    else:
        turn = f"at {significant(crossing.at)} tokens arithmetic overtakes"
    return (
        f"{title}: one token takes at least {seconds(one)}, all of it bytes; {turn}. "
        f"Were weights the only bytes, it would turn at {significant(crossing.by_weights)} tokens."
    )
