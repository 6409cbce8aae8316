"""`labcore bench serving`: one list of requests through policies of our engine, and through peers.

All requests are there at the start, so that what is measured is throughput. Contestants run in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

import labcore
from labcore.bench import llama_server
from labcore.bench.ceiling import Ceiling
from labcore.bench.interleave import Samples
from labcore.bench.peers import as_transformers
from labcore.bench.trust import AllSamples, best_rate, measure_trusted
from labcore.errors import LabError
from labcore.model import Model
from labcore.perf import roof_measuring, roofs
from labcore.perf.costs import kv_bytes_per_token
from labcore.perf.machine import available_memory
from labcore.serving import LLMEngine, Static
from labcore.serving.events import StepEvent
from labcore.serving.offline import requests_of
from labcore.serving.simulated.costs import MEMORY_SHARE
from labcore.serving.workload import Workload, make_workload
from labcore.shares import is_trusted

PEERS = ("transformers", "llama.cpp")
CPU_BUDGET, GPU_BUDGET = 512, 8192  # tokens of a step: what keeps the device busy
BLOCK = 16  # positions
# name: (prompt, output) lengths. The first is what servers are compared on; exponential lengths are what
# static batching suffers from, constant ones the control.
WORKLOADS = {
    "uniform": ("uniform:64-256", "uniform:64-256"),
    "exponential": ("uniform:64-256", "exp:96:1-512"),
    "constant": ("fixed:128", "fixed:96"),
    "long": ("uniform:100-1024", "uniform:100-1024"),
}
USUAL = ("uniform", "exponential", "constant")


class Served(NamedTuple):
    """One run. scheduling: median share of a step beside the model's pass. events: of our engine."""

    seconds: float
    output_tokens: int
    scheduling: float | None = None
    events: tuple[StepEvent, ...] = ()


@dataclass(frozen=True)
class Row:
    """One contestant on one workload: medians of whole runs. over: its time over continuous batching's.
    roofline: share of its time that its steps would take at least, by `Ceiling`; trusted: whether that can
    be, with the roofs measured again where it was exceeded."""

    workload: str
    engine: str
    seconds: float
    spread_s: float
    output_tokens: int
    tokens_per_s: float
    over: float
    scheduling: float | None
    roofline: float | None
    trusted: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Contestant = Callable[[], Served]
OURS = "labcore continuous"


def bench_serving(
    source: str,
    against: Sequence[str] = (),
    *,
    workloads: Sequence[str] = USUAL,
    requests: int = 64,
    batch: int = 16,
    token_budget: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Plain data of one interleaved run. Raises LabError for peers or workloads that there are not."""
    _check(against, workloads)
    model = labcore.load(source, device=device, dtype=dtype)
    budget = token_budget or (GPU_BUDGET if model.device.type == "cuda" else CPU_BUDGET)
    progress("measuring the roofs")
    ceiling = Ceiling(model.config, roofs(model.device), str(model.dtype).removeprefix("torch."))
    samples: dict[str, AllSamples] = {}
    for name in workloads:
        prompt, output = WORKLOADS[name]
        load = make_workload(
            requests, prompt=prompt, output=output, vocab_size=model.config.vocab_size, seed=seed
        )
        with ExitStack() as stack:
            peers = against if name == workloads[0] else ()
            contestants = _contestants(model, load, batch, budget, peers, stack)
            progress(name)
            samples[name], ceiling = _measured(model, contestants, ceiling, repeats, progress)
    rows = [
        _row(name, engine, one, by_engine[OURS].median(_seconds), ceiling)
        for name, by_engine in samples.items()
        for engine, one in by_engine.items()
    ]
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "requests": requests,
        "batch": batch,
        "token_budget": budget,
        "bandwidth": ceiling.bandwidth,
        "flops": ceiling.flops,
        "repeats": repeats,
        "seed": seed,
        "workloads": {name: WORKLOADS[name] for name in workloads},
        "rows": [row.to_dict() for row in rows],
    }


_MEMORY, _PRODUCT = "memory", "product"


def _measured(
    model: Model, contestants: dict[str, Contestant], ceiling: Ceiling, repeats: int,
    progress: Callable[[str], None],
) -> tuple[AllSamples, Ceiling]:  # fmt: skip
    """The contestants' samples, and the ceiling, raised where it was exceeded."""

    def raised(samples: AllSamples) -> Ceiling:
        return ceiling.raised(
            best_rate(samples, _MEMORY, ceiling.bandwidth), best_rate(samples, _PRODUCT, ceiling.flops)
        )

    def share(samples: AllSamples) -> float:
        shares = [_roofline(samples[name], raised(samples)) for name in contestants]
        return max(filter(None, shares), default=0.0)

    def roofs_of(_: AllSamples) -> dict[str, Callable[[], float]]:
        return {
            _MEMORY: roof_measuring.reading(model.device, ceiling.weights, ceiling.dtype),
            _PRODUCT: roof_measuring.multiplying(model.device, ceiling.format),
        }

    samples = measure_trusted(contestants, roofs_of, share, repeats=repeats, progress=progress)
    return {name: samples[name] for name in contestants}, raised(samples)


def _roofline(found: Samples[Served], ceiling: Ceiling) -> float | None:
    """Share of the median time that the steps would take at least; None for engines that tell no steps."""
    events = found.results[0].events
    return sum(map(ceiling.seconds, events)) / found.median(_seconds) if events else None


def _row(workload: str, engine: str, found: Samples[Served], base: float, ceiling: Ceiling) -> Row:
    first, seconds = found.results[0], found.median(_seconds)
    shares = [one.scheduling for one in found.results if one.scheduling is not None]
    roofline = _roofline(found, ceiling)
    return Row(
        workload=workload,
        engine=engine,
        seconds=seconds,
        spread_s=found.spread(_seconds),
        output_tokens=first.output_tokens,
        tokens_per_s=first.output_tokens / seconds,
        over=seconds / base,
        scheduling=statistics.median(shares) if shares else None,
        roofline=roofline,
        trusted=is_trusted(roofline),
    )


def _seconds(one: Served) -> float:
    return one.seconds


def _contestants(
    model: Model, load: Workload, batch: int, budget: int, against: Sequence[str], stack: ExitStack
) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {
        OURS: lambda: ours(model, load, "continuous", batch, budget),
        f"labcore static, batches of {batch}": lambda: ours(model, load, Static(batch), batch, budget),
    }
    if "transformers" in against:
        peer = as_transformers(model)
        found[f"transformers, batches of {batch}"] = lambda: _transformers(peer, model, load, batch)
    if "llama.cpp" in against:
        if model.device.type != "cpu":
            raise LabError("llama.cpp's server is measured on a CPU only; leave it out, or add --device cpu.")
        longest = max(one.prompt_tokens + one.output_tokens for one in load) + 8
        url = stack.enter_context(llama_server.running(model, batch, longest))
        found[f"llama.cpp server, {batch} slots"] = lambda: Served(*llama_server.serve(url, load))
    return found


def ours(model: Model, load: Workload, policy: Any, batch: int, budget: int = CPU_BUDGET) -> Served:
    """Our engine, greedy, nothing shared between requests; on a GPU its steps overlap where they can."""
    wanted = sum(-(-(one.prompt_tokens + one.output_tokens) // BLOCK) for one in load)
    block_bytes = BLOCK * kv_bytes_per_token(model.config, model.dtype)
    engine = LLMEngine(
        model,
        policy,
        num_blocks=min(wanted, int(MEMORY_SHARE * available_memory(model.device)) // block_bytes),
        block_size=BLOCK,
        max_num_seqs=batch,
        token_budget=budget,
        max_model_len=max(one.prompt_tokens + one.output_tokens for one in load) + 1,
        prefix_caching=False,
        overlap="auto",
    )
    engine.warm_up()
    for request in requests_of(load):
        engine.add(request)
    with _timed(model) as passes:
        start = time.perf_counter()
        while engine.has_work:
            engine.step()
        seconds = time.perf_counter() - start
    events = tuple(engine.events)
    share = None
    if model.device.type == "cpu":  # elsewhere a pass is launched and not waited for, or replayed
        share = statistics.median(
            1 - busy / event.seconds for busy, event in zip(passes, events, strict=True)
        )
    return Served(seconds, engine.stats.output_tokens, share, events)


@contextmanager
def _timed(model: Model) -> Iterator[list[float]]:
    """Seconds of every pass of the model, as they come."""
    seconds: list[float] = []

    def begin(*_: Any) -> None:
        seconds.append(-time.perf_counter())

    def end(*_: Any) -> None:
        seconds[-1] += time.perf_counter()

    hooks = [model.transformer.register_forward_pre_hook(begin), model.transformer.register_forward_hook(end)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _transformers(peer: Any, model: Model, load: Workload, batch: int) -> Served:
    """Its batched generate: prompts padded on the left, every batch as long as its longest answer."""
    start = time.perf_counter()
    for begin in range(0, len(load), batch):
        part = load[begin : begin + batch]
        width = max(one.prompt_tokens for one in part)
        ids = torch.zeros(len(part), width, dtype=torch.int64, device=model.device)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(part):
            ids[row, width - one.prompt_tokens :] = torch.tensor(one.prompt)
            mask[row, width - one.prompt_tokens :] = 1
        longest = max(one.output_tokens for one in part)
        with torch.inference_mode():
            out = peer.generate(
                ids, attention_mask=mask, max_new_tokens=longest, min_new_tokens=longest, do_sample=False,
                pad_token_id=0, use_cache=True,
            )  # fmt: skip
        out.cpu()
    return Served(time.perf_counter() - start, sum(one.output_tokens for one in load))


def _check(against: Sequence[str], workloads: Sequence[str]) -> None:
    for given, known, what in ((against, PEERS, "peer"), (workloads, tuple(WORKLOADS), "workload")):
        if unknown := [name for name in given if name not in known]:
            raise LabError(f"There is no {what} {unknown[0]!r} here; choose from {', '.join(known)}.")
