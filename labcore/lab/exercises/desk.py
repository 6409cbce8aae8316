"""What a learner does with an exercise: attempt it, check it, climb its hints, see its solution."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from labcore.errors import LessonError
from labcore.lab import session as sessions
from labcore.lab.display import Shown, html_bundle, note, note_bundle, publish
from labcore.lab.exercises.checking import TODO, Verdict
from labcore.lab.exercises.registry import Exercise, find
from labcore.lab.results import now

if TYPE_CHECKING:
    from labcore.lab.hunts import Hunt


@dataclass(frozen=True)
class CheckResult:
    """What `check` found. Shown when it was made, so as a cell's last value it stays silent."""

    id: str
    verdict: Verdict

    @property
    def ok(self) -> bool:
        """Right in every case."""
        return self.verdict.ok

    def _ipython_display_(self) -> None:
        return None


def attempt(id: str, value: Any = None) -> Any:
    """Mark an answer to exercise `id`: as a decorator on a function, or around a value.

    In learner mode the answer stays as it is. In solution mode an unfinished one (it is, or it returns,
    `lab.TODO` at once) is replaced by the reference. Raises LessonError for an id that does not exist.
    """
    task = find(id)
    if value is not None:
        return task.solution if value is TODO and _solving() else value

    def mark(function: Any) -> Any:
        return task.solution if _solving() and _returns_todo(function) else function

    return mark


def check(id: str, answer: Any) -> CheckResult:
    """Judge an answer, show the judgement and record it. Raises LessonError for an unknown id."""
    task = find(id)
    verdict = task.check(answer)
    publish(_judgement(task, verdict))
    session = sessions.current()
    done = {"title": task.title, "attempted": verdict.attempted, "passed": verdict.ok, "checked_at": now()}
    session.results.record("exercises", id, **done)
    session.results.save()
    return CheckResult(id, verdict)


def hint(id: str) -> Shown:
    """Show the next rung of the ladder; after the last rung it stays there and points to the solution."""
    task = _task_or_hunt(id)
    seen = sessions.current().hints_seen
    rung = min(seen.get(id, 0), len(task.hints) - 1)
    seen[id] = rung + 1
    label = f"Hint {rung + 1} of {len(task.hints)} to {id}:"
    last = f" (lab.solution({id!r}) shows the solution.)" if rung + 1 == len(task.hints) else ""
    return note(task.hints[rung] + last, "note", label)


def solution(id: str) -> Shown:
    """Show the reference: a function's source (for a hunt, labcore's own), or a value and why it is that."""
    task = _task_or_hunt(id)
    reference = task.solution if isinstance(task, Exercise) else task.original
    why = task.why if isinstance(task, Exercise) else ""
    source = source_of(reference) if callable(reference) else f"{reference!r}\n\n{why}".strip()
    style = "border-left:4px solid #0072B2;padding:6px 10px;margin:4px 0;white-space:pre-wrap"
    publish(html_bundle(f'<pre class="labcore-solution" style="{style}">{escape(source)}</pre>', source))
    return Shown(source)


def solved(id: str) -> Any:
    """The reference itself: a callable or a value."""
    return find(id).solution


def source_of(function: Any) -> str:
    """A function's source, dedented. Raises LessonError when Python does not have it."""
    try:
        return textwrap.dedent(inspect.getsource(function)).strip()
    except (OSError, TypeError):
        raise LessonError(
            f"The source of {function!r} is not at hand; reinstall labcore from its folder."
        ) from None


def _task_or_hunt(id: str) -> Exercise | Hunt:
    """Hunts end in a letter ("02.A"), exercises in a number ("02.3"); hints and solutions serve both."""
    from labcore.lab import hunts

    return hunts.find(id) if id[-1:].isalpha() else find(id)


def _solving() -> bool:
    return sessions.current().solves


def _returns_todo(function: Any) -> bool:
    """True when the body mentions TODO: unfinished functions are found without calling them."""
    code = getattr(function, "__code__", None)
    return code is not None and "TODO" in (*code.co_names, *code.co_freevars)


def _judgement(task: Exercise, verdict: Verdict) -> dict[str, Any]:
    if not verdict.attempted:
        return note_bundle(f"not attempted. {task.title}: {task.badge}.", "quiet", f"○ {task.id}")
    tone, sign = ("good", "✓") if verdict.ok else ("bad", "✗")
    more = "" if verdict.ok else f"\nlab.hint({task.id!r}) helps."
    return note_bundle(verdict.message + more, tone, f"{sign} {task.id}")
