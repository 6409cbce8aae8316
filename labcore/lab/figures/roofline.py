"""Figures of lesson 6: bandwidth by size, arithmetic by rows, the roofline, the split, the Pareto."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from labcore.catalog import GPU
from labcore.lab import theme
from labcore.lab.residuals import Residual
from labcore.lab.roofline import PhasePoints, Roofline
from labcore.lab.units import si
from labcore.perf.forecast import Forecast
from labcore.perf.predict import DecodeTerms
from labcore.perf.roofline import Roofs

PHASE_LOOKS = {"prefill": (theme.VERMILLION, "square"), "decode": (theme.BLUE, "circle")}
_HOLLOW, _STARS = ("diamond-open", "diamond-wide-open"), ("star", "star-square")  # of a decode, of a prefill


def bandwidth_figure(roofs: Roofs, spec: GPU | None = None) -> go.Figure:
    """Read and copy bandwidth against the size of what is read; the data sheet's value dashed."""
    made = theme.figure("Memory, by how much of it is used", x="working set", y="GB/s")
    sizes = [size for size, _, _ in roofs.bandwidth_by_size]
    for name, index, color, symbol in (("read", 1, theme.GREEN, "square"), ("copy", 2, theme.SKY, "diamond")):
        made.add_scatter(
            x=sizes, y=[row[index] / 1e9 for row in roofs.bandwidth_by_size], name=name,
            mode="lines+markers", line={"color": color}, marker={"symbol": symbol},
        )  # fmt: skip
    made.add_hline(
        y=roofs.read_bandwidth / 1e9, line={"color": theme.GREEN, "width": 1},
        annotation_text=f"the roof: {si(roofs.read_bandwidth, 'B/s')}", annotation_position="bottom right",
    )  # fmt: skip
    if spec is not None:
        made.add_hline(
            y=spec.bandwidth / 1e9, line={"color": theme.GREY, "dash": "dash"},
            annotation_text=f"data sheet: {si(spec.bandwidth, 'B/s')}", annotation_position="top right",
        )  # fmt: skip
    texts = [f"{s >> 20} MiB" if s >= 1 << 20 else f"{s >> 10} KiB" for s in sizes]
    made.update_xaxes(type="log", tickvals=sizes, ticktext=texts)
    made.update_yaxes(type="log", dtick="D2", exponentformat="none")
    return made


def rows_figure(roofs: Roofs, spec: GPU | None = None) -> go.Figure:
    """Arithmetic of products against their number of rows, by format; data-sheet values dashed."""
    made = theme.figure("Arithmetic, by the rows of the product", x="rows", y="GFLOP/s")
    ticks: set[int] = set()
    for i, (dtype, points) in enumerate(roofs.matmul_by_rows.items()):
        color, symbol = theme.COLORS[i % 7], theme.SYMBOLS[i % 7]
        ticks |= {rows for rows, _ in points}
        made.add_scatter(
            x=[rows for rows, _ in points], y=[rate / 1e9 for _, rate in points], name=dtype,
            mode="lines+markers", line={"color": color}, marker={"symbol": symbol},
        )  # fmt: skip
        made.add_hline(y=roofs.matmul_flops[dtype] / 1e9, line={"color": color, "width": 1})
        if spec is not None and dtype in spec.flops:
            made.add_hline(y=spec.flops[dtype] / 1e9, line={"color": color, "dash": "dash"})
    made.update_xaxes(type="log", tickvals=sorted(ticks), ticktext=[f"{rows:,}" for rows in sorted(ticks)])
    made.update_yaxes(type="log", dtick=1, exponentformat="none")
    return made


def roofline_figure(found: Roofline, spec: GPU | None = None, spec_dtype: str | None = None) -> go.Figure:
    """The two roofs, a point for each operation of both phases, and the steps that were measured."""
    made = theme.figure(
        f"{found.machine.name}, {found.dtype}", x="FLOP per byte", y="FLOP/s", height=theme.HEIGHT + 80
    )
    low, high = _reach(found)
    _roof(made, found.machine.flops(found.dtype), found.machine.bandwidth, low, high, "the roofs", "solid")
    if spec is not None:
        peak = spec.flops[spec_dtype or found.dtype]
        _roof(made, peak, spec.bandwidth, low, high, "data sheet", "dash")
    for phase in (found.prefill, found.decode):
        _phase(made, phase)
    if found.measured:
        _steps(made, found)
    made.update_xaxes(type="log", dtick=1, exponentformat="none")
    made.update_yaxes(type="log", dtick=1, exponentformat="SI")
    return made


def _steps(made: go.Figure, found: Roofline) -> None:
    """Whole steps: hollow as costs and roofs foretold them, stars as the clock saw them; prefills wider."""
    colors = [PHASE_LOOKS[one.phase][0] for one in found.measured]
    wide = [one.phase == "prefill" for one in found.measured]
    looks = (
        ("steps, predicted", [one.expected_rate for one in found.measured], _HOLLOW, 13),
        ("steps, measured", [one.rate for one in found.measured], _STARS, 14),
    )
    for name, rates, symbols, size in looks:
        made.add_scatter(
            x=[one.intensity for one in found.measured],
            y=rates,
            name=name,
            mode="markers",
            marker={
                "symbol": [symbols[prefill] for prefill in wide], "size": size,
                "color": colors, "line": {"color": colors, "width": 2},
            },
            customdata=[one.label for one in found.measured],
            hovertemplate="%{customdata}: %{y:.3s}FLOP/s<extra>" + name + "</extra>",
        )


def _reach(found: Roofline) -> tuple[float, float]:
    known = [p.intensity for phase in (found.prefill, found.decode) for p in phase.points if p.intensity > 0]
    return min(known) / 3, max([*known, found.ridge]) * 3


def _roof(
    made: go.Figure, peak: float, bandwidth: float, low: float, high: float, name: str, dash: str
) -> None:
    ridge = peak / bandwidth
    made.add_scatter(
        x=[low, ridge, high], y=[low * bandwidth, peak, peak], name=name, mode="lines",
        line={"color": theme.BLACK if dash == "solid" else theme.GREY, "dash": dash, "width": 2},
    )  # fmt: skip


def _phase(made: go.Figure, phase: PhasePoints) -> None:
    """Operations that compute; the marker's area is their share of the step."""
    color, symbol = PHASE_LOOKS[phase.phase]
    points = [point for point in phase.points if point.intensity > 0]
    made.add_scatter(
        x=[point.intensity for point in points],
        y=[point.rate for point in points],
        name=f"{phase.phase}, by operation",
        mode="markers",
        marker={
            "symbol": symbol, "color": color, "opacity": 0.75,
            "size": [7 + 26 * point.share**0.5 for point in points],
        },
        customdata=[(point.name, 100 * point.share) for point in points],
        hovertemplate="%{customdata[0]}: %{x:.3g} FLOP/byte, %{customdata[1]:.0f} %<extra></extra>",
    )  # fmt: skip


def residual_figure(found: Sequence[Residual]) -> go.Figure:
    """From the napkin to the clock: what each reason adds, as multiples of the napkin's time."""
    made = theme.figure(
        "From the napkin to the clock", x="times the napkin's estimate", height=150 + 50 * len(found)
    )
    parts = (
        ("napkin", "napkin_s", theme.SKY, ""),
        ("its real operations", "operations_s", theme.GREEN, "/"),
        ("overhead", "overhead_s", theme.ORANGE, "x"),
        ("kernels below the roofs", "rest_s", theme.PURPLE, "."),
    )
    labels = [one.label for one in found]
    for name, field, color, pattern in parts:
        made.add_bar(
            y=labels,
            x=[getattr(one, field) / one.napkin_s for one in found],
            name=name,
            orientation="h",
            marker={"color": color, "pattern": theme.hatch(pattern)},
        )
    made.update_layout(barmode="relative", legend={"traceorder": "normal"})
    made.update_yaxes(autorange="reversed")
    return made


def terms_figure(batches: Sequence[int], terms: Sequence[DecodeTerms], wall: int, title: str) -> go.Figure:
    """A decode step by batch, stacked: reading weights, reading the cache, arithmetic that outlasts them."""
    made = theme.figure(title, x="batch", y="decode step (ms)")
    labels = [f"{batch:,}" if batch <= wall else f"{batch:,} (no room)" for batch in batches]
    beyond = [max(0.0, t.compute_s - t.weights_s) for t in terms]
    stacks = (
        ("weights", [t.weights_s for t in terms], theme.SKY, ""),
        ("cache", [t.cache_s for t in terms], theme.BLUE, "/"),
        ("arithmetic beyond the weights", beyond, theme.PURPLE, "x"),
    )
    for name, values, color, pattern in stacks:
        made.add_bar(
            x=labels, y=[value * 1e3 for value in values], name=name,
            marker={"color": color, "pattern": theme.hatch(pattern)},
        )  # fmt: skip
    made.update_layout(barmode="stack")
    return made


def _price(one: Forecast) -> str:
    price = one.usd_per_million
    return "no price known" if price is None else f"${price:.2f} per million tokens"


def tradeoff_figure(found: Sequence[Forecast], title: str) -> go.Figure:
    """Throughput against time per token, one point a batch; hollow ones lie beyond the memory wall."""
    made = theme.figure(title, x="time per output token (ms)", y="throughput (tok/s)")
    for name, chosen, color, symbol in (
        ("fits", [one for one in found if one.fits], theme.BLUE, "circle"),
        ("beyond the memory wall", [one for one in found if not one.fits], theme.VERMILLION, "x"),
    ):
        made.add_scatter(
            x=[one.tpot_s * 1e3 for one in chosen],
            y=[one.tokens_per_s for one in chosen],
            name=name,
            mode="lines+markers+text",
            text=[f"B={one.load.batch}" for one in chosen],
            textposition="top left",
            customdata=[_price(one) for one in chosen],
            hovertemplate="%{x:.3g} ms, %{y:,.0f} tok/s, %{customdata}<extra>%{text}</extra>",
            line={"color": color, "dash": "solid" if name == "fits" else "dot"},
            marker={"symbol": symbol, "size": 9},
        )
    made.update_xaxes(**theme.log_ticks([one.tpot_s * 1e3 for one in found]))
    made.update_yaxes(type="log", dtick=1, exponentformat="none")
    return made
