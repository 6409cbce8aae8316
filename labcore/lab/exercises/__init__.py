"""Exercises: a learner's answer, checked by properties, with hints that climb and a solution that runs.

A notebook writes

    @lab.attempt("02.3")
    def prefill_flops(config, n):
        return lab.TODO

    lab.check("02.3", prefill_flops)

An unfinished answer returns `lab.TODO` and its check says "not attempted". In solution mode `attempt`
puts the reference in the place of an unfinished answer, so that the notebook runs whole in both modes.
A lesson's exercises live in `lessonNN.py` beside this file, one `@exercise(...)` each.
"""

from __future__ import annotations

from labcore.lab.exercises.checking import TODO, Verdict, on_cases, unfinished, value_is
from labcore.lab.exercises.desk import CheckResult, attempt, check, hint, solution, solved
from labcore.lab.exercises.registry import Exercise, exercise, find, of_lesson

__all__ = [
    "TODO",
    "CheckResult",
    "Exercise",
    "Verdict",
    "attempt",
    "check",
    "exercise",
    "find",
    "hint",
    "of_lesson",
    "on_cases",
    "solution",
    "solved",
    "unfinished",
    "value_is",
]
