"""A layer's fast twin for decoding one sequence on a GPU, in four launches and those of attention.

Between two products of a decode step there is nothing but small work: it goes along with the products, in
`kernels/triton/matvec.py`, or in `coded_matvec.py` where weights are codes. The cache attends as it does for
the readable `Block`, so every kind of cache works with both. `Transformer.fast = False` goes back to the
readable path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from labcore import kernels
from labcore.kernels.around import ADD, GATE, TURN, Around
from labcore.kernels.on_gpu import takes as on_gpu
from labcore.quant import fast_paths
from labcore.quant.linear import QuantLinear

if TYPE_CHECKING:
    from labcore.model.transformer import AttendingCache, Attention, Block, RMSNorm, Transformer


def takes(transformer: Transformer, x: Tensor) -> bool:
    """Whether this step, x (B, n, hidden), is one for the twin: one token, through matrices it can read."""
    if x.shape[0] * x.shape[1] != 1 or not on_gpu(x):
        return False
    return _readable(transformer.lm_head) and all(map(_all_readable, transformer.layers))


def decode(transformer: Transformer, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
    """(1, 1, hidden), cos and sin (1, 1, 1, d) -> logits (1, 1, vocab)."""
    for block in transformer.layers:
        x = _block(block, x, cos, sin, cache)  # type: ignore[arg-type]
    norm = transformer.norm
    return _linear(transformer.lm_head, x, norm=norm.weight, eps=norm.eps)


def _all_readable(block: Any) -> bool:
    attention, mlp = block.attention, block.mlp
    return all(map(_readable, (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)))


def _readable(part: nn.Module) -> bool:
    """Whether a matrix is as it came, or codes that nothing is done to x for; no shares of a matrix."""
    if type(part) is QuantLinear:
        return fast_paths.takes_fused(part)
    return type(part) is nn.Linear


def _linear(part: Any, x: Tensor, **neighbours: Any) -> Tensor:
    """(1, 1, columns) -> (1, 1, rows), with the neighbours that `Around` names."""
    from labcore.kernels.triton.matvec import fused_linear

    around = Around(part.bias, **neighbours)
    if isinstance(part, QuantLinear):
        return fast_paths.fused(part, x, around)
    made: Tensor = fused_linear(x, part.weight, around)
    return made


def _block(block: Block, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
    """(1, 1, hidden) -> (1, 1, hidden)."""
    attention, mlp, norm = block.attention, block.mlp, block.post_norm
    q, k, v = _heads(attention, block.input_norm, x, cos, sin)
    mixed = cache.attend(attention.layer, q, k, v).reshape(1, 1, -1)
    x = _linear(attention.o_proj, mixed, then=ADD, residual=x)
    gated = _linear(mlp.gate_up_proj, x, norm=norm.weight, eps=norm.eps, then=GATE)
    return _linear(mlp.down_proj, gated, then=ADD, residual=x)


def _heads(
    attention: Attention, norm: RMSNorm, x: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, each (1, heads, 1, d) and a view of one tensor."""
    heads, kv_heads, size = attention.heads, attention.kv_heads, attention.head_dim
    turned = heads + kv_heads
    normed = attention.q_norm is not None  # Qwen3's norm needs a whole head, which no one program holds
    turn = {} if normed else {"then": TURN, "half": size // 2, "angles": (cos, sin), "turned": turned}
    made = _linear(attention.qkv_proj, x, norm=norm.weight, eps=norm.eps, **turn)
    made = made.view(1, 1, -1, size).transpose(1, 2)
    qk, v = made.split((turned, kv_heads), dim=1)
    if normed:
        qk = kernels.apply_rope(attention._norm(qk), cos, sin)
    q, k = qk.split((heads, kv_heads), dim=1)
    return q, k, v
