"""What a prediction missed, split into reasons; and what lesson 1's guess was worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from labcore.bench.predict import PredictResult, Row, bench_predict
from labcore.config import ModelConfig
from labcore.lab import session as sessions
from labcore.lab.display import Shown, note
from labcore.lab.predictions import recall_prediction
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.perf.peaks import Machine
from labcore.perf.predict import ideal_prefill, ideal_step
from labcore.shares import doubt_of, share_text

GUESS = "01.5"  # lesson 1: how fast one user will be served by the shape that this lesson measures


@dataclass(frozen=True)
class Residual:
    """Seconds of one step, from the napkin to the clock.

    napkin: weights once, cache once, 2 FLOP a parameter, at the measured roofs. operations: what the same
    roofs make of the step's real operations, one after another, beyond that. overhead: measured on a thin
    twin. rest: what the clock says beyond all of it (less than 0: faster than expected).
    """

    label: str
    napkin_s: float
    operations_s: float
    overhead_s: float
    rest_s: float

    @property
    def measured_s(self) -> float:
        """The parts' sum."""
        return self.napkin_s + self.operations_s + self.overhead_s + self.rest_s

    @property
    def over(self) -> float:
        """How many times too fast the napkin is."""
        return self.measured_s / self.napkin_s

    def row(self) -> dict[str, Any]:
        """The exact numbers."""
        return {
            "step": self.label,
            "napkin (ms)": self.napkin_s * 1e3,
            "+ operations (ms)": self.operations_s * 1e3,
            "+ overhead (ms)": self.overhead_s * 1e3,
            "+ rest (ms)": self.rest_s * 1e3,
            "= measured (ms)": self.measured_s * 1e3,
            "the napkin is too fast": f"{significant(self.over)}×",
        }


def predict_steps(model: Model, **sizes: Any) -> PredictResult:
    """`bench_predict` with a progress bar: decode steps and prompts, predicted and measured."""
    with tqdm(desc="predicting and measuring", bar_format="{desc}", file=sys.stdout, leave=False) as bar:
        return bench_predict(model, progress=bar.set_description_str, **sizes)


def split_residuals(result: PredictResult, config: ModelConfig) -> list[Residual]:
    """Every row of a `bench_predict`, split, each with the roofs of its own minutes."""
    return [_split(row, config, result.dtype) for row in result.rows]


def _split(row: Row, config: ModelConfig, dtype: str) -> Residual:
    machine = Machine("here", 0, row.bandwidth, {dtype: row.flops}, measured=True)
    if row.phase == "prefill":
        napkin = ideal_prefill(config, machine, row.context, row.batch, dtype)
    else:
        napkin = ideal_step(config, machine, row.batch, row.context, dtype)
    return Residual(
        label=f"{row.phase}, {row.batch} × {row.context:,}",
        napkin_s=napkin,
        operations_s=row.expected_s - row.overhead_s - napkin,
        overhead_s=row.overhead_s,
        rest_s=row.measured_s - row.expected_s,
    )


def prediction_rows(result: PredictResult) -> list[dict[str, Any]]:
    """Predicted beside measured."""
    return [
        {
            "step": f"{row.phase}, {row.batch} × {row.context:,}",
            "expected (ms)": row.expected_s * 1e3,
            "bracket (ms)": f"{significant(row.low_s * 1e3)} to {significant(row.high_s * 1e3)}",
            "measured (ms)": row.measured_s * 1e3,
            "spread, IQR (ms)": row.spread_s * 1e3,
            "off by": f"{row.error:+.0%}",
            "MBU": share_text(row.mbu),
            "MFU": share_text(row.mfu),
        }
        for row in result.rows
    ]


def prediction_finding(result: PredictResult) -> str:
    """How good the prediction was, misses named."""
    close = result.within()
    missed = [row for row in result.rows if row not in close]
    told = "; ".join(
        f"{row.phase} {row.batch} × {row.context:,} took {as_time(row.measured_s)}, expected "
        f"{as_time(row.expected_s)}"
        for row in missed
    )
    tail = f" Missed: {told}." if missed else " None missed by more."
    doubt = doubt_of([share for row in result.rows for share in (row.mbu, row.mfu)])
    return f"{len(close)} of {len(result.rows)} steps came within 25 % of what was expected.{tail}{doubt}"


def residual_finding(found: Sequence[Residual]) -> str:
    """How far the napkin was off, and for which reason most."""
    overs = [one.over for one in found]
    worst = max(found, key=lambda one: one.over)
    parts = {
        "operations that the napkin does not know": worst.operations_s,
        "overhead": worst.overhead_s,
        "kernels that do not reach the roofs": worst.rest_s,
    }
    reason = max(parts, key=lambda name: parts[name])
    return (
        f"The napkin promised {significant(min(overs))} to {significant(max(overs))} times what was reached. "
        f"At {worst.label} most of the difference is {reason}."
    )


def score_guess(expected: float, measured: float) -> Shown:
    """Hold the guess that lesson 1 asked to keep against what this lesson measured, in tok/s for one user."""
    entry = recall_prediction(GUESS)
    seen = f"predicted from roofs and costs {significant(expected)} tok/s, measured {significant(measured)}"
    sessions.current().results.measurements["guess"] = {"expected": expected, "measured": measured}
    if not entry:
        return note(f"{seen}. Lesson 1 was not run on this machine: no guess was kept.", "note", "Lesson 1:")
    said = float(str(entry["value"]))
    who = "you said" if entry.get("locked") else "the default (you locked nothing) was"
    factor = max(said / measured, measured / said)
    return note(
        f"{who} {significant(said)} tok/s; {seen}. The guess was off by {significant(factor)}×.",
        "good" if factor < 1.25 else "note",
        "Lesson 1:",
    )
