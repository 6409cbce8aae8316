"""How long a lesson takes a learner, part by part: reading, running, looking, thinking, writing.

The rates below are assumptions, stated so that an instructor can disagree with them. Technical prose is
commonly said to be read at 150 to 200 words a minute; the rest is what watching a learner suggests. Running
times are measured (papermill notes them in an executed notebook), and an exercise takes what its badge says.

The minutes that a lesson states are its core: everything but the exercises below importance ●●● and the
hunts, which are for whoever is ahead, or for home.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labcore.errors import LessonError
from labcore.lab import exercises, hunts
from labcore.lab.course import outline as outlines
from labcore.lab.course.outline import Outline, Part

WORDS_PER_MINUTE = 180
LINE_S = 2.0  # a glance at a line of code that is run, not written
PREDICTION_S = 40.0
FIGURE_S = 30.0  # with the sentence and the table below it
CONTROL_S = 60.0  # a widget: move it, look, move it back
TABLE_S = 10.0
CORE = 3  # importance ●●●

ASSUMPTIONS = (
    f"Reading at {WORDS_PER_MINUTE} words a minute, {LINE_S:g} s a line of code; {PREDICTION_S:g} s a "
    f"prediction; {FIGURE_S:g} s a figure, {CONTROL_S:g} s a control to move, {TABLE_S:g} s a table; "
    "exercises as their badges say."
)

_TASK = re.compile(r"^\*\*(Exercise|Hunt) \d\d\.\w\*\*")
_TABLES = ("text_table", "table", "finding", "expect_error")


@dataclass(frozen=True)
class PartPace:
    """Seconds that one part takes, by what they are spent on. `core_s`: its exercises of importance ●●●."""

    number: int
    title: str
    stated_s: float
    reading_s: float
    predicting_s: float
    looking_s: float
    running_s: float
    core_s: float
    more_s: float

    @property
    def total_s(self) -> float:
        """The core: everything but `more_s`, the other exercises and the hunts."""
        return self.reading_s + self.predicting_s + self.looking_s + self.running_s + self.core_s

    def row(self) -> dict[str, Any]:
        """In minutes, as the tables print it."""
        spent = {
            "read": self.reading_s,
            "predict": self.predicting_s,
            "look": self.looking_s,
            "run": self.running_s,
            "●●●": self.core_s,
            "in all": self.total_s,
            "stated": self.stated_s,
            "besides": self.more_s,
        }
        return {"part": self.number, **{name: f"{seconds / 60:.1f}" for name, seconds in spent.items()}}


def of_lesson(outline: Outline, path: Path, running_s: Mapping[int, float]) -> list[PartPace]:
    """The pace of each part, given the seconds that its cells run. Part 1 includes what comes before it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        _part(part, cells[0 if part is outline.parts[0] else part.first : part.end], running_s[part.number])
        for part in outline.parts
    ]


def _part(part: Part, cells: Sequence[Mapping[str, Any]], running_s: float) -> PartPace:
    tasks = [exercises.find(id) for id in part.exercises]
    core = sum(task.minutes for task in tasks if task.importance == CORE)
    more = sum(task.minutes for task in tasks if task.importance < CORE)
    more += sum(hunts.find(id).minutes for id in part.hunts)
    return PartPace(
        part.number,
        part.title,
        stated_s=60.0 * part.minutes,
        reading_s=sum(map(_reading_s, cells)),
        predicting_s=PREDICTION_S * len(part.predictions),
        looking_s=sum(_looking_s(_source(cell)) for cell in cells if cell["cell_type"] == "code"),
        running_s=running_s,
        core_s=60.0 * core,
        more_s=60.0 * more,
    )


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _reading_s(cell: Mapping[str, Any]) -> float:
    """Seconds to read a cell. What belongs to an exercise or a hunt is in the minutes of its badge."""
    source = _source(cell)
    if cell["cell_type"] == "markdown":
        return 60 * len(words(source)) / WORDS_PER_MINUTE
    if "parameters" in cell.get("metadata", {}).get("tags", ()) or _is_task(source):
        return 0.0
    return LINE_S * sum(bool(line.strip()) for line in source.splitlines())


def _is_task(source: str) -> bool:
    return any(kind in ("exercises", "hunts") for kind, _ in outlines.calls(source))


def words(markdown: str) -> list[str]:
    """The words of a text that are read: paragraphs of exercises and hunts left out, marks and rules too."""
    kept = [block for block in markdown.split("\n\n") if not _TASK.match(block)]
    return [word for block in kept for word in block.split() if re.search(r"[^\W_]", word)]


def _looking_s(source: str) -> float:
    """Seconds spent on what a code cell puts on the page, by the names of the lab that it calls."""
    return sum(_look_s(name) for name in re.findall(r"\blab\.(\w+)\(", source))


def _look_s(name: str) -> float:
    from labcore.lab import _HOMES

    if _HOMES.get(name, "").startswith("widgets.") or name.endswith("_explorer"):
        return CONTROL_S
    if name == "show" or name.startswith("show_"):
        return FIGURE_S
    return TABLE_S if name in _TABLES else 0.0


def measured_running(outline: Outline, path: Path, executed: Path) -> dict[int, float]:
    """Seconds that the cells of each part ran in an executed copy; part 1 includes what comes before it.

    Raises LessonError when the copy is of another state of the lesson, or did not run to its end.
    """
    sources = [_source(cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    ran = [
        cell
        for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]
        if "injected-parameters" not in cell["metadata"].get("tags", ())
    ]
    if [_source(cell) for cell in ran] != sources:
        raise LessonError(f"{executed} was made from another state of {path.name}; run the lesson again.")
    seconds = [_duration(cell) for cell in ran]
    if None in seconds:
        raise LessonError(
            f"{executed} did not run to its end; run the lesson again and see which cell fails."
        )
    return {
        part.number: sum(filter(None, seconds[0 if part is outline.parts[0] else part.first : part.end]))
        for part in outline.parts
    }


def _duration(cell: Mapping[str, Any]) -> float | None:
    """Seconds, as papermill noted them; 0 for text, None for code that did not run."""
    if cell["cell_type"] != "code":
        return 0.0
    return cell["metadata"].get("papermill", {}).get("duration")
