"""`labcore bench kernels`: every fast kernel beside its plain reference and what the machine allows.

A sample is so many calls that it lasts some milliseconds, on a GPU recorded as one CUDA graph, so that
neither the clock nor launches are what is measured. Operands are taken in turn from sets that outweigh the
caches, as a step finds its weights; what a step would find in a cache (activations) is measured cold too.
The memory is read between the kernels: what others leave of its bandwidth changes by the minute.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from labcore.bench.interleave import Samples
from labcore.bench.kernel_case import Bench, Call, Case, LeftOut, Sizes, difference
from labcore.bench.kernel_cases import operations
from labcore.bench.kernel_cases_fused import one_token
from labcore.bench.kernel_cases_weights import products
from labcore.bench.trust import AllSamples, best_rate, measure_trusted
from labcore.generation.cuda_graph import capture
from labcore.model import Model
from labcore.perf import roof_measuring, roofs
from labcore.perf.dtypes import format_for
from labcore.perf.peaks import Machine, machine_from_roofs
from labcore.perf.timing import seconds_of
from labcore.shares import is_trusted

SIZES = {"cpu": Sizes(), "cuda": Sizes(prompt=2048, context=2048, batch=32)}
SAMPLE_S = 5e-3  # that a sample lasts at least
MOST_CALLS = 2000


@dataclass(frozen=True)
class Row:
    """One kernel on one shape. Seconds of a call, medians; spread_s: interquartile range.

    path: what computed. speed_up: the reference's time over the kernel's. moved_bytes, flops: what a call
    cannot avoid; bandwidth: of the memory in those minutes, in bytes/s; ceiling_s: what they take at that
    and at the measured roof of products, the longer of the two; bound: which that is; ceiling_share: of the
    kernel's time. difference: the largest deviation of its result from the reference's, over the largest
    number in it. trusted: whether the share can be, with the roofs measured again where it was exceeded.
    """

    kernel: str
    shape: str
    path: str
    seconds: float
    spread_s: float
    reference_s: float
    speed_up: float
    moved_bytes: int
    flops: int
    bandwidth: float
    ceiling_s: float
    bound: str
    ceiling_share: float
    difference: float
    trusted: bool


@dataclass(frozen=True)
class KernelsResult:
    """What was measured, on what, and what it is held against: bandwidth, the median of all rows, in bytes/s;
    flops, the roofs of products in FLOP/s by number format."""

    model: str
    dtype: str
    sizes: Sizes
    repeats: int
    bandwidth: float
    flops: dict[str, float]
    rows: list[Row]
    left_out: list[LeftOut]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


def bench_kernels(
    model: Model,
    sizes: Sizes | None = None,
    *,
    repeats: int = 9,
    progress: Callable[[str], None] = lambda _: None,
) -> KernelsResult:
    """Every kernel that runs where the model lies, on its shapes; the others are told with the reason."""
    sizes = sizes or SIZES["cuda" if model.device.type == "cuda" else "cpu"]
    progress("measuring the roofs")
    machine, memory = machine_from_roofs(roofs(model.device), 0), Memory(model.device)
    bench = Bench(model, sizes)
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    with torch.inference_mode():
        for case in _cases(bench):
            if isinstance(case, LeftOut):
                left_out.append(case)
                continue
            progress(f"{case.kernel}, {case.shape}")
            row, machine = measured(case, machine, memory, repeats)
            rows.append(row)
    return KernelsResult(
        model=model.name,
        dtype=bench.dtype,
        sizes=sizes,
        repeats=repeats,
        bandwidth=statistics.median(row.bandwidth for row in rows),
        flops=dict(machine.rates),
        rows=rows,
        left_out=left_out,
    )


def _cases(bench: Bench) -> Iterator[Case | LeftOut]:
    """One at a time: each goes before the next one takes memory."""
    yield from operations(bench)
    yield from products(bench)
    yield from one_token(bench)


class Memory:
    """The device's memory, to be read or copied again and again in whichever way is the faster one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        buffer = torch.ones(roof_measuring.working_set(device) // 4, device=device)
        half, other = buffer.chunk(2)
        self._bytes = buffer.nbytes  # either way: a copy reads one half and writes the other
        ways: tuple[Callable[[], object], ...] = (buffer.sum, lambda: half.copy_(other))
        self._way = min(ways, key=lambda way: roof_measuring.best_seconds(way, device))

    def rate(self) -> float:
        """Bytes/s just now."""
        return self._bytes / seconds_of(self._way, self.device)


def measured(case: Case, machine: Machine, memory: Memory, repeats: int) -> tuple[Row, Machine]:
    """The kernel, its reference and the memory, in turns; results are compared at the first call.

    Also the machine, with higher rates of products where the kernel or its reference exceeded them.
    """
    deviation = difference(case.fast[0](), case.plain[0]())
    device = memory.device
    on_gpu = device.type == "cuda"
    contestants = {
        "fast": sampler(case.fast, device, recorded=on_gpu),
        "plain": sampler(case.plain, device, recorded=on_gpu and case.recordable),
        "memory": memory.rate,
    }
    formats = sorted({format_for(name, machine.rates) for name in case.computes}) if case.flops else []

    def raised(samples: AllSamples) -> Machine:
        rates = {name: best_rate(samples, name, machine.rates[name]) for name in formats}
        return replace(machine, rates={**machine.rates, **rates})

    def share(samples: AllSamples) -> float:
        least, _ = ceiling(case, samples["memory"].median(float), raised(samples))
        return least / min(samples[name].median(float) for name in ("fast", "plain"))

    def roofs_of(_: AllSamples) -> dict[str, Callable[[], float]]:
        return {name: roof_measuring.multiplying(device, name) for name in formats}

    samples = measure_trusted(contestants, roofs_of, share, repeats=repeats)
    return _row(case, samples, deviation, raised(samples)), raised(samples)


def ceiling(case: Case, bandwidth: float, machine: Machine) -> tuple[float, str]:
    """(seconds that a call takes at least, "memory" or "compute").

    Of several formats that it may multiply in, at the rate of the fastest.
    """
    moving = case.moved / bandwidth
    computing = case.flops / max(map(machine.flops, case.computes)) if case.flops else 0.0
    return max(moving, computing), "compute" if computing > moving else "memory"


def sampler(calls: Sequence[Call], device: torch.device, *, recorded: bool) -> Callable[[], float]:
    """What measures: mean seconds of a call, over as many as last SAMPLE_S, operands in turn.

    recorded: replay them as one CUDA graph.
    """
    calls[0]()  # what is compiled, chosen or paged in at the first call
    count = calls_for(seconds_of(calls[0], device), len(calls))
    turn = itertools.cycle(calls)

    def several() -> Any:
        for _ in range(count - 1):
            next(turn)()
        return next(turn)()

    run = capture(several, device)[0] if recorded else several
    return lambda: seconds_of(run, device) / count


def calls_for(seconds: float, sets: int) -> int:
    """Calls of so many seconds that a sample is made of: whole rounds of the sets of operands, unless a
    single round would take longer than ten samples should."""
    wanted = min(MOST_CALLS, max(1, round(SAMPLE_S / max(seconds, 1e-9))))
    rounds = -(-wanted // sets) * sets
    return rounds if rounds * seconds < 10 * SAMPLE_S else wanted


def _row(case: Case, samples: dict[str, Samples[float]], deviation: float, machine: Machine) -> Row:
    seconds, reference, bandwidth = (samples[name].median(float) for name in ("fast", "plain", "memory"))
    least, bound = ceiling(case, bandwidth, machine)
    return Row(
        kernel=case.kernel,
        shape=case.shape,
        path=case.path,
        seconds=seconds,
        spread_s=samples["fast"].spread(float),
        reference_s=reference,
        speed_up=reference / seconds,
        moved_bytes=case.moved,
        flops=case.flops,
        bandwidth=bandwidth,
        ceiling_s=least,
        bound=bound,
        ceiling_share=least / seconds,
        difference=deviation,
        trusted=is_trusted(least / seconds),
    )
