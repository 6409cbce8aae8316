"""A layer's fast twin for decoding one sequence on a GPU, in four launches and those of attention.

Between two products of a decode step there is nothing but small work: it goes along with the products, in
`kernels/triton/matvec.py`. The cache attends as it does for the readable `Block`, so every kind of cache
works with both. `Transformer.fast = False` goes back to the readable path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from labcore import kernels
from labcore.kernels.on_gpu import takes as on_gpu

if TYPE_CHECKING:
    from labcore.model.transformer import AttendingCache, Attention, Block, RMSNorm, Transformer


def takes(transformer: Transformer, x: Tensor) -> bool:
    """Whether this step, x (B, n, hidden), is one for the twin: one token, and weights as they came."""
    if x.shape[0] * x.shape[1] != 1 or not on_gpu(x):
        return False
    return type(transformer.lm_head) is nn.Linear and all(map(_plain, transformer.layers))


def decode(transformer: Transformer, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
    """(1, 1, hidden), cos and sin (1, 1, 1, d) -> logits (1, 1, vocab)."""
    from labcore.kernels.triton.matvec import fused_linear

    for block in transformer.layers:
        x = _block(block, x, cos, sin, cache)  # type: ignore[arg-type]
    norm = transformer.norm
    logits: Tensor = fused_linear(x, transformer.lm_head.weight, norm=norm.weight, eps=norm.eps)
    return logits


def _plain(block: nn.Module) -> bool:
    """Whether the four matrices are what they were: no codes, no shares of a matrix."""
    attention, mlp = block.attention, block.mlp
    parts = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)  # type: ignore[union-attr]
    return all(type(part) is nn.Linear for part in parts)


def _block(block: Block, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
    """(1, 1, hidden) -> (1, 1, hidden)."""
    from labcore.kernels.triton.matvec import ADD, GATE, fused_linear

    attention, mlp = block.attention, block.mlp
    q, k, v = _heads(attention, block.input_norm, x, cos, sin)
    mixed = cache.attend(attention.layer, q, k, v).reshape(1, 1, -1)
    o, up, down, norm = attention.o_proj, mlp.gate_up_proj, mlp.down_proj, block.post_norm
    x = fused_linear(mixed, o.weight, o.bias, then=ADD, residual=x)
    gated = fused_linear(x, up.weight, up.bias, norm=norm.weight, eps=norm.eps, then=GATE)
    return fused_linear(gated, down.weight, down.bias, then=ADD, residual=x)


def _heads(
    attention: Attention, norm: RMSNorm, x: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, each (1, heads, 1, d) and a view of one tensor."""
    from labcore.kernels.triton.matvec import TURN, fused_linear

    heads, kv_heads, size = attention.heads, attention.kv_heads, attention.head_dim
    turned, linear = heads + kv_heads, attention.qkv_proj
    normed = attention.q_norm is not None  # Qwen3's norm needs a whole head, which no one program holds
    made = fused_linear(
        x, linear.weight, linear.bias, norm=norm.weight, eps=norm.eps, then=0 if normed else TURN,
        half=size // 2, angles=None if normed else (cos, sin), turned=turned,
    )  # fmt: skip
    made = made.view(1, 1, -1, size).transpose(1, 2)
    qk, v = made.split((turned, kv_heads), dim=1)
    if normed:
        qk = kernels.apply_rope(attention._norm(qk), cos, sin)
    q, k = qk.split((heads, kv_heads), dim=1)
    return q, k, v
