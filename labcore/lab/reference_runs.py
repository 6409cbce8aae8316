"""A reference GPU's results beside the learner's own: read from `data/reference_runs`, never in their place.

Every number says whose it is: model, number format, device, versions, day. Different models are held against
each other by what can be compared: the share of a device's roof, or the gain over the model's own baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labcore.bench.compare_runs import Run, read, reference_path
from labcore.bench.predict import PredictResult
from labcore.bench.suite_rows import OURS, RATE, Row
from labcore.lab import session as sessions
from labcore.lab.introduction import own_napkin
from labcore.lab.live import Reading
from labcore.lab.results import now
from labcore.lab.units import si, significant
from labcore.model import Model
from labcore.perf.predict import Machine
from labcore.shares import DOUBT, IN_CACHE, doubt_of

DECODE = ("generate-llama-3.2-1b-h200", "generate-llama-3.1-8b-h200")
PACKAGES = ("torch", "labcore")
STEPS = "batch 1, steps after the first"  # as benchmarks name the steps behind a prompt


def reference(name: str) -> Run:
    """A run that comes with the lab, by its name: its `rows`, and the `label` that says whose they are.

    Raises LabError with the nearest names for an unknown one.
    """
    return read(reference_path(name))


def keep_own(model: str, dtype: str, rows: Sequence[Row]) -> Run:
    """What this lesson measured, as a run like the reference's. Goes into the lesson's results as well, where
    `labcore compare` finds it."""
    session, name = sessions.current(), short(model)
    for row in rows:
        key = f"{row.section}: {row.what}, {row.engine}"
        session.results.measurements[key] = row.to_dict() | {"model": name, "dtype": dtype}
    machine = session.results.machine
    versions = {package: machine.get(f"{package}_version") for package in PACKAGES}
    known = {package: str(version) for package, version in versions.items() if version}
    lesson = f"lesson {session.lesson}"
    return Run("yours", lesson, machine, known, now(), {"dtype": dtype}, (name,), tuple(rows))


def short(model: str) -> str:
    """A model's name as rows begin with it."""
    return model.removeprefix("shape:")


def dtype_of(model: Model) -> str:
    """The number format of its weights, "float32"."""
    return str(model.dtype).removeprefix("torch.")


def whose(run: Run) -> dict[str, Any]:
    """The columns that say where a number comes from."""
    return {
        "whose": "yours, this run" if run.name == "yours" else "reference",
        "model": run.models[0],
        "format": run.settings.get("dtype"),
        "device": run.device,
        "versions": _versions(run),
        "measured": run.date,
    }


def subject(run: Run) -> str:
    """ "llama-3.2-1b in bfloat16"."""
    return " in ".join(filter(None, (run.models[0], run.settings.get("dtype"))))


def told(run: Run) -> str:
    """Where and when a reference was measured: "NVIDIA H200, torch 2.11.0+cu130, 2026-11-26"."""
    return f"{run.device}, {_versions(run)}, {run.date}"


def _versions(run: Run) -> str:
    """Of what measured; a record names its peers' versions too."""
    own = {name: version for name, version in run.versions.items() if name in PACKAGES}
    return ", ".join(f"{name} {version}" for name, version in own.items())


@dataclass(frozen=True)
class Decode:
    """One user's decode steps in one place. row: tokens/s and the share of what memory allows there."""

    run: Run
    row: Row
    step_bytes: float

    @property
    def share(self) -> float:
        """Of what the measured memory bandwidth allows; above 1 where weights stay in a processor's cache."""
        return self.row.ceiling_share or 0.0

    @property
    def doubt(self) -> str:
        """The mark of a share that cannot be trusted, else ""."""
        return "" if self.row.trusted else f" {DOUBT}"

    @property
    def subject(self) -> str:
        """ "llama-3.2-1b in bfloat16"."""
        return subject(self.run)

    @property
    def said(self) -> str:
        """ "llama-3.2-1b in bfloat16, 2.47 GB a step: 1,200 tok/s, 71.8 %"."""
        return (
            f"{self.subject}, {si(self.step_bytes, 'B')} a step: "
            f"{significant(self.row.value)} tok/s, {significant(100 * self.share)} %{self.doubt}"
        )


@dataclass(frozen=True)
class DecodeBeside:
    """The learner's decode steps beside the reference's."""

    own: Decode
    others: tuple[Decode, ...]

    @property
    def all(self) -> tuple[Decode, ...]:
        """The learner's first."""
        return (self.own, *self.others)

    def rows(self) -> list[dict[str, Any]]:
        """A line for each, with where it comes from."""
        return [
            {
                **whose(one.run),
                "bytes a step": si(one.step_bytes, "B"),
                "tok/s, one user": one.row.value,
                "of what its memory allows (%)": 100 * one.share,
            }
            for one in self.all
        ]

    def speed_finding(self) -> str:
        """Tokens per second, each beside the bytes it reads for one."""
        theirs = "; ".join(one.said for one in self.others)
        return (
            f"Yours: {self.own.said} of what this machine's memory allows. Reference "
            f"({told(self.others[0].run)}): {theirs}. The models differ, and with them the work of a token: "
            f"hold the shares against each other, not the tokens per second.{self._doubt}"
        )

    @property
    def _doubt(self) -> str:
        return doubt_of([one.row.ceiling_share for one in self.all], IN_CACHE)

    def share_finding(self) -> str:
        """How near each comes to its roof, and what more bytes a step do to that on the reference."""
        small, *_, large = sorted(self.others, key=lambda one: one.step_bytes)
        return (
            f"One user's steps reached {significant(100 * self.own.share)} % of the bandwidth measured here "
            f"({self.own.subject}). On the reference ({told(small.run)}) {small.subject} reached "
            f"{significant(100 * small.share)} % and {large.subject}, with "
            f"{significant(large.step_bytes / small.step_bytes)} times the bytes a step, "
            f"{significant(100 * large.share)} %.{self._doubt}"
        )


def stream_beside(model: Model, machine: Machine, reading: Reading) -> DecodeBeside:
    """A stream's steps after the first, held to the napkin as in `show_floor`, beside the reference's."""
    context = reading.prompt_tokens + len(reading.tokens) // 2
    plan, rate = own_napkin(model, machine, context), 1 / (reading.metrics.tpot_s or float("nan"))
    step_bytes = plan.weight_bytes + plan.kv_bytes
    return _beside(model.name, dtype_of(model), rate, rate * step_bytes / machine.bandwidth, step_bytes)


def step_beside(model: Model, found: PredictResult) -> DecodeBeside:
    """The first single sequence's decode step of `predict_steps`, beside the reference's."""
    step = next(row for row in found.rows if row.phase == "decode" and row.batch == 1)
    read_bytes = step.mbu * step.bandwidth * step.measured_s
    return _beside(model.name, found.dtype, 1 / step.measured_s, step.mbu, read_bytes)


def _beside(model: str, dtype: str, rate: float, share: float, step_bytes: float) -> DecodeBeside:
    row = Row("decode", f"{short(model)}, {STEPS}", OURS, rate, RATE, True, rate / share, share)
    own = Decode(keep_own(model, dtype, [row]), row, step_bytes)
    return DecodeBeside(own, tuple(_reference_decode(name) for name in DECODE))


def _reference_decode(name: str) -> Decode:
    run = reference(name)
    row = next(row for row in run.rows if row.engine == OURS and row.what.endswith(STEPS))
    return Decode(run, row, run.result["bytes_per_step"])
