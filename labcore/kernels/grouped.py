"""The two products of attention apart, for caches that must see the weights between them.

Queries of one group are folded into rows of one matrix, so that shared keys and values are read in place
and never repeated.
"""

from __future__ import annotations

import math

from torch import Tensor


def grouped_scores(q: Tensor, k: Tensor) -> Tensor:
    """q kᵀ / sqrt(d) in fp32. q: (B, h, n, d), k: (B, h_kv, T, d) -> (B, h_kv, h / h_kv, n, T)."""
    batch, heads, n, size = q.shape
    kv_heads = k.shape[1]
    rows = q.reshape(batch, kv_heads, (heads // kv_heads) * n, size)
    scores = (rows @ k.transpose(-1, -2)).float() / math.sqrt(size)
    return scores.reshape(batch, kv_heads, heads // kv_heads, n, -1)


def grouped_values(weights: Tensor, v: Tensor) -> Tensor:
    """Weighted sums of values. weights: (B, h_kv, g, n, T), v: (B, h_kv, T, d) -> (B, h_kv * g, n, d)."""
    batch, kv_heads, group, n, _ = weights.shape
    mixed = weights.reshape(batch, kv_heads, group * n, -1).to(v.dtype) @ v
    return mixed.reshape(batch, kv_heads * group, n, -1)
