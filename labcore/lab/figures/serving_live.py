"""Lesson 8's dashboard of a server under load: while it runs (HTML, redrawn again and again) and after."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.serving_live import LiveRun, Sample
from labcore.lab.units import significant
from labcore.serving.load.runner import TICK_S

WIDTH, HEIGHT = 640, 96  # of the strip, in pixels
RATE_OVER_S = 1.0  # tokens/s are told over the last second
BARS = (("running", theme.BLUE), ("waiting", theme.VERMILLION))
# In the strip those that wait are hollow, so that the two differ without their colours, too.
FILLS = {
    "running": f'fill="{theme.BLUE}"',
    "waiting": f'fill="{theme.VERMILLION}" fill-opacity="0.2" stroke="{theme.VERMILLION}"',
}


def counters(samples: Sequence[Sample], rate: float) -> list[tuple[str, str]]:
    """Name and value of each counter at the newest look; what the server does not say is a dash."""
    now = samples[-1]

    def told(value: float | None, scale: float = 1.0, unit: str = "") -> str:
        return "–" if value is None else f"{scale * value:,.0f}{unit}"

    return [
        ("offered", f"{significant(rate)}/s"),
        ("time", f"{now.at_s:.1f} s"),
        ("sent", str(now.sent)),
        ("answered", str(now.ended)),
        ("running", told(now.running)),
        ("waiting", told(now.waiting)),
        ("blocks in use", told(now.blocks, 100, " %")),
        ("tokens/s", told(token_rate(samples))),
    ]


def token_rate(samples: Sequence[Sample]) -> float | None:
    """Tokens/s over the last second of looks; None where the server tells no tokens."""
    known = [one for one in samples if one.tokens is not None and samples[-1].at_s - one.at_s <= RATE_OVER_S]
    if len(known) < 2:
        return None
    first, last = known[0], known[-1]
    return ((last.tokens or 0) - (first.tokens or 0)) / (last.at_s - first.at_s)


def dashboard_html(samples: Sequence[Sample], rate: float, seconds: float) -> str:
    """Counters, and under them a bar for each look: requests that run, and on top those that wait."""
    box = "display:inline-block;margin:4px 22px 4px 0;font-variant-numeric:tabular-nums;min-width:4.6em"
    small, large = "font-size:.82em;opacity:.75;display:block", "font-size:1.25em"
    shown = "".join(
        f'<span style="{box}"><span style="{small}">{name}</span><b style="{large}">{value}</b></span>'
        for name, value in counters(samples, rate)
    )
    return f'<div class="labcore-dashboard">{shown}{_strip(samples, seconds)}{_key()}</div>'


def _strip(samples: Sequence[Sample], seconds: float) -> str:
    length = max(seconds, samples[-1].at_s)
    top = max([1.0, *((one.running or 0) + (one.waiting or 0) for one in samples)])
    width = max(1.5, 0.8 * WIDTH * TICK_S / length)
    drawn = ""
    for one in samples:
        base = 0.0
        for name, look in FILLS.items():
            high = HEIGHT * (getattr(one, name) or 0) / top
            x, y = (WIDTH - width) * one.at_s / length, HEIGHT - base - high
            drawn += f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{high:.1f}" {look}/>'
            base += high
    label = f"Requests in the server over {length:.1f} s; the highest bar is {top:.0f}"
    line = f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}" stroke="{theme.GREY}"/>'
    size = f'width="{WIDTH}" height="{HEIGHT + 1}" style="display:block;max-width:100%"'
    return f'<svg role="img" aria-label="{label}" {size}>{drawn}{line}</svg>'


def _key() -> str:
    signs = zip(BARS, "■□", strict=True)
    parts = [f'<span style="color:{color}">{sign}</span> {name} &nbsp; ' for (name, color), sign in signs]
    return f'<span style="font-size:.82em">{"".join(parts)}(requests in the server, over time)</span>'


def live_figure(run: LiveRun, runs: Sequence[LiveRun] = ()) -> go.Figure:
    """One load: requests in the server over time, and each one's wait for its first token. Beside them all
    loads so far: what was answered, and what of it as promised, against the offered rate."""
    titles = ("in the server", "first token, by arrival", "all loads so far")
    made = theme.figure(f"{significant(run.rate)} requests/s, over HTTP", height=410)
    made.set_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.09)
    _inside(made, run)
    _waits(made, run)
    _loads(made, run, sorted(runs or [run], key=lambda one: one.rate))
    for column, text in enumerate(("time (s)", "sent at (s)", "offered (requests/s)"), 1):
        made.update_xaxes(title_text=text, rangemode="tozero", row=1, col=column)
    for column, text in enumerate(("requests", "TTFT (ms)", "requests/s"), 1):
        made.update_yaxes(title_text=text, rangemode="tozero", row=1, col=column)
    legend = {"y": -0.34, "yanchor": "top", "traceorder": "normal"}
    made.update_layout(legend=legend, margin={"b": 110, "t": 84})
    return made


def _inside(made: go.Figure, run: LiveRun) -> None:
    times = [one.at_s for one in run.samples]
    for name, color in BARS:
        made.add_scatter(
            x=times, y=[getattr(one, name) for one in run.samples], name=name, mode="lines",
            stackgroup="in", line={"color": color, "width": 1.5},
            fillpattern={"shape": "/" if name == "waiting" else "", "fgcolor": theme.CARD,
                         "bgcolor": color, "solidity": 0.2, "fillmode": "replace"},
            row=1, col=1,
        )  # fmt: skip


def _waits(made: go.Figure, run: LiveRun) -> None:
    good = [one for one in run.records if one.ttft_s is not None]
    made.add_scatter(
        x=[one.start_s for one in good], y=[(one.ttft_s or 0) * 1e3 for one in good], mode="markers",
        name="a request", marker={"symbol": "diamond", "size": 6, "color": theme.GREEN}, row=1, col=2,
    )  # fmt: skip
    if run.slo.ttft_s is not None and good:
        limit = run.slo.ttft_s * 1e3
        made.add_scatter(
            x=[0, max(one.start_s for one in good)], y=[limit, limit], mode="lines", name="promised",
            line={"color": theme.BLACK, "dash": "dash", "width": 1.5}, row=1, col=2,
        )  # fmt: skip


def _loads(made: go.Figure, run: LiveRun, runs: Sequence[LiveRun]) -> None:
    rates = [one.rate for one in runs]
    for name, color, symbol, values in (
        ("answered", theme.PURPLE, "square", [one.summary.requests_per_s for one in runs]),
        ("goodput", theme.ORANGE, "circle", [one.summary.goodput for one in runs]),
    ):
        made.add_scatter(
            x=rates, y=values, name=name, mode="lines+markers", line={"color": color},
            marker={"symbol": symbol, "size": [13 if one is run else 8 for one in runs], "opacity": 1},
            row=1, col=3,
        )  # fmt: skip
    made.add_scatter(
        x=[0, rates[-1]], y=[0, rates[-1]], mode="lines", name="all that is offered",
        line={"color": theme.GREY, "dash": "dot", "width": 1}, row=1, col=3,
    )  # fmt: skip
