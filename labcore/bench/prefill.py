"""`labcore bench prefill`: a prompt processed at once, by its length, beside peers and the roof of products.

A run makes its cache, computes every position of the prompt and chooses the next token. Up to some hundred
tokens the weights are what takes the time; beyond, it is the products, and they have a ceiling of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from labcore import cache as caches
from labcore.bench import llama_cpp
from labcore.bench.interleave import Samples
from labcore.bench.peers import as_transformers
from labcore.bench.trust import AllSamples, best_rate, measure_trusted
from labcore.bench.usual import random_prompt
from labcore.config import ModelConfig
from labcore.errors import LabError
from labcore.model import Model
from labcore.perf import costs, memory, roof_measuring, roofs
from labcore.perf.dtypes import format_for
from labcore.perf.peaks import Machine, machine_from_roofs
from labcore.perf.timing import synchronize
from labcore.shares import is_trusted

OURS = "labcore"
PEERS = ("transformers", "llama.cpp")
LENGTHS = {"cpu": (128, 512, 2048), "cuda": (512, 4096)}  # tokens, as far as the context allows


@dataclass(frozen=True)
class Run:
    """One prompt: its seconds, and on a CUDA device the most memory that was taken, weights included."""

    seconds: float
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Row:
    """One engine at one length. Medians of whole runs; spread_s: their interquartile range.

    slower_than_ours: its time over labcore's. flops: of the products that a causal prompt cannot avoid;
    ceiling_tokens_per_s: what they allow at the best measured rate of products in this dtype. peak_bytes:
    None where it cannot be measured. planned_bytes: what the planner says that a prompt of this length takes.
    trusted: whether the share can be, with the ceiling measured again where it was exceeded.
    """

    engine: str
    tokens: int
    seconds: float
    spread_s: float
    tokens_per_s: float
    slower_than_ours: float
    flops: int
    ceiling_tokens_per_s: float
    ceiling_share: float
    peak_bytes: int | None
    planned_bytes: int
    trusted: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class PrefillResult:
    """What was measured, on what. matmul_flops: the roof, in FLOP/s, that rows are held against."""

    model: str
    dtype: str
    repeats: int
    matmul_flops: float
    rows: list[Row]
    samples_s: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


Contestant = Callable[[], Run]


def bench_prefill(
    model: Model,
    against: Sequence[str] = (),
    *,
    tokens: Sequence[int] | None = None,
    repeats: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> PrefillResult:
    """Interleaved prompts of labcore and the named peers, length by length (default: `lengths_for`).

    Raises LabError for a peer that cannot run here and for a prompt that exceeds the model's context.
    """
    lengths = _checked(tokens or lengths_for(model), model.config)
    progress("measuring the roofs")
    machine = machine_from_roofs(roofs(model.device), 0)
    found: dict[int, AllSamples] = {}
    with ExitStack() as stack:
        engines = _engines(model, against, max(lengths), stack)
        for length in lengths:
            prompt = random_prompt(model, length)
            contestants = {name: start(prompt) for name, start in engines.items()}
            progress(f"prompt of {length}")
            found[length], machine = _measured(model, length, contestants, machine, repeats, progress)
    rows = [row for length, samples in found.items() for row in _rows(model, length, samples, machine)]
    return PrefillResult(
        model=model.name,
        dtype=_name(model.dtype),
        repeats=repeats,
        matmul_flops=machine.flops(model.dtype),
        rows=rows,
        samples_s={
            f"{name}, {length}": [run.seconds for run in one.results]
            for length, samples in found.items()
            for name, one in samples.items()
        },
    )


_ROOF = "roof"


def _measured(
    model: Model, tokens: int, contestants: dict[str, Contestant], machine: Machine, repeats: int,
    progress: Callable[[str], None],
) -> tuple[AllSamples, Machine]:  # fmt: skip
    """The contestants' samples, and the machine with its rate of products, higher where that was exceeded."""
    name = format_for(_name(model.dtype), machine.rates)
    flops = prompt_flops(model.config, tokens, _name(model.dtype))
    samples = measure_trusted(
        contestants,
        lambda _: {_ROOF: roof_measuring.multiplying(model.device, name)},
        lambda samples: max(
            flops / one.median(_seconds) / best_rate(samples, _ROOF, machine.rates[name])
            for engine, one in samples.items()
            if engine != _ROOF
        ),
        repeats=repeats,
        progress=progress,
    )
    rate = best_rate(samples, _ROOF, machine.rates[name])
    samples.pop(_ROOF, None)
    return samples, replace(machine, rates={**machine.rates, name: rate})


def lengths_for(model: Model) -> tuple[int, ...]:
    """Prompts that are usual on the device, those that the model's context holds; else one that fills it."""
    room = model.config.max_position_embeddings
    usual = LENGTHS.get(model.device.type, LENGTHS["cpu"])
    return tuple(length for length in usual if length <= room) or (room,)


def _checked(lengths: Sequence[int], config: ModelConfig) -> Sequence[int]:
    longest, room = max(lengths), config.max_position_embeddings
    if longest > room or min(lengths) < 1:
        raise LabError(
            f"Prompts of {', '.join(map(str, lengths))} tokens were asked for, and the model's context holds "
            f"1 to {room}; take lengths in between, or another model."
        )
    return lengths


def prompt_flops(config: ModelConfig, tokens: int, dtype: object = "float16") -> int:
    """FLOPs of the products that a prompt cannot avoid: `step_costs` without what the causal mask hides."""
    step = costs.step_costs(config, 1, tokens, tokens, dtype=dtype)
    attention = ("attention_scores", "attention_values")
    rectangle = sum(op.flops for op in step.operations if op.name in attention)  # tokens * tokens pairs
    return step.flops - rectangle + rectangle * (tokens + 1) // (2 * tokens)


def planned_bytes(config: ModelConfig, tokens: int, dtype: str, machine: Machine) -> int:
    """What the planner says that the weights and one prompt of this length take, all at once."""
    return memory.plan(config, machine, batch=1, context=tokens, dtype=dtype, step_tokens=tokens).total


# Contestants: from a prompt to what runs it


def _engines(
    model: Model, against: Sequence[str], longest: int, stack: ExitStack
) -> dict[str, Callable[[list[int]], Contestant]]:
    if unknown := [name for name in against if name not in PEERS]:
        raise LabError(f"There is no peer {unknown[0]!r} here; choose from {', '.join(PEERS)}.")
    found: dict[str, Callable[[list[int]], Contestant]] = {OURS: lambda prompt: ours(model, prompt)}
    if "transformers" in against:
        peer = as_transformers(model)
        found["transformers"] = lambda prompt: _transformers(peer, model, prompt)
    if "llama.cpp" in against:
        if model.device.type != "cpu":
            raise LabError("llama.cpp is measured on a CPU only; leave it out, or add --device cpu.")
        file = stack.enter_context(llama_cpp.opened(model, longest + 8, ("f32",)))["f32"]
        found["llama.cpp F32"] = lambda prompt: lambda: Run(file.prefill(prompt))
    return found


def ours(model: Model, prompt: list[int]) -> Contestant:
    """labcore: a contiguous cache, and one position of logits."""
    ids = torch.tensor([prompt], device=model.device)

    @torch.inference_mode()
    def compute() -> int:
        cache = caches.create(
            "contiguous", model.config, capacity=len(prompt), device=model.device, dtype=model.dtype
        )
        return int(model.transformer(ids, cache, logits_to_keep=1)[0, -1].argmax())

    return lambda: _timed(compute, model)


def _transformers(peer: Any, model: Model, prompt: list[int]) -> Contestant:
    """Its default cache and attention, on the same weights."""
    ids = torch.tensor([prompt], device=model.device)

    @torch.inference_mode()
    def compute() -> int:
        return int(peer(ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

    return lambda: _timed(compute, model)


def _timed(compute: Callable[[], int], model: Model) -> Run:
    """Reading the token waits for the device. Memory: the run's own beside one engine's weights, since the
    other engines' weights lie on the device too."""
    measurable = model.device.type == "cuda"
    synchronize(model.device)
    before = torch.cuda.memory_allocated(model.device) if measurable else 0
    if measurable:
        torch.cuda.reset_peak_memory_stats(model.device)
    start = time.perf_counter()
    compute()
    seconds = time.perf_counter() - start
    if not measurable:
        return Run(seconds)
    return Run(seconds, torch.cuda.max_memory_allocated(model.device) - before + model.weight_bytes)


def _rows(model: Model, tokens: int, samples: dict[str, Samples[Run]], machine: Machine) -> list[Row]:
    dtype = _name(model.dtype)
    flops = prompt_flops(model.config, tokens, dtype)
    ceiling = tokens * machine.flops(dtype) / flops
    planned = planned_bytes(model.config, tokens, dtype, machine)
    base = samples[OURS].median(_seconds)
    return [
        _row(name, tokens, one, base=base, flops=flops, ceiling=ceiling, planned=planned)
        for name, one in samples.items()
    ]


def _row(
    name: str, tokens: int, found: Samples[Run], *, base: float, flops: int, ceiling: float, planned: int
) -> Row:
    seconds = found.median(_seconds)
    share = tokens / seconds / ceiling
    peaks = [run.peak_bytes for run in found.results if run.peak_bytes is not None]
    return Row(
        engine=name,
        tokens=tokens,
        seconds=seconds,
        spread_s=found.spread(_seconds),
        tokens_per_s=tokens / seconds,
        slower_than_ours=seconds / base,
        flops=flops,
        ceiling_tokens_per_s=ceiling,
        ceiling_share=share,
        peak_bytes=max(peaks, default=None),
        planned_bytes=planned,
        trusted=is_trusted(share),
    )


def _seconds(run: Run) -> float:
    return run.seconds


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
