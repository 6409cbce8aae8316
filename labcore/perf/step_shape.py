"""What the rows of a step's costs share: its sizes, and the operations that every model has.

`operations.py` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass

from labcore.config import ModelConfig
from labcore.perf.layout import Linear
from labcore.perf.sizes import positions_seen

# Products of activations with activations: no weight is read, and no recipe for weights rounds them.
ATTENTION = ("attention_scores", "attention_values")


@dataclass(frozen=True)
class OpCost:
    """One operation, summed over all layers. kv_bytes are cache bytes read (or written, by "kv_write").

    host_bytes cross from the host's memory to the device's; they are not part of `bytes`. rows: of the matrix
    product, as the arithmetic units see it; None where the operation multiplies no matrices.
    """

    name: str
    flops: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0
    host_bytes: int = 0
    rows: int | None = None

    @property
    def bytes(self) -> int:
        """All bytes it moves between memory and processor."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """FLOP per byte moved."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class CacheTraffic:
    """How a step's traffic with a kind of cache departs from that with a contiguous one.

    kept: the most positions a query sees (a window, sinks and window, a budget). bits: of a stored number,
    scales included, where it is not the cache's dtype. copies: a step copies everything held (growing).
    unpacks: what is held is written out in full precision and read again (quantized, without a kernel that
    reads codes). block_size: positions are found through a table of int32. scores: every head keeps a sum of
    the attention that each position got (heavy hitters). host: it lies in the host's memory and is fetched
    whole. recomputes: there is no cache.
    """

    kept: int | None = None
    bits: float | None = None
    copies: bool = False
    unpacks: bool = False
    block_size: int | None = None
    scores: bool = False
    host: bool = False
    recomputes: bool = False


@dataclass(frozen=True)
class StepShape:
    """Sizes that every row needs. rows: positions computed over the batch; head_rows: those with logits.

    weight, linear_weight, activation, cache: bytes per number of embeddings, head and norms, of the layers'
    matrices, of activations, of the cache.
    """

    config: ModelConfig
    batch: int
    context: int
    new: int
    cached: bool
    head_rows: int
    weight: float
    linear_weight: float
    activation: float
    cache: float
    traffic: CacheTraffic
    fused: bool

    @property
    def rows(self) -> int:
        """Positions computed."""
        return self.batch * self.new

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.config.num_hidden_layers

    @property
    def stored(self) -> float:
        """Bytes per number as the cache stores it."""
        return self.cache if self.traffic.bits is None else self.traffic.bits / 8

    @property
    def keys(self) -> int:
        """Keys that a sequence's new positions see, summed over layers: windows cut what they see."""
        return positions_seen(self.config, self.context, self.new, kept=self.traffic.kept)


def linear(step: StepShape, name: str, shape: Linear, layers: int | None = None) -> OpCost:
    """A matrix product in so many layers (default: all); its weights read once."""
    times = step.layers if layers is None else layers
    return OpCost(
        name,
        flops=times * 2 * step.rows * shape.inputs * shape.outputs,
        weight_bytes=round(times * shape.parameters * step.linear_weight),
        activation_bytes=round(times * step.rows * (shape.inputs + shape.outputs) * step.activation),
        rows=step.rows,
    )


def cache_upkeep(step: StepShape, written: int, held: int) -> list[OpCost]:
    """What the kind of cache does beside being read.

    written: numbers that the step adds; held: numbers it sees, both over batch and layers.
    """
    traffic = step.traffic
    rows = [
        OpCost(
            "kv_write",
            kv_bytes=round(written * step.stored),
            activation_bytes=round(written * step.activation),
        )
    ]
    if traffic.copies:
        rows.append(OpCost("kv_copy", kv_bytes=round((2 * held - written) * step.stored)))
    if traffic.unpacks:
        wide = round(held * step.activation)
        rows.append(OpCost("kv_unpack", kv_bytes=round(held * step.stored), activation_bytes=wide))
    if traffic.host:
        rows.append(OpCost("kv_fetch", host_bytes=round((held - written) * step.stored)))
    if traffic.block_size is not None:
        blocks = -(-step.context // traffic.block_size)
        rows.append(OpCost("block_table", kv_bytes=4 * step.batch * blocks * step.layers))
    if traffic.scores:
        sums = step.batch * step.config.num_key_value_heads * step.keys
        rows.append(OpCost("kv_scores", kv_bytes=2 * 4 * sums))
    return rows


def read_held(step: StepShape, numbers: int) -> tuple[int, float]:
    """(cache bytes, activation bytes) of reading so many numbers of keys or values once."""
    if not step.cached or step.traffic.unpacks:
        return 0, numbers * step.activation
    return round(numbers * step.stored), 0.0
