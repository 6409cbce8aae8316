"""What a mixed step costs: some requests decode, others compute a part of their prompt, all in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.errors import ConfigError, OutOfMemory
from labcore.perf.costs import CacheTraffic, OpCost, StepCosts
from labcore.perf.dtypes import activation_dtype, bytes_per_element, canonical
from labcore.perf.operations import operations
from labcore.perf.peaks import Machine, as_machine
from labcore.perf.predict import step_time
from labcore.perf.sizes import kv_bytes, reduced_bytes, ring_bytes, weight_bytes
from labcore.perf.step_shape import StepShape

MEMORY_SHARE = 0.9  # of a device, for weights and cache; the rest is for activations, logits and the driver
NVLINK = 450e9  # bytes/s one way of an H100 SXM (its data sheet states 900 GB/s for both ways together)
# Operations that each request has for itself: the others see only how many tokens a step computes.
_OWN = ("attention_scores", "attention_values", "block_table")


class Part(NamedTuple):
    """One request's part of a step: `new` tokens behind `start` that its cache holds. draws: a token comes
    of it, so that its logits are needed."""

    start: int
    new: int
    draws: bool = True


class StepCost(Protocol):
    """How long a step takes."""

    def seconds(self, parts: Sequence[Part]) -> float:
        """Seconds of one step with these parts; there is at least one."""


@dataclass(frozen=True)
class Numbers:
    """How a model is stored. dtype: of the weights; activations and cache share it, or are float16 where
    weights are narrower. weight_bits, cache_bits: of one number, scales included, where they are narrower.
    block_size: positions in a block of the cache. activation_dtype: as `Load` has it."""

    dtype: str = "float16"
    weight_bits: float | None = None
    cache_bits: float | None = None
    block_size: int = 16
    activation_dtype: str | None = None

    def shape(self, config: ModelConfig, context: int, new: int, head_rows: int) -> StepShape:
        """One sequence with `new` tokens that end at `context`, and so many rows of logits."""
        weight = bytes_per_element(self.dtype)
        activation = bytes_per_element(activation_dtype(self.dtype))
        return StepShape(
            config=config,
            batch=1,
            context=context,
            new=new,
            cached=True,
            head_rows=head_rows,
            weight=weight,
            linear_weight=weight if self.weight_bits is None else self.weight_bits / 8,
            activation=activation,
            cache=activation,
            traffic=CacheTraffic(bits=self.cache_bits, block_size=self.block_size),
            fused=True,
        )

    @property
    def stored_bits(self) -> float:
        """Bits of a number in the cache."""
        plain = 8 * bytes_per_element(activation_dtype(self.dtype))
        return plain if self.cache_bits is None else self.cache_bits


def mixed_costs(config: ModelConfig, parts: Sequence[Part], numbers: Numbers | None = None) -> StepCosts:
    """Costs of a step whose requests have unlike contexts and numbers of new tokens.

    The sum of what `step_costs` counts for each part alone, with the weights counted once: all tokens go
    through one product with each matrix (Yu et al. 2022, Orca, "selective batching"), while attention has
    rows of its own, one for all that decode together and one for every part of a prompt, as their products
    have unlike shapes. Logits are those of the parts that draw (of one token, where none does). Learnt
    position vectors are looked up for every token, as no two of a step need to stand at one place.
    Raises ConfigError for a step without parts, or with one that has no new token.
    """
    _check(parts)
    numbers = numbers or Numbers()
    tokens, drawing = _totals(parts)
    reads = any(part.start for part in parts)
    rows = [
        *_shared(config, numbers, tokens, drawing, reads),
        *_together(_own(config, numbers, part.start + 1, 1) for part in parts if part.new == 1),
    ]
    for part in parts:
        if part.new > 1:
            rows += _own(config, numbers, part.start + part.new, part.new)
    return StepCosts(tuple(rows), tokens, canonical(numbers.dtype))


def _check(parts: Sequence[Part]) -> None:
    if not parts or min(part.new for part in parts) < 1 or min(part.start for part in parts) < 0:
        raise ConfigError(f"A step of the parts {list(parts)} computes nothing; each needs a new token.")


def _totals(parts: Sequence[Part]) -> tuple[int, int]:
    """(tokens, rows of logits)."""
    return sum(part.new for part in parts), max(1, sum(part.draws for part in parts))


def _shared(config: ModelConfig, numbers: Numbers, tokens: int, drawing: int, reads: bool) -> list[OpCost]:
    """What depends on the number of tokens alone. reads: whether some part has a history (which decides the
    order of latent attention's products)."""
    shape = numbers.shape(config, tokens + int(reads), tokens, drawing)
    return [op for op in operations(shape) if op.name not in _OWN]


def _own(config: ModelConfig, numbers: Numbers, context: int, new: int) -> list[OpCost]:
    return [op for op in operations(numbers.shape(config, context, new, 1)) if op.name in _OWN]


def _together(several: Iterable[list[OpCost]]) -> list[OpCost]:
    """Operation by operation the sum over requests whose rows have one shape."""
    return [
        OpCost(
            ops[0].name,
            flops=sum(op.flops for op in ops),
            kv_bytes=sum(op.kv_bytes for op in ops),
            activation_bytes=sum(op.activation_bytes for op in ops),
            rows=ops[0].rows,
        )
        for ops in zip(*several, strict=True)
    ]


@dataclass
class RooflineCost:
    """Seconds of a step by `mixed_costs` and the machine's two roofs: `StepTime.expected_s`, remembered.

    tensor_parallel: devices that share each layer. FLOPs and bytes are divided by their number, as if they
    split evenly; the two all-reduces a layer (`perf.sizes.reduced_bytes`) go round a ring over links of
    `link` bytes/s and overlap with nothing. Rates by the number of rows hold for one device only.
    overhead_s: of each step, beside the roofs: launches, the scheduler, starting the all-reduces. It is not
    known of a data sheet: with 0 the times are the least that can be expected.
    """

    config: ModelConfig
    machine: Machine | GPU
    numbers: Numbers = field(default_factory=Numbers)
    tensor_parallel: int = 1
    link: float = NVLINK
    overhead_s: float = 0.0

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1 or self.link <= 0 or self.overhead_s < 0:
            raise ConfigError(
                f"{self.tensor_parallel} devices with links of {self.link:g} bytes/s and an overhead of "
                f"{self.overhead_s:g} s: there must be one device, a link, and no negative overhead."
            )
        found = as_machine(self.machine)
        self._device = found if self.tensor_parallel == 1 else found.times(self.tensor_parallel)
        self._shared_s: dict[tuple[int, int, bool], float] = {}
        self._own_s: dict[tuple[int, int], float] = {}
        self._decode: dict[int, list[OpCost]] = {}

    def seconds(self, parts: Sequence[Part]) -> float:
        """As the protocol says. Raises DeviceError where the machine states no rate for the dtype."""
        total, decoding, reads = self.overhead_s, [], False
        for part in parts:
            reads = reads or part.start > 0
            if part.new == 1:
                decoding.append(part.start + 1)
            else:
                total += self._prompt(part.start + part.new, part.new)
        tokens, drawing = _totals(parts)
        total += self._every(tokens, drawing, reads)
        return total + (self._decoding(decoding) if decoding else 0.0)

    def _every(self, tokens: int, drawing: int, reads: bool) -> float:
        key = (tokens, drawing, reads)
        if key not in self._shared_s:
            rows = _shared(self.config, self.numbers, *key)
            self._shared_s[key] = self._at_roofs(rows) + self._reduce(tokens)
        return self._shared_s[key]

    def _reduce(self, tokens: int) -> float:
        wide = "float32" if bytes_per_element(self.numbers.dtype) > 2 else "float16"
        return ring_bytes(reduced_bytes(self.config, tokens, wide), self.tensor_parallel) / self.link

    def _prompt(self, context: int, new: int) -> float:
        key = (context, new)
        if key not in self._own_s:
            self._own_s[key] = self._at_roofs(_own(self.config, self.numbers, context, new))
        return self._own_s[key]

    def _decoding(self, contexts: list[int]) -> float:
        known = self._decode
        for context in contexts:
            if context not in known:
                known[context] = _own(self.config, self.numbers, context, 1)
        return self._at_roofs(_together(known[context] for context in contexts))

    def _at_roofs(self, rows: Sequence[OpCost]) -> float:
        costs = StepCosts(tuple(rows), 0, canonical(self.numbers.dtype))
        timed = step_time(costs, self._device, activations=self.numbers.activation_dtype)
        return sum(op.seconds for op in timed.operations)


def cache_blocks(
    config: ModelConfig, machine: Machine | GPU, numbers: Numbers | None = None, devices: int = 1
) -> int:
    """Blocks that fit beside the weights in 0.9 of the memory of so many devices, which split both evenly.

    A block has room for block_size positions in all layers; `SimulatedEngine` knows of windows.

    Raises OutOfMemory where not one does.
    """
    numbers, found = numbers or Numbers(), as_machine(machine)
    weights = weight_bytes(config, numbers.dtype, bits=numbers.weight_bits)
    room = int(MEMORY_SHARE * devices * found.memory_bytes) - weights
    blocks = room // kv_bytes(config, numbers.block_size, bits=numbers.stored_bits)
    if blocks < 1:
        raise OutOfMemory(
            f"The weights take {weights / 1e9:.1f} GB and {devices} x {found.name} offer "
            f"{MEMORY_SHARE * devices * found.memory_bytes / 1e9:.1f}; take more devices a replica "
            "(tensor_parallel) or narrower weights."
        )
    return blocks
