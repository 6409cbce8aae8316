"""`labcore bench quant`: what quantized weights do to prefill and decode, beside full precision and peers.

One call of a contestant times a prompt's prefill and a short decode; calls are interleaved, so that whatever
disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import labcore
from labcore import cache as caches
from labcore.bench import llama_cpp
from labcore.bench.interleave import Samples
from labcore.bench.peers import as_transformers
from labcore.bench.trust import AllSamples, best_rate, measure_trusted
from labcore.bench.usual import random_prompt
from labcore.errors import LabError
from labcore.generation.loop import decode_step, prefill
from labcore.generation.sampling import best
from labcore.generation.steps import StepKind, decode_with, room_for, warm_up
from labcore.model import Model
from labcore.perf import roofs
from labcore.perf.roof_measuring import reading
from labcore.perf.timing import synchronize
from labcore.shares import is_trusted

PEERS = ("transformers", "llama.cpp")
SHORT = 32  # tokens in the cache when decoding begins


class Times(NamedTuple):
    """One call: seconds of the prefill, and per step of decode at each batch."""

    prefill_s: float
    decode_s: dict[int, float]


@dataclass(frozen=True)
class Row:
    """One contestant at one batch. Medians; ceiling: tokens/s that its bytes allow at the read bandwidth.

    Where that is exceeded, the bandwidth of reading as many bytes is measured beside the contestants.
    trusted: whether the share of it can be.
    """

    engine: str
    batch: int
    weight_bytes: int
    decode_tokens_per_s: float
    decode_spread_s: float
    prefill_tokens_per_s: float | None
    ceiling_tokens_per_s: float
    ceiling_share: float
    times_full_precision: float
    trusted: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """A ratio that is hoped for, and what was measured."""

    what: str
    wanted: float
    measured: float

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.wanted


Contestant = Callable[[], Times]


def bench_quant(
    source: str,
    recipes: Sequence[str],
    against: Sequence[str] = (),
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 48,
    batches: Sequence[int] = (1, 8),
    repeats: int = 7,
    device: str = "auto",
    dtype: str = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Plain data of one interleaved run. Raises LabError for peers or recipes that cannot run."""
    if unknown := [name for name in against if name not in PEERS]:
        raise LabError(f"There is no peer {unknown[0]!r} here; choose from {', '.join(PEERS)}.")
    plain = labcore.load(source, device=device, dtype=dtype)
    prompt = random_prompt(plain, prompt_tokens)
    full = f"labcore {str(plain.dtype).removeprefix('torch.')}"
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {full: ours(plain, prompt, new_tokens, batches)}
        sizes = {full: plain.weight_bytes}
        for recipe in recipes:
            progress(f"quantizing: {recipe}")
            model = labcore.load(source, device=device, dtype=dtype)
            report = labcore.quantize(model, recipe, progress=False)
            contestants[f"labcore {report.recipe}"] = ours(model, prompt, new_tokens, batches)
            sizes[f"labcore {report.recipe}"] = model.weight_bytes
        for name, (contestant, size) in _peers(plain, against, prompt, new_tokens, stack).items():
            contestants[name], sizes[name] = contestant, size
        progress("measuring the roofs")
        bandwidth = roofs(plain.device).read_bandwidth
        samples = _measured(contestants, sizes, plain, bandwidth, repeats, progress)
    bandwidths = {name: best_rate(samples, _roof(size), bandwidth) for name, size in sizes.items()}
    samples = {name: samples[name] for name in contestants}
    rows = _rows(samples, sizes, full, prompt_tokens, bandwidths)
    return {
        "model": plain.name,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "read_bandwidth": bandwidth,
        "rows": [row.to_dict() for row in rows],
        "targets": [asdict(target) | {"met": target.met} for target in targets(rows, full)],
        "samples": {name: [one._asdict() for one in found.results] for name, found in samples.items()},
    }


def _measured(
    contestants: dict[str, Contestant], sizes: dict[str, int], plain: Model, bandwidth: float, repeats: int,
    progress: Callable[[str], None],
) -> AllSamples:  # fmt: skip
    """The contestants' samples, and those of roofs where somebody exceeded what its bytes allow."""

    def share(samples: AllSamples, name: str) -> float:
        steps = [times.decode_s for times in samples[name].results]
        shortest = min(statistics.median(one[batch] for one in steps) for batch in steps[0])
        return sizes[name] / best_rate(samples, _roof(sizes[name]), bandwidth) / shortest

    def roofs_of(samples: AllSamples) -> dict[str, Callable[[], float]]:
        dtype = str(plain.dtype).removeprefix("torch.")
        read = {sizes[name] for name in contestants if not is_trusted(share(samples, name))}
        return {_roof(size): reading(plain.device, size, dtype) for size in sorted(read)}

    return measure_trusted(
        contestants, roofs_of, lambda samples: max(share(samples, name) for name in contestants),
        repeats=repeats, progress=progress,
    )  # fmt: skip


def _roof(size: int) -> str:
    return f"reading {size} bytes"


def ours(model: Model, prompt: list[int], new_tokens: int, batches: Sequence[int]) -> Contestant:
    """labcore: greedy, a contiguous cache."""

    @torch.inference_mode()
    def run() -> Times:
        ids = torch.tensor([prompt], device=model.device)
        return Times(
            _prefill(model, ids), {batch: _decode(model, ids, batch, new_tokens) for batch in batches}
        )

    return run


def _prefill(model: Model, ids: Tensor) -> float:
    cache = caches.create(
        "contiguous", model.config, capacity=ids.shape[1], device=model.device, dtype=model.dtype
    )
    synchronize(model.device)
    start = time.perf_counter()
    int(model.transformer(ids, cache, logits_to_keep=1)[:, -1].argmax())
    return time.perf_counter() - start


def _decode(model: Model, ids: Tensor, batch: int, new_tokens: int) -> float:
    """Seconds of a step, the way that decodes fastest here: on a GPU as a recorded graph."""
    kind: StepKind = "graph" if model.device.type == "cuda" else "eager"
    warm_up(model, kind, batch, SHORT + new_tokens + 1)  # a graph of another batch has let go of this one's
    cache = caches.create(
        "contiguous", model.config, batch_size=batch, capacity=room_for(kind, SHORT + new_tokens + 1),
        device=model.device, dtype=model.dtype,
    )  # fmt: skip
    step = decode_with(kind, model, cache, partial(decode_step, model, cache=cache))
    known = ids[:, :1].repeat(batch, SHORT + new_tokens + 1)
    known[:, :SHORT] = ids[:, :SHORT]
    logits = prefill(model, known[:, :SHORT], cache)
    start = 0.0
    for length in range(SHORT, SHORT + new_tokens + 1):
        if length == SHORT + 1:  # the first step still pays what is paid once
            synchronize(model.device)
            start = time.perf_counter()
        known[:, length] = best(logits)
        logits = step(known[:, : length + 1])
    synchronize(model.device)
    return (time.perf_counter() - start) / new_tokens


def _peers(
    model: Model, against: Sequence[str], prompt: list[int], new_tokens: int, stack: ExitStack
) -> dict[str, tuple[Contestant, int]]:
    found: dict[str, tuple[Contestant, int]] = {}
    if "transformers" in against:
        found[f"transformers {str(model.dtype).removeprefix('torch.')}"] = (
            _transformers(model, prompt, new_tokens),
            model.weight_bytes,
        )
    if "llama.cpp" in against:
        if model.device.type != "cpu":
            raise LabError("llama.cpp is measured on a CPU only; leave it out, or add --device cpu.")
        for kind, peer in stack.enter_context(llama_cpp.opened(model, len(prompt) + new_tokens + 8)).items():
            found[f"llama.cpp {kind.upper()}"] = (_of_llama_cpp(peer, prompt, new_tokens), peer.file_bytes)
    return found


def _of_llama_cpp(peer: llama_cpp.LlamaCpp, prompt: list[int], new_tokens: int) -> Contestant:
    return lambda: Times(peer.prefill(prompt), {1: peer.decode(prompt[:SHORT], new_tokens)})


def _transformers(model: Model, prompt: list[int], new_tokens: int) -> Contestant:
    peer = as_transformers(model)
    ids = torch.tensor([prompt], device=model.device)

    @torch.inference_mode()
    def run() -> Times:
        start = time.perf_counter()
        int(peer(ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        prefill = time.perf_counter() - start
        out = peer(ids[:, :SHORT], use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        synchronize(model.device)
        start = time.perf_counter()
        for _ in range(new_tokens):
            out = peer(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        synchronize(model.device)
        return Times(prefill, {1: (time.perf_counter() - start) / new_tokens})

    return run


def _rows(
    samples: dict[str, Samples[Times]], sizes: dict[str, int], full: str, prompt_tokens: int,
    bandwidths: dict[str, float],
) -> list[Row]:  # fmt: skip
    rows = []
    for name, found in samples.items():
        for batch in found.results[0].decode_s:

            def step(times: Times, batch: int = batch) -> float:
                return times.decode_s[batch]

            seconds, ceiling = found.median(step), batch * bandwidths[name] / sizes[name]
            rows.append(
                Row(
                    engine=name,
                    batch=batch,
                    weight_bytes=sizes[name],
                    decode_tokens_per_s=batch / seconds,
                    decode_spread_s=found.spread(step),
                    prefill_tokens_per_s=prompt_tokens / found.median(lambda t: t.prefill_s)
                    if batch == 1
                    else None,
                    ceiling_tokens_per_s=ceiling,
                    ceiling_share=batch / seconds / ceiling,
                    times_full_precision=samples[full].median(step) / seconds,
                    trusted=is_trusted(batch / seconds / ceiling),
                )
            )
    return rows


def targets(rows: Sequence[Row], full: str) -> list[Target]:
    """The ratios at batch 1 that the engine aims at, where the contestants are there."""
    alone = {row.engine: row for row in rows if row.batch == 1}
    int8 = next((row for name, row in alone.items() if name.startswith("labcore int8")), None)
    int4 = next((row for name, row in alone.items() if name.startswith("labcore int4")), None)
    found = []
    if int8:
        found.append(Target("int8 decode over ours in full precision", 2.5, int8.times_full_precision))
    for ours_, peer, wanted in ((int8, "llama.cpp Q8_0", 1.2), (int4, "llama.cpp Q4_0", 1.0)):
        if ours_ and peer in alone:
            ratio = ours_.decode_tokens_per_s / alone[peer].decode_tokens_per_s
            found.append(Target(f"{ours_.engine.split()[1]} decode over {peer}", wanted, ratio))
    best = max(
        (row.prefill_tokens_per_s or 0.0 for name, row in alone.items() if "llama" in name), default=0.0
    )
    if int8 and best:
        found.append(
            Target("int8 prefill over llama.cpp's best", 2.0, (int8.prefill_tokens_per_s or 0.0) / best)
        )
    return found
