"""What only an instructor knows of a lesson, one `lessonNN.toml` each, for guides and copies.

Numbers in these texts are formulas, ratios, or counts that hold on every machine. What belongs to one
machine is measured by the lesson and does not stand here; seconds that cells run name their machine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labcore.errors import LessonError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class WrongAnswer:
    """A common answer (an option, or a number), what it reveals about the thought behind it, what to say."""

    answer: str
    reveals: str
    say: str


@dataclass(frozen=True)
class Expected:
    """A prediction's right idea, and the common wrong ones."""

    right: str
    wrong: tuple[WrongAnswer, ...]


@dataclass(frozen=True)
class Discussion:
    """A question for the room after a part, and what a good answer holds."""

    part: int
    question: str
    good: str


@dataclass(frozen=True)
class Trouble:
    """What often goes wrong in the room, and what mends it."""

    sign: str
    mend: str


@dataclass(frozen=True)
class Plan:
    """A lesson in so many minutes: its parts, and which of their exercises and hunts are left for later."""

    minutes: int
    parts: tuple[int, ...]
    skip: tuple[str, ...]
    do: str


@dataclass(frozen=True)
class Teaching:
    """All of one lesson. `running` has the seconds that each part's cells run (two cores, quick scale)."""

    predictions: Mapping[str, Expected]
    discussions: tuple[Discussion, ...]
    troubles: tuple[Trouble, ...]
    plans: tuple[Plan, ...]
    projector: tuple[str, ...]
    without_gpu: str
    with_gpu: str
    running: Mapping[int, float]


def of_lesson(number: str, folder: Path = _FOLDER) -> Teaching:
    """What is known of lesson "01", "02", … Raises LessonError where nothing was written down."""
    path = folder / f"lesson{number}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LessonError(f"There is no {path}; what is taught in lesson {number} stands there.") from None
    except tomllib.TOMLDecodeError as error:
        raise LessonError(f"{path} is no TOML ({error}); mend that place.") from None
    try:
        return _teaching(_one_line(data))
    except (KeyError, TypeError) as error:
        raise LessonError(f"{path} misses something or has too much ({error}); see lesson01.toml.") from None


def _teaching(data: Mapping[str, Any]) -> Teaching:
    return Teaching(
        predictions={id: _expected(entry) for id, entry in data["predict"].items()},
        discussions=tuple(Discussion(**entry) for entry in data["discuss"]),
        troubles=tuple(Trouble(**entry) for entry in data["wrong"]),
        plans=tuple(_plan(entry) for entry in data["short"]),
        projector=tuple(data["projector"]),
        without_gpu=data["without_gpu"],
        with_gpu=data["with_gpu"],
        running={int(part): float(seconds) for part, seconds in data["running"].items()},
    )


def _expected(entry: Mapping[str, Any]) -> Expected:
    return Expected(entry["right"], tuple(WrongAnswer(**wrong) for wrong in entry["wrong"]))


def _plan(entry: Mapping[str, Any]) -> Plan:
    return Plan(entry["minutes"], tuple(entry["parts"]), tuple(entry["skip"]), entry["do"])


def _one_line(value: Any) -> Any:
    """The same with texts freed of the line breaks of their source."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [_one_line(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _one_line(entry) for key, entry in value.items()}
    return value
