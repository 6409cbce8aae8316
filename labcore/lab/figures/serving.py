"""Lesson 8's pictures of time: requests on a Gantt chart, percentiles, queues, rates, and the stall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.serving_rates import RateSweep, Summarised
from labcore.lab.serving_runs import PolicyRun
from labcore.lab.serving_spans import (
    AGAIN,
    DECODE,
    HELD,
    LINGERING,
    PHASES,
    PREFILL,
    WAITING,
    events_and_arrivals,
    preemptions,
    queue_over_time,
    spans,
)
from labcore.lab.serving_stall import ChunkStall
from labcore.serving import StepEvent
from labcore.serving.metrics import Spread

PHASE_LOOKS = {
    WAITING: ("#DEDEDA", ""),
    PREFILL: (theme.ORANGE, "x"),
    DECODE: (theme.BLUE, ""),
    HELD: (theme.PURPLE, "|"),
    AGAIN: ("#B9B9B4", "."),
    LINGERING: (theme.VERMILLION, "/"),
}
LINE_DASHES = ("solid", "dash", "dot", "dashdot")


def gantt_figure(
    run: PolicyRun | Sequence[StepEvent], title: str = "", end_s: float | None = None
) -> go.Figure:
    """A bar for each request over time, its phases by colour and pattern; preemptions are crosses.

    run: or an engine's bare events. end_s: where the axis ends, so that policies can be compared.
    """
    events, arrivals = events_and_arrivals(run)
    found = spans(events, arrivals)
    order = sorted(arrivals, key=lambda id: arrivals[id])
    named = title or (f"Requests under {run.policy}" if isinstance(run, PolicyRun) else "Requests")
    made = theme.figure(named, x="time (ms)", y="request", height=170 + 15 * max(6, len(order)))
    for phase in PHASES:
        mine = [span for span in found if span.phase == phase]
        if mine:
            color, pattern = PHASE_LOOKS[phase]
            made.add_bar(
                y=[span.id for span in mine],
                x=[(span.end_s - span.start_s) * 1e3 for span in mine],
                base=[span.start_s * 1e3 for span in mine],
                name=phase, orientation="h",
                marker={"color": color, "pattern": theme.hatch(pattern), "line": {"width": 0}},
                hovertemplate=f"%{{y}}: {phase} for %{{x:.3g}} ms<extra></extra>",
            )  # fmt: skip
    _mark_preemptions(made, events)
    last = max((span.end_s for span in found), default=0.0)
    # A title stands a share of the height below the edge: on a tall figure it would meet the legend.
    made.update_layout(barmode="overlay", bargap=0.25, title={"y": 1 - 22 / made.layout.height})
    made.update_xaxes(range=[0, (end_s or last) * 1020])
    made.update_yaxes(
        categoryorder="array", categoryarray=order[::-1], tickfont={"size": 10}, showgrid=False, dtick=1
    )
    return made


def _mark_preemptions(made: go.Figure, events: Sequence[StepEvent]) -> None:
    for swapped, name, symbol in ((False, "preempted", "x"), (True, "preempted, blocks copied", "diamond")):
        marks = [mark for mark in preemptions(events) if mark[2] == swapped]
        if marks:
            made.add_scatter(
                x=[at * 1e3 for _, at, _ in marks], y=[id for id, _, _ in marks], name=name, mode="markers",
                marker={"symbol": symbol, "size": 11, "color": theme.BLACK,
                        "line": {"width": 1, "color": theme.CARD}},
                hovertemplate=f"%{{y}} {name} at %{{x:.3g}} ms<extra></extra>",
            )  # fmt: skip


def queue_figure(runs: Mapping[str, PolicyRun]) -> go.Figure:
    """Requests that wait, over time, a line for each policy."""
    made = theme.figure("The queue", x="time (ms)", y="requests that wait")
    for index, run in enumerate(runs.values()):
        points = queue_over_time(run)
        made.add_scatter(
            x=[at * 1e3 for at, _ in points], y=[count for _, count in points], name=run.policy, mode="lines",
            line={"shape": "hv", "color": theme.COLORS[index % 7], "width": 2.5,
                  "dash": LINE_DASHES[index % 4]},
        )  # fmt: skip
    made.update_yaxes(rangemode="tozero")
    return made


def percentiles_figure(runs: Mapping[str, Summarised]) -> go.Figure:
    """TTFT, ITL and E2E of each policy or fleet: the median, and what 99 of 100 stay below."""
    titles = ("first token (TTFT)", "gap between tokens (ITL)", "whole answer (E2E)")
    made = theme.figure("What users wait for: half of them less (●), 99 of 100 less (◆)", height=330)
    made.set_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.06, shared_yaxes=True)
    values: list[list[float]] = [[], [], []]
    for index, (name, run) in enumerate(runs.items()):
        found = run.summary
        for column, spread in enumerate((found.ttft, found.itl, found.e2e)):
            if spread:
                _dumbbell(made, name, spread, index, column)
                values[column] += [spread.p50 * 1e3, spread.p99 * 1e3]
    for column, known in enumerate(values, 1):
        made.update_xaxes(title_text="time (ms)", **theme.log_ticks(known or [1.0]), row=1, col=column)
    made.update_xaxes(tickfont={"size": 10}, tickangle=0)
    made.update_yaxes(categoryorder="array", categoryarray=list(runs)[::-1])
    made.update_layout(showlegend=False, margin={"t": 84})
    return made


def _dumbbell(made: go.Figure, policy: str, spread: Spread, index: int, column: int) -> None:
    color = theme.COLORS[index % 7]
    made.add_scatter(
        x=[spread.p50 * 1e3, spread.p99 * 1e3], y=[policy, policy], mode="lines+markers", name=policy,
        line={"color": color, "width": 2},
        marker={"symbol": ["circle", "diamond"], "size": [11, 13], "color": color, "opacity": 1},
        hovertemplate="%{y}: %{x:.3g} ms<extra></extra>",
        row=1, col=column + 1,
    )  # fmt: skip


def rate_figure(sweep: RateSweep, at: float | None = None) -> go.Figure:
    """Answered, answered as promised, and the wait for the first token, against the offered rate.

    at: a rate to mark.
    """
    titles = ("answered", "goodput: kept the promise", "first token, p99")
    made = theme.figure(f"Rising rates; promised: {sweep.promise()}", height=420)
    made.set_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.11)
    latencies = []
    for index, policy in enumerate(sweep.policies):
        found = [sweep.runs[rate][policy].summary for rate in sweep.rates]
        waits = [one.ttft.p99 * 1e3 if one.ttft else None for one in found]
        latencies += [wait for wait in waits if wait is not None]
        for column, ys in enumerate(
            ([one.requests_per_s for one in found], [one.goodput for one in found], waits), 1
        ):
            made.add_scatter(
                x=sweep.rates, y=ys, name=policy, legendgroup=policy, showlegend=column == 1,
                mode="lines+markers", line={"color": theme.COLORS[index % 7], "dash": LINE_DASHES[index % 4]},
                marker={"symbol": theme.SYMBOLS[index % 7], "size": 9}, row=1, col=column,
            )  # fmt: skip
    for column in (1, 2):
        made.add_scatter(
            x=[0, sweep.rates[-1]], y=[0, sweep.rates[-1]], mode="lines", name="all that is offered",
            line={"color": theme.GREY, "dash": "dot", "width": 1}, showlegend=column == 1, row=1, col=column,
        )  # fmt: skip
    if sweep.slo.ttft_s:
        limit = sweep.slo.ttft_s * 1e3
        latencies.append(limit)
        made.add_scatter(
            x=[0, sweep.rates[-1]], y=[limit, limit], mode="lines", name="promised",
            line={"color": theme.VERMILLION, "dash": "dash", "width": 1}, row=1, col=3,
        )  # fmt: skip
    if at is not None:
        made.add_vline(x=at, line={"color": theme.BLACK, "dash": "dash", "width": 1.5})
    made.update_xaxes(title_text="offered (requests/s)", rangemode="tozero")
    made.update_yaxes(title_text="requests/s", rangemode="tozero", row=1, col=1)
    made.update_yaxes(title_text="requests/s", rangemode="tozero", row=1, col=2)
    made.update_yaxes(title_text="time (ms)", **theme.log_ticks(latencies or [1.0]), row=1, col=3)
    made.update_layout(legend={"y": -0.32, "yanchor": "top"}, margin={"b": 120, "t": 84})
    return made


def stall_figure(found: ChunkStall) -> go.Figure:
    """Every gap between tokens of those who decode, while a long prompt joins: whole and in chunks."""
    made = theme.figure(
        f"{found.prompt:,} tokens join {found.decodes} who decode at 0 ms", x="time since it joined (ms)",
        y="gap between tokens (ms)", height=400,
    )  # fmt: skip
    for index, stall in enumerate(found.stalls):
        made.add_scatter(
            x=[at * 1e3 for at, _ in stall.gaps], y=[gap * 1e3 for _, gap in stall.gaps], mode="markers",
            name=f"{stall.name}: worst {stall.worst_s * 1e3:.3g} ms",
            marker={"symbol": theme.SYMBOLS[index % 7], "size": 9, "color": theme.COLORS[index % 7]},
        )  # fmt: skip
    gaps = [gap * 1e3 for stall in found.stalls for _, gap in stall.gaps]
    made.update_yaxes(**theme.log_ticks(gaps))
    made.add_vline(x=0, line={"color": theme.GREY, "dash": "dot"})
    return made
