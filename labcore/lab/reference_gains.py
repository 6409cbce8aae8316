"""What narrower weights and continuous batching gain, on a reference GPU beside the learner's machine.

A gain is over the same model's own baseline on the same device, so gains of different models can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labcore.bench.compare_runs import DTYPES, Run
from labcore.bench.suite_rows import OURS, RATE, Row, bits_of
from labcore.lab.reference_runs import dtype_of, keep_own, reference, short, subject, told, whose
from labcore.lab.serving_lengths import LengthsRun
from labcore.lab.shrunk import Shrunk, ThreeWays
from labcore.lab.units import significant
from labcore.model import Model

QUANT = "quant-llama-3.2-1b-h200"
SERVING = "serving-qwen3-0.6b-h200"
BATCHES = (1, 8)  # of the reference; the lesson measures them too


@dataclass(frozen=True)
class WeightGain:
    """One way of holding the weights in one place: how many times what full precision is there.

    gains: "smaller", "decode, batch 1", "decode, batch 8", "prefill".
    """

    run: Run
    weights: str
    gains: Mapping[str, float]

    @property
    def bits(self) -> str:
        """ "8 bits"."""
        return bits_of(f"{OURS} {self.weights}")

    @property
    def said(self) -> str:
        """ "int8: 2 times smaller, decode at batch 1 at 0.547 times the speed"."""
        smaller, decode = (
            significant(self.gains[name]) for name in ("smaller", f"decode, batch {BATCHES[0]}")
        )
        return f"{self.bits}: {smaller}× smaller, decode at batch {BATCHES[0]} {decode}× as fast"


@dataclass(frozen=True)
class WeightsBeside:
    """The learner's gains, then the reference's."""

    own: tuple[WeightGain, ...]
    others: tuple[WeightGain, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A line for each way and place; every gain over the same model in full precision there."""
        return [
            {
                "weights": one.weights,
                **{f"{name} (×)": gain for name, gain in one.gains.items()},
                **whose(one.run),
            }
            for one in (*self.own, *self.others)
        ]

    def finding(self) -> str:
        """Memory and time, here and there."""
        mine, theirs = ("; ".join(one.said for one in ways) for ways in (self.own, self.others))
        run = self.others[0].run
        return (
            f"Yours, {subject(self.own[0].run)}. {mine}. "
            f"Reference, {subject(run)} ({told(run)}). {theirs}. {self._verdict()}"
        )

    def _verdict(self) -> str:
        """What the reference's narrowest weights make of their bytes."""
        narrowest = self.others[-1]
        smaller = narrowest.gains["smaller"]
        decode = [narrowest.gains[f"decode, batch {batch}"] for batch in BATCHES]
        if max(decode) < 1:
            return "There narrower weights save memory and cost time."
        alone, together = map(significant, decode)
        return (
            f"There {narrowest.bits} are {significant(smaller)}× fewer bytes, and decode {alone}× as fast at "
            f"batch {BATCHES[0]}, {together}× at batch {BATCHES[1]}."
        )


def weights_beside(model: Model, ways: ThreeWays) -> WeightsBeside:
    """What `weigh_weights` measured, beside the reference's int8 and int4."""
    run = keep_own(ways.model, dtype_of(model), _weight_rows(ways))
    own = tuple(WeightGain(run, way.weights, _gains(way, ways.full)) for way in ways.ways[1:])
    return WeightsBeside(own, _reference_weights())


def _gains(way: Shrunk, full: Shrunk) -> dict[str, float]:
    times = way.times(full)
    decode = {name: times[name] for name in (f"decode, batch {batch}" for batch in BATCHES)}
    return {"smaller": times["size"], **decode, "prefill": times["prefill"]}


def _weight_rows(ways: ThreeWays) -> list[Row]:
    """Decode as `labcore bench quant` names it."""
    return [
        Row("quant", f"{short(ways.model)}, {bits_of(engine)}, decode, batch {batch}", engine,
            batch / way.decode_s[batch], RATE, True)
        for way in ways.ways
        for engine in (f"{OURS} {way.weights}",)
        for batch in BATCHES
    ]  # fmt: skip


def _reference_weights() -> tuple[WeightGain, ...]:
    run = reference(QUANT)
    by_engine: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in run.result["rows"]:
        by_engine.setdefault(row["engine"].removeprefix(f"{OURS} "), {})[row["batch"]] = row
    full = next(rows for name, rows in by_engine.items() if DTYPES.fullmatch(name))
    first = BATCHES[0]
    return tuple(
        WeightGain(run, name, {
            "smaller": full[first]["weight_bytes"] / rows[first]["weight_bytes"],
            **{f"decode, batch {batch}": rows[batch]["times_full_precision"] for batch in BATCHES},
            "prefill": rows[first]["prefill_tokens_per_s"] / full[first]["prefill_tokens_per_s"],
        })
        for name, rows in by_engine.items() if rows is not full
    )  # fmt: skip


@dataclass(frozen=True)
class Served:
    """One list of requests through both policies in one place. Rates in output tokens/s."""

    run: Run
    answers: str
    together: int
    continuous: float
    static: float

    @property
    def gain(self) -> float:
        """Continuous over static."""
        return self.continuous / self.static

    @property
    def said(self) -> str:
        """ "2.52× (23,700 against 9,410 tok/s; qwen3-0.6b in bfloat16, 256 at once, …)"."""
        return (
            f"{significant(self.gain)}× ({significant(self.continuous)} against {significant(self.static)} "
            f"tok/s; {subject(self.run)}, {self.together} at once, answers {self.answers})"
        )


@dataclass(frozen=True)
class ServedBeside:
    """The learner's two kinds of lengths, then the reference's."""

    own: tuple[Served, ...]
    other: Served

    def rows(self) -> list[dict[str, Any]]:
        """A line for each; only the gain can be compared."""
        return [
            {
                **whose(one.run),
                "answers": one.answers,
                "at once": one.together,
                "static (tok/s)": one.static,
                "continuous (tok/s)": one.continuous,
                "gain": f"{significant(one.gain)}×",
            }
            for one in (*self.own, self.other)
        ]

    def finding(self) -> str:
        """What continuous batching gains over static, here and there."""
        mine = "; ".join(one.said for one in self.own)
        return (
            f"Continuous over static batching, everybody there from the start. Yours: {mine}. Reference "
            f"({told(self.other.run)}): {self.other.said}. The models and the loads differ: hold the gains "
            "against each other, not the tokens per second."
        )


def served_beside(model: Model, lengths: LengthsRun) -> ServedBeside:
    """What `compare_lengths` measured, beside the reference's run of 256 requests at once."""
    rates = {
        kind: {policy: run.summary.output_tokens_per_s for policy, run in runs.items()}
        for kind, runs in lengths.runs.items()
    }
    run = keep_own(model.name, dtype_of(model), _served_rows(model, lengths.places, rates))
    own = tuple(
        Served(run, f"of {kind} lengths", lengths.places, found["continuous"], found["static"])
        for kind, found in rates.items()
    )
    return ServedBeside(own, _reference_served())


def _served_rows(model: Model, places: int, rates: Mapping[str, Mapping[str, float]]) -> list[Row]:
    what = f"{short(model.name)}, lesson's requests of {{}} lengths, {places} at once"
    return [
        Row("serving", what.format(kind), f"{OURS} {policy}", rate, RATE, True)
        for kind, found in rates.items()
        for policy, rate in found.items()
    ]


def _reference_served() -> Served:
    run = reference(SERVING)
    (work,) = run.result["workloads"].values()
    low, high = (int(end) for end in work[1].removeprefix("uniform:").split("-"))
    rates = [_rate(run.rows, policy) for policy in ("continuous", "static")]
    return Served(run, f"of {low:,} to {high:,} tokens", run.result["batch"], *rates)


def _rate(rows: Sequence[Row], policy: str) -> float:
    return next(row.value for row in rows if row.engine.startswith(f"{OURS} {policy}"))
