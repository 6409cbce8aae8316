"""What a learner shares: measurements and predictions, and a name only where one is given.

An entry is made from the results on this machine each time it is shared. It holds no user, host, path,
question or answer in words: a device's name and versions, numbers, and how many exercises are right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from labcore.errors import DeviceError, LessonError
from labcore.lab.course.progress import Progress, misplaced, of_course
from labcore.lab.results import DECODE_RATE, Results, now, read_saved

if TYPE_CHECKING:
    from labcore.perf.roofline import Roofs

SCHEMA = 1
LARGEST = 1e18
# No control characters, no tags, and nothing that turns the direction of the text around it.
_Name = Annotated[str, Field(max_length=40, pattern=r"^[^\x00-\x1f\x7f-\x9f<>\u2028-\u202e\u2066-\u2069]*$")]
_Positive = Annotated[float, AfterValidator(lambda value: _finite(value))]
_Lesson = Annotated[str, Field(pattern=r"^0[1-8]$")]
_Count = Annotated[int, Field(ge=0, le=99)]


def _finite(value: float) -> float:
    if not (math.isfinite(value) and 0 < value < LARGEST):
        raise ValueError(f"must be a positive number below {LARGEST:g}")
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


class Speed(Strict):
    """Tokens per second while decoding, of all sequences of a batch together."""

    model: _Name
    dtype: _Name
    batch: Annotated[int, Field(ge=1, le=100_000)]
    tokens_per_s: _Positive


class Done(Strict):
    """Exercises of one lesson: right ones, of all."""

    right: _Count
    of: _Count


class Machine(Strict):
    """The device and versions behind the numbers; roofs in FLOP/s by dtype and bytes/s, where measured."""

    device: _Name
    kind: _Name
    memory_bytes: _Positive | None = None
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
    speeds: Annotated[list[Speed], Field(max_length=32)] = []
    lessons: Annotated[dict[_Lesson, Done], Field(max_length=8)] = {}


def make_entry(id: UUID, name: str = "") -> Entry:
    """This machine's entry under `id`. Raises LessonError when no lesson was run, or for a bad name."""
    begun = {entry.outline.number: entry for entry in of_course() if entry.saved_at}
    saved = {number: read_saved(Results(number).path) for number in begun}
    machines = [data for data in saved.values() if data.get("machine")]
    if not machines:
        raise LessonError(
            misplaced() or "There is nothing to share yet; run a lesson first, such as lesson 1."
        )
    latest = max(machines, key=lambda data: str(data.get("saved_at")))
    try:
        return Entry(
            id=id,
            name=" ".join(name.split(" ")).strip(),
            shared_at=now(),
            machine=_machine(latest["machine"]),
            points=[point for data in saved.values() for point in _points(data.get("predictions", {}))],
            speeds=[speed for data in saved.values() for speed in _speeds(data.get("measurements", {}))],
            lessons={number: _done(progress) for number, progress in begun.items()},
        )
    except ValueError as error:
        raise LessonError(
            f"This cannot be shared ({first_fault(error)}); mend that and share again."
        ) from None


def first_fault(error: ValueError) -> str:
    """A validation error's first fault, in a few words."""
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    fault = details(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])[:60]
    if fault["type"] == "string_pattern_mismatch":
        return f"{place}: characters that do not belong there"
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def _done(progress: Progress) -> Done:
    return Done(right=len(progress.right), of=len(progress.outline.ids("exercises")))


def _points(predictions: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """Predictions that are numbers and were scored."""
    found = []
    for id, entry in sorted(predictions.items()):
        said, measured = _positive(entry.get("number", entry.get("value"))), _positive(entry.get("measured"))
        if said and measured:
            unit, locked = str(entry.get("unit") or ""), bool(entry.get("locked"))
            found.append(Point(id=id, unit=unit, said=said, measured=measured, locked=locked))
    return found


def _speeds(measurements: Mapping[str, Mapping[str, Any]]) -> list[Speed]:
    """Every decode rate that a lesson recorded."""
    return [
        Speed(
            model=value.get("model", ""), dtype=value.get("dtype", ""), batch=value.get("batch", 1),
            tokens_per_s=value.get("value", 0),
        )
        for name, value in measurements.items()
        if name.startswith(DECODE_RATE)
    ]  # fmt: skip


def _positive(value: Any) -> float | None:
    """A number that has a place on a logarithmic axis, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < LARGEST else None


def _machine(recorded: Mapping[str, Any]) -> Machine:
    """The device as the last lesson recorded it, with its roofs if they were measured here."""
    roofs = _roofs(recorded)
    return Machine(
        device=str(recorded.get("name", "unknown"))[:40],
        kind=str(recorded.get("device", "cpu")),
        memory_bytes=_positive(recorded.get("total_memory")),
        threads=recorded.get("threads", 1),
        torch=str(recorded.get("torch_version", "")),
        labcore=str(recorded.get("labcore_version", "")),
        matmul_flops=dict(roofs.matmul_flops) if roofs else {},
        read_bandwidth=roofs.read_bandwidth if roofs else None,
    )


def _roofs(recorded: Mapping[str, Any]) -> Roofs | None:
    """The recorded device's roofs; None if they were not measured, or the device is not here now."""
    from labcore.perf import roofline
    from labcore.perf.machine import device_name

    try:
        device = str(recorded.get("device", "cpu"))
        return roofline.known(device) if device_name(device) == recorded.get("name") else None
    except DeviceError:
        return None


def as_text(entry: Entry) -> str:
    """Exactly what is shared, readable."""
    return json.dumps(entry.model_dump(mode="json"), indent=2, ensure_ascii=False)
