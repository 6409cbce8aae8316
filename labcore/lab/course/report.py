"""The page a learner hands in: machine, roofs, predictions against measurements, exercises, what is open.

It is built once as Markdown; the HTML page is that text through markdown-it-py, with one drawing more.
Nothing but the saved results of this machine goes in, and a name only where one is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import labcore
from labcore.errors import LessonError
from labcore.lab import exercises, hunts, tables
from labcore.lab.course import progress
from labcore.lab.course.error_chart import Point, error_chart
from labcore.lab.predictions import leading_number
from labcore.lab.results import Results, now, read_saved
from labcore.lab.units import gigabytes, significant, with_unit

_CHART = "CHART-OF-PREDICTIONS"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #c8c8c8; padding: 0.2rem 0.8rem 0.2rem 0; text-align: left;
         vertical-align: top; }
h2 { margin-top: 2.2rem; border-top: 2px solid #1a1a1a; padding-top: 0.6rem; }
svg { max-width: 100%; height: auto; }
@media print { h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Report:
    """What the page is made of: each lesson's progress beside what its file holds."""

    name: str
    made_at: str
    lessons: Sequence[progress.Progress]
    saved: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """Scored predictions that are numbers, with the factor by which they were off."""
        found = []
        for number, data in sorted(self.saved.items()):
            for id, entry in sorted(data.get("predictions", {}).items()):
                said, measured = _number(entry), _positive(entry.get("measured"))
                if said and measured and 0 < said / measured < math.inf:
                    found.append(Point(id, int(number), said / measured, bool(entry.get("locked"))))
        return found


def collect(name: str = "") -> Report:
    """Read everything saved on this machine. A damaged file is named in the report and hides no other's."""
    lessons = progress.of_course()
    saved = {}
    for entry in lessons:
        try:
            saved[entry.outline.number] = read_saved(Results(entry.outline.number).path)
        except LessonError:
            continue  # the lesson's progress carries the sentence
    name = name.encode(errors="replace").decode().strip()  # a terminal may hand over what is no text
    return Report(name, now(), lessons, {number: data for number, data in saved.items() if data})


def markdown(report: Report) -> str:
    """The whole page as Markdown."""
    parts = [_head(report), _summary(report), _machines(report)]
    parts += [_lesson(entry, report.saved.get(entry.outline.number, {})) for entry in report.lessons]
    parts.append(
        f"---\n\nMade by `labcore report` (labcore {labcore.__version__}) from the files on the learner's "
        "machine. The lab sends nothing anywhere; this page is as private as its reader keeps it."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def html(report: Report) -> str:
    """The same as one HTML file that needs nothing else: no script, no picture, no network."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    text, points = markdown(report), report.points
    if points:  # the drawing stands before the table of machines, or of lessons where no file names one
        place = "\n\n## "
        text = text.replace(place, f"\n\n{_CHART}{place}", 1)
    body = parser.render(text)
    if points:
        body = body.replace(f"<p>{_CHART}</p>", error_chart(points))
    title = escape(f"LLM inference lab: report{' of ' + report.name if report.name else ''}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><main>{body}</main></body></html>\n"
    )


def _head(report: Report) -> str:
    who = f" of {_plain(report.name)}" if report.name else ""
    return f"# Report{who}: how LLM inference works\n\nMade {report.made_at[:16].replace('T', ' ')} UTC."


def _summary(report: Report) -> str:
    close = sum(1 for point in report.points if point.off_by < 2)
    done = sum(entry.is_done for entry in report.lessons)
    found = sum(len(entry.found) for entry in report.lessons)
    right = sum(len(entry.right) for entry in report.lessons)
    scored = (
        f"{len(report.points)} predictions are numbers that were scored, {close} of them within 2×."
        if report.points
        else "No prediction was scored yet; a lesson scores them as it runs."
    )
    return (
        f"{done} of {len(report.lessons)} lessons are done, {right} exercises are right and {found} "
        f"planted bugs found. {scored} {_missing(report)}\n\nNext: "
        f"{_plain(progress.what_next(report.lessons))}\n\n" + _table(progress.rows(report.lessons))
    )


def _missing(report: Report) -> str:
    """What is open, in a sentence."""
    kinds = {"predictions": "locked", "exercises": "right", "hunts": "found"}
    words = {"predictions": "predictions to lock", "exercises": "exercises", "hunts": "hunts"}
    left = {
        words[kind]: sum(len(entry.outline.ids(kind)) - len(getattr(entry, done)) for entry in report.lessons)
        for kind, done in kinds.items()
    }
    open_ = [f"{count} {what}" for what, count in left.items() if count]
    return f"Still open: {', '.join(open_)}." if open_ else "Nothing is open."


def _machines(report: Report) -> str:
    """One row for each different machine that lessons ran on, with the roofs measured there last."""
    rows: dict[str, dict[str, Any]] = {}
    for number, data in sorted(report.saved.items()):
        machine = data.get("machine") or {}
        if not machine:
            continue
        row = {
            "device": f"{machine.get('name')} ({machine.get('device')})",
            "memory": gigabytes(_positive(machine.get("total_memory")) or 0),
            "threads": machine.get("threads"),
            "versions": f"Python {machine.get('python_version')}, torch {machine.get('torch_version')}, "
            f"labcore {machine.get('labcore_version')}",
        }
        one = rows.setdefault(str(row), {"lessons": "", **row, "measured roofs": "not measured yet"})
        one["lessons"] += f"{', ' if one['lessons'] else ''}{int(number)}"
        one["measured roofs"] = machine.get("roofs") or one["measured roofs"]
    return f"## Machine\n\n{_table(list(rows.values()))}" if rows else ""


def _lesson(entry: progress.Progress, data: Mapping[str, Any]) -> str:
    parts = [f"## {int(entry.outline.number)} · {_plain(entry.outline.title)}"]
    if entry.problem:
        parts.append(_plain(entry.problem))
    elif not data:
        parts.append("Not begun.")
    else:
        parts += [_predictions(entry, data), _tasks(entry, data), _measurements(data)]
    return "\n\n".join(part for part in parts if part)


def _predictions(entry: progress.Progress, data: Mapping[str, Any]) -> str:
    answers = data.get("predictions", {})
    rows: list[dict[str, Any]] = []
    for id in entry.outline.ids("predictions"):
        one = answers.get(id)
        if one is None:
            rows.append({"prediction": id, "question": "not asked yet"})
            continue
        unit, off = str(one.get("unit") or ""), one.get("off_by")
        rows.append(
            {
                "prediction": id,
                "question": one.get("question", ""),
                "said": _value(one.get("value"), unit) + ("" if one.get("locked") else " (default)"),
                "measured": _value(one.get("measured"), unit),
                "off by": f"{significant(off)}×" if isinstance(off, (int, float)) else None,
            }
        )
    return _table(rows)


def _tasks(entry: progress.Progress, data: Mapping[str, Any]) -> str:
    results, number = data.get("exercises", {}), entry.outline.number
    titles = {task.id: task.title for task in exercises.of_lesson(number)}
    titles |= {bug.id: bug.title for bug in hunts.of_lesson(number)}
    rows = []
    for kind, right in (("exercises", "right"), ("hunts", "bug found")):
        for id in entry.outline.ids(kind):
            one = results.get(id, {})
            tried = one.get("attempted")  # never for a hunt: its copy is checked untouched, too
            state = right if one.get("passed") else ("not right yet" if tried else "open")
            rows.append({kind.removesuffix("s"): id, "title": titles.get(id), "result": state})
    return "\n\n".join(_table([row for row in rows if kind in row]) for kind in ("exercise", "hunt"))


def _measurements(data: Mapping[str, Any]) -> str:
    rows = [
        {"measurement": name, "value": ", ".join(f"{k} {tables.cell(v)}" for k, v in value.items())}
        if isinstance(value, dict)
        else {"measurement": name, "value": tables.cell(value)}
        for name, value in data.get("measurements", {}).items()
    ]
    return _table(rows)


def _value(value: Any, unit: str) -> str:
    if value is None:
        return "–"
    return with_unit(float(value), unit) if isinstance(value, (int, float)) else str(value)


def _number(entry: Mapping[str, Any]) -> float | None:
    """What an answer stands for as a number; older files hold an option's label only."""
    if "number" in entry:
        return _positive(entry["number"])
    value = entry.get("value")
    return _positive(value) or (_positive(leading_number(value)) if isinstance(value, str) else None)


def _positive(value: Any) -> float | None:
    """A number that has a place on a logarithmic axis, or None."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < math.inf else None


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, or nothing."""
    if not rows:
        return ""
    names = tables.columns(rows)
    lines = [names, ["---"] * len(names)]
    lines += [[_plain(tables.cell(row.get(name))) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that means only itself in Markdown, on one line."""
    for sign in "\\`*_[]<>|$#":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
