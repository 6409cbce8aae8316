"""What a load test found: tables for eyes, plain data for files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from labcore.serving.load.runner import LoadRun
from labcore.serving.load.sweep import Point, Sweep
from labcore.serving.metrics import RequestRecord, Slo, Spread, Summary
from labcore.serving.workload import Workload

LATE_S = 0.05  # a client later than this is worth a line
LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2e"))


def shown(run: LoadRun, workload: Workload, summary: Summary, slo: Slo | None) -> Group:
    """A line on what was run, latencies by percentile, and the findings under them."""
    head = (
        f"{run.model} at {run.url}, {run.loop} loop: {summary.completed:,} of {summary.requests:,} "
        f"requests in {summary.duration_s:,.1f} s"
    )
    lines = "\n".join(findings(run, workload, summary, slo))
    return Group(Text(head), _latencies(summary), Text(lines))  # Text: a server's words are no markup


def _latencies(summary: Summary) -> Table:
    table = Table()
    for name in ("", "mean", "p50", "p90", "p95", "p99"):
        table.add_column(name, justify="right" if name else "left")
    for name, field in LATENCIES:
        table.add_row(name, *_cells(getattr(summary, field)))
    return table


def findings(run: LoadRun, workload: Workload, summary: Summary, slo: Slo | None) -> list[str]:
    """The lines under the table."""
    lines = [
        f"throughput {summary.output_tokens_per_s:,.1f} output tokens/s, "
        f"{summary.requests_per_s:,.2f} requests/s",
        f"in flight: {summary.concurrency_mean:.2f} in the mean, {summary.concurrency_peak} at most",
    ]
    if slo and summary.goodput is not None:
        lines.append(
            f"goodput {summary.goodput:,.2f} requests/s: {summary.attainment:.0%} kept {_promise(slo)}"
        )
    if summary.little:
        law = summary.little
        lines.append(
            f"Little's law: {law.arrivals_per_s:.2f}/s × {law.latency_s:.2f} s = "
            f"{law.in_flight_expected:.2f} in flight, measured {law.in_flight_measured:.2f}"
        )
    return lines + _cautions(run, workload, summary)


def _cautions(run: LoadRun, workload: Workload, summary: Summary) -> list[str]:
    lines = [
        f"{count:,} × {kind}{_first_detail(run.records, kind)}"
        for kind, count in sorted(summary.errors.items())
    ]
    done = {record.id for record in run.records if record.ok}
    planned = sum(arrival.output_tokens for arrival in workload if arrival.id in done)
    if summary.output_tokens != planned:
        lines.append(f"answers held {summary.output_tokens:,} tokens, {planned:,} were planned")
    if not run.dialect.ids:
        lines.append("prompts were sent as words, about as many: the server takes no token ids")
    if summary.late_s > LATE_S:
        lines.append(
            f"requests left up to {summary.late_s:.2f} s late: this client was busy, or out of connections"
        )
    return lines


def _first_detail(records: Sequence[RequestRecord], kind: str) -> str:
    detail = next((record.detail for record in records if record.error == kind and record.detail), "")
    return f": {detail}" if detail else ""


def sweep_table(found: Sweep, title: str) -> Table:
    """A row for each rate."""
    promise = f" SLO: {_promise(found.slo)}." if found.slo else ""
    table = Table(title=Text(title), caption=found.sentence + promise)
    columns = ("rate /s", "requests /s", "goodput /s", "kept", "tok/s", "TTFT p50", "TTFT p99", "TPOT p50")
    for name in (*columns, "TPOT p99", "in flight", "errors", "carried"):
        table.add_column(name, justify="right")
    for point in found.points:
        table.add_row(*sweep_cells(point))
    return table


def sweep_cells(point: Point) -> list[str]:
    """One row, as text."""
    summary = point.summary
    return [
        f"{point.rate:g}",
        f"{summary.requests_per_s:.2f}",
        "–" if summary.goodput is None else f"{summary.goodput:.2f}",
        f"{summary.attainment:.0%}",
        f"{summary.output_tokens_per_s:,.0f}",
        *(
            seconds(getattr(values, share)) if values else "–"
            for values in (summary.ttft, summary.tpot)
            for share in ("p50", "p99")
        ),
        f"{summary.concurrency_mean:.1f}",
        ", ".join(f"{count} {kind}" for kind, count in sorted(summary.errors.items())) or "0",
        "yes" if point.carried else "no",
    ]


def seconds(value: float) -> str:
    """Milliseconds below a second."""
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.1f} ms"


def run_data(run: LoadRun, summary: Summary, slo: Slo | None) -> dict[str, Any]:
    """Plain data of one run, every request included."""
    return {**_server(run), "slo": slo and asdict(slo), "summary": summary.to_dict(), **_records(run)}


def sweep_data(found: Sweep, runs: Sequence[LoadRun]) -> dict[str, Any]:
    """Plain data of a sweep, every request of every run included, runs in the order they were made."""
    slo = found.slo and asdict(found.slo)
    return {**_server(runs[0]), "slo": slo, "sweep": found.to_dict(), "runs": [_records(run) for run in runs]}


def _server(run: LoadRun) -> dict[str, Any]:
    return {"url": run.url, "model": run.model, "loop": run.loop, "dialect": asdict(run.dialect)}


def _records(run: LoadRun) -> dict[str, Any]:
    return {"records": [asdict(record) for record in run.records]}


def _promise(slo: Slo) -> str:
    limits = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s))
    return " and ".join(f"{name} ≤ {seconds(limit)}" for name, limit in limits if limit is not None)


def _cells(values: Spread | None) -> list[str]:
    if values is None:
        return ["–"] * 5
    return [seconds(getattr(values, name)) for name in ("mean", "p50", "p90", "p95", "p99")]
