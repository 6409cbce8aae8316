"""What the lessons contain, read from the notebooks: parts with minutes, predictions, exercises, hunts.

Nothing here is typed twice. A lesson says its minutes in a line of its own under the heading of each part,
and what is asked of the learner are calls in its code cells; this module finds them there.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from labcore.errors import LessonError
from labcore.lab import runner

_PART = re.compile(r"^## Part (\d+) · (.+)$", re.MULTILINE)
_MINUTES = re.compile(r"^\*(\d+) minutes\*$", re.MULTILINE)
_KINDS = {"predict": "predictions", "check": "exercises", "hunt": "hunts"}

# What a lesson builds on. Everything builds on lesson 1; only what is needed besides is listed.
PREREQUISITES: dict[str, tuple[str, ...]] = {
    "01": (),
    "02": ("01",),
    "03": ("02",),
    "04": ("03",),
    "05": ("03",),
    "06": ("05",),
    "07": ("06",),
    "08": ("04", "06"),
}


@dataclass(frozen=True)
class Part:
    """One part of a lesson: cells `first` up to `end` of its notebook, and what they ask, by id, in order."""

    number: int
    title: str
    minutes: int
    first: int
    end: int
    predictions: tuple[str, ...] = ()
    exercises: tuple[str, ...] = ()
    hunts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outline:
    """A lesson's number ("02"), title without its number, parts, and the numbers of the lessons before it."""

    number: str
    name: str
    title: str
    parts: tuple[Part, ...]
    prerequisites: tuple[str, ...]

    @property
    def minutes(self) -> int:
        """All parts together."""
        return sum(part.minutes for part in self.parts)

    def ids(self, kind: str) -> tuple[str, ...]:
        """All "predictions", "exercises" or "hunts" of the lesson, in the order in which they are asked."""
        return tuple(id for part in self.parts for id in getattr(part, kind))


def course() -> list[Outline]:
    """The outlines of all lessons, in order."""
    return [outline(lesson) for lesson in runner.lessons()]


def outline(lesson: runner.Lesson) -> Outline:
    """One lesson's outline. Raises LessonError where a part does not say its minutes."""
    return _read(lesson.path, lesson.path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _read(path: Path, changed: int) -> Outline:
    """`changed` makes an edited notebook a new entry."""
    lesson = runner.Lesson(path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    starts = [index for index, cell in enumerate(cells) if _heading(cell)]
    ends = [*starts[1:], len(cells)]
    parts = tuple(_part(path, cells, first, end) for first, end in zip(starts, ends, strict=True))
    title = re.sub(r"^\d+ · ", "", lesson.title)
    return Outline(lesson.number, lesson.name, title, parts, PREREQUISITES.get(lesson.number, ()))


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _heading(cell: dict[str, Any]) -> re.Match[str] | None:
    return _PART.search(_text(cell)) if cell["cell_type"] == "markdown" else None


def _part(path: Path, cells: Sequence[dict[str, Any]], first: int, end: int) -> Part:
    heading, minutes = _heading(cells[first]), _MINUTES.search(_text(cells[first]))
    if heading is None or minutes is None:
        raise LessonError(
            f"Part {heading.group(1) if heading else '?'} of {path.name} does not say its minutes; "
            'write a line such as "*10 minutes*" under its heading.'
        )
    asked: dict[str, list[str]] = {kind: [] for kind in _KINDS.values()}
    for cell in cells[first:end]:
        if cell["cell_type"] == "code":
            for kind, id in calls(_text(cell)):
                asked[kind].append(id)
    found = {kind: tuple(dict.fromkeys(ids)) for kind, ids in asked.items()}
    return Part(int(heading.group(1)), heading.group(2), int(minutes.group(1)), first, end, **found)


def calls(source: str) -> list[tuple[str, str]]:
    """What a code cell asks: ("predictions", "02.1") for `lab.predict("02.1", …)`, and so on, in order."""
    found: list[tuple[int, str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        kind, id = _KINDS.get(node.func.attr), node.args[0]
        if kind and isinstance(id, ast.Constant) and isinstance(id.value, str):
            found.append((node.lineno, kind, id.value))
    return [(kind, id) for _, kind, id in sorted(found)]
