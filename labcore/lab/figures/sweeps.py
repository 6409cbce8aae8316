"""Time against length for both phases, shares of the roofs, and what the cache takes away."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from labcore.lab import theme
from labcore.lab.phases import CACHED, UNCACHED, CacheRuns, PhasePoint
from labcore.lab.sweeps import Sweep
from labcore.perf.timing import Timing

PREFILL, DECODE = theme.VERMILLION, theme.BLUE


def sweep_figure(sweep: Sweep, *, predicted: float | None = None) -> go.Figure:
    """Measured time against length on log axes, the roofs' bracket as a band, the learner's guess as a star.

    predicted: the guessed ratio of the longest time to the shortest.
    """
    read = sweep.phase == "prefill"
    made = theme.figure(
        f"{sweep.phase.capitalize()} of {sweep.model} on {sweep.machine}",
        x="prompt length (tokens)" if read else "output length (tokens, one decode step each)",
        y="time (ms)",
    )
    _add_band(made, sweep, "what the roofs allow")
    _add_measured(made, sweep, PREFILL if read else DECODE, "circle", "measured, median and spread")
    _add_proportional(made, sweep)
    if predicted is not None:
        _add_guess(made, sweep, predicted)
    return _log_axes(made, [point.length for point in sweep.points])


def both_phases_figure(prefill: Sweep, decode: Sweep) -> go.Figure:
    """The same number of positions, read at once and written one by one."""
    made = theme.figure(
        f"The same tokens, read at once or written one by one · {prefill.model} on {prefill.machine}",
        x="tokens read (prefill) or written (decode)",
        y="time (ms)",
        height=420,
    )
    for sweep, color, symbol, name in (
        (prefill, PREFILL, "circle", "prefill: one pass for all"),
        (decode, DECODE, "square", "decode: one pass each"),
    ):
        _add_band(made, sweep, f"roofs, {sweep.phase}", color)
        _add_measured(made, sweep, color, symbol, name)
    lengths = sorted({point.length for sweep in (prefill, decode) for point in sweep.points})
    return _log_axes(made, lengths)


def _add_measured(made: go.Figure, sweep: Sweep, color: str, symbol: str, name: str) -> None:
    made.add_scatter(
        x=[point.length for point in sweep.points],
        y=[point.seconds * 1e3 for point in sweep.points],
        error_y=quartiles([point.timing for point in sweep.points]),
        mode="lines+markers",
        name=name,
        marker={"symbol": symbol, "size": 9},
        line={"color": color, "width": 2.5},
        hovertemplate="%{x} tokens: %{y:.2f} ms<extra></extra>",
    )


def _add_band(made: go.Figure, sweep: Sweep, name: str, color: str = theme.GREY) -> None:
    """Between full overlap of arithmetic and traffic, and none."""
    lengths = [point.length for point in sweep.points]
    low, high = zip(*(point.roof.bracket(point.work) for point in sweep.points), strict=True)
    made.add_scatter(
        x=lengths + lengths[::-1],
        y=[value * 1e3 for value in (*high, *low[::-1])],
        fill="toself",
        mode="lines",
        line={"color": color, "width": 1, "dash": "dot" if sweep.phase == "prefill" else "dashdot"},
        opacity=0.45,
        name=name,
        hoverinfo="skip",
    )


def _add_proportional(made: go.Figure, sweep: Sweep) -> None:
    first = sweep.shortest
    made.add_scatter(
        x=[point.length for point in sweep.points],
        y=[first.seconds * point.length / first.length * 1e3 for point in sweep.points],
        mode="lines",
        name="were time proportional to tokens",
        line={"color": theme.GREY, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )


def _add_guess(made: go.Figure, sweep: Sweep, predicted: float) -> None:
    made.add_scatter(
        x=[sweep.longest.length],
        y=[sweep.shortest.seconds * predicted * 1e3],
        mode="markers",
        name="your prediction",
        marker={
            "symbol": "star",
            "size": 16,
            "color": theme.ORANGE,
            "line": {"color": theme.BLACK, "width": 1},
        },
        hovertemplate="you said %{y:.2f} ms<extra></extra>",
    )


def _log_axes(made: go.Figure, lengths: Sequence[int]) -> go.Figure:
    made.update_xaxes(type="log", tickvals=list(lengths), ticktext=[f"{length:,}" for length in lengths])
    made.update_yaxes(type="log", dtick="D2", exponentformat="none")
    return made


def quartiles(timings: Sequence[Timing]) -> dict[str, Any]:
    """Error bars in ms from the median to both quartiles: the middle half of the samples lies between."""
    cuts = [statistics.quantiles(timing.samples, n=4, method="inclusive") for timing in timings]
    return {
        "type": "data",
        "symmetric": False,
        "array": [(upper - middle) * 1e3 for _, middle, upper in cuts],
        "arrayminus": [(middle - lower) * 1e3 for lower, middle, _ in cuts],
    }


def shares_figure(shares: Mapping[str, tuple[float, float]], title: str) -> go.Figure:
    """Bars of (share of the matmul roof, share of the bandwidth roof), one pair a name."""
    made = theme.figure(title, y="share of the roof (%)", height=340)
    names = list(shares)
    for i, (roof, color, pattern) in enumerate(
        (("matmul roof (FLOP/s)", theme.PURPLE, "/"), ("bandwidth roof (bytes/s)", theme.GREEN, ""))
    ):
        values = [shares[name][i] * 100 for name in names]
        made.add_bar(
            x=names,
            y=values,
            name=roof,
            text=[f"{value:.2g} %" if value < 10 else f"{value:.0f} %" for value in values],
            textposition="outside",
            cliponaxis=False,
            marker={"color": color, "pattern": {"shape": pattern, "solidity": 0.25}},
        )
    made.add_hline(y=100, line={"color": theme.BLACK, "dash": "dash", "width": 1})
    made.update_layout(barmode="group")
    return made


def phase_shares(prefill: Sweep, decode: Sweep) -> go.Figure:
    """Shares of the roofs at both sweeps' longest length."""
    points = {
        f"prefill, {prefill.longest.length} tokens": prefill.longest,
        f"decode, {decode.longest.length} steps": decode.longest,
    }
    shares = {name: (point.flops_share, point.bandwidth_share) for name, point in points.items()}
    return shares_figure(shares, f"What each phase makes of {prefill.machine}")


def same_work_figure(points: Sequence[PhasePoint]) -> go.Figure:
    """Time of the three ways to the same next token, with input shape and FLOPs named at each bar."""
    made = theme.figure("The same next token, computed three ways", y="time of the step (ms)", height=360)
    colors = (PREFILL, theme.ORANGE, DECODE)
    made.add_bar(
        x=[f"{way.name}<br>input {way.shape}" for way in points],
        y=[way.point.seconds * 1e3 for way in points],
        error_y=quartiles([way.point.timing for way in points]),
        text=[f"{way.point.work.flops / 1e6:,.0f} MFLOP" for way in points],
        textposition="inside",
        insidetextanchor="middle",
        insidetextfont={"color": [theme.ink_on(color) for color in colors]},
        marker={"color": list(colors), "pattern": {"shape": ["/", "x", ""], "solidity": 0.15}},
        showlegend=False,
    )
    return made


def caches_figure(runs: CacheRuns) -> go.Figure:
    """Positions fed and time taken at each step, cache on and off."""
    made = make_subplots(rows=1, cols=2, subplot_titles=("Positions fed to the network", "Time of the step"))
    for kind, name, color, symbol in (
        (UNCACHED, "cache off", theme.ORANGE, "square"),
        (CACHED, "cache on", DECODE, "circle"),
    ):
        style: dict[str, Any] = {
            "name": name,
            "legendgroup": kind,
            "mode": "lines+markers",
            "line": {"color": color},
        }
        style["marker"] = {"symbol": symbol, "size": 5}
        steps = list(range(runs.new_tokens))
        made.add_scatter(x=steps, y=runs.positions(kind), **style, row=1, col=1)
        times = runs.times[kind]
        made.add_scatter(
            x=steps,
            y=[timing.median_s * 1e3 for timing in times],
            error_y={**quartiles(times), "thickness": 0.8, "width": 0},
            showlegend=False,
            **style,
            row=1,
            col=2,
        )
    title = f"Prompt of {runs.prompt_length} tokens, {runs.new_tokens} new ones"
    made.update_layout(template=theme.template(), title_text=title, height=theme.HEIGHT, margin={"t": 100})
    made.update_layout(legend={"y": 1.1})
    made.update_xaxes(title_text="step (0 is the prefill)")
    made.update_yaxes(title_text="positions", rangemode="tozero", row=1, col=1)
    made.update_yaxes(title_text="ms", rangemode="tozero", row=1, col=2)
    return made
