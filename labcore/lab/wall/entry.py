"""What a learner shares: measurements and predictions, and a name only where one is given.

An entry is made from the results on this machine each time it is shared. It holds no user, host, path,
question or answer in words: a device's name and versions, numbers, and how many exercises are right.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID, uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from labcore.errors import LessonError
from labcore.lab.course.progress import of_course
from labcore.lab.results import Results, folder, now, read_saved, write_whole

SCHEMA = 1
_Name = Annotated[str, Field(max_length=40, pattern=r"^[^\x00-\x1f\x7f<>]*$")]
_Positive = Annotated[float, AfterValidator(lambda value: _finite(value))]


def _finite(value: float) -> float:
    if not (math.isfinite(value) and 0 < value < 1e18):
        raise ValueError("must be a positive number below 1e18")
    return value


class Strict(BaseModel):
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid")


class Point(Strict):
    """A scored prediction: its id ("02.1"), what was said and what was measured, in `unit`."""

    id: Annotated[str, Field(pattern=r"^0[1-8]\.\d{1,2}$")]
    unit: _Name = ""
    said: _Positive
    measured: _Positive
    locked: bool


class Machine(Strict):
    """The device and versions behind the numbers; roofs in FLOP/s by dtype and bytes/s, where measured."""

    device: _Name
    kind: _Name
    memory_bytes: _Positive
    threads: Annotated[int, Field(ge=1, le=4096)]
    torch: _Name
    labcore: _Name
    matmul_flops: Annotated[dict[_Name, _Positive], Field(max_length=16)] = {}
    read_bandwidth: _Positive | None = None


class Entry(Strict):
    """Everything that one learner shares. Sharing again replaces what was shared before."""

    schema_version: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    id: UUID
    name: _Name = ""
    shared_at: Annotated[str, Field(max_length=40)]
    machine: Machine
    points: Annotated[list[Point], Field(max_length=200)] = []
    tokens_per_s: _Positive | None = None
    exercises_right: Annotated[dict[str, Annotated[int, Field(ge=0, le=99)]], Field(max_length=8)] = {}


class Identity(Strict):
    """Who shared from this machine: a random id, and the secret that lets nobody else replace the entry."""

    id: UUID
    secret: Annotated[str, Field(min_length=20, max_length=200)]


def identity() -> Identity:
    """This machine's learner, made at first use and kept beside the results as readable JSON.

    Raises LessonError when the file is damaged or cannot be written.
    """
    path = folder() / "wall.json"
    if path.exists():
        try:
            return Identity.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise LessonError(f"{path} is damaged ({first}); delete it to share as somebody new.") from None
    made = Identity(id=uuid4(), secret=secrets.token_urlsafe(24))
    write_whole(path, made.model_dump_json(indent=2) + "\n")
    return made


def secret_hash(secret: str) -> str:
    """What is kept of a secret where entries lie."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_entry(name: str = "") -> Entry:
    """This machine's entry. Raises LessonError when no lesson has measured anything, or for a bad name."""
    lessons = of_course()
    saved = {entry.outline.number: _saved(entry.outline.number) for entry in lessons if not entry.problem}
    machines = [data["machine"] for data in saved.values() if data.get("machine")]
    if not machines:
        raise LessonError("There is nothing to share yet; run a lesson, whose results the wall shows.")
    points = [point for data in saved.values() for point in _points(data.get("predictions", {}))]
    right = {entry.outline.number: len(entry.right) for entry in lessons if entry.right}
    first = saved.get("01", {}).get("predictions", {}).get("01.1", {})
    try:
        return Entry(
            id=identity().id,
            name=name.strip(),
            shared_at=now(),
            machine=_machine(machines[-1]),
            points=points,
            tokens_per_s=first.get("measured"),
            exercises_right=right,
        )
    except ValueError as error:
        raise LessonError(f"This cannot be shared: {first_fault(error)}.") from None


def _saved(number: str) -> dict[str, Any]:
    return read_saved(Results(number).path)


def first_fault(error: ValueError) -> str:
    """A validation error's first fault, in a few words."""
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    fault = details(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def _points(predictions: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """Predictions that are numbers and were scored."""
    found = []
    for id, entry in sorted(predictions.items()):
        said, measured = _positive(entry.get("number", entry.get("value"))), _positive(entry.get("measured"))
        if said and measured:
            unit, locked = str(entry.get("unit") or ""), bool(entry.get("locked"))
            found.append(Point(id=id, unit=unit, said=said, measured=measured, locked=locked))
    return found


def _positive(value: Any) -> float | None:
    """A number that has a place on a logarithmic axis, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < math.inf else None


def _machine(recorded: Mapping[str, Any]) -> Machine:
    """The device as the last lesson recorded it, with its roofs if they were measured here."""
    from labcore.errors import DeviceError
    from labcore.perf import roofline

    try:
        roofs = roofline.known(str(recorded.get("device", "cpu")))
    except DeviceError:
        roofs = None  # measured on a device that is not here now
    return Machine(
        device=str(recorded.get("name", "unknown"))[:40],
        kind=str(recorded.get("device", "cpu")),
        memory_bytes=recorded.get("total_memory", 0),
        threads=recorded.get("threads", 1),
        torch=str(recorded.get("torch_version", "")),
        labcore=str(recorded.get("labcore_version", "")),
        matmul_flops=dict(roofs.matmul_flops) if roofs else {},
        read_bandwidth=roofs.read_bandwidth if roofs else None,
    )


def as_text(entry: Entry) -> str:
    """Exactly what is shared, readable."""
    return json.dumps(entry.model_dump(mode="json"), indent=2, ensure_ascii=False)
