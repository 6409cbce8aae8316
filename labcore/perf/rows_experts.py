"""Rows of a mixture of experts: a router, the experts that tokens are sent to, and those that all share."""

from __future__ import annotations

from labcore.perf.layout import Linear, layout_of
from labcore.perf.sizes import experts_touched
from labcore.perf.step_shape import OpCost, StepShape, linear
from labcore.shapes import Experts


def expert_rows(step: StepShape, experts: Experts) -> tuple[OpCost, ...]:
    """The feed-forward half of every layer; the first first_k_dense_replace layers are dense."""
    config, dense = step.config, experts.first_k_dense_replace
    mixed = config.num_hidden_layers - dense
    router = linear(
        step, "router", Linear(config.hidden_size, experts.num_local_experts, experts.router_bias), mixed
    )
    widened = 2 if layout_of(config).gated else 1
    inner, hidden = experts.moe_intermediate_size, config.hidden_size
    up, down = Linear(hidden, widened * inner), Linear(inner, hidden)
    rows = [router, _routed(step, "experts_gate_up", up, mixed, experts)]
    rows.append(_routed(step, "experts_down", down, mixed, experts))
    if experts.n_shared_experts:
        shared = experts.n_shared_experts * inner
        rows.append(linear(step, "shared_gate_up", Linear(hidden, widened * shared), mixed))
        rows.append(linear(step, "shared_down", Linear(shared, hidden), mixed))
    if dense:
        whole = config.intermediate_size
        rows.append(linear(step, "gate_up_proj", Linear(hidden, widened * whole), dense))
        rows.append(linear(step, "down_proj", Linear(whole, hidden), dense))
    return tuple(rows)


def _routed(step: StepShape, name: str, shape: Linear, layers: int, experts: Experts) -> OpCost:
    """Each position goes through its own experts; an expert that several chose is read once."""
    visits = layers * step.rows * experts.num_experts_per_tok
    read = layers * experts_touched(experts, step.rows) * shape.parameters
    return OpCost(
        name,
        flops=2 * visits * shape.inputs * shape.outputs,
        weight_bytes=round(read * step.linear_weight),
        activation_bytes=round(visits * (shape.inputs + shape.outputs) * step.activation),
        rows=max(1, round(visits / layers / experts_touched(experts, step.rows))),
    )
