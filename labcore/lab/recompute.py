"""What a cache saves and costs: positions computed again, time per token, bytes copied, the same logits."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from labcore import kernels
from labcore.cache import GrowingCache, KVCache, NoCache
from labcore.config import ModelConfig
from labcore.errors import LessonError
from labcore.generation import Trace, decode_step, generate, prefill
from labcore.lab.sweeps import Point, Roof, Work, new_cache, random_tokens, roof_of
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.model import Model
from labcore.perf.costs import (
    approximate_flops,
    attention_scores_flops,
    kv_bytes_per_token,
    num_parameters,
    step_costs,
)
from labcore.perf.roofline import Roofs
from labcore.perf.timing import MIN_REPEATS, measure, summarize, synchronize

TWO_WAYS = {"on": "growing", "off": "none"}


def traced_both(model: Model, prompt: Any, new: int) -> dict[str, Trace]:
    """The traces of the same generation with the cache on and off."""
    traces = {}
    for way, kind in TWO_WAYS.items():
        out = generate(model, prompt, max_new_tokens=new, ignore_eos=True, cache=kind, trace=True)
        assert out.trace is not None
        traces[way] = out.trace
    return traces


def computed_again(trace: Trace) -> int:
    """Positions that went through the network although an earlier step had computed them."""
    fed = sum(step.input_shape[1] for step in trace.steps)
    return fed - trace.steps[-1].context


# Time per token against length


@dataclass(frozen=True)
class Growth:
    """Time of one more token at several lengths, with the cache on and off."""

    model: str
    points: dict[str, tuple[Point, ...]]

    @property
    def lengths(self) -> list[int]:
        """Where it was measured."""
        return [point.length for point in self.points["on"]]

    def ratio(self, way: str) -> float:
        """Time at the longest over time at the shortest."""
        return self.points[way][-1].seconds / self.points[way][0].seconds

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers, one row a length."""
        rows = []
        for off, on in zip(self.points["off"], self.points["on"], strict=True):
            low, high = on.roof.bracket(on.work)
            rows.append(
                {
                    "tokens so far": on.length,
                    "cache off (ms)": off.seconds * 1e3,
                    "cache on (ms)": on.seconds * 1e3,
                    "roofs allow, on (ms)": f"{significant(low * 1e3)} – {significant(high * 1e3)}",
                    "off / on": off.seconds / on.seconds,
                    "FLOP off / on": off.work.flops / on.work.flops,
                }
            )
        return rows

    def finding(self) -> str:
        """How both grow."""
        first, last = self.lengths[0], self.lengths[-1]
        off, on = self.points["off"], self.points["on"]
        return (
            f"{first} → {last} tokens: without a cache the next token takes {as_time(off[0].seconds)} → "
            f"{as_time(off[-1].seconds)} ({significant(self.ratio('off'))}×), with one "
            f"{as_time(on[0].seconds)} → {as_time(on[-1].seconds)} ({significant(self.ratio('on'))}×). "
            f"At {last} tokens the cache saves {significant(off[-1].work.flops / on[-1].work.flops)}× the "
            f"FLOPs and {significant(off[-1].seconds / on[-1].seconds)}× the time."
        )


def sweep_growth(
    model: Model, lengths: Sequence[int], *, repeats: int = MIN_REPEATS, roofs: Roofs | None = None
) -> Growth:
    """Time one more token of a text that is `lengths` long with it, both ways, in turns.

    Raises LessonError for lengths below 2 or outside of the model's context.
    """
    limit = model.config.max_position_embeddings
    ordered = sorted(set(lengths))
    if not ordered or ordered[0] < 2 or ordered[-1] > limit:
        raise LessonError(f"Lengths {list(lengths)} must lie between 2 and the {limit} of {model.name!r}.")
    roof = roof_of(model, roofs)
    points: dict[str, list[Point]] = {way: [] for way in TWO_WAYS}
    for length in tqdm(ordered, desc="measuring", unit="length", leave=False, ncols=80, file=sys.stdout):
        for way in points:
            points[way].append(_one_more(model, length, way, repeats, roof))
    return Growth(model.name, {way: tuple(found) for way, found in points.items()})


def _one_more(model: Model, length: int, way: str, repeats: int, roof: Roof) -> Point:
    known = random_tokens(model, length)
    cache = new_cache(model, "none" if way == "off" else "contiguous", length)
    if way == "on":
        prefill(model, known[:, : length - 1], cache)

    def run() -> Any:
        if way == "on":
            cache.truncate(length - 1)
        return decode_step(model, known, cache)

    timing = measure(run, warmup=2, repeats=repeats, device=model.device)
    costs = step_costs(model.config, 1, length, 1, dtype=model.dtype, cached=way == "on")
    return Point(length, timing, Work.of(costs), roof)


# Concatenating against preallocating


@dataclass(frozen=True)
class Copies:
    """Bytes copied and seconds spent by two caches while the same text grows, at several lengths.

    held: bytes of the keys and values themselves at each length.
    """

    lengths: tuple[int, ...]
    held: tuple[int, ...]
    copied: dict[str, tuple[int, ...]]
    seconds: dict[str, tuple[float, ...]]
    bandwidth: float

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        return [
            {
                "tokens": length,
                "keys and values": si(self.held[i], "B"),
                **{f"copied, {kind}": si(copied[i], "B") for kind, copied in self.copied.items()},
                **{f"{kind} (ms)": seconds[i] * 1e3 for kind, seconds in self.seconds.items()},
            }
            for i, length in enumerate(self.lengths)
        ]

    def finding(self) -> str:
        """What concatenation costs."""
        copied = self.copied["growing"][-1]
        growing, contiguous = (self.seconds[kind][-1] for kind in ("growing", "contiguous"))
        return (
            f"To hold {si(self.held[-1], 'B')} after {self.lengths[-1]} tokens the concatenating cache "
            f"copied {si(copied, 'B')}, {significant(copied / self.held[-1])}× as much; the preallocated one "
            f"copied {si(self.copied['contiguous'][-1], 'B')}. All steps together took {as_time(growing)} "
            f"and {as_time(contiguous)}, {significant(growing / contiguous)}×. At the measured bandwidth the "
            f"copies, read and written, account for {as_time(2 * copied / self.bandwidth)} of the difference."
        )


def compare_copies(
    model: Model, lengths: Sequence[int], *, repeats: int = MIN_REPEATS, roofs: Roofs | None = None
) -> Copies:
    """Let a text grow token by token from one token to the longest length, in both caches, in turns."""
    limit = model.config.max_position_embeddings
    ordered = sorted(set(lengths))
    if not ordered or ordered[0] < 2 or ordered[-1] > limit:
        raise LessonError(f"Lengths {list(lengths)} must lie between 2 and the {limit} of {model.name!r}.")
    kinds = ("growing", "contiguous")
    runs: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    copied: dict[str, list[int]] = {}
    for _ in tqdm(range(repeats + 1), desc="growing", unit="run", leave=False, ncols=80, file=sys.stdout):
        for kind in kinds:
            seconds, copied[kind] = _grow(model, kind, ordered)
            runs[kind].append(seconds)
    medians = {
        kind: tuple(summarize(list(at)).median_s for at in zip(*found[1:], strict=True))  # the first warms up
        for kind, found in runs.items()
    }
    per_token = kv_bytes_per_token(model.config, model.dtype)
    return Copies(
        lengths=tuple(ordered),
        held=tuple(length * per_token for length in ordered),
        copied={kind: tuple(found) for kind, found in copied.items()},
        seconds=medians,
        bandwidth=roof_of(model, roofs).bandwidth,
    )


def _grow(model: Model, kind: str, lengths: Sequence[int]) -> tuple[list[float], list[int]]:
    """(seconds since the start, bytes copied) at each length."""
    known = random_tokens(model, lengths[-1])
    cache = new_cache(model, kind, lengths[-1])
    seconds, copied = [], []
    start = time.perf_counter()
    for length in range(1, lengths[-1] + 1):
        decode_step(model, known[:, :length], cache)
        if length in lengths:
            synchronize(model.device)
            seconds.append(time.perf_counter() - start)
            copied.append(cache.copied_bytes)
    return seconds, copied


# Is it allowed?


class SeesTheFuture:
    """Mixed into a cache: every query attends to every key of its pass, later ones included."""

    def attend(self: Any, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention without a mask."""
        keys, values = self.update(layer, k, v)
        return kernels.attention(q, keys, values)


class BidirectionalCache(SeesTheFuture, GrowingCache):
    """A cache under attention that is not causal."""


class BidirectionalPass(SeesTheFuture, NoCache):
    """One pass over everything, under attention that is not causal."""


def largest_difference(model: Model, tokens: Sequence[int], *, causal: bool = True) -> float:
    """Of the logits of every position: step by step behind a cache, against one pass over all tokens."""
    known = torch.tensor([list(tokens)], device=model.device)
    cached: type[KVCache] = GrowingCache if causal else BidirectionalCache
    whole: type[KVCache] = NoCache if causal else BidirectionalPass
    with torch.inference_mode():
        expected = model.transformer(known, _empty(model, whole, len(tokens)))
        cache = _empty(model, cached, len(tokens))
        steps = [model.transformer(part, cache) for part in known.split(1, dim=1)]
    return float((torch.cat(steps, 1) - expected).abs().max())


def _empty(model: Model, kind: type[KVCache], capacity: int) -> KVCache:
    return kind(model.config, 1, capacity, model.device, model.dtype)


def equality_rows(model: Model, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Both attentions, and how far the cached logits are from those of one pass."""
    return [
        {
            "attention": "causal" if causal else "bidirectional",
            "positions": len(tokens),
            "largest difference of a logit": (gap := largest_difference(model, tokens, causal=causal)),
            "the same within 1e-4": gap < 1e-4,
        }
        for causal in (True, False)
    ]


# On paper


def paper_rows(config: ModelConfig, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """FLOPs of one step at each length, as one counts them by hand."""
    rows = []
    for length in lengths:
        scores_off = attention_scores_flops(config, length, length)
        scores_on = attention_scores_flops(config, length)
        whole = approximate_flops(config, length)
        rows.append(
            {
                "t": length,
                "q·k, cache off": si(scores_off, ""),
                "q·k, cache on": si(scores_on, ""),
                "whole step, off": si(approximate_flops(config, length, length), ""),
                "whole step, on": si(whole, ""),
                "attention's share, on (%)": round(200 * scores_on / whole, 1),
            }
        )
    return rows


def paper_facts(config: ModelConfig) -> list[dict[str, Any]]:
    """What follows from the two formulas: growth to step 1000, where attention is half, what is saved."""
    scores = attention_scores_flops(config, 1000, 1000) / attention_scores_flops(config, 100, 100)
    whole = approximate_flops(config, 1000, 1000) / approximate_flops(config, 100, 100)
    return [
        {"fact": "cache off, step 1000 over step 100: q·k", "value": f"{scores:.0f}×"},
        {"fact": "cache off, step 1000 over step 100: whole model", "value": f"{whole:.2f}×"},
        {
            "fact": "cache on, attention is half of the FLOPs at",
            "value": f"{half_attention(config):,} tokens",
        },
        {
            "fact": "512 tokens behind a prompt of 512: FLOPs saved",
            "value": f"{saved(config, 512, 512):.0f}×",
        },
    ]


def half_attention(config: ModelConfig, parameters: float | None = None) -> int:
    """Tokens at which a cached step spends as much on attention as on all matrices: P / (2 L d).

    parameters: P where it is given rounded (default: counted).
    """
    width = config.num_attention_heads * config.head_dim
    return round((parameters or num_parameters(config)) / (2 * config.num_hidden_layers * width))


def saved(config: ModelConfig, prompt: int, new: int) -> float:
    """FLOPs of a whole generation without a cache over those with one, by the formulas on paper."""
    lengths = range(prompt, prompt + new)
    off = sum(approximate_flops(config, length, length) for length in lengths)
    on = approximate_flops(config, prompt, prompt)
    return off / (on + sum(approximate_flops(config, length) for length in lengths[1:]))


def puzzle_rows(config: ModelConfig, flops: float, bandwidth: float, context: int) -> list[dict[str, Any]]:
    """Tokens per second that a machine's two peaks allow at this context, cache off and on."""
    rows = []
    for way in ("off", "on"):
        costs = step_costs(config, 1, context, 1, cached=way == "on")
        arithmetic, traffic = costs.flops / flops, costs.bytes / bandwidth
        rows.append(
            {
                "cache": way,
                "FLOP a step": si(costs.flops, ""),
                "bytes a step": si(costs.bytes, "B"),
                "arithmetic (ms)": arithmetic * 1e3,
                "traffic (ms)": traffic * 1e3,
                "peaks allow (tok/s)": round(1 / max(arithmetic, traffic)),
            }
        )
    return rows
