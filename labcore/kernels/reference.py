"""The operations as the papers write them: slow, plain, and what the fast ones are tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., d) -> (..., d), computed in fp32."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


def norm_heads(x: Tensor, q_weight: Tensor, k_weight: Tensor, q_heads: int, eps: float) -> Tensor:
    """Head by head; arguments as in `kernels.norm_heads`."""
    weights = [q_weight if head < q_heads else k_weight for head in range(x.shape[1])]
    heads = [rms_norm(x[:, head], weight, eps) for head, weight in enumerate(weights)]
    return torch.stack(heads, dim=1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin). Shapes as in `kernels.apply_rope`."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    plain_sin = sin[..., half:]  # the first half carries the minus sign already
    cos = cos[..., half:]
    return torch.cat([first * cos - second * plain_sin, second * cos + first * plain_sin], dim=-1)


def swiglu(gate_up: Tensor) -> Tensor:
    """(..., 2 d) -> (..., d)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) in fp32, (B, h, n, T); arguments as in `kernels.attention`."""
    batch, heads, n, size = q.shape
    kv_heads, total = k.shape[1], k.shape[2]
    grouped = q.float().reshape(batch, kv_heads, heads // kv_heads, n, size)
    scores = (grouped @ k.float().transpose(-1, -2).unsqueeze(2)) / math.sqrt(size)
    scores = scores.reshape(batch, heads, n, total)
    if causal:
        mask = torch.ones(n, total, dtype=torch.bool, device=q.device).tril(total - n)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1)


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """(B, h, n, d); arguments as in `kernels.attention`."""
    batch, heads, n, size = q.shape
    weights = attention_weights(q, k, mask, causal)
    grouped = weights.reshape(batch, k.shape[1], heads // k.shape[1], n, -1)
    return (grouped @ v.float().unsqueeze(2)).reshape(batch, heads, n, size).to(q.dtype)


def paged_attention(q: Tensor, pool: Tensor, block_tables: Tensor, context_lens: Tensor) -> Tensor:
    """Sequence by sequence, position by position; arguments as in `kernels.paged_attention`."""
    out = torch.zeros_like(q)
    block_size = pool.shape[3]
    for row, length in enumerate(context_lens.tolist()):
        if length:
            table = block_tables[row].tolist()
            places = [(table[t // block_size], t % block_size) for t in range(length)]
            held = torch.stack([pool[:, :, block, offset] for block, offset in places], dim=2)
            out[row] = attention(q[row : row + 1], held[:1], held[1:])[0]
    return out
