"""One picture for a step: every operation by its FLOPs per byte, under a machine's two roofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from labcore.bench.predict import Row
from labcore.config import ModelConfig
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.perf import costs
from labcore.perf.peaks import Machine
from labcore.perf.predict import step_time


@dataclass(frozen=True)
class OpPoint:
    """One operation of a step, summed over layers.

    rate: FLOP/s that the roofs allow it; share: of the step.
    """

    name: str
    intensity: float
    rate: float
    seconds: float
    share: float
    bound: str


@dataclass(frozen=True)
class PhasePoints:
    """A step on the roofline: its operations, and itself as a whole."""

    phase: str
    batch: int
    context: int
    points: tuple[OpPoint, ...]
    flops: int
    bytes: int
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOP per byte of the whole step."""
        return self.flops / self.bytes

    @property
    def rate(self) -> float:
        """FLOP/s expected of the whole step."""
        return self.flops / self.seconds


@dataclass(frozen=True)
class Measured:
    """A step that was measured here: FLOP per byte by the cost model, FLOP/s by the clock and as expected."""

    label: str
    phase: str
    intensity: float
    rate: float
    expected_rate: float


@dataclass(frozen=True)
class Roofline:
    """Two phases of a model on one machine. dtype: what the weights are multiplied in."""

    machine: Machine
    dtype: str
    prefill: PhasePoints
    decode: PhasePoints
    measured: tuple[Measured, ...] = ()

    @property
    def ridge(self) -> float:
        """FLOP per byte where the roofs meet."""
        return self.machine.ridge(self.dtype)

    def finding(self) -> str:
        """Which side of the ridge the two phases lie on."""
        sides = {
            phase.phase: "arithmetic" if phase.intensity > self.ridge else "memory"
            for phase in (self.prefill, self.decode)
        }
        attention = next(p for p in self.decode.points if p.name == "attention_scores")
        before, after = self.prefill, self.decode
        return (
            f"The ridge of {self.machine.name} in {self.dtype} lies at {significant(self.ridge)} FLOP/byte. "
            f"Prefill of {before.batch:,} × {before.context:,}: {significant(before.intensity)} FLOP/byte, "
            f"bound by {sides['prefill']}, {as_time(before.seconds)} at least. Decode at batch "
            f"{after.batch:,}: "
            f"{significant(after.intensity)}, bound by {sides['decode']}, {as_time(after.seconds)}; its "
            f"attention stays at {significant(attention.intensity)} whatever the batch."
        )

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers of every operation."""
        return [
            {
                "phase": phase.phase,
                "operation": point.name,
                "FLOP/byte": point.intensity,
                "roofs allow": si(point.rate, "FLOP/s"),
                "time (ms)": point.seconds * 1e3,
                "of the step": f"{point.share:.0%}",
                "bound by": point.bound,
            }
            for phase in (self.prefill, self.decode)
            for point in phase.points
            if point.intensity > 0
        ]


def roofline_of(
    config: ModelConfig,
    machine: Machine,
    *,
    batch: int,
    context: int,
    dtype: str,
    measured: Sequence[Measured] = (),
) -> Roofline:
    """Prefill and decode of `batch` sequences of `context` tokens. dtype: the weights' format.

    The picture has two roofs: what few rows do to the arithmetic's is left to the prediction. Raises
    DeviceError where the machine states no rate for the format.
    """
    machine = replace(machine, by_rows={})
    prefill = _phase("prefill", config, machine, batch, context, context, dtype)
    decode = _phase("decode", config, machine, batch, context, 1, dtype)
    return Roofline(machine, machine.product_dtype(dtype), prefill, decode, tuple(measured))


def _phase(
    phase: str, config: ModelConfig, machine: Machine, batch: int, context: int, new: int, dtype: str
) -> PhasePoints:
    step = costs.step_costs(config, batch, context, new, dtype=dtype)
    expected = step_time(step, machine)
    points = tuple(
        OpPoint(
            name=op.name,
            intensity=op.intensity,
            rate=op.flops / time.seconds if time.seconds else 0.0,
            seconds=time.seconds,
            share=time.seconds / expected.expected_s,
            bound="compute" if time.compute_s > time.memory_s else "memory",
        )
        for op, time in zip(step.operations, expected.operations, strict=True)
    )
    return PhasePoints(phase, batch, context, points, step.flops, step.bytes, expected.expected_s)


def measured_points(rows: Sequence[Row], config: ModelConfig, dtype: str) -> list[Measured]:
    """Rows of `bench_predict` as points of the picture."""
    found = []
    for row in rows:
        new = row.context if row.phase == "prefill" else 1
        step = costs.step_costs(config, row.batch, row.context, new, dtype=dtype)
        label = f"{row.phase}, {row.batch} × {row.context:,}"
        rates = (step.flops / row.measured_s, step.flops / row.expected_s)
        found.append(Measured(label, row.phase, step.intensity, *rates))
    return found
