"""What to expect: step times, throughput, cost and fit, computed from costs and a machine's two roofs.

Pure functions. A machine is a row of the catalogue or this computer as measured; both become a `Machine`.

Two estimates, each for its use:

* `ideal_step` is the napkin's: weights once, cache once, 2 FLOP per parameter and token
  (after the scaling-book, "All about Transformer inference"). One line, a lower bound, what lesson 1 uses.
* `step_time` goes by the operations of `costs.step_costs` and answers with a bracket, because nobody knows in
  advance how much of the memory traffic hides behind the arithmetic: all of it (max) or none (sum). Between
  them lies what to expect of operations that run one after another.

What follows from it for whoever serves (TTFT, TPOT, the best batch) is in `forecast.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.costs import StepCosts, kv_bytes, num_parameters, step_costs, weight_bytes
from labcore.perf.dtypes import activation_dtype, bytes_per_element
from labcore.perf.peaks import Machine, as_machine, machine_from_gpu, machine_from_roofs
from labcore.perf.sizes import parameters_touched
from labcore.perf.step_shape import ATTENTION, OpCost

__all__ = [
    "DecodeTerms",
    "Machine",
    "Napkin",
    "OpTime",
    "StepTime",
    "as_machine",
    "cost_per_million",
    "free_for_cache",
    "ideal_prefill",
    "ideal_step",
    "ideal_terms",
    "largest_batch",
    "latency",
    "machine_from_gpu",
    "machine_from_roofs",
    "napkin",
    "step_time",
    "tokens_per_second",
]


@dataclass(frozen=True)
class OpTime:
    """One operation's seconds at the roofs: computing, and moving its bytes."""

    name: str
    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        """The longer of the two: within one operation they overlap."""
        return max(self.compute_s, self.memory_s)


@dataclass(frozen=True)
class StepTime:
    """A step's compute, memory and overhead time in seconds, and the bracket they span.

    host_s: bytes that cross from the host's memory, fetched while the device works. operations: the rows that
    compute_s and memory_s sum over.
    """

    compute_s: float
    memory_s: float
    overhead_s: float = 0.0
    host_s: float = 0.0
    operations: tuple[OpTime, ...] = ()

    @property
    def low_s(self) -> float:
        """All traffic hides behind the arithmetic, or the other way round."""
        return max(self.compute_s, self.memory_s, self.host_s) + self.overhead_s

    @property
    def high_s(self) -> float:
        """Nothing overlaps."""
        return self.compute_s + self.memory_s + self.host_s + self.overhead_s

    @property
    def expected_s(self) -> float:
        """Operations one after another, each as long as the slower of its two: between low and high."""
        return max(sum(op.seconds for op in self.operations), self.low_s - self.overhead_s) + self.overhead_s

    @property
    def bound(self) -> str:
        """What the step waits for longest: "compute", "memory", "overhead" or "host"."""
        terms = {"memory": self.memory_s, "compute": self.compute_s}
        terms |= {"overhead": self.overhead_s, "host": self.host_s}
        return max(terms, key=lambda name: terms[name])


def step_time(
    costs: StepCosts,
    machine: Machine | GPU,
    *,
    activations: object | None = None,
    overhead_s: float = 0.0,
) -> StepTime:
    """The roofline's bracket for one step.

    activations: what a recipe rounds them to before they meet the weights (`dtypes.product_dtype`); attention
    multiplies them as they are. overhead_s: what the step takes beside computing and moving bytes, launches
    above all, as measured. Raises DeviceError for a dtype without a known rate, ConfigError for activations
    that do not go with the weights.
    """
    found = as_machine(machine)
    narrow, plain = found.product_dtype(costs.dtype, activations), activation_dtype(costs.dtype)

    def compute_s(op: OpCost) -> float:
        if not op.flops:
            return 0.0
        return op.flops / found.flops(plain if op.name in ATTENTION else narrow, op.rows)

    rows = tuple(OpTime(op.name, compute_s(op), op.bytes / found.bandwidth) for op in costs.operations)
    return StepTime(
        compute_s=sum(row.compute_s for row in rows),
        memory_s=costs.bytes / found.bandwidth,
        overhead_s=overhead_s,
        host_s=costs.host_bytes / found.host_bandwidth if found.host_bandwidth else 0.0,
        operations=rows,
    )


@dataclass(frozen=True)
class DecodeTerms:
    """Seconds a decode step spends at the peak rates: reading weights, reading the cache, computing."""

    weights_s: float
    cache_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        """B*kv(t)/BW + max(2*B*P/F, W/BW), kv(t) the cache bytes of t tokens.

        The cache stands outside of the max because attention stays bound by memory at any batch (its
        intensity does not grow with it), while the weights' products do not.
        """
        return self.cache_s + max(self.compute_s, self.weights_s)

    @property
    def bound(self) -> str:
        """What takes longer: "compute", or "memory" (weights and cache together)."""
        return "compute" if self.compute_s > self.weights_s + self.cache_s else "memory"


def ideal_terms(
    config: ModelConfig, machine: Machine | GPU, batch: int, context: int, dtype: object = "float16"
) -> DecodeTerms:
    """The napkin's three terms of a decode step; each sequence holds `context` tokens.

    Weights narrower than 16 bits leave cache and arithmetic in 16 bits: alone they shorten neither.
    Of a mixture of experts those count that the batch's tokens are sent to.
    """
    _check_sizes(batch, context)
    found = as_machine(machine)
    return DecodeTerms(
        weights_s=parameters_touched(config, batch) * bytes_per_element(dtype) / found.bandwidth,
        cache_s=batch * kv_bytes(config, context, activation_dtype(dtype)) / found.bandwidth,
        compute_s=2 * batch * num_parameters(config, active=True) / found.flops(found.product_dtype(dtype)),
    )


def ideal_step(
    config: ModelConfig, machine: Machine | GPU, batch: int, context: int, dtype: object = "float16"
) -> float:
    """Seconds of a decode step at the peak rates; see `DecodeTerms.seconds`."""
    return ideal_terms(config, machine, batch, context, dtype).seconds


def ideal_prefill(
    config: ModelConfig, machine: Machine | GPU, prompt: int, batch: int = 1, dtype: object = "float16"
) -> float:
    """Seconds to process prompts at the peak rates: max(FLOPs/F, bytes/BW), attention's FLOPs included."""
    return step_time(step_costs(config, batch, prompt, prompt, dtype=dtype), machine).low_s


def latency(ttft_s: float, tpot_s: float, n: int) -> float:
    """Seconds until the n-th token: TTFT + (n - 1) * TPOT. Raises ConfigError for n < 1."""
    if n < 1:
        raise ConfigError(f"The latency of {n} tokens has no meaning; n must be at least 1.")
    return ttft_s + (n - 1) * tpot_s


def tokens_per_second(step_s: float, batch: int = 1) -> float:
    """Throughput of a batch that gains a token each every step_s seconds."""
    if step_s <= 0:
        raise ConfigError(f"A step of {step_s} s has no throughput; it must take longer than 0 s.")
    return batch / step_s


def cost_per_million(usd_per_hour: float, tokens_per_s: float) -> float:
    """US dollars per million output tokens: ($/h) / (3600 * tok/s) * 1e6."""
    if tokens_per_s <= 0:
        raise ConfigError(f"At {tokens_per_s} tokens/s a million tokens never come; it must be above 0.")
    return usd_per_hour / (3600 * tokens_per_s) * 1e6


def free_for_cache(config: ModelConfig, machine: Machine | GPU, dtype: object = "float16") -> int:
    """Bytes left beside the weights; negative when the weights alone do not fit."""
    return as_machine(machine).memory_bytes - weight_bytes(config, dtype)


def largest_batch(
    config: ModelConfig,
    machine: Machine | GPU,
    context: int,
    dtype: object = "float16",
    cache_dtype: object | None = None,
) -> int:
    """Sequences of `context` tokens whose caches fit beside the weights; 0 when not even one does."""
    _check_sizes(1, context)
    each = kv_bytes(config, context, activation_dtype(dtype) if cache_dtype is None else cache_dtype)
    return max(0, free_for_cache(config, machine, dtype)) // each


@dataclass(frozen=True)
class Napkin:
    """A deployment on the back of a napkin. Times assume the machine's peak rates, so they are lower bounds.

    Times and throughput are stated whether or not it fits: what it would be, were there memory enough.
    """

    machine: str
    batch: int
    context: int
    prompt: int
    weight_bytes: int
    kv_bytes: int
    memory_bytes: int
    fits: bool
    max_batch: int
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    terms: DecodeTerms
    usd_per_hour: float | None
    usd_per_million: float | None

    @property
    def bound(self) -> str:
        """What a decode step waits for longer: "compute" or "memory"."""
        return self.terms.bound

    @property
    def free_bytes(self) -> int:
        """Memory left; negative by what is missing."""
        return self.memory_bytes - self.weight_bytes - self.kv_bytes

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self) | {"free_bytes": self.free_bytes, "bound": self.bound}


def napkin(
    config: ModelConfig,
    machine: Machine | GPU,
    batch: int = 1,
    context: int = 512,
    dtype: object = "float16",
    prompt: int | None = None,
    usd_per_hour: float | None = None,
) -> Napkin:
    """Does it fit, how fast is it, what does it cost?

    context: tokens each sequence holds at the step that TPOT is stated for. prompt: tokens processed before
    the first one comes out (default: context); all prompts of the batch together. usd_per_hour: default the
    machine's own. Raises ConfigError for sizes below 1, DeviceError for a dtype without a known rate.
    """
    found = as_machine(machine)
    prompt = context if prompt is None else prompt
    price = found.usd_per_hour if usd_per_hour is None else usd_per_hour
    terms = ideal_terms(config, found, batch, context, dtype)
    rate = tokens_per_second(terms.seconds, batch)
    weights = weight_bytes(config, dtype)
    cache = batch * kv_bytes(config, context, activation_dtype(dtype))
    return Napkin(
        machine=found.name,
        batch=batch,
        context=context,
        prompt=prompt,
        weight_bytes=weights,
        kv_bytes=cache,
        memory_bytes=found.memory_bytes,
        fits=weights + cache <= found.memory_bytes,
        max_batch=largest_batch(config, found, context, dtype),
        ttft_s=ideal_prefill(config, found, prompt, batch, dtype),
        tpot_s=terms.seconds,
        tokens_per_s=rate,
        terms=terms,
        usd_per_hour=price,
        usd_per_million=None if price is None else cost_per_million(price, rate),
    )


def _check_sizes(batch: int, context: int) -> None:
    if batch < 1 or context < 1:
        raise ConfigError(f"Batch {batch} at a context of {context}: both must be at least 1.")
