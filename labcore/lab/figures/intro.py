"""Lesson 1's pictures: the steps of a stream, throughput against batch, and the floor under a step."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from labcore.lab import theme
from labcore.lab.live import Reading, StreamMetrics
from labcore.lab.units import gigabytes, seconds
from labcore.perf.predict import Napkin

NAN = float("nan")


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
    later = go.Scatter(x=numbers[1:], y=milliseconds[1:], name="decode: one token each", mode="lines+markers")
    later.update(line={"width": 1, "color": theme.BLUE}, marker={"symbol": "circle", "size": 5})
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


def _guess(x: float, y: float | str, text: str) -> go.Scatter:
    """The learner's prediction as a star."""
    marker = {"symbol": "star", "size": 16, "color": theme.PURPLE, "line": {"color": theme.INK, "width": 1}}
    return go.Scatter(x=[x], y=[y], mode="markers", marker=marker, name=f"your guess: {text}")


def two_clocks(readings: Sequence[Reading], guess: float | None = None) -> go.Figure:
    """TTFT and TPOT against prompt length, logarithmic. guess: TTFT / TPOT predicted for the longest."""
    title = "The first token waits for the whole prompt; the later ones do not"
    made = theme.figure(title, x="prompt (tokens)", y="time (ms), logarithmic")
    lengths = [reading.prompt_tokens for reading in readings]
    metrics = [reading.metrics for reading in readings]
    for name, values, color, symbol in (
        ("TTFT: the prefill", [m.ttft_s for m in metrics], theme.VERMILLION, "diamond"),
        ("TPOT: a decode step", [m.tpot_s or NAN for m in metrics], theme.BLUE, "circle"),
    ):
        trace = go.Scatter(x=lengths, y=[v * 1e3 for v in values], name=name, mode="lines+markers")
        made.add_trace(trace.update(line_color=color, marker={"symbol": symbol, "size": 10}))
    if guess is not None:
        made.add_trace(_guess(lengths[-1], guess * (metrics[-1].tpot_s or NAN) * 1e3, f"{guess:g} × TPOT"))
    made.update_xaxes(type="log", tickvals=lengths, ticktext=[str(length) for length in lengths])
    made.update_yaxes(**theme.log_ticks([v for trace in made.data for v in trace.y]))
    return made


def batch_gain(
    batches: Sequence[int], metrics: Sequence[StreamMetrics], guess: float | None = None
) -> go.Figure:
    """Throughput of all sequences together, and time per step, against batch size.

    guess: predicted throughput of the largest batch over that of the smallest.
    """
    made = make_subplots(1, 2, horizontal_spacing=0.14)
    title = "The same steps, shared by a batch"
    made.update_layout(template=theme.template(), height=theme.HEIGHT, title_text=title)
    total = [m.tokens_per_s for m in metrics]
    perfect = [total[0] * batch / batches[0] for batch in batches]
    gap = [(m.tpot_s or NAN) * 1e3 for m in metrics]
    for y, name, color, symbol, dash, column in (
        (perfect, "if a bigger batch cost nothing", theme.GREY, "circle-open", "dot", 1),
        (total, "measured throughput", theme.GREEN, "square", "solid", 1),
        (gap, "measured TPOT", theme.BLUE, "circle", "solid", 2),
    ):
        line, marker = {"color": color, "dash": dash}, {"color": color, "symbol": symbol, "size": 9}
        drawn = go.Scatter(x=list(batches), y=y, name=name, mode="lines+markers", line=line, marker=marker)
        made.add_trace(drawn, row=1, col=column)
    if guess is not None:
        made.add_trace(_guess(batches[-1], guess * total[0], f"{guess:g}×"), row=1, col=1)
    ticks = {"type": "log", "tickvals": list(batches), "ticktext": [str(batch) for batch in batches]}
    made.update_xaxes(title_text="batch (sequences)", **ticks)
    made.update_yaxes(
        title_text="all users: throughput (tok/s)", row=1, col=1, **theme.log_ticks(perfect + total)
    )
    made.update_yaxes(title_text="each user: TPOT (ms)", rangemode="tozero", row=1, col=2)
    return made


def napkin(plan: Napkin, title: str) -> go.Figure:
    """A deployment's memory against what there is, and where the time of a decode step goes."""
    made = make_subplots(2, 1, vertical_spacing=0.42)
    made.update_layout(template=theme.template(), height=410, title_text=title, barmode="stack")
    made.update_layout(legend_traceorder="normal")
    terms, waits = plan.terms, plan.terms.compute_s <= plan.terms.weights_s
    # Arithmetic runs while the weights arrive, or the other way round: the longer of the two is shown.
    for row, name, value, color, pattern, legend in (
        (1, "weights", plan.weight_bytes / 1e9, theme.BLUE, "", True),
        (1, "KV cache", plan.kv_bytes / 1e9, theme.ORANGE, "/", True),
        (2, "weights", terms.weights_s * 1e3 if waits else 0.0, theme.BLUE, "", False),
        (2, "arithmetic", 0.0 if waits else terms.compute_s * 1e3, theme.GREEN, "x", True),
        (2, "KV cache", terms.cache_s * 1e3, theme.ORANGE, "/", False),
    ):
        marker = {"color": color, "pattern": theme.hatch(pattern)}
        bar = go.Bar(x=[value], y=[""], orientation="h", name=name, marker=marker, showlegend=legend)
        made.add_trace(bar, row=row, col=1)
    limit = {"color": theme.INK, "width": 3, "dash": "dash"}
    made.add_vline(plan.memory_bytes / 1e9, line=limit, row=1, col=1)
    made.update_xaxes(title_text=_memory_title(plan), rangemode="tozero", row=1, col=1)
    step = f"time of a decode step at the roofs (ms): {seconds(plan.tpot_s)}"
    made.update_xaxes(title_text=step, rangemode="tozero", row=2, col=1)
    return made


def _memory_title(plan: Napkin) -> str:
    needed = plan.weight_bytes + plan.kv_bytes
    verdict = "fits" if plan.fits else f"DOES NOT FIT, {gigabytes(-plan.free_bytes)} short"
    return f"memory (GB): {gigabytes(needed)} of {gigabytes(plan.memory_bytes)} (dashed), {verdict}"


def floor_and_measured(name: str, floor_s: float, measured_s: float, guess: float | None = None) -> go.Figure:
    """The napkin's lower bound for a decode step beside the measured one. guess: predicted multiple of it."""
    made = theme.figure("What the roofs allow, and what it took", x="time of a decode step (ms)", height=300)
    rows = (
        ("napkin: bytes / bandwidth", floor_s, theme.SKY, "/"),
        ("measured TPOT", measured_s, theme.BLUE, ""),
    )
    for label, value, color, pattern in rows:
        marker = {"color": color, "pattern": theme.hatch(pattern)}
        bar = go.Bar(x=[value * 1e3], y=[label], orientation="h", marker=marker, showlegend=False)
        made.add_trace(
            bar.update(text=[seconds(value)], textposition="outside", cliponaxis=False, name=label)
        )
    if guess is not None:
        made.add_trace(_guess(guess * floor_s * 1e3, "measured TPOT", f"{guess:g} × the napkin"))
    made.update_layout(showlegend=guess is not None)
    made.update_xaxes(range=[0, 1.18e3 * max(floor_s, measured_s, (guess or 0) * floor_s)])
    made.update_yaxes(title_text=name)
    return made
