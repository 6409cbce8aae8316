"""The register of exercises: addressed by string ids, read from `lessonNN.py` when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labcore.lab.exercises.checking import Verdict
from labcore.lab.register import Register

Check = Callable[[Any], Verdict]


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


_exercises: Register[Exercise] = Register("exercise", "labcore.lab.exercises")


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
        entry = Exercise(id, title, difficulty, importance, minutes, hints, solution, check, why)
        _exercises.add(id, entry)
        return check

    return register


find = _exercises.find
of_lesson = _exercises.of_lesson
