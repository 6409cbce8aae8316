"""How an answer is judged: on many cases against a reference, and by the mistake it looks like.

A check knows some likely mistakes, each a name and a function that makes it. Where the answer is wrong
in exactly the way one of them is, the message says so; else it shows one case with both results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from labcore.lab.units import significant


class _Todo:
    """The answer of an exercise that was not worked on. Arithmetic with it stays unfinished."""

    def __repr__(self) -> str:
        return "TODO"

    def __bool__(self) -> bool:
        return False

    def _stay(self, *_: Any) -> _Todo:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _stay


TODO = _Todo()


@dataclass(frozen=True)
class Verdict:
    """passed of total cases were right; `message` names the likely mistake, or what was shown."""

    passed: int
    total: int
    message: str
    attempted: bool = True

    @property
    def ok(self) -> bool:
        """Attempted and right in every case."""
        return self.attempted and self.passed == self.total


def of_faults(faults: Sequence[str], total: int, what: str, praise: str, told: int = 1) -> Verdict:
    """The verdict on `total` things of which some were found wrong, a sentence each; the first are told."""
    passed = total - len(faults)
    if faults:
        return Verdict(passed, total, f"{passed} of {total} {what} are right. {' '.join(faults[:told])}")
    return Verdict(total, total, f"{total} of {total} {what}: {praise}.")


def unfinished() -> Verdict:
    """The verdict on `lab.TODO`."""
    return Verdict(0, 0, "not attempted", attempted=False)


def on_cases(
    answer: Any,
    cases: Sequence[tuple[Any, ...]],
    reference: Callable[..., Any],
    *,
    names: Sequence[str],
    praise: str,
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    what: str = "cases",
    tolerance: float = 1e-3,
) -> Verdict:
    """Run `answer` on every case and hold it against `reference`.

    names: the arguments' names, for the message. mistakes: sentence -> function that makes that mistake.
    tolerance: relative, for numbers and tensors. An exception in the answer is a wrong case, named.
    """
    if answer is TODO:
        return unfinished()
    if not callable(answer):
        return Verdict(
            0, len(cases), f"this exercise asks for a function of {', '.join(names)}; you gave {answer!r}."
        )
    given = [_call(answer, case) for case in cases]
    if any(value is TODO for value in given):
        return unfinished()
    expected = [reference(*case) for case in cases]
    right = [agree(g, e, tolerance) for g, e in zip(given, expected, strict=True)]
    if all(right):
        return Verdict(len(cases), len(cases), praise)
    wrong = right.index(False)
    message = _likely_mistake(given, cases, mistakes or {}, tolerance) or _one_case(
        names, cases[wrong], given[wrong], expected[wrong]
    )
    return Verdict(sum(right), len(cases), f"{sum(right)} of {len(cases)} {what}: {message}")


def value_is(
    answer: Any,
    expected: float,
    *,
    praise: str,
    mistakes: Mapping[str, float] | None = None,
    tolerance: float = 0.01,
) -> Verdict:
    """Judge a single number. mistakes: sentence -> the number that this mistake leads to."""
    if answer is TODO:
        return unfinished()
    if not isinstance(answer, (int, float)) or isinstance(answer, bool):
        return Verdict(0, 1, f"this exercise asks for a number; you gave {answer!r}.")
    if agree(answer, expected, tolerance):
        return Verdict(1, 1, praise)
    for sentence, wrong in (mistakes or {}).items():
        if agree(answer, wrong, tolerance):
            return Verdict(0, 1, sentence)
    ratio = answer / expected if expected else math.inf
    return Verdict(0, 1, f"your {significant(float(answer))} is {significant(ratio)}× the right value.")


def agree(given: Any, expected: Any, tolerance: float) -> bool:
    """True when both are the same within a relative tolerance; numbers, tensors, sequences, text."""
    if isinstance(given, torch.Tensor) or isinstance(expected, torch.Tensor):
        return _tensors_agree(given, expected, tolerance)
    if isinstance(expected, (list, tuple)):
        same_length = isinstance(given, (list, tuple)) and len(given) == len(expected)
        return same_length and all(agree(g, e, tolerance) for g, e in zip(given, expected, strict=True))
    if isinstance(expected, (int, float)) and not isinstance(expected, bool):
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        return number and math.isclose(given, expected, rel_tol=tolerance, abs_tol=1e-12)
    return bool(given == expected)


def _tensors_agree(given: Any, expected: Any, tolerance: float) -> bool:
    try:
        left, right = torch.as_tensor(given).double(), torch.as_tensor(expected).double()
    except (TypeError, ValueError, RuntimeError):
        return False
    return left.shape == right.shape and torch.allclose(left, right, rtol=tolerance, atol=tolerance * 1e-2)


def _call(answer: Callable[..., Any], case: tuple[Any, ...]) -> Any:
    """The answer on one case; an exception becomes the result, so that the message can name it."""
    try:
        return answer(*case)
    except Exception as error:
        return error


def _likely_mistake(
    given: Sequence[Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Mapping[str, Callable[..., Any]],
    tolerance: float,
) -> str:
    for value in given:
        if isinstance(value, Exception):
            return f"your function raised {type(value).__name__}: {value}."
        if value is None:
            return "your function returned None; is the return statement missing?"
    for sentence, mistaken in mistakes.items():
        if all(agree(g, mistaken(*case), tolerance) for g, case in zip(given, cases, strict=True)):
            return sentence
    return ""


def _one_case(names: Sequence[str], case: tuple[Any, ...], given: Any, expected: Any) -> str:
    shown = ", ".join(f"{name}={_short(value)}" for name, value in zip(names, case, strict=True))
    return f"for {shown} you return {_short(given)}, and it should be {_short(expected)}."


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return significant(value, 5)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_short(part) for part in list(value)[:6]) + (", …]" if len(value) > 6 else "]")
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
