"""What the wall shows: predictions against measurements, roofs, and tokens per second, of everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import plotly.graph_objects as go

from labcore.lab import tables, theme
from labcore.lab.course.outline import PREREQUISITES
from labcore.lab.units import si, significant
from labcore.lab.wall.entry import Entry
from labcore.lab.wall.names import shown_names

HEIGHT = 460
LESSONS = tuple(PREREQUISITES)


@dataclass(frozen=True)
class Panel:
    """One figure with the sentence that states its finding, and the same data as a table."""

    title: str
    figure: go.Figure
    finding: str
    rows: tables.Rows


def panels(entries: Sequence[Entry]) -> list[Panel]:
    """The wall's figures for these entries, in the order of the page."""
    return [predictions(entries), roofs(entries), speeds(entries), exercises(entries)]


def predictions(entries: Sequence[Entry]) -> Panel:
    """Said against measured, both logarithmic: on the diagonal who was right, in the band who was near."""
    made = theme.figure("Predicted against measured", x="measured", y="predicted", height=HEIGHT)
    names = shown_names(entries)
    points = [(name, point) for name, entry in zip(names, entries, strict=True) for point in entry.points]
    values = [value for _, point in points for value in (point.said, point.measured)]
    if values:
        low, high = min(values) / 2, max(values) * 2
        made.add_trace(
            go.Scatter(
                x=[low, high, high, low], y=[low / 2, high / 2, high * 2, low * 2], fill="toself",
                fillcolor="rgba(86,180,233,0.2)", line={"width": 0}, mode="lines", name="within 2×",
                hoverinfo="skip",
            )
        )  # fmt: skip
        made.add_trace(
            go.Scatter(
                x=[low, high], y=[low, high], mode="lines", name="as measured",
                line={"color": theme.INK, "dash": "dash"},
            )
        )  # fmt: skip
        for axis in (made.update_xaxes, made.update_yaxes):
            axis(type="log", exponentformat="power")
    symbols = (*theme.SYMBOLS, "triangle-down")
    colors = (*theme.COLORS, theme.GREY)
    for place, lesson in enumerate(LESSONS):
        mine = [(name, point) for name, point in points if point.id.startswith(f"{lesson}.")]
        if mine:
            made.add_trace(
                go.Scatter(
                    x=[point.measured for _, point in mine], y=[point.said for _, point in mine],
                    mode="markers", name=f"lesson {int(lesson)}",
                    marker={"symbol": symbols[place], "color": colors[place], "size": 10},
                    text=[f"{name}: {point.id} ({point.unit})" for name, point in mine],
                )
            )  # fmt: skip
    return Panel("Predictions", made, _predictions_finding(entries), _by_prediction(entries))


def _factors(entries: Sequence[Entry], id: str | None = None) -> list[float]:
    """By how much predictions were off, as ratios of at least 1; of one question, or of all."""
    points = [point for entry in entries for point in entry.points if id in (None, point.id)]
    return [max(point.said / point.measured, point.measured / point.said) for point in points]


def _predictions_finding(entries: Sequence[Entry]) -> str:
    factors = _factors(entries)
    if not factors:
        return "Nobody has shared a scored prediction yet."
    close = sum(factor < 2 for factor in factors)
    medians = {id: median(_factors(entries, id)) for id in _ids(entries)}
    hardest = max(medians, key=lambda id: medians[id])
    return (
        f"{len(factors)} predictions by {len(entries)} learners: {close} lie within 2×, half are off by at "
        f"most {significant(median(factors))}×. The hardest was {hardest}, where the median is off by "
        f"{significant(medians[hardest])}×."
    )


def _ids(entries: Sequence[Entry]) -> list[str]:
    return sorted({point.id for entry in entries for point in entry.points})


def _by_prediction(entries: Sequence[Entry]) -> list[dict[str, object]]:
    return [
        {
            "prediction": id,
            "answers": len(factors),
            "within 2×": sum(factor < 2 for factor in factors),
            "median off by": median(factors),
        }
        for id in _ids(entries)
        if (factors := _factors(entries, id))
    ]


def roofs(entries: Sequence[Entry]) -> Panel:
    """Each device's two roofs: what it multiplies against what it reads."""
    x, y = "memory read (GB/s)", "best matmul in fp32 (GFLOP/s)"
    made = theme.figure("Every machine's two roofs", x=x, y=y, height=HEIGHT)
    named = list(zip(shown_names(entries), entries, strict=True))
    known = [(name, entry) for name, entry in named if _has_roofs(entry)]
    rows: list[dict[str, object]] = []
    for place, device in enumerate(sorted({entry.machine.device for _, entry in known})):
        mine = [(name, entry) for name, entry in known if entry.machine.device == device]
        reads = [(entry.machine.read_bandwidth or 0) / 1e9 for _, entry in mine]
        flops = [entry.machine.matmul_flops["float32"] / 1e9 for _, entry in mine]
        made.add_trace(_markers(place, device, reads, flops, [name for name, _ in mine]))
        rows.append({"device": device, "learners": len(mine), x: median(reads), y: median(flops)})
    if rows:
        made.update_xaxes(type="log")
        made.update_yaxes(type="log")
    return Panel("Roofs", made, _roofs_finding(rows, x), rows)


def _has_roofs(entry: Entry) -> bool:
    return bool(entry.machine.read_bandwidth) and "float32" in entry.machine.matmul_flops


def _markers(
    place: int, name: str, x: Sequence[float | str], y: Sequence[float], text: Sequence[str]
) -> go.Scatter:
    marker = {
        "symbol": theme.SYMBOLS[place % len(theme.SYMBOLS)],
        "color": theme.COLORS[place % len(theme.COLORS)],
        "size": 11,
    }
    return go.Scatter(x=list(x), y=list(y), mode="markers", name=name, marker=marker, text=list(text))


def _roofs_finding(rows: Sequence[dict[str, object]], x: str) -> str:
    if not rows:
        return "Nobody has shared measured roofs yet; lesson 6 measures them."
    reads = [float(str(row[x])) for row in rows]
    ratio = significant(max(reads) / min(reads))
    return (
        f"{len(rows)} kinds of devices; the fastest memory reads {ratio} times "
        f"as much in a second as the slowest: {si(max(reads) * 1e9, 'B/s')} against "
        f"{si(min(reads) * 1e9, 'B/s')}."
    )


def speeds(entries: Sequence[Entry]) -> Panel:
    """Tokens per second for one user, as lesson 1 measured them, by device."""
    made = theme.figure(
        "Tokens per second for one user (lesson 1)", x="device", y="tokens per second", height=HEIGHT
    )
    named = list(zip(shown_names(entries), entries, strict=True))
    known = [(name, entry, entry.tokens_per_s) for name, entry in named if entry.tokens_per_s]
    rows: list[dict[str, object]] = []
    for place, device in enumerate(sorted({entry.machine.device for _, entry, _ in known})):
        mine = [(name, speed) for name, entry, speed in known if entry.machine.device == device]
        rates = [speed for _, speed in mine]
        made.add_trace(_markers(place, device, [device] * len(mine), rates, [name for name, _ in mine]))
        rates_of = {"median tok/s": median(rates), "best tok/s": max(rates)}
        rows.append({"device": device, "learners": len(mine), **rates_of})
    made.update_layout(showlegend=False)
    if not rows:
        return Panel("Speed", made, "Nobody has shared a speed yet; lesson 1 measures it.", rows)
    best = max(known, key=lambda one: one[2])
    middle = significant(median(speed for _, _, speed in known))
    finding = (
        f"{len(known)} learners measured tokens per second; the fastest is {best[0]}'s "
        f"{best[1].machine.device} with {significant(best[2])}, the median {middle}."
    )
    return Panel("Speed", made, finding, rows)


def exercises(entries: Sequence[Entry]) -> Panel:
    """How far the class is: exercises that are right, lesson by lesson."""
    made = theme.figure("Exercises that are right", x="lesson", y="exercises, all learners", height=HEIGHT)
    rows = [
        {
            "lesson": int(lesson),
            "learners who have some right": sum(1 for entry in entries if entry.exercises_right.get(lesson)),
            "exercises right": sum(entry.exercises_right.get(lesson, 0) for entry in entries),
        }
        for lesson in LESSONS
    ]
    made.add_trace(
        go.Bar(
            x=[str(row["lesson"]) for row in rows], y=[row["exercises right"] for row in rows],
            text=[row["exercises right"] for row in rows], name="exercises right",
        )
    )  # fmt: skip
    total = sum(row["exercises right"] for row in rows)
    return Panel("Exercises", made, f"{len(entries)} learners have {total} exercises right.", rows)
