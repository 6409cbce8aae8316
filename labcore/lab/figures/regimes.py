"""Figures of lesson 5: knobs and their terms, time by kind, the timeline, talking."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.puzzle import Puzzle
from labcore.lab.ranks import Talk
from labcore.lab.regimes import KnobSweep
from labcore.perf.profile import KINDS, Profile

TERM_LOOKS = {
    "compute": (theme.PURPLE, "diamond"),
    "bandwidth": (theme.GREEN, "square"),
    "overhead": (theme.ORANGE, "x"),
}
KIND_LOOKS = {
    kind: (color, pattern)
    for kind, color, pattern in zip(
        KINDS,
        (theme.SKY, theme.PURPLE, theme.GREEN, theme.BLUE, theme.VERMILLION, theme.BLACK, theme.ORANGE),
        ("/", "", "x", ".", "+", "\\", "-"),
        strict=True,
    )
}


def knob_figure(sweep: KnobSweep, at: int = 0) -> go.Figure:
    """Measured time against the knob, and the seconds that each term alone would take; one point ringed."""
    made = theme.figure(sweep.what, x=sweep.label, y="time (ms)")
    values = [point.value for point in sweep.points]
    for term, (color, symbol) in TERM_LOOKS.items():
        seconds = [point.terms[term] for point in sweep.points]
        if any(seconds):
            made.add_scatter(
                x=values, y=[s * 1e3 for s in seconds], name=f"{term} alone", mode="lines+markers",
                line={"color": color, "dash": "dash"}, marker={"symbol": symbol, "size": 6},
            )  # fmt: skip
    made.add_scatter(
        x=values,
        y=[point.timing.median_s * 1e3 for point in sweep.points],
        name="measured",
        mode="lines+markers",
        line={"color": theme.BLACK, "width": 3},
        marker={"symbol": "circle", "size": 9},
        error_y={"type": "data", "array": [point.timing.spread_s * 1e3 for point in sweep.points]},
    )
    made.add_scatter(
        x=[values[at]], y=[sweep.points[at].timing.median_s * 1e3], name="the knob's position",
        mode="markers", marker={"symbol": "circle-open", "size": 20, "line": {"width": 3}},
        marker_color=theme.VERMILLION,
    )  # fmt: skip
    made.update_xaxes(type="log", tickvals=values, ticktext=[_short(value) for value in values])
    made.update_yaxes(type="log", dtick=1, exponentformat="none")
    return made


def _short(value: int) -> str:
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size:
            return f"{value // size}{unit}"
    return str(value)


def kinds_figure(profiles: Sequence[Profile], title: str = "Where the time of a step goes") -> go.Figure:
    """One bar a step, its parts by kind of work, as shares of the traced step."""
    made = theme.figure(title, x="share of the step (%)", height=130 + 60 * len(profiles))
    labels = [f"{one.label}<br>{one.wall_s * 1e3:.3g} ms" for one in profiles]
    for kind in KINDS:
        shares = [100 * one.shares[kind] for one in profiles]
        if any(share > 0 for share in shares):
            color, pattern = KIND_LOOKS[kind]
            made.add_bar(
                y=labels, x=shares, name=kind, orientation="h",
                marker={"color": color, "pattern": theme.hatch(pattern)},
            )  # fmt: skip
    made.update_layout(barmode="stack", legend={"traceorder": "normal"})
    made.update_yaxes(autorange="reversed")
    return made


def timeline_figure(one: Profile) -> go.Figure:
    """Every operation of the traced step as a bar on its lane; white between them is nobody's."""
    lanes = list(dict.fromkeys(event.lane for event in one.events))
    made = theme.figure(
        f"{one.label}: {len(one.events)} operations", x="time (ms)", height=200 + 60 * len(lanes)
    )
    for kind in KINDS:
        events = [event for event in one.events if event.kind == kind]
        if events:
            color, pattern = KIND_LOOKS[kind]
            made.add_bar(
                y=[event.lane for event in events],
                x=[event.duration_s * 1e3 for event in events],
                base=[event.start_s * 1e3 for event in events],
                name=kind,
                orientation="h",
                marker={"color": color, "pattern": theme.hatch(pattern), "line": {"width": 0}},
                customdata=[event.name for event in events],
                hovertemplate="%{customdata}<br>%{x:.3g} ms<extra>" + kind + "</extra>",
            )
    made.update_layout(barmode="overlay", bargap=0.4)
    return made


def puzzle_figure(puzzle: Puzzle) -> go.Figure:
    """Time of a step against length, with and without a cache, of the model and of its thin twin."""
    made = theme.figure("What a cache saves, operator by operator", x="tokens so far", y="step (ms)")
    looks = (
        ("model", "cache off", theme.VERMILLION, "square", "solid"),
        ("model", "cache on", theme.BLUE, "circle", "solid"),
        ("thin", "cache off", theme.ORANGE, "x", "dot"),
        ("thin", "cache on", theme.SKY, "diamond", "dot"),
    )
    lengths = [point.length for point in puzzle.points]
    for which, way, color, symbol, dash in looks:
        made.add_scatter(
            x=lengths,
            y=[getattr(point, which)[way].median_s * 1e3 for point in puzzle.points],
            name=f"{puzzle.name if which == 'model' else 'thin twin'}, {way}",
            mode="lines+markers",
            line={"color": color, "dash": dash},
            marker={"symbol": symbol, "size": 8},
        )
    made.update_xaxes(type="log", tickvals=lengths, ticktext=[f"{n:,}" for n in lengths])
    made.update_yaxes(rangemode="tozero")
    return made


def talk_figure(found: Talk) -> go.Figure:
    """All-reduce time against message size, with the two lines that bound it."""
    made = theme.figure(
        f"An all-reduce over {found.reduces[0].ranks} ranks", x="message (bytes)", y="time (µs)"
    )
    sizes = [one.bytes for one in found.reduces]
    ranks = found.reduces[0].ranks
    moved = [2 * (ranks - 1) / ranks * size / found.bandwidth * 1e6 for size in sizes]
    for name, values, color, symbol in (
        ("talking at all", [found.latency_s * 1e6] * len(sizes), theme.ORANGE, "x"),
        ("moving the bytes", moved, theme.GREEN, "square"),
    ):
        made.add_scatter(
            x=sizes, y=values, name=name, mode="lines+markers",
            line={"color": color, "dash": "dash"}, marker={"symbol": symbol, "size": 6},
        )  # fmt: skip
    made.add_scatter(
        x=sizes,
        y=[one.seconds * 1e6 for one in found.reduces],
        name="measured",
        mode="lines+markers",
        line={"color": theme.BLACK, "width": 3},
        marker={"symbol": "circle", "size": 9},
        error_y={"type": "data", "array": [one.spread_s * 1e6 for one in found.reduces]},
    )
    made.update_xaxes(type="log", tickvals=sizes, ticktext=[_short(size) for size in sizes])
    made.update_yaxes(type="log", dtick=1, exponentformat="none")
    return made
