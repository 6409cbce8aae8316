"""`labcore bench predict`: what costs and roofs foretell of a step, beside the step as it is.

The roofs are measured between the steps, in the same minutes: on a machine that others use too, the memory's
bandwidth changes by the minute, and a prediction from yesterday's roof would be judged by today's weather.
Both roofs are taken at their median, as the step is. Only the short products with few rows are taken at their
best: what disturbs them most (a thread that waits for its core) takes longer than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from labcore import cache as caches
from labcore.bench.cache import filled, step_of
from labcore.bench.interleave import Samples
from labcore.bench.overhead import engine_overhead
from labcore.bench.trust import AllSamples, measure_trusted
from labcore.cache import KVCache
from labcore.model import Model
from labcore.perf import costs, roof_measuring
from labcore.perf.balance import utilisation
from labcore.perf.dtypes import canonical
from labcore.perf.peaks import Machine
from labcore.perf.predict import StepTime, step_time
from labcore.perf.timing import seconds_of
from labcore.shares import is_trusted

WARMUP = 2


@dataclass(frozen=True)
class Row:
    """One step. Seconds; measured and spread: median and interquartile range of its runs.

    expected, low, high: predicted, operations one after another, and the bracket around it. The terms
    (compute, memory, overhead) are the prediction's. error: expected over measured, minus 1. bandwidth,
    flops: the roofs of those minutes, in bytes/s and FLOP/s; mbu, mfu: the shares of them that it reached;
    trusted: whether both can be, with the roofs measured again where one was exceeded.
    """

    phase: str
    batch: int
    context: int
    measured_s: float
    spread_s: float
    expected_s: float
    low_s: float
    high_s: float
    compute_s: float
    memory_s: float
    overhead_s: float
    error: float
    bandwidth: float
    flops: float
    mbu: float
    mfu: float
    trusted: bool = True


@dataclass(frozen=True)
class PredictResult:
    """What was measured, on what. overhead_s: of a decode step and of a prefill, as measured."""

    model: str
    dtype: str
    layers: int
    repeats: int
    decode_overhead_s: float
    prefill_overhead_s: float
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    def within(self, tolerance: float = 0.25) -> list[Row]:
        """Rows whose expected time is that near to the measured one."""
        return [row for row in self.rows if abs(row.error) <= tolerance]


def bench_predict(
    model: Model,
    *,
    contexts: Sequence[int] = (64, 512, 2048),
    batches: Sequence[int] = (1, 8),
    prompts: Sequence[int] = (512,),
    repeats: int = 9,
    progress: Callable[[str], None] = lambda _: None,
) -> PredictResult:
    """Every decode step and every prompt, predicted and measured."""
    bench = _Bench(model, repeats, progress)
    rows = [bench.decode(batch, context) for batch in batches for context in contexts]
    rows += [bench.prefill(prompt) for prompt in prompts]
    return PredictResult(
        model=model.name,
        dtype=bench.dtype,
        layers=model.config.num_hidden_layers,
        repeats=repeats,
        decode_overhead_s=bench.overhead(new=1, batch=1),
        prefill_overhead_s=bench.overhead(new=2, batch=1),
        rows=rows,
    )


class _Bench:
    """One model's instruments: its buffer to read, its products, its overheads by phase and batch."""

    def __init__(self, model: Model, repeats: int, progress: Callable[[str], None]) -> None:
        self.model, self.repeats, self.progress = model, repeats, progress
        self.device, self.dtype = model.device, canonical(model.dtype)
        self._products: dict[int, Callable[[], object]] = {}
        size = roof_measuring.working_set(self.device)
        self.buffer = torch.ones(size // 4, dtype=torch.float32, device=self.device)
        self._look_for_products()
        self._overheads: dict[tuple[int, int], float] = {}

    def _look_for_products(self) -> None:
        """The shape that does best now, and the ways to multiply few rows anew."""
        self.progress("looking for the best matrix product")
        _, self.shape = roof_measuring.scan(self.device, self.dtype)
        self.product = roof_measuring.product(self.device, self.dtype, *self.shape)
        self._products.clear()

    def overhead(self, new: int, batch: int) -> float:
        """Seconds of a step that computes and reads next to nothing."""
        key = (new, batch)
        if key not in self._overheads:
            self._overheads[key] = engine_overhead(self.model, batch=batch, new_tokens=new)
        return self._overheads[key]

    def decode(self, batch: int, context: int) -> Row:
        """One step of `batch` sequences that hold `context` positions once it is done."""
        self.progress(f"decode, batch {batch}, context {context}")
        room = context + 2 * (WARMUP + self.repeats)
        cache = filled(self.model, "contiguous", context - 1, batch, room)
        step = step_of(self.model, cache)

        def run() -> float:
            cache.truncate(context - 1)
            return step()

        return self._row("decode", batch, context, 1, run)

    def prefill(self, prompt: int) -> Row:
        """A prompt of one sequence, at once."""
        self.progress(f"prefill of {prompt}")
        cache = _empty(self.model, prompt)
        tokens = torch.zeros(1, prompt, dtype=torch.int64, device=self.device)

        @torch.inference_mode()
        def run() -> float:
            cache.reset()
            return seconds_of(lambda: self.model.transformer(tokens, cache, logits_to_keep=1), self.device)

        return self._row("prefill", 1, prompt, prompt, run)

    def _row(self, phase: str, batch: int, context: int, new: int, run: Callable[[], float]) -> Row:
        few = self._few_rows(batch, new)
        step = costs.step_costs(self.model.config, batch, context, new, dtype=self.dtype)
        overhead = self.overhead(min(new, 2), batch)

        def row(samples: AllSamples) -> Row:
            machine = self._machine(samples, few)
            expected = step_time(step, machine, overhead_s=overhead)
            return _told(phase, batch, context, samples, step, expected, machine)

        def anew(_: AllSamples) -> dict[str, Callable[[], float]]:
            self._look_for_products()
            return self._roofs(few)

        samples = measure_trusted(
            {"step": run, **self._roofs(few)}, anew, lambda samples: _highest_share(row(samples)),
            repeats=self.repeats, warmup=WARMUP,
        )  # fmt: skip
        return row(samples)

    def _roofs(self, few: list[int]) -> dict[str, Callable[[], float]]:
        """What measures each roof, in turns with the step; few: numbers of rows."""
        product = self.product
        roofs: dict[str, Callable[[], float]] = {
            "read": lambda: seconds_of(lambda: self.buffer.sum(), self.device),
            "product": lambda: seconds_of(product, self.device),
        }
        return roofs | {f"{rows} rows": partial(self._rate, rows) for rows in few}

    def _machine(self, samples: AllSamples, few: list[int]) -> Machine:
        """The roofs as these samples have them."""
        return Machine(
            "here",
            memory_bytes=0,
            bandwidth=self.buffer.nbytes / samples["read"].median(float),
            rates={self.dtype: self._flops(self.shape) / samples["product"].median(float)},
            measured=True,
            by_rows={self.dtype: tuple((rows, max(samples[f"{rows} rows"].results)) for rows in few)},
        )

    def _few_rows(self, batch: int, new: int) -> list[int]:
        """Rows of this step's products as far as few rows are slow: of its linear layers, its head, and of
        attention, where the queries of a group read the same keys."""
        rows = {batch * new, batch, self.model.config.queries_per_kv_head * new}
        return sorted(n for n in rows if n < roof_measuring.ROWS[-1]) or [roof_measuring.ROWS[-1]]

    def _rate(self, rows: int) -> float:
        """FLOP/s of products with so many rows, some milliseconds of them."""
        inner, columns = roof_measuring.few_rows_shape(self.device)
        if rows not in self._products:
            ways = roof_measuring.few_rows_products(self.device, self.dtype, rows, inner, columns)
            self._products[rows] = min(ways, key=lambda way: roof_measuring.best_seconds(way, self.device, 3))
        run = self._products[rows]
        work = self._flops((rows, inner, columns))
        calls = max(1, round(1e8 / work))

        def several() -> None:
            for _ in range(calls):
                run()

        return calls * work / seconds_of(several, self.device)

    @staticmethod
    def _flops(shape: tuple[int, int, int]) -> float:
        return 2.0 * shape[0] * shape[1] * shape[2]


def _told(
    phase: str, batch: int, context: int, samples: dict[str, Samples[float]], step: costs.StepCosts,
    expected: StepTime, machine: Machine,
) -> Row:  # fmt: skip
    measured = samples["step"].median(float)
    reached = utilisation(machine, measured, bytes_moved=step.bytes, flops=step.flops, dtype=step.dtype)
    return Row(
        phase=phase,
        batch=batch,
        context=context,
        measured_s=measured,
        spread_s=samples["step"].spread(float),
        expected_s=expected.expected_s,
        low_s=expected.low_s,
        high_s=expected.high_s,
        compute_s=expected.compute_s,
        memory_s=expected.memory_s,
        overhead_s=expected.overhead_s,
        error=expected.expected_s / measured - 1,
        bandwidth=machine.bandwidth,
        flops=machine.flops(step.dtype),
        mbu=reached.mbu,
        mfu=reached.mfu,
        trusted=is_trusted(max(reached.mbu, reached.mfu)),
    )


def _highest_share(row: Row) -> float:
    """Of memory, of arithmetic, and of what both together allow."""
    return max(row.mbu, row.mfu, max(row.compute_s, row.memory_s) / row.measured_s)


def _empty(model: Model, room: int) -> KVCache:
    return caches.create("contiguous", model.config, capacity=room, device=model.device, dtype=model.dtype)
