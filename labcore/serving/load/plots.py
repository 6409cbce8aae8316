"""A load test as a page of plots that needs no network. Needs plotly (extra `lab`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from labcore.errors import LabError
from labcore.serving.load.sweep import Sweep
from labcore.serving.metrics import RequestRecord, in_flight

# A plot without the button that would send its data to plotly's servers, and the link to them.
OFFLINE = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False}
LOOKS = (("circle", "#0072B2"), ("square", "#D55E00"))  # a shape beside each colour


def write_html(path: Path, title: str, found: Sweep | None, records: Sequence[RequestRecord]) -> None:
    """A page that needs no network: rate against goodput and TTFT of a sweep; latencies and load of a run."""
    try:
        import plotly.io
    except ModuleNotFoundError:
        needs = "Plots need the package plotly, which the extra 'lab' brings: pip install 'labcore[lab]'."
        raise LabError(needs) from None
    figures = _sweep_figures(found) if found else _run_figures(records)
    parts = [
        plotly.io.to_html(figure, config=dict(OFFLINE), full_html=False, include_plotlyjs=not index)
        for index, figure in enumerate(figures)
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}<h1>{escape(title)}</h1>{''.join(parts)}</html>\n", encoding="utf-8")


def _sweep_figures(found: Sweep) -> list[Any]:
    points = found.points
    rates = [point.rate for point in points]
    served = {"requests/s": [point.summary.requests_per_s for point in points]}
    if found.slo:
        served["goodput"] = [point.summary.goodput or 0.0 for point in points]
    waits = {
        name: [point.summary.ttft and getattr(point.summary.ttft, name) for point in points]
        for name in ("p50", "p99")
    }
    return [
        _lines(found.sentence, "rate (requests/s)", "answered (requests/s)", rates, served),
        _lines("Time to first token", "rate (requests/s)", "TTFT (s)", rates, waits),
    ]


def _run_figures(records: Sequence[RequestRecord]) -> list[Any]:
    steps = in_flight(records)
    count = {"in flight": [requests for _, requests in steps]}
    figures = [
        _lines("Requests in flight", "time (s)", "requests", [at for at, _ in steps], count, shape="hv")
    ]
    good = sorted((record for record in records if record.ok), key=lambda record: record.start_s)
    if good:
        latencies: dict[str, list[Any]] = {
            "TTFT": [r.ttft_s for r in good],
            "E2E": [r.e2e_s for r in good],
        }
        due = [r.start_s for r in good]
        figures.append(
            _lines("Latency of each request", "due at (s)", "latency (s)", due, latencies, mode="markers")
        )
    return figures


def _lines(
    title: str,
    x_title: str,
    y_title: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[Any]],
    mode: str = "lines+markers",
    shape: str = "linear",
) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure(layout={"title": title, "height": 380, "template": "plotly_white"})
    for (name, y), (symbol, color) in zip(series.items(), LOOKS, strict=False):
        look, line = {"symbol": symbol, "color": color}, {"shape": shape, "color": color}
        figure.add_scatter(x=x, y=y, name=name, mode=mode, marker=look, line=line)
    return figure.update_xaxes(title=x_title).update_yaxes(title=y_title)
