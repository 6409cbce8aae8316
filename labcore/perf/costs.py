"""What one step of a model costs: FLOPs, and the bytes it has to move, operation by operation.

One source for every such number in the lab: the trace, the planner, the predictor and the figures all ask
here. Conventions:

* A multiply-add is 2 FLOP, and only matrix products count, as in `torch.utils.flop_counter` and the
  literature. Attention counts the whole rectangle of new tokens x context, masked half included.
* Bytes are the least a step can move when each operation reads its inputs and writes its outputs once:
  weights, KV cache and activations, each apart. Attention is counted as fused (its scores stay on the chip).
* Bytes in the cache and in weights are exact; whether a chip's own caches save some activations is for the
  measurement to say.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.dtypes import bytes_per_element, canonical
from labcore.perf.layout import Linear, layout_of, linears, norm_parameters, position_parameters
from labcore.perf.sizes import (
    approximate_flops,
    attention_scores_flops,
    kv_bytes,
    kv_bytes_per_token,
    num_parameters,
    positions_processed,
    weight_bytes,
)

__all__ = [
    "OpCost",
    "StepCosts",
    "approximate_flops",
    "attention_scores_flops",
    "countable",
    "kv_bytes",
    "kv_bytes_per_token",
    "linear_costs",
    "num_parameters",
    "positions_processed",
    "step_costs",
    "weight_bytes",
]


@dataclass(frozen=True)
class OpCost:
    """One operation, summed over all layers. kv_bytes are cache bytes read (or written, by "kv_write")."""

    name: str
    flops: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All bytes it moves."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """FLOP per byte moved."""
        return self.flops / self.bytes if self.bytes else 0.0


def linear_costs(inputs: int, outputs: int, rows: int, dtype: object = "float16") -> OpCost:
    """One linear layer over `rows` vectors: reads weights and inputs, writes outputs, all in one dtype."""
    size = bytes_per_element(dtype)
    return OpCost(
        name="linear",
        flops=2 * rows * inputs * outputs,
        weight_bytes=round(inputs * outputs * size),
        activation_bytes=round(rows * (inputs + outputs) * size),
    )


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
    def bytes(self) -> int:
        """All bytes moved."""
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
            "bytes",
            "intensity",
        )
        rows = [asdict(op) for op in self.operations]
        return {name: getattr(self, name) for name in sums} | {
            "positions": self.positions,
            "operations": rows,
        }


@dataclass(frozen=True)
class _Step:
    """Sizes that every row needs. rows: positions computed over the batch; head_rows: those with logits."""

    config: ModelConfig
    batch: int
    context: int
    new: int
    cached: bool
    head_rows: int
    weight: float  # bytes per element of weights, activations, cache
    activation: float
    cache: float

    @property
    def rows(self) -> int:
        return self.batch * self.new


def countable(config: ModelConfig) -> bool:
    """Whether `step_costs` knows this model's operations: not yet with latent attention or experts."""
    return config.latent is None and config.experts is None


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
) -> StepCosts:
    """Costs of one step of `batch` sequences that are each `context` tokens long once it is done.

    A decode step has new_tokens=1; the prefill of a prompt of p tokens has context=p, new_tokens=p. Without a
    cache (cached=False) all `context` positions are computed again. dtype is the weights'; activations share
    it, or are float16 where weights are narrower. logits: "last" (one row a sequence) or "all".
    Raises ConfigError for sizes that no step can have, DeviceError for an unknown dtype.
    """
    if batch < 1 or not 1 <= new_tokens <= context:
        raise ConfigError(
            f"A step of batch {batch} with {new_tokens} new tokens cannot end at a context of {context}; "
            "it needs batch >= 1 and 1 <= new_tokens <= context."
        )
    if logits not in ("last", "all"):
        raise ConfigError(f"logits is {logits!r}; it must be 'last' or 'all'.")
    if not countable(config):
        raise ConfigError(
            f"The operations of a {config.model_type} step (latent attention, experts) are not counted, only "
            "its memory; choose a dense model with MHA, GQA or MQA."
        )
    weight = bytes_per_element(dtype)
    activation = max(weight, 2.0)
    new = new_tokens if cached else context
    step = _Step(
        config=config,
        batch=batch,
        context=context,
        new=new,
        cached=cached,
        head_rows=batch * (1 if logits == "last" else new),
        weight=weight,
        activation=activation,
        cache=activation if cache_dtype is None else bytes_per_element(cache_dtype),
    )
    return StepCosts(operations=_operations(step), positions=step.rows, dtype=canonical(dtype))


def _operations(step: _Step) -> tuple[OpCost, ...]:
    layers = {name: _linear(step, name, linear) for name, linear in linears(step.config).items()}
    rows = [_embed(step), _elementwise(step), layers["qkv_proj"]]
    if step.cached:
        rows.append(_kv_write(step))
    rows += [_attention(step, "attention_scores"), _attention(step, "attention_values")]
    return (*rows, layers["o_proj"], layers["gate_up_proj"], layers["down_proj"], _lm_head(step))


def _embed(step: _Step) -> OpCost:
    """Looks up one row a token, and one position vector where positions are learnt."""
    hidden = step.config.hidden_size
    looked_up = min(step.rows, step.config.vocab_size) * hidden
    if position_parameters(step.config):
        looked_up += step.new * hidden
    written = step.rows * hidden * step.activation
    return OpCost("embed", weight_bytes=round(looked_up * step.weight), activation_bytes=round(written))


def _elementwise(step: _Step) -> OpCost:
    """Norms, residual additions, rotary positions and the feed-forward's non-linearity. Reads and writes."""
    config, layout = step.config, layout_of(step.config)
    heads = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    norms = 2 * layout.norms * config.hidden_size
    residuals = 2 * 3 * config.hidden_size  # two inputs, one output; after attention and after the MLP
    rotated = 2 * heads if layout.rotary else 0
    nonlinear = (3 if layout.gated else 2) * config.intermediate_size
    per_row = norms + residuals + rotated + nonlinear + (2 * heads if config.qk_norm else 0)
    final = 2 * config.hidden_size * step.head_rows
    numbers = config.num_hidden_layers * per_row * step.rows + final
    return OpCost(
        "elementwise",
        weight_bytes=round(norm_parameters(config) * step.weight),
        activation_bytes=round(numbers * step.activation),
    )


def _linear(step: _Step, name: str, linear: Linear) -> OpCost:
    layers = step.config.num_hidden_layers
    return OpCost(
        name,
        flops=layers * 2 * step.rows * linear.inputs * linear.outputs,
        weight_bytes=round(layers * linear.parameters * step.weight),
        activation_bytes=round(layers * step.rows * (linear.inputs + linear.outputs) * step.activation),
    )


def _kv_write(step: _Step) -> OpCost:
    """Reads the new keys and values, writes them into the cache."""
    numbers = (
        step.rows * 2 * step.config.num_hidden_layers * step.config.num_key_value_heads * step.config.head_dim
    )
    return OpCost(
        "kv_write", kv_bytes=round(numbers * step.cache), activation_bytes=round(numbers * step.activation)
    )


def _attention(step: _Step, name: str) -> OpCost:
    """Scores read queries and keys; values turn them into outputs. The same FLOPs, the same bytes."""
    config = step.config
    per_token = (
        config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    )  # keys alone, or values alone
    read = step.batch * step.context * per_token
    queries = step.rows * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return OpCost(
        name,
        flops=step.batch * attention_scores_flops(config, step.context, step.new),
        kv_bytes=round(read * step.cache) if step.cached else 0,
        activation_bytes=round((queries + (0 if step.cached else read)) * step.activation),
    )


def _lm_head(step: _Step) -> OpCost:
    """Reads the head's matrix once a step, whether or not it is the embedding's."""
    cost = linear_costs(step.config.hidden_size, step.config.vocab_size, step.head_rows)
    numbers = step.head_rows * (step.config.hidden_size + step.config.vocab_size)
    return OpCost(
        "lm_head",
        flops=cost.flops,
        weight_bytes=round(step.config.hidden_size * step.config.vocab_size * step.weight),
        activation_bytes=round(numbers * step.activation),
    )
