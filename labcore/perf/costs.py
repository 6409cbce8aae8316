"""What one step of a model costs: FLOPs, and the bytes it has to move, operation by operation.

One source for every such number in the lab: the trace, the planner, the predictor and the figures all ask
here. Conventions:

* A multiply-add is 2 FLOP, and only matrix products count, as in `torch.utils.flop_counter` and the
  literature. Attention counts the whole rectangle of new tokens x keys, masked half included.
* Bytes are the least a step can move when each operation reads its inputs and writes its outputs once:
  weights, KV cache and activations, each apart. With fused=True attention keeps its scores on the chip and
  norms, positions and activation functions are one pass each; with fused=False they are the plain operators
  of `kernels/reference.py`, one after another.
* Of a mixture of experts those are read that some token of the step is sent to, in expectation, were every
  expert equally likely.
* Bytes in the cache and in weights are exact; whether a chip's own caches save some activations is for the
  measurement to say.

The rows themselves are in `operations.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.dtypes import activation_dtype, bytes_per_element, canonical
from labcore.perf.operations import operations
from labcore.perf.sizes import (
    approximate_flops,
    attention_scores_flops,
    experts_touched,
    kv_bytes,
    kv_bytes_per_token,
    num_parameters,
    positions_processed,
    reduced_bytes,
    ring_bytes,
    weight_bytes,
)
from labcore.perf.step_shape import CacheTraffic, OpCost, StepShape

__all__ = [
    "CacheTraffic",
    "OpCost",
    "StepCosts",
    "approximate_flops",
    "attention_scores_flops",
    "elementwise_costs",
    "experts_touched",
    "kv_bytes",
    "kv_bytes_per_token",
    "linear_costs",
    "num_parameters",
    "positions_processed",
    "reduced_bytes",
    "ring_bytes",
    "step_costs",
    "weight_bytes",
]


def linear_costs(inputs: int, outputs: int, rows: int, dtype: object = "float16") -> OpCost:
    """One linear layer over `rows` vectors: reads weights and inputs, writes outputs, all in one dtype."""
    size = bytes_per_element(dtype)
    return OpCost(
        name="linear",
        flops=2 * rows * inputs * outputs,
        weight_bytes=round(inputs * outputs * size),
        activation_bytes=round(rows * (inputs + outputs) * size),
    )


def elementwise_costs(
    numbers: int, operators: int = 1, *, fused: bool = True, dtype: object = "float16"
) -> OpCost:
    """A chain of operators on `numbers` numbers, one FLOP each, alone or fused into a single pass.

    y = f(x) reads and writes every number once: 1 FLOP for 2 numbers moved, 1/4 FLOP per byte in 16 bits.
    Here the arithmetic counts, though it is no matrix product: it is all there is.
    """
    passes = 1 if fused else operators
    moved = 2 * passes * numbers * bytes_per_element(dtype)
    return OpCost(name="elementwise", flops=operators * numbers, activation_bytes=round(moved))


@dataclass(frozen=True)
class StepCosts:
    """One step of a batch: its operations and their sums. positions counts those computed, over the batch."""

    operations: tuple[OpCost, ...]
    positions: int
    dtype: str

    def _sum(self, field: str) -> int:
        return sum(getattr(op, field) for op in self.operations)

    @property
    def flops(self) -> int:
        """FLOPs of all matrix products."""
        return self._sum("flops")

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read: of the embedding table only the rows of this step's tokens."""
        return self._sum("weight_bytes")

    @property
    def kv_read_bytes(self) -> int:
        """Bytes read from the KV cache."""
        return sum(op.kv_bytes for op in self.operations if op.name != "kv_write")

    @property
    def kv_write_bytes(self) -> int:
        """Bytes added to the KV cache."""
        return sum(op.kv_bytes for op in self.operations if op.name == "kv_write")

    @property
    def activation_bytes(self) -> int:
        """Bytes read and written between operations."""
        return self._sum("activation_bytes")

    @property
    def host_bytes(self) -> int:
        """Bytes that cross from the host's memory to the device's (an offloaded cache)."""
        return self._sum("host_bytes")

    @property
    def bytes(self) -> int:
        """All bytes moved between the device's memory and its processor."""
        return self._sum("bytes")

    @property
    def intensity(self) -> float:
        """FLOP per byte moved."""
        return self.flops / self.bytes

    def operation(self, name: str) -> OpCost:
        """One row by name. Raises ConfigError when there is none of that name."""
        for op in self.operations:
            if op.name == name:
                return op
        raise ConfigError(
            f"No operation is called {name!r}; there are {', '.join(o.name for o in self.operations)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Sums and rows as plain data."""
        sums = (
            "flops",
            "weight_bytes",
            "kv_read_bytes",
            "kv_write_bytes",
            "activation_bytes",
            "host_bytes",
            "bytes",
            "intensity",
        )
        rows = [asdict(op) for op in self.operations]
        return {name: getattr(self, name) for name in sums} | {
            "positions": self.positions,
            "operations": rows,
        }


def step_costs(
    config: ModelConfig,
    batch: int,
    context: int,
    new_tokens: int = 1,
    *,
    dtype: object = "float16",
    cache_dtype: object | None = None,
    cached: bool = True,
    logits: str = "last",
    weight_bits: float | None = None,
    traffic: CacheTraffic | None = None,
    fused: bool = True,
) -> StepCosts:
    """Costs of one step of `batch` sequences that are each `context` tokens long once it is done.

    A decode step has new_tokens=1; the prefill of a prompt of p tokens has context=p, new_tokens=p. Without a
    cache (cached=False) all `context` positions are computed again. dtype is the weights'; activations share
    it, or are float16 where weights are narrower. weight_bits: of a weight in the layers' matrices, scales
    included (4.125, say), embeddings, head and norms staying in dtype. cache_dtype: the cache's, where it
    differs from the activations'. traffic: how the kind of cache departs from a contiguous one (what
    `KVCache.traffic` answers). logits: "last" (one row a sequence) or "all". fused: see this module.
    Raises ConfigError for sizes that no step can have, DeviceError for an unknown dtype.
    """
    if batch < 1 or not 1 <= new_tokens <= context:
        raise ConfigError(
            f"A step of batch {batch} with {new_tokens} new tokens cannot end at a context of {context}; "
            "it needs batch >= 1 and 1 <= new_tokens <= context."
        )
    if logits not in ("last", "all"):
        raise ConfigError(f"logits is {logits!r}; it must be 'last' or 'all'.")
    if weight_bits is not None and weight_bits <= 0:
        raise ConfigError(f"A weight of {weight_bits} bits stores nothing; it takes more than 0.")
    traffic = traffic or CacheTraffic()
    cached = cached and not traffic.recomputes
    weight = bytes_per_element(dtype)
    activation = bytes_per_element(activation_dtype(dtype))
    new = new_tokens if cached else context
    step = StepShape(
        config=config,
        batch=batch,
        context=context,
        new=new,
        cached=cached,
        head_rows=batch * (1 if logits == "last" else new),
        weight=weight,
        linear_weight=weight if weight_bits is None else weight_bits / 8,
        activation=activation,
        cache=activation if cache_dtype is None else bytes_per_element(cache_dtype),
        traffic=traffic,
        fused=fused,
    )
    return StepCosts(operations=operations(step), positions=step.rows, dtype=canonical(dtype))
