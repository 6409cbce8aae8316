"""Lesson 1's pictures: the steps of a stream, throughput against batch, and the floor under a step."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from labcore.lab import theme
from labcore.lab.live import Reading, StreamMetrics
from labcore.lab.units import gigabytes, seconds, significant
from labcore.perf.predict import Napkin


def step_times(reading: Reading) -> go.Figure:
    """Milliseconds of every step: the prefill, the decode steps, and their mean, which is TPOT."""
    metrics, milliseconds = reading.metrics, [s * 1e3 for s in reading.step_seconds]
    made = theme.figure(
        f"Every step of one answer: {reading.prompt_tokens} tokens in, {metrics.tokens} tokens out",
        x="output token (the step that made it)",
        y="time of the step (ms)",
    )
    numbers = list(range(1, len(milliseconds) + 1))
    first = go.Scatter(x=numbers[:1], y=milliseconds[:1], name=f"prefill: TTFT {seconds(metrics.ttft_s)}")
    first.update(mode="markers", marker={"color": theme.VERMILLION, "symbol": "diamond", "size": 13})
    later = go.Scatter(x=numbers[1:], y=milliseconds[1:], name="decode: one token each")
    later.update(
        mode="lines+markers", line={"width": 1, "color": theme.BLUE}, marker={"symbol": "circle", "size": 5}
    )
    made.add_traces([first, later])
    if metrics.tpot_s is not None:
        made.add_trace(
            _level(numbers[1:], metrics.tpot_s * 1e3, f"their mean: TPOT {seconds(metrics.tpot_s)}")
        )
    made.update_yaxes(rangemode="tozero")
    return made


def _level(x: Sequence[float], y: float, name: str) -> go.Scatter:
    line = {"dash": "dash", "color": theme.BLACK, "width": 1.5}
    return go.Scatter(x=[x[0], x[-1]], y=[y, y], name=name, mode="lines", line=line)


def two_clocks(readings: Sequence[Reading]) -> go.Figure:
    """TTFT and TPOT against the length of the prompt, both in ms on one logarithmic axis."""
    made = theme.figure("The first token waits for the whole prompt; the later ones do not",
                        x="prompt (tokens)", y="time (ms), logarithmic")  # fmt: skip
    lengths = [reading.prompt_tokens for reading in readings]
    metrics = [reading.metrics for reading in readings]
    for name, values, color, symbol in (
        ("TTFT: the prefill", [m.ttft_s for m in metrics], theme.VERMILLION, "diamond"),
        ("TPOT: a decode step", [m.tpot_s or float("nan") for m in metrics], theme.BLUE, "circle"),
    ):
        trace = go.Scatter(x=lengths, y=[v * 1e3 for v in values], name=name, mode="lines+markers")
        made.add_trace(trace.update(line_color=color, marker={"symbol": symbol, "size": 10}))
    made.update_xaxes(type="log", tickvals=lengths, ticktext=[str(length) for length in lengths])
    made.update_yaxes(type="log")
    return made


def batch_gain(batches: Sequence[int], metrics: Sequence[StreamMetrics]) -> go.Figure:
    """Throughput of all sequences together, and time per step, against batch size."""
    made = make_subplots(
        1, 2, subplot_titles=("all users together", "each user waits"), horizontal_spacing=0.12
    )
    made.update_layout(
        template=theme.template(), height=theme.HEIGHT, title_text="The same steps, shared by a batch"
    )
    total = [m.tokens_per_s for m in metrics]
    gap = [(m.tpot_s or float("nan")) * 1e3 for m in metrics]
    perfect = [total[0] * batch / batches[0] for batch in batches]
    for y, name, color, symbol, dash, column in (
        (perfect, "if a bigger batch cost nothing", theme.GREY, "line-ns", "dot", 1),
        (total, "measured throughput", theme.GREEN, "square", "solid", 1),
        (gap, "measured TPOT", theme.BLUE, "circle", "solid", 2),
    ):
        line, marker = {"color": color, "dash": dash}, {"color": color, "symbol": symbol, "size": 9}
        drawn = go.Scatter(x=list(batches), y=y, name=name, mode="lines+markers", line=line, marker=marker)
        made.add_trace(drawn, row=1, col=column)
    made.update_xaxes(
        title_text="batch (sequences)", type="log", tickvals=list(batches), ticktext=[str(b) for b in batches]
    )
    made.update_yaxes(title_text="throughput (tok/s)", rangemode="tozero", row=1, col=1)
    made.update_yaxes(title_text="TPOT (ms)", rangemode="tozero", row=1, col=2)
    return made


def napkin(plan: Napkin, title: str) -> go.Figure:
    """A deployment's memory against what there is, and where the time of a decode step goes."""
    made = make_subplots(
        2,
        1,
        vertical_spacing=0.34,
        subplot_titles=(_memory_title(plan), f"One decode step at the roofs: {seconds(plan.tpot_s)}"),
    )
    made.update_layout(template=theme.template(), height=theme.HEIGHT, title_text=title, barmode="stack")
    terms = plan.terms
    hidden = (
        terms.compute_s <= terms.weights_s
    )  # arithmetic runs while the weights arrive, or the other way round
    parts = (
        (1, "weights", plan.weight_bytes / 1e9, theme.BLUE, ""),
        (1, "KV cache", plan.kv_bytes / 1e9, theme.ORANGE, "/"),
        (2, "reading the weights" if hidden else "arithmetic (weights arrive meanwhile)",
         max(terms.weights_s, terms.compute_s) * 1e3,
         theme.BLUE if hidden else theme.GREEN, "" if hidden else "x"),
        (2, "reading the KV cache", terms.cache_s * 1e3, theme.ORANGE, "/"),
    )  # fmt: skip
    for row, name, value, color, pattern in parts:
        bar = go.Bar(
            x=[value],
            y=[""],
            orientation="h",
            name=name,
            marker={"color": color, "pattern": {"shape": pattern}},
        )
        made.add_trace(bar, row=row, col=1)
    made.add_vline(
        plan.memory_bytes / 1e9, line={"color": theme.VERMILLION, "width": 3, "dash": "dash"}, row=1, col=1
    )
    made.update_xaxes(title_text="memory (GB)", rangemode="tozero", row=1, col=1)
    made.update_xaxes(title_text="time (ms)", rangemode="tozero", row=2, col=1)
    made.update_layout(legend={"y": -0.28, "yanchor": "top"}, margin={"b": 110, "t": 84})
    return made


def _memory_title(plan: Napkin) -> str:
    needed = plan.weight_bytes + plan.kv_bytes
    verdict = "fits" if plan.fits else f"DOES NOT FIT, {gigabytes(-plan.free_bytes)} short"
    return f"Memory: {gigabytes(needed)} of {gigabytes(plan.memory_bytes)} (dashed): {verdict}"


def floor_and_measured(
    names: Sequence[str], floors_s: Sequence[float], measured_s: Sequence[float]
) -> go.Figure:
    """The napkin's lower bound for a decode step beside the measured one, per model."""
    made = theme.figure("What the roofs allow, and what it took", x="time of a decode step (ms)", height=300)
    for name, values, color, pattern in (
        ("napkin: bytes / measured bandwidth", floors_s, theme.SKY, "/"),
        ("measured TPOT", measured_s, theme.BLUE, ""),
    ):
        made.add_trace(
            go.Bar(x=[v * 1e3 for v in values], y=list(names), orientation="h", name=name,
                   text=[f"{significant(v * 1e3)} ms" for v in values],
                   marker={"color": color, "pattern": {"shape": pattern}})
        )  # fmt: skip
    made.update_layout(barmode="group")
    return made
