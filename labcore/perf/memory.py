"""Memory planning: what a deployment takes, what of it is waste, what fits where, and the nearest plan that
does.

    plan(config, machine, batch=32, context=4096, block_size=16)     -> MemoryPlan
    refuse_if_too_big(plan)                                          raises OutOfMemory, names plans that fit
    what_fits(config, machines, context=4096)                        sequences on each of them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.errors import ConfigError, OutOfMemory
from labcore.perf.dtypes import activation_dtype, bytes_per_element, canonical
from labcore.perf.layout import layout_of
from labcore.perf.peaks import Machine, as_machine
from labcore.perf.sizes import kv_bytes, weight_bytes


@dataclass(frozen=True)
class Deployment:
    """What is to be run. context: tokens each sequence holds.

    weight_bits: of a weight in the layers' matrices, scales included, where they are narrower than dtype.
    cache_bits: of a stored number, scales included (default: the dtype's, or 16 under narrower weights).
    reserve: positions kept ready for each sequence, filled or not. block_size: paged instead; the last
    block of a sequence is half empty on average. shared_prefix: tokens that all sequences begin with, kept
    once. step_tokens: positions computed at once (default: one a sequence). window: positions every layer
    keeps.
    """

    config: ModelConfig
    batch: int = 1
    context: int = 4096
    dtype: str = "float16"
    weight_bits: float | None = None
    cache_bits: float | None = None
    reserve: int | None = None
    block_size: int | None = None
    shared_prefix: int = 0
    step_tokens: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        sizes = {
            "batch": self.batch,
            "context": self.context,
            "block_size": self.block_size,
            "window": self.window,
        }
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ConfigError(f"A plan with {name} {value}: it must be at least 1.")
        if self.reserve is not None and self.block_size is not None:
            raise ConfigError("A cache is either reserved whole or paged; give reserve or block_size.")
        if self.reserve is not None and self.reserve < self.context:
            raise ConfigError(f"{self.reserve} reserved positions cannot hold a context of {self.context}.")
        if not 0 <= self.shared_prefix <= self.context:
            raise ConfigError(
                f"A shared prefix of {self.shared_prefix} in a context of {self.context} tokens."
            )
        if self.shared_prefix and self.block_size is None:
            raise ConfigError("Only blocks can be shared: a plan with shared_prefix needs a block_size.")

    @property
    def shape(self) -> ModelConfig:
        """The configuration, with the plan's window in every layer."""
        if self.window is None:
            return self.config
        return self.config.with_(sliding_window=self.window, sliding_window_pattern=None)

    @property
    def bits(self) -> float:
        """Bits of a stored number of the cache."""
        if self.cache_bits is not None:
            return self.cache_bits
        return 8 * bytes_per_element(activation_dtype(self.dtype))

    def sequence_bytes(self, tokens: float) -> float:
        """Cache bytes of one sequence of so many tokens (a half counts half)."""
        whole = int(tokens)
        low = kv_bytes(self.shape, whole, bits=self.bits)
        return low + (tokens - whole) * (kv_bytes(self.shape, whole + 1, bits=self.bits) - low)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. cache: what tokens need; waste: what is allocated for the cache beyond that.

    activations: the most that a step's intermediate results take at once. workspace: its logits.
    """

    deployment: Deployment
    machine: str
    memory_bytes: int
    weights: int
    cache: int
    waste: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.cache + self.waste + self.activations + self.workspace

    @property
    def free(self) -> int:
        """What is left; negative by what is missing."""
        return self.memory_bytes - self.total

    @property
    def fits(self) -> bool:
        """Whether the machine's memory is enough."""
        return self.free >= 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"total": self.total, "free": self.free, "fits": self.fits}


def plan(config: ModelConfig, machine: Machine | GPU, *, lean: bool = False, **wanted: Any) -> MemoryPlan:
    """The plan of a deployment (fields of Deployment) on a machine.

    lean: leave activations and workspace out, as calculations on paper do. Raises ConfigError for sizes that
    mean nothing, and for a window on a model with layers that attend to everything.
    """
    window = wanted.get("window")
    if window is not None and config.windowed_layers < config.num_hidden_layers:
        full = config.num_hidden_layers - config.windowed_layers
        raise ConfigError(
            f"{full} of {config.num_hidden_layers} layers attend to everything, and a window of {window} "
            "would cut what they see; plan without a window, or force one with Deployment and plan_for."
        )
    return plan_for(Deployment(config, **wanted), machine, lean=lean)


def plan_for(deployment: Deployment, machine: Machine | GPU, *, lean: bool = False) -> MemoryPlan:
    """The plan of a deployment, whatever it cuts."""
    found, config = as_machine(machine), deployment.config
    cache, waste = _cache(deployment)
    rows = deployment.step_tokens or deployment.batch
    return MemoryPlan(
        deployment=deployment,
        machine=found.name,
        memory_bytes=found.memory_bytes,
        weights=weight_bytes(config, deployment.dtype, bits=deployment.weight_bits),
        cache=round(cache),
        waste=round(waste),
        activations=0 if lean else activation_bytes(config, rows, deployment.dtype),
        workspace=0 if lean else logit_bytes(config, deployment.batch, deployment.dtype),
    )


def _cache(wanted: Deployment) -> tuple[float, float]:
    """(bytes that tokens need, bytes allocated beyond)."""
    # Behind a shared prefix a windowed layer fills a window of its own: no difference of two lengths.
    own = wanted.sequence_bytes(wanted.context - wanted.shared_prefix)
    needed = wanted.sequence_bytes(wanted.shared_prefix) + wanted.batch * own
    if wanted.reserve is not None:
        return needed, wanted.batch * wanted.sequence_bytes(wanted.reserve) - needed
    if wanted.block_size is not None:
        longer = wanted.context + expected_waste(wanted.block_size)
        extra = wanted.sequence_bytes(longer) - wanted.sequence_bytes(wanted.context)
        return needed, wanted.batch * extra
    return needed, 0.0


def expected_waste(block_size: int) -> float:
    """Positions that the last block of a sequence leaves empty, on average: (block_size - 1) / 2."""
    return (block_size - 1) / 2


def activation_bytes(config: ModelConfig, rows: int, dtype: object = "float16") -> int:
    """The most that intermediate results take at once while `rows` positions are computed in eager PyTorch.

    The layer's input, the residual stream, its normalised copy and the angles of the positions live through
    a layer. In the feed-forward part there are beside them gate and up, the activated gate and their product:
    4 widths (3 without a gate, and where a fused kernel never writes the activated gate). In attention:
    queries, keys and values, queries and keys rotated with what that takes (2 more of them), and the output.
    """
    inner = config.intermediate_size
    if config.experts is not None:
        experts = config.experts
        inner = experts.moe_intermediate_size * (experts.num_experts_per_tok + experts.n_shared_experts)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention = ((heads + 2 * kv_heads) + 3 * (heads + kv_heads) + heads) * config.head_dim
    widest = max((4 if layout_of(config).gated else 3) * inner, attention)
    size = bytes_per_element(activation_dtype(dtype))
    return round(rows * (3 * config.hidden_size + 2 * config.head_dim + widest) * size)


def logit_bytes(config: ModelConfig, batch: int, dtype: object = "float16") -> int:
    """Logits of one position a sequence, and their copy in fp32 that tokens are drawn from."""
    size = bytes_per_element(activation_dtype(dtype))
    return round(batch * config.vocab_size * (size + (0 if canonical(dtype) == "float32" else 4)))


def largest_batch(plan: MemoryPlan) -> int:
    """Sequences of this context that fit; 0 when not even one does."""
    return _largest(plan, "batch", limit=1 << 24)


def largest_context(plan: MemoryPlan) -> int:
    """Tokens a sequence may hold at this batch; 0 when not even one fits.

    Where all layers are windowed, and windows fit, memory sets no end: then the model's context does.
    """
    config = plan.deployment.shape
    window = config.sliding_window
    if window is not None and config.windowed_layers == config.num_hidden_layers:
        limit = max(window, config.max_position_embeddings)
        return _largest(plan, "context", limit=limit)
    return _largest(plan, "context", limit=1 << 28)


def _largest(found: MemoryPlan, field: str, limit: int) -> int:
    """The largest value of a field with which the plan still fits: what a plan takes only grows with it."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _with(found, **{field: middle}).fits else (low, middle - 1)
    return low


def _with(found: MemoryPlan, **changes: Any) -> MemoryPlan:
    deployment = found.deployment
    if deployment.reserve is not None and "context" in changes:
        changes["reserve"] = changes["context"]
    if "context" in changes:
        changes["shared_prefix"] = min(deployment.shared_prefix, changes["context"])
    machine = Machine(name=found.machine, memory_bytes=found.memory_bytes, bandwidth=1.0)
    return plan_for(replace(deployment, **changes), machine, lean=not (found.activations or found.workspace))


def nearest(found: MemoryPlan) -> Iterator[tuple[str, MemoryPlan]]:
    """Plans near this one that fit, each with what it changes: one thing at a time, the least loss first."""
    wanted = found.deployment
    changes: list[dict[str, Any]] = []
    if wanted.reserve is not None:
        changes.append({"reserve": None, "block_size": 16})
    if wanted.bits > 8:
        changes.append({"cache_bits": 8.0})
    if (batch := largest_batch(found)) >= 1 and batch < wanted.batch:
        changes.append({"batch": batch})
    if (context := largest_context(found)) >= 1 and context < wanted.context:
        changes.append({"context": context})
    if bytes_per_element(wanted.dtype) > 1 and wanted.weight_bits is None:
        changes.append({"dtype": "int8", "cache_bits": wanted.bits})
        changes.append({"dtype": "int4", "cache_bits": wanted.bits})
    for change in changes:
        other = _with(found, **change)
        if other.fits:
            yield _told(change), other


def _told(change: dict[str, Any]) -> str:
    if "block_size" in change:
        return f"blocks of {change['block_size']} instead of reserved room"
    if "dtype" in change:
        return f"{change['dtype']} weights"
    if "cache_bits" in change:
        return f"a cache of {change['cache_bits']:g} bits"
    if "batch" in change:
        return f"{change['batch']} sequences"
    return f"a context of {change['context']:,}"


def refuse_if_too_big(found: MemoryPlan) -> None:
    """Raises OutOfMemory, before anything is allocated, with the numbers and the nearest plans that fit."""
    if found.fits:
        return
    wanted = found.deployment
    others = [change for change, _ in nearest(found)][:3]
    mend = f"what fits: {', or '.join(others)}." if others else "nothing near it fits; take a larger machine."
    raise OutOfMemory(
        f"{wanted.batch} sequences of {wanted.context:,} tokens need {found.total / 1e9:.1f} GB "
        f"({found.weights / 1e9:.1f} of weights, {(found.cache + found.waste) / 1e9:.1f} of cache) and "
        f"{found.machine} has {found.memory_bytes / 1e9:.1f}; {mend}"
    )


@dataclass(frozen=True)
class Fit:
    """One machine: whether the weights fit, the tokens that the rest holds, and sequences of the context."""

    machine: str
    memory_bytes: int
    weights_fit: bool
    tokens: int
    sequences: int


def what_fits(
    config: ModelConfig,
    machines: Iterable[Machine | GPU],
    *,
    context: int = 4096,
    lean: bool = True,
    **wanted: Any,
) -> list[Fit]:
    """How much of this model each machine holds (fields of Deployment but batch)."""
    rows = []
    for machine in machines:
        one = plan(config, machine, batch=1, context=context, lean=lean, **wanted)
        rows.append(
            Fit(
                machine=one.machine,
                memory_bytes=one.memory_bytes,
                weights_fit=one.weights <= one.memory_bytes,
                tokens=largest_context(one),
                sequences=largest_batch(one),
            )
        )
    return rows
