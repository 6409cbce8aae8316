"""The rows of `costs.step_costs`: what each operation of one step computes, reads and writes.

A row sums over all layers. Models with latent attention or experts have rows of their own, in
`rows_latent.py` and `rows_experts.py`.
"""

from __future__ import annotations

from labcore.config import ModelConfig
from labcore.perf.layout import (
    latent_norm_parameters,
    layout_of,
    linears,
    norm_parameters,
    position_parameters,
)
from labcore.perf.rows_experts import expert_rows
from labcore.perf.rows_latent import latent_rows
from labcore.perf.sizes import kv_numbers_per_layer
from labcore.perf.step_shape import OpCost, StepShape, cache_upkeep, linear, read_held


def operations(step: StepShape) -> tuple[OpCost, ...]:
    """All rows of a step, in the order in which a layer runs them."""
    plain = linears(step.config)
    if step.config.latent is not None:
        attention = latent_rows(step, step.config.latent)
    else:
        qkv, o_proj = (linear(step, name, plain[name]) for name in ("qkv_proj", "o_proj"))
        attention = (qkv, *_cache_rows(step), *_attention(step), o_proj)
    if step.config.experts is not None:
        feed_forward = expert_rows(step, step.config.experts)
    else:
        feed_forward = tuple(linear(step, name, plain[name]) for name in ("gate_up_proj", "down_proj"))
    return (_embed(step), _elementwise(step), *attention, *feed_forward, _lm_head(step))


def _cache_rows(step: StepShape) -> list[OpCost]:
    if not step.cached:
        return []
    per_token = kv_numbers_per_layer(step.config)
    return cache_upkeep(step, step.rows * step.layers * per_token, step.batch * step.keys * per_token)


def _attention(step: StepShape) -> tuple[OpCost, OpCost]:
    """Scores read queries and keys; values turn them into outputs. The same FLOPs, the same bytes."""
    config = step.config
    read = step.batch * step.keys * config.num_key_value_heads * config.head_dim  # keys, or values
    queries = step.rows * step.layers * config.num_attention_heads * config.head_dim
    kv, activation = read_held(step, read)
    each: dict[str, int] = {
        "flops": 2 * config.num_attention_heads * config.head_dim * step.rows * step.keys,
        "kv_bytes": kv,
        "activation_bytes": round(activation + queries * step.activation) + _scores_bytes(step) // 2,
        "rows": config.queries_per_kv_head * step.new,
    }
    return OpCost("attention_scores", **each), OpCost("attention_values", **each)


def _scores_bytes(step: StepShape) -> int:
    """Scores on their way through memory when attention is not fused: written, scaled, masked where several
    positions are new, normalised, read; each operator in between reads and writes them."""
    if step.fused:
        return 0
    passes = 8 if step.new > 1 else 6
    scores = step.config.num_attention_heads * step.rows * step.keys
    return round(passes * scores * step.activation)


# Passes over its numbers that an operation of `kernels/reference.py` makes as separate operators: reads and
# writes of whole tensors. A fused one reads once and writes once.
_PASSES = {"norm": 7, "rope": 9, "gated": 8, "plain": 2}
_FUSED = {"norm": 2, "rope": 2, "gated": 3, "plain": 2}


def _elementwise(step: StepShape) -> OpCost:
    """Norms, residual additions, rotary positions and the feed-forward's non-linearity. Reads and writes."""
    config, layout = step.config, layout_of(step.config)
    passes = _FUSED if step.fused else _PASSES
    heads = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    normed = layout.norms * config.hidden_size + (heads if config.qk_norm else 0)
    rotated = heads if layout.rotary else 0
    if config.latent is not None:
        latent = config.latent
        normed += latent.kv_lora_rank + (latent.q_lora_rank or 0)
        rotated = (config.num_attention_heads + 1) * latent.qk_rope_head_dim
    residuals = 2 * 3 * config.hidden_size  # two inputs, one output; after attention and after the MLP
    per_row = passes["norm"] * normed + passes["rope"] * rotated + residuals
    activated = passes["gated" if layout.gated else "plain"] * _widths(config)
    final = passes["norm"] * config.hidden_size * step.head_rows
    numbers = (step.layers * per_row + activated) * step.rows + final
    weights = norm_parameters(config) + latent_norm_parameters(config)
    return OpCost(
        "elementwise",
        weight_bytes=round(weights * step.weight),
        activation_bytes=round(numbers * step.activation),
    )


def _widths(config: ModelConfig) -> int:
    """Numbers per position that go through the non-linearity, over all layers."""
    if config.experts is None:
        return config.num_hidden_layers * config.intermediate_size
    experts = config.experts
    dense = experts.first_k_dense_replace
    inner = (experts.num_experts_per_tok + experts.n_shared_experts) * experts.moe_intermediate_size
    return dense * config.intermediate_size + (config.num_hidden_layers - dense) * inner


def _embed(step: StepShape) -> OpCost:
    """Looks up one row a token, and one position vector where positions are learnt."""
    hidden = step.config.hidden_size
    looked_up = min(step.rows, step.config.vocab_size) * hidden
    if position_parameters(step.config):
        looked_up += step.new * hidden
    written = step.rows * hidden * step.activation
    return OpCost("embed", weight_bytes=round(looked_up * step.weight), activation_bytes=round(written))


def _lm_head(step: StepShape) -> OpCost:
    """Reads the head's matrix once a step, whether or not it is the embedding's."""
    hidden, vocab = step.config.hidden_size, step.config.vocab_size
    return OpCost(
        "lm_head",
        flops=2 * step.head_rows * hidden * vocab,
        weight_bytes=round(hidden * vocab * step.weight),
        activation_bytes=round(step.head_rows * (hidden + vocab) * step.activation),
        rows=step.head_rows,
    )
