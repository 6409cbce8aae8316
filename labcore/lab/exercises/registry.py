"""The register of exercises: addressed by string ids, read from `lessonNN.py` when first asked for."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from labcore.errors import LessonError
from labcore.lab.exercises.checking import Verdict

Check = Callable[[Any], Verdict]
_exercises: dict[str, Exercise] = {}


@dataclass(frozen=True)
class Exercise:
    """One exercise. `solution` is a reference callable or a value; `why` explains a value."""

    id: str
    title: str
    difficulty: int
    importance: int
    minutes: int
    hints: tuple[str, ...]
    solution: Any
    check: Check
    why: str = ""

    @property
    def badge(self) -> str:
        """As the notebooks print it: "★★☆ · importance ●●○ · 5 min"."""
        stars = "★" * self.difficulty + "☆" * (3 - self.difficulty)
        dots = "●" * self.importance + "○" * (3 - self.importance)
        return f"{stars} · importance {dots} · {self.minutes} min"


def exercise(
    id: str,
    *,
    title: str,
    difficulty: int,
    importance: int,
    minutes: int,
    hints: tuple[str, ...],
    solution: Any,
    why: str = "",
) -> Callable[[Check], Check]:
    """Register the decorated check function as exercise `id` ("02.3": lesson 02, third exercise).

    Raises ValueError for an id used twice, fewer than two hints, or stars outside of 1 to 3: those are
    mistakes of the author, not of a learner.
    """
    if id in _exercises or len(hints) < 2 or not {difficulty, importance} <= {1, 2, 3}:
        raise ValueError(
            f"exercise {id}: ids are unique, hints at least two, difficulty and importance 1 to 3"
        )

    def register(check: Check) -> Check:
        _exercises[id] = Exercise(id, title, difficulty, importance, minutes, hints, solution, check, why)
        return check

    return register


def find(id: str) -> Exercise:
    """The exercise with this id. Raises LessonError with the nearest ids when there is none."""
    _read_lessons()
    if id not in _exercises:
        near = difflib.get_close_matches(str(id), _exercises, n=3, cutoff=0.0)
        raise LessonError(f"There is no exercise {id!r}; the nearest are {', '.join(near)}.")
    return _exercises[id]


def of_lesson(lesson: str) -> list[Exercise]:
    """All exercises of lesson "01", "02", … in order."""
    _read_lessons()
    return [_exercises[id] for id in sorted(_exercises) if id.startswith(f"{lesson}.")]


def _read_lessons() -> None:
    package = import_module("labcore.lab.exercises")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("lesson"):
            import_module(f"{package.__name__}.{module.name}")
