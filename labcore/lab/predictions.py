"""Predictions: locked before the run, scored after it against what this machine measured.

A prediction is a number with a unit, or one of a few options. Nobody is held up: a notebook that runs
from top to bottom scores the default, and says so. A locked answer is kept between sessions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from labcore.errors import LessonError
from labcore.lab import session as sessions
from labcore.lab.display import Shown, note
from labcore.lab.results import Results, now
from labcore.lab.units import significant, with_unit

_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")


@dataclass
class Prediction:
    """One question and the learner's answer. `value` is the default until an answer is locked.

    options: label -> the number it stands for (None where it stands for none). Empty for a free number.
    """

    id: str
    question: str
    unit: str = ""
    options: dict[str, float | None] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    value: float | str = 0.0
    locked: bool = False

    def lock(self, value: float | str) -> None:
        """Keep the learner's answer. Raises LessonError when it is not one that the question allows."""
        self.value = self._allowed(value)
        self.locked = True
        results = sessions.current().results
        results.record("predictions", self.id, question=self.question, unit=self.unit, value=self.value)
        results.record("predictions", self.id, locked=True, locked_at=now())
        results.save()

    def _ipython_display_(self) -> None:
        """Shown when it was asked; as the last value of a cell it is not repeated."""

    def _allowed(self, value: float | str) -> float | str:
        if self.options:
            if value not in self.options:
                raise LessonError(
                    f"{value!r} is not among the answers to {self.id}: {', '.join(self.options)}."
                )
            return value
        number = float(value)
        low, high = self.low, self.high
        if (
            not math.isfinite(number)
            or (low is not None and number < low)
            or (high is not None and number > high)
        ):
            raise LessonError(f"{value} lies outside of what {self.id} can be ({low} to {high} {self.unit}).")
        return number

    @property
    def number(self) -> float | None:
        """The answer as a number, None where an option stands for none."""
        return self.options[str(self.value)] if self.options else float(self.value)

    @property
    def text(self) -> str:
        """The answer as it is shown: "4×" or "120 tok/s"."""
        return str(self.value) if self.options else with_unit(float(self.value), self.unit)


def predict(
    id: str,
    question: str,
    *,
    options: Sequence[str] | Mapping[str, float | None] = (),
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    default: float | str | None = None,
) -> Prediction:
    """Ask for a prediction and show where to lock it.

    options: labels to choose from; their first number is what they stand for ("4×" is 4), or give a
    mapping from label to number. Without options the answer is a number in `unit` from `low` to `high`.
    default: what is scored when nothing was locked. Raises LessonError when it is not a possible answer.
    """
    labels = (
        dict(options)
        if isinstance(options, Mapping)
        else {label: leading_number(label) for label in options}
    )
    asked = Prediction(id, question, unit, labels, low, high)
    if default is None:
        default = next(iter(labels)) if labels else (low if low is not None else 1.0)
    asked.value = asked._allowed(default)
    session = sessions.current()
    known = session.results.predictions.get(id, {})
    if known.get("locked") and known.get("question") == question:
        asked.value, asked.locked = asked._allowed(known["value"]), True
    session.predictions[id] = asked
    from labcore.lab.widgets.prediction import show_prediction

    show_prediction(asked)
    return asked


def score(id: str, measured: float | str, unit: str = "") -> Shown:
    """Hold a prediction against the measurement: shows, records and returns one sentence.

    Raises LessonError when no prediction with this id was asked for in this session.
    """
    session = sessions.current()
    if id not in session.predictions:
        raise LessonError(
            f"Prediction {id} was not asked for yet; run the cell with lab.predict({id!r}, …) first."
        )
    asked = session.predictions[id]
    text, factor = verdict(asked, measured, unit or asked.unit)
    entry = {"value": asked.value, "unit": asked.unit, "locked": asked.locked, "question": asked.question}
    session.results.record("predictions", id, **entry, number=asked.number)
    session.results.record("predictions", id, measured=measured, off_by=factor, scored_at=now())
    session.results.save()
    close = factor is not None and factor < 1.25
    return note(text, "good" if close else "note", f"Prediction {id}:")


def verdict(asked: Prediction, measured: float | str, unit: str) -> tuple[str, float | None]:
    """The sentence, and the factor between prediction and measurement (None where there is none)."""
    who = f"You said {asked.text} ({'locked' if asked.locked else 'the default; you locked nothing'})"
    if isinstance(measured, str):
        hit = measured == asked.value
        return (
            f"{who}; it is {measured}: {'you had it' if hit else 'not what you said'}.",
            1.0 if hit else None,
        )
    seen = f"{who}, measured {with_unit(measured, unit)}"
    if asked.options:
        nearest = _nearest(asked.options, measured)
        if nearest == asked.value:
            return f"{seen}: the nearest of the answers.", _factor(asked.number, measured)
        seen += f", nearest to {nearest}" if nearest else ""
    factor = _factor(asked.number, measured)
    if factor is None:
        return f"{seen}.", None
    return f"{seen}, off by {significant(factor)}×.", factor


def recall_prediction(id: str) -> dict[str, object] | None:
    """What was answered to prediction `id` in its lesson: value, unit, locked, and measured once scored.

    None when that lesson has not been run on this machine.
    """
    entry = Results.open(id.split(".")[0]).predictions.get(id)
    return dict(entry) if entry else None


def leading_number(label: str) -> float | None:
    """The number that an option's label holds first, which it stands for: 4 for "4×"."""
    found = _NUMBER.search(label)
    return float(found.group().replace(",", "")) if found else None


def _factor(said: float | None, measured: float) -> float | None:
    """How far apart, as a ratio of at least 1."""
    if said is None or said <= 0 or measured <= 0:
        return None
    return max(said / measured, measured / said)


def _nearest(options: Mapping[str, float | None], measured: float) -> str | None:
    """The option at the smallest ratio from the measurement."""
    factors = {label: _factor(value, measured) for label, value in options.items()}
    known = {label: factor for label, factor in factors.items() if factor is not None}
    return min(known, key=lambda label: known[label]) if known else None
