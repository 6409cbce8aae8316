"""The session of a lesson: device, model, sizes and results, resolved once by `lab.start`.

The measured roofs of the machine are the one slow part; they are measured at first use and remembered
by `labcore.perf.roofline`, so that a lesson's first text does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch

import labcore
from labcore.errors import LessonError
from labcore.lab.display import Shown, note, note_bundle, publish
from labcore.lab.page_labels import labelling
from labcore.lab.results import Results
from labcore.lab.units import gigabytes, si

if TYPE_CHECKING:
    from labcore.lab.predictions import Prediction
    from labcore.model import Model
    from labcore.perf.predict import Machine
    from labcore.perf.roofline import Roofs

T = TypeVar("T")
SCALES, MODES = ("quick", "full"), ("learner", "solution")
_current: Session | None = None


@dataclass
class Session:
    """What every cell of a lesson shares. Made by `start`; `current()` returns it."""

    model: Model
    scale: str
    mode: str
    seed: int
    lesson: str
    results: Results
    predictions: dict[str, Prediction] = field(default_factory=dict)
    hints_seen: dict[str, int] = field(default_factory=dict)
    _to_end: dict[str, Callable[[], None]] = field(default_factory=dict, repr=False)

    def at_finish(self, what: str, end: Callable[[], None]) -> None:
        """Have `end` called by `finish`, by the next `start`, or when something else is named `what`."""
        if before := self._to_end.pop(what, None):
            before()
        self._to_end[what] = end

    def close(self) -> None:
        """End what this session started: servers and the like."""
        while self._to_end:
            self._to_end.popitem()[1]()

    @property
    def device(self) -> torch.device:
        """Where the model lies, and where everything is measured."""
        return self.model.device

    @cached_property
    def roofs(self) -> Roofs:
        """This machine's measured roofs; the first use on a machine measures them (some seconds)."""
        from labcore.perf import roofline

        if _known_roofs(self.device) is None:
            note(
                "Measuring what this machine can do at best (matrix products, memory); once, some seconds …",
                "quiet",
            )
        measured = roofline.roofs(self.device)
        self.results.machine["roofs"] = roof_line(measured)
        return measured

    @property
    def machine(self) -> Machine:
        """This machine as the napkin sees it: its memory, and its roofs as measured (see `roofs`)."""
        from labcore.perf.machine import total_memory
        from labcore.perf.predict import machine_from_roofs

        return machine_from_roofs(self.roofs, total_memory(self.device))

    def pick(self, *, quick: T, full: T) -> T:
        """The size that goes with this session's scale."""
        return quick if self.scale == "quick" else full

    @property
    def solves(self) -> bool:
        """True in solution mode: unfinished exercises are filled with the reference."""
        return self.mode == "solution"


def start(
    model: str = "story",
    *,
    device: str = "auto",
    scale: str = "auto",
    mode: str = "learner",
    seed: int = 0,
    lesson: str = "00",
) -> Session:
    """Begin a lesson: load the model, choose sizes, show the machine line.

    scale: "quick" (under 90 s on two cores), "full", or "auto" (quick on a CPU, full on a GPU).
    mode: "learner" or "solution". Raises LessonError for other values, and what `labcore.load` raises.
    """
    global _current
    _choose("MODE", mode, MODES)
    _choose("SCALE", scale, (*SCALES, "auto"))
    if _current is not None:
        _current.close()
    loaded = labcore.load(model, device=device, seed=seed)
    # The first pass of a process pays for setting up libraries, which is no part of any lesson's measurement.
    labcore.generate(loaded, [0] * 16, max_new_tokens=2, ignore_eos=True)
    torch.manual_seed(seed)
    if scale == "auto":
        scale = "quick" if loaded.device.type == "cpu" else "full"
    _current = Session(loaded, scale, mode, seed, lesson, Results.open(lesson, mode))
    ran = {"model": loaded.name, "dtype": str(loaded.dtype).removeprefix("torch."), "scale": scale}
    _current.results.machine.update(machine(loaded.device) | ran)
    publish(labelling(note_bundle(machine_line(_current), "quiet", f"Lesson {lesson}")))
    if loaded.random_weights:
        note(
            f"{loaded.name} has random weights: its speed and memory are real, its text means nothing.", "bad"
        )
    return _current


def current() -> Session:
    """The running session. Raises LessonError before `lab.start`."""
    if _current is None:
        raise LessonError("No lesson is running; run the cell with lab.start(…) first.")
    return _current


def machine(device: torch.device) -> dict[str, Any]:
    """Name and memory of the device, threads and versions, as recorded with every result."""
    from labcore.perf.machine import describe

    return describe(device).to_dict() | {"labcore_version": labcore.__version__}


def machine_line(session: Session) -> str:
    """Two lines: what runs the lesson, and the roofs as far as they are known."""
    m, model = session.results.machine, session.model
    known, dtype = _known_roofs(session.device), str(model.dtype).removeprefix("torch.")
    return (
        f"on {m['name']} ({m['device']}, {gigabytes(m['total_memory'])} memory, {m['threads']} threads) · "
        f"Python {m['python_version']} · torch {m['torch_version']} · labcore {m['labcore_version']}\n"
        f"model {model.name}: {si(model.num_parameters, '')} parameters, {dtype} · "
        f"scale {session.scale} · mode {session.mode} · seed {session.seed} · "
        f"roofs: {roof_line(known) if known else 'not measured yet'}"
    )


def roof_line(roofs: Roofs) -> str:
    """The two roofs in words: best matmul rate by dtype, and read bandwidth."""
    rates = ", ".join(f"{si(rate, 'FLOP/s')} in {dtype}" for dtype, rate in roofs.matmul_flops.items())
    return f"{rates}; reads {si(roofs.read_bandwidth, 'B/s')}"


def finish() -> Shown:
    """End what the lesson started, write its results as one JSON file here, and show a short summary."""
    session = current()
    session.close()
    results = session.results
    path = results.save()
    scored = [entry for entry in results.predictions.values() if "measured" in entry]
    close = sum(1 for entry in scored if entry.get("off_by") and entry["off_by"] < 2)
    right = sum(1 for entry in results.exercises.values() if entry.get("passed"))
    return note(
        f"{len(scored)} predictions scored, {close} of them within 2×; "
        f"{right} of {len(results.exercises)} exercises right. Kept on this machine in {path}.",
        "good",
        f"Lesson {session.lesson} done.",
    )


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise LessonError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")


def _known_roofs(device: torch.device) -> Roofs | None:
    from labcore.perf import roofline

    return roofline.known(device)
