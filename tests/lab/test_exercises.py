"""Exercises: judged by properties, diagnosed by mistakes, runnable in both modes."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from labcore import lab
from labcore.errors import LessonError
from labcore.lab import exercises, hunts
from labcore.lab.exercises import TODO, on_cases, value_is
from labcore.lab.exercises.checking import agree
from labcore.lab.hunts.registry import same_code
from labcore.lab.session import Session

LESSONS = ("01", "02", "03", "04", "05", "06", "07", "08")
ALL = [task for lesson in LESSONS for task in exercises.of_lesson(lesson)]
HUNTS = [bug for lesson in LESSONS for bug in hunts.of_lesson(lesson)]
CASES = [(3, 4), (5, 7)]


def area(a: float, b: float) -> float:
    return a * b


def judge(answer: object) -> exercises.Verdict:
    mistakes = {"you add instead of multiplying.": lambda a, b: a + b}
    return on_cases(answer, CASES, area, names=("a", "b"), praise="right.", mistakes=mistakes, what="shapes")


def test_a_right_answer_passes_all_cases() -> None:
    verdict = judge(lambda a, b: b * a)
    assert verdict.ok
    assert (verdict.passed, verdict.total) == (2, 2)


def test_the_likely_mistake_is_named() -> None:
    assert judge(lambda a, b: a + b).message == "0 of 2 shapes: you add instead of multiplying."


def test_an_unknown_mistake_shows_one_case() -> None:
    assert "for a=5, b=7 you return 12, and it should be 35" in judge(lambda a, b: 12).message


@pytest.mark.parametrize("answer", [TODO, lambda a, b: TODO, lambda a, b: TODO * 2 + a])
def test_unfinished_answers_are_not_attempted(answer: object) -> None:
    verdict = judge(answer)
    assert not verdict.attempted
    assert not verdict.ok


def test_exceptions_and_missing_returns_are_named() -> None:
    assert "raised ZeroDivisionError" in judge(lambda a, b: a / 0).message
    assert "is the return statement missing?" in judge(lambda a, b: None).message
    assert "asks for a function of a, b" in judge(12).message


def test_values_are_judged_with_their_mistakes() -> None:
    verdict = value_is(10.3, 10.25, praise="right.", mistakes={"n - 1 gaps.": 10.3}, tolerance=1e-3)
    assert (verdict.ok, verdict.message) == (False, "n - 1 gaps.")
    assert value_is(10.25, 10.25, praise="right.").ok
    assert "2× the right value" in value_is(20.5, 10.25, praise="right.").message
    assert "asks for a number" in value_is("ten", 10.25, praise="right.").message


def test_agreement_covers_numbers_tensors_and_sequences() -> None:
    assert agree(torch.tensor([1.0, 2.0]), [1.0, 2.0], 1e-3)
    assert not agree(torch.tensor([1.0]), torch.tensor([1.0, 1.0]), 1e-3)
    assert not agree("text", torch.tensor([1.0]), 1e-3)
    assert agree([1, 2.0], (1, 2), 1e-3)
    assert not agree(True, 1, 1e-3)


def test_an_unknown_id_offers_the_nearest() -> None:
    with pytest.raises(LessonError, match=r"no exercise '01\.11'; the nearest are 01\.1"):
        lab.check("01.11", TODO)


def test_hints_climb_and_stay_on_the_last_rung(session: Session) -> None:
    ladder = exercises.find("01.1").hints
    seen = [lab.hint("01.1") for _ in range(len(ladder) + 1)]
    assert seen[0] == ladder[0]
    assert seen[-1] == seen[-2]
    assert "lab.solution('01.1')" in seen[-1]


def test_attempt_fills_unfinished_answers_in_solution_mode_only(session: Session) -> None:
    def unfinished(*_: object) -> object:
        return lab.TODO

    assert lab.attempt("01.1")(unfinished) is unfinished
    session.mode = "solution"
    assert lab.attempt("01.1")(unfinished) is lab.solved("01.1")
    assert lab.attempt("01.1")(area) is area


def test_a_check_is_recorded(session: Session) -> None:
    assert lab.check("01.1", lab.solved("01.1")).ok
    assert session.results.exercises["01.1"]["passed"] is True
    assert not lab.check("01.1", TODO).verdict.attempted
    assert session.results.exercises["01.1"]["attempted"] is False


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.id)
def test_every_solution_passes_its_own_check(session: Session, task: exercises.Exercise) -> None:
    for _ in range(3):  # cases are drawn anew each time
        verdict = task.check(task.solution)
        assert verdict.ok, verdict.message
    assert not task.check(TODO).attempted


@pytest.mark.parametrize("bug", HUNTS, ids=lambda bug: bug.id)
def test_every_hunt_fails_with_its_bug_and_passes_without(session: Session, bug: hunts.Hunt) -> None:
    assert bug.check(bug.original).ok
    # Default arguments are evaluated where the copy is defined; a notebook imports what they need.
    names = dict(vars(import_module(bug.target.split(":")[0])))
    source = "from __future__ import annotations\n" + bug.buggy_source()
    exec(compile(source, "<hunt>", "exec"), names)
    planted = lab.hunt(bug.id)(names[bug.original.__name__])
    verdict = bug.check(planted)
    assert not verdict.ok
    assert len(verdict.message) > 20
    session.mode = "solution"
    assert bug.check(lab.hunt(bug.id)(planted)).ok


@pytest.mark.parametrize("bug", HUNTS, ids=lambda bug: bug.id)
def test_the_notebook_holds_the_copy_that_labcore_would_plant(bug: hunts.Hunt) -> None:
    script = notebook(bug.id[:2]).read_text(encoding="utf-8")
    cell = next(part for part in script.split("# %%") if f'@lab.hunt("{bug.id}")' in part)
    code = cell[cell.index("\n") :]
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    assert same_code(ast.unparse(functions[0]), bug.buggy_source())


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_notebook_states_each_exercise_as_the_register_does(lesson: str) -> None:
    script = notebook(lesson).read_text(encoding="utf-8")
    for task in exercises.of_lesson(lesson):
        assert f"{task.badge}" in script, f"{task.id}: the notebook should print {task.badge!r}"
        assert re.search(rf'lab\.check\("{task.id}"', script)
    assert 4 <= len(exercises.of_lesson(lesson)) <= 6
    assert hunts.of_lesson(lesson)


def notebook(lesson: str) -> Path:
    folder = Path(__file__).parents[2] / "notebooks"
    return next(folder.glob(f"{lesson}_*.py"))
