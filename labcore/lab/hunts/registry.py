"""The register of hunts, and how a copied function is run as if it stood in its home module."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any

from labcore.errors import LessonError
from labcore.lab import session as sessions
from labcore.lab.display import note
from labcore.lab.exercises.checking import Verdict
from labcore.lab.exercises.desk import source_of
from labcore.lab.register import Register
from labcore.lab.results import now

Check = Callable[[Callable[..., Any]], Verdict]


@dataclass(frozen=True)
class Hunt:
    """A bug to find. `target` is "module:function"; `bug` pairs right text of its source with wrong."""

    id: str
    title: str
    target: str
    bug: tuple[tuple[str, str], ...]
    minutes: int
    hints: tuple[str, ...]
    check: Check

    @property
    def original(self) -> Callable[..., Any]:
        """The function as labcore runs it."""
        module, name = self.target.split(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found

    def buggy_source(self) -> str:
        """The function's source with the bug in it. Raises LessonError when labcore's text has moved on."""
        source = source_of(self.original)
        for right, wrong in self.bug:
            if source.count(right) != 1:
                raise LessonError(
                    f"Hunt {self.id} plants its bug at {right!r}, which {self.target} no longer holds once."
                )
            source = source.replace(right, wrong)
        return source


_hunts: Register[Hunt] = Register("hunt", "labcore.lab.hunts")


def planted(
    id: str,
    *,
    title: str,
    target: str,
    bug: tuple[tuple[str, str], ...],
    minutes: int,
    hints: tuple[str, ...],
) -> Callable[[Check], Check]:
    """Register the decorated function as the check of hunt `id` ("02.A"); ids are unique (ValueError)."""
    if id in _hunts or len(hints) < 2:
        raise ValueError(f"hunt {id}: ids are unique and hints at least two")

    def register(check: Check) -> Check:
        _hunts.add(id, Hunt(id, title, target, bug, minutes, hints, check))
        return check

    return register


find = _hunts.find
of_lesson = _hunts.of_lesson


def hunt(id: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator for the copy in the notebook: runs its check, shows and records what it found.

    Returns the function that was checked: the cell's own, or labcore's in solution mode.
    """
    planted_bug = find(id)

    def examine(function: Callable[..., Any]) -> Callable[..., Any]:
        session = sessions.current()
        suspect = planted_bug.original if session.solves else at_home(function, planted_bug.target)
        verdict = planted_bug.check(suspect)
        session.results.record("exercises", id, title=planted_bug.title, passed=verdict.ok, checked_at=now())
        session.results.save()
        _tell(planted_bug, verdict)
        return suspect

    return examine


def at_home(function: Callable[..., Any], target: str) -> Callable[..., Any]:
    """The same code with the names of its home module in reach, so that a bare copy runs as it did there."""
    home = import_module(target.split(":")[0])
    if not isinstance(function, FunctionType):
        raise LessonError(f"A hunt decorates a plain function; this is {type(function).__name__}.")
    names = {**function.__globals__, **vars(home)}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def same_code(left: str, right: str) -> bool:
    """True when two sources define the same function, whatever its decorators, types and comments."""
    return _bare(left) == _bare(right)


def _bare(source: str) -> str:
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    function.decorator_list, function.returns = [], None
    for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
        argument.annotation = None
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    return ast.unparse(function)


def _tell(planted_bug: Hunt, verdict: Verdict) -> None:
    if verdict.ok:
        note(verdict.message, "good", f"✓ {planted_bug.id} The bug is gone.")
    else:
        note(
            f"{verdict.message}\nlab.hint({planted_bug.id!r}) helps.",
            "bad",
            f"✗ {planted_bug.id} Still there:",
        )
