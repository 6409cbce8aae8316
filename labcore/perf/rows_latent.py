"""Rows of multi-head latent attention (DeepSeek-V2, 2024), in its two equivalent orders.

A prompt is computed as the paper writes it: keys and values of all heads are expanded out of the small
vector. Where a history is read, the expanding matrices are absorbed instead: queries are taken down to the
vector's size and outputs brought up from it, so that the cache is read as it lies (section 2.1.2).
"""

from __future__ import annotations

from labcore.perf.layout import Linear
from labcore.perf.sizes import kv_numbers_per_layer
from labcore.perf.step_shape import OpCost, StepShape, cache_upkeep, linear, read_held
from labcore.shapes import Latent


def latent_rows(step: StepShape, latent: Latent) -> tuple[OpCost, ...]:
    """The attention half of every layer."""
    hidden, heads = step.config.hidden_size, step.config.num_attention_heads
    held = kv_numbers_per_layer(step.config)
    rows = [
        _queries(step, latent),
        linear(step, "kv_a_proj", Linear(hidden, held)),
        _expansion(step, latent),
    ]
    if step.cached:
        rows += cache_upkeep(step, step.rows * step.layers * held, step.batch * step.keys * held)
    rows += _attention(step, latent)
    return (*rows, linear(step, "o_proj", Linear(heads * latent.v_head_dim, hidden)))


def _queries(step: StepShape, latent: Latent) -> OpCost:
    """One product, or two through a narrow layer, taken as one row."""
    hidden = step.config.hidden_size
    wide = step.config.num_attention_heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    if latent.q_lora_rank is None:
        return linear(step, "q_proj", Linear(hidden, wide))
    narrow = latent.q_lora_rank
    halves = [linear(step, "q_proj", shape) for shape in (Linear(hidden, narrow), Linear(narrow, wide))]
    return OpCost(
        "q_proj",
        flops=sum(half.flops for half in halves),
        weight_bytes=sum(half.weight_bytes for half in halves),
        activation_bytes=sum(half.activation_bytes for half in halves),
        rows=step.rows,
    )


def _expansion(step: StepShape, latent: Latent) -> OpCost:
    """Keys and values out of the vector, or the same matrices on the queries' and on the outputs' side.

    Either way every position multiplies with each of their weights once.
    """
    heads = step.config.num_attention_heads
    wide = heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    whole = linear(step, "kv_b_proj", Linear(latent.kv_lora_rank, wide))
    if not absorbed(step):
        return whole
    numbers = step.rows * step.layers * (wide + 2 * heads * latent.kv_lora_rank)
    moved = round(numbers * step.activation)
    return OpCost("kv_b_proj", whole.flops, whole.weight_bytes, 0, moved, rows=step.rows)


def _attention(step: StepShape, latent: Latent) -> list[OpCost]:
    heads, rotated = step.config.num_attention_heads, latent.qk_rope_head_dim
    if absorbed(step):
        key, value, shared = latent.kv_lora_rank + rotated, latent.kv_lora_rank, True
    else:
        key, value, shared = latent.qk_nope_head_dim + rotated, latent.v_head_dim, False
    rows = []
    for name, size in (("attention_scores", key), ("attention_values", value)):
        # Absorbed, one vector is key and value of every head: it is read for the scores, and is there.
        read = 0 if name == "attention_values" else step.batch * step.keys * key
        kv, activation = read_held(step, read) if shared else (0, 0.0)
        if not shared:
            activation = step.batch * step.keys * heads * size * step.activation
        queries = step.rows * step.layers * heads * size * step.activation
        flops = 2 * heads * size * step.rows * step.keys
        group = heads * step.new if shared else step.new
        rows.append(OpCost(name, flops, 0, kv, round(activation + queries), rows=group))
    return rows


def absorbed(step: StepShape) -> bool:
    """Whether a history is read: then the cache is used as it lies."""
    return step.new < step.context
