"""How far a learner is, from the outlines of the lessons and the results that they saved on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labcore.errors import LessonError
from labcore.lab.course.outline import Outline, course
from labcore.lab.results import Results, elsewhere, folder, read_saved


@dataclass(frozen=True)
class Progress:
    """One lesson's progress: ids of what is done, when it was last saved, and what is wrong with its file."""

    outline: Outline
    saved_at: str | None = None
    locked: frozenset[str] = frozenset()
    scored: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()
    found: frozenset[str] = frozenset()
    problem: str = ""

    @property
    def of_all(self) -> tuple[int, int]:
        """Things done, and things to do: locked predictions, right exercises, found bugs."""
        kinds = (self.outline.ids(kind) for kind in ("predictions", "exercises", "hunts"))
        return len(self.locked) + len(self.right) + len(self.found), sum(map(len, kinds))

    @property
    def is_done(self) -> bool:
        """Every exercise right. Predictions may be left to their defaults, and hunts are for the fast."""
        return len(self.right) == len(self.outline.ids("exercises"))

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.problem:
            return "file damaged"
        if self.is_done:
            return "done"
        return "begun" if self.of_all[0] or self.scored else "not begun"


def of_course() -> list[Progress]:
    """Progress in every lesson, in order. A damaged file is that lesson's `problem` and hides no other's."""
    return [of_lesson(outline) for outline in course()]


def of_lesson(outline: Outline) -> Progress:
    """Progress in one lesson; what was done in solution mode is not the learner's and does not count."""
    try:
        saved = read_saved(Results(outline.number).path)
    except LessonError as error:
        return Progress(outline, problem=str(error))
    predictions, exercises = saved.get("predictions", {}), saved.get("exercises", {})
    right = {id for id, entry in exercises.items() if entry.get("passed")}
    return Progress(
        outline,
        saved.get("saved_at"),
        locked=_known(outline, "predictions", {i for i, e in predictions.items() if e.get("locked")}),
        scored=_known(outline, "predictions", {i for i, e in predictions.items() if "measured" in e}),
        right=_known(outline, "exercises", right),
        found=_known(outline, "hunts", right),
    )


def misplaced() -> str:
    """A sentence when a command was given where no results lie, though the lab's own folder has some."""
    there = elsewhere()
    if there is None:
        return ""
    return (
        f"There are no results in {folder()}, but there are in {there}: give the command in "
        f"{there.parents[1]}."
    )


def _known(outline: Outline, kind: str, ids: set[str]) -> frozenset[str]:
    """What the lesson of today still asks; a file may be older than the lesson."""
    return frozenset(ids & set(outline.ids(kind)))


def rows(lessons: Sequence[Progress]) -> list[dict[str, Any]]:
    """The table of progress."""
    return [
        {
            "lesson": f"{int(entry.outline.number)} {entry.outline.title}",
            "minutes": entry.outline.minutes,
            "after lessons": ", ".join(str(int(n)) for n in entry.outline.prerequisites) or "none",
            "predictions locked": _of(entry.locked, entry.outline.ids("predictions")),
            "exercises right": _of(entry.right, entry.outline.ids("exercises")),
            "bugs found": _of(entry.found, entry.outline.ids("hunts")),
            "state": entry.state,
            "last saved (UTC)": (entry.saved_at or "–")[:16].replace("T", " "),
        }
        for entry in lessons
    ]


def _of(done: frozenset[str], asked: tuple[str, ...]) -> str:
    return f"{len(done)} of {len(asked)}"


def what_next(lessons: Sequence[Progress]) -> str:
    """One sentence: where to go on, and what is damaged."""
    damaged = [entry.problem for entry in lessons if entry.problem]
    begun = [entry for entry in lessons if entry.state == "begun"]
    done = {entry.outline.number for entry in lessons if entry.is_done}
    open_ = [entry for entry in lessons if entry.state == "not begun"]
    ready = [entry for entry in open_ if set(entry.outline.prerequisites) <= done]
    if begun:
        entry = begun[0]
        sentence = (
            f"Go on with lesson {int(entry.outline.number)}, {entry.outline.title}: "
            f"{_of(entry.right, entry.outline.ids('exercises'))} exercises are right."
        )
    elif ready:
        entry = ready[0]
        minutes = f"{entry.outline.minutes} minutes"
        sentence = f"Begin lesson {int(entry.outline.number)}, {entry.outline.title} ({minutes})."
    elif not open_ and not damaged:
        sentence = "All lessons are done; `labcore report` makes the page to hand in."
    else:
        sentence = "What is open comes after lessons that are not done yet."
    return " ".join([*damaged, sentence])
