"""What tests of exercises and hunts share: a check's own mistakes, and a hunt's function with its bug."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from labcore.lab import exercises, hunts


def mistakes_of(task: exercises.Exercise, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Any]]:
    """The mistakes that an exercise's check knows, as it hands them on."""
    module = import_module(f"labcore.lab.exercises.lesson{task.id[:2]}")
    seen: dict[str, Callable[..., Any]] = {}
    plain = module.on_cases

    def spy(answer: Any, *args: Any, mistakes: dict[str, Callable[..., Any]], **kwargs: Any) -> Any:
        seen.update(mistakes)
        return plain(answer, *args, mistakes=mistakes, **kwargs)

    monkeypatch.setattr(module, "on_cases", spy)
    assert task.check(task.solution).ok
    return dict(seen)


def knows_its_mistakes(task: exercises.Exercise, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The solution passes on this seed's cases, and each mistake gets its own sentence."""
    random.seed(seed)
    mistakes = mistakes_of(task, monkeypatch)
    assert len(mistakes) >= 3
    for sentence, mistaken in mistakes.items():
        verdict = task.check(mistaken)
        assert not verdict.ok
        assert verdict.message.endswith(f": {sentence}")


def with_its_bug(bug: hunts.Hunt) -> Callable[..., Any]:
    """The function as the notebook hands it out."""
    names = dict(vars(import_module(bug.target.split(":")[0])))
    exec(compile("from __future__ import annotations\n" + bug.buggy_source(), "<hunt>", "exec"), names)
    found: Callable[..., Any] = names[bug.original.__name__]
    return found


def told(id: str, suspect: Callable[..., Any]) -> str:
    """What a hunt's check says of a function that is wrong."""
    verdict = hunts.find(id).check(suspect)
    assert not verdict.ok
    return verdict.message
