"""What the wall shows: predictions against measurements, roofs, tokens per second, progress."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.course.outline import PREREQUISITES
from labcore.lab.units import significant
from labcore.lab.wall.devices import roofs, speeds
from labcore.lab.wall.entry import Entry, Point
from labcore.lab.wall.names import shown_names
from labcore.lab.wall.panel import Panel, canvas, count

LESSONS = tuple(PREREQUISITES)
_BAND = 2  # a prediction is near within this factor
MOST_MARKS = 5_000  # predictions that are drawn: more hide each other, and take seconds to draw
# One more of each than the theme has: there are eight lessons.
_SYMBOLS, _COLORS = (*theme.SYMBOLS, "triangle-down"), (*theme.COLORS, theme.GREY)


def panels(entries: Sequence[Entry]) -> list[Panel]:
    """The wall's figures for these entries, in the order of the page."""
    return [predictions(entries), roofs(entries), speeds(entries), progress(entries)]


def predictions(entries: Sequence[Entry]) -> Panel:
    """Said against measured, both logarithmic: on the diagonal who was right, in the band who was near."""
    title = "Predicted against measured"
    made = canvas(title, x="measured (each in its own unit)", y="predicted")
    names = shown_names(entries)
    points = [(name, point) for name, entry in zip(names, entries, strict=True) for point in entry.points]
    every = -(-len(points) // MOST_MARKS)  # of 12,000 points each third is drawn
    points, finding = points[:: every or 1], _predictions_finding(entries)
    if every > 1:
        finding += f" One of {every} predictions is drawn."
    if points:
        _draw_band(made, [value for _, point in points for value in (point.said, point.measured)])
    for place, lesson in enumerate(LESSONS):
        if mine := [(name, point) for name, point in points if point.id.startswith(f"{lesson}.")]:
            made.add_trace(_lesson_marks(place, lesson, mine))
    return Panel(title, made, finding, _by_prediction(entries))


def _draw_band(made: go.Figure, values: Sequence[float]) -> None:
    """The diagonal, and what lies within 2× of it; axes over the values."""
    low, high = min(values) / 2, max(values) * 2
    made.add_trace(
        go.Scatter(
            x=[low, high, high, low],
            y=[low / _BAND, high / _BAND, high * _BAND, low * _BAND],
            fill="toself", fillcolor="rgba(86,180,233,0.2)", line={"width": 0}, mode="lines",
            name=f"within {_BAND}×", hoverinfo="skip",
        )
    )  # fmt: skip
    line = {"color": theme.INK, "dash": "dash"}
    made.add_trace(go.Scatter(x=[low, high], y=[low, high], mode="lines", name="as measured", line=line))
    for axis in (made.update_xaxes, made.update_yaxes):
        axis(type="log", exponentformat="power", nticks=6)


def _lesson_marks(place: int, lesson: str, mine: Sequence[tuple[str, Point]]) -> go.Scatter:
    return go.Scatter(
        x=[point.measured for _, point in mine], y=[point.said for _, point in mine],
        mode="markers", name=f"lesson {int(lesson)}",
        marker={"symbol": _SYMBOLS[place], "color": _COLORS[place], "size": 11},
        text=[f"{name}: {point.id} ({point.unit})" for name, point in mine],
    )  # fmt: skip


def _factors(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """By how much predictions were off, as ratios of at least 1, by question in order."""
    factors: dict[str, list[float]] = defaultdict(list)
    for point in (point for entry in entries for point in entry.points):
        factors[point.id].append(max(point.said / point.measured, point.measured / point.said))
    return dict(sorted(factors.items()))


def _predictions_finding(entries: Sequence[Entry]) -> str:
    by_question = _factors(entries)
    factors = [factor for some in by_question.values() for factor in some]
    if not factors:
        return "Nobody has shared a scored prediction yet: lesson 1 scores the first."
    near = sum(factor < _BAND for factor in factors)
    medians = {id: median(some) for id, some in by_question.items()}
    hardest = max(medians, key=lambda id: medians[id])
    return (
        f"{near} of {count(len(factors), 'prediction')} by {count(len(entries), 'learner')} "
        f"{'lies' if near == 1 else 'lie'} within {_BAND}× of the measurement, and half are off by at most "
        f"{significant(median(factors))}×; the hardest is {hardest}, with a median of "
        f"{significant(medians[hardest])}×."
    )


def _by_prediction(entries: Sequence[Entry]) -> list[dict[str, object]]:
    return [
        {
            "prediction": id,
            "answers": len(factors),
            f"within {_BAND}×": sum(factor < _BAND for factor in factors),
            "median off by (×)": median(factors),
        }
        for id, factors in _factors(entries).items()
    ]


def progress(entries: Sequence[Entry]) -> Panel:
    """How far the class is: learners who began each lesson, and those who have all its exercises right."""
    title = "How far the class is"
    made = canvas(title, x="lesson", y="learners")
    rows = [_lesson_row(lesson, entries) for lesson in LESSONS]
    for name, pattern in (("began", ""), ("all right", "/")):
        marker = {"color": theme.SKY if name == "began" else theme.BLUE, "pattern": theme.hatch(pattern)}
        numbers = [row[name] for row in rows]
        lessons = [str(row["lesson"]) for row in rows]
        made.add_trace(go.Bar(x=lessons, y=numbers, text=numbers, name=name, marker=marker))
    made.update_xaxes(type="category")
    made.update_yaxes(rangemode="tozero", range=[0, max(1, len(entries)) * 1.1])
    return Panel(title, made, _progress_finding(len(entries), rows), rows)


def _lesson_row(lesson: str, entries: Sequence[Entry]) -> dict[str, int]:
    done = [entry.lessons[lesson] for entry in entries if lesson in entry.lessons]
    return {
        "lesson": int(lesson),
        "began": len(done),
        "all right": sum(0 < one.of <= one.right for one in done),
        "exercises right": sum(one.right for one in done),
    }


def _progress_finding(learners: int, rows: Sequence[dict[str, int]]) -> str:
    if not learners:
        return "Nobody has shared anything yet."
    right, begun = sum(row["exercises right"] for row in rows), [row for row in rows if row["began"]]
    if not begun:
        return f"{count(learners, 'learner')}, and no lesson begun."
    last = begun[-1]
    return (
        f"{count(learners, 'learner')} with {count(right, 'exercise')} right; the furthest lesson is "
        f"{last['lesson']}, which {count(last['began'], 'learner')} began."
    )
